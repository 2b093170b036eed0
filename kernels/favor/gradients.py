"""Gradients of the `favorcast::*` operators; importing this module registers them.

The gradient of a forward operator is its backward operator. The gradient of a backward operator differentiates
`favor_definition.py` twice, so second and higher derivatives exist, at the memory of the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level

from ..dispatch.operator import Operator
from .definition import attend_definition, causal_definition, joined_definition, summarize_definition
from .operators import (
    attend_backward_op,
    attend_op,
    causal_backward_op,
    causal_op,
    full_backward_op,
    full_op,
    summarize_backward_op,
    summarize_op,
)
from .types import FeatureSpace


def _keep(
    kept_outputs: slice = slice(0), auxiliary_outputs: slice = slice(0), materialized: bool = True
) -> Callable[..., None]:
    """Return a setup_context that keeps all inputs and some results; auxiliary results have no gradient.

    Gradients of results that nobody used arrive as zeros, or where not `materialized` as None.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = (output,) if isinstance(output, Tensor) else output
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.layout = [isinstance(x, Tensor) for x in inputs]
        ctx.options = [x for x in inputs if not isinstance(x, Tensor)]
        ctx.save_for_backward(*tensors, *outputs[kept_outputs])
        ctx.mark_non_differentiable(*outputs[auxiliary_outputs])
        ctx.set_materialize_grads(materialized)

    return setup_context


