"""Causal FAVOR attention on the GPU, backward: allocates and launches, for `favor_ops.py`.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features.

    steps                             launches, after those of the states (`favor_causal_triton.py`)
    of at most a chunk's tokens       _causal_query_gradient_kernel [, _landmark_gradient_kernel]
                                      [, _suffix_gradients_kernel], _causal_key_gradient_kernel
                                      [, _sum_heads_kernel for keys and values of grouped queries]
    longer                            _anchor_kernel, _token_gradient_kernel, _landmark_gradient_kernel,
                                      _suffix_gradients_kernel, _token_gradient_kernel
                                      [, _projection_gradient_kernel for either side]

With grouped queries the keys' gradients are float32 for each query head before they are summed over a group.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .favor_attention_triton import State, Statistics, described_state
from .favor_backward_triton import (
    Hop,
    landmark_gradient,
    no_parameters,
    projection_gradient,
    to_parameters,
    token_gradient,
)
from .favor_causal_backward_kernels import (
    _causal_key_gradient_kernel,
    _causal_query_gradient_kernel,
    _sum_heads_kernel,
)
from .favor_causal_parts import CausalTensors
from .favor_causal_reference import CausalGradients, CausalSummary
from .favor_causal_triton import (
    CausalPlan,
    Running,
    causal_constants,
    causal_launch,
    causal_plan,
    described_cut,
    described_inputs,
    prefix_states,
    scan_block,
)
from .favor_forward_kernels import _anchor_kernel
from .favor_launch import ceil_div, gains, next_power_of_two, operand_dtype
from .favor_scan_kernels import _suffix_gradients_kernel
from .favor_tiles import Rows, Vectors, rows_of, vectors_of
from .launch_plans import launch_kernel
from .random_features import FeatureSpace

StatePair = tuple[Tensor, Tensor]


class Suffix(NamedTuple):
    """What the queries of a segment and of later ones ask of the keys before: G, A, and their maxima where scanned."""

    rows: Tensor
    shifts: Tensor
    anchors: Tensor | None
    d_initial: StatePair | None
    d_log_weight: Tensor

    def described(self) -> tuple[Rows, Vectors, Vectors]:
        assert self.anchors is not None
        return rows_of(self.rows), vectors_of(self.shifts), vectors_of(self.anchors)


def causal_backward_triton(
    d_output: Tensor,
    d_state: StatePair | None,
    tensors: CausalTensors,
    results: CausalSummary,
    space: FeatureSpace,
    tokens_per_step: int,
    parameter_gradients: bool,
    impl: str,
) -> CausalGradients:
    """Differentiate `causal_attention_triton`, whose results are given; d_state is the gradient of (L, V)."""
    plan = causal_plan(tensors, space, impl, tokens_per_step)
    if plan.chunk is None or tensors.key.shape[0] * tensors.key.shape[1] == 0:
        return _long_steps(d_output, d_state, tensors, results, space, plan, parameter_gradients, impl)
    scan = _Scan(tensors, results, space, plan, tokens_per_step, impl)
    return scan.gradients(d_output, d_state, parameter_gradients)


def _long_steps(
    d_output: Tensor,
    d_state: StatePair | None,
    tensors: CausalTensors,
    results: CausalSummary,
    space: FeatureSpace,
    plan: CausalPlan,
    parameter_gradients: bool,
    impl: str,
) -> CausalGradients:
    """Differentiate steps that each read one state: two softmax hops a step."""
    query, key, value, mask, _ = tensors
    states = prefix_states(tensors, space, impl, plan, None)
    assert states.log_normalizer is not None
    statistics = Statistics(results.softmax, _anchors(states.log_normalizer, query.shape[1]))
    queries = Hop.of_queries((states.log_normalizer, states.value), results.output, statistics, plan.segments)
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    token_gradient(query, d_output, None, queries, space, impl, d_query, None)
    received = landmark_gradient(query, d_output, queries, space, impl)
    suffix = _suffix_gradients(received, d_state, states, tensors, results, space, plan)
    keys = Hop(suffix.rows, row_max=states.row_max, shifts=suffix.shifts, segments=plan.segments)
    token_gradient(key, value, mask, keys, space, impl, d_key, d_value)
    parameters = no_parameters(states.row_max)
    if parameter_gradients:
        parts = projection_gradient(query, d_output, None, queries, space, impl)
        parts += projection_gradient(key, value, mask, keys, space, impl)
        parameters = to_parameters(parts, suffix.d_log_weight, space)
    return CausalGradients(d_query, d_key, d_value, suffix.d_initial, parameters)


def _anchors(log_normalizer: Tensor, query_heads: int) -> Tensor:
    """Return what the forward took the L (places, h, m) of each state relative to, (places, h g)."""
    places, h, m = log_normalizer.shape
    anchor = torch.empty((places, query_heads), dtype=torch.float32, device=log_normalizer.device)
    if log_normalizer.numel():
        launch_kernel(
            _anchor_kernel,
            places * query_heads,
            vectors_of(log_normalizer),
            vectors_of(anchor.unsqueeze(-1)),
            query_heads,
            query_heads // h,
            ALL_FEATURES=m,
            BLOCK_ALL=next_power_of_two(m),
        )
    return anchor


def sum_over_group(parts: Tensor, like: Tensor) -> Tensor:
    """Sum what each query head found (b, h g, t, d), float32, into a tensor like (b, h, t, d)."""
    b, h, t, d = like.shape
    total = torch.empty_like(like)
    if total.numel():
        block = min(64, next_power_of_two(t))
        launch_kernel(
            _sum_heads_kernel,
            b * h * ceil_div(t, block),
            rows_of(parts),
            rows_of(total),
            t,
            h,
            parts.shape[1] // h,
            DIM=d,
            BLOCK_N=block,
            BLOCK_D=next_power_of_two(d),
        )
    return total


def _suffix_gradients(
    received: tuple[Tensor, Tensor] | None,
    d_state: StatePair | None,
    states: State,
    tensors: CausalTensors,
    results: CausalSummary,
    space: FeatureSpace,
    plan: CausalPlan,
) -> Suffix:
    """Sum what queries ask of keys over later segments; scans of chunks read one more slot, behind the last segment."""
    (b, h, _, _), m, e = tensors.key.shape, space.projection.shape[-2], tensors.value.shape[-1]
    scanned = plan.chunk is not None
    places = (plan.segments.count + scanned) * b
    dtype = torch.float32 if scanned else operand_dtype(tensors.key.dtype)
    rows = torch.empty((places, h, m, e), dtype=dtype, device=tensors.key.device)
    shifts, anchors = (torch.empty((places, h, m), dtype=torch.float32, device=rows.device) for _ in range(2))
    initial = tensors.initial
    d_initial = None if initial is None else (torch.empty_like(initial[0]), torch.empty_like(initial[1]))
    d_log_weight = torch.empty((b, h, m), dtype=torch.float32, device=rows.device)
    suffix = Suffix(rows, shifts, anchors if scanned else None, d_initial, d_log_weight)
    if b * h == 0:
        return suffix
    asked, weighted = (states.value, states.row_sum) if received is None else received
    splits = 0 if received is None else asked.shape[0] // max(1, plan.segments.count * b)
    block = scan_block(m, e)
    launch_kernel(
        _suffix_gradients_kernel,
        b * h * ceil_div(m, block),
        rows_of(asked),
        vectors_of(weighted),
        states.described(),
        described_state(tensors.initial),
        None if d_state is None else described_state((results.log_normalizer, results.state_value)),
        described_state(d_initial),
        described_state(d_state),
        None if space.log_weight is None else vectors_of(space.log_weight),
        rows_of(rows),
        vectors_of(shifts),
        vectors_of(anchors) if scanned else None,
        vectors_of(d_log_weight),
        b,
        plan.segments.count,
        splits,
        h,
        FEATURES=m,
        VALUE_DIM=e,
        BLOCK_M=block,
        BLOCK_E=next_power_of_two(e),
    )
    return suffix


class Trace(NamedTuple):
    """What the scan of the queries leaves for the keys' gradients: D (b, h g, t), and the anchors before each chunk.

    The anchors are (chunks b, h, m); the statistics are those of the forward.
    """

    statistics: Statistics
    weighted_output: Tensor
    anchors: Tensor

    def described(self) -> tuple[tuple[Vectors, Vectors, Vectors], Vectors, Vectors]:
        return self.statistics.described(), vectors_of(self.weighted_output), vectors_of(self.anchors)


class _Scan(NamedTuple):
    """The gradients of short steps, by a scan over chunks in each direction."""

    tensors: CausalTensors
    results: CausalSummary
    space: FeatureSpace
    plan: CausalPlan
    tokens_per_step: int
    impl: str

    def gradients(self, d_output: Tensor, d_state: StatePair | None, parameter_gradients: bool) -> CausalGradients:
        query, key, _, _, initial = self.tensors
        count, m = self.plan.segments.count, self.space.projection.shape[-2]
        states = None
        if count > 1 or initial is not None or d_state is not None:
            states = prefix_states(self.tensors, self.space, self.impl, self.plan, None)
        chunks = ceil_div(query.shape[-2], self.plan.chunk or 1)
        trace = Trace(
            Statistics(self.results.softmax, self.results.softmax.new_empty(0, query.shape[1])),
            torch.empty_like(self.results.softmax[0]),
            torch.empty((chunks * key.shape[0], key.shape[1], m), dtype=torch.float32, device=key.device),
        )
        of_queries, of_keys = (self._parameter_sums(parameter_gradients) for _ in range(2))
        d_query = self._query_side(d_output, states, trace, of_queries[0])
        suffix = None
        if states is not None:
            received = None
            if count > 1 or initial is not None:
                statistics, weighted_output, _ = trace
                landmarks = Hop(
                    states.value,
                    statistics=statistics,
                    weighted_output=weighted_output,
                    row_max=states.row_max,
                    segments=self.plan.segments,
                )
                received = landmark_gradient(query, d_output, landmarks, self.space, self.impl)
            suffix = _suffix_gradients(received, d_state, states, self.tensors, self.results, self.space, self.plan)
        d_key, d_value = self._key_side(d_output, suffix, trace, of_keys)
        d_initial = None if suffix is None else suffix.d_initial
        parameters = no_parameters(trace.weighted_output)
        if of_queries[0] is not None and of_keys[0] is not None and of_keys[1] is not None:
            through_queries, through_keys, log_weight = (
                x.unflatten(0, (count, -1)).unflatten(2, (key.shape[1], -1)).sum((0, 3))
                for x in (of_queries[0], *of_keys)
            )
            parameters = to_parameters(through_queries + through_keys, log_weight, self.space)
        return CausalGradients(d_query, d_key, d_value, d_initial, parameters)

    def _parameter_sums(self, wanted: bool) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return zeros for what each program adds up: (segments b, h g, m, d) and (segments b, h g, m)."""
        if not wanted:
            return None, None
        query, (m, d) = self.tensors.query, self.space.projection.shape[-2:]
        shape = (self.plan.segments.count * query.shape[0], query.shape[1], m)
        zeros = torch.zeros((*shape, d + 1), dtype=torch.float32, device=query.device)
        return zeros[..., :d], zeros[..., d]

    def _query_side(
        self,
        d_output: Tensor,
        states: State | None,
        trace: Trace,
        d_projection: Tensor | None,
    ) -> Tensor:
        """Return dq; fills the trace."""
        query, value = self.tensors.query, self.tensors.value
        d_query = torch.empty_like(query)
        launch = causal_launch("causal_query_gradient", self.tensors, self.space, self.impl)
        launch_kernel(
            _causal_query_gradient_kernel,
            self.plan.segments.count * query.shape[0] * query.shape[1],
            *described_inputs(self.tensors, self.space),
            None if states is None else states.described(),
            Running.empty(self.plan, query, self.space.projection.shape[-2], value.shape[-1]).described(),
            rows_of(self.results.output),
            rows_of(d_output),
            *trace.described(),
            rows_of(d_query),
            None if d_projection is None else rows_of(d_projection),
            *described_cut(self.tensors, self.plan, self.tokens_per_step),
            *gains(self.space),
            math.sqrt(self.space.scale),
            **causal_constants(self.tensors, self.space, self.impl),
            BLOCK_C=launch.tokens,
            BLOCK_M=launch.features,
            **launch.options,
        )
        return d_query

    def _key_side(
        self,
        d_output: Tensor,
        suffix: Suffix | None,
        trace: Trace,
        sums: tuple[Tensor, Tensor] | tuple[None, None],
    ) -> tuple[Tensor, Tensor]:
        """Return dk and dv."""
        query, key, value, _, _ = self.tensors
        group = query.shape[1] // key.shape[1]
        if group == 1:
            d_key, d_value = torch.empty_like(key), torch.empty_like(value)
        else:
            d_key, d_value = (
                torch.empty((*query.shape[:3], x.shape[-1]), dtype=torch.float32, device=x.device) for x in (key, value)
            )
        d_projection, d_log_weight = sums
        single = self.space._replace(paired=False)
        constants = dict(causal_constants(self.tensors, single, self.impl))
        del constants["PAIRED"]
        launch = causal_launch("causal_key_gradient", self.tensors, single, self.impl)
        launch_kernel(
            _causal_key_gradient_kernel,
            self.plan.segments.count * query.shape[0] * query.shape[1],
            *described_inputs(self.tensors, self.space),
            None if suffix is None else suffix.described(),
            Running.empty(self.plan, query, self.space.projection.shape[-2], value.shape[-1]).described(),
            rows_of(d_output),
            *trace.described(),
            rows_of(d_key),
            rows_of(d_value),
            None if d_projection is None else rows_of(d_projection),
            None if d_log_weight is None else vectors_of(d_log_weight),
            *described_cut(self.tensors, self.plan, self.tokens_per_step),
            *gains(self.space),
            math.sqrt(self.space.scale),
            **constants,
            BLOCK_C=launch.tokens,
            BLOCK_M=launch.features,
            **launch.options,
        )
        if group > 1:
            return sum_over_group(d_key, key), sum_over_group(d_value, value)
        return d_key, d_value
