"""Causal FAVOR attention on the GPU, forward: cuts the tokens, allocates and launches, for `operators.py`.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features.

    forward:            [_prefix_states_kernel for the sums of splits,] _prefix_states_kernel, _causal_attend_kernel
    a step of decoding: _short_kernel, where `is_short` takes it

States are kept between the launches of one pass only, (m, e) numbers of the operands' dtype and two vectors for each
segment; the backward makes them again.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...dispatch.launch import launch_kernel
from ..types import CausalSummary, CausalTensors, FeatureSpace, attention_output
from .causal_kernels import _causal_attend_kernel, _prefix_states_kernel
from .full import (
    State,
    contiguous_pair,
    empty_statistics,
    is_short,
    short_attention,
)
from .problem import (
    LONGEST_SPLIT,
    Launch,
    ceil_div,
    launch_of,
    logit_scales,
    operand_dtype,
    processors,
    spec_of,
)
from .tiles import Rows, Spec, Vectors, mask_of, rows_of, vectors_of

SHORTEST_SPLIT_SEGMENTS = 8
"""Segments below which a split of a walk is not worth summing ahead of time."""

StatePair = tuple[Tensor, Tensor]


class States(NamedTuple):
    """V (segments + 1, b, h, m, e), M and z before each segment and after the last, and which segments have jumps.

    M and z have one more place for each segment of a query head, for the anchors of its parts. The jumps are
    (segments, b, h, feature tiles of the walk), None where steps are segments.
    """

    value: Tensor
    anchors: Tensor
    totals: Tensor
    jumps: Tensor | None


class CausalProblem:
    """What the launches of one call share: its tensors, how its tokens are cut, and compile-time values.

    A segment has at most `tokens` tokens, all of whole steps, and its queries see keys within it (`within`); longer
    steps are segments by themselves. So are those that would leave more than half of a tile empty.
    """

    def __init__(self, tensors: CausalTensors, space: FeatureSpace, impl: str, tokens_per_step: int) -> None:
        self.tensors, self.space, self.impl = tensors, space, impl
        self.batch, self.heads, self.length, _ = tensors.key.shape
        self.query_heads = tensors.query.shape[1]
        self.num_features, self.value_dim = space.projection.shape[-2], tensors.value.shape[-1]
        self.step = max(1, min(tokens_per_step, self.length))
        tokens = self.launch("causal_attend").tokens
        self.within = self.step < self.length and 2 * self.step <= tokens
        self.segment_length = tokens // self.step * self.step if self.within else self.step
        self.segments = ceil_div(self.length, self.segment_length)

    @property
    def batch_heads(self) -> int:
        return self.batch * self.heads

    @property
    def query_planes(self) -> int:
        return self.batch * self.query_heads

    @cached_property
    def spec(self) -> Spec:
        return spec_of(self.space, self.tensors.query, self.num_features, self.value_dim, self.impl)

    @cached_property
    def log_weight(self) -> Vectors | None:
        return None if self.space.log_weight is None else vectors_of(self.space.log_weight)

    def launch(self, kernel: str) -> Launch:
        return launch_of(kernel, self.spec, self.length, self.tensors.query.device)

    def split(self, tiles: int) -> tuple[int, int]:
        """Return (segments of a split, splits) of a walk by `tiles` programs a head."""
        needed = ceil_div(self.length, LONGEST_SPLIT)
        each = _split_segments(self.segments, needed, self.batch_heads * tiles, processors(self.tensors.query.device))
        return each, max(1, ceil_div(self.segments, each))

    def inputs(self) -> tuple[Rows, Rows, Rows, Vectors | None, Rows, Vectors | None]:
        """Describe what every kernel of queries and keys reads first."""
        query, key, value, mask, _ = self.tensors
        rows = rows_of(query), rows_of(key), rows_of(value)
        return *rows, mask_of(mask), rows_of(self.space.projection), self.log_weight

    def sizes(self) -> tuple[int, ...]:
        """Return what a kernel over segments needs to find its own."""
        group = self.query_heads // self.heads
        return (self.length, self.segment_length, self.segments, self.step, self.query_heads, group, self.query_planes)

    def options(self, launch: Launch) -> dict[str, Any]:
        """Return the keyword arguments of a launch, which know of segments."""
        spec = _causal_spec(launch.options["S"], self.launch("prefix_states").tiles, self.within)
        return {**launch.options, "S": spec}

    def segment_options(self, kernel: str) -> dict[str, Any]:
        """Return the keyword arguments of a kernel over segments."""
        launch = self.launch(kernel)
        tokens = self.launch("causal_attend").tokens if self.within else launch.tokens
        return {**self.options(launch), "BLOCK_C": tokens}


@lru_cache(maxsize=1024)
def _causal_spec(spec: Any, walk_tiles: int, within: bool) -> Any:
    return spec._replace(WALK_TILES=tl.constexpr(walk_tiles), WITHIN=tl.constexpr(within))


@lru_cache(maxsize=1024)
def _split_segments(segments: int, needed: int, programs: int, processors: int) -> int:
    """Return the segments of a split for which a walk by `programs` programs takes the fewest steps.

    Splits are summed ahead of time, all but one, before they are walked over; a processor runs one program at a time.
    """

    def steps(each: int) -> int:
        splits = ceil_div(segments, each)
        return each * (ceil_div(programs * (splits - 1), processors) + ceil_div(programs * splits, processors))

    fewest = max(1, needed)
    most = max(fewest, segments // SHORTEST_SPLIT_SEGMENTS)
    return min((max(1, ceil_div(segments, count)) for count in range(fewest, most + 1)), key=steps)


def causal_attention_triton(
    tensors: CausalTensors, space: FeatureSpace, impl: str, tokens_per_step: int
) -> CausalSummary:
    """Attend to the keys of the own and of earlier steps; the state of all keys is float32."""
    query, key, value, mask, initial = tensors
    (b, h, t, _), m, e = key.shape, space.projection.shape[-2], value.shape[-1]
    if tokens_per_step >= t and is_short(query, key, value, space):
        state, softmax = State.empty(key, b, h, m, e), empty_statistics(query)
        output = short_attention((query, key, value, mask), space, impl, state, softmax, initial, relative=False)
        return CausalSummary(output, state.log_normalizer, state.value, softmax)
    problem = CausalProblem(tensors, space, impl, tokens_per_step)
    log_normalizer = torch.empty((b, h, m), dtype=torch.float32, device=key.device)
    state_value = torch.empty((b, h, m, e), dtype=torch.float32, device=key.device)
    states = prefix_states(problem, (log_normalizer, state_value))
    output = attention_output(query, e)
    softmax = torch.empty((2, *query.shape[:-1]), dtype=torch.float32, device=query.device)
    if output.numel():
        constants = problem.segment_options("causal_attend")
        launch_kernel(
            _causal_attend_kernel,
            problem.query_planes * problem.segments * ceil_div(problem.segment_length, constants["BLOCK_C"]),
            *problem.inputs(),
            states[:3],
            states.jumps,
            rows_of(output),
            tuple(softmax.unbind()),
            *problem.sizes(),
            *logit_scales(space),
            **constants,
        )
    return CausalSummary(output, log_normalizer, state_value, softmax)


def prefix_states(problem: CausalProblem, final: StatePair | None) -> States:
    """Return the states before each segment, with the initial one, and fill (L, V) of all keys if wanted."""
    tensors, space, device = problem.tensors, problem.space, problem.tensors.key.device
    m, e, batch_heads = problem.num_features, problem.value_dim, problem.batch_heads
    launch = problem.launch("prefix_states")
    slots = (problem.segments + 1) * batch_heads
    value = torch.empty((slots, m, e), dtype=operand_dtype(tensors.query.dtype), device=device)
    spare = slots + problem.segments * problem.query_planes * problem.within
    anchors, totals = (torch.empty((spare, m), dtype=torch.float32, device=device) for _ in range(2))
    jumps = None
    if problem.within:
        jumps = torch.empty((problem.segments * batch_heads, launch.tiles), dtype=torch.int32, device=device)
    states = States(value, anchors, totals, jumps)
    each, splits = problem.split(launch.tiles)
    parts = None
    if splits > 1:
        parts = tuple(
            torch.empty((splits * batch_heads, *x), dtype=torch.float32, device=device) for x in ((m, e), (m,), (m,))
        )
    passes = [(None, splits - 1)] * (parts is not None) + [(states, splits)]
    for written, walked in passes if batch_heads else ():
        launch_kernel(
            _prefix_states_kernel,
            batch_heads * walked * launch.tiles,
            rows_of(tensors.key),
            rows_of(tensors.value),
            mask_of(tensors.mask),
            rows_of(space.projection),
            problem.log_weight,
            contiguous_pair(tensors.initial),
            parts,
            None if written is None else written[:3],
            None if written is None else jumps,
            contiguous_pair(final),
            problem.length,
            problem.segment_length,
            problem.segments,
            each,
            walked,
            problem.step,
            problem.heads,
            batch_heads,
            *logit_scales(space),
            BLOCK_S=launch.tokens,
            **launch.options,
        )
    return states
