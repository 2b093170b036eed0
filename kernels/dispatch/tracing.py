"""Whether a call runs or a graph is made of it, and layers as single nodes of such graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx import Proxy
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def is_traced() -> bool:
    """Whether a graph is being made of what runs: what Python decides now holds for every later call of it."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def is_readable(*tensors: Tensor) -> bool:
    """Whether Python may look at the values of tensors: not while tracing or under vmap, nor where there are none."""
    return not is_traced() and not any(
        type(x) not in (Tensor, nn.Parameter)  # FakeTensor and other subclasses
        or x.is_meta
        or is_functorch_wrapped_tensor(x)
        for x in tensors
    )


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may come."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def as_leaf(layer: nn.Module, first: Any, *args: Any, **options: Any) -> Any:
    """Return the proxy of a call of a layer in torch.fx: one node, as layers of torch.nn are.

    Args:
        layer: a part of what is traced.
        first: a Proxy, the layer's first argument.
        args, options: the others; options that are None or False are left out.
    """
    assert isinstance(first, Proxy)
    tracer: Any = first.tracer
    options = {name: value for name, value in options.items() if value is not None and value is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (first, *args), options)
