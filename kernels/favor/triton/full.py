"""FAVOR attention on the GPU, forward: allocates, chooses the launch and calls the kernels, for `operators.py`.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.

    call                   launches
    full forward, short    _short_kernel
    full forward           _summarize_kernel [, _merge_splits_kernel], _attend_kernel
    full backward          (full_backward.py) _token_gradient_kernel for dq, _landmark_gradient_kernel,
                           _reduce_gradient_kernel, _token_gradient_kernel for dk and dv
                           [, _projection_gradient_kernel for either side, where features are learnt]

Products run on tensor cores: bfloat16 inputs in bfloat16 (the projection rounded once), float16 inputs in float16 for
w . x and in TF32 for everything a weight takes part in (weights leave float16's range), float32 inputs in three TF32
products ("tf32x3", about float32's accuracy) or, with impl="triton-ieee", in float32 without tensor cores. Sums and
exponents are float32. The state is float32 for `summarize`; inside `full_attention` it has the operands' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dispatch.launch import launch_kernel
from ..types import (
    AttendInputs,
    AttendResults,
    CausalInputs,
    FavorState,
    FullInputs,
    FullResults,
    SummarizeInputs,
    SummarizeResults,
    attention_output,
)
from .full_kernels import _attend_kernel, _merge_splits_kernel, _short_kernel, _summarize_kernel
from .problem import (
    Problem,
    ceil_div,
    landmark_spec,
    launch_of,
    next_power_of_two,
    operand_dtype,
    split_tokens,
)
from .tiles import mask_of, rows_of

SHORT_QUERIES = 256
SHORT_KEYS = 256
SHORT_DIM = 64
"""Lengths and (in bfloat16) head dims up to which one launch runs both hops, each query tile of a head
repeating hop 1; above that dim its registers spill. To be timed on a GPU."""


def empty_summary(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> SummarizeResults:
    """Allocate a state (..., m, e), whose V has `dtype`, with the maximum and sum of its softmax."""
    state = FavorState(like.new_empty(shape[:-1], dtype=torch.float32), like.new_empty(shape, dtype=dtype))
    return SummarizeResults(state, like.new_empty((2, *shape[:-1]), dtype=torch.float32))


def contiguous(state: FavorState) -> FavorState:
    """Return a state, or its gradient, as kernels take it: without gaps."""
    return FavorState(state.log_normalizer.contiguous(), state.value.contiguous())


def empty_statistics(query: Tensor) -> Tensor:
    """Allocate the statistics of the queries' softmax over landmarks: maximum and 1 / sum, (2, b, h g, t)."""
    return query.new_empty(2, *query.shape[:-1], dtype=torch.float32)


def summarize_triton(inputs: SummarizeInputs) -> SummarizeResults:
    """Summarize keys (b, h, s, d) and values (b, h, s, e) into a float32 state."""
    results = empty_summary(inputs.key, *state_shape(inputs))
    _launch_summarize(keys_of(inputs), inputs.value, results, None)
    return results


def keys_of(inputs: SummarizeInputs | FullInputs) -> Problem:
    return Problem.of(inputs.key, inputs.mask, inputs.space, inputs.impl, inputs.key.shape[1], inputs.value.shape[-1])


def queries_of(inputs: FullInputs | CausalInputs) -> Problem:
    return Problem.of(inputs.query, None, inputs.space, inputs.impl, inputs.key.shape[1], inputs.value.shape[-1])


def state_shape(inputs: SummarizeInputs | FullInputs | CausalInputs) -> tuple[int, ...]:
    """Return (b, h, m, e)."""
    return *inputs.key.shape[:2], inputs.space.projection.shape[-2], inputs.value.shape[-1]


def _launch_summarize(keys: Problem, value: Tensor, results: SummarizeResults, projection_copy: Tensor | None) -> None:
    b, h, m, e = results.state.value.shape
    if b * h == 0:
        return
    launch = keys.launch("summarize")
    splits, each = split_tokens(ceil_div(keys.length, launch.tokens), launch.tokens, b * h * launch.tiles, value.device)
    parts = results if splits == 1 else empty_summary(value, splits * b, h, m, e)
    launch_kernel(
        _summarize_kernel,
        b * h * splits * launch.tiles,
        rows_of(keys.tokens),
        rows_of(value),
        mask_of(keys.mask),
        rows_of(keys.space.projection),
        keys.log_weight,
        as_arguments(parts),
        None if projection_copy is None else rows_of(projection_copy),
        b * h,
        keys.length,
        each * launch.tokens,
        splits,
        h,
        *keys.scales,
        BLOCK_S=launch.tokens,
        **launch.options,
    )
    if splits > 1:
        tiles, spec = landmark_spec(m, e)
        states = as_arguments(parts), keys.log_weight, as_arguments(results)
        launch_kernel(_merge_splits_kernel, b * h * tiles, *states, b * h, splits, h, S=spec)


