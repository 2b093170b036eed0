"""The GPU kernels compile for every supported architecture as they are launched, without spills, on tensor cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

REPORT = Path(__file__).parents[1] / "bench" / "compile_report.py"
CASES = {
    "every-architecture": ["--dtype", "bfloat16", "--features", "hyperbolic"],
    "learnt-features": ["--architecture", "90", "--dtype", "bfloat16", "--features", "orthogonal"],
    "float32": ["--architecture", "90", "--dtype", "float32", "--features", "hyperbolic"],
}


@pytest.mark.parametrize("case", CASES)
def test_default_launches_compile_cleanly(case):
    command = [sys.executable, str(REPORT), "--head-dim", "64", "--num-features", "256", *CASES[case]]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].endswith("tensor cores everywhere")
    for kernel in ("_summarize_kernel", "_attend_kernel", "_short_kernel", "_token_gradient_kernel[keys]"):
        assert kernel in result.stdout
