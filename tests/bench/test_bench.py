"""The bench measures: its gate, what it does with failures, and the whole of it on tiny shapes."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any

import discovery
import pytest
import run
import torch
from harness import correctness_gate, favor_peers, measurement, results_file
from harness import timing as stopwatch
from harness.cases import PASSES, Prepared, Provider, Tolerance
from harness.measurement import BrokenDeviceError, measure
from harness.roofline import KNOWN, limit_of
from small_bench import CPU, TINY, ModuleWith, bench, ours, wrong_by
from suites import favor_attention as favor


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions, and no profiler, which takes longer than everything else here, where memory is not the point."""
    monkeypatch.setattr(measurement, "peak_mib", lambda call, device: 1.5)
    monkeypatch.setattr(stopwatch, "WARM_UP_CALLS", 1)
    monkeypatch.setattr(stopwatch, "FEWEST_ROUNDS", 1)
    monkeypatch.setattr(run, "QUICK_BUDGET_MS", 1.0)


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


def test_the_gate_refuses_a_result_that_is_right_only_at_first():
    def prepare(inputs):
        prepared, calls = ours().prepare(inputs), count()
        return Prepared(lambda: prepared.call() * (1.0 if next(calls) < 2 else 1.01), prepared.leaves)

    rows = measure(ModuleWith(replace(ours(), prepare=prepare)), TINY, bench())
    assert [r["status"] for r in rows] == ["wrong", "wrong"]


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


def test_an_implementation_that_does_not_exist_is_absent_not_failed():
    def refuses(inputs):
        raise ValueError("impl='triton' cannot be honoured: causal attention has no GPU kernel")

    def is_wrong(inputs):
        raise ValueError("key must have query's head dim")

    rows = measure(ModuleWith(Provider("favorcast triton", refuses), Provider("other", is_wrong)), TINY, bench())
    assert [(r["provider"], r["status"]) for r in rows] == [("favorcast triton", "absent"), ("other", "failed")] * 2


def test_a_case_that_fails_as_a_whole_leaves_earlier_numbers_alone(tmp_path: Path):
    described = bench()
    described.machine.update(dict.fromkeys(results_file.FIELDS[-9:], ""))
    path = tmp_path / "x.csv"
    module = ModuleWith(ours())
    assert run.run(described, [(module, TINY)], path) == 0
    module.listed.append(Provider("peer", lambda inputs: 1 / 0))
    module.inputs = lambda case, device: 1 / 0
    assert run.run(described, [(module, TINY)], path) == run.WRONG
    found = {(r["provider"], r["pass"]): r["status"] for r in results_file.read(path)}
    assert found == {(ours().name, p): "ok" for p in PASSES} | {("peer", "forward"): "failed"}


def test_an_exact_result_that_cannot_be_had_costs_its_own_providers_only():
    def expected(case, inputs, target):
        if target == "softmax":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return favor.expected(case, inputs, target)

    module = ModuleWith(ours(), *(p for p in favor.providers(TINY, CPU) if p.target == "softmax"))
    module.expected = expected
    rows = {r["provider"]: r for r in measure(module, TINY, bench()) if r["pass"] == "forward"}
    assert rows[ours().name]["status"] == "ok"
    assert rows["sdpa"]["status"] == "failed"
    assert "CUDA out of memory" in rows["sdpa"]["message"]


def test_what_was_wrong_before_is_wrong_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    described = bench()
    described.machine.update(dict.fromkeys(results_file.MACHINE, ""))
    module = ModuleWith(replace(wrong_by(1.5), name="favorcast triton"))
    path = tmp_path / "x.csv"
    assert run.run(described, [(module, TINY)], path, resume=True) == run.WRONG
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("it is not measured again"))
    assert run.run(described, [(module, TINY)], path, resume=True) == run.WRONG
    described.machine["threads"] = "1"
    with pytest.raises(pytest.fail.Exception):
        run.run(described, [(module, TINY)], path, resume=True)