def as_arguments(results: SummarizeResults) -> tuple[Tensor, Tensor, Tensor]:
    """Return L, V, and maximum and sum, as kernels take them."""
    return results.state.log_normalizer, results.state.value, results.statistics


def attend_triton(inputs: AttendInputs) -> AttendResults:
    """Return o (b, h g, t, e) in query's dtype, and the statistics of its softmax."""
    query, state, space, impl = inputs
    _, h, _, e = state.value.shape
    return _launch_attend(Problem.of(query, None, space, impl, h, e), state)


def _launch_attend(queries: Problem, state: FavorState) -> AttendResults:
    query = queries.tokens
    results = AttendResults(attention_output(query, state.value.shape[-1]), empty_statistics(query))
    if query.shape[:-1].numel():
        launch = queries.launch("attend")
        launch_kernel(
            _attend_kernel,
            queries.token_planes * ceil_div(queries.length, launch.tokens),
            rows_of(query),
            rows_of(queries.space.projection),
            contiguous(state),
            rows_of(results.output),
            results.statistics,
            queries.length,
            queries.heads,
            queries.group,
            queries.scales[0],
            BLOCK_T=launch.tokens,
            **launch.options,
        )
    return results


def full_triton(inputs: FullInputs) -> FullResults:
    """Run both hops."""
    if is_short(inputs):
        results = empty_full(inputs)
        hop = SummarizeResults(results.state, results.landmark_statistics)
        launch_short(inputs, hop, results.output, results.statistics)
        return results
    queries, keys = queries_of(inputs), keys_of(inputs)
    hop, projection = _empty_hop(inputs), _empty_projection(inputs)
    _launch_summarize(keys, inputs.value, hop, projection if projection.numel() else None)
    return FullResults(*_launch_attend(queries.reading(projection), hop.state), *hop, projection)


def empty_full(inputs: FullInputs) -> FullResults:
    """Allocate what `full_triton` returns."""
    output = attention_output(inputs.query, inputs.value.shape[-1])
    return FullResults(output, empty_statistics(inputs.query), *_empty_hop(inputs), _empty_projection(inputs))


def _empty_hop(inputs: FullInputs) -> SummarizeResults:
    return empty_summary(inputs.key, *state_shape(inputs), dtype=operand_dtype(inputs.query.dtype))


def _empty_projection(inputs: FullInputs) -> Tensor:
    """Allocate the projection in the tokens' dtype, for those that later kernels do not convert again."""
    key, space = inputs.key, inputs.space
    if inputs.query.dtype != key.dtype or key.dtype == torch.float32 or is_short(inputs):  # lengths come last
        return key.new_empty(0)
    m, d = space.projection.shape[-2:]
    return key.new_empty(*space.projection.shape[:-2], m // 2 if space.paired else m, d)


def is_short(inputs: FullInputs | CausalInputs) -> bool:
    """Whether one launch that repeats hop 1 for each query tile beats two launches.

    It takes logits relative to the L of its first features, which log-weights may set far below the others.
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    largest = SHORT_DIM if query.dtype == torch.bfloat16 else SHORT_DIM // 2
    return (
        query.dtype == key.dtype
        and inputs.space.log_weight is None
        and query.shape[-2] <= SHORT_QUERIES
        and key.shape[-2] <= SHORT_KEYS
        and max(key.shape[-1], value.shape[-1]) <= largest
    )


def launch_short(
    inputs: FullInputs | CausalInputs, results: SummarizeResults, output: Tensor, statistics: Tensor
) -> None:
    """Run both hops in one launch, of a causal problem behind its initial state; fill results, output and statistics.

    The maxima of causal statistics are as they are, those of full attention relative to the largest L.
    """
    initial = inputs.initial if isinstance(inputs, CausalInputs) else None
    initial = None if initial is None else contiguous(initial)
    query, key, value = inputs.query, inputs.key, inputs.value
    (b, heads, t, _), (_, h, s, _) = query.shape, key.shape
    if b * heads == 0:
        return
    queries = queries_of(inputs)
    launch = launch_of("short", queries.spec, max(t, s), query.device)
    tokens = min(launch.tokens, next_power_of_two(t))
    launch_kernel(
        _short_kernel,
        b * heads * max(1, ceil_div(t, tokens)),
        rows_of(query),
        rows_of(key),
        rows_of(value),
        mask_of(inputs.mask),
        rows_of(inputs.space.projection),
        initial,
        as_arguments(results),
        rows_of(output),
        statistics,
        t,
        s,
        heads,
        heads // h,
        *queries.scales,
        RELATIVE=not isinstance(inputs, CausalInputs),
        BLOCK_T=tokens,
        BLOCK_S=min(launch.tokens, next_power_of_two(s)),
        **launch.options,
    )
