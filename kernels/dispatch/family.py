"""A differentiable operation as two operators, forward and backward, declared by the names of what goes in and out.

An operation names its inputs, results, upstream gradients and gradients as NamedTuples; schemas, what is kept for the
backward, and derivatives of any order follow from their fields. The gradient of the forward operator is the backward
operator; that of the backward operator differentiates the definition twice, at the memory of the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level

from .operator import Operator, vmap_by_loop

Inputs = TypeVar("Inputs", bound=tuple)
Results = TypeVar("Results", bound=tuple)

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    Sequence[int]: "int[]",
}


def fields_of(owner: Any) -> dict[str, Any]:
    """Return the types of the fields of a NamedTuple, or of the arguments of a function; a NamedTuple among them counts
    by its own fields."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(owner).items():
        if name != "return":
            found |= fields_of(hint) if hasattr(hint, "_fields") else {name: hint}
    return found


def _declared(owner: Any, prefix: str = "") -> list[str]:
    return [f"{_SCHEMA_TYPES[hint]} {prefix}{name}" for name, hint in fields_of(owner).items()]


def _flat(bundle: Any) -> Iterator[Any]:
    """Yield the values of a NamedTuple in the order of `fields_of`."""
    for x in bundle:
        if isinstance(x, tuple):
            yield from _flat(x)
        else:
            yield x


def _reader(bundle: Any) -> Callable[[Iterator[Any]], Any]:
    """Return the inverse of `_flat`: a function that takes the values of a NamedTuple from an iterator."""
    readers = [_reader(hint) if hasattr(hint, "_fields") else next for hint in get_type_hints(bundle).values()]
    return lambda values: bundle(*(read(values) for read in readers))


def schema_of(function: Callable[..., Any]) -> str:
    """Return the schema of an annotated function of tensors and options, which returns one tensor or several."""
    returned = get_type_hints(function)["return"]
    results = get_args(returned) if get_origin(returned) is tuple else (returned,)
    return _schema(_declared(function), len(results), is_tuple=get_origin(returned) is tuple)


def _schema(parameters: list[str], results: int, is_tuple: bool = True) -> str:
    returned = f"({', '.join(['Tensor'] * results)})" if is_tuple else "Tensor"
    return f"({', '.join(parameters)}) -> {returned}"


class Family(Generic[Inputs, Results]):
    """The operators `favorcast::name` and `favorcast::name_backward`.

    The first results are those that have upstream gradients, in the order of the fields of `upstream`; others are
    what only the backward reads. An upstream gradient that may be None is given with all others of its kind or not at
    all.

    Args:
        name: within the namespace.
        inputs, results, upstream, gradients: NamedTuple classes; inputs may hold further ones. The fields of
            `gradients` are names of inputs.
        parameters: those inputs whose gradients are only computed where one of them is asked for.
        forward: from inputs to results.
        backward: from (upstream, inputs, results, whether gradients of parameters are wanted) to gradients.
        fake, fake_backward: the same, to tensors of the same shapes, strides and dtypes.
        define: from inputs to the results that have gradients, in plain torch.
    """

    def __init__(
        self,
        name: str,
        *,
        inputs: type[Inputs],
        results: type[Results],
        upstream: Any,
        gradients: Any,
        parameters: Sequence[str],
        forward: Callable[[Inputs], Results],
        backward: Callable[..., Any],
        fake: Callable[[Inputs], Results],
        fake_backward: Callable[..., Any],
        define: Callable[[Inputs], Sequence[Tensor]],
    ) -> None:
        self.results, self.upstream, self.gradients = results, upstream, gradients
        self.parameters, self.define = parameters, define
        self.fields = list(fields_of(inputs))
        self.read = read = _reader(inputs)
        self.differentiable = [self.fields.index(field) for field in gradients._fields]
        hints = get_type_hints(upstream)
        self.optional_upstream = [i for i, field in enumerate(upstream._fields) if hints[field] != Tensor]
        result_count = len(get_type_hints(results))

        def split(arguments: Sequence[Any]) -> tuple[Any, Inputs, Results, bool]:
            """Tell the arguments of the backward operator apart."""
            first, last = len(hints), len(hints) + len(self.fields)
            *kept, wanted = arguments[last:]
            return upstream(*arguments[:first]), read(iter(arguments[first:last])), results(*kept), wanted

        self.forward_operator = Operator(
            name,
            _schema(_declared(inputs), result_count),
            lambda *arguments: forward(read(iter(arguments))),
            lambda *arguments: fake(read(iter(arguments))),
        )
        declared = [*_declared(upstream, "d_"), *_declared(inputs), *_declared(results, "computed_")]
        self.backward_operator = Operator(
            f"{name}_backward",
            _schema([*declared, "bool parameter_gradients"], len(gradients._fields)),
            lambda *arguments: backward(*split(arguments)),
            lambda *arguments: fake_backward(*split(arguments)),
        )
        for operator in (self.forward_operator, self.backward_operator):
            torch.library.register_vmap(operator.overload, vmap_by_loop(operator.overload))
        auxiliary = result_count - len(hints)
        self.forward_operator.differentiate(self._gradient, _keep(keeps_results=True, auxiliary=auxiliary))
        self.backward_operator.differentiate(self._second_gradient, _keep(keeps_results=False, auxiliary=0))

        @self.forward_operator.write_out_for_onnx
        def written_out(*arguments: Any) -> tuple[Tensor, ...]:
            found = tuple(define(read(iter(arguments))))
            return *found, *(found[0].new_zeros(0) for _ in range(auxiliary))

    def __call__(self, inputs: Inputs) -> Results:
        """Compute.

        Raises:
            NotImplementedError: under forward-mode differentiation.
        """
        return self.results(*self.forward_operator(*_flat(inputs)))

    def _gradient(self, ctx: Any, *arriving: Tensor | None) -> tuple[Any, ...]:
        arguments, results = _restore(ctx)
        upstream = list(arriving[: len(self.upstream._fields)])
        is_given = any(upstream[i] is not None for i in self.optional_upstream)
        for i, d_result in enumerate(upstream):
            if d_result is None and (i not in self.optional_upstream or is_given):
                upstream[i] = torch.zeros_like(results[i])
        needs = dict(zip(self.fields, ctx.needs_input_grad, strict=True))
        wanted = any(needs[field] for field in self.parameters)
        found = self.backward_operator(*upstream, *arguments, *results, wanted)
        by_field = dict(zip(self.gradients._fields, found, strict=True))
        return tuple(by_field.get(field) if needs[field] else None for field in self.fields)

    def _second_gradient(self, ctx: Any, *d_gradients: Tensor | None) -> tuple[Any, ...]:
        arguments, _ = _restore(ctx)
        upstream_count = len(self.upstream._fields)
        nodes = arguments[: upstream_count + len(self.fields)]
        find = _second_in_transform if maybe_current_level() is not None else _second
        found = find(self._define_flat, nodes, upstream_count, self.differentiable, d_gradients)
        return *found, *[None] * (len(arguments) - len(nodes))

    def _define_flat(self, *inputs: Any) -> Sequence[Tensor]:
        return self.define(self.read(iter(inputs)))


