"""Calls that follow a plan launch what they would launch without one, and calls of another kind do not follow it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from favorcast.kernels import draw_features, favor_attention, launch_plans, series_decomposition
from favorcast.kernels.launch_plans import RECORDED_CALL, launch_kernel, planned

FOLLOWED = {
    "one launch": 2,
    "keys split": 2,
    "padded, grouped queries": 2,
    "transposed": 2,
    "learnt features": 1,  # their gradients are summed in torch
    "two hops": 4,
    "causal": 2,
    "causal, grouped queries": 2,
    "steps": 2,
    "long steps": 2,
    "stretches": 4,
    "mixture of averages": 2,
    "masked average": 2,
}
"""How many operators of a call follow a plan, forward and backward, by case of planned_launches.py."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The launches of a few calls of each case, each on tensors of its own."""
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("the stub of the driver is for machines without a CUDA device")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("planned_launches.py"))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(line) for line in result.stdout.splitlines())


@pytest.mark.parametrize("case", FOLLOWED)
def test_a_plan_launches_what_the_call_without_one_does(recorded: dict[str, Any], case: str):
    (plain, *others) = recorded[case]
    assert len(plain[0]) > 2
    assert [followed for _, followed in (plain, *others)] == [0] * RECORDED_CALL + [FOLLOWED[case]] * 2
    for launches, _ in others:
        assert launches == plain[0]


class Scaling:
    """What stands for a kernel: y = scale x over n entries, once it is launched, with the interface of Triton's."""

    arg_names = ("x", "y", "n", "scale")

    def __init__(self) -> None:
        self.looked_at = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def run(*arguments: Any, scale: float) -> Scaling.Compiled:
            self.looked_at += 1
            compiled = Scaling.Compiled()
            compiled[grid](*arguments, scale, stream=0)
            return compiled

        return run

    class Compiled:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(x: Any, y: Any, n: int, scale: float, *, stream: int) -> None:
                source, target = (
                    (ctypes.c_float * n).from_address(a.data_ptr() if isinstance(a, Tensor) else a) for a in (x[0], y)
                )
                target[:] = [scale * each for each in source]

            return run


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Scaling:
    monkeypatch.setattr(launch_plans, "PLANNED_DEVICES", {"cpu"})
    monkeypatch.setattr(launch_plans, "_stream", lambda device: 0)
    return Scaling()


def scaled(kernel: Scaling) -> Callable[..., Tensor]:
    """Return an operator's implementation: x times scale, by way of scratch memory and of views."""

    def implementation(x: Tensor, other: Tensor | None, scale: float, impl: str) -> Tensor:
        x, n = x.flatten() if x.ndim > 1 else x, x.numel()
        scratch, result = torch.empty(2, n), torch.empty_like(x)
        launch_kernel(kernel, 1, (x, 1), scratch[1], n, scale=scale)
        launch_kernel(kernel, 1, (scratch[1], 1), result, n, scale=1.0)
        return result

    return planned(implementation, 3)


def test_later_calls_are_right_on_their_own_tensors_and_not_worked_out_again(kernel: Scaling):
    double = scaled(kernel)
    results = []
    for _ in range(6):
        x = torch.randn(8)
        results.append(double(x, None, 2.0, "triton"))
        assert torch.equal(results[-1], 2 * x)
    assert kernel.looked_at == 2 * RECORDED_CALL
    assert len({x.data_ptr() for x in results}) == 6


