"""FAVOR attention as torch.library operators: schema, implementation and shapes of `favorcast::*`.

This is the boundary that autograd, torch.compile, torch.export, autocast and vmap see. An operator takes `impl`,
already resolved by the public functions, and hands over to that schedule; only "reference" exists so far. Backward
passes are operators too; `favor_autograd.py` registers the gradients of all of them.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .favor_blocks import accumulation_dtype
from .favor_causal_reference import causal_backward_reference, causal_reference
from .favor_reference import (
    attend_backward_reference,
    attend_reference,
    attention_output,
    summarize_backward_reference,
    summarize_reference,
)
from .random_features import FeatureSpace

_SPACE = "Tensor projection, Tensor? log_weight, float scale, str feature_map"

SCHEMAS = {
    "summarize": f"(Tensor key, Tensor value, Tensor? mask, {_SPACE}, str impl) -> (Tensor, Tensor, Tensor, Tensor)",
    "summarize_backward": "(Tensor d_log_normalizer, Tensor d_state_value, Tensor key, Tensor value, Tensor? mask, "
    f"{_SPACE}, str impl, Tensor state_value, Tensor row_max, Tensor row_sum, bool parameter_gradients) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "attend": "(Tensor query, Tensor log_normalizer, Tensor state_value, Tensor projection, float scale, "
    "str feature_map, str impl) -> Tensor",
    "attend_backward": "(Tensor d_output, Tensor query, Tensor log_normalizer, Tensor state_value, Tensor projection, "
    "float scale, str feature_map, str impl, Tensor output, bool parameter_gradients) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "causal_attention": f"(Tensor query, Tensor key, Tensor value, Tensor? mask, {_SPACE}, int tokens_per_step, "
    "str impl) -> (Tensor, Tensor, Tensor)",
    "causal_attention_backward": f"(Tensor d_output, Tensor query, Tensor key, Tensor value, Tensor? mask, {_SPACE}, "
    "int tokens_per_step, str impl, Tensor output, Tensor row_max, Tensor row_sum, bool parameter_gradients) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
}


def _summarize(key, value, mask, projection, log_weight, scale, feature_map, impl):
    return summarize_reference(key, value, mask, FeatureSpace(projection, log_weight, scale, feature_map))


def _summarize_backward(
    d_log_normalizer,
    d_state_value,
    key,
    value,
    mask,
    projection,
    log_weight,
    scale,
    feature_map,
    impl,
    state_value,
    row_max,
    row_sum,
    parameter_gradients,
):
    space = FeatureSpace(projection, log_weight, scale, feature_map)
    d_key, d_value, d_parameters = summarize_backward_reference(
        (d_log_normalizer, d_state_value), key, value, mask, (state_value, row_max, row_sum), space, parameter_gradients
    )
    return d_key, d_value, *d_parameters


def _attend(query, log_normalizer, state_value, projection, scale, feature_map, impl):
    return attend_reference(query, (log_normalizer, state_value), FeatureSpace(projection, None, scale, feature_map))


def _attend_backward(
    d_output,
    query,
    log_normalizer,
    state_value,
    projection,
    scale,
    feature_map,
    impl,
    output,
    parameter_gradients,
):
    space = FeatureSpace(projection, None, scale, feature_map)
    *d_inputs, d_parameters = attend_backward_reference(
        d_output, query, output, (log_normalizer, state_value), space, parameter_gradients
    )
    return *d_inputs, d_parameters.projection


def _causal(query, key, value, mask, projection, log_weight, scale, feature_map, tokens_per_step, impl):
    space = FeatureSpace(projection, log_weight, scale, feature_map)
    return causal_reference(query, key, value, mask, space, tokens_per_step)


def _causal_backward(
    d_output,
    query,
    key,
    value,
    mask,
    projection,
    log_weight,
    scale,
    feature_map,
    tokens_per_step,
    impl,
    output,
    row_max,
    row_sum,
    parameter_gradients,
):
    space = FeatureSpace(projection, log_weight, scale, feature_map)
    *d_inputs, d_parameters = causal_backward_reference(
        d_output, query, key, value, mask, (output, row_max, row_sum), space, tokens_per_step, parameter_gradients
    )
    return *d_inputs, *d_parameters


def _fake_summarize(key, value, mask, projection, *rest):
    shape = (*key.shape[:2], projection.shape[-2])
    dtype = accumulation_dtype(key, value, projection)
    log_normalizer, row_max, row_sum = (key.new_empty(shape, dtype=dtype) for _ in range(3))
    return log_normalizer, key.new_empty((*shape, value.shape[-1]), dtype=dtype), row_max, row_sum


def _fake_parameters(projection, log_weight, wanted, dtype):
    empty = projection.new_empty(0, dtype=dtype)
    if not wanted:
        return empty, empty.clone()
    d_projection = projection.new_empty(projection.shape)
    return d_projection, empty if log_weight is None else log_weight.new_empty(log_weight.shape)


def _fake_summarize_backward(d_log_normalizer, d_state_value, key, value, mask, projection, log_weight, *rest):
    gradients = _fake_parameters(projection, log_weight, rest[-1], d_state_value.dtype)
    return torch.empty_like(key), torch.empty_like(value), *gradients


def _fake_attend(query, log_normalizer, state_value, *rest):
    return attention_output(query, state_value.shape[-1])


def _fake_attend_backward(d_output, query, log_normalizer, state_value, projection, *rest):
    d_projection, _ = _fake_parameters(projection, None, rest[-1], state_value.dtype)
    return (
        torch.empty_like(query),
        log_normalizer.new_empty(log_normalizer.shape),
        state_value.new_empty(state_value.shape),
        d_projection,
    )


def _fake_causal(query, key, value, mask, projection, *rest):
    row = query.new_empty(query.shape[:-1], dtype=accumulation_dtype(query, key, value, projection))
    return attention_output(query, value.shape[-1]), row, row.clone()


def _fake_causal_backward(d_output, query, key, value, mask, projection, log_weight, *rest):
    gradients = _fake_parameters(projection, log_weight, rest[-1], rest[-2].dtype)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), *gradients


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run an implementation in its own precision: inputs were cast by the caller, sums stay float32."""

    def run(*args: Any) -> Any:
        device_type = args[0].device.type
        if not torch.is_autocast_enabled(device_type):
            return function(*args)
        with torch.autocast(device_type, enabled=False):
            return function(*args)

    return run


def _vmap_by_loop(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return a batching rule that calls the operator once a sample: projections and their gradients may be batched."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        samples = [
            operator(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(samples[0], Tensor):
            return torch.stack(samples), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


def _register(name: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    qualified = f"favorcast::{name}"
    torch.library.define(qualified, SCHEMAS[name])
    torch.library.impl(qualified, "CompositeExplicitAutograd")(_without_autocast(implementation))
    torch.library.register_fake(qualified)(fake)
    operator = getattr(torch.ops.favorcast, name).default
    torch.library.register_vmap(qualified, _vmap_by_loop(operator))
    return operator


summarize_op = _register("summarize", _summarize, _fake_summarize)
summarize_backward_op = _register("summarize_backward", _summarize_backward, _fake_summarize_backward)
attend_op = _register("attend", _attend, _fake_attend)
attend_backward_op = _register("attend_backward", _attend_backward, _fake_attend_backward)
causal_op = _register("causal_attention", _causal, _fake_causal)
causal_backward_op = _register("causal_attention_backward", _causal_backward, _fake_causal_backward)
