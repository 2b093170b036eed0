"""Attention classes by name, so that hyper-parameters and checkpoints hold plain text."""

import importlib

from torch import nn


def attention_class_named(path: str) -> type[nn.Module]:
    """Import the attention class called `path`.

    Example:
        >>> attention_class_named("favorcast.kernels.FavorAttention").__name__
        'FavorAttention'

    Args:
        path: "package.module.Class", a torch Module with the constructor and methods of FavorAttention.

    Raises:
        ValueError: nothing importable has that name, or it is no class of modules.
    """
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"attention_class must name an importable class as 'package.module.Class': got {path!r} ({error})"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"attention_class must name a subclass of torch.nn.Module: got {path!r}, {found!r}")
    return found
