"""FAVOR attention as torch.library operators `favorcast::*`, each with its backward.

This is the boundary that autograd, torch.compile, torch.export, autocast and vmap see. An operator takes `impl`,
already resolved by the public functions, and hands over to that implementation: the torch reference, or the GPU
kernels, which machines without triton never import. Schemas and derivatives follow from the NamedTuples of `types.py`,
see `dispatch/family.py`.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch.family import Family
from .definition import attend_definition, causal_definition, joined_definition, summarize_definition
from .reference.blocks import accumulation_dtype
from .reference.causal import causal_backward_reference, causal_reference
from .reference.full import (
    attend_backward_reference,
    attend_reference,
    full_backward_reference,
    full_reference,
    summarize_backward_reference,
    summarize_reference,
)
from .types import (
    AttendGradients,
    AttendInputs,
    AttendResults,
    AttendUpstream,
    CausalGradients,
    CausalInputs,
    CausalResults,
    CausalUpstream,
    FavorState,
    FullGradients,
    FullInputs,
    FullResults,
    SummarizeGradients,
    SummarizeInputs,
    SummarizeResults,
    attention_output,
)


def _summarize(inputs: SummarizeInputs) -> SummarizeResults:
    if inputs.impl == "reference":
        return summarize_reference(inputs)
    from .triton.full import summarize_triton

    return summarize_triton(inputs)


def _summarize_backward(
    d_state: FavorState, inputs: SummarizeInputs, results: SummarizeResults, parameter_gradients: bool
) -> SummarizeGradients:
    if inputs.impl == "reference":
        return summarize_backward_reference(d_state, inputs, results, parameter_gradients)
    from .triton.full_backward import summarize_backward_triton

    return summarize_backward_triton(d_state, inputs, results, parameter_gradients)


def _fake_summarize(inputs: SummarizeInputs | CausalInputs) -> SummarizeResults:
    """Allocate the state, maximum and sum as the implementation does."""
    key, value, projection = inputs.key, inputs.value, inputs.space.projection
    dtype = accumulation_dtype(key, value, projection) if inputs.impl == "reference" else torch.float32
    shape = (*key.shape[:2], projection.shape[-2])
    state = FavorState(*(key.new_empty(x, dtype=dtype) for x in (shape, (*shape, value.shape[-1]))))
    return SummarizeResults(state, key.new_empty((2, *shape), dtype=dtype))


def _define_summarize(inputs: SummarizeInputs) -> tuple[Tensor, Tensor]:
    return summarize_definition(inputs.key, inputs.value, inputs.mask, inputs.space)


summarize_op = Family(
    "summarize",
    inputs=SummarizeInputs,
    results=SummarizeResults,
    upstream=FavorState,
    gradients=SummarizeGradients,
    parameters="space",
    forward=_summarize,
    backward=_summarize_backward,
    fake=_fake_summarize,
    define=_define_summarize,
)


def _attend(inputs: AttendInputs) -> AttendResults:
    if inputs.impl == "reference":
        return attend_reference(inputs)
    from .triton.full import attend_triton

    return attend_triton(inputs)


def _attend_backward(
    upstream: AttendUpstream, inputs: AttendInputs, results: AttendResults, parameter_gradients: bool
) -> AttendGradients:
    if inputs.impl == "reference":
        return attend_backward_reference(upstream.output, inputs, results, parameter_gradients)
    from .triton.full_backward import attend_backward_triton

    return attend_backward_triton(upstream.output, inputs, results, parameter_gradients)


def _fake_attend(inputs: AttendInputs) -> AttendResults:
    output = attention_output(inputs.query, inputs.state.value.shape[-1])
    if inputs.impl == "reference":
        return AttendResults(output, inputs.state.value.new_empty(0))
    from .triton.full import empty_statistics

    return AttendResults(output, empty_statistics(inputs.query))


def _define_attend(inputs: AttendInputs) -> tuple[Tensor]:
    return (attend_definition(inputs.query, *inputs.state, inputs.space).to(inputs.query.dtype),)


attend_op = Family(
    "attend",
    inputs=AttendInputs,
    results=AttendResults,
    upstream=AttendUpstream,
    gradients=AttendGradients,
    parameters="space",
    forward=_attend,
    backward=_attend_backward,
    fake=_fake_attend,
    define=_define_attend,
)


def _full(inputs: FullInputs) -> FullResults:
    if inputs.impl == "reference":
        return full_reference(inputs)
    from .triton.full import full_triton

    return full_triton(inputs)


def _full_backward(
    upstream: AttendUpstream, inputs: FullInputs, results: FullResults, parameter_gradients: bool
) -> FullGradients:
    if inputs.impl == "reference":
        return full_backward_reference(upstream.output, inputs, results, parameter_gradients)
    from .triton.full_backward import full_backward_triton

    return full_backward_triton(upstream.output, inputs, results, parameter_gradients)


def _fake_full(inputs: FullInputs) -> FullResults:
    if inputs.impl == "reference":
        output = attention_output(inputs.query, inputs.value.shape[-1])
        hop = _fake_summarize(SummarizeInputs(*inputs[1:]))
        statistics, projection = (hop.statistics.new_empty(0) for _ in range(2))
        return FullResults(output, statistics, *hop, projection)
    from .triton.full import empty_full

    return empty_full(inputs)


def _define_full(inputs: FullInputs) -> tuple[Tensor]:
    state = summarize_definition(inputs.key, inputs.value, inputs.mask, inputs.space)
    return (attend_definition(inputs.query, *state, inputs.space).to(inputs.query.dtype),)


full_op = Family(
    "full_attention",
    inputs=FullInputs,
    results=FullResults,
    upstream=AttendUpstream,
    gradients=FullGradients,
    parameters="space",
    forward=_full,
    backward=_full_backward,
    fake=_fake_full,
    define=_define_full,
)


def _causal(inputs: CausalInputs) -> CausalResults:
    if inputs.impl == "reference":
        return causal_reference(inputs)
    from .triton.causal import causal_triton

    return causal_triton(inputs)


def _causal_backward(
    upstream: CausalUpstream, inputs: CausalInputs, results: CausalResults, parameter_gradients: bool
) -> CausalGradients:
    if inputs.impl == "reference":
        return causal_backward_reference(upstream, inputs, results, parameter_gradients)
    from .triton.causal_backward import causal_backward_triton

    return causal_backward_triton(upstream, inputs, results, parameter_gradients)


def _fake_causal(inputs: CausalInputs) -> CausalResults:
    state, statistics = _fake_summarize(inputs)
    output = attention_output(inputs.query, inputs.value.shape[-1])
    return CausalResults(output, state, statistics.new_empty((2, *inputs.query.shape[:-1])))


def _define_causal(inputs: CausalInputs) -> tuple[Tensor, Tensor, Tensor]:
    state = summarize_definition(inputs.key, inputs.value, inputs.mask, inputs.space)
    if inputs.initial is not None:
        state = joined_definition(inputs.initial, state)
    tensors = inputs.query, inputs.key, inputs.value, inputs.mask, inputs.initial
    output = causal_definition(*tensors, inputs.space, inputs.tokens_per_step)
    return output.to(inputs.query.dtype), state.log_normalizer, state.value


causal_op = Family(
    "causal_attention",
    inputs=CausalInputs,
    results=CausalResults,
    upstream=CausalUpstream,
    gradients=CausalGradients,
    parameters="space",
    forward=_causal,
    backward=_causal_backward,
    fake=_fake_causal,
    define=_define_causal,
)
