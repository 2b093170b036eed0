"""FAVOR attention on the GPU, forward: allocates, chooses the launch and calls the kernels, for `operators.py`.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.

    call                   launches
    full forward, short    _short_kernel
    full forward           _summarize_kernel [, _merge_splits_kernel], _attend_kernel
    full backward          (favor_backward_triton.py) _token_gradient_kernel for dq, _landmark_gradient_kernel,
                           _reduce_gradient_kernel, _token_gradient_kernel for dk and dv
                           [, _projection_gradient_kernel for either side, where features are learnt]

Products run on tensor cores: bfloat16 inputs in bfloat16 (the projection rounded once), float16 inputs in float16 for
w . x and in TF32 for everything a weight takes part in (weights leave float16's range), float32 inputs in three TF32
products ("tf32x3", about float32's accuracy) or, with impl="triton-ieee", in float32 without tensor cores. Sums and
exponents are float32. The state is float32 for `summarize`; inside `full_attention` it has the operands' dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...dispatch.launch import launch_kernel
from ..types import FeatureSpace, KeySummary, attention_output
from .full_kernels import _attend_kernel, _merge_splits_kernel, _short_kernel, _summarize_kernel
from .problem import (
    ceil_div,
    landmark_spec,
    launch_of,
    logit_scales,
    next_power_of_two,
    operand_dtype,
    spec_of,
    split_tokens,
)
from .tiles import mask_of, rows_of, vectors_of

SHORT_QUERIES = 256
SHORT_KEYS = 256
SHORT_DIM = 64
"""Lengths and (in bfloat16) head dims up to which one launch runs both hops, each query tile of a head
repeating hop 1; above that dim its registers spill. To be timed on a GPU."""


class State(NamedTuple):
    """What hop 1 leaves behind: V (b, h, m, e), L, and the maximum (base 2) and sum of its softmax, (b, h, m) each."""

    value: Tensor
    log_normalizer: Tensor
    row_max: Tensor
    row_sum: Tensor

    @classmethod
    def empty(cls, like: Tensor, *shape: int) -> State:
        """Allocate states (..., m, e) in float32."""
        log_normalizer, row_max, row_sum = (like.new_empty(*shape[:-1], dtype=torch.float32) for _ in range(3))
        return cls(like.new_empty(*shape, dtype=torch.float32), log_normalizer, row_max, row_sum)


def contiguous_pair(state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Return a state (L, V), or its gradient, as kernels take it: value first, without gaps."""
    return None if state is None else (state[1].contiguous(), state[0].contiguous())


def empty_statistics(query: Tensor) -> Tensor:
    """Allocate the statistics of the queries' softmax over landmarks: maximum and 1 / sum, (2, b, h g, t)."""
    return query.new_empty(2, *query.shape[:-1], dtype=torch.float32)


def summarize_triton(key: Tensor, value: Tensor, mask: Tensor | None, space: FeatureSpace, impl: str) -> KeySummary:
    """Summarize keys (b, h, s, d) and values (b, h, s, e) into a float32 state."""
    state = State.empty(key, *key.shape[:2], space.projection.shape[-2], value.shape[-1])
    _launch_summarize(key, value, mask, space, impl, state, None)
    return KeySummary(state.log_normalizer, state.value, state.row_max, state.row_sum)


def _launch_summarize(
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    space: FeatureSpace,
    impl: str,
    state: State,
    projection_copy: Tensor | None,
) -> None:
    b, h, s, _ = key.shape
    m, e = state.value.shape[-2:]
    if b * h == 0:
        return
    launch = launch_of("summarize", spec_of(space, key, m, e, impl), s, key.device)
    splits, each = split_tokens(ceil_div(s, launch.tokens), launch.tokens, b * h * launch.tiles, key.device)
    parts = state
    if splits > 1:
        parts = State.empty(key, splits * b, h, m, e)
    log_weight = None if space.log_weight is None else vectors_of(space.log_weight)
    launch_kernel(
        _summarize_kernel,
        b * h * splits * launch.tiles,
        rows_of(key),
        rows_of(value),
        mask_of(mask),
        rows_of(space.projection),
        log_weight,
        parts,
        None if projection_copy is None else rows_of(projection_copy),
        b * h,
        s,
        each * launch.tokens,
        splits,
        h,
        *logit_scales(space),
        BLOCK_S=launch.tokens,
        **launch.options,
    )
    if splits > 1:
        tiles, spec = landmark_spec(m, e)
        launch_kernel(_merge_splits_kernel, b * h * tiles, parts, log_weight, state, b * h, splits, h, S=spec)


def attend_triton(query: Tensor, state: tuple[Tensor, Tensor], space: FeatureSpace, impl: str) -> tuple[Tensor, Tensor]:
    """Return o (b, h g, t, e) in query's dtype, and the statistics of its softmax."""
    statistics = empty_statistics(query)
    return launch_attend(query, state, space, impl, statistics), statistics


