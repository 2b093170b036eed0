"""The two hops of FAVOR attention in blocks, forward and backward: the CPU implementation.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features,
G heads of a block, n tokens of a block.

Forward (the formulas of `definition.py`): hop 1 runs over key blocks with an online maximum per feature, so it is
exact whatever the norms (entries are clamped near 1e18, where |k|^2 would overflow); hop 2 has all m logits of a query
at hand and takes their softmax.

Backward, with p_tr = softmax_r(w_r . q_t + L_r), D_t = do_t . o_t and P_sr = exp(e_sr - x_r) / z_r, where x_r is the
largest e_sr and z_r = sum_s exp(e_sr - x_r):

    dlogit_tr = p_tr (do_t . V_r - D_t)        dq = dlogit W       dV_r = sum_t p_tr do_t
    dL_r = sum_t dlogit_tr = V_r . dV_r - sum_t p_tr D_t
    de_sr = P_sr (dV_r . v_s + dL_r - dV_r . V_r)     dk_s = sum_r de_sr (w_r - k_s)     dv_s = sum_r P_sr dV_r
    dbeta_s = sum_r de_sr

Exponents are recomputed by the same products in the same order, so that e_sr <= x_r holds to the last bit; kept between
the passes are V, x and z. L = x + log z would not do: keys of norm 100 give L near -5000, whose rounding alone changes
exp(e_sr - L_r) by 2e-4. Nothing of size s m is ever held, only one block of it. Sums are float32 (float64 for float64
inputs); results have the dtype of their input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..types import (
    AttendGradients,
    AttendInputs,
    AttendResults,
    FavorState,
    FeatureGradients,
    FeatureSpace,
    FullGradients,
    FullInputs,
    FullResults,
    SummarizeGradients,
    SummarizeInputs,
    SummarizeResults,
    attention_output,
)
from .blocks import (
    HeadGroup,
    accumulation_dtype,
    add_to,
    bias_gradient,
    chunks,
    exponents,
    head_groups,
    key_weights,
    load_keys,
    load_queries,
    load_rows,
    load_values,
    query_weights,
    store_rows,
    store_tokens,
)


def full_reference(inputs: FullInputs) -> FullResults:
    """Run both hops."""
    hop = summarize_reference(SummarizeInputs(*inputs[1:]))
    output, statistics = attend_reference(AttendInputs(inputs.query, hop.state, inputs.space, inputs.impl))
    return FullResults(output, statistics, *hop, projection=hop.statistics.new_empty(0))


def full_backward_reference(
    d_output: Tensor, inputs: FullInputs, results: FullResults, parameter_gradients: bool
) -> FullGradients:
    """Differentiate `full_reference`."""
    queries = AttendInputs(inputs.query, results.state, inputs.space, inputs.impl)
    attended = AttendResults(results.output, results.statistics)
    d_query, d_state, of_queries = attend_backward_reference(d_output, queries, attended, parameter_gradients)
    hop = SummarizeResults(results.state, results.landmark_statistics)
    keys = SummarizeInputs(*inputs[1:])
    d_key, d_value, d_mask, of_keys = summarize_backward_reference(d_state, keys, hop, parameter_gradients)
    if of_keys is not None and of_queries is not None:
        of_keys = FeatureGradients(of_keys.projection + of_queries.projection, of_keys.log_weight)
    return FullGradients(d_query, d_key, d_value, d_mask, of_keys)


def summarize_reference(inputs: SummarizeInputs) -> SummarizeResults:
    """Summarize keys (b, h, s, d) and values (b, h, s, e)."""
    key, value, _, space, _ = inputs
    b, h, s, d = key.shape
    m, e = space.projection.shape[-2], value.shape[-1]
    dtype = accumulation_dtype(key, value, space.projection)
    log_normalizer = torch.empty((b, h, m), dtype=dtype, device=key.device)
    statistics = torch.empty((2, b, h, m), dtype=dtype, device=key.device)
    state_value = torch.empty((b, h, m, e), dtype=dtype, device=key.device)
    for group in head_groups(b, h, s, m):
        weights = key_weights(space, group, key, dtype)
        highest = torch.full((group.size, m, 1), -torch.finfo(dtype).max / 2, dtype=dtype, device=key.device)
        sums = torch.zeros((group.size, m, e + 1), dtype=dtype, device=key.device)
        for rows in chunks(s, group.size, m):
            keys = load_keys(inputs, group, rows, dtype)
            exponent, _ = exponents(weights, keys, d, space.feature_map)  # (G, m, n)
            new_max = torch.maximum(highest, exponent.amax(-1, keepdim=True))
            sums *= (highest - new_max).exp_()
            weight = exponent.sub_(new_max).exp_()
            sums += torch.bmm(weight, load_values(inputs, group, rows, dtype))
            highest = new_max
        total = sums[..., e:]
        store_tokens(state_value, group, slice(None), sums[..., :e] / torch.where(total == 0, 1.0, total))
        for target, column in zip((log_normalizer, *statistics), (highest + total.log(), highest, total), strict=True):
            store_tokens(target.unsqueeze(-1), group, slice(None), column)
    return SummarizeResults(FavorState(log_normalizer, state_value), statistics)


def summarize_backward_reference(
    d_state: FavorState, inputs: SummarizeInputs, results: SummarizeResults, parameter_gradients: bool
) -> SummarizeGradients:
    """Differentiate `summarize_reference`."""
    key, value, mask, space, _ = inputs
    (_, state_value), (row_max, row_sum) = results
    b, h, s, d = key.shape
    m, e = state_value.shape[-2:]
    dtype = state_value.dtype
    d_key, d_value, d_mask = torch.empty_like(key), torch.empty_like(value), bias_gradient(mask)
    d_weights = torch.zeros((b, h, m, d + 2), dtype=dtype, device=key.device)
    d_sum = d_state.log_normalizer - (d_state.value * state_value).sum(-1)
    upstream = torch.cat([d_state.value, d_sum.unsqueeze(-1)], -1)
    upstream /= torch.where(row_sum > 0, row_sum, 1.0).unsqueeze(-1)
    for group in head_groups(b, h, s, m):
        weights = key_weights(space, group, key, dtype)
        highest, d_sums = (x[group.batch, group.heads].flatten(0, 1) for x in (row_max.unsqueeze(-1), upstream))
        for rows in chunks(s, group.size, m):
            keys = load_keys(inputs, group, rows, dtype)
            exponent, slope = exponents(weights, keys, d, space.feature_map)  # (G, m, n)
            weight = exponent.sub_(highest).exp_()
            store_tokens(d_value, group, rows, torch.bmm(weight.transpose(1, 2), d_sums[..., :e]))
            values = load_values(inputs, group, rows, dtype)
            d_exponent = weight.mul_(torch.bmm(d_sums, values.transpose(1, 2))).transpose(1, 2)  # (G, n, m)
            slope = None if slope is None else slope.transpose(1, 2)
            store_tokens(d_key, group, rows, key_gradient(d_exponent, slope, keys, weights, space))
            if d_mask is not None:
                add_to(d_mask[:, :, rows], group, d_exponent.sum(-1))
            if parameter_gradients:
                add_to(d_weights, group, weight_gradient(d_exponent, slope, keys, d))
    features = reduce_to_parameters(d_weights, space) if parameter_gradients else None
    return SummarizeGradients(d_key, d_value, d_mask, features)


def attend_reference(inputs: AttendInputs) -> AttendResults:
    """Return o (b, h g, t, e) in query's dtype; memory is laid out as (b, t, h g, e)."""
    query, state, space, _ = inputs
    log_normalizer, state_value = _readable(state)
    b, h, m, e = state_value.shape
    t, d = query.shape[-2:]
    dtype = log_normalizer.dtype
    output = attention_output(query, e)
    queries, outputs = query.unflatten(1, (h, -1)), output.unflatten(1, (h, -1))
    heads_per_key = queries.shape[2]
    for group in head_groups(b, h, t * heads_per_key, m):
        weights = query_weights(space, log_normalizer, group, queries, dtype)
        values = state_value[group.batch, group.heads].flatten(0, 1)
        for rows in chunks(t, group.size * heads_per_key, m):
            logits, _ = exponents(load_queries(queries, group, rows, space, dtype), weights, d, space.feature_map)
            store_rows(outputs, group, rows, torch.bmm(torch.softmax(logits, -1), values))
    return AttendResults(output, state_value.new_empty(0))


