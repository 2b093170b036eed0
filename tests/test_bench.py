"""The bench: its models by hand, its gate, its files and reports, and the whole of it on tiny shapes.

What needs a GPU runs here with fakes in the place of events, graphs and peers.
"""

from __future__ import annotations

import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import bench_favor_attention as favor  # noqa: E402
import favor_peers  # noqa: E402
import machine  # noqa: E402
import measurement  # noqa: E402
import result_families  # noqa: E402
import result_report  # noqa: E402
import results_file  # noqa: E402
import revisions  # noqa: E402
import run  # noqa: E402
import stopwatch  # noqa: E402
import targets  # noqa: E402
from cases import Case, Prepared, Provider, Tolerance, Work  # noqa: E402
from favor_exact import AttentionShape, favor_work, softmax_work  # noqa: E402
from measurement import Bench, BrokenDeviceError, measure  # noqa: E402
from roofline import KNOWN, Peaks, limit_of  # noqa: E402
from stopwatch import HostClock, Latency, interleaved, latency, rounds_for  # noqa: E402

CPU = torch.device("cpu")
TINY = Case("favor full", AttentionShape(1, 2, 40, 8, 16), torch.float32)
ROW = {
    "op": "favor full",
    "provider": "favorcast reference",
    "shape": "b1-h8-l1024-d64-m256",
    "dtype": "bfloat16",
    "pass": "forward",
    "status": "ok",
    "device": "a GPU",
    "commit": "1",
    "p20_ms": "1.9",
    "p50_ms": "2",
    "p80_ms": "2.1",
    "peak_mib": "3",
    "roofline_percent": "50",
    "bound": "exps",
}


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions, and no profiler, which takes longer than everything else here, where memory is not the point."""
    monkeypatch.setattr(measurement, "peak_mib", lambda call, device: 1.5)
    monkeypatch.setattr(stopwatch, "WARM_UP_CALLS", 1)
    monkeypatch.setattr(stopwatch, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(run, "QUICK_BUDGET_MS", 1.0)


def bench(**options) -> Bench:
    return Bench(CPU, HostClock(), Peaks(1e10, 1e11, 1e9, "made up"), {"device": "test"}, budget_ms=1.0, **options)


def row(**changes: str) -> results_file.Row:
    return dict.fromkeys(results_file.FIELDS, "") | ROW | changes


class ModuleWith:
    """A bench module of one case whose providers are given; inputs and exact results are FAVOR attention's."""

    inputs, expected, work = staticmethod(favor.inputs), staticmethod(favor.expected), staticmethod(favor.work)

    def __init__(self, *providers: Provider) -> None:
        self.listed = list(providers)

    def cases(self, scale):
        return [TINY]

    def providers(self, case, device):
        return self.listed


def ours(case: Case = TINY) -> Provider:
    return favor.providers(case, CPU)[0]


def wrong_by(factor: float) -> Provider:
    def prepare(inputs):
        prepared = ours().prepare(inputs)
        return Prepared(lambda: prepared.call() * factor, prepared.leaves)

    return replace(ours(), name="off by a factor", prepare=prepare)


# --- models -----------------------------------------------------------------------------------------------------------


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


# --- gate and failures ------------------------------------------------------------------------------------------------


def test_every_pass_of_a_right_provider_has_numbers():
    rows = measure(ModuleWith(ours()), TINY, bench())
    assert [(r["pass"], r["status"]) for r in rows] == [("forward", "ok"), ("forward+backward", "ok")]
    for r in rows:
        assert float(r["p20_ms"]) <= float(r["p50_ms"]) <= float(r["p80_ms"])
        assert 0 < float(r["error"]) < 1e-5
        assert float(r["roofline_percent"]) > 0
        assert float(r["peak_mib"]) >= 0


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_the_gate_refuses_a_wrong_result(factor: float):
    rows = measure(ModuleWith(ours(), wrong_by(factor)), TINY, bench())
    refused = [r for r in rows if r["provider"] == "off by a factor"]
    assert [r["status"] for r in refused] == ["wrong", "wrong"]
    assert all("output: error" in r["message"] and "p50_ms" not in r for r in refused)