X = torch.randn(17)[:16]
OTHER_KINDS = {
    "shape": (torch.randn(9), None, 2.0),
    "stride": (torch.randn(16)[::2], None, 2.0),
    "dtype": (torch.randn(8).double(), None, 2.0),
    "alignment": (X[1:9], None, 2.0),
    "number": (torch.randn(8), None, 3.0),
    "given or not": (torch.randn(8), torch.randn(8), 2.0),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_call_of_another_kind_is_worked_out_anew(kernel: Scaling, kind: str):
    double = scaled(kernel)
    for _ in range(4):
        double(torch.randn(8), None, 2.0, "triton")
    before = kernel.looked_at
    double(*OTHER_KINDS[kind], "triton")
    assert kernel.looked_at == before + 2


def test_tensors_that_coincided_when_recorded_may_not_do_so_later(kernel: Scaling):
    def both(x: Tensor, y: Tensor, impl: str) -> tuple[Tensor, Tensor]:
        results = torch.empty_like(x), torch.empty_like(y)
        for source, result in zip((x, y), results, strict=True):
            launch_kernel(kernel, 1, (source, 1), result, 8, scale=2.0)
        return results

    double = planned(both, 2)
    for _ in range(4):
        x = torch.randn(8)
        assert all(torch.equal(result, 2 * x) for result in double(x, x, "triton"))
    for x, y in ((torch.randn(8), torch.randn(8)), misaligned(1, 2)):
        first, second = double(x, y, "triton")
        assert torch.equal(first, 2 * x)
        assert torch.equal(second, 2 * y)


def misaligned(*offsets: int) -> list[Tensor]:
    """Return tensors of eight entries that lie so many entries behind a multiple of 16 bytes."""
    return [torch.randn(20)[offset : offset + 8] for offset in offsets]


def test_tensors_misaligned_in_other_ways_are_of_another_kind(kernel: Scaling):
    double = scaled(kernel)
    for _ in range(RECORDED_CALL + 1):
        double(*misaligned(1), None, 2.0, "triton")
    before = kernel.looked_at
    double(*misaligned(2), None, 2.0, "triton")  # views of it are aligned elsewhere
    assert kernel.looked_at == before + 2


def test_the_device_of_every_tensor_makes_the_kind():
    x = torch.randn(8)
    kinds = {launch_plans._kind((x, other), [16, 32]) for other in (x, torch.empty(8, device="meta"))}
    assert len(kinds) == 2


def test_one_tensor_returned_twice_is_never_planned(kernel: Scaling):
    def implementation(x: Tensor, impl: str) -> tuple[Tensor, Tensor]:
        result = torch.empty_like(x)
        launch_kernel(kernel, 1, (x, 1), result, 8, scale=2.0)
        return result, result

    call = planned(implementation, 1)
    for _ in range(6):
        x = torch.randn(8)
        assert all(torch.equal(result, 2 * x) for result in call(x, "triton"))


def test_launches_of_the_interpreter_are_never_planned(monkeypatch: pytest.MonkeyPatch):
    class Interpreted(Scaling):
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
            launch = super().__getitem__(grid)
            return lambda *arguments, **constants: launch(*arguments, **constants) and None

    monkeypatch.setattr(launch_plans, "PLANNED_DEVICES", {"cpu"})
    interpreted = Interpreted()
    double = scaled(interpreted)
    for _ in range(6):
        x = torch.randn(8)
        assert torch.equal(double(x, None, 2.0, "triton"), 2 * x)
    assert interpreted.looked_at == 2 * 6


def test_calls_that_compute_in_torch_are_never_planned(kernel: Scaling):
    def implementation(x: Tensor, impl: str) -> Tensor:
        result = torch.empty_like(x)
        launch_kernel(kernel, 1, (x, 1), result, 8, scale=2.0)
        return result + 1

    call = planned(implementation, 1)
    for _ in range(6):
        x = torch.randn(8)
        assert torch.equal(call(x, "triton"), 2 * x + 1)
    assert kernel.looked_at == 6


def test_a_view_of_memory_that_two_arguments_share_is_never_planned(kernel: Scaling):
    def implementation(x: Tensor, y: Tensor, impl: str) -> Tensor:
        result = torch.empty_like(x[1:])
        launch_kernel(kernel, 1, (x[1:], 1), result, 7, scale=2.0)
        return result

    call = planned(implementation, 2)
    for _ in range(6):
        x, y = torch.randn(2, 8).unbind()
        assert torch.equal(call(x, y, "triton"), 2 * x[1:])
    assert kernel.looked_at == 6


def test_a_call_that_fails_while_it_is_recorded_leaves_nothing_behind(kernel: Scaling):
    fails = False

    def implementation(x: Tensor, impl: str) -> Tensor:
        result = torch.empty_like(x)
        launch_kernel(kernel, 1, (x, 1), result, 8, scale=2.0)
        if fails:
            raise RuntimeError("out of memory")
        return result

    call = planned(implementation, 1)
    for _ in range(RECORDED_CALL - 1):
        call(torch.randn(8), "triton")
    fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        call(torch.randn(8), "triton")
    fails = False
    for _ in range(3):
        x = torch.randn(8)
        assert torch.equal(call(x, "triton"), 2 * x)
    assert kernel.looked_at == RECORDED_CALL + 1  # the one after the failure is recorded


def test_the_number_of_plans_is_bounded(kernel: Scaling, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch_plans, "MOST_PLANS", 3)
    double = scaled(kernel)
    for _ in range(5):
        for n in range(1, 9):
            x = torch.randn(n)
            assert torch.equal(double(x, None, 2.0, "triton"), 2 * x)


def attention(**options: Any) -> Callable[..., Tensor]:
    def call(*inputs: Tensor) -> Tensor:
        features = draw_features(64, 32, generator=torch.Generator().manual_seed(0), device="cuda")
        return favor_attention(*inputs, features, **options)

    return call


def decomposition(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    seasonal, trend = series_decomposition(query[:, 0], [3, 25], mask=key[:, 0] > -1)
    return seasonal * trend + (key + value)[:, 0]


ON_A_GPU = {
    "full": attention(),
    "causal": attention(is_causal=True),
    "steps": attention(is_causal=True, tokens_per_step=6),
    "decomposition": decomposition,
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("call", ON_A_GPU.values(), ids=ON_A_GPU)
@pytest.mark.parametrize("length", [48, 1200])
def test_a_planned_call_gives_the_bits_of_a_plain_one(call: Callable[..., Tensor], length: int, monkeypatch):
    def derivatives(inputs: list[Tensor]) -> list[Tensor]:
        output = call(*inputs)
        return [output, *torch.autograd.grad(output, inputs, torch.ones_like(output))]

    calls = []
    for _ in range(RECORDED_CALL + 2):
        inputs = [torch.randn(2, 4, length, 32, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
        calls.append((inputs, derivatives(inputs)))
    monkeypatch.setattr(launch_plans, "PLANNED_DEVICES", set())
    for inputs, results in calls:
        assert all(torch.equal(one, other) for one, other in zip(results, derivatives(inputs), strict=True))


@pytest.mark.gpu
@needs_cuda
def test_plans_follow_the_stream_and_can_be_captured():
    call, (q, k, v) = attention(), torch.randn(3, 2, 4, 1200, 32, device="cuda").unbind()
    expected = [call(q, k, v) for _ in range(RECORDED_CALL + 1)][-1]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(call(q, k, v), expected)
    torch.cuda.synchronize()
    features = draw_features(64, 32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = favor_attention(q, k, v, features)
    q.copy_(k)
    graph.replay()
    assert torch.equal(captured, favor_attention(k, k.clone(), v, features))
