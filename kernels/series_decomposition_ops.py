"""The moving average and the series decomposition as torch.library operators, with their torch reference.

Dimension key: b batch, l time, c channel, k kernel size, n kernel sizes.

With A_k the moving average of size k and w_k its weight (1 / n without weights), and m the mask,

    trend = sum_k w_k A_k x       seasonal = m (x - trend)

so with h = d_trend - m d_seasonal the gradients are

    d_x = m d_seasonal + sum_k A_k^T (w_k h)        d_w_k = h A_k x

and those, differentiated again, are these same two operators: `_autograd_decompose_backward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

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


def moving_average_reference(x: Tensor, mask: Tensor | None, kernel_size: int, causal: bool) -> Tensor:
    """Return A x in x's dtype, contiguous."""
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    back, ahead = window_reach(kernel_size, causal)
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    if mask is None:
        return (_window_sums(_repeat_ends(values, back, ahead), kernel_size) / kernel_size).to(x.dtype).contiguous()
    values = values.masked_fill(~mask, 0.0)
    counts = _window_sums(_repeat_ends(mask.to(values.dtype), back, ahead), kernel_size)
    trend = _window_sums(_repeat_ends(values, back, ahead), kernel_size) / counts.clamp(min=1)
    nearest = _nearest_observed(mask, causal)
    carried = values.gather(1, nearest.clamp(min=0)).masked_fill_(nearest < 0, 0.0)
    return torch.where(counts > 0, trend, carried).to(x.dtype).contiguous()


def moving_average_backward_reference(d_trend: Tensor, mask: Tensor | None, kernel_size: int, causal: bool) -> Tensor:
    """Return A^T d_trend in its dtype."""
    if d_trend.numel() == 0:
        return torch.empty_like(d_trend, memory_format=torch.contiguous_format)
    back, ahead = window_reach(kernel_size, causal)
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


def mixed_trend_reference(
    x: Tensor, mask: Tensor | None, weights: Tensor | None, sizes: Sequence[int], causal: bool
) -> Tensor:
    """Return sum_k w_k A_k x; every trend is rounded to x's dtype."""
    trends = [moving_average_reference(x, mask, size, causal) for size in sizes]
    if len(trends) == 1:
        return trends[0]
    stacked = torch.stack(trends, -1)
    return stacked.mean(-1) if weights is None else (stacked * weights.to(stacked.dtype)).sum(-1)


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
    wide = torch.promote_types(like.dtype, torch.float32)
    upstream = _upstream(d_seasonal, d_trend, mask, wide)
    parts = [] if d_seasonal is None else [_observed(d_seasonal, mask).to(wide)]
    d_weights = []
    for i, size in enumerate(sizes):
        share = upstream / len(sizes) if weights is None else upstream * weights[..., i]
        parts.append(moving_average_backward_reference(share.to(wide), mask, size, causal))
        if x is not None:
            d_weights.append(upstream * moving_average_reference(x, mask, size, causal))
    d_x = sum(parts[1:], parts[0]).to(like.dtype).contiguous()
    if x is None or weights is None:
        return d_x, like.new_empty(0)
    return d_x, torch.stack(d_weights, -1).to(weights.dtype)


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