def test_the_gate_refuses_a_wrong_gradient():
    def prepare(inputs):
        prepared = ours().prepare(inputs)

        def call():
            output = prepared.call()
            output.register_hook(lambda gradient: 1.01 * gradient)
            return output

        return Prepared(lambda: call() if torch.is_grad_enabled() else prepared.call(), prepared.leaves)

    rows = measure(ModuleWith(replace(ours(), prepare=prepare)), TINY, bench())
    assert [r["status"] for r in rows] == ["ok", "wrong"]
    assert rows[1]["message"].startswith("gradient of query")


def test_peers_that_fail_are_absent_or_are_skipped_are_recorded():
    def fails(inputs):
        raise RuntimeError("no kernel image\nand more")

    def is_absent(inputs):
        import a_package_that_nobody_has  # noqa: F401

    peers = [
        Provider("fails", fails),
        Provider("absent", is_absent),
        Provider("skipped", fails, skip="quadratic"),
        ours(),
    ]
    rows = measure(ModuleWith(*peers), TINY, bench())
    found = {r["provider"]: (r["status"], r.get("message", "")) for r in rows if r["pass"] == "forward"}
    assert found["fails"] == ("failed", "RuntimeError: no kernel image")
    assert found["absent"][0] == "absent"
    assert "a_package_that_nobody_has" in found["absent"][1]
    assert found["skipped"] == ("skipped", "quadratic")
    assert found[ours().name][0] == "ok"


def test_a_call_that_is_too_slow_is_said_to_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measurement, "SLOWEST_MS", 0.0)
    rows = measure(ModuleWith(ours()), TINY, bench())
    assert {(r["status"], r["message"].split(":")[0]) for r in rows} == {("skipped", "too slow to repeat")}


def test_a_broken_device_ends_the_run_and_is_recorded(tmp_path: Path):
    def breaks(inputs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    module = ModuleWith(Provider("breaks", breaks))
    with pytest.raises(BrokenDeviceError):
        measure(module, TINY, bench())
    described = bench(wanted=lambda p: True)
    described.machine.update(dict.fromkeys(results_file.FIELDS[-9:], ""))
    assert run.run(described, [(module, TINY)], tmp_path / "x.csv") == run.WRONG
    (written,) = results_file.read(tmp_path / "x.csv")
    assert written["status"] == "failed"
    assert "illegal memory access" in written["message"]


@pytest.mark.parametrize("name", ["chunk_linear_attn", "fused_chunk_linear_attn"])
def test_fla_is_called_with_its_own_layout_and_free_features(name: str, monkeypatch: pytest.MonkeyPatch):
    def attention(q, k, v, scale, normalize):
        assert q.shape == (1, 40, 2, 16)
        assert v.is_contiguous()
        weights = torch.einsum("bthm,bshm->bhts", q, k).tril() * scale
        return torch.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdim=True), v), None

    package, ops, linear = (types.ModuleType(n) for n in ("fla", "fla.ops", "fla.ops.linear_attn"))
    setattr(linear, name, attention)
    ops.linear_attn = linear  # pyright: ignore[reportAttributeAccessIssue]
    for module in (package, ops, linear):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    case = replace(TINY, op=favor.CAUSAL)
    peer = Provider("fla", favor_peers.fla_linear_attention(name, favor.features_of(case).projection))
    rows = measure(ModuleWith(replace(peer, tolerance=Tolerance(1e-5, 1e-5))), case, bench())
    assert [r["status"] for r in rows] == ["ok", "ok"], rows


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_in_two_hops_is_favor_attention(monkeypatch: pytest.MonkeyPatch):
    # on a CPU FlexAttention refuses inputs that require gradients
    monkeypatch.setattr(favor_peers, "leaves", lambda inputs, *names: {name: inputs[name] for name in names})
    inputs = favor.inputs(TINY, CPU)
    projection = favor.features_of(TINY).projection
    exact = favor.expected(TINY, inputs, "favor")
    for prepare in (
        favor_peers.two_hop_flex_attention(projection, compiled=False),
        favor_peers.two_hop_torch(projection, compiled=False),
    ):
        peer = Provider("two hops", prepare, tolerance=Tolerance(1e-5, 1e-5))
        assert measurement.gate(peer, TINY, "forward", prepare(inputs), exact) < 1e-5


