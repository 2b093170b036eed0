"""The clocks of the bench, and its models of work and roofline against numbers worked out by hand.

Events and graphs of a GPU are fakes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from harness import measurement
from harness import timing as stopwatch
from harness.cases import Work
from harness.favor_exact import AttentionShape, favor_work, softmax_work
from harness.measurement import measure
from harness.roofline import KNOWN, Peaks, limit_of
from harness.timing import HostClock, Latency, interleaved, latency, rounds_for
from small_bench import CPU, TINY, ModuleWith, bench, ours


class FakeEvent:
    """A CUDA event on a clock that advances by one millisecond a record."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.time = math.nan

    def record(self) -> None:
        FakeEvent.now += 1.0
        self.time = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.time - self.time


class FakeGraph:
    """A CUDA graph that remembers its call."""

    def __init__(self, call) -> None:
        self.replay = call


def test_a_call_on_a_gpu_is_timed_by_events_and_as_a_graph(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(stopwatch, "CACHE_BYTES", 16)
    monkeypatch.setattr(measurement, "peak_mib", lambda call, device: 1.5)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: None)
    monkeypatch.setattr(measurement, "capture", lambda call, device: FakeGraph(call))
    module = ModuleWith(ours())
    on_gpu = replace(bench(), device=torch.device("cuda"), clock=stopwatch.CudaClock(CPU))
    rows = measure(module, TINY, on_gpu)
    assert [(r["p50_ms"], r["graph_p50_ms"], r["peak_mib"]) for r in rows] == [("1", "1", "1.5")] * 2
    monkeypatch.setattr(measurement, "capture", lambda call, device: 1 / 0)
    rows = measure(module, TINY, on_gpu)
    assert all(r["status"] == "ok" and r["message"].startswith("no CUDA graph: ZeroDivisionError") for r in rows)


def test_calls_are_interleaved_and_rounds_fit_the_budget():
    order: list[str] = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, HostClock())
    assert order == ["a", "b"] * 3
    assert set(found) == {"a", "b"}
    assert rounds_for({"a": 3.0, "b": 7.0}, 200.0) == 20
    assert rounds_for({"a": 1e4}, 200.0) == stopwatch.FEWEST_ROUNDS
    assert latency([float(i) for i in range(11)]) == Latency(2.0, 5.0, 8.0)


def test_peak_memory_of_a_call_on_the_cpu_is_seen():
    peak = stopwatch.peak_mib(lambda: torch.ones(1 << 20).exp().sum(), CPU)
    assert peak == pytest.approx(8.0, abs=0.1)


def test_favor_work_of_a_token_is_what_counting_by_hand_gives():
    token = AttentionShape(1, 1, 1, 64, 256)
    forward = favor_work(token, "forward", is_causal=False, size=2, paired=False)
    assert forward == Work(516, 131072, 512)  # 8 d + 4 bytes, 8 m d products, 2 m exponentials
    both = favor_work(token, "forward+backward", is_causal=False, size=2, paired=False)
    assert both == Work(516 + 1032, 131072 + 262144, 1024)
    causal = favor_work(token, "forward", is_causal=True, size=2, paired=False)
    assert causal == Work(772, 278528, 768)
    both = favor_work(token, "forward+backward", is_causal=True, size=2, paired=False)
    assert both == Work(772 + 1552, 278528 + 606208, 768 + 1024)
    paired = favor_work(token, "forward", is_causal=False, size=2, paired=True)
    assert paired == Work(516, 98304, 512)  # one projection for w and -w


def test_softmax_work_counts_two_products_forward_and_five_backward():
    shape = AttentionShape(2, 3, 100, 16, 32)
    forward = softmax_work(shape, "forward", is_causal=False, size=2)
    assert forward == Work(6 * 100 * (2 * 4 * 16 + 4), 6 * 4 * 100 * 100 * 16, 6 * 100 * 100)
    both = softmax_work(shape, "forward+backward", is_causal=False, size=2)
    assert both.flops == 6 * 14 * 100 * 100 * 16
    assert softmax_work(shape, "forward", is_causal=True, size=2).exps == 6 * 100 * 101 / 2


@pytest.mark.parametrize(
    ("d", "m", "nanoseconds", "resource"),
    [(16, 64, 0.0337, "exps"), (64, 256, 0.1659, "products"), (64, 128, 0.12, "bytes"), (32, 64, 0.0605, "bytes")],
)
def test_roofline_of_an_h200_by_hand(d: int, m: int, nanoseconds: float, resource: str):
    """2 m exponentials at 3.80e12/s, 8 m d products at 790e12/s, 8 d + 4 bytes at 4.3e12/s: the slowest."""
    token = favor_work(AttentionShape(1, 1, 1, d, m), "forward", is_causal=False, size=2, paired=False)
    limit = limit_of(token, KNOWN["H200"], torch.bfloat16)
    assert limit.resource == resource
    assert limit.milliseconds == pytest.approx(nanoseconds * 1e-6, rel=2e-3)


def test_float32_products_take_six_times_as_long_on_tensor_cores_only():
    work, peaks = Work(0, 1e12, 0), Peaks(1.0, 1e12, 1.0, "")
    assert limit_of(work, peaks, torch.float32).milliseconds == pytest.approx(6e3)
    assert limit_of(work, peaks, torch.float32, tensor_cores=False).milliseconds == pytest.approx(1e3)
