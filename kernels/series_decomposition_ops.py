"""The moving average and the series decomposition as torch.library operators, with their torch reference.

Dimension key: b batch, l time, c channel, k kernel size, n kernel sizes.

With A_k the moving average of size k and w_k its weight (1 / n without weights), and m the mask,

    trend = sum_k w_k A_k x       seasonal = m (x - trend)

so with h = d_trend - m d_seasonal the gradients are

    d_x = m d_seasonal + sum_k A_k^T (w_k h)        d_w_k = h A_k x

and those, differentiated again, are these same two operators: `_autograd_decompose_backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .implementation import in_own_context


@cache
def _triton() -> Any:
    """Import the GPU schedule on first use: machines without triton never do."""
    from . import series_decomposition_triton

    return series_decomposition_triton


def _is_triton(impl: str) -> bool:
    return impl.startswith("triton")


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


def _moving_average(x: Tensor, mask: Tensor | None, kernel_size: int, causal: bool, impl: str) -> Tensor:
    if _is_triton(impl):
        return _triton().decompose_triton(x, mask, None, (kernel_size,), causal, True)[1]
    return moving_average_reference(x, mask, kernel_size, causal)


def _moving_average_backward(d_trend: Tensor, mask: Tensor | None, kernel_size: int, causal: bool, impl: str) -> Tensor:
    if _is_triton(impl):
        return _triton().decompose_backward_triton(None, d_trend, None, mask, None, (kernel_size,), causal)[0]
    return moving_average_backward_reference(d_trend, mask, kernel_size, causal)


def _decompose(
    x: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    sizes: Sequence[int],
    causal: bool,
    trend_only: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    if _is_triton(impl):
        seasonal, trend = _triton().decompose_triton(x, mask, weights, sizes, causal, trend_only)
        return x.new_empty(0) if seasonal is None else seasonal, trend
    trend = mixed_trend_reference(x, mask, weights, sizes, causal)
    return (x.new_empty(0) if trend_only else _seasonal(x, trend, mask)), trend


def _seasonal(x: Tensor, trend: Tensor, mask: Tensor | None) -> Tensor:
    return x - trend if mask is None else torch.where(mask, torch.where(mask, x, 0.0) - trend, 0.0)


def _decompose_backward(
    d_seasonal: Tensor | None,
    d_trend: Tensor | None,
    x: Tensor | None,
    mask: Tensor | None,
    weights: Tensor | None,
    sizes: Sequence[int],
    causal: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    like = _given(d_trend, d_seasonal)
    if _is_triton(impl):
        d_x, d_weights = _triton().decompose_backward_triton(d_seasonal, d_trend, x, mask, weights, sizes, causal)
        return d_x, like.new_empty(0) if d_weights is None else d_weights
    if like.numel() == 0:
        return torch.empty_like(like, memory_format=torch.contiguous_format), _empty_gradient(like, x, weights)
    wide = torch.promote_types(like.dtype, torch.float32)
    upstream = _upstream(d_seasonal, d_trend, mask, wide)
    parts = [] if d_seasonal is None else [_observed(d_seasonal, mask).to(wide)]
    d_weights = []
    for i, size in enumerate(sizes):
        share = upstream / len(sizes) if weights is None else upstream * weights[..., i]
        parts.append(_wide_spread(share.to(wide), mask, size, causal))
        if x is not None:
            d_weights.append(upstream * _wide_average(x, mask, size, causal, 0, x.shape[1]))
    d_x = sum(parts[1:], parts[0]).to(like.dtype).contiguous()
    if x is None or weights is None:
        return d_x, _empty_gradient(like, x, weights)
    return d_x, torch.stack(d_weights, -1).to(weights.dtype)


def _empty_gradient(like: Tensor, x: Tensor | None, weights: Tensor | None) -> Tensor:
    """Return d_weights where there are none to compute: nothing, or that of an empty series."""
    return like.new_empty(0) if x is None or weights is None else torch.empty_like(weights)


def _given(first: Tensor | None, second: Tensor | None) -> Tensor:
    chosen = first if first is not None else second
    assert chosen is not None
    return chosen


def _observed(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask, x, 0.0)


def _upstream(d_seasonal: Tensor | None, d_trend: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return h = d_trend - m d_seasonal."""
    if d_seasonal is None:
        return _given(d_trend, None).to(dtype)
    lost = _observed(d_seasonal, mask).to(dtype)
    return -lost if d_trend is None else d_trend.to(dtype) - lost


def _setup_average(ctx, inputs, output) -> None:
    _, mask, *ctx.options = inputs
    ctx.save_for_backward(mask)


def _autograd_average(ctx, d_trend: Tensor) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return torch.ops.favorcast.moving_average_backward(d_trend, mask, *ctx.options), None, None, None, None


def _autograd_average_backward(ctx, dd_x: Tensor) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return torch.ops.favorcast.moving_average(dd_x, mask, *ctx.options), None, None, None, None


def _setup_decompose(ctx, inputs, output) -> None:
    x, mask, weights, *ctx.options = inputs
    ctx.save_for_backward(x if weights is not None and ctx.needs_input_grad[2] else None, mask, weights)
    ctx.set_materialize_grads(False)


def _autograd_decompose(ctx, d_seasonal: Tensor | None, d_trend: Tensor | None) -> tuple[Tensor | None, ...]:
    x, mask, weights = ctx.saved_tensors
    sizes, causal, trend_only, impl = ctx.options
    d_seasonal = None if trend_only else d_seasonal
    none = (None,) * 4
    if d_seasonal is None and d_trend is None:
        return None, None, None, *none
    d_x, d_weights = torch.ops.favorcast.series_decomposition_backward(
        d_seasonal, d_trend, x, mask, weights, sizes, causal, impl
    )
    return d_x, None, d_weights if x is not None else None, *none


