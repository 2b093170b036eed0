"""Operators of torch.library, and the straight way to what is behind them.

An operator is what torch.compile, torch.export, vmap, modes, the profiler and tensor subclasses see of a kernel; but to
go through torch.library costs the host 12 us a call, and 50 us more where gradients are recorded. Where none of them is
there to see it, the same implementation is called straight, its gradients recorded by an autograd function.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, get_interpreter_stack, maybe_current_level
from torch.autograd import forward_ad

_PLAIN_TYPES = {Tensor, nn.Parameter}

_PLAIN_KEYS = (
    *("BackendSelect", "ADInplaceOrView"),
    *("CPU", "AutogradCPU", "AutocastCPU"),
    *("CUDA", "AutogradCUDA", "AutocastCUDA"),
)
_OTHER_KEYS = ~functools.reduce(
    operator.or_, (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)).raw_repr() for name in _PLAIN_KEYS)
)
"""What a call of plain tensors does not pass in the dispatcher: every transformation and mode of torch has a key there,
and tensors that wrap others are known by theirs alone."""


class Operator:
    """`favorcast::name`, an operator that takes `impl` among its arguments, all of them by position.

    Args:
        name: within the namespace.
        schema: of arguments and results.
        implementation: returns one new tensor or several.
        fake: returns tensors of the same shapes, strides and dtypes.
    """

    def __init__(self, name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
        qualified = f"favorcast::{name}"
        torch.library.define(qualified, schema)
        self.overload = getattr(torch.ops.favorcast, name).default
        self.run = in_own_context(implementation)
        torch.library.impl(qualified, "CompositeExplicitAutograd")(self.run)
        torch.library.register_fake(qualified)(fake)
        self.differentiable_run: Callable[..., Any] = self.run
        self.transformable_run: Callable[..., Any] = self.overload
        self.written_out: Any = None

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
        members = {
            "forward": staticmethod(self),  # below the transform it may be transformed again
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(gradient),
            "vmap": staticmethod(vmap_by_loop(self)),
        }
        self.transformable_run = type(self.overload._schema.name, (torch.autograd.Function,), members).apply

    def write_out_for_onnx(self, written_out: Callable[..., Any]) -> Callable[..., Any]:
        """Take a function of the same arguments and results for exports to ONNX, which knows operators of aten only."""
        self.written_out = written_out
        return written_out

    def __call__(self, *arguments: Any) -> Any:
        """Compute.

        Raises:
            NotImplementedError: under forward-mode differentiation, whose tangents an operator would drop.
        """
        return self.way_for(arguments)(*arguments)

    def way_for(self, arguments: Sequence[Any]) -> Callable[..., Any]:
        """Return what to call with the arguments: `run` where nobody else wants to see the call."""
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        _refuse_forward_mode(tensors)
        if torch.compiler.is_compiling():
            run = self.written_out if torch.onnx.is_in_onnx_export() else None
            return self.overload if run is None else run
        if _is_differentiated_as_function():
            return self.transformable_run
        if _is_seen_by_others(tensors):
            return self.overload
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors) and not _is_below_autograd():
            return self.differentiable_run
        return self.run


def vmap_by_loop(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return a batching rule that calls the operator once a sample: projections and their gradients may be batched."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        samples = [
            operator(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(samples[0], Tensor):
            return torch.stack(samples), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


def _is_seen_by_others(tensors: list[Tensor]) -> bool:
    """Whether there is anybody between a call on these tensors and its implementation, or its gradient."""
    keys = torch._C._dispatch_tls_local_include_set().raw_repr()
    for x in tensors:
        if type(x) not in _PLAIN_TYPES:
            return True
        keys |= torch._C._dispatch_keys(x).raw_repr()
    return bool(keys & _OTHER_KEYS) or torch._C._is_torch_function_mode_enabled() or torch.autograd._profiler_enabled()


def _is_differentiated_as_function() -> bool:
    """Whether a transform of torch.func takes gradients: it knows autograd functions, but no gradients of operators."""
    if maybe_current_level() is None:
        return False
    return any(level.key() == TransformType.Grad for level in get_interpreter_stack() or ())


def _is_below_autograd() -> bool:
    """Whether this is called from within an operator, whose own gradient is what counts."""
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality)


def _refuse_forward_mode(tensors: list[Tensor]) -> None:
    """Raise for tensors that carry a forward-mode tangent."""
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "forward-mode differentiation (jvp) is not implemented: use reverse mode (backward, autograd.grad, "
            "autograd.functional.jacobian), which can be repeated for higher derivatives"
        )


def in_own_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run an implementation on its tensors' device and in its own precision: inputs were cast by the caller.

    Tensors are among its arguments, or among the fields of the first.
    """

    def run(*args: Any) -> Any:
        device = next(x for x in (args[0] if isinstance(args[0], tuple) else args) if isinstance(x, Tensor)).device
        kind = device.type
        if kind == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # kernels are launched on the current device
                return run(*args)
        if kind != "meta" and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return function(*args)
        return function(*args)

    return run
