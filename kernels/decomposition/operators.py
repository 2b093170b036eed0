"""The moving average and the series decomposition as torch.library operators, with their gradients.

Dimension key: b batch, l time, c channel, k kernel size, n kernel sizes.

With A_k the moving average of size k and w_k its weight (1 / n without weights), and m the mask,

    trend = sum_k w_k A_k x       seasonal = m (x - trend)

so with h = d_trend - m d_seasonal the gradients are

    d_x = m d_seasonal + sum_k A_k^T (w_k h)        d_w_k = h A_k x

and those, differentiated again, are these same two operators: `_autograd_decompose_backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch.family import schema_of
from ..dispatch.operator import Operator
from .reference import (
    decompose_backward_reference,
    given,
    mixed_trend_reference,
    moving_average_backward_reference,
    moving_average_reference,
    observed_part,
    seasonal_part,
    upstream_of,
    window_reach,
)


@cache
def _triton() -> Any:
    """Import the GPU schedule on first use: machines without triton never do."""
    from .triton import launches as series_decomposition_triton

    return series_decomposition_triton


def _is_triton(impl: str) -> bool:
    return impl.startswith("triton")


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
    return (x.new_empty(0) if trend_only else seasonal_part(x, trend, mask)), trend


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
    backward = _triton().decompose_backward_triton if _is_triton(impl) else decompose_backward_reference
    d_x, d_weights = backward(d_seasonal, d_trend, x, mask, weights, sizes, causal)
    return d_x, d_x.new_empty(0) if d_weights is None else d_weights


def _setup_average(ctx, inputs, output) -> None:
    _, mask, *ctx.options = inputs
    ctx.save_for_backward(mask)


def _autograd_average(ctx, d_trend: Tensor) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return moving_average_backward_op(d_trend, mask, *ctx.options), None, None, None, None


def _autograd_average_backward(ctx, dd_x: Tensor) -> tuple[Tensor | None, ...]:
    (mask,) = ctx.saved_tensors
    return moving_average_op(dd_x, mask, *ctx.options), None, None, None, None


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
    d_x, d_weights = decompose_backward_op(d_seasonal, d_trend, x, mask, weights, sizes, causal, impl)
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
    forward = decompose_op
    if x is None:
        if dd_x is None:
            return None, None, None, None, None, None, None, None
        seasonal, trend = forward(dd_x, mask, weights, sizes, causal, d_seasonal is None, impl)
        return None if d_seasonal is None else seasonal, None if d_trend is None else trend, None, None, *none
    dd_x = torch.zeros_like(x) if dd_x is None else dd_x
    dd_weights = torch.zeros_like(weights) if dd_weights is None else dd_weights
    trend = forward(dd_x, mask, weights, sizes, causal, True, impl)[1]
    trend = trend + forward(x, mask, dd_weights, sizes, causal, True, impl)[1]
    upstream = upstream_of(d_seasonal, d_trend, mask, x.dtype)
    to_x, to_weights = decompose_backward_op(None, upstream, dd_x, mask, dd_weights, sizes, causal, impl)
    seasonal = None if d_seasonal is None else observed_part(dd_x - trend, mask)
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
    return (_like(x, impl) if _is_triton(impl) else seasonal_part(x, trend, mask)), trend


def _fake_decompose_backward(d_seasonal, d_trend, x, mask, weights, sizes, causal, impl):
    like = given(d_trend, d_seasonal)
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


moving_average_op = Operator("moving_average", schema_of(_moving_average), _moving_average, _fake_average)
moving_average_backward_op = Operator(
    "moving_average_backward", schema_of(_moving_average_backward), _moving_average_backward, _fake_average
)
decompose_op = Operator("series_decomposition", schema_of(_decompose), _decompose, _fake_decompose)
decompose_backward_op = Operator(
    "series_decomposition_backward", schema_of(_decompose_backward), _decompose_backward, _fake_decompose_backward
)

moving_average_op.differentiate(_autograd_average, _setup_average)
moving_average_backward_op.differentiate(_autograd_average_backward, _setup_average)
decompose_op.differentiate(_autograd_decompose, _setup_decompose)
decompose_backward_op.differentiate(_autograd_decompose_backward, _setup_decompose_backward)
for _operator in (moving_average_op, moving_average_backward_op, decompose_op, decompose_backward_op):
    torch.library.register_vmap(_operator.overload, _vmap_into_batch(_operator.overload))


@moving_average_op.write_out_for_onnx
def _written_out_average(x, mask, kernel_size, causal, impl):
    return _pooled(x, mask, kernel_size, causal)


@decompose_op.write_out_for_onnx
def _written_out_decomposition(x, mask, weights, sizes, causal, trend_only, impl):
    trends = torch.stack([_pooled(x, mask, size, causal) for size in sizes], -1)
    trend = trends.mean(-1) if weights is None else (trends * weights).sum(-1)
    return seasonal_part(x, trend, mask), trend


def _pooled(x: Tensor, mask: Tensor | None, kernel_size: int, causal: bool) -> Tensor:
    """Return the moving average by operators of aten, all that torch.onnx.export(dynamo=True) knows."""

    def pooled(series: Tensor) -> Tensor:
        padded = F.pad(series.transpose(1, 2), window_reach(kernel_size, causal), mode="replicate")
        return F.avg_pool1d(padded, kernel_size, stride=1).transpose(1, 2)

    if mask is None:
        return pooled(x)
    values, observed_share = torch.where(mask, x, 0.0), pooled(mask.to(x.dtype))
    average = pooled(values) / observed_share.clamp(min=1 / (2 * kernel_size))
    nearest = _nearest_by_pooling(mask, causal)
    carried = torch.where(nearest < 0, 0.0, values.gather(1, nearest.clamp(min=0)))
    return torch.where(observed_share > 0, average, carried)


def _nearest_by_pooling(mask: Tensor, causal: bool) -> Tensor:
    """Return what `nearest_observed` does, the running maximum as a pool of all earlier steps: ONNX has no other."""
    length = mask.shape[1]
    steps = torch.arange(length, device=mask.device, dtype=torch.float32).view(1, -1, 1)

    def latest(observed: Tensor) -> Tensor:
        found = torch.where(observed, steps, -1.0).transpose(1, 2)
        return F.max_pool1d(F.pad(found, (length - 1, 0), value=-1.0), length, stride=1).transpose(1, 2)

    earlier = latest(mask)
    if causal:
        return earlier.long()
    later = length - 1 - latest(mask.flip(1)).flip(1)
    distance_back = torch.where(earlier >= 0, steps - earlier, length)
    return torch.where((later < length) & (later - steps < distance_back), later, earlier).long()