def test_a_device_that_breaks_while_it_is_timed_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def breaks(*_):
        raise RuntimeError("CUDA error: an illegal instruction was encountered")

    monkeypatch.setattr(measurement, "interleaved", breaks)
    described = bench()
    described.machine.update(dict.fromkeys(results_file.MACHINE, ""))
    other = replace(TINY, op=favor.CAUSAL)
    assert run.run(described, [(ModuleWith(ours()), case) for case in (TINY, other)], tmp_path / "x.csv") == run.WRONG
    assert {row["op"] for row in results_file.read(tmp_path / "x.csv")} == {TINY.op}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "("], "is no regular expression"),
        (["--provider", "("], "is no regular expression"),
        (["--device", "banana"], "expected cpu, cuda or cuda:<number>"),
        (["--quick", "--op", "nothing matches"], "nothing to run"),
        (["--quick", "--provider", "nobody"], "nothing to run"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--compare", "no-such-revision"], "git knows no such revision"),
        (["--failures", "--output", "no/such/folder"], "there is no folder"),
        (["--quick", "--output", "/dev/null/folder"], "Not a directory"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == run.IMPOSSIBLE
    assert message in capsys.readouterr().err


def test_references_that_wait_for_the_device_are_not_captured(monkeypatch: pytest.MonkeyPatch):
    gpu = torch.device("cuda")
    found = [
        (case.op, p) for m in discovery.modules() for case in m.cases("gpu") for p in m.providers(case, gpu) if p.waits
    ]
    assert {op for op, _ in found} == {favor.CAUSAL, favor.STEP_CAUSAL, "favor decode", "rollout step"}
    assert {provider.name for _, provider in found} == {"favorcast reference"}
    monkeypatch.setattr(measurement, "capture", lambda call, device: pytest.fail("captured"))
    described = bench()
    described.device = gpu
    timed = measurement._Timed(found[0][1], lambda: None, 0.0, 1.0, None)
    graphs, reasons = measurement._captured({"favorcast reference": timed}, described)
    assert not graphs
    assert "waits for the device" in reasons["favorcast reference"]


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
        assert correctness_gate.gate(peer, TINY, "forward", prepare(inputs), exact) < 1e-5


@pytest.mark.parametrize("module", discovery.modules(), ids=lambda module: module.__name__)
def test_gpu_cases_are_declared_with_providers_and_work(module: Any):
    cases = module.cases("gpu")
    assert len({str(case) for case in cases}) == len(cases)
    for case in cases:
        providers = module.providers(case, torch.device("cuda"))
        assert [p.name for p in providers[:2]] == ["favorcast triton", "favorcast reference"]
        assert len({p.name for p in providers}) == len(providers)
        for passes, provider in product(getattr(module, "PASSES", PASSES), providers):
            work = module.work(case, passes, provider.target)
            assert work is None or limit_of(work, KNOWN["H200"], case.dtype).milliseconds > 0


def test_attention_is_measured_up_to_a_million_tokens():
    cases = favor.cases("gpu")
    assert {case.op for case in cases} == {favor.FULL, favor.CAUSAL, favor.STEP_CAUSAL}
    assert max(case.shape.length for case in cases) == 1 << 20


@pytest.mark.parametrize("name", ["suites.favor_attention", "suites.favor_decode", "suites.series_decomposition"])
def test_the_kernels_pass_the_gate_in_the_interpreter(name: str):
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if not triton.knobs.runtime.interpret:
        pytest.skip("a GPU is there: the bench itself runs the kernels")
    module: Any = next(m for m in discovery.modules() if m.__name__ == name)
    case = module.cases("quick")[0]
    inputs = module.inputs(case, CPU)
    (kernels,) = (p for p in module.providers(case, CPU) if "interpreted" in p.name)
    exact = module.expected(case, inputs, kernels.target)
    for passes in getattr(module, "PASSES", PASSES):
        correctness_gate.gate(kernels, case, passes, kernels.prepare(inputs), exact)


def test_the_quick_bench_runs_every_module_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["--quick", "--provider", "favorcast reference|AvgPool", "--op", "l(128|96)-", "--output", str(tmp_path)]
    assert run.main(command) == 0
    rows = results_file.read(tmp_path / "cpu.csv")
    assert all(r["status"] == "ok" for r in rows), rows
    assert {r["op"] for r in rows} == {case.op for m in discovery.modules() for case in m.cases("quick")}
    assert (tmp_path / "cpu.md").exists()
    capsys.readouterr()
    assert run.main([*command, "--resume"]) == 0
    assert "favor full" not in capsys.readouterr().out
    assert run.main([*command, "--budget-seconds", "0"]) == run.UNFINISHED
