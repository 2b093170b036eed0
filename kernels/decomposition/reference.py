"""The moving-average decomposition in torch, forward and adjoint, for any device; fast on a CPU.

Dimension key: b batch, l time, c channel, k kernel size, n kernel sizes.

Windows are summed by doubling: sums of 2, 4, 8, ... neighbouring steps, of which those that make up k are added. The
adjoint sums windows of the gradient and adds what reaches beyond an end to that end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def window_reach(kernel_size: int, causal: bool) -> tuple[int, int]:
    """Return how many steps back and ahead a window goes."""
    back = kernel_size - 1 if causal else (kernel_size - 1) // 2
    return back, kernel_size - 1 - back


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the reference's sums, wide enough that a trend is rounded once.

    Float64 for float32, where an offset costs float32 sums digits that the trend keeps; half precision keeps fewer.
    """
    is_half = x.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if is_half or x.device.type == "mps" else torch.float64  # mps has no float64


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


class _Reach(NamedTuple):
    """How far windows go in a series of some length: laid out up to its length, and only counted beyond."""

    back: int
    ahead: int
    far_back: int
    far_ahead: int

    @classmethod
    def of(cls, kernel_size: int, causal: bool, length: int) -> _Reach:
        back, ahead = window_reach(kernel_size, causal)
        near_back, near_ahead = min(back, length - 1), min(ahead, length - 1)
        return cls(near_back, near_ahead, back - near_back, ahead - near_ahead)

    @property
    def near_size(self) -> int:
        return self.back + self.ahead + 1


