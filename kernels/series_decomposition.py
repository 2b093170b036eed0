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

The operation is linear, y = A x, so its gradient is the adjoint A^T and its second gradient is A again. Window sums
are built by doubling, log2(k) additions a value: no running sum, so a large offset or an outlier costs no precision
elsewhere and NaN stays within its window. Sums are float32 (float64 for float64); trend is rounded to x's dtype before
it is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .favor_arguments import refuse_forward_mode

Impl = Literal["auto", "triton", "reference"]


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
        impl: "reference" (torch, any device), "triton" (GPU), or "auto".

    Returns:
        trend (b, time, channel) in x's dtype.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
    """
    sizes = _check(x, kernel_size, mask, weights, impl)
    refuse_forward_mode(x)
    trends = [torch.ops.favorcast.moving_average(x, mask, size, causal, "reference") for size in sizes]
    if len(trends) == 1:
        return trends[0]
    stacked = torch.stack(trends, -1)
    return stacked.mean(-1) if weights is None else (stacked * weights.to(stacked.dtype)).sum(-1)


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
    trend = moving_average(x, kernel_size, causal=causal, mask=mask, weights=weights, impl=impl)
    if mask is None:
        return x - trend, trend
    return torch.where(mask, torch.where(mask, x, 0.0) - trend, 0.0), trend


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
    if not sizes or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in sizes):
        raise ValueError(f"kernel_size must be a whole number of at least 1, or several, got {kernel_size!r}")
    return sizes


def _check(
    x: Tensor, kernel_size: int | Sequence[int], mask: Tensor | None, weights: Tensor | None, impl: str
) -> list[int]:
    if impl not in ("auto", "triton", "reference"):
        raise ValueError(f"unknown impl: expected 'auto', 'triton' or 'reference', got {impl!r}")
    if impl == "triton":
        raise ValueError(
            "impl='triton' cannot be honoured: this version of favorcast has the torch reference only; "
            "use impl='auto' or impl='reference'"
        )
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
    return sizes


def _reach(kernel_size: int, causal: bool) -> tuple[int, int]:
    """Return (back, ahead)."""
    back = kernel_size - 1 if causal else (kernel_size - 1) // 2
    return back, kernel_size - 1 - back


def _window_sums(x: Tensor, kernel_size: int) -> Tensor:
    """Sum every run of `kernel_size` steps of x (b, l, c): the runs of 2 ** i steps whose lengths make it up."""
    outputs = x.shape[1] - kernel_size + 1
    runs, width, offset = x, 1, 0
    total: Tensor | None = None
    while True:
        if kernel_size & width:
            part = runs[:, offset : offset + outputs]
            total = part if total is None else total + part
            offset += width
        if 2 * width > kernel_size:
            assert total is not None
            return total
        runs = runs[:, :-width] + runs[:, width:]
        width *= 2


def _repeat_ends(x: Tensor, back: int, ahead: int) -> Tensor:
    return torch.cat([x[:, :1].expand(-1, back, -1), x, x[:, -1:].expand(-1, ahead, -1)], 1)


def _nearest_observed(mask: Tensor, causal: bool) -> Tensor:
    """Return the index (b, l, c) of the nearest observed step, the earlier of two; -1 where there is none."""
    length = mask.shape[1]
    steps = torch.arange(length, device=mask.device).view(1, -1, 1).expand_as(mask)
    earlier = torch.where(mask, steps, -1).cummax(1).values
    if causal:
        return earlier
    later = torch.where(mask, steps, length).flip(1).cummin(1).values.flip(1)
    distance_back = torch.where(earlier >= 0, steps - earlier, length)
    use_later = (later < length) & (later - steps < distance_back)
    return torch.where(use_later, later, earlier)


def _moving_average(x: Tensor, mask: Tensor | None, kernel_size: int, causal: bool, impl: str) -> Tensor:
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    back, ahead = _reach(kernel_size, causal)
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    if mask is None:
        return (_window_sums(_repeat_ends(values, back, ahead), kernel_size) / kernel_size).to(x.dtype).contiguous()
    values = values.masked_fill(~mask, 0.0)
    counts = _window_sums(_repeat_ends(mask.to(values.dtype), back, ahead), kernel_size)
    trend = _window_sums(_repeat_ends(values, back, ahead), kernel_size) / counts.clamp(min=1)
    nearest = _nearest_observed(mask, causal)
    carried = values.gather(1, nearest.clamp(min=0)).masked_fill_(nearest < 0, 0.0)
    return torch.where(counts > 0, trend, carried).to(x.dtype).contiguous()


def _moving_average_backward(d_trend: Tensor, mask: Tensor | None, kernel_size: int, causal: bool, impl: str) -> Tensor:
    if d_trend.numel() == 0:
        return torch.empty_like(d_trend, memory_format=torch.contiguous_format)
    back, ahead = _reach(kernel_size, causal)
    length = d_trend.shape[1]
    upstream = d_trend.to(torch.promote_types(d_trend.dtype, torch.float32))
    share = upstream / kernel_size
    if mask is not None:
        counts = _window_sums(_repeat_ends(mask.to(upstream.dtype), back, ahead), kernel_size)
        share = torch.where(counts > 0, upstream / counts.clamp(min=1), 0.0)
    border = share.new_zeros(share.shape[0], kernel_size - 1, share.shape[2])
    spread = _window_sums(
        torch.cat([border, share, border], 1), kernel_size
    )  # gradient of the series with repeated ends
    d_x = spread[:, back : back + length].clone()
    d_x[:, 0] += spread[:, :back].sum(1)
    d_x[:, -1] += spread[:, back + length :].sum(1)
    if mask is not None:
        nearest = _nearest_observed(mask, causal)
        carried = torch.where((counts > 0) | (nearest < 0), 0.0, upstream)  # pyright: ignore[reportPossiblyUnbound]
        d_x = d_x.masked_fill_(~mask, 0.0).scatter_add_(1, nearest.clamp(min=0), carried)
    return d_x.to(d_trend.dtype)


def _setup_forward(ctx, inputs, output) -> None:
    _, mask, *ctx.options = inputs
    ctx.save_for_backward(mask)


def _autograd_forward(ctx, d_trend: Tensor) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return torch.ops.favorcast.moving_average_backward(d_trend, mask, *ctx.options), None, None, None, None


def _autograd_backward(ctx, dd_x: Tensor) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return torch.ops.favorcast.moving_average(dd_x, mask, *ctx.options), None, None, None, None


def _fake(x: Tensor, *rest) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _name, _first, _implementation, _gradient in (
    ("moving_average", "x", _moving_average, _autograd_forward),
    ("moving_average_backward", "d_trend", _moving_average_backward, _autograd_backward),
):
    torch.library.define(
        f"favorcast::{_name}", f"(Tensor {_first}, Tensor? mask, int kernel_size, bool causal, str impl) -> Tensor"
    )
    torch.library.impl(f"favorcast::{_name}", "CompositeExplicitAutograd")(_implementation)
    torch.library.register_fake(f"favorcast::{_name}")(_fake)
    torch.library.register_autograd(f"favorcast::{_name}", _gradient, setup_context=_setup_forward)
