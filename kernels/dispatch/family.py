"""A differentiable operation as two operators, forward and backward, declared by the names of what goes in and out.

An operation names its inputs, results, upstream gradients and gradients as NamedTuples; schemas, what is kept for the
backward, and derivatives of any order follow from their fields. The gradient of the forward operator is the backward
operator; that of the backward operator differentiates the definition twice, at the memory of the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from .operator import Operator, in_own_context, vmap_by_loop

Inputs = TypeVar("Inputs", bound=tuple)
Results = TypeVar("Results", bound=tuple)
Bundle = TypeVar("Bundle", bound=tuple)

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    Sequence[int]: "int[]",
}


class Layout(Generic[Bundle]):
    """How a NamedTuple lies among the arguments of an operator, which knows no tuples.

    A field that is a NamedTuple itself lies there by its own fields, `field_inner`; one that may be None is None in
    all of them.
    """

    def __init__(self, bundle: type[Bundle]) -> None:
        self.bundle: Any = bundle
        self.types: dict[str, Any] = {}
        self.spans: dict[str, range] = {}
        self._parts: list[tuple[Any, bool, slice, slice]] = []
        for index, (field, hint) in enumerate(get_type_hints(bundle).items()):
            options = [x for x in get_args(hint) if x is not NoneType] or [hint]
            inner = options[0] if hasattr(options[0], "_fields") else None
            is_optional = NoneType in get_args(hint)
            first = len(self.types)
            for name, inner_hint in get_type_hints(inner).items() if inner else ():
                self.types[f"{field}_{name}"] = inner_hint | None if is_optional else inner_hint
            if inner is None:
                self.types[field] = hint
            self.spans[field] = range(first, len(self.types))
            fields, values = slice(index, index + 1), slice(first, len(self.types))
            if inner is None and self._parts and self._parts[-1][0] is None:  # plain fields in a row go together
                *_, before, values_before = self._parts.pop()
                fields, values = slice(before.start, fields.stop), slice(values_before.start, values.stop)
            self._parts.append((inner, is_optional, fields, values))

    def __len__(self) -> int:
        return len(self.types)

    def declared(self, prefix: str = "") -> list[str]:
        """Return the parameters of a schema."""
        return [f"{_SCHEMA_TYPES[hint]} {prefix}{name}" for name, hint in self.types.items()]

    def flatten(self, bundle: Bundle) -> list[Any]:
        """Return the values of a NamedTuple in order."""
        values: list[Any] = []
        for inner, _, fields, span in self._parts:
            found = bundle[fields]
            if inner is not None:
                found = [None] * (span.stop - span.start) if found[0] is None else found[0]
            values += found
        return values

    def read(self, values: Sequence[Any]) -> Bundle:
        """Return the NamedTuple of values that lie in order."""
        fields: list[Any] = []
        for inner, is_optional, _, span in self._parts:
            found = values[span]
            if inner is None:
                fields += found
            else:
                fields.append(None if is_optional and found[0] is None else inner._make(found))
        return self.bundle._make(fields)


def schema_of(function: Callable[..., Any]) -> str:
    """Return the schema of an annotated function of tensors and options, which returns one tensor or several."""
    hints = get_type_hints(function)
    returned = hints.pop("return")
    results = get_args(returned) if get_origin(returned) is tuple else (returned,)
    parameters = [f"{_SCHEMA_TYPES[hint]} {name}" for name, hint in hints.items()]
    return _schema(parameters, len(results), is_tuple=get_origin(returned) is tuple)


def _schema(parameters: list[str], results: int, is_tuple: bool = True) -> str:
    returned = f"({', '.join(['Tensor'] * results)})" if is_tuple else "Tensor"
    return f"({', '.join(parameters)}) -> {returned}"


class Family(Generic[Inputs, Results]):
    """The operators `favorcast::name` and `favorcast::name_backward`.

    The first results are those that have upstream gradients, in the order of the fields of `upstream`; others are
    what only the backward reads. An upstream gradient that may be None is given with all others of its kind or not at
    all. The gradients of a plain field have the layout of its tensor, those of a tuple's fields are contiguous. Bools
    have none.

    Args:
        name: within the namespace.
        inputs, results, upstream, gradients: NamedTuple classes; a field of `gradients` is a field of the inputs.
        parameters: the field of inputs whose gradients are only computed where one of them is asked for.
        forward: from inputs to results.
        backward: from (upstream, inputs, results, whether gradients of parameters are wanted) to gradients, with None
            for those that there are not.
        fake: from inputs to results of the same shapes, strides and dtypes.
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
        parameters: str,
        forward: Callable[[Inputs], Results],
        backward: Callable[..., Any],
        fake: Callable[[Inputs], Results],
        define: Callable[[Inputs], Sequence[Tensor]],
    ) -> None:
        self.inputs, self.results = Layout(inputs), Layout(results)
        self.upstream, self.gradients = Layout(upstream), Layout(gradients)
        self.define, self._run = define, in_own_context(forward)
        self.parameters = self.inputs.spans[parameters]
        fields = list(self.inputs.types)
        self.differentiable = [fields.index(name) for name in self.gradients.types]
        self.optional_upstream = [i for i, hint in enumerate(self.upstream.types.values()) if hint != Tensor]
        contiguous = [i for span in self.inputs.spans.values() if len(span) > 1 for i in span]
        read_inputs, flatten_results = self.inputs.read, self.results.flatten
        first, last = len(self.upstream), len(self.upstream) + len(self.inputs)

        def run_backward(*arguments: Any) -> tuple[Tensor, ...]:
            found = backward(
                self.upstream.read(arguments[:first]),
                read_inputs(arguments[first:last]),
                self.results.read(arguments[last:-1]),
                arguments[-1],
            )
            return tuple(arguments[0].new_empty(0) if x is None else x for x in self.gradients.flatten(found))

        def fake_gradient(i: int, like: Tensor, x: Tensor | None, parameter_gradients: bool) -> Tensor:
            if not _has_gradient(x) or (i in self.parameters and not parameter_gradients):
                return like.new_empty(0)
            assert x is not None
            return x.new_empty(x.shape) if i in contiguous else torch.empty_like(x)

        def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
            like, wanted = arguments[0], arguments[-1]
            return tuple(fake_gradient(i, like, arguments[first + i], wanted) for i in self.differentiable)

        self.forward_operator = Operator(
            name,
            _schema(self.inputs.declared(), len(self.results)),
            lambda *arguments: tuple(flatten_results(forward(read_inputs(arguments)))),
            lambda *arguments: tuple(flatten_results(fake(read_inputs(arguments)))),
        )
        declared = [*self.upstream.declared("d_"), *self.inputs.declared(), *self.results.declared("computed_")]
        self.backward_operator = Operator(
            f"{name}_backward",
            _schema([*declared, "bool parameter_gradients"], len(self.gradients)),
            run_backward,
            fake_backward,
        )
        for operator in (self.forward_operator, self.backward_operator):
            torch.library.register_vmap(operator.overload, vmap_by_loop(operator.overload))
        auxiliary = len(self.results) - len(self.upstream)
        self.forward_operator.differentiate(self._gradient, _keep(keeps_results=True, auxiliary=auxiliary))
        self.backward_operator.differentiate(self._second_gradient, _keep(keeps_results=False, auxiliary=0))

        @self.forward_operator.write_out_for_onnx
        def written_out(*arguments: Any) -> tuple[Tensor, ...]:
            found = self._define_flat(*arguments)
            return *found, *(found[0].new_zeros(0) for _ in range(auxiliary))

    def __call__(self, inputs: Inputs) -> Results:
        """Compute.

        Raises:
            NotImplementedError: under forward-mode differentiation.
        """
        arguments = self.inputs.flatten(inputs)
        run = self.forward_operator.way_for(arguments)
        return self._run(inputs) if run is self.forward_operator.run else self.results.read(run(*arguments))

    def _gradient(self, ctx: Any, *arriving: Tensor | None) -> tuple[Any, ...]:
        arguments, results = _restore(ctx)
        upstream = list(arriving[: len(self.upstream)])
        is_given = any(upstream[i] is not None for i in self.optional_upstream)
        for i, d_result in enumerate(upstream):
            if d_result is None and (i not in self.optional_upstream or is_given):
                upstream[i] = torch.zeros_like(results[i])
        wanted = any(ctx.needs_input_grad[i] for i in self.parameters)
        found = self.backward_operator(*upstream, *arguments, *results, wanted)
        gradients: list[Tensor | None] = [None] * len(arguments)
        for i, gradient in zip(self.differentiable, found, strict=True):
            gradients[i] = gradient if ctx.needs_input_grad[i] else None
        return tuple(gradients)

    def _second_gradient(self, ctx: Any, *d_gradients: Tensor | None) -> tuple[Any, ...]:
        arguments, _ = _restore(ctx)
        nodes = arguments[: len(self.upstream) + len(self.inputs)]
        found = _second(self._define_flat, nodes, len(self.upstream), self.differentiable, d_gradients)
        return *found, *[None] * (len(arguments) - len(nodes))

    def _define_flat(self, *inputs: Any) -> Sequence[Tensor]:
        return self.define(self.inputs.read(inputs))