def attend_backward_reference(
    d_output: Tensor, inputs: AttendInputs, results: AttendResults, parameter_gradients: bool
) -> AttendGradients:
    """Differentiate `attend_reference`."""
    query, state, space, _ = inputs
    log_normalizer, state_value = _readable(state)
    b, h, m, e = state_value.shape
    t, d = query.shape[-2:]
    dtype = log_normalizer.dtype
    d_query = torch.empty_like(query)
    by_key_head = (query, d_query, results.output, d_output)
    queries, d_queries, outputs, d_outputs = (x.unflatten(1, (h, -1)) for x in by_key_head)
    received = torch.zeros((b, h, m, e + 1), dtype=dtype, device=query.device)  # sum_t p_tr [do_t, -D_t]
    d_weights = torch.zeros((b, h, m, d + 1), dtype=dtype, device=query.device)
    heads_per_key = queries.shape[2]
    for group in head_groups(b, h, t * heads_per_key, m):
        weights = query_weights(space, log_normalizer, group, queries, dtype)
        values = append_ones(state_value[group.batch, group.heads].flatten(0, 1))
        for rows in chunks(t, group.size * heads_per_key, m):
            block = load_queries(queries, group, rows, space, dtype)
            logits, slope = exponents(block, weights, d, space.feature_map)
            weight = torch.softmax(logits, -1)
            upstream = output_gradient(d_outputs, outputs, group, rows, dtype)
            add_to(received, group, torch.bmm(weight.transpose(1, 2), upstream))
            d_logits = weight.mul_(torch.bmm(upstream, values.transpose(1, 2)))
            store_rows(d_queries, group, rows, query_gradient(d_logits, slope, weights, d, space.scale))
            if parameter_gradients:
                add_to(d_weights, group, weight_gradient(d_logits, slope, block, d))
    unseen = (state.log_normalizer == -torch.inf).all(-1)
    received.masked_fill_(unseen[..., None, None], 0.0)
    d_log_normalizer = (received[..., :e] * state_value).sum(-1) + received[..., e]
    d_state = FavorState(d_log_normalizer, received[..., :e].contiguous())
    features = reduce_to_parameters(d_weights, space) if parameter_gradients else None
    return AttendGradients(d_query, d_state, features)


