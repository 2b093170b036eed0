"""Causal FAVOR attention on the GPU, forward: plans, allocates and launches, for `favor_ops.py`.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features.

    steps                             launches
    of at most a chunk's tokens       [_summarize_kernel of all segments but the last, _prefix_states_kernel,]
                                      _causal_attend_kernel
    longer                            _summarize_kernel of each step, _prefix_states_kernel, _attend_kernel
    one of at most 256 tokens         _short_kernel, a step of decoding, where `is_short` takes it

Short steps are walked over chunk by chunk, in as many segments as fill the device. Long ones see all of themselves, so
that each reads one state, which its queries and those of full attention do alike. States are kept between the launches
of one pass only, (m, e) for each segment; the backward makes them again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .favor_attention_triton import (
    State,
    Statistics,
    described_state,
    is_short,
    launch_attend,
    short_attention,
    summarize_segments,
)
from .favor_causal_kernels import _causal_attend_kernel
from .favor_causal_parts import CausalTensors
from .favor_causal_reference import CausalSummary
from .favor_launch import (
    LONGEST_SPLIT,
    Launch,
    Segments,
    ceil_div,
    gains,
    launch_of,
    next_power_of_two,
    processors,
    shared_constants,
)
from .favor_reference import attention_output
from .favor_scan_kernels import _prefix_states_kernel
from .favor_tiles import Rows, Vectors, mask_of, rows_of, vectors_of
from .launch_plans import launch_kernel
from .random_features import FeatureSpace

SHORTEST_SEGMENT_CHUNKS = 4
"""Chunks below which a segment is not worth summarising ahead of time."""


class CausalPlan(NamedTuple):
    """How the tokens are cut: segments with a state each, and chunks of `chunk` tokens, None where a step is longer."""

    segments: Segments
    chunk: int | None


class Running(NamedTuple):
    """What each program of the scans keeps in memory: S or R (segments b, h g, m, e), and two vectors a feature."""

    rows: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def empty(cls, plan: CausalPlan, query: Tensor, num_features: int, value_dim: int) -> Running:
        shape = (plan.segments.count * query.shape[0], query.shape[1], num_features)
        rows = torch.empty((*shape, value_dim), dtype=torch.float32, device=query.device)
        return cls(rows, *(torch.empty(shape, dtype=torch.float32, device=query.device) for _ in range(2)))

    def described(self) -> tuple[Rows, Vectors, Vectors]:
        return rows_of(self.rows), vectors_of(self.first), vectors_of(self.second)


def causal_plan(tensors: CausalTensors, space: FeatureSpace, impl: str, tokens_per_step: int) -> CausalPlan:
    """Cut the tokens so that the programs fill the device; equal for the forward and the backward of equal shapes."""
    query = tensors.query
    length = query.shape[-2]
    tokens = causal_launch("causal_attend", tensors, space, impl).tokens
    if tokens_per_step >= length or tokens_per_step > tokens:
        step = max(1, min(tokens_per_step, length))
        return CausalPlan(Segments(step, ceil_div(length, step)), None)
    chunk = tokens // tokens_per_step * tokens_per_step
    chunks = ceil_div(length, chunk)
    wanted = ceil_div(2 * processors(query.device), max(1, query.shape[0] * query.shape[1]))
    count = max(1, ceil_div(length, LONGEST_SPLIT), min(wanted, chunks // SHORTEST_SEGMENT_CHUNKS))
    each = ceil_div(chunks, count)
    return CausalPlan(Segments(each * chunk, ceil_div(chunks, each)), chunk)


def causal_launch(kernel: str, tensors: CausalTensors, space: FeatureSpace, impl: str) -> Launch:
    """Return how to launch a kernel that walks over chunks."""
    constants = causal_constants(tensors, space, impl)
    return launch_of(kernel, constants, tensors.query.shape[-2], tensors.query.device)


def causal_constants(tensors: CausalTensors, space: FeatureSpace, impl: str) -> dict[str, Any]:
    """Return the compile-time values of a kernel that walks over chunks, but for its tiles."""
    return shared_constants(space, tensors.query, space.projection.shape[-2], tensors.value.shape[-1], impl)


def causal_attention_triton(
    tensors: CausalTensors, space: FeatureSpace, impl: str, tokens_per_step: int
) -> CausalSummary:
    """Attend to the keys of the own and of earlier steps; the state of all keys is float32."""
    query, key, value, mask, initial = tensors
    (b, h, _, _), m, e = key.shape, space.projection.shape[-2], value.shape[-1]
    plan = causal_plan(tensors, space, impl, tokens_per_step)
    if plan.segments.count == 1 and plan.chunk is None and is_short(query, key, value, space):
        state, statistics = State.empty((b, h, m), e, key.device), Statistics.empty(query, 1)
        output = short_attention((query, key, value, mask), space, impl, state, statistics, initial)
        assert state.log_normalizer is not None
        return CausalSummary(output, state.log_normalizer, state.value, statistics.softmax)
    log_normalizer = torch.empty((b, h, m), dtype=torch.float32, device=key.device)
    state_value = torch.empty((b, h, m, e), dtype=torch.float32, device=key.device)
    final = (log_normalizer, state_value)
    if b * h == 0 or plan.chunk is None:
        states = prefix_states(tensors, space, impl, plan, final)
        assert states.log_normalizer is not None
        state, statistics = (states.log_normalizer, states.value), Statistics.empty(query, plan.segments.count)
        output = launch_attend(query, state, space, impl, statistics, plan.segments)
        return CausalSummary(output, *final, statistics.softmax)
    states = None
    if plan.segments.count > 1 or initial is not None:
        states = prefix_states(tensors, space, impl, plan, None)
    output, statistics = attention_output(query, e), Statistics.empty(query, 0)
    launch = causal_launch("causal_attend", tensors, space, impl)
    launch_kernel(
        _causal_attend_kernel,
        plan.segments.count * b * query.shape[1],
        *described_inputs(tensors, space),
        None if states is None else states.described(),
        Running.empty(plan, query, m, e).described(),
        rows_of(output),
        statistics.described(),
        (rows_of(state_value), vectors_of(log_normalizer)),
        *described_cut(tensors, plan, tokens_per_step),
        *gains(space),
        **causal_constants(tensors, space, impl),
        BLOCK_C=launch.tokens,
        BLOCK_M=launch.features,
        **launch.options,
    )
    return CausalSummary(output, *final, statistics.softmax)


def prefix_states(
    tensors: CausalTensors,
    space: FeatureSpace,
    impl: str,
    plan: CausalPlan,
    final: tuple[Tensor, Tensor] | None,
) -> State:
    """Return the states before each segment, or those up to each long step, with the initial one; fill `final`."""
    _, key, value, mask, initial = tensors
    (b, h, _, _), m, e = key.shape, space.projection.shape[-2], value.shape[-1]
    segments = plan.segments
    states = State.empty((segments.count * b, h, m), e, key.device)
    if b * h == 0:
        return states
    summarised = segments.count - (plan.chunk is not None)
    if summarised > 0:
        summarize_segments((key, value, mask), space, impl, states, segments._replace(count=summarised))
    block = scan_block(m, e)
    launch_kernel(
        _prefix_states_kernel,
        b * h * ceil_div(m, block),
        states.described(),
        described_state(initial),
        described_state(final),
        None if space.log_weight is None else vectors_of(space.log_weight),
        b,
        segments.count,
        summarised,
        h,
        INCLUSIVE=plan.chunk is None,
        FEATURES=m,
        VALUE_DIM=e,
        BLOCK_M=block,
        BLOCK_E=next_power_of_two(e),
    )
    return states


def scan_block(num_features: int, value_dim: int) -> int:
    """Return how many features a program carries over the segments: fewer rows of a wide value fit the registers."""
    return min(16 if value_dim <= 32 else 8 if value_dim <= 64 else 4, next_power_of_two(num_features))


def described_inputs(tensors: CausalTensors, space: FeatureSpace) -> tuple[Any, ...]:
    """Describe the first arguments of every kernel that walks over chunks."""
    query, key, value, mask, _ = tensors
    log_weight = None if space.log_weight is None else vectors_of(space.log_weight)
    rows = (rows_of(x) for x in (query, key, value))
    return *rows, mask_of(mask), rows_of(space.projection), log_weight


def described_cut(tensors: CausalTensors, plan: CausalPlan, tokens_per_step: int) -> tuple[int | None, ...]:
    """Describe batch, tokens, segments, chunks and heads to a kernel that walks over chunks."""
    b, heads, t, _ = tensors.query.shape
    return b, t, *plan.segments, tokens_per_step, plan.chunk, heads, heads // tensors.key.shape[1]
