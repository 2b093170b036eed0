"""A bench small enough for tests: one tiny case, providers that are given, rows that are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from harness import results_file
from harness.cases import Case, Prepared, Provider
from harness.favor_exact import AttentionShape
from harness.measurement import Bench
from harness.roofline import Peaks
from harness.timing import HostClock
from suites import favor_attention as favor

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


def bench(**options) -> Bench:
    return Bench(CPU, HostClock(), Peaks(1e10, 1e11, 1e9, "made up"), {"device": "test"}, budget_ms=1.0, **options)


def row(**changes: str) -> results_file.Row:
    return dict.fromkeys(results_file.FIELDS, "") | ROW | changes


class ModuleWith:
    """A bench module of one case whose providers are given; inputs and exact results are FAVOR attention's."""

    def __init__(self, *providers: Provider) -> None:
        self.listed = list(providers)
        self.inputs: Any = lambda case, device: favor.inputs(case, CPU)
        self.expected: Any = favor.expected
        self.work: Any = favor.work

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
