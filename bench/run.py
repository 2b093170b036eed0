"""Measure favorcast's CPU implementations against their peers, forward and backward together.

    python bench/run.py                 the table of the README, to bench/results/cpu.csv
    python bench/run.py --quick         small shapes, to see that it runs

Order: correctness gate (no number from a wrong result), warm-up, then all providers of a shape in turn, again and
again, in one process on the same inputs, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import bench_favor_attention as favor
import torch
from torch import Tensor

FIELDS = [
    "op",
    "shape",
    "provider",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "ratio_to_peer",
    "max_error",
    "threads",
    "cpu",
    "torch",
    "date",
]
PEER = "performer-pytorch"
GATE = 1e-4
"""Largest allowed error against float64 relative to max|v|: float32 rounding of exponents of size 40."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benches and print one row a shape and provider; returns 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes and few repetitions; writes no file")
    parser.add_argument("--repetitions", type=int, default=15, help="timed calls a provider (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu.csv")
    options = parser.parse_args(arguments)
    shapes = favor.QUICK_SHAPES if options.quick else favor.SHAPES
    repetitions = 2 if options.quick else options.repetitions
    rows: list[dict[str, object]] = []
    for op, causal in (("favor full", False), ("favor causal", True)):
        for shape in shapes:
            measured = _measure(op, shape, causal, repetitions)
            if measured is None:
                return 1
            rows += measured
    if not options.quick:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        print(f"written to {options.output}")
    return 0


def _measure(op: str, shape: favor.Shape, causal: bool, repetitions: int) -> list[dict[str, object]] | None:
    q, k, v = (x.requires_grad_() for x in favor.inputs(shape))
    found = favor.providers(shape, causal=causal)
    checked = min(64, shape.l)
    expected = favor.exact(q.detach(), k.detach(), v.detach(), shape, causal=causal, rows=checked)
    error = ((found["favorcast"](q, k, v)[:, :, -checked:] - expected).abs().max() / v.abs().max()).item()
    if not error <= GATE:
        print(f"{op} {shape}: WRONG, error {error:.1e} above {GATE:.0e}", file=sys.stderr)
        return None
    upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(2))
    times = _interleaved({name: _training_call(f, q, k, v, upstream) for name, f in found.items()}, repetitions)
    peer = statistics.median(times[PEER]) if PEER in times else None
    rows = []
    for name, samples in times.items():
        p20, p50, p80 = (statistics.quantiles(samples, n=10, method="inclusive")[i] * 1e3 for i in (1, 4, 7))
        ratio = None if peer is None else p50 / peer / 1e3
        rows.append(
            {
                "op": op,
                "shape": str(shape),
                "provider": name,
                "p20_ms": f"{p20:.2f}",
                "p50_ms": f"{p50:.2f}",
                "p80_ms": f"{p80:.2f}",
                "ratio_to_peer": "" if ratio is None else f"{ratio:.3f}",
                "max_error": f"{error:.1e}" if name == "favorcast" else "",
                "threads": torch.get_num_threads(),
                "cpu": _cpu_name(),
                "torch": importlib.metadata.version("torch"),
                "date": datetime.date.today().isoformat(),
            }
        )
        shown = "" if ratio is None else f"{ratio:8.2f} x {PEER}"
        print(f"{op:14s} {shape!s:26s} {name:18s} {p50:10.2f} ms{shown}", flush=True)
    return rows


def _training_call(
    provider: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, upstream: Tensor
) -> Callable[[], None]:
    def call() -> None:
        torch.autograd.grad(provider(q, k, v), (q, k, v), upstream)

    return call


def _interleaved(calls: dict[str, Callable[[], None]], repetitions: int) -> dict[str, list[float]]:
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(2, repetitions)):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
