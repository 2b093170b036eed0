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
running sum, so a large offset or an outlier costs no precision elsewhere and NaN stays within its window. Sums are
float32 (float64 for float64); trend is rounded to x's dtype before it is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import series_decomposition_ops  # noqa: F401 - registers the operators
from .favor_arguments import refuse_forward_mode
from .implementation import Impl, resolve_impl


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
        kernel_size: window length in steps, at least 1, beyond the length if need be; or several, whose trends are
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
    sizes, weights, chosen = _check(x, kernel_size, mask, weights, impl)
    if len(sizes) == 1:
        return torch.ops.favorcast.moving_average(x, mask, sizes[0], causal, chosen)
    return torch.ops.favorcast.series_decomposition(x, mask, weights, sizes, causal, True, chosen)[1]


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
    sizes, weights, chosen = _check(x, kernel_size, mask, weights, impl)
    return torch.ops.favorcast.series_decomposition(x, mask, weights, sizes, causal, False, chosen)


class MovingAverage(nn.Module):
    """`moving_average` as a module; several kernel sizes are averaged."""

    def __init__(self, kernel_size: int | Sequence[int], causal: bool = False) -> None:
        super().__init__()
        self.kernel_size = _kernel_sizes(kernel_size)
        self.causal = causal

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the trend of x (b, time, channel)."""
        return moving_average(x, self.kernel_size, causal=self.causal, mask=mask)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, causal={self.causal}"


class SeriesDecomposition(MovingAverage):
    """`series_decomposition` as a module."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return (seasonal, trend) of x (b, time, channel)."""
        return series_decomposition(x, self.kernel_size, causal=self.causal, mask=mask)


def _kernel_sizes(kernel_size: int | Sequence[int]) -> list[int]:
    sizes = list(kernel_size) if isinstance(kernel_size, Sequence) else [kernel_size]
    if not sizes or any(isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 2**30 for k in sizes):
        raise ValueError(f"kernel_size must be a whole number from 1 to 2**30, or several, got {kernel_size!r}")
    return sizes


def _check(
    x: Tensor, kernel_size: int | Sequence[int], mask: Tensor | None, weights: Tensor | None, impl: str
) -> tuple[list[int], Tensor | None, str]:
    """Return the kernel sizes, the weights (b, l, c, n), and the implementation to run."""
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"x must be floating point (batch, time, channel), got {x.dtype} {tuple(x.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape or mask.device != x.device):
        raise ValueError(
            f"mask must be a bool tensor {tuple(x.shape)} on {x.device}, True = observed, "
            f"got {mask.dtype} {tuple(mask.shape)} on {mask.device}"
        )
    sizes = _kernel_sizes(kernel_size)
    if weights is not None and (len(sizes) == 1 or weights.ndim < 1 or weights.shape[-1] != len(sizes)):
        raise ValueError(
            f"weights need one entry a kernel size in their last dimension: expected {len(sizes)} of several sizes, "
            f"got {tuple(weights.shape)} for kernel sizes {sizes}"
        )
    if weights is not None:
        weights = _expand(weights, (*x.shape, len(sizes)))
    refuse_forward_mode(x, *(() if weights is None else (weights,)))
    tensors = [t for t in (x, mask, weights) if t is not None]
    return sizes, weights, resolve_impl(impl, *tensors)


def _expand(weights: Tensor, shape: tuple[int, ...]) -> Tensor:
    fits = weights.ndim <= 4 and all(
        have in (1, want) for have, want in zip(reversed(weights.shape), reversed(shape), strict=False)
    )
    if not fits or not weights.is_floating_point():
        raise ValueError(
            "weights must be floating point and broadcast to (batch, time, channel, sizes): "
            f"expected {shape}, got {weights.dtype} {tuple(weights.shape)}"
        )
    return weights.expand(shape)
