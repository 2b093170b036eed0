"""Operators of torch.library, and the straight way to what is behind them.

An operator is what torch.compile, torch.export, torch.func, dispatch modes and tensor subclasses see of a kernel; but
to go through torch.library costs the host 12 us a call, and 50 us more where gradients are recorded. Nobody sees the
difference where plain tensors meet no transformation: there the same implementation is called straight, its gradients
recorded by an autograd function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .launch_plans import planned

_PLAIN_TYPES = {Tensor, nn.Parameter}

_ALWAYS_ACTIVE = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect).raw_repr() | (
    torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView).raw_repr()
)


class Operator:
    """`favorcast::name`, an operator that takes `impl` among its arguments, all of them by position.

    Args:
        name: within the namespace.
        schema: of arguments and results.
        implementation: returns one new tensor or several, launching Triton kernels with `launch_kernel`.
        fake: returns tensors of the same shapes, strides and dtypes.
    """

    def __init__(self, name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
        qualified = f"favorcast::{name}"
        torch.library.define(qualified, schema)
        self.overload = getattr(torch.ops.favorcast, name).default
        impl_position = [argument.name for argument in self.overload._schema.arguments].index("impl")
        self.run = _in_own_context(planned(implementation, impl_position))
        torch.library.impl(qualified, "CompositeExplicitAutograd")(self.run)
        torch.library.register_fake(qualified)(fake)
        self.differentiable_run: Callable[..., Any] = self.run

    def differentiate(self, gradient: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """Register the gradient, in the form of torch.library.register_autograd."""
        torch.library.register_autograd(self.overload, gradient, setup_context=setup_context)
        run = self.run

        def forward(ctx: Any, *arguments: Any) -> Any:
            results = run(*arguments)
            setup_context(ctx, arguments, results)
            return results

        members = {"forward": staticmethod(forward), "backward": staticmethod(gradient)}
        self.differentiable_run = type(self.overload._schema.name, (torch.autograd.Function,), members).apply

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.overload(*arguments)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if not _are_plain(tensors):
            return self.overload(*arguments)
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return self.differentiable_run(*arguments)
        return self.run(*arguments)


def _are_plain(tensors: list[Tensor]) -> bool:
    """Whether a call on these tensors would reach its implementation, or its gradient, without anybody in between."""
    if torch._C._dispatch_tls_local_include_set().raw_repr() & ~_ALWAYS_ACTIVE:
        return False
    return all(type(x) in _PLAIN_TYPES and not (x.is_neg() or x.is_meta) for x in tensors)


def _in_own_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run an implementation on its tensors' device and in its own precision: inputs were cast by the caller."""

    def run(*args: Any) -> Any:
        device = next(x for x in args if isinstance(x, Tensor)).device
        kind = device.type
        if kind == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # kernels are launched on the current device
                return run(*args)
        if kind != "meta" and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return function(*args)
        return function(*args)

    return run
