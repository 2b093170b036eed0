"""The GPU kernels compile for every supported architecture as they are launched, without spills, on tensor cores."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

BENCH = Path(__file__).parents[2] / "bench"
FAVOR = ["--op", "favor", "--num-features", "256", "--head-dim"]
DECOMPOSITION = ["--op", "decomposition", "--dtype", "bfloat16"]
CASES = {
    "every-architecture": [*FAVOR, "64", "--dtype", "bfloat16", "--features", "hyperbolic"],
    "learnt-features": [*FAVOR, "64", "--architecture", "90", "--dtype", "bfloat16", "--features", "orthogonal"],
    "float32": [*FAVOR, "32", "--architecture", "90", "--dtype", "float32", "--features", "hyperbolic"],
    "causal": ["--op", "causal", *FAVOR[2:], "64", "--architecture", "90", "--dtype", "bfloat16"],
    "decomposition": [*DECOMPOSITION, "--architecture", "80", "90", "--window", "25"],
    "wide-windows": [*DECOMPOSITION, "--architecture", "90", "--window", "4097"],
}
KERNELS = {
    "causal": [
        "_causal_attend_kernel",
        "_causal_query_gradient_kernel",
        "_causal_key_gradient_kernel",
        "_prefix_states_kernel",
        "_received_walk_kernel",
        "_short_kernel",
    ],
    "favor": ["_summarize_kernel", "_attend_kernel", "_short_kernel", "_token_gradient_kernel[keys]"],
}


@pytest.mark.parametrize("case", CASES)
def test_default_launches_compile_cleanly(case):
    command = [sys.executable, str(BENCH), "compile_report", *CASES[case]]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].endswith("tensor cores for all products")
    for kernel in KERNELS.get(CASES[case][1], ["_decompose"]):
        assert kernel in result.stdout


@pytest.fixture
def compile_report(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, which replaces Triton's driver when it compiles: here it is not let."""
    return importlib.import_module("without_gpu.compile_report")


def compiled(compile_report: Any, case: Any = None, **changes: object) -> Any:
    """Return a launch without defects, but for the changes."""
    case = case or compile_report.Case("favor", 90, "bfloat16", (64, 256, "hyperbolic"))
    good = {"tiles": {}, "num_warps": 4, "num_stages": 2, "registers": 255, "stack": 0, "spill_share": 0.0}
    good |= {"serialised": [], "shared": 1024, "barriers": 0}
    return compile_report.Launch(case, "_attend_kernel", **{**good, "tensor_instructions": {"mma.sync": 1}, **changes})


def test_a_spill_fails_the_report(compile_report: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compile_report.triton, "__version__", "3.7.1")

    def launch(**changes: object) -> Any:
        return compiled(compile_report, **changes)

    assert not launch().defects
    assert launch(stack=8, spill_share=0.2).defects == ["8 bytes of stack, 20% of the main loop"]
    assert not launch(stack=8, spill_share=0.1).defects
    assert launch(shared=2**20).defects == ["1048576 bytes of shared memory, the limit is 232448"]
    assert launch(tensor_instructions={}).defects == ["no tensor-core instruction"]
    assert launch(serialised=["C7510"]).defects == ["products one after the other (C7510)"]
    spilt = launch(stack=8, spill_share=0.14)
    assert "2 launches for sm_90: 1 DEFECTIVE" in compile_report.verdict([launch(), spilt], [90])
    monkeypatch.setattr(compile_report.triton, "__version__", "3.8.0")  # another compiler: a little more is expected
    assert not spilt.defects
    assert launch(stack=8, spill_share=0.16).defects


def test_a_report_that_ran_out_of_time_goes_on(
    compile_report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "report.json"
    command = [*DECOMPOSITION, "--architecture", "80", "--window", "3", "25"]
    seen: list[str] = []

    def compile_case(case: Any) -> list[Any]:
        seen.append(str(case))
        return [compiled(compile_report, case)]

    def run(*options: str) -> tuple[int, list[str]]:
        seen.clear()
        monkeypatch.setattr("sys.argv", ["compile_report", *command, "--json", str(path), "--resume", *options])
        return compile_report.main(), list(seen)

    monkeypatch.setattr(compile_report, "compile_case", compile_case)
    monkeypatch.setattr(compile_report, "ProcessPoolExecutor", ThreadPoolExecutor)
    assert run("--budget-seconds", "0", "--processes", "1") == (compile_report.UNFINISHED, ["k3"])
    assert "3 cases are left; run again with --resume" in capsys.readouterr().out
    assert run() == (0, ["k3 masked", "k25", "k25 masked"])
    assert run("--budget-seconds", "0") == (0, [])
    assert "4 launches for sm_80: no stack" in capsys.readouterr().out
    monkeypatch.setattr(compile_report, "commit", lambda root: "other sources")
    assert len(run()[1]) == 4