def launch_attend(
    query: Tensor, state: tuple[Tensor, Tensor], space: FeatureSpace, impl: str, statistics: Tensor
) -> Tensor:
    """Return o (b, h g, t, e) in query's dtype, and fill the statistics."""
    log_normalizer, state_value = (x.contiguous() for x in state)
    b, heads, t, _ = query.shape
    h, m, e = state_value.shape[1:]
    output = attention_output(query, e)
    if b * heads * t == 0:
        return output
    launch = launch_of("attend", spec_of(space, query, m, e, impl), t, query.device)
    launch_kernel(
        _attend_kernel,
        b * heads * ceil_div(t, launch.tokens),
        rows_of(query),
        rows_of(space.projection),
        log_normalizer,
        state_value,
        rows_of(output),
        statistics,
        t,
        heads,
        heads // h,
        logit_scales(space)[0],
        BLOCK_T=launch.tokens,
        **launch.options,
    )
    return output


class FullResults(NamedTuple):
    """Output and statistics of hop 2; L, maximum, sum (3, b, h, m) and V of hop 1; a copy of the projection.

    V and the copy have the dtype in which hop 2 reads them; the copy is empty where it reads the original.
    """

    output: Tensor
    statistics: Tensor
    normalizers: Tensor
    state_value: Tensor
    projection: Tensor


def full_attention_triton(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, space: FeatureSpace, impl: str
) -> FullResults:
    """Run both hops."""
    statistics, normalizers, state_value, projection = full_auxiliaries(query, key, value, space)
    log_normalizer, row_max, row_sum = normalizers.unbind()
    state = State(state_value, log_normalizer, row_max, row_sum)
    if is_short(query, key, value, space):
        output = short_attention((query, key, value, mask), space, impl, state, statistics)
    else:
        copy = projection if projection.numel() else None
        _launch_summarize(key, value, mask, space, impl, state, copy)
        operands = space if copy is None else space._replace(projection=copy)
        output = launch_attend(query, (log_normalizer, state_value), operands, impl, statistics)
    return FullResults(output, statistics, normalizers, state_value, projection)


def full_auxiliaries(
    query: Tensor, key: Tensor, value: Tensor, space: FeatureSpace
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate all of FullResults but the output."""
    (b, h, _, _), m = key.shape, space.projection.shape[-2]
    normalizers = key.new_empty(3, b, h, m, dtype=torch.float32)
    state_value = key.new_empty(b, h, m, value.shape[-1], dtype=operand_dtype(query.dtype))
    projection = key.new_empty(0)
    if query.dtype == key.dtype != torch.float32 and not is_short(query, key, value, space):
        rows = m // (2 if space.paired else 1)
        projection = key.new_empty(*space.projection.shape[:-2], rows, space.projection.shape[-1])
    return empty_statistics(query), normalizers, state_value, projection


def is_short(query: Tensor, key: Tensor, value: Tensor, space: FeatureSpace) -> bool:
    """Whether one launch that repeats hop 1 for each query tile beats two launches.

    It takes logits relative to the L of its first features, which log-weights may set far below the others.
    """
    largest = SHORT_DIM if query.dtype == torch.bfloat16 else SHORT_DIM // 2
    return (
        query.dtype == key.dtype
        and space.log_weight is None
        and query.shape[-2] <= SHORT_QUERIES
        and key.shape[-2] <= SHORT_KEYS
        and max(key.shape[-1], value.shape[-1]) <= largest
    )


def short_attention(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    space: FeatureSpace,
    impl: str,
    state: State,
    statistics: Tensor,
    initial: tuple[Tensor, Tensor] | None = None,
    relative: bool = True,
) -> Tensor:
    """Run both hops of query, key, value and mask in one launch, behind a state (L, V) of earlier keys.

    Returns the output, and fills state and statistics, whose maxima are `relative` to the largest L or as they are.
    """
    query, key, value, mask = tensors
    b, heads, t, _ = query.shape
    m, e = state.value.shape[-2:]
    s, h = key.shape[-2], key.shape[1]
    output = attention_output(query, e)
    if b * heads == 0:
        return output
    launch = launch_of("short", spec_of(space, query, m, e, impl), max(t, s), query.device)
    tokens = min(launch.tokens, next_power_of_two(t))
    launch_kernel(
        _short_kernel,
        b * heads * max(1, ceil_div(t, tokens)),
        rows_of(query),
        rows_of(key),
        rows_of(value),
        mask_of(mask),
        rows_of(space.projection),
        contiguous_pair(initial),
        state,
        rows_of(output),
        statistics,
        t,
        s,
        heads,
        heads // h,
        *logit_scales(space),
        RELATIVE=relative,
        BLOCK_T=tokens,
        BLOCK_S=min(launch.tokens, next_power_of_two(s)),
        **launch.options,
    )
    return output
