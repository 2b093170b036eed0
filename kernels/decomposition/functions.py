"""Moving averages and the seasonal-trend decomposition of series, exact to rounding for every window.

Dimension key: b batch, l time, c channel, k kernel size.

With the window of step i reaching `back` steps back and `ahead` steps ahead (back + ahead = k - 1), and ends repeated,

    trend_i = (1 / k) sum_{j = -back}^{ahead} x_clip(i + j, 0, l - 1)       seasonal = x - trend

back = (k - 1) // 2, so an even window has its longer end ahead, [i - k/2 + 1, i + k/2], as in darts and BasicTS; an
odd one is Autoformer's and DLinear's (Wu et al. 2021, eq. (1)). `causal=True` looks back only: back = k - 1, ahead = 0.

A mask (True = observed) makes it the average of the observed values in the window; ends repeat with their mask. A
window without any carries the nearest observed value of its channel (the earlier of two; only an earlier one if
causal), and zero where there is none. What stands under a False mask, NaN included, is never read. `seasonal` is zero
there.

The operation is linear, y = A x, so its gradient is the adjoint A^T and its second gradient is A again. The reference
builds window sums by doubling, log2(k) additions a value, the GPU kernels from partial sums that windows share: no
running sum, so a large offset or an outlier costs no precision elsewhere and NaN stays within its window. Sums of half
precision are float32; those of float32 are float64 in the reference, and of differences to a value of the window in the
kernels, so that an offset costs one rounding of the result either way. The trend is rounded once to x's dtype, before
it is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..dispatch.checks import DTYPES
from ..dispatch.implementation import Impl, check_impl, resolve_impl
from ..dispatch.tracing import as_leaf
from .operators import decompose_op, moving_average_op

LARGEST = 2**30
"""Largest kernel size: steps, and their differences, are counted in 32 bits on the GPU."""


def moving_average(
    x: Tensor,
    kernel_size: int | Sequence[int],
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Average x over a sliding window along time.

    Args:
        x: (b, time, channel), floating point, any strides.
        kernel_size: window length in steps, from 1 to 2**30, beyond the length if need be; or several, whose trends are
            averaged, or mixed by `weights`.
        causal: look back only.
        mask: (b, time, channel) bool, True = observed.
        weights: for several kernel sizes, (..., number of sizes), broadcast against (b, time, channel, sizes): the
            share of each trend (FEDformer, Zhou et al. 2022, eq. (7), where they come from a softmax).
        impl: "reference" (torch, any device), "triton" (GPU kernels, not for float64), or "auto": the kernels for CUDA
            tensors. "triton-ieee" is "triton": there are no matrix products.

    Returns:
        trend (b, time, channel) in x's dtype.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
    """
    sizes, weights, chosen = _check(x, kernel_size, causal, mask, weights, impl)
    if len(sizes) == 1:
        return moving_average_op(x, mask, sizes[0], causal, chosen)
    return decompose_op(x, mask, weights, sizes, causal, True, chosen)[1]


