"""Plots of a result file: time, share of the roofline and memory against length."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from result_families import crossover, family, length_of, unique
from results_file import Row, milliseconds

FEWEST_LENGTHS = 3
COLUMNS = 3
Metric = Callable[[Row], float | None]


def _number(column: str) -> Metric:
    return lambda row: float(row[column]) if row[column] and row["status"] == "ok" else None


METRICS: dict[str, tuple[str, Metric]] = {
    "time": ("time [ms]", milliseconds),
    "roofline": ("share of the roofline [%]", _number("roofline_percent")),
    "memory": ("peak memory [MiB]", _number("peak_mib")),
}


def write_plots(rows: list[Row], stem: Path) -> list[Path]:
    """Write `<stem>-time.png`, `-roofline.png` and `-memory.png`, a panel for each case with three lengths or more."""
    written = []
    for name, (label, metric) in METRICS.items():
        panels = []
        for group in unique(family(row) for row in rows):
            members = [row for row in rows if family(row) == group]
            lines = _lines(members, metric)
            if len({length for line in lines.values() for length, _ in line}) >= FEWEST_LENGTHS:
                panels.append((group, members, lines))
        if panels:
            path = stem.with_name(f"{stem.name}-{name}.png")
            _figure(panels, label, mark_crossover=name == "time").savefig(path, dpi=100)
            written.append(path)
    return written


def _lines(rows: list[Row], metric: Metric) -> dict[str, list[tuple[int, float]]]:
    """Return provider to (length, value), without what has no number or cannot be drawn on a logarithmic axis."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(rows, key=length_of):
        value = metric(row)
        if value is not None and value > 0:
            found.setdefault(row["provider"], []).append((length_of(row), value))
    return found


def _figure(panels: list, label: str, *, mark_crossover: bool) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, (group, members, lines) in zip(axes, panels, strict=False):
        _panel(ax, lines, ", ".join(group), label)
        at = crossover(members) if mark_crossover else None
        if at is not None and 0 < at < math.inf:
            ax.axvline(at, color="0.4", linestyle=":")
            ax.annotate(f" {at:.0f}", (at, 0.02), xycoords=("data", "axes fraction"), color="0.4", fontsize=8)
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure


def _panel(ax: Axes, lines: dict[str, list[tuple[int, float]]], title: str, label: str) -> None:
    for provider, points in sorted(lines.items()):
        ours = provider.startswith("favorcast")
        ax.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=2.2 if ours else 1.0, label=provider)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("length")
    ax.set_ylabel(label)
    ax.set_title(title, fontsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=6)
