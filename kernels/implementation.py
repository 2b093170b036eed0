"""Which implementation runs: the torch reference, or the GPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "triton-ieee", "reference"]
"""What a caller may ask for. "triton-ieee" multiplies float32 inputs in float32, without tensor cores."""

MAX_DIM = 256
"""Head and value dims the GPU kernels take: a tile's rows must fit the registers."""

HAS_TRITON = find_spec("triton") is not None


def resolve_impl(impl: str, *tensors: Tensor) -> str:
    """Return the schedule to run; only "auto" chooses, an explicit choice is honoured or refused.

    Args:
        impl: what the caller asked for.
        tensors: that the kernels would read.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"unknown impl: expected one of {', '.join(get_args(Impl))}, got {impl!r}")
    if impl == "reference" or (impl == "auto" and not tensors[0].is_cuda):
        return "reference"
    obstacle = _obstacle(tensors)
    if obstacle is None:
        return "triton" if impl == "auto" else impl
    if impl == "auto":
        return "reference"
    raise ValueError(f"impl={impl!r} cannot be honoured: {obstacle}; use impl='auto' or impl='reference'")


def _obstacle(tensors: tuple[Tensor, ...]) -> str | None:
    """Say what keeps the GPU kernels from running on these tensors, or None."""
    if not HAS_TRITON:
        return "triton is not installed"
    if any(x.dtype == torch.float64 for x in tensors):
        return "the kernels take bfloat16, float16 and float32, got float64"
    if any(x.ndim == 4 and x.shape[-1] > MAX_DIM for x in tensors):
        return f"the kernels take dims up to {MAX_DIM}, got {max(x.shape[-1] for x in tensors)}"
    if not all(x.is_cuda for x in tensors) and not _interpreted():
        return f"the kernels run on CUDA tensors, got {tensors[0].device.type}"
    return None


@torch.compiler.assume_constant_result
def _interpreted() -> bool:
    """Whether Triton runs kernels on the CPU (TRITON_INTERPRET=1, for tests)."""
    from triton import knobs

    return knobs.runtime.interpret


def in_own_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run an implementation on its tensors' device and in its own precision: inputs were cast by the caller."""

    def run(*args: Any) -> Any:
        device = next(x for x in args if isinstance(x, Tensor)).device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # kernels are launched on the current device
                return run(*args)
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            with torch.autocast(device.type, enabled=False):
                return function(*args)
        return function(*args)

    return run