def series_decomposition(
    x: Tensor,
    kernel_size: int | Sequence[int],
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Split x into (seasonal, trend): its moving average and what is left.

    Args:
        x, kernel_size, causal, mask, weights, impl: as in `moving_average`.

    Returns:
        (seasonal, trend), each (b, time, channel) in x's dtype; seasonal + trend = x where observed.

    Raises:
        ValueError: as in `moving_average`.
    """
    sizes, weights, chosen = _check(x, kernel_size, causal, mask, weights, impl)
    return decompose_op(x, mask, weights, sizes, causal, False, chosen)


class MovingAverage(nn.Module):
    """`moving_average` as a module; several kernel sizes are averaged, or mixed by the weights of a call.

    Args:
        kernel_size, causal: as in `moving_average`.
        impl: likewise, in every call; `set_impl` chooses for the whole process.
    """

    def __init__(self, kernel_size: int | Sequence[int], causal: bool = False, *, impl: Impl = "auto") -> None:
        super().__init__()
        self.kernel_size = _kernel_sizes(kernel_size)
        _check_causal(causal)
        check_impl(impl)
        self.causal, self.impl = causal, impl

    def forward(self, x: Tensor, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the trend of x (b, time, channel)."""
        if isinstance(x, Proxy):
            return as_leaf(self, x, mask=mask, weights=weights)
        options: dict[str, Any] = {"causal": self.causal, "impl": self.impl, "mask": mask, "weights": weights}
        return moving_average(x, self.kernel_size, **options)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, causal={self.causal}"


class SeriesDecomposition(MovingAverage):
    """`series_decomposition` as a module, as `MovingAverage` is."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, mask: Tensor | None = None, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (seasonal, trend) of x (b, time, channel)."""
        if isinstance(x, Proxy):
            return as_leaf(self, x, mask=mask, weights=weights)
        options: dict[str, Any] = {"causal": self.causal, "impl": self.impl, "mask": mask, "weights": weights}
        return series_decomposition(x, self.kernel_size, **options)


def _kernel_sizes(kernel_size: int | Sequence[int]) -> list[int]:
    sizes = list(kernel_size) if isinstance(kernel_size, Sequence) else [kernel_size]
    if not sizes or not all(_is_whole(k) and 1 <= k <= LARGEST for k in sizes):
        raise ValueError(f"kernel_size must be a whole number from 1 to 2**30, or several, got {kernel_size!r}")
    return [k if isinstance(k, (int, torch.SymInt)) else int(k) for k in sizes]


def _is_whole(k: object) -> bool:
    return isinstance(k, (Integral, torch.SymInt)) and not isinstance(k, bool)


def _check_causal(causal: bool) -> None:
    if not isinstance(causal, bool):
        raise ValueError(f"causal must be True or False, got {causal!r}")


def _check(
    x: Tensor,
    kernel_size: int | Sequence[int],
    causal: bool,
    mask: Tensor | None,
    weights: Tensor | None,
    impl: str,
) -> tuple[list[int], Tensor | None, str]:
    """Return the kernel sizes, the weights (b, l, c, n), and the implementation to run."""
    _check_series(x)
    _check_causal(causal)
    if mask is not None and not (_is_at(mask, x) and mask.dtype == torch.bool and mask.shape == x.shape):
        raise ValueError(
            f"mask must be a bool tensor {tuple(x.shape)} on {x.device}, True = observed, got {_described(mask)}"
        )
    sizes = _kernel_sizes(kernel_size)
    if weights is not None:
        weights = _expand(weights, x, sizes)
    tensors = [t for t in (x, mask, weights) if t is not None]
    return sizes, weights, resolve_impl(impl, *tensors)


def _check_series(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(
            f"x must be a tensor (batch, time, channel), got {_described(x)}: torch.as_tensor makes one of an array"
        )
    if x.layout != torch.strided:
        raise ValueError(f"x must be a dense tensor, got {x.layout}: x.to_dense() makes one")
    if x.ndim != 3 or x.dtype not in DTYPES:
        raise ValueError(
            "x must be bfloat16, float16, float32 or float64 and (batch, time, channel): "
            f"floating point, 3 dimensions, got {_described(x)}"
        )


def _expand(weights: Tensor, x: Tensor, sizes: list[int]) -> Tensor:
    """Return the weights (b, l, c, n), a view."""
    if not isinstance(weights, Tensor):
        raise ValueError(
            f"weights must be a tensor with one entry a kernel size, got {_described(weights)}: "
            "torch.tensor makes one of numbers"
        )
    if len(sizes) == 1 or weights.ndim < 1 or weights.shape[-1] != len(sizes):
        wanted = "leave them out for one size" if len(sizes) == 1 else f"expected {len(sizes)} in their last dimension"
        raise ValueError(
            f"weights need one entry a kernel size, for several: {wanted}, "
            f"got {tuple(weights.shape)} for kernel sizes {sizes}"
        )
    shape = (*x.shape, len(sizes))
    fits = weights.ndim <= 4 and all(
        have in (1, want) for have, want in zip(reversed(weights.shape), reversed(shape), strict=False)
    )
    if not (fits and _is_at(weights, x) and weights.dtype in DTYPES):
        raise ValueError(
            "weights must be floating point, where x is, and broadcast to (batch, time, channel, sizes): "
            f"expected {shape} on {x.device}, got {_described(weights)}"
        )
    return weights.expand(shape)


def _is_at(tensor: object, x: Tensor) -> bool:
    return isinstance(tensor, Tensor) and tensor.device == x.device and tensor.layout == torch.strided


def _described(given: object) -> str:
    if not isinstance(given, Tensor):
        return type(given).__name__
    layout = "" if given.layout == torch.strided else f" {given.layout}"
    return f"{given.dtype} {tuple(given.shape)} on {given.device}{layout}"
