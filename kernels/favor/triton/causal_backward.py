"""Causal FAVOR attention on the GPU, backward: allocates and launches, for `operators.py`.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features.

    launches, after those of the states (`causal.py`): _causal_query_gradient_kernel,
    [_received_walk_kernel for the sums of splits,] _received_walk_kernel, _causal_key_gradient_kernel
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...dispatch.launch import launch_kernel
from ..types import CausalGradients, CausalInputs, CausalResults, CausalUpstream, FavorState, FeatureGradients
from .causal import CausalProblem, States, prefix_states
from .causal_backward_kernels import (
    _causal_key_gradient_kernel,
    _causal_query_gradient_kernel,
    _received_walk_kernel,
)
from .full import contiguous
from .full_backward import empty_bias_gradient, to_parameters
from .tiles import mask_of, rows_of


def causal_backward_triton(
    upstream: CausalUpstream, inputs: CausalInputs, results: CausalResults, parameter_gradients: bool
) -> CausalGradients:
    """Differentiate `causal_triton`."""
    problem = CausalProblem.of(inputs)
    d_query, d_key, d_value = (torch.empty_like(x) for x in inputs[:3])
    d_mask = empty_bias_gradient(inputs.mask)
    d_initial = None if inputs.initial is None else FavorState(*(x.new_empty(x.shape) for x in inputs.initial))
    if problem.queries.token_planes == 0:
        projection, log_weight = inputs.space[:2]
        zeros = torch.zeros_like(projection), None if log_weight is None else torch.zeros_like(log_weight)
        features = FeatureGradients(*zeros) if parameter_gradients else None
        return CausalGradients(d_query, d_key, d_value, d_mask, d_initial, features)
    backward = _CausalBackward.of(problem, results, upstream, parameter_gradients)
    backward.query_side(d_query)
    received = backward.received(d_initial)
    backward.key_side(received, d_key, d_value, d_mask)
    features = to_parameters(*backward.parameter_sums(d_initial), inputs.space) if parameter_gradients else None
    return CausalGradients(d_query, d_key, d_value, d_mask, d_initial, features)


@dataclass(frozen=True)
class _CausalBackward:
    """The launches of one backward, and what passes between them.

    `sums`, of learnt features, are gradients of the projection from queries, of the log-weight from queries, and of the
    projection from keys, of each program: it adds to its own once a part.
    """

    problem: CausalProblem
    results: CausalResults
    upstream: CausalUpstream
    states: States
    statistics: tuple[Tensor, ...]
    delta: Tensor
    sums: tuple[Tensor, Tensor, Tensor] | None

    @classmethod
    def of(
        cls, problem: CausalProblem, results: CausalResults, upstream: CausalUpstream, parameter_gradients: bool
    ) -> _CausalBackward:
        statistics = results.statistics.unbind()
        sums = None
        if parameter_gradients:
            m, d = problem.inputs.space.projection.shape[-2:]
            queries = problem.queries.token_planes * problem.launch("causal_query_gradient")[0]
            keys = problem.queries.batch_heads * problem.launch("causal_key_gradient")[0]
            shapes = (queries, m, d), (queries, m), (keys, m, d)
            of_queries, log_weight, of_keys = (problem.queries.empty(torch.float32, *x).zero_() for x in shapes)
            sums = of_queries, log_weight, of_keys
        states, delta = prefix_states(problem, None), torch.empty_like(statistics[0])
        return cls(problem, results, upstream, states, statistics, delta, sums)

    def query_side(self, d_query: Tensor) -> None:
        """Write dq and D."""
        problem, queries = self.problem, self.problem.queries
        if d_query.numel() == 0:
            return
        programs, options = problem.launch("causal_query_gradient")
        launch_kernel(
            _causal_query_gradient_kernel,
            queries.token_planes * programs,
            *problem.tensors(),
            self.states[:3],
            self.states.jumps,
            rows_of(self.results.output),
            rows_of(self.upstream.output),
            self.statistics,
            self.delta,
            rows_of(d_query),
            None if self.sums is None else self.sums[:2],
            *problem.sizes(),
            *queries.scales,
            queries.chain,
            **options,
        )

    def received(self, d_initial: FavorState | None) -> tuple[Tensor, Tensor]:
        """Return A and R behind each segment, like the states, and fill the gradient of the initial state."""
        problem, queries, values = self.problem, self.problem.queries, self.states.values
        launch = queries.launch("received_walk")
        received = queries.empty(torch.float32, *values.shape[:-1]), torch.empty_like(values)
        each, splits = problem.split(launch.tiles)
        parts = problem.empty_parts(splits)
        in_and_out = problem.inputs.initial, d_initial, self.results.state, self.upstream.state
        states = [None if x is None else contiguous(x) for x in in_and_out]
        for written, walked in [(None, splits - 1)] * (parts is not None) + [(received, splits)]:
            launch_kernel(
                _received_walk_kernel,
                queries.batch_heads * walked * launch.tiles,
                rows_of(problem.inputs.query),
                rows_of(self.upstream.output),
                rows_of(problem.inputs.space.projection),
                queries.log_weight,
                self.statistics,
                self.delta,
                self.states[:3],
                parts,
                written,
                *states,
                queries.length,
                problem.segment_length,
                problem.segments,
                each,
                splits,
                queries.key_heads,
                queries.group,
                queries.batch_heads,
                queries.scales[0],
                BLOCK_N=launch.tokens,
                **problem.options(launch),
            )
        return received

    def key_side(self, received: tuple[Tensor, Tensor], d_key: Tensor, d_value: Tensor, d_mask: Tensor | None) -> None:
        """Write dk, dv and the gradient of a key bias."""
        problem, queries = self.problem, self.problem.queries
        if queries.length == 0:
            return
        programs, options = problem.launch("causal_key_gradient")
        launch_kernel(
            _causal_key_gradient_kernel,
            queries.batch_heads * programs,
            *problem.tensors(),
            self.states[:3],
            self.states.jumps,
            received,
            rows_of(self.upstream.output),
            self.statistics,
            self.delta,
            rows_of(d_key),
            rows_of(d_value),
            mask_of(d_mask),
            None if self.sums is None else self.sums[2],
            *problem.sizes(),
            *queries.scales,
            queries.chain,
            **options,
        )

    def parameter_sums(self, d_initial: FavorState | None) -> tuple[Tensor, Tensor]:
        """Return the gradients of the projection (b, h, m, d) and of the log-weight (b, h, m), before the scale.

        The log-weight enters the logits of queries and the state of all keys; of the initial state it is a part.
        """
        assert self.sums is not None
        over = (self.problem.segments, *self.problem.state_shape[:2], -1)  # the rest: query heads and tiles
        of_queries, log_weight, of_keys = (x.view(*over, *x.shape[1:]).sum((0, 3)) for x in self.sums)
        if self.upstream.state is not None:
            unseen = self.results.state.log_normalizer == -math.inf
            log_weight = log_weight + self.upstream.state.log_normalizer.masked_fill(unseen, 0.0)
        if d_initial is not None:
            log_weight = log_weight - d_initial.log_normalizer
        return of_queries + of_keys, log_weight
