"""FAVOR attention as torch.library operators: schema, implementation and shapes of `favorcast::*`.

This is the boundary that autograd, torch.compile, torch.export, autocast and vmap see. An operator takes `impl`,
already resolved by the public functions, and hands over to that schedule: the torch reference, or the GPU kernels.
Backward passes are operators too; `favor_autograd.py` registers the gradients of all of them.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..dispatch.operator import Operator, vmap_by_loop
from .reference.blocks import (
    accumulation_dtype,
)
from .reference.causal import (
    causal_backward_reference,
    causal_reference,
)
from .reference.full import (
    attend_backward_reference,
    attend_reference,
    summarize_backward_reference,
    summarize_reference,
)
from .types import CausalSummary, CausalTensors, FeatureSpace, attention_output

_OPTIONS = "Tensor projection, Tensor? log_weight, float scale, str feature_map, bool paired, str impl"

INPUTS = {
    "summarize": f"Tensor key, Tensor value, Tensor? mask, {_OPTIONS}",
    "attend": f"Tensor query, Tensor log_normalizer, Tensor state_value, {_OPTIONS}",
    "full_attention": f"Tensor query, Tensor key, Tensor value, Tensor? mask, {_OPTIONS}",
    "causal_attention": "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? initial_log_normalizer, "
    f"Tensor? initial_value, {_OPTIONS}, int tokens_per_step",
}
"""Inputs of the forward operators; `_OPTIONS` are a FeatureSpace and the schedule."""

SCHEMAS = {
    "summarize": f"({INPUTS['summarize']}) -> (Tensor, Tensor, Tensor, Tensor)",
    "summarize_backward": f"(Tensor d_log_normalizer, Tensor d_state_value, {INPUTS['summarize']}, "
    "Tensor computed_value, Tensor row_max, Tensor row_sum, bool parameter_gradients) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "attend": f"({INPUTS['attend']}) -> (Tensor, Tensor)",
    "attend_backward": f"(Tensor d_output, {INPUTS['attend']}, Tensor output, Tensor statistics, "
    "bool parameter_gradients) -> (Tensor, Tensor, Tensor, Tensor)",
    "full_attention": f"({INPUTS['full_attention']}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "full_attention_backward": f"(Tensor d_output, {INPUTS['full_attention']}, Tensor output, Tensor statistics, "
    "Tensor normalizers, Tensor state_value, Tensor operand, bool parameter_gradients) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "causal_attention": f"({INPUTS['causal_attention']}) -> (Tensor, Tensor, Tensor, Tensor)",
    "causal_attention_backward": "(Tensor d_output, Tensor? d_log_normalizer, Tensor? d_state_value, "
    f"{INPUTS['causal_attention']}, Tensor output, Tensor final_log_normalizer, Tensor final_value, Tensor softmax, "
    "bool parameter_gradients) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
}

OPTION_COUNT = 6


def _options(arguments: tuple[Any, ...]) -> tuple[FeatureSpace, str, tuple[Any, ...]]:
    """Split what follows an operator's tensors into the feature space, the schedule, and the rest."""
    *space, impl = arguments[:OPTION_COUNT]
    return FeatureSpace(*space), impl, arguments[OPTION_COUNT:]


@cache
def _triton() -> Any:
    """Import the GPU schedule on first use: machines without triton never do."""
    from .triton import full as favor_attention_triton

    return favor_attention_triton


@cache
def _triton_backward() -> Any:
    from .triton import full_backward as favor_backward_triton

    return favor_backward_triton


@cache
def _triton_causal() -> Any:
    from .triton import causal as favor_causal_triton

    return favor_causal_triton


@cache
def _triton_causal_backward() -> Any:
    from .triton import causal_backward as favor_causal_backward_triton

    return favor_causal_backward_triton


def _summarize(key, value, mask, *arguments):
    space, impl, _ = _options(arguments)
    if impl == "reference":
        return summarize_reference(key, value, mask, space)
    return _triton().summarize_triton(key, value, mask, space, impl)