def append_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def output_gradient(d_outputs: Tensor, outputs: Tensor, group: HeadGroup, rows: slice, dtype: torch.dtype) -> Tensor:
    """Return [do, -D], (G, g n, e + 1), with D = do . o."""
    upstream = load_rows(d_outputs, group, rows, dtype)
    weighted = (upstream * load_rows(outputs, group, rows, dtype)).sum(-1, keepdim=True)
    return torch.cat([upstream, weighted.neg_()], -1)


def query_gradient(d_logits: Tensor, slope: Tensor | None, weights: Tensor, head_dim: int, scale: float) -> Tensor:
    """Return dq (G, n, d) = sum_r dlogit_tr w_r."""
    d_projected = d_logits if slope is None else d_logits * slope
    return torch.bmm(d_projected, weights[..., :head_dim]).mul_(math.sqrt(scale))


def key_gradient(
    d_exponent: Tensor, slope: Tensor | None, keys: Tensor, weights: Tensor, space: FeatureSpace
) -> Tensor:
    """Return dk (G, n, d) from de (G, n, m): sum_r de_sr (w_r - k_s) for the exponential map."""
    d = keys.shape[-1] - 2
    if space.feature_map != "exponential":
        return query_gradient(d_exponent, slope, weights, d, space.scale)
    moved = torch.bmm(d_exponent, weights[..., : d + 1])
    return torch.addcmul(moved[..., :d], keys[..., :d], moved[..., d:], value=-1).mul_(math.sqrt(space.scale))


def weight_gradient(d_exponent: Tensor, slope: Tensor | None, tokens: Tensor, head_dim: int) -> Tensor:
    """Return sum_s de_sr [x_s, ..., 1], (G, m, columns of tokens): for the projection and for the last column."""
    d_weights = torch.bmm(d_exponent.transpose(1, 2), tokens.nan_to_num(neginf=0.0))  # -inf marks masked keys
    if slope is not None:
        d_weights[..., :head_dim] = torch.bmm((d_exponent * slope).transpose(1, 2), tokens[..., :head_dim])
    return d_weights


def reduce_to_parameters(d_weights: Tensor, space: FeatureSpace) -> FeatureGradients:
    """Sum (b, h, m, d + x) over the batch, and over the heads where they share a parameter."""
    d = space.projection.shape[-1]
    projection = d_weights[..., :d].sum(0 if space.projection.ndim == 3 else (0, 1)).to(space.projection.dtype)
    if space.log_weight is None:
        return FeatureGradients(projection, None)
    log_weight = d_weights[..., -1].sum(0 if space.log_weight.ndim == 2 else (0, 1)).to(space.log_weight.dtype)
    return FeatureGradients(projection, log_weight)


def _readable(state: FavorState) -> FavorState:
    """Give heads that have seen no key the state (0, 0): their softmax is finite and their output zero."""
    log_normalizer, value = state
    unseen = (log_normalizer == -torch.inf).all(-1, keepdim=True)
    return FavorState(log_normalizer.masked_fill(unseen, 0.0), value.masked_fill(unseen.unsqueeze(-1), 0.0))
