"""How often prediction intervals held the test values, by horizon step: read from a run, kept in a CSV file, tabled."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from favorcast.forecasting.evaluation.interval_scores import STEPS_SHOWN, steps_shown

KINDS = {"coverage": "", "adaptive_coverage": ", adaptive"}
FIELDS = ("set", "seed", "level", "kind", "step", "coverage")

Row = dict[str, str]


def coverage_in(run: Path, name: str, seed: int) -> list[Row]:
    """Return the coverage of each level, kind and step in metrics.csv of a run; none where there are no intervals."""
    rows = []
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            metric = re.fullmatch(r"(coverage|adaptive_coverage)_(\d+)", row["metric"])
            if metric is not None and row["scope"] == "horizon" and row["value"] not in ("", "nan"):
                kind, level = metric.groups()
                values = (name, str(seed), level, kind, row["position"], f"{float(row['value']):.4f}")
                rows.append(dict(zip(FIELDS, values, strict=True)))
    return rows


def coverage_table(rows: Sequence[Row]) -> str:
    """Return the table as Markdown: a set, level and kind a row, the mean of its seeds at six steps and over all."""
    lines = [
        "Percent of test values inside split conformal intervals of 80 and 95 %, at the first horizon step, the last "
        "and four between (step: percent), and over all; adaptive: with adaptive conformal inference.",
        "",
        f"| intervals |{' step |' * STEPS_SHOWN} all |",
        f"| --- |{' --- |' * (STEPS_SHOWN + 1)}",
    ]
    for name in dict.fromkeys(row["set"] for row in rows):
        for level in sorted({row["level"] for row in rows}):
            for kind, said in KINDS.items():
                chosen = [row for row in rows if (row["set"], row["level"], row["kind"]) == (name, level, kind)]
                if chosen:
                    lines.append(f"| {name}, {level} %{said} | {' | '.join(_cells(chosen))} |")
    return "\n".join(lines) + "\n"


def _cells(rows: Sequence[Row]) -> list[str]:
    by_step: dict[int, list[float]] = {}
    for row in rows:
        by_step.setdefault(int(row["step"]), []).append(100 * float(row["coverage"]))
    shown = [f"{step}: {statistics.mean(by_step[step]):.1f}" for step in steps_shown(max(by_step))]
    at_all = statistics.mean(value for values in by_step.values() for value in values)
    return [*shown, *["–"] * (STEPS_SHOWN - len(shown)), f"{at_all:.1f}"]