def _summarize_backward(d_log_normalizer, d_state_value, key, value, mask, *arguments):
    space, impl, (*results, parameter_gradients) = _options(arguments)
    if impl == "reference":
        d_key, d_value, d_parameters = summarize_backward_reference(
            (d_log_normalizer, d_state_value), key, value, mask, tuple(results), space, parameter_gradients
        )
    else:
        d_key, d_value, d_parameters = _triton_backward().summarize_backward_triton(
            (d_log_normalizer, d_state_value), key, value, mask, space, impl, tuple(results), parameter_gradients
        )
    return d_key, d_value, *d_parameters


def _attend(query, log_normalizer, state_value, *arguments):
    space, impl, _ = _options(arguments)
    if impl == "reference":
        return attend_reference(query, (log_normalizer, state_value), space), log_normalizer.new_empty(0)
    return _triton().attend_triton(query, (log_normalizer, state_value), space, impl)


def _attend_backward(d_output, query, log_normalizer, state_value, *arguments):
    space, impl, (output, statistics, parameter_gradients) = _options(arguments)
    state = (log_normalizer, state_value)
    if impl == "reference":
        *d_inputs, d_parameters = attend_backward_reference(d_output, query, output, state, space, parameter_gradients)
    else:
        *d_inputs, d_parameters = _triton_backward().attend_backward_triton(
            d_output, query, state, space, impl, (output, statistics), parameter_gradients
        )
    return *d_inputs, d_parameters.projection


def _full(query, key, value, mask, *arguments):
    space, impl, _ = _options(arguments)
    if impl == "reference":
        state = summarize_reference(key, value, mask, space)
        normalizers = torch.stack((state.log_normalizer, state.highest, state.total))
        statistics, operand = normalizers.new_empty(0), normalizers.new_empty(0)
        return attend_reference(query, state[:2], space), statistics, normalizers, state.value, operand
    return _triton().full_attention_triton(query, key, value, mask, space, impl)


def _full_backward(d_output, query, key, value, mask, *arguments):
    space, impl, (*results, parameter_gradients) = _options(arguments)
    if impl != "reference":
        *d_inputs, d_parameters = _triton_backward().full_attention_backward_triton(
            d_output, query, key, value, mask, space, impl, tuple(results), parameter_gradients
        )
        return *d_inputs, *d_parameters
    output, _, normalizers, state_value, _ = results
    log_normalizer, row_max, row_sum = normalizers.unbind()
    d_query, d_log_normalizer, d_state_value, of_queries = attend_backward_reference(
        d_output, query, output, (log_normalizer, state_value), space, parameter_gradients
    )
    d_key, d_value, of_keys = summarize_backward_reference(
        (d_log_normalizer, d_state_value), key, value, mask, (state_value, row_max, row_sum), space, parameter_gradients
    )
    d_projection = of_keys.projection + of_queries.projection
    return d_query, d_key, d_value, d_projection, of_keys.log_weight


def _causal_tensors(query, key, value, mask, initial_log_normalizer, initial_value):
    initial = None if initial_log_normalizer is None else (initial_log_normalizer, initial_value)
    return CausalTensors(query, key, value, mask, initial)


def _causal(*arguments):
    tensors = _causal_tensors(*arguments[:6])
    space, impl, (tokens_per_step,) = _options(arguments[6:])
    if impl == "reference":
        return causal_reference(tensors, space, tokens_per_step)
    return _triton_causal().causal_attention_triton(tensors, space, impl, tokens_per_step)


def _causal_backward(d_output, d_log_normalizer, d_state_value, *arguments):
    tensors = _causal_tensors(*arguments[:6])
    space, impl, (tokens_per_step, *results, parameter_gradients) = _options(arguments[6:])
    d_state = None if d_log_normalizer is None else (d_log_normalizer, d_state_value)
    arguments = (d_output, d_state, tensors, CausalSummary(*results), space, tokens_per_step, parameter_gradients)
    if impl == "reference":
        gradients = causal_backward_reference(*arguments)
    else:
        gradients = _triton_causal_backward().causal_backward_triton(*arguments, impl)
    *d_inputs, d_initial, d_parameters = gradients
    if d_initial is None:
        d_initial = (results[3].new_empty(0), results[3].new_empty(0))
    return *d_inputs, *d_initial, *d_parameters


def _fake_state(key, value, space, impl):
    """Return L, V, max and sum as the schedule allocates them."""
    shape = (*key.shape[:2], space.projection.shape[-2])
    dtype = torch.float32 if impl != "reference" else accumulation_dtype(key, value, space.projection)
    log_normalizer, row_max, row_sum = (key.new_empty(shape, dtype=dtype) for _ in range(3))
    return log_normalizer, key.new_empty((*shape, value.shape[-1]), dtype=dtype), row_max, row_sum