def _restore(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    tensors, options = iter(ctx.saved_tensors), iter(ctx.options)
    inputs = [next(tensors) if is_tensor else next(options) for is_tensor in ctx.layout]
    return inputs, list(tensors)


def _wanted(gradient: Tensor, wanted: bool) -> Tensor | None:
    return gradient if wanted else None


def _parameters_wanted(needs: tuple[bool, ...], position: int) -> bool:
    """Whether the projection at `position` or the log-weight behind it needs a gradient."""
    return needs[position] or needs[position + 1]


def _option_gradients(needs: tuple[bool, ...], position: int, d_projection: Tensor, d_log_weight: Tensor) -> list[Any]:
    """Return the gradients of an operator's options: projection, log-weight, and four without one."""
    return [_wanted(d_projection, needs[position]), _wanted(d_log_weight, needs[position + 1]), None, None, None, None]


def _summarize_autograd(ctx: Any, d_log_normalizer: Tensor, d_state_value: Tensor, *unused: Any) -> tuple[Any, ...]:
    inputs, results = _restore(ctx)
    needs = ctx.needs_input_grad
    d_key, d_value, *d_parameters = summarize_backward_op(
        d_log_normalizer, d_state_value, *inputs, *results, _parameters_wanted(needs, 3)
    )
    return d_key, d_value, None, *_option_gradients(needs, 3, *d_parameters)


def _attend_autograd(ctx: Any, d_output: Tensor, *unused: Any) -> tuple[Any, ...]:
    inputs, results = _restore(ctx)
    needs = ctx.needs_input_grad
    *d_inputs, d_projection = attend_backward_op(d_output, *inputs, *results, needs[3])
    return *d_inputs, _wanted(d_projection, needs[3]), None, None, None, None, None


def _full_autograd(ctx: Any, d_output: Tensor, *unused: Any) -> tuple[Any, ...]:
    inputs, results = _restore(ctx)
    needs = ctx.needs_input_grad
    d_query, d_key, d_value, *d_parameters = full_backward_op(d_output, *inputs, *results, _parameters_wanted(needs, 4))
    return d_query, d_key, d_value, None, *_option_gradients(needs, 4, *d_parameters)


def _causal_autograd(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    inputs, results = _restore(ctx)
    needs = ctx.needs_input_grad
    d_output, d_log_normalizer, d_state_value = upstream[:3]
    if d_output is None:
        d_output = torch.zeros_like(results[0])
    if d_log_normalizer is not None or d_state_value is not None:
        d_log_normalizer = torch.zeros_like(results[1]) if d_log_normalizer is None else d_log_normalizer
        d_state_value = torch.zeros_like(results[2]) if d_state_value is None else d_state_value
    d_query, d_key, d_value, *d_initial, d_projection, d_log_weight = causal_backward_op(
        d_output, d_log_normalizer, d_state_value, *inputs, *results, _parameters_wanted(needs, 6)
    )
    d_initial = [_wanted(gradient, need) for gradient, need in zip(d_initial, needs[4:6], strict=True)]
    return d_query, d_key, d_value, None, *d_initial, *_option_gradients(needs, 6, d_projection, d_log_weight), None


def _differentiate_again(
    define: Callable[..., Any], upstream_count: int, input_count: int, gradient_positions: tuple[int, ...]
) -> Callable[..., Any]:
    """Return the gradient of a backward operator, by differentiating the definition twice.

    The operator's arguments are `upstream_count` upstream gradients, then the `input_count` arguments of `define`;
    it returns the gradients of the arguments at `gradient_positions`, in that order.
    """

    def backward(ctx: Any, *d_gradients: Tensor | None) -> tuple[Any, ...]:
        arguments, _ = _restore(ctx)
        if maybe_current_level() is not None:
            nodes = arguments[: upstream_count + input_count]
            gradients = _second_in_transform(define, nodes, upstream_count, gradient_positions, d_gradients)
            return *gradients, *[None] * (len(arguments) - len(nodes))
        create_graph = torch.is_grad_enabled()

        def own_node(x: Any) -> Any:
            """Give each argument a node of its own: the same tensor may be passed twice, as key and as value."""
            if not isinstance(x, Tensor) or not x.is_floating_point():
                return x
            return x.view_as(x) if create_graph and x.requires_grad else x.detach().requires_grad_()

        with torch.enable_grad():
            nodes = [own_node(x) for x in arguments[: upstream_count + input_count]]
            upstream, inputs = nodes[:upstream_count], nodes[upstream_count:]
            outputs = define(*inputs)
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            used = [(o.to(u.dtype), u) for o, u in zip(outputs, upstream, strict=True) if u is not None]
            wanted = [i for i in gradient_positions if inputs[i] is not None]
            first = torch.autograd.grad(
                [o for o, _ in used],
                [inputs[i] for i in wanted],
                [u for _, u in used],
                create_graph=True,
                materialize_grads=True,
            )
            by_position = dict(zip(gradient_positions, d_gradients, strict=True))
            pairs = [(g, by_position[i]) for i, g in zip(wanted, first, strict=True) if g.requires_grad]
            pairs = [(g, d) for g, d in pairs if d is not None and d.shape == g.shape]
            targets = [x for x in nodes if isinstance(x, Tensor) and x.requires_grad]
            second = torch.autograd.grad(
                [g for g, _ in pairs], targets, [d for _, d in pairs], create_graph=create_graph, allow_unused=True
            )
        found = iter(second)
        gradients = [next(found) if isinstance(x, Tensor) and x.requires_grad else None for x in nodes]
        return *gradients, *[None] * (len(arguments) - len(nodes))

    return backward


def _second_in_transform(
    define: Callable[..., Any],
    nodes: list[Any],
    upstream_count: int,
    gradient_positions: tuple[int, ...],
    d_gradients: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Differentiate the definition twice as torch.func can, inside of its transforms."""
    places = [i for i, x in enumerate(nodes) if isinstance(x, Tensor) and x.is_floating_point()]
    wanted = [i for i in gradient_positions if nodes[upstream_count + i] is not None]

    def first(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(nodes)
        for i, x in zip(places, tensors, strict=True):
            filled[i] = x
        upstream, inputs = filled[:upstream_count], filled[upstream_count:]

        def outputs(*chosen: Tensor) -> tuple[Tensor, ...]:
            given = list(inputs)
            for i, x in zip(wanted, chosen, strict=True):
                given[i] = x
            found = define(*given)
            found = (found,) if isinstance(found, Tensor) else found
            return tuple(o.to(u.dtype) for o, u in zip(found, upstream, strict=True) if u is not None)

        pull: Any = torch.func.vjp(outputs, *(inputs[i] for i in wanted))[1]
        return pull(tuple(u for u in upstream if u is not None))

    linearised: Any = torch.func.vjp(first, *(nodes[i] for i in places))
    gradients, pull = linearised
    by_position = dict(zip(gradient_positions, d_gradients, strict=True))
    arriving = [by_position[i] for i in wanted]
    pairs = zip(gradients, arriving, strict=True)
    second = iter(pull(tuple(torch.zeros_like(g) if d is None or d.shape != g.shape else d for g, d in pairs)))
    return [next(second) if i in places else None for i in range(len(nodes))]


def _define_summarize(key, value, mask, *options):
    return summarize_definition(key, value, mask, FeatureSpace(*options[:5]))


def _define_attend(query, log_normalizer, state_value, *options):
    return attend_definition(query, log_normalizer, state_value, FeatureSpace(*options[:5]))


def _define_full(query, key, value, mask, *options):
    space = FeatureSpace(*options[:5])
    return attend_definition(query, *summarize_definition(key, value, mask, space), space)


def _define_causal(query, key, value, mask, log_normalizer, state_value, *options):
    space, tokens_per_step = FeatureSpace(*options[:5]), options[6]
    initial = None if log_normalizer is None else (log_normalizer, state_value)
    state = summarize_definition(key, value, mask, space)
    if initial is not None:
        state = joined_definition(initial, state)
    return causal_definition(query, key, value, mask, initial, space, tokens_per_step), *state


def _differentiate(
    operator: Operator,
    backward: Operator,
    gradient: Callable[..., Any],
    kept_outputs: slice,
    auxiliary_outputs: slice,
    define: Callable[..., Any],
    upstream_count: int,
    input_count: int,
    gradient_positions: tuple[int, ...],
    materialized: bool = True,
) -> None:
    """Register the gradient of an operator and, through its definition, that of its backward operator."""
    operator.differentiate(gradient, _keep(kept_outputs, auxiliary_outputs, materialized))
    backward.differentiate(_differentiate_again(define, upstream_count, input_count, gradient_positions), _keep())


_differentiate(summarize_op, summarize_backward_op, _summarize_autograd, slice(1, 4), slice(2, 4), _define_summarize,
               2, 9, (0, 1, 3, 4))  # fmt: skip
_differentiate(attend_op, attend_backward_op, _attend_autograd, slice(2), slice(1, 2), _define_attend,
               1, 9, (0, 1, 2, 3))  # fmt: skip
_differentiate(full_op, full_backward_op, _full_autograd, slice(5), slice(1, 5), _define_full,
               1, 10, (0, 1, 2, 4, 5))  # fmt: skip
_differentiate(causal_op, causal_backward_op, _causal_autograd, slice(4), slice(3, 4), _define_causal,
               3, 13, (0, 1, 2, 4, 5, 6, 7), False)  # fmt: skip
