"""FAVOR attention as torch.library operators `favorcast::*`, each with its backward.

This is the boundary that autograd, torch.compile, torch.export, autocast and vmap see. An operator takes `impl`,
already resolved by the public functions, and hands over to that schedule: the torch reference, or the GPU kernels.
Schemas and derivatives follow from the NamedTuples, see `dispatch/family.py`.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dispatch.family import Family
from .definition import attend_definition, causal_definition, joined_definition, summarize_definition
from .reference.blocks import accumulation_dtype
from .reference.causal import causal_backward_reference, causal_reference
from .reference.full import (
    attend_backward_reference,
    attend_reference,
    summarize_backward_reference,
    summarize_reference,
)
from .types import CausalSummary, CausalTensors, FeatureSpace, attention_output

PARAMETERS = ("projection", "log_weight")


@cache
def _triton(module: str) -> Any:
    """Import a file of the GPU schedule on first use: machines without triton never do."""
    return import_module(f".triton.{module}", __package__)


def _sum_dtype(impl: str, *tensors: Tensor) -> torch.dtype:
    return torch.float32 if impl != "reference" else accumulation_dtype(*tensors)


def _fake_state(key: Tensor, value: Tensor, projection: Tensor, impl: str) -> SummarizeResults:
    """Return L, V, max and sum as the schedule allocates them."""
    shape = (*key.shape[:2], projection.shape[-2])
    dtype = _sum_dtype(impl, key, value, projection)
    log_normalizer, row_max, row_sum = (key.new_empty(shape, dtype=dtype) for _ in range(3))
    state_value = key.new_empty((*shape, value.shape[-1]), dtype=dtype)
    return SummarizeResults(log_normalizer, state_value, row_max, row_sum)


def _fake_backward(gradients: Any, contiguous: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Return the shapes of a backward operator: gradients like their inputs, empty where there is none or none wanted.

    Args:
        gradients: the class of its results.
        contiguous: inputs whose gradients do not take over their layout.
    """

    def fake(upstream: Any, inputs: Any, results: Any, parameter_gradients: bool) -> Any:
        sums = _sum_dtype(inputs.impl, *(x for x in inputs if isinstance(x, Tensor)), inputs.space.projection)

        def gradient(field: str) -> Tensor:
            x = getattr(inputs.space if field in PARAMETERS else inputs, field)
            if x is None or (field in PARAMETERS and not parameter_gradients):
                return upstream[0].new_empty(0, dtype=sums)
            return x.new_empty(x.shape) if field in (*PARAMETERS, *contiguous) else torch.empty_like(x)

        return gradients(*(gradient(field) for field in gradients._fields))

    return fake


class SummarizeInputs(NamedTuple):
    """Keys (b, h, s, d), values (b, h, s, e), padding (b, s), the feature space, and the schedule."""

    key: Tensor
    value: Tensor
    mask: Tensor | None
    space: FeatureSpace
    impl: str


class SummarizeResults(NamedTuple):
    """The state (L, V), and the maximum and the sum (b, h, m) of its softmax, for the backward."""

    log_normalizer: Tensor
    state_value: Tensor
    row_max: Tensor
    row_sum: Tensor


class SummarizeUpstream(NamedTuple):
    """Gradients of the state."""

    log_normalizer: Tensor
    state_value: Tensor


class SummarizeGradients(NamedTuple):
    """Gradients of the inputs of these names."""

    key: Tensor
    value: Tensor
    projection: Tensor
    log_weight: Tensor


def _summarize(inputs: SummarizeInputs) -> SummarizeResults:
    tensors, space = (inputs.key, inputs.value, inputs.mask), inputs.space
    if inputs.impl == "reference":
        return SummarizeResults(*summarize_reference(*tensors, space))
    return SummarizeResults(*_triton("full").summarize_triton(*tensors, space, inputs.impl))


def _summarize_backward(
    upstream: SummarizeUpstream, inputs: SummarizeInputs, results: SummarizeResults, parameter_gradients: bool
) -> SummarizeGradients:
    tensors, space, d_state = (inputs.key, inputs.value, inputs.mask), inputs.space, (upstream[0], upstream[1])
    kept = (results.state_value, results.row_max, results.row_sum)
    if inputs.impl == "reference":
        found = summarize_backward_reference(d_state, *tensors, kept, space, parameter_gradients)
    else:
        backward = _triton("full_backward").summarize_backward_triton
        found = backward(d_state, *tensors, space, inputs.impl, kept, parameter_gradients)
    d_key, d_value, d_parameters = found
    return SummarizeGradients(d_key, d_value, *d_parameters)


def _define_summarize(inputs: SummarizeInputs) -> tuple[Tensor, Tensor]:
    return summarize_definition(inputs.key, inputs.value, inputs.mask, inputs.space)


summarize_op = Family(
    "summarize",
    inputs=SummarizeInputs,
    results=SummarizeResults,
    upstream=SummarizeUpstream,
    gradients=SummarizeGradients,
    parameters=PARAMETERS,
    forward=_summarize,
    backward=_summarize_backward,
    fake=lambda inputs: _fake_state(inputs.key, inputs.value, inputs.space.projection, inputs.impl),
    fake_backward=_fake_backward(SummarizeGradients),
    define=_define_summarize,
)


