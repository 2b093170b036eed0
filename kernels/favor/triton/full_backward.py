"""FAVOR attention on the GPU, backward: allocates, chooses the launch and calls the kernels, for `operators.py`.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...dispatch.launch import launch_kernel
from ..types import FeatureSpace, ParameterGradients
from .full import (
    FullResults,
)
from .full_backward_kernels import (
    _landmark_gradient_kernel,
    _projection_gradient_kernel,
    _reduce_gradient_kernel,
    _token_gradient_kernel,
)
from .problem import (
    Launch,
    ceil_div,
    landmark_spec,
    launch_of,
    logit_scales,
    operand_dtype,
    spec_of,
    split_tokens,
)
from .tiles import Rows, mask_of, rows_of


class Hop(NamedTuple):
    """One softmax between tokens and landmarks, as the backward kernels see it (favor_backward_kernels.py).

    Of the queries: L, V as landmark rows, o, the statistics, and room for do . o. Of the keys: the maximum of each
    landmark, dV / z as landmark rows, and the landmark shifts. All but o is contiguous.
    """

    landmark_rows: Tensor
    log_normalizer: Tensor | None = None
    output: Tensor | None = None
    statistics: Tensor | None = None
    delta: Tensor | None = None
    row_max: Tensor | None = None
    shifts: Tensor | None = None

    @classmethod
    def of_queries(cls, state: tuple[Tensor, Tensor], output: Tensor, statistics: Tensor) -> Hop:
        log_normalizer, state_value = state
        delta = statistics.new_empty(*statistics.shape[1:])
        return cls(state_value, log_normalizer, output, statistics, delta)

    @classmethod
    def of_keys(cls, state_value: Tensor, row_max: Tensor, operand: torch.dtype) -> Hop:
        rows = torch.empty_like(state_value, dtype=operand, memory_format=torch.contiguous_format)
        return cls(rows, row_max=row_max, shifts=torch.empty_like(row_max))


class FullGradients(NamedTuple):
    """Gradients of `full_attention_triton`."""

    query: Tensor
    key: Tensor
    value: Tensor
    parameters: ParameterGradients


def full_attention_backward_triton(
    d_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    space: FeatureSpace,
    impl: str,
    results: tuple[Tensor, ...],
    parameter_gradients: bool,
) -> FullGradients:
    """Differentiate `full_attention_triton`, whose results are given."""
    forward = FullResults(results[0], *(x.contiguous() for x in results[1:]))
    operands = space if forward.projection.numel() == 0 else space._replace(projection=forward.projection)
    log_normalizer, row_max, row_sum = forward.normalizers.unbind()
    queries = Hop.of_queries((log_normalizer, forward.state_value), forward.output, forward.statistics)
    d_query, received = _query_side(d_output, query, queries, operands, impl)
    keys = Hop.of_keys(forward.state_value, row_max, operand_dtype(key.dtype))
    d_log_normalizer = torch.empty_like(log_normalizer) if parameter_gradients else None
    _reduce_gradient(received, None, forward.state_value, (None, d_log_normalizer), (keys, row_sum))
    d_key, d_value = _key_side(key, value, mask, keys, operands, impl)
    if d_log_normalizer is None:
        return FullGradients(d_query, d_key, d_value, no_parameters(row_max))
    parts = projection_gradient(query, d_output, None, queries, space, impl)
    parts += projection_gradient(key, value, mask, keys, space, impl)
    return FullGradients(d_query, d_key, d_value, to_parameters(parts, d_log_normalizer, space))


def summarize_backward_triton(
    d_state: tuple[Tensor, Tensor],
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    space: FeatureSpace,
    impl: str,
    results: tuple[Tensor, Tensor, Tensor],
    parameter_gradients: bool,
) -> tuple[Tensor, Tensor, ParameterGradients]:
    """Return (d_key, d_value, parameter gradients) from the gradient of the state; `results` is (V, max, sum)."""
    d_log_normalizer, d_state_value = (x.contiguous() for x in d_state)
    state_value, row_max, row_sum = (x.contiguous() for x in results)
    keys = Hop.of_keys(state_value, row_max, operand_dtype(key.dtype))
    _reduce_gradient((d_state_value, None), d_log_normalizer, state_value, (None, None), (keys, row_sum))
    d_key, d_value = _key_side(key, value, mask, keys, space, impl)
    if not parameter_gradients:
        return d_key, d_value, no_parameters(row_max)
    parts = projection_gradient(key, value, mask, keys, space, impl)
    return d_key, d_value, to_parameters(parts, d_log_normalizer, space)


def attend_backward_triton(
    d_output: Tensor,
    query: Tensor,
    state: tuple[Tensor, Tensor],
    space: FeatureSpace,
    impl: str,
    results: tuple[Tensor, Tensor],
    parameter_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, ParameterGradients]:
    """Return (d_query, d_log_normalizer, d_state_value, parameter gradients); `results` are those of the forward."""
    log_normalizer, state_value = (x.contiguous() for x in state)
    output, statistics = results
    queries = Hop.of_queries((log_normalizer, state_value), output, statistics.contiguous())
    d_query, received = _query_side(d_output, query, queries, space, impl)
    d_log_normalizer, d_state_value = torch.empty_like(log_normalizer), torch.empty_like(state_value)
    _reduce_gradient(received, None, state_value, (d_state_value, d_log_normalizer), None)
    parameters = no_parameters(d_log_normalizer)
    if parameter_gradients:
        parts = projection_gradient(query, d_output, None, queries, space, impl)
        parameters = to_parameters(parts, d_log_normalizer, space._replace(log_weight=None))
    return d_query, d_log_normalizer, d_state_value, parameters


def _query_side(
    d_output: Tensor, query: Tensor, hop: Hop, space: FeatureSpace, impl: str
) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """Return dq, and the partial sums R (splits b, h, m, e) and E (splits b, h, m)."""
    d_query = torch.empty_like(query)
    token_gradient(query, d_output, None, hop, space, impl, d_query, None)
    return d_query, landmark_gradient(query, d_output, hop, space, impl)


def landmark_gradient(
    query: Tensor, d_output: Tensor, hop: Hop, space: FeatureSpace, impl: str
) -> tuple[Tensor, Tensor]:
    """Return the partial sums R (splits b, h, m, e) and E (splits b, h, m)."""
    b, heads, t, _ = query.shape
    h, m, e = hop.landmark_rows.shape[1:]
    launch = launch_of("landmark_gradient", spec_of(space, query, m, e, impl), t, query.device)
    splits, each = _split_heads(t, launch, b * h, heads // h, query.device)
    received = query.new_empty(splits * b, h, m, e, dtype=torch.float32)
    received_weighted = query.new_empty(splits * b, h, m, dtype=torch.float32)
    if received.numel():
        launch_kernel(
            _landmark_gradient_kernel,
            b * h * splits * launch.tiles,
            rows_of(query),
            rows_of(d_output),
            hop.statistics,
            hop.delta,
            rows_of(space.projection),
            hop.log_normalizer,
            received,
            received_weighted,
            b * h,
            t,
            each,
            splits,
            h,
            heads // h,
            logit_scales(space)[0],
            BLOCK_N=launch.tokens,
            **launch.options,
        )
    return received, received_weighted


def _split_heads(tokens: int, launch: Launch, batch_heads: int, group: int, device: torch.device) -> tuple[int, int]:
    """Return (splits, token tiles of each) for the tokens of `group` heads that share a state."""
    tiles = ceil_div(tokens, launch.tokens) * group
    return split_tokens(tiles, launch.tokens, max(1, batch_heads * launch.tiles), device)


def _key_side(
    key: Tensor, value: Tensor, mask: Tensor | None, hop: Hop, space: FeatureSpace, impl: str
) -> tuple[Tensor, Tensor]:
    d_key, d_value = torch.empty_like(key), torch.empty_like(value)
    token_gradient(key, value, mask, hop, space, impl, d_key, d_value)
    return d_key, d_value


def token_gradient(
    tokens: Tensor,
    token_rows: Tensor,
    mask: Tensor | None,
    hop: Hop,
    space: FeatureSpace,
    impl: str,
    d_tokens: Tensor,
    d_token_rows: Tensor | None,
) -> None:
    """Write the gradients of queries, or of keys and values (`d_token_rows`)."""
    b, heads, n, _ = tokens.shape
    h, m, e = hop.landmark_rows.shape[1:]
    if b * heads * n == 0:
        return
    is_key_side = d_token_rows is not None
    kernel = "key_gradient" if is_key_side else "query_gradient"
    launch = launch_of(kernel, spec_of(space, tokens, m, e, impl), n, tokens.device)
    launch_kernel(
        _token_gradient_kernel,
        b * heads * ceil_div(n, launch.tokens),
        rows_of(tokens),
        rows_of(token_rows),
        mask_of(mask),
        _rows(hop.output),
        hop.statistics,
        rows_of(space.projection),
        hop.landmark_rows,
        hop.log_normalizer,
        hop.row_max,
        hop.shifts,
        rows_of(d_tokens),
        _rows(d_token_rows),
        hop.delta,
        n,
        heads,
        heads // h,
        *logit_scales(space),
        math.sqrt(space.scale),
        KEYS=is_key_side,
        BLOCK_N=launch.tokens,
        **launch.options,
    )


def _reduce_gradient(
    received: tuple[Tensor, Tensor | None],
    d_log_normalizer: Tensor | None,
    state_value: Tensor,
    d_state: tuple[Tensor | None, Tensor | None],
    keys: tuple[Hop, Tensor] | None,
) -> None:
    """Sum R and E over splits (or take dL as given) into d_state = (dV, dL), and fill the hop of the keys, given z."""
    b, h, m, e = state_value.shape
    if b * h == 0:
        return
    hop, row_sum = (None, None) if keys is None else keys
    tiles, spec = landmark_spec(m, e)
    launch_kernel(
        _reduce_gradient_kernel,
        b * h * tiles,
        *received,
        d_log_normalizer,
        state_value,
        row_sum,
        *d_state,
        None if hop is None else hop.landmark_rows,
        None if hop is None else hop.shifts,
        b * h,
        received[0].shape[0] // b,
        S=spec,
    )


def projection_gradient(
    tokens: Tensor, token_rows: Tensor, mask: Tensor | None, hop: Hop, space: FeatureSpace, impl: str
) -> Tensor:
    """Return sum_n d_nr x_n, (b, h, m, d), float32; features that are learnt are not paired."""
    b, heads, n, d = tokens.shape
    h, m, e = hop.landmark_rows.shape[1:]
    spec = spec_of(space._replace(paired=False), tokens, m, e, impl)
    launch = launch_of("projection_gradient", spec, n, tokens.device)
    splits, each = _split_heads(n, launch, b * h, heads // h, tokens.device)
    parts = tokens.new_empty(splits * b, h, m, d, dtype=torch.float32)
    if parts.numel():
        launch_kernel(
            _projection_gradient_kernel,
            b * h * splits * launch.tiles,
            rows_of(tokens),
            rows_of(token_rows),
            mask_of(mask),
            hop.statistics,
            hop.delta,
            rows_of(space.projection),
            hop.landmark_rows,
            hop.log_normalizer,
            hop.row_max,
            hop.shifts,
            parts,
            b * h,
            n,
            each,
            splits,
            h,
            heads // h,
            *logit_scales(space),
            KEYS=hop.row_max is not None,
            BLOCK_N=launch.tokens,
            **launch.options,
        )
    return parts.unflatten(0, (splits, b)).sum(0)


def to_parameters(parts: Tensor, d_log_normalizer: Tensor, space: FeatureSpace) -> ParameterGradients:
    """Sum over the batch, and over heads that share a parameter; the log-weight enters L as it is."""
    projection = parts.sum(0 if space.projection.ndim == 3 else (0, 1)).mul_(math.sqrt(space.scale))
    projection = projection.to(space.projection.dtype)
    if space.log_weight is None:
        return ParameterGradients(projection, parts.new_empty(0))
    log_weight = d_log_normalizer.sum(0 if space.log_weight.ndim == 2 else (0, 1))
    return ParameterGradients(projection, log_weight.to(space.log_weight.dtype))


def no_parameters(like: Tensor) -> ParameterGradients:
    return ParameterGradients(like.new_empty(0), like.new_empty(0))


def _rows(x: Tensor | None) -> Rows | None:
    return None if x is None else rows_of(x)