def test_gpu_cases_are_declared_with_all_their_providers():
    cases = favor.cases("gpu")
    assert len({str(case) for case in cases}) == len(cases)
    assert {case.op for case in cases} == {favor.FULL, favor.CAUSAL, favor.STEP_CAUSAL}
    assert max(case.shape.length for case in cases) == 1 << 20
    for case in cases:
        names = [p.name for p in favor.providers(case, torch.device("cuda"))]
        assert names[:2] == ["favorcast triton", "favorcast reference"]
        assert len(set(names)) == len(names)


def test_the_kernels_pass_the_gate_in_the_interpreter():
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("a GPU is there: the bench itself runs the kernels")
    kernels = [p for p in favor.providers(TINY, CPU) if "interpreted" in p.name]
    rows = measure(ModuleWith(*kernels), TINY, bench())
    assert [r["status"] for r in rows] == ["ok", "ok"], rows


# --- clocks -----------------------------------------------------------------------------------------------------------


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
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: None)
    monkeypatch.setattr(measurement, "capture", lambda call, device: FakeGraph(call))
    module = ModuleWith(ours())
    monkeypatch.setattr(module, "inputs", lambda case, device: favor.inputs(case, CPU), raising=False)
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


# --- files and reports ------------------------------------------------------------------------------------------------


def test_a_row_replaces_the_one_of_the_same_key_only(tmp_path: Path):
    path = tmp_path / "a-gpu.csv"
    results_file.append(path, [row(), row(provider="sdpa flash"), row(commit="2", p50_ms="1")])
    results_file.append(path, [row(p50_ms="7"), row(shape="other"), row(ptxas="13.1")])
    rows = results_file.read(path)
    assert len(rows) == 5
    assert [r["p50_ms"] for r in rows if r["commit"] == "1" and r["provider"] == ROW["provider"]] == ["7", "2", "2"]
    assert len(results_file.latest(rows)) == 3


def test_result_files_of_version_0_1_are_read(tmp_path: Path):
    path = tmp_path / "cpu.csv"
    path.write_text(
        "op,shape,provider,p20_ms,p50_ms,p80_ms,ratio_to_peer,max_error,threads,cpu,torch,date\n"
        "favor full,b1-h8-l1024-d64-m256,favorcast,30.46,33.40,36.70,0.834,5.1e-07,2,AMD EPYC,2.13.0+cpu,2026-11-22\n"
    )
    (old,) = results_file.read(path)
    assert old["provider"] == "favorcast reference"
    assert (old["device"], old["pass"], old["dtype"]) == ("AMD EPYC", "forward+backward", "float32")
    assert results_file.milliseconds(old) == 33.4
    results_file.append(path, [row()])
    assert len(results_file.read(path)) == 2


def sweep() -> list[results_file.Row]:
    """Rows in which our time is 1 ms and softmax attention's doubles: it crosses at 2000 tokens."""
    rows = []
    for length, softmax in ((1000, "0.5"), (4000, "2"), (16000, "8")):
        shape = f"b1-h1-l{length}-d64-m256"
        rows.append(row(shape=shape, p50_ms="1", provider="favorcast triton"))
        rows.append(row(shape=shape, p50_ms=softmax, provider="sdpa flash"))
        rows.append(row(shape=shape, p50_ms="100", provider="sdpa efficient"))
    failed = {"p50_ms": "", "provider": "fla chunk_linear_attn", "status": "failed", "message": "RuntimeError: a | b"}
    return [*rows, row(shape="b1-h1-l1000-d64-m256", **failed)]