def _padded_sums(x: Tensor, reach: _Reach, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """Sum the windows of steps begin to end - 1 of x (b, l, c) with repeated ends."""
    low, high, length = begin - reach.back, end + reach.ahead, x.shape[1]
    padded = x.new_empty(x.shape[0], high - low, x.shape[2], dtype=dtype)
    inside = slice(max(-low, 0), high - low - max(high - length, 0))
    padded[:, inside] = x[:, max(low, 0) : high]
    padded[:, : inside.start] = x[:, :1]
    padded[:, inside.stop :] = x[:, -1:]
    total = _window_sums(padded, reach.near_size)
    # A window that goes further than the series is long holds the end once more for every step beyond.
    if reach.far_back:
        total = total + reach.far_back * x[:, :1].to(dtype)
    return total + reach.far_ahead * x[:, -1:].to(dtype) if reach.far_ahead else total


def _spread_sums(share: Tensor, reach: _Reach) -> Tensor:
    """Apply the adjoint of `_padded_sums`."""
    length = share.shape[1]
    border = share.new_zeros(share.shape[0], reach.near_size - 1, share.shape[2])
    padded = _window_sums(torch.cat([border, share, border], 1), reach.near_size)
    spread = padded[:, reach.back : reach.back + length].clone()
    spread[:, 0] += padded[:, : reach.back].sum(1)
    spread[:, -1] += padded[:, reach.back + length :].sum(1)
    if reach.far_back:
        spread[:, 0] += reach.far_back * share.sum(1)
    if reach.far_ahead:
        spread[:, -1] += reach.far_ahead * share.sum(1)
    return spread


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


CPU_BLOCK = 1 << 18
"""Elements of a series that are summed at once on a CPU, where what doubling goes over again is in a cache; of 2 ** 16
to 2 ** 20 the fastest on a Zen 4, by little (bench/run.py --op decomposition)."""


def _blocks(x: Tensor, longest: int, whole: bool) -> Iterator[tuple[slice, int, int]]:
    """Cut x (b, l, c) into (batch, first step, last step + 1), in blocks that pay for the windows' overlap."""
    batch, length, channels = x.shape
    if x.device.type != "cpu":
        yield slice(None), 0, length
        return
    steps = length if whole else min(length, max(CPU_BLOCK // channels, 4 * longest))
    together = max(1, CPU_BLOCK // (steps * channels))
    for first in range(0, batch, together):
        for begin in range(0, length, steps):
            yield slice(first, first + together), begin, min(begin + steps, length)


def _wide_average(x: Tensor, mask: Tensor | None, kernel_size: int, causal: bool, begin: int, end: int) -> Tensor:
    """Return steps begin to end - 1 of A x in the dtype of the sums; all steps if there is a mask."""
    reach, wide = _Reach.of(kernel_size, causal, x.shape[1]), sum_dtype(x)
    if mask is None:
        return _padded_sums(x, reach, begin, end, wide) / kernel_size
    values = x.to(wide).masked_fill(~mask, 0.0)
    counts = _padded_sums(mask, reach, begin, end, wide)
    trend = _padded_sums(values, reach, begin, end, wide) / counts.clamp(min=1)
    if _all_have_some(counts):
        return trend
    nearest = _nearest_observed(mask, causal)
    carried = values.gather(1, nearest.clamp(min=0)).masked_fill_(nearest < 0, 0.0)
    return torch.where(counts > 0, trend, carried)


def _all_have_some(counts: Tensor) -> bool:
    """Tell whether every window has an observation, as most data have, where asking does not wait for a device."""
    return counts.device.type == "cpu" and bool((counts > 0).all())


def moving_average_reference(x: Tensor, mask: Tensor | None, kernel_size: int, causal: bool) -> Tensor:
    """Return A x in x's dtype, contiguous."""
    return mixed_trend_reference(x, mask, None, [kernel_size], causal)


def moving_average_backward_reference(d_trend: Tensor, mask: Tensor | None, kernel_size: int, causal: bool) -> Tensor:
    """Return A^T d_trend in its dtype."""
    if d_trend.numel() == 0:
        return torch.empty_like(d_trend, memory_format=torch.contiguous_format)
    upstream = d_trend.to(torch.promote_types(d_trend.dtype, torch.float32))
    return _wide_spread(upstream, mask, kernel_size, causal).to(d_trend.dtype)


def _wide_spread(upstream: Tensor, mask: Tensor | None, kernel_size: int, causal: bool) -> Tensor:
    """Return A^T upstream, which is not empty; there is no offset to lose digits to, so sums keep its dtype."""
    reach = _Reach.of(kernel_size, causal, upstream.shape[1])
    if mask is None:
        return _spread_sums(upstream / kernel_size, reach)
    counts = _padded_sums(mask, reach, 0, mask.shape[1], upstream.dtype)
    spread = _spread_sums(torch.where(counts > 0, upstream / counts.clamp(min=1), 0.0), reach).masked_fill_(~mask, 0.0)
    if _all_have_some(counts):
        return spread
    nearest = _nearest_observed(mask, causal)
    carried = torch.where((counts > 0) | (nearest < 0), 0.0, upstream)
    return spread.scatter_add_(1, nearest.clamp(min=0), carried)


def mixed_trend_reference(
    x: Tensor, mask: Tensor | None, weights: Tensor | None, sizes: Sequence[int], causal: bool
) -> Tensor:
    """Return sum_k w_k A_k x, rounded once to x's dtype, contiguous."""
    mixed = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return mixed
    for batch, begin, end in _blocks(x, max(sizes), whole=mask is not None):
        seen = None if mask is None else mask[batch]
        parts = [_wide_average(x[batch], seen, size, causal, begin, end) for size in sizes]
        if weights is not None:
            parts = [part * weights[batch, begin:end, :, i] for i, part in enumerate(parts)]
        elif len(sizes) > 1:
            parts = [part / len(sizes) for part in parts]
        mixed[batch, begin:end] = sum(parts[1:], parts[0])
    return mixed


def seasonal_part(x: Tensor, trend: Tensor, mask: Tensor | None) -> Tensor:
    """Return what the trend leaves of x, zero where it is not observed."""
    return x - trend if mask is None else torch.where(mask, torch.where(mask, x, 0.0) - trend, 0.0)


def decompose_backward_reference(
    d_seasonal: Tensor | None,
    d_trend: Tensor | None,
    x: Tensor | None,
    mask: Tensor | None,
    weights: Tensor | None,
    sizes: Sequence[int],
    causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return d_x, and d_weights (b, l, c, n) where x and weights are given."""
    like = given(d_trend, d_seasonal)
    if like.numel() == 0:
        d_x = torch.empty_like(like, memory_format=torch.contiguous_format)
        return d_x, None if x is None or weights is None else weights.new_empty(weights.shape)
    wide = torch.promote_types(like.dtype, torch.float32)
    upstream = upstream_of(d_seasonal, d_trend, mask, wide)
    parts = [] if d_seasonal is None else [observed_part(d_seasonal, mask).to(wide)]
    d_weights = []
    for i, size in enumerate(sizes):
        share = upstream / len(sizes) if weights is None else upstream * weights[..., i]
        parts.append(_wide_spread(share.to(wide), mask, size, causal))
        if x is not None:
            d_weights.append(upstream * _wide_average(x, mask, size, causal, 0, x.shape[1]))
    d_x = sum(parts[1:], parts[0]).to(like.dtype).contiguous()
    if x is None or weights is None:
        return d_x, None
    return d_x, torch.stack(d_weights, -1).to(weights.dtype)


def given(first: Tensor | None, second: Tensor | None) -> Tensor:
    chosen = first if first is not None else second
    assert chosen is not None
    return chosen


def observed_part(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask, x, 0.0)


def upstream_of(d_seasonal: Tensor | None, d_trend: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return h = d_trend - m d_seasonal."""
    if d_seasonal is None:
        return given(d_trend, None).to(dtype)
    lost = observed_part(d_seasonal, mask).to(dtype)
    return -lost if d_trend is None else d_trend.to(dtype) - lost
