"""Causal FAVOR attention on the GPU, forward: cuts the tokens, allocates and launches, for `operators.py`.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features.

    forward:            [_prefix_states_kernel for the sums of splits,] _prefix_states_kernel, _causal_attend_kernel
    a step of decoding: _short_kernel, where `is_short` takes it

States are kept between the launches of one pass only, (m, e) numbers of the operands' dtype and two vectors for each
segment; the backward makes them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...dispatch.launch import launch_kernel
from ..types import CausalInputs, CausalResults, FavorState, attention_output
from .causal_kernels import _causal_attend_kernel, _prefix_states_kernel
from .full import contiguous, empty_statistics, empty_summary, is_short, launch_short, queries_of, state_shape
from .problem import LONGEST_SPLIT, Launch, Problem, ceil_div, operand_dtype, processors
from .tiles import Rows, Vectors, mask_of, rows_of

SHORTEST_SPLIT_SEGMENTS = 8
"""Segments below which a split of a walk is not worth summing ahead of time."""


class States(NamedTuple):
    """M, z and V (segments + 1, b, h, m, e) before each segment and after the last, and which segments have jumps.

    M and z have one more row for each segment of a query head, for the anchors of its parts. The jumps are
    (segments, b, h, feature tiles of the walk), None where steps are segments.
    """

    anchors: Tensor
    row_sums: Tensor
    values: Tensor
    jumps: Tensor | None


@dataclass(frozen=True)
class CausalProblem:
    """What the launches of one call share: its tensors, how its tokens are cut, and compile-time values.

    A segment has at most as many tokens as a tile of causal_attend, all of whole steps, and its queries see keys within
    it (`within`); longer steps are segments by themselves. So are steps that would leave more than half a tile empty.
    """

    inputs: CausalInputs
    queries: Problem
    step: int
    within: bool
    segment_length: int

    @classmethod
    def of(cls, inputs: CausalInputs) -> CausalProblem:
        queries, t = queries_of(inputs), inputs.key.shape[2]
        step = max(1, min(inputs.tokens_per_step, t))
        tokens = queries.launch("causal_attend").tokens
        within = step < t and 2 * step <= tokens
        return cls(inputs, queries, step, within, tokens // step * step if within else step)

    @property
    def segments(self) -> int:
        return ceil_div(self.queries.length, self.segment_length)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Return (b, h, m, e)."""
        return state_shape(self.inputs)

    def split(self, tiles: int) -> tuple[int, int]:
        """Return (segments of a split, splits) of a walk by `tiles` programs a head."""
        needed, device = ceil_div(self.queries.length, LONGEST_SPLIT), self.inputs.query.device
        each = _split_segments(self.segments, needed, self.queries.batch_heads * tiles, processors(device))
        return each, max(1, ceil_div(self.segments, each))

    def empty_parts(self, splits: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Allocate the sums of the splits of a walk: two vectors and a matrix for each, None for a single split."""
        if splits == 1:
            return None
        (*_, m, e), states = self.state_shape, splits * self.queries.batch_heads
        one, other, rows = (self.queries.empty(torch.float32, states, *x) for x in ((m,), (m,), (m, e)))
        return one, other, rows

    def tensors(self) -> tuple[Rows, Rows, Rows, Vectors | None, Rows, Vectors | None]:
        """Return what every kernel of queries and keys reads first."""
        query, key, value, mask = self.inputs[:4]
        projection = rows_of(self.inputs.space.projection)
        return rows_of(query), rows_of(key), rows_of(value), mask_of(mask), projection, self.queries.log_weight

    def sizes(self) -> tuple[int, ...]:
        """Return what a kernel over segments needs to find its own."""
        queries = self.queries
        cut = queries.length, self.segment_length, self.segments, self.step
        return *cut, queries.heads, queries.group, queries.token_planes

    def options(self, launch: Launch) -> dict[str, Any]:
        """Return the keyword arguments of a launch, which know of segments."""
        spec = _causal_spec(launch.options["S"], self.queries.launch("prefix_states").tiles, self.within)
        return {**launch.options, "S": spec}

    def launch(self, kernel: str) -> tuple[int, dict[str, Any]]:
        """Return the programs a head and the keyword arguments of a kernel over segments."""
        launch = self.queries.launch(kernel)
        tokens = self.queries.launch("causal_attend").tokens if self.within else launch.tokens
        programs = self.segments * ceil_div(self.segment_length, tokens)
        return programs, {**self.options(launch), "BLOCK_C": tokens}


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


def causal_triton(inputs: CausalInputs) -> CausalResults:
    """Attend to the keys of the own and of earlier steps; the state of all keys is float32."""
    query, shape = inputs.query, state_shape(inputs)
    output, statistics = attention_output(query, shape[-1]), empty_statistics(query)
    if inputs.tokens_per_step >= query.shape[2] and is_short(inputs):
        final = empty_summary(query, *shape)
        launch_short(inputs, final, output, statistics)
        return CausalResults(output, final.state, statistics)
    problem = CausalProblem.of(inputs)
    final = FavorState(*(query.new_empty(x, dtype=torch.float32) for x in (shape[:-1], shape)))
    states = prefix_states(problem, final)
    if output.numel():
        programs, options = problem.launch("causal_attend")
        launch_kernel(
            _causal_attend_kernel,
            problem.queries.token_planes * programs,
            *problem.tensors(),
            states[:3],
            states.jumps,
            rows_of(output),
            tuple(statistics.unbind()),
            *problem.sizes(),
            *problem.queries.scales,
            **options,
        )
    return CausalResults(output, final, statistics)


def prefix_states(problem: CausalProblem, final: FavorState | None) -> States:
    """Return the states before each segment, with the initial one, and fill that of all keys if wanted."""
    inputs, queries = problem.inputs, problem.queries
    b, h, m, e = problem.state_shape
    launch = queries.launch("prefix_states")
    rows = (problem.segments + 1) * b * h
    values = queries.empty(operand_dtype(inputs.query.dtype), rows, m, e)
    spare = rows + problem.segments * queries.token_planes * problem.within
    anchors, row_sums = (queries.empty(torch.float32, spare, m) for _ in range(2))
    jumps = queries.empty(torch.int32, problem.segments * b * h, launch.tiles) if problem.within else None
    states = States(anchors, row_sums, values, jumps)
    each, splits = problem.split(launch.tiles)
    parts = problem.empty_parts(splits)
    passes = [(None, splits - 1)] * (parts is not None) + [(states, splits)]
    for written, walked in passes if b * h else ():
        launch_kernel(
            _prefix_states_kernel,
            b * h * walked * launch.tiles,
            *problem.tensors()[1:],
            None if inputs.initial is None else contiguous(inputs.initial),
            parts,
            None if written is None else written[:3],
            None if written is None else jumps,
            final,
            queries.length,
            problem.segment_length,
            problem.segments,
            each,
            walked,
            problem.step,
            h,
            b * h,
            *queries.scales,
            BLOCK_S=launch.tokens,
            **launch.options,
        )
    return states