def _fake_parameters(projection, log_weight, wanted, dtype):
    empty = projection.new_empty(0, dtype=dtype)
    if not wanted:
        return empty, empty.clone()
    d_projection = projection.new_empty(projection.shape)
    return d_projection, empty if log_weight is None else log_weight.new_empty(log_weight.shape)


def _fake_summarize(key, value, mask, *arguments):
    space, impl, _ = _options(arguments)
    return _fake_state(key, value, space, impl)


def _fake_summarize_backward(d_log_normalizer, d_state_value, key, value, mask, *arguments):
    space, _, (*_, wanted) = _options(arguments)
    gradients = _fake_parameters(space.projection, space.log_weight, wanted, d_state_value.dtype)
    return torch.empty_like(key), torch.empty_like(value), *gradients


def _fake_attend(query, log_normalizer, state_value, *arguments):
    _, impl, _ = _options(arguments)
    none = log_normalizer.new_empty(0)
    statistics = none if impl == "reference" else _triton().empty_statistics(query)
    return attention_output(query, state_value.shape[-1]), statistics


def _fake_attend_backward(d_output, query, log_normalizer, state_value, *arguments):
    space, _, (*_, wanted) = _options(arguments)
    d_projection, _ = _fake_parameters(space.projection, None, wanted, state_value.dtype)
    d_log_normalizer, d_state_value = (x.new_empty(x.shape) for x in (log_normalizer, state_value))
    return torch.empty_like(query), d_log_normalizer, d_state_value, d_projection


def _fake_full(query, key, value, mask, *arguments):
    space, impl, _ = _options(arguments)
    output = attention_output(query, value.shape[-1])
    if impl != "reference":
        return output, *_triton().full_auxiliaries(query, key, value, space)
    log_normalizer, state_value, *_ = _fake_state(key, value, space, impl)
    statistics, operand = log_normalizer.new_empty(0), log_normalizer.new_empty(0)
    return output, statistics, log_normalizer.new_empty((3, *log_normalizer.shape)), state_value, operand


def _fake_full_backward(d_output, query, key, value, mask, *arguments):
    space, _, (*results, wanted) = _options(arguments)
    gradients = _fake_parameters(space.projection, space.log_weight, wanted, results[2].dtype)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), *gradients


def _fake_causal(query, key, value, mask, initial_log_normalizer, initial_value, *arguments):
    space, impl, _ = _options(arguments)
    log_normalizer, state_value, *_ = _fake_state(key, value, space, impl)
    output = attention_output(query, value.shape[-1])
    softmax = log_normalizer.new_empty((2, *query.shape[:-1]))
    return output, log_normalizer, state_value, softmax


def _fake_causal_backward(d_output, d_log_normalizer, d_state_value, query, key, value, mask, initial_log_normalizer,
                          initial_value, *arguments):  # fmt: skip
    space, _, (_, *results, wanted) = _options(arguments)
    gradients = _fake_parameters(space.projection, space.log_weight, wanted, results[3].dtype)
    none = results[3].new_empty(0)
    d_initial = (none, none.clone())
    if initial_log_normalizer is not None:
        d_initial = tuple(torch.empty_like(x) for x in (initial_log_normalizer, initial_value))
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), *d_initial, *gradients


def _operator(name: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Operator:
    operator = Operator(name, SCHEMAS[name], implementation, fake)
    torch.library.register_vmap(operator.overload, vmap_by_loop(operator.overload))
    return operator


summarize_op = _operator("summarize", _summarize, _fake_summarize)
summarize_backward_op = _operator("summarize_backward", _summarize_backward, _fake_summarize_backward)
attend_op = _operator("attend", _attend, _fake_attend)
attend_backward_op = _operator("attend_backward", _attend_backward, _fake_attend_backward)
full_op = _operator("full_attention", _full, _fake_full)
full_backward_op = _operator("full_attention_backward", _full_backward, _fake_full_backward)
causal_op = _operator("causal_attention", _causal, _fake_causal)
causal_backward_op = _operator("causal_attention_backward", _causal_backward, _fake_causal_backward)