def _setup_decompose_backward(ctx, inputs, output) -> None:
    d_seasonal, d_trend, x, mask, weights, *ctx.options = inputs
    ctx.save_for_backward(d_seasonal, d_trend, x, mask, weights)
    ctx.set_materialize_grads(False)


def _autograd_decompose_backward(ctx, dd_x: Tensor | None, dd_weights: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate d_x and d_weights, given u = dd_x and v_k = dd_weights.

    With q = sum_k w_k A_k u + v_k A_k x: d_trend gets q, d_seasonal m (u - q), x gets sum_k A_k^T (v_k h), and w_k gets
    h A_k u.
    """
    d_seasonal, d_trend, x, mask, weights = ctx.saved_tensors
    sizes, causal, impl = ctx.options
    none = (None,) * 4
    forward = torch.ops.favorcast.series_decomposition
    if x is None:
        if dd_x is None:
            return None, None, None, None, None, None, None, None
        seasonal, trend = forward(dd_x, mask, weights, sizes, causal, d_seasonal is None, impl)
        return None if d_seasonal is None else seasonal, None if d_trend is None else trend, None, None, *none
    dd_x = torch.zeros_like(x) if dd_x is None else dd_x
    dd_weights = torch.zeros_like(weights) if dd_weights is None else dd_weights
    trend = forward(dd_x, mask, weights, sizes, causal, True, impl)[1]
    trend = trend + forward(x, mask, dd_weights, sizes, causal, True, impl)[1]
    upstream = _upstream(d_seasonal, d_trend, mask, x.dtype)
    to_x, to_weights = torch.ops.favorcast.series_decomposition_backward(
        None, upstream, dd_x, mask, dd_weights, sizes, causal, impl
    )
    seasonal = None if d_seasonal is None else _observed(dd_x - trend, mask)
    return seasonal, None if d_trend is None else trend, to_x, None, to_weights, None, None, None


def _like(x: Tensor, impl: str) -> Tensor:
    """Allocate a result: the reference's are contiguous, those of the kernels have the layout of x."""
    return torch.empty_like(x, memory_format=torch.preserve_format if _is_triton(impl) else torch.contiguous_format)


def _fake_average(x: Tensor, *options) -> Tensor:
    return _like(x, options[-1])


def _fake_decompose(x, mask, weights, sizes, causal, trend_only, impl):
    trend = _like(x, impl)
    if trend_only:
        return x.new_empty(0), trend
    return (_like(x, impl) if _is_triton(impl) else _seasonal(x, trend, mask)), trend


def _fake_decompose_backward(d_seasonal, d_trend, x, mask, weights, sizes, causal, impl):
    like = _given(d_trend, d_seasonal)
    d_weights = like.new_empty(0) if x is None else weights.new_empty(weights.shape)
    return _like(like, impl), d_weights


def _vmap_into_batch(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return a batching rule that makes mapped series more series of the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def join(x: Tensor, dim: int | None) -> Tensor:
            mapped = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            return mapped.flatten(0, 1)

        def split(x: Tensor) -> Tensor:
            return x if x.ndim == 1 else x.unflatten(0, (info.batch_size, batch))

        given = list(zip(args, in_dims, strict=True))
        batch = next(x.shape[1 if dim == 0 else 0] for x, dim in given if isinstance(x, Tensor))
        outputs = operator(*(join(x, dim) if isinstance(x, Tensor) else x for x, dim in given))
        if isinstance(outputs, Tensor):
            return split(outputs), 0
        # What was not asked for is a single empty tensor, (0,).
        return tuple(split(x) for x in outputs), tuple(None if x.ndim == 1 else 0 for x in outputs)

    return rule


_AVERAGE = "Tensor? mask, int kernel_size, bool causal, str impl) -> Tensor"
_DECOMPOSE = "Tensor? mask, Tensor? weights, int[] kernel_sizes, bool causal"

for _name, _schema, _implementation, _fake, _setup, _gradient in (
    ("moving_average", f"(Tensor x, {_AVERAGE}", _moving_average, _fake_average, _setup_average, _autograd_average),
    (
        "moving_average_backward",
        f"(Tensor d_trend, {_AVERAGE}",
        _moving_average_backward,
        _fake_average,
        _setup_average,
        _autograd_average_backward,
    ),
    (
        "series_decomposition",
        f"(Tensor x, {_DECOMPOSE}, bool trend_only, str impl) -> (Tensor, Tensor)",
        _decompose,
        _fake_decompose,
        _setup_decompose,
        _autograd_decompose,
    ),
    (
        "series_decomposition_backward",
        f"(Tensor? d_seasonal, Tensor? d_trend, Tensor? x, {_DECOMPOSE}, str impl) -> (Tensor, Tensor)",
        _decompose_backward,
        _fake_decompose_backward,
        _setup_decompose_backward,
        _autograd_decompose_backward,
    ),
):
    torch.library.define(f"favorcast::{_name}", _schema)
    torch.library.impl(f"favorcast::{_name}", "CompositeExplicitAutograd")(in_own_context(_implementation))
    torch.library.register_fake(f"favorcast::{_name}")(_fake)
    torch.library.register_autograd(f"favorcast::{_name}", _gradient, setup_context=_setup)
    torch.library.register_vmap(f"favorcast::{_name}", _vmap_into_batch(getattr(torch.ops.favorcast, _name).default))
