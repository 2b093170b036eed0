"""Layers in graphs of torch.fx: one node, as layers of torch.nn are; shapes and masks are for running, not tracing."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def as_leaf(layer: nn.Module, first: Any, *args: Any, **options: Any) -> Any:
    """Return the proxy of a call of a layer, instead of tracing through it.

    Args:
        layer: a part of what is traced.
        first: a Proxy, the layer's first argument.
        args, options: the others; options that are None or False are left out.
    """
    assert isinstance(first, Proxy)
    tracer: Any = first.tracer
    options = {name: value for name, value in options.items() if value is not None and value is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (first, *args), options)
