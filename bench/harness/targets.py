"""The project's speed targets, each with what the result files say about it.

    python bench targets                  a Markdown table for kernels/README.md, from bench/results/

A number comes from the newest rows of a GPU's file only (of `cpu.csv` where the target says CPU). Without rows there is
no number: "not yet measured".
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.result_families import OURS, best_softmax, crossover, family, yardstick
from harness.results_file import Row, latest, milliseconds, read

FOLDER = Path(__file__).resolve().parents[1] / "results"
UNMEASURED = "not yet measured"
MAIN = "b8-h16-l{}-d64-m256"
LENGTHS = (1024, 4096, 16384)
BOTH = ("forward", "forward+backward")
KERNELS = OURS[0]


class Target(NamedTuple):
    """What is wanted, and how to read it from rows; the reading is empty where a row is missing."""

    what: str
    wanted: str
    reading: Callable[[list[Row]], str]
    on_cpu: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--device", default="", help="regular expression for the GPU, where there are several files")
    options = parser.parse_args(arguments)
    print(table(options.results, options.device))
    return 0


def table(folder: Path, device: str = "") -> str:
    """Return the targets and their readings as a Markdown table."""
    rows = latest(row for path in sorted(folder.glob("*.csv")) for row in read(path))
    on_gpu = [row for row in rows if not row["threads"] and re.search(device, row["device"])]
    on_cpu = [row for row in rows if row["threads"]]
    devices = sorted({row["device"] for row in on_gpu})
    if len(devices) > 1:
        raise ValueError(
            f"a table is about one GPU, these files are about several: choose one of {devices} by --device"
        )
    lines = ["| what | target | measured |", "| --- | --- | --- |"]
    for target in TARGETS:
        lines.append(
            f"| {target.what} | {target.wanted} | {target.reading(on_cpu if target.on_cpu else on_gpu) or UNMEASURED} |"
        )
    return "\n".join(lines)


def _case(rows: list[Row], op: str, shape: str, passes: str, dtype: str = "bfloat16") -> list[Row]:
    wanted = {"op": op, "shape": shape, "pass": passes, "dtype": dtype}
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _ours(rows: list[Row]) -> Row | None:
    """Return the kernels' row, also where only the reference has a number; on a CPU the reference's."""
    return yardstick([row for row in rows if row["provider"] == KERNELS] or [row for row in rows if row["threads"]])


def _times(peer: Row | None, ours: Row | None) -> str:
    """Return how many times faster we are, e.g. "5.2x"; empty if either has no number."""
    if peer is None or ours is None:
        return ""
    return f"{(milliseconds(peer) or 0) / (milliseconds(ours) or 1):.2g}x"


def _named(rows: list[Row], provider: str) -> Row | None:
    return next((r for r in rows if r["provider"] == provider and milliseconds(r) is not None), None)


def _joined(parts: dict[str, str]) -> str:
    return ", ".join(f"{value} ({name})" for name, value in parts.items() if value)


def _roofline(op: str, passes: str) -> Callable[[list[Row]], str]:
    def reading(rows: list[Row]) -> str:
        found = {length: _ours(_case(rows, op, MAIN.format(length), passes)) for length in LENGTHS}
        return _joined({f"L={n}": f"{row['roofline_percent']} %" for n, row in found.items() if row is not None})

    return reading


def _against_softmax(op: str, passes: str) -> Callable[[list[Row]], str]:
    def reading(rows: list[Row]) -> str:
        cases = {length: _case(rows, op, MAIN.format(length), passes) for length in LENGTHS}
        parts = {f"L={n}": _times(best_softmax(case), _ours(case)) for n, case in cases.items()}
        members = [r for r in rows if family(r) == (op, "b8-h16-d64-m256", "bfloat16", passes)]
        at = crossover([r for r in members if r["provider"] == KERNELS or not r["provider"].startswith("favorcast")])
        if at is not None:
            parts["crossover"] = f"below {min(LENGTHS)} tokens"
            if at > 0:
                parts["crossover"] = f"{at:.0f} tokens" if at < math.inf else "not reached"
        return _joined(parts)

    return reading


def _against(op: str, shapes: Sequence[str], peers: Sequence[str], passes: Sequence[str] = BOTH[1:], dtype="bfloat16"):
    def reading(rows: list[Row]) -> str:
        parts = {}
        for shape in shapes:
            for one in passes:
                case = _case(rows, op, shape, one, dtype)
                for peer in peers:
                    found = best_softmax(case) if peer == "sdpa" else _named(case, peer)
                    parts[f"{peer}, {shape}, {one}"] = _times(found, _ours(case))
        return _joined(parts)

    return reading


def _million_tokens(rows: list[Row]) -> str:
    found = _ours(_case(rows, "favor full", f"b1-h8-l{1 << 20}-d64-m256", BOTH[1]))
    return "" if found is None else f"{found['peak_mib']} MiB at 1M tokens, {found['p50_ms']} ms"


def _host_cost(rows: list[Row]) -> str:
    found = [r for r in rows if r["op"] == "host cost favor_attention" and r["pass"] == "forward"]
    return _joined({r["shape"]: f"{1e3 * float(r['p50_ms']):.1f} us" for r in found})


def _decomposition(rows: list[Row]) -> str:
    parts = {}
    for row in rows:
        large = row["op"] == "decomposition" and row["shape"] in LARGE_SERIES
        if large and row["provider"] == KERNELS and row["roofline_percent"]:
            parts[f"{row['shape']}, {row['dtype']}, {row['pass']}"] = f"{row['roofline_percent']} %"
    return _joined(parts)


def _accuracy(rows: list[Row]) -> str:
    case = _case(rows, "favor full", MAIN.format(4096), BOTH[1])
    ours, peer = _ours(case), _named(case, "torch two-hop")
    if ours is None or peer is None:
        return ""
    return f"{float(ours['error']) / float(peer['error']):.2g}x ({ours['error']} against {peer['error']})"


LARGE_SERIES = [f"b64-l8192-c256-k{k}" for k in (3, 25, 51, 168, 1025, 4097)]
SEED = ("b4-h8-l3920-d16-m100", "b196-h8-l80-d16-m100")
CPU_SHAPES = ("b1-h8-l1024-d64-m256", "b1-h8-l4096-d64-m256", "b1-h8-l16384-d64-m256")
TARGETS = [
    Target("forward, full, b8 h16 d64 m256", ">= 50 % of the roofline", _roofline("favor full", BOTH[0])),
    Target(
        "the same against the best SDPA",
        ">= 5x at 4k, >= 20x at 16k, crossover <= 1k",
        _against_softmax("favor full", BOTH[0]),
    ),
    Target("forward+backward against the best SDPA", "the same ratios", _against_softmax("favor full", BOTH[1])),
    Target(
        "causal against the best causal SDPA",
        ">= 3x at 4k, >= 10x at 16k",
        _against_softmax("favor causal", BOTH[1]),
    ),
    Target(
        "causal against fla's chunk_linear_attn, phi(q) and phi(k) for free",
        "faster",
        _against("favor causal", [MAIN.format(n) for n in LENGTHS], ["fla chunk_linear_attn"], BOTH),
    ),
    Target(
        "the ancestor's shapes, forward+backward",
        ">= 10x performer-pytorch, >= 3x SDPA",
        _against("favor full", SEED, ["performer-pytorch", "sdpa"]),
    ),
    Target("memory", "1M tokens train on one GPU", _million_tokens),
    Target("host cost of an eager forward call", "<= 40 us", _host_cost),
    Target("series decomposition, tensors >= 256 MB", ">= 85 % of copy bandwidth", _decomposition),
    Target(
        "the same against AvgPool1d",
        ">= 4x",
        _against("decomposition", LARGE_SERIES, ["AvgPool1d", "AvgPool1d compiled"], BOTH),
    ),
    Target(
        "training step, the ancestor's configuration",
        ">= 3x the reference, >= 5x performer-pytorch",
        _against("forecaster", ["b4-l80-n4-v49-w128"], ["favorcast reference", "performer-pytorch"]),
    ),
    Target("error against float64, beside plain torch in the same dtype", "<= 2.25x", _accuracy),
    Target(
        "CPU reference against performer-pytorch",
        "faster",
        _against("favor full", CPU_SHAPES, ["performer-pytorch"], dtype="float32"),
        on_cpu=True,
    ),
]

if __name__ == "__main__":
    sys.exit(main())
