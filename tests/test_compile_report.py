"""The GPU kernels compile for every supported architecture as they are launched, without spills, on tensor cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

REPORT = Path(__file__).parents[1] / "bench" / "compile_report.py"
FAVOR = ["--op", "favor", "--num-features", "256", "--head-dim"]
DECOMPOSITION = ["--op", "decomposition", "--dtype", "bfloat16"]
CASES = {
    "every-architecture": [*FAVOR, "64", "--dtype", "bfloat16", "--features", "hyperbolic"],
    "learnt-features": [*FAVOR, "64", "--architecture", "90", "--dtype", "bfloat16", "--features", "orthogonal"],
    "float32": [*FAVOR, "32", "--architecture", "90", "--dtype", "float32", "--features", "hyperbolic"],
    "decomposition": [*DECOMPOSITION, "--architecture", "80", "90", "--window", "25"],
    "wide-windows": [*DECOMPOSITION, "--architecture", "90", "--window", "4097"],
}
KERNELS = {"favor": ["_summarize_kernel", "_attend_kernel", "_short_kernel", "_token_gradient_kernel[keys]"]}


@pytest.mark.parametrize("case", CASES)
def test_default_launches_compile_cleanly(case):
    command = [sys.executable, str(REPORT), *CASES[case]]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].endswith("tensor cores for all products")
    for kernel in KERNELS.get(CASES[case][1], ["_decompose"]):
        assert kernel in result.stdout


def test_a_spill_fails_the_report():
    sys.path.insert(0, str(REPORT.parent))
    try:
        from compile_report import Case, Launch, verdict
    finally:
        sys.path.remove(str(REPORT.parent))

    def launch(**changes: object) -> Launch:
        good = {"tiles": {}, "num_warps": 4, "num_stages": 2, "registers": 255, "stack": 0, "shared": 1024}
        case = Case("favor", 90, "bfloat16", (64, 256, "hyperbolic"))
        return Launch(case, "_attend_kernel", **{**good, "tensor_instructions": {"mma.sync": 1}, **changes})

    assert not launch().defects
    assert launch(stack=8).defects == ["8 bytes of stack"]
    assert launch(shared=2**20).defects == ["1048576 bytes of shared memory, the limit is 232448"]
    assert launch(tensor_instructions={}).defects == ["no tensor-core instruction"]
    assert "2 launches for sm_90: 1 DEFECTIVE" in verdict([launch(), launch(stack=8)], [90])