class AttendInputs(NamedTuple):
    """Queries (b, h g, t, d), a state ((b, h, m), (b, h, m, e)), the feature space, and the schedule."""

    query: Tensor
    log_normalizer: Tensor
    state_value: Tensor
    space: FeatureSpace
    impl: str


class AttendResults(NamedTuple):
    """The output (b, h g, t, e), and the statistics of its softmax, empty for the reference."""

    output: Tensor
    statistics: Tensor


class AttendUpstream(NamedTuple):
    """Gradient of the output."""

    output: Tensor


class AttendGradients(NamedTuple):
    """Gradients of the inputs of these names."""

    query: Tensor
    log_normalizer: Tensor
    state_value: Tensor
    projection: Tensor


def _attend(inputs: AttendInputs) -> AttendResults:
    state, space = (inputs.log_normalizer, inputs.state_value), inputs.space
    if inputs.impl == "reference":
        return AttendResults(attend_reference(inputs.query, state, space), inputs.log_normalizer.new_empty(0))
    return AttendResults(*_triton("full").attend_triton(inputs.query, state, space, inputs.impl))


def _attend_backward(
    upstream: AttendUpstream, inputs: AttendInputs, results: AttendResults, parameter_gradients: bool
) -> AttendGradients:
    state, space = (inputs.log_normalizer, inputs.state_value), inputs.space
    if inputs.impl == "reference":
        found = attend_backward_reference(
            upstream.output, inputs.query, results.output, state, space, parameter_gradients
        )
    else:
        found = _triton("full_backward").attend_backward_triton(
            upstream.output, inputs.query, state, space, inputs.impl, tuple(results), parameter_gradients
        )
    d_query, d_log_normalizer, d_state_value, d_parameters = found
    return AttendGradients(d_query, d_log_normalizer, d_state_value, d_parameters.projection)


def _fake_attend(inputs: AttendInputs) -> AttendResults:
    is_reference = inputs.impl == "reference"
    statistics = inputs.log_normalizer.new_empty(0) if is_reference else _triton("full").empty_statistics(inputs.query)
    return AttendResults(attention_output(inputs.query, inputs.state_value.shape[-1]), statistics)


def _define_attend(inputs: AttendInputs) -> tuple[Tensor]:
    output = attend_definition(inputs.query, inputs.log_normalizer, inputs.state_value, inputs.space)
    return (output.to(inputs.query.dtype),)


attend_op = Family(
    "attend",
    inputs=AttendInputs,
    results=AttendResults,
    upstream=AttendUpstream,
    gradients=AttendGradients,
    parameters=("projection",),
    forward=_attend,
    backward=_attend_backward,
    fake=_fake_attend,
    fake_backward=_fake_backward(AttendGradients, contiguous=("log_normalizer", "state_value")),
    define=_define_attend,
)


class FullInputs(NamedTuple):
    """Queries (b, h g, t, d), keys and values of `SummarizeInputs`, the feature space, and the schedule."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    space: FeatureSpace
    impl: str


class FullResults(NamedTuple):
    """The output (b, h g, t, e), and for the backward the statistics of its softmax, L with the maximum and the sum of
    its softmax (3, b, h, m), V, and V as the schedule multiplies it."""

    output: Tensor
    statistics: Tensor
    normalizers: Tensor
    state_value: Tensor
    operand: Tensor


class FullGradients(NamedTuple):
    """Gradients of the inputs of these names."""

    query: Tensor
    key: Tensor
    value: Tensor
    projection: Tensor
    log_weight: Tensor


def _full(inputs: FullInputs) -> FullResults:
    tensors, space = (inputs.key, inputs.value, inputs.mask), inputs.space
    if inputs.impl != "reference":
        return FullResults(*_triton("full").full_attention_triton(inputs.query, *tensors, space, inputs.impl))
    state = summarize_reference(*tensors, space)
    normalizers = torch.stack((state.log_normalizer, state.highest, state.total))
    output = attend_reference(inputs.query, state[:2], space)
    return FullResults(output, normalizers.new_empty(0), normalizers, state.value, normalizers.new_empty(0))


def _full_backward(
    upstream: AttendUpstream, inputs: FullInputs, results: FullResults, parameter_gradients: bool
) -> FullGradients:
    tensors, space = (inputs.key, inputs.value, inputs.mask), inputs.space
    if inputs.impl != "reference":
        *d_inputs, d_parameters = _triton("full_backward").full_attention_backward_triton(
            upstream.output, inputs.query, *tensors, space, inputs.impl, tuple(results), parameter_gradients
        )
        return FullGradients(*d_inputs, *d_parameters)
    log_normalizer, row_max, row_sum = results.normalizers.unbind()
    state = (log_normalizer, results.state_value)
    d_query, d_log_normalizer, d_state_value, of_queries = attend_backward_reference(
        upstream.output, inputs.query, results.output, state, space, parameter_gradients
    )
    kept = (results.state_value, row_max, row_sum)
    d_key, d_value, of_keys = summarize_backward_reference(
        (d_log_normalizer, d_state_value), *tensors, kept, space, parameter_gradients
    )
    return FullGradients(d_query, d_key, d_value, of_keys.projection + of_queries.projection, of_keys.log_weight)


def _fake_full(inputs: FullInputs) -> FullResults:
    output = attention_output(inputs.query, inputs.value.shape[-1])
    if inputs.impl != "reference":
        auxiliaries = _triton("full").full_auxiliaries
        return FullResults(output, *auxiliaries(inputs.query, inputs.key, inputs.value, inputs.space))
    log_normalizer, state_value, *_ = _fake_state(inputs.key, inputs.value, inputs.space.projection, inputs.impl)
    statistics, operand = log_normalizer.new_empty(0), log_normalizer.new_empty(0)
    return FullResults(output, statistics, log_normalizer.new_empty((3, *log_normalizer.shape)), state_value, operand)


def _define_full(inputs: FullInputs) -> tuple[Tensor]:
    space = inputs.space
    state = summarize_definition(inputs.key, inputs.value, inputs.mask, space)
    return (attend_definition(inputs.query, *state, space).to(inputs.query.dtype),)


full_op = Family(
    "full_attention",
    inputs=FullInputs,
    results=FullResults,
    upstream=AttendUpstream,
    gradients=FullGradients,
    parameters=PARAMETERS,
    forward=_full,
    backward=_full_backward,
    fake=_fake_full,
    fake_backward=_fake_backward(FullGradients),
    define=_define_full,
)


class CausalInputs(NamedTuple):
    """Tensors of `FullInputs`, the state of earlier keys, the feature space, the schedule, and tokens per step."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    initial_log_normalizer: Tensor | None
    initial_value: Tensor | None
    space: FeatureSpace
    impl: str
    tokens_per_step: int


