"""Operators are called straight only where nobody is there to see them, and then compute and differentiate alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from favorcast.kernels import draw_features, favor_attention, series_decomposition, stream_attention, summarize
from favorcast.kernels.decomposition.operators import decompose_op
from favorcast.kernels.dispatch.operator import Operator
from favorcast.kernels.favor.operators import causal_op, full_op, summarize_op

FEATURES = draw_features(8, 4, generator=torch.Generator().manual_seed(0))


def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return favor_attention(q, k, v, FEATURES)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return stream_attention(q, k, v, None, FEATURES).output


def state(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return summarize(k, v, FEATURES).value * q.mean()


def decomposition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seasonal, trend = series_decomposition((q + k)[0], [2, 3])
    return seasonal * trend + v[0]


CALLS: dict[str, tuple[Callable[..., Tensor], Operator]] = {
    "full_attention": (full, full_op.forward_operator),
    "causal_attention": (causal, causal_op.forward_operator),
    "summarize": (state, summarize_op.forward_operator),
    "series_decomposition": (decomposition, decompose_op),
}
each_call = pytest.mark.parametrize(("call", "operator"), CALLS.values(), ids=CALLS)


def inputs(requires_grad: bool = True) -> list[Tensor]:
    return [torch.randn(1, 2, 6, 4, dtype=torch.float64).requires_grad_(requires_grad) for _ in range(3)]


@pytest.fixture
def through_library(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operators that calls go through."""
    seen: list[Any] = []
    for _, operator in CALLS.values():
        overload = operator.overload
        monkeypatch.setattr(operator, "overload", lambda *a, o=overload: (seen.append(o), o(*a))[1])
    return seen


@each_call
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no gradients", "gradients"])
def test_plain_calls_go_straight(through_library, call, operator, requires_grad):
    call(*inputs(requires_grad))
    with torch.inference_mode():
        call(*inputs(False))
    with torch.no_grad():
        call(*(nn.Parameter(x) for x in inputs(False)))
    assert not through_library


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_plain_calls_on_a_gpu_go_straight(through_library):
    features = draw_features(8, 4, device="cuda")
    tensors = [x.float().cuda().detach().requires_grad_() for x in inputs()]
    output = favor_attention(*tensors, features)
    torch.autograd.grad(output, tensors, torch.ones_like(output))
    assert not through_library


@each_call
def test_results_and_first_and_second_gradients_are_those_of_the_library(monkeypatch, call, operator):
    tensors = inputs()

    def derivatives() -> list[Tensor]:
        output = call(*tensors)
        first = torch.autograd.grad(output, tensors, output.detach().cos(), create_graph=True)
        second = torch.autograd.grad([x.sin().sum() for x in first if x.requires_grad], tensors, materialize_grads=True)
        return [output, *first, *second]

    straight = derivatives()
    monkeypatch.setattr(Operator, "__call__", lambda self, *arguments: self.overload(*arguments))
    for one, other in zip(straight, derivatives(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


class Watching(TorchDispatchMode):
    """A mode that takes down what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@each_call
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no gradients", "gradients"])
def test_dispatch_modes_see_the_operator(call, operator, requires_grad):
    with Watching() as mode:
        call(*inputs(requires_grad))
    assert mode.seen.count(operator.overload) == 1


class WatchingFunctions(TorchFunctionMode):
    """A mode that takes down the functions it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@each_call
def test_function_modes_and_the_profiler_see_the_operator(call, operator):
    with WatchingFunctions() as mode:
        call(*inputs(False))
    assert mode.seen.count(operator.overload) == 1
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(*inputs(False))
    assert operator.overload._schema.name in {event.key for event in profile.key_averages()}


@each_call
def test_within_an_operator_of_somebody_else_no_gradient_is_recorded(call, operator):
    with torch._C._AutoDispatchBelowAutograd():
        assert not call(*inputs()).requires_grad


@each_call
def test_tangents_of_upstream_gradients_are_refused(call, operator):
    tensors = inputs()
    output = call(*tensors)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(output, tensors, upstream)


@each_call
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_sees_the_operator(call, operator):
    name = operator.overload.name().split(".")[0].removeprefix("favorcast::")
    graph = make_fx(call)(*inputs(False)).graph
    assert [node.target for node in graph.nodes].count(operator.overload) == 1
    traced = torch.jit.trace(call, tuple(inputs(False)), check_trace=False)
    assert f"favorcast::{name}" in str(traced.graph)


@each_call
def test_vmap_and_batched_gradients_pass_through_the_operator(through_library, call, operator):
    batch = [torch.stack([x, 2 * x]) for x in inputs(False)]
    mapped = torch.vmap(call)(*batch)
    assert through_library
    for i in range(2):
        torch.testing.assert_close(mapped[i], call(*(x[i] for x in batch)))
    tensors = inputs()
    output = call(*tensors)
    upstream = torch.randn(3, *output.shape, dtype=output.dtype)
    batched = torch.autograd.grad(output, tensors, upstream, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        single = torch.autograd.grad(output, tensors, upstream[i], retain_graph=True)
        for one, other in zip(batched, single, strict=True):
            torch.testing.assert_close(one[i], other)


class Subclass(Tensor):
    """A tensor that takes down the operators it meets."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@each_call
def test_subclasses_meet_the_operator(call, operator):
    Subclass.seen.clear()
    call(*(x.as_subclass(Subclass) for x in inputs(False)))
    assert operator.overload in Subclass.seen


def test_lazily_negated_tensors_are_read_with_their_sign():
    key = torch.randn(1, 2, 6, 4, dtype=torch.complex128).conj().imag
    assert key.is_neg()
    q, _, v = inputs(False)
    torch.testing.assert_close(full(q, key, v), full(q, key.resolve_neg(), v))


def test_tensors_that_stand_for_zeros_are_materialised():
    q, k, _ = inputs(False)
    zeros = torch._efficientzerotensor(k.shape, dtype=k.dtype)
    assert torch.equal(full(q, k, zeros), torch.zeros_like(k))


@each_call
def test_saved_tensors_can_be_packed(call, operator):
    packed: list[Tensor] = []
    tensors = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (packed.append(x), x)[1], lambda x: x):
        output = call(*tensors)
    assert packed
    expected = torch.autograd.grad(call(*tensors).sum(), tensors)
    for one, other in zip(torch.autograd.grad(output.sum(), tensors), expected, strict=True):
        assert torch.equal(one, other)


@each_call
def test_a_gradient_is_refused_after_an_input_was_changed_in_place(call, operator):
    tensors = [x.clone() for x in inputs()]
    output = call(*tensors)
    with torch.no_grad():
        tensors[1].mul_(2)
    if operator is decompose_op:  # which keeps no input without weights
        output.sum().backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
