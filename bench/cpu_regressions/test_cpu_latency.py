"""CPU latencies of favorcast under pytest-benchmark, for regressions between one's own runs.

    pytest bench/cpu_regressions --benchmark-autosave                      # today
    pytest bench/cpu_regressions --benchmark-compare --benchmark-compare-fail=median:20%

Not collected by a bare `pytest` (`testpaths`). The cases, and the correctness gate before each, are `bench/run.py`'s.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from discovery import selected
from harness.cases import PASSES, Case, Passes
from harness.correctness_gate import gate, timed_call

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed: pip install -e '.[bench]'")

CPU = torch.device("cpu")
CASES = [
    pytest.param(module, case, passes, id=f"{case} {passes}".replace(" ", "-"))
    for module, case in selected("quick", "")
    for passes in getattr(module, "PASSES", PASSES)
]


@pytest.mark.parametrize(("module", "case", "passes"), CASES)
def test_latency(benchmark, module: ModuleType, case: Case, passes: Passes):
    provider = next(p for p in module.providers(case, CPU) if p.name == "favorcast reference")
    inputs = module.inputs(case, CPU)
    exact = module.expected(case, inputs, provider.target)
    prepared = provider.prepare(inputs)
    gate(provider, case, passes, prepared, exact)
    benchmark(timed_call(prepared, passes, exact))