def _has_gradient(x: Tensor | None) -> bool:
    """Whether an input can be differentiated in: one that is not given cannot, nor a mask of bools."""
    return x is not None and x.is_floating_point()


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
        upstream_count: how many upstream gradients there are.
        differentiable: indices of the inputs that have gradients.
        d_gradients: what arrives at the gradients of those.
    """
    tensors_at = [i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.is_floating_point()]
    wanted = [i for i in differentiable if _has_gradient(arguments[upstream_count + i])]

    def first(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(arguments)
        for i, x in zip(tensors_at, tensors, strict=True):
            filled[i] = x
        upstream, inputs = filled[:upstream_count], filled[upstream_count:]

        def outputs(*chosen: Tensor) -> tuple[Tensor, ...]:
            given = list(inputs)
            for i, x in zip(wanted, chosen, strict=True):
                given[i] = x
            return tuple(o.to(u.dtype) for o, u in zip(define(*given), upstream, strict=True) if u is not None)

        pull: Any = torch.func.vjp(outputs, *(inputs[i] for i in wanted))[1]
        return pull(tuple(u for u in upstream if u is not None))

    linearised: Any = torch.func.vjp(first, *(arguments[i] for i in tensors_at))
    gradients, pull = linearised
    arriving = dict(zip(differentiable, d_gradients, strict=True))
    pairs = [(g, arriving[i]) for i, g in zip(wanted, gradients, strict=True)]
    second = iter(pull(tuple(torch.zeros_like(g) if d is None or d.shape != g.shape else d for g, d in pairs)))
    return [next(second) if i in tensors_at else None for i in range(len(arguments))]