class CausalUpstream(NamedTuple):
    """Gradients of the output and, where it goes on, of the state of all keys."""

    output: Tensor
    log_normalizer: Tensor | None
    state_value: Tensor | None


class CausalOperatorGradients(NamedTuple):
    """Gradients of the inputs of these names."""

    query: Tensor
    key: Tensor
    value: Tensor
    initial_log_normalizer: Tensor
    initial_value: Tensor
    projection: Tensor
    log_weight: Tensor


def _initial_of(inputs: CausalInputs) -> tuple[Tensor, Tensor] | None:
    if inputs.initial_log_normalizer is None or inputs.initial_value is None:
        return None
    return inputs.initial_log_normalizer, inputs.initial_value


def _causal_tensors(inputs: CausalInputs) -> CausalTensors:
    return CausalTensors(inputs.query, inputs.key, inputs.value, inputs.mask, _initial_of(inputs))


def _causal(inputs: CausalInputs) -> CausalSummary:
    tensors, space = _causal_tensors(inputs), inputs.space
    if inputs.impl == "reference":
        return causal_reference(tensors, space, inputs.tokens_per_step)
    return _triton("causal").causal_attention_triton(tensors, space, inputs.impl, inputs.tokens_per_step)


def _causal_backward(
    upstream: CausalUpstream, inputs: CausalInputs, results: CausalSummary, parameter_gradients: bool
) -> CausalOperatorGradients:
    d_state = None if upstream.log_normalizer is None else (upstream.log_normalizer, upstream.state_value)
    arguments: Any = (
        *(upstream.output, d_state, _causal_tensors(inputs), results, inputs.space),
        *(inputs.tokens_per_step, parameter_gradients),
    )
    if inputs.impl == "reference":
        found = causal_backward_reference(*arguments)
    else:
        found = _triton("causal_backward").causal_backward_triton(*arguments, inputs.impl)
    d_initial = found.initial or (results.softmax.new_empty(0), results.softmax.new_empty(0))
    return CausalOperatorGradients(found.query, found.key, found.value, *d_initial, *found.parameters)


def _fake_causal(inputs: CausalInputs) -> CausalSummary:
    log_normalizer, state_value, *_ = _fake_state(inputs.key, inputs.value, inputs.space.projection, inputs.impl)
    output = attention_output(inputs.query, inputs.value.shape[-1])
    softmax = log_normalizer.new_empty((2, *inputs.query.shape[:-1]))
    return CausalSummary(output, log_normalizer, state_value, softmax)


def _define_causal(inputs: CausalInputs) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, mask, initial = _causal_tensors(inputs)
    space = inputs.space
    state = summarize_definition(key, value, mask, space)
    if initial is not None:
        state = joined_definition(initial, state)
    output = causal_definition(query, key, value, mask, initial, space, inputs.tokens_per_step)
    return output.to(query.dtype), *state


causal_op = Family(
    "causal_attention",
    inputs=CausalInputs,
    results=CausalSummary,
    upstream=CausalUpstream,
    gradients=CausalOperatorGradients,
    parameters=PARAMETERS,
    forward=_causal,
    backward=_causal_backward,
    fake=_fake_causal,
    fake_backward=_fake_backward(CausalOperatorGradients),
    define=_define_causal,
)
