"""Which implementation runs: the torch reference, or the GPU kernels."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "triton-ieee", "reference"]
"""What a caller may ask for. "triton-ieee" multiplies float32 inputs in float32, without tensor cores."""

_IMPLS = get_args(Impl)

LAUNCHES_ON = {"cuda"}
"""Types of devices whose tensors kernels take, but for Triton's interpreter, which takes those of a CPU."""

MAX_DIM = 256
"""Head and value dims the GPU kernels take: a tile's rows must fit the registers."""

HAS_TRITON = find_spec("triton") is not None


_process_wide: Impl = "auto"


def set_impl(impl: Impl) -> Impl:
    """Choose what `impl="auto"` means in this process, in every function and layer; an explicit impl goes before it.

        set_impl("reference")       # plain torch, where a kernel fails on a card
        set_impl("auto")            # and back

    Args:
        impl: as in `favor_attention`; "triton" then refuses what the kernels cannot do.

    Returns:
        What it was before.

    Raises:
        ValueError: an unknown one.
    """
    global _process_wide
    check_impl(impl)
    before, _process_wide = _process_wide, impl
    return before


def check_impl(impl: str) -> None:
    """Raise ValueError for the name of no implementation."""
    if impl not in _IMPLS:
        raise ValueError(f"unknown impl: expected one of {', '.join(_IMPLS)}, got {impl!r}")


def resolve_impl(impl: str, *tensors: Tensor) -> str:
    """Return the schedule to run; only "auto" chooses, an explicit choice is honoured or refused.

    Args:
        impl: what the caller asked for.
        tensors: that the kernels would read.
    """
    check_impl(impl)
    impl = _process_wide if impl == "auto" else impl
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
    for x in tensors:
        if x.dtype == torch.float64:
            return "the kernels take bfloat16, float16 and float32, got float64"
        if x.ndim == 4 and x.shape[-1] > MAX_DIM:
            return f"the kernels take dims up to {MAX_DIM}, got {x.shape[-1]}"
        if x.device.type not in LAUNCHES_ON and not _is_interpreted():
            return f"the kernels run on CUDA tensors, got {x.device.type}"
    return None


@torch.compiler.assume_constant_result
def _is_interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 has kernels run in Triton's interpreter, on CPU tensors."""
    from triton import knobs

    return knobs.runtime.interpret
