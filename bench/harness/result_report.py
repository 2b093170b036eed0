"""Render result files as Markdown tables and plots, beside the files."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.result_families import best_softmax, crossover, family, length_of, unique, yardstick
from harness.results_file import Row, latest, milliseconds, read

COLUMNS = ["shape", "provider", "ms (p20 - p80)", "graph ms", "time / favorcast", "peak MiB"]
COLUMNS += ["GB/s", "TFLOP/s", "% of roofline", "error"]


def write_reports(folder: Path) -> list[Path]:
    """Write `<stem>.md` and plots for each result file of a folder; returns what was written."""
    written: list[Path] = []
    for path in sorted(folder.glob("*.csv")):
        rows = latest(read(path))
        if not rows:
            continue
        plots = _plots(rows, path.with_suffix(""))
        report = path.with_suffix(".md")
        report.write_text(markdown(rows, plots), encoding="utf-8")
        written += [report, *plots]
    return written


def markdown(rows: list[Row], plots: Iterable[Path] = ()) -> str:
    """Return the report of one result file: machines, crossovers, plots, and a table for each op, dtype and pass."""
    lines = [f"# Results: {', '.join(sorted({row['device'] for row in rows}))}", ""]
    lines += [
        "The latest row of each case and provider; the result file has all. Times are medians of interleaved calls;",
        "rates, ratios and the share of the roofline are of the CUDA-graph time where there is one. The roofline is",
        "the largest of memory traffic, matrix products and exponentials at the device's rates.",
        "",
    ]
    lines += [f"- {line}" for line in _machines(rows)] + [""]
    crossings = [f"- {line}" for line in crossover_lines(rows)]
    lines += ["## Crossover with softmax attention", "", *crossings, ""] if crossings else []
    lines += [f"![{plot.stem}]({plot.name})" for plot in plots]
    for group in unique((row["op"], row["dtype"], row["pass"]) for row in rows):
        members = [row for row in rows if (row["op"], row["dtype"], row["pass"]) == group]
        lines += ["", f"## {', '.join(group)}", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
        for shape in unique(row["shape"] for row in members):
            lines += _case_lines([row for row in members if row["shape"] == shape])
    return "\n".join(lines) + "\n"


def crossover_lines(rows: list[Row]) -> list[str]:
    """Say for each family from which length on favorcast is faster than the best softmax attention."""
    lines = []
    for group in unique(family(row) for row in rows):
        members = [row for row in rows if family(row) == group]
        at = crossover(members)
        if at is None:
            continue
        lengths = [length_of(row) for row in members]
        said = f"at {at:.0f} tokens"
        if at == 0:
            said = f"faster at all lengths from {min(lengths)}"
        elif at == math.inf:
            said = f"not reached by {max(length_of(row) for row in members if best_softmax([row]))} tokens"
        lines.append(f"{', '.join(group)}: {said}")
    return lines


def _case_lines(rows: list[Row]) -> list[str]:
    ours = yardstick(rows)
    reference = None if ours is None else milliseconds(ours)
    lines = []
    for row in rows:
        time = milliseconds(row)
        name = f"**{row['provider']}**" if row is ours else row["provider"]
        if time is None:
            lines.append(_line([row["shape"], name, f"{row['status']}: {_cell(row['message'])}"] + 7 * [""]))
            continue
        ratio = "" if reference is None else f"{time / reference:.2f}"
        share = f"{row['roofline_percent']} ({row['bound']})" if row["roofline_percent"] else ""
        spread = f"{row['p50_ms']} ({row['p20_ms']} - {row['p80_ms']})"
        cells = [spread, row["graph_p50_ms"], ratio, row["peak_mib"], row["gb_s"], row["tflop_s"], share, row["error"]]
        lines.append(_line([row["shape"], name, *cells]))
    return lines


def _plots(rows: list[Row], stem: Path) -> list[Path]:
    try:
        from harness.result_plots import write_plots
    except ModuleNotFoundError as error:
        print(f"no plots: {error}", file=sys.stderr)
        return []
    return write_plots(rows, stem)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _machines(rows: list[Row]) -> list[str]:
    columns = ("device", "threads", "driver", "torch", "triton", "ptxas", "python", "commit", "date")
    return unique(", ".join(f"{c} {row[c]}" for c in columns if row[c]) for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