def test_the_crossover_is_interpolated():
    rows = sweep()
    assert result_families.crossover(rows) == pytest.approx(2000, rel=1e-6)
    assert result_families.crossover([r for r in rows if "l1000-" not in r["shape"]]) == 0
    assert result_families.crossover([r for r in rows if "l1000-" in r["shape"]]) is None
    slow = [r | {"p50_ms": "1000"} if r["provider"].startswith("favorcast") else r for r in rows]
    assert result_families.crossover(slow) == math.inf


def test_the_report_shows_every_row_and_draws_the_sweep(tmp_path: Path):
    results_file.append(tmp_path / "a-gpu.csv", sweep())
    written = result_report.write_reports(tmp_path)
    assert {p.name for p in written} == {"a-gpu.md", "a-gpu-time.png", "a-gpu-roofline.png", "a-gpu-memory.png"}
    assert all(p.stat().st_size > 0 for p in written)
    text = (tmp_path / "a-gpu.md").read_text()
    assert "at 2000 tokens" in text
    assert "| **favorcast triton** | 1 (1.9 - 2.1) |" in text
    assert "failed: RuntimeError: a \\| b" in text
    lines = [line for line in text.splitlines() if line.startswith("| b1")]
    assert len(lines) == 10
    assert {line.replace("\\|", "").count("|") for line in lines} == {11}


def test_targets_are_read_from_the_files_of_one_gpu(tmp_path: Path):
    shape, driver = "b8-h16-l4096-d64-m256", {"driver": "580.1"}
    measured = [
        row(shape=shape, provider="favorcast triton", graph_p50_ms="0.5", **driver),
        row(shape=shape, provider="sdpa flash", p50_ms="4", **driver),
        row(shape=shape, provider="sdpa cudnn", p50_ms="3", **driver),
        row(op="host cost favor_attention", p50_ms="0.0125", **driver),
    ]
    results_file.append(tmp_path / "a-gpu.csv", measured)
    lines = targets.table(tmp_path).splitlines()
    assert lines[2].endswith("| 50 % (L=4096) |")
    assert lines[3].endswith("| 6x (L=4096) |")
    assert "| 12.5 us |" in "".join(lines)
    assert sum(targets.UNMEASURED in line for line in lines) == len(targets.TARGETS) - 3
    results_file.append(tmp_path / "other.csv", [row(device="another GPU", **driver)])
    with pytest.raises(ValueError, match="--device"):
        targets.table(tmp_path)
    assert targets.table(tmp_path, device="^a GPU").splitlines() == lines


def test_a_difference_counts_where_both_quantiles_show_it():
    base = Latency(1.0, 1.0, 1.0)
    assert revisions.verdict(base, Latency(1.06, 1.2, 1.3)) == "slower"
    assert revisions.verdict(base, Latency(1.04, 1.2, 1.3)) == "same"
    assert revisions.verdict(base, Latency(0.9, 0.9, 1.3)) == "faster"


def test_the_commit_of_a_plain_copy_is_a_hash_of_its_sources(tmp_path: Path):
    (tmp_path / "kernels").mkdir()
    source = tmp_path / "kernels" / "a.py"
    source.write_text("x = 1\n")
    first = machine.commit(tmp_path)
    source.write_text("x = 2\n")
    assert first.startswith("source-")
    assert machine.commit(tmp_path) != first


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_quick_bench_runs_every_module_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["--quick", "--provider", "favorcast reference|AvgPool", "--op", "l(128|96)-", "--output", str(tmp_path)]
    assert run.main(command) == 0
    rows = results_file.read(tmp_path / "cpu.csv")
    assert all(r["status"] == "ok" for r in rows), rows
    assert {r["op"] for r in rows} == {case.op for m in run.modules() for case in m.cases("quick")}
    assert (tmp_path / "cpu.md").exists()
    capsys.readouterr()
    assert run.main([*command, "--resume"]) == 0
    assert "favor full" not in capsys.readouterr().out
    assert run.main([*command, "--budget-seconds", "0"]) == run.UNFINISHED