def _keep(keeps_results: bool, auxiliary: int) -> Callable[..., None]:
    """Return a setup_context that keeps all inputs, and results; the last `auxiliary` results have no gradient.

    Gradients of results that nobody used arrive as None.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.layout = [isinstance(x, Tensor) for x in inputs]
        ctx.options = [x for x in inputs if not isinstance(x, Tensor)]
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)), *(output if keeps_results else ()))
        ctx.mark_non_differentiable(*output[len(output) - auxiliary :])
        ctx.set_materialize_grads(False)

    return setup_context


def _restore(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """Return all inputs in order, and the results that were kept."""
    tensors, options = iter(ctx.saved_tensors), iter(ctx.options)
    inputs = [next(tensors) if is_tensor else next(options) for is_tensor in ctx.layout]
    return inputs, list(tensors)


def _second(
    define: Callable[..., Sequence[Tensor]],
    arguments: list[Any],
    upstream_count: int,
    differentiable: list[int],
    d_gradients: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Differentiate the gradients of `define`, by differentiating it twice.

    Args:
        define: of all inputs.
        arguments: upstream gradients, then the inputs.
        upstream_count: how many are the former.
        differentiable: places among the inputs that have gradients.
        d_gradients: what arrives at those.
    """
    create_graph = torch.is_grad_enabled()

    def own_node(x: Any) -> Any:
        """Give each argument a node of its own: the same tensor may be passed twice, as key and as value."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.view_as(x) if create_graph and x.requires_grad else x.detach().requires_grad_()

    with torch.enable_grad():
        nodes = [own_node(x) for x in arguments]
        upstream, inputs = nodes[:upstream_count], nodes[upstream_count:]
        used = [(o.to(u.dtype), u) for o, u in zip(define(*inputs), upstream, strict=True) if u is not None]
        wanted = [i for i in differentiable if inputs[i] is not None]
        first = torch.autograd.grad(
            [o for o, _ in used],
            [inputs[i] for i in wanted],
            [u for _, u in used],
            create_graph=True,
            materialize_grads=True,
        )
        arriving = dict(zip(differentiable, d_gradients, strict=True))
        pairs = [(g, arriving[i]) for i, g in zip(wanted, first, strict=True) if g.requires_grad]
        pairs = [(g, d) for g, d in pairs if d is not None and d.shape == g.shape]
        targets = [x for x in nodes if isinstance(x, Tensor) and x.requires_grad]
        second = iter(
            torch.autograd.grad(
                [g for g, _ in pairs], targets, [d for _, d in pairs], create_graph=create_graph, allow_unused=True
            )
        )
    return [next(second) if isinstance(x, Tensor) and x.requires_grad else None for x in nodes]


def _second_in_transform(
    define: Callable[..., Sequence[Tensor]],
    arguments: list[Any],
    upstream_count: int,
    differentiable: list[int],
    d_gradients: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Do what `_second` does as torch.func can, inside of its transforms."""
    places = [i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.is_floating_point()]
    wanted = [i for i in differentiable if arguments[upstream_count + i] is not None]

    def first(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(arguments)
        for i, x in zip(places, tensors, strict=True):
            filled[i] = x
        upstream, inputs = filled[:upstream_count], filled[upstream_count:]

        def outputs(*chosen: Tensor) -> tuple[Tensor, ...]:
            given = list(inputs)
            for i, x in zip(wanted, chosen, strict=True):
                given[i] = x
            return tuple(o.to(u.dtype) for o, u in zip(define(*given), upstream, strict=True) if u is not None)

        pull: Any = torch.func.vjp(outputs, *(inputs[i] for i in wanted))[1]
        return pull(tuple(u for u in upstream if u is not None))

    linearised: Any = torch.func.vjp(first, *(arguments[i] for i in places))
    gradients, pull = linearised
    arriving = dict(zip(differentiable, d_gradients, strict=True))
    pairs = [(g, arriving[i]) for i, g in zip(wanted, gradients, strict=True)]
    second = iter(pull(tuple(torch.zeros_like(g) if d is None or d.shape != g.shape else d for g, d in pairs)))
    return [next(second) if i in places else None for i in range(len(arguments))]
