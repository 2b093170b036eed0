"""Causal FAVOR attention on the GPU, backward: allocates and launches, for `operators.py`.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features.

    launches, after those of the states (`favor_causal_triton.py`): _causal_query_gradient_kernel,
    [_received_walk_kernel for the sums of splits,] _received_walk_kernel, _causal_key_gradient_kernel
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...dispatch.launch import launch_kernel
from ..types import CausalGradients, CausalSummary, CausalTensors, FeatureSpace
from .causal import (
    CausalProblem,
    StatePair,
    prefix_states,
)
from .causal_backward_kernels import (
    _causal_key_gradient_kernel,
    _causal_query_gradient_kernel,
    _received_walk_kernel,
)
from .full import (
    contiguous_pair,
)
from .full_backward import no_parameters, to_parameters
from .problem import ceil_div, logit_scales
from .tiles import rows_of


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
    query, key, value, _, initial = tensors
    problem = CausalProblem(tensors, space, impl, tokens_per_step)
    d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    d_initial = None
    if initial is not None:
        d_initial = initial[0].new_empty(initial[0].shape), initial[1].new_empty(initial[1].shape)
    if problem.query_planes == 0:
        return CausalGradients(d_query, d_key, d_value, d_initial, no_parameters(results.softmax))
    backward = _CausalBackward(problem, results, d_output, parameter_gradients)
    backward.query_side(d_query)
    received = backward.received(d_state, d_initial)
    backward.key_side(received, d_key, d_value)
    parameters = no_parameters(results.softmax)
    if parameter_gradients:
        parameters = to_parameters(*backward.parameter_sums(d_state, d_initial), space)
    return CausalGradients(d_query, d_key, d_value, d_initial, parameters)


class _CausalBackward:
    """The launches of one backward, and what passes between them."""

    def __init__(
        self, problem: CausalProblem, results: CausalSummary, d_output: Tensor, parameter_gradients: bool
    ) -> None:
        self.problem, self.results, self.d_output = problem, results, d_output
        self.states = prefix_states(problem, None)
        self.statistics = tuple(results.softmax.unbind())
        self.delta = torch.empty_like(results.softmax[0])
        self.chain = math.sqrt(problem.space.scale)
        self.parameters: tuple[Tensor, ...] | None = None
        if parameter_gradients:  # sums of each program: a program adds to its own once a part
            m, d = problem.space.projection.shape[-2:]
            queries = problem.query_planes * self._programs("causal_query_gradient")
            keys = problem.batch_heads * self._programs("causal_key_gradient")
            shapes = (queries, m, d), (queries, m), (keys, m, d)
            self.parameters = tuple(torch.zeros(x, dtype=torch.float32, device=d_output.device) for x in shapes)

    def _programs(self, kernel: str) -> int:
        """Return the programs of a kernel over segments for one head."""
        problem = self.problem
        return problem.segments * ceil_div(problem.segment_length, problem.segment_options(kernel)["BLOCK_C"])

    def query_side(self, d_query: Tensor) -> None:
        """Write dq and D."""
        problem, states = self.problem, self.states
        if d_query.numel() == 0:
            return
        launch_kernel(
            _causal_query_gradient_kernel,
            problem.query_planes * self._programs("causal_query_gradient"),
            *problem.inputs(),
            states[:3],
            states.jumps,
            rows_of(self.results.output),
            rows_of(self.d_output),
            self.statistics,
            self.delta,
            rows_of(d_query),
            None if self.parameters is None else self.parameters[:2],
            *problem.sizes(),
            *logit_scales(problem.space),
            self.chain,
            **problem.segment_options("causal_query_gradient"),
        )

    def received(self, d_state: StatePair | None, d_initial: StatePair | None) -> tuple[Tensor, Tensor]:
        """Return R and A behind each segment, like the states, and fill the gradient of the initial state."""
        problem, states = self.problem, self.states.value
        launch = problem.launch("received_walk")
        m, e, batch_heads = problem.num_features, problem.value_dim, problem.batch_heads
        received = torch.empty_like(states), torch.empty((len(states), m), dtype=torch.float32, device=states.device)
        each, splits = problem.split(launch.tiles)
        parts = None
        if splits > 1:
            shapes = (m, e), (m,), (m,)
            parts = tuple(
                torch.empty((splits * batch_heads, *x), dtype=torch.float32, device=states.device) for x in shapes
            )
        log_normalizer, state_value = self.results[1:3]
        states_in_and_out = (problem.tensors.initial, d_initial, (log_normalizer, state_value), d_state)
        pairs = [contiguous_pair(x) for x in states_in_and_out]
        for written, walked in [(None, splits - 1)] * (parts is not None) + [(received, splits)]:
            launch_kernel(
                _received_walk_kernel,
                batch_heads * walked * launch.tiles,
                rows_of(problem.tensors.query),
                rows_of(self.d_output),
                rows_of(problem.space.projection),
                problem.log_weight,
                self.statistics,
                self.delta,
                self.states[:3],
                parts,
                written,
                *pairs,
                problem.length,
                problem.segment_length,
                problem.segments,
                each,
                splits,
                problem.heads,
                problem.query_heads // problem.heads,
                batch_heads,
                logit_scales(problem.space)[0],
                BLOCK_N=launch.tokens,
                **problem.options(launch),
            )
        return received

    def key_side(self, received: tuple[Tensor, Tensor], d_key: Tensor, d_value: Tensor) -> None:
        """Write dk and dv."""
        problem = self.problem
        if problem.length == 0:
            return
        launch_kernel(
            _causal_key_gradient_kernel,
            problem.batch_heads * self._programs("causal_key_gradient"),
            *problem.inputs(),
            self.states[:3],
            self.states.jumps,
            received,
            rows_of(self.d_output),
            self.statistics,
            self.delta,
            rows_of(d_key),
            rows_of(d_value),
            None if self.parameters is None else self.parameters[2],
            *problem.sizes(),
            *logit_scales(problem.space),
            self.chain,
            **problem.segment_options("causal_key_gradient"),
        )

    def parameter_sums(self, d_state: StatePair | None, d_initial: StatePair | None) -> tuple[Tensor, Tensor]:
        """Return the gradients of the projection (b, h, m, d) and of the log-weight (b, h, m), before the scale.

        The log-weight enters the logits of queries and the state of all keys; of the initial state it is a part.
        """
        assert self.parameters is not None
        problem, (of_queries, log_weight, of_keys) = self.problem, self.parameters
        over = (problem.segments, problem.batch, problem.heads, -1)  # the rest: query heads and tiles
        of_queries, log_weight, of_keys = (
            x.view(*over, *x.shape[1:]).sum((0, 3)) for x in (of_queries, log_weight, of_keys)
        )
        if d_state is not None:
            log_weight = log_weight + d_state[0].masked_fill(self.results.log_normalizer == -math.inf, 0.0)
        if d_initial is not None:
            log_weight = log_weight - d_initial[0]
        return of_queries + of_keys, log_weight
