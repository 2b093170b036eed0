"""FAVOR attention on the GPU, backward: allocates, chooses the launch and calls the kernels, for `operators.py`.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...dispatch.launch import launch_kernel
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
)
from .full import contiguous, keys_of, queries_of
from .full_backward_kernels import (
    _landmark_gradient_kernel,
    _projection_gradient_kernel,
    _reduce_gradient_kernel,
    _token_gradient_kernel,
)
from .problem import Launch, Problem, ceil_div, landmark_spec, operand_dtype, split_tokens
from .tiles import Rows, mask_of, rows_of


@dataclass(frozen=True)
class Hop:
    """One softmax between tokens and landmarks, as the kernels see it (full_backward_kernels.py).

    Of the queries: do as token rows, V as landmark rows, L, o, the statistics, and room for do . o. Of the keys: v as
    token rows, dV / z as landmark rows, maximum and sum of each landmark, and the landmark shifts. All
    but tokens, their rows and o is contiguous.
    """

    problem: Problem
    token_rows: Tensor
    landmark_rows: Tensor
    log_normalizer: Tensor | None = None
    output: Tensor | None = None
    statistics: Tensor | None = None
    delta: Tensor | None = None
    landmark_statistics: Tensor | None = None
    shifts: Tensor | None = None

    @classmethod
    def of_queries(cls, problem: Problem, d_output: Tensor, state: FavorState, results: AttendResults) -> Hop:
        statistics = results.statistics.contiguous()
        delta = statistics.new_empty(statistics.shape[1:])
        return cls(problem, d_output, state.value, state.log_normalizer, results.output, statistics, delta)

    @classmethod
    def of_keys(cls, problem: Problem, value: Tensor, state_value: Tensor, statistics: Tensor) -> Hop:
        rows = torch.empty_like(state_value, dtype=operand_dtype(value.dtype), memory_format=torch.contiguous_format)
        shifts = statistics.new_empty(statistics.shape[1:])
        return cls(problem, value, rows, landmark_statistics=statistics, shifts=shifts)


def full_backward_triton(
    d_output: Tensor, inputs: FullInputs, results: FullResults, parameter_gradients: bool
) -> FullGradients:
    """Differentiate `full_triton`."""
    output, statistics, state, landmark_statistics, projection = results
    state = contiguous(state)
    queries, keys = (x.reading(projection.contiguous()) for x in (queries_of(inputs), keys_of(inputs)))
    from_queries = Hop.of_queries(queries, d_output, state, AttendResults(output, statistics))
    to_keys = Hop.of_keys(keys, inputs.value, state.value, landmark_statistics.contiguous())
    d_query, received = _query_side(from_queries)
    d_log_normalizer = torch.empty_like(state.log_normalizer) if parameter_gradients else None
    _reduce_gradient(received, state.value, (d_log_normalizer, None), to_keys)
    of_keys = _key_side(to_keys)
    if d_log_normalizer is None:
        return FullGradients(d_query, *of_keys, None)
    parts = projection_gradient(from_queries, inputs.space) + projection_gradient(to_keys, inputs.space)
    return FullGradients(d_query, *of_keys, to_parameters(parts, d_log_normalizer, inputs.space))


def summarize_backward_triton(
    d_state: FavorState, inputs: SummarizeInputs, results: SummarizeResults, parameter_gradients: bool
) -> SummarizeGradients:
    """Differentiate `summarize_triton`."""
    d_state, state = contiguous(d_state), contiguous(results.state)
    hop = Hop.of_keys(keys_of(inputs), inputs.value, state.value, results.statistics.contiguous())
    _reduce_gradient(d_state, state.value, (None, None), hop, is_reduced=True)
    of_keys = _key_side(hop)
    if not parameter_gradients:
        return SummarizeGradients(*of_keys, None)
    features = to_parameters(projection_gradient(hop, inputs.space), d_state.log_normalizer, inputs.space)
    return SummarizeGradients(*of_keys, features)


def attend_backward_triton(
    d_output: Tensor, inputs: AttendInputs, results: AttendResults, parameter_gradients: bool
) -> AttendGradients:
    """Differentiate `attend_triton`."""
    query, state, space, impl = inputs
    state = contiguous(state)
    queries = Problem.of(query, None, space, impl, state.value.shape[1], state.value.shape[-1])
    hop = Hop.of_queries(queries, d_output, state, results)
    d_query, received = _query_side(hop)
    d_state = FavorState(*(torch.empty_like(x) for x in state))
    _reduce_gradient(received, state.value, d_state, None)
    features = None
    if parameter_gradients:
        parts = projection_gradient(hop, space)
        features = to_parameters(parts, d_state.log_normalizer, space)
    return AttendGradients(d_query, d_state, features)


def _query_side(hop: Hop) -> tuple[Tensor, FavorState]:
    """Return dq, and the partial sums (E (splits b, h, m), R (splits b, h, m, e))."""
    d_query = torch.empty_like(hop.problem.tokens)
    token_gradient(hop, d_query)
    return d_query, landmark_gradient(hop)


def _key_side(hop: Hop) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return dk, dv and, of a key bias, its gradient."""
    d_key, d_value = torch.empty_like(hop.problem.tokens), torch.empty_like(hop.token_rows)
    d_mask = empty_bias_gradient(hop.problem.mask)
    token_gradient(hop, d_key, d_value, d_mask)
    return d_key, d_value, d_mask


def empty_bias_gradient(mask: Tensor | None) -> Tensor | None:
    """Allocate the gradient of a key bias; padding has none."""
    return torch.empty_like(mask) if mask is not None and mask.is_floating_point() else None


def landmark_gradient(hop: Hop) -> FavorState:
    """Return the partial sums (E (splits b, h, m), R (splits b, h, m, e))."""
    queries = hop.problem
    b, h, m, e = hop.landmark_rows.shape
    launch = queries.launch("landmark_gradient")
    splits, each = _split_heads(queries, launch)
    received = queries.empty(torch.float32, splits * b, h, m, e)
    received_weighted = queries.empty(torch.float32, splits * b, h, m)
    if received.numel():
        launch_kernel(
            _landmark_gradient_kernel,
            b * h * splits * launch.tiles,
            rows_of(queries.tokens),
            rows_of(hop.token_rows),
            hop.statistics,
            hop.delta,
            rows_of(queries.space.projection),
            hop.log_normalizer,
            received_weighted,
            received,
            b * h,
            queries.length,
            each,
            splits,
            h,
            queries.group,
            queries.scales[0],
            BLOCK_N=launch.tokens,
            **launch.options,
        )
    return FavorState(received_weighted, received)


def _split_heads(problem: Problem, launch: Launch) -> tuple[int, int]:
    """Return (splits, token tiles of each) of the tiles of a key head, those of its query heads one after another."""
    tiles = ceil_div(problem.length, launch.tokens) * problem.group
    programs = max(1, problem.batch_heads * launch.tiles)
    return split_tokens(tiles, launch.tokens, programs, problem.tokens.device)


def token_gradient(
    hop: Hop, d_tokens: Tensor, d_token_rows: Tensor | None = None, d_mask: Tensor | None = None
) -> None:
    """Write the gradients of queries, or of keys, values (`d_token_rows`) and the bias of keys."""
    problem, is_key_side = hop.problem, d_token_rows is not None
    if problem.token_planes * problem.length == 0:
        return
    launch = problem.launch("key_gradient" if is_key_side else "query_gradient")
    launch_kernel(
        _token_gradient_kernel,
        problem.token_planes * ceil_div(problem.length, launch.tokens),
        rows_of(problem.tokens),
        rows_of(hop.token_rows),
        mask_of(problem.mask),
        _rows(hop.output),
        hop.statistics,
        rows_of(problem.space.projection),
        hop.log_normalizer,
        hop.landmark_rows,
        hop.landmark_statistics,
        hop.shifts,
        rows_of(d_tokens),
        _rows(d_token_rows),
        mask_of(d_mask),
        hop.delta,
        problem.length,
        problem.heads,
        problem.group,
        *problem.scales,
        problem.chain,
        KEYS=is_key_side,
        BLOCK_N=launch.tokens,
        **launch.options,
    )


def _reduce_gradient(
    received: FavorState,
    state_value: Tensor,
    d_state: tuple[Tensor | None, Tensor | None],
    keys: Hop | None,
    is_reduced: bool = False,
) -> None:
    """Sum E and R over splits into d_state = (dL, dV), and fill the hop of the keys.

    What is reduced already is (dL, dV) itself.
    """
    b, h, m, e = state_value.shape
    if b * h == 0:
        return
    tiles, spec = landmark_spec(m, e)
    launch_kernel(
        _reduce_gradient_kernel,
        b * h * tiles,
        *received,
        state_value,
        None if keys is None else keys.landmark_statistics,
        *d_state,
        None if keys is None else keys.shifts,
        None if keys is None else keys.landmark_rows,
        b * h,
        received.value.shape[0] // b,
        IS_REDUCED=is_reduced,
        S=spec,
    )


def projection_gradient(hop: Hop, space: FeatureSpace) -> Tensor:
    """Return sum_n d_nr x_n, (b, h, m, d), float32, of the learnt features of `space`, which are not paired."""
    b, h, m, _ = hop.landmark_rows.shape
    spec = hop.problem.spec._replace(FEATURES=m, ANTITHETIC=False)
    problem = hop.problem._replace(space=space, spec=spec)
    launch = problem.launch("projection_gradient")
    splits, each = _split_heads(problem, launch)
    parts = problem.empty(torch.float32, splits * b, h, m, problem.tokens.shape[-1])
    if parts.numel():
        launch_kernel(
            _projection_gradient_kernel,
            b * h * splits * launch.tiles,
            rows_of(problem.tokens),
            rows_of(hop.token_rows),
            mask_of(problem.mask),
            hop.statistics,
            hop.delta,
            rows_of(space.projection),
            hop.log_normalizer,
            hop.landmark_rows,
            hop.landmark_statistics,
            hop.shifts,
            parts,
            b * h,
            problem.length,
            each,
            splits,
            h,
            problem.group,
            *problem.scales,
            KEYS=hop.landmark_statistics is not None,
            BLOCK_N=launch.tokens,
            **launch.options,
        )
    return parts.unflatten(0, (splits, b)).sum(0)


def to_parameters(parts: Tensor, d_log_normalizer: Tensor, space: FeatureSpace) -> FeatureGradients:
    """Sum over the batch, and over heads that share a parameter; the log-weight enters L as it is."""
    projection = parts.sum(0 if space.projection.ndim == 3 else (0, 1)).mul_(math.sqrt(space.scale))
    projection = projection.to(space.projection.dtype)
    if space.log_weight is None:
        return FeatureGradients(projection, None)
    log_weight = d_log_normalizer.sum(0 if space.log_weight.ndim == 2 else (0, 1))
    return FeatureGradients(projection, log_weight.to(space.log_weight.dtype))


def _rows(x: Tensor | None) -> Rows | None:
    return None if x is None else rows_of(x)
