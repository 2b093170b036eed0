"""Plots of a result file: time, share of the roofline and memory against length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib
from harness.result_families import OURS, crossover, family, length_of, unique
from harness.results_file import Row, milliseconds
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

FEWEST_LENGTHS = 3
COLUMNS = 3
COLOURS = [matplotlib.colormaps["tab20"](shade) for shade in (*range(0, 20, 2), *range(1, 20, 2))]
Lines = dict[str, list[tuple[int, float]]]


def _number(column: str) -> Callable[[Row], float | None]:
    return lambda row: float(row[column]) if row[column] and row["status"] == "ok" else None


class Metric(NamedTuple):
    """What a figure shows of a row; shares have a linear axis from 0 to 100 %."""

    label: str
    value: Callable[[Row], float | None]
    is_share: bool = False


METRICS = {
    "time": Metric("time [ms]", milliseconds),
    "roofline": Metric("share of the roofline [%]", _number("roofline_percent"), is_share=True),
    "memory": Metric("peak memory [MiB]", _number("peak_mib")),
}


class Panel(NamedTuple):
    """A case over its lengths: provider to (length, value)."""

    title: str
    lines: Lines
    rows: list[Row]


def write_plots(rows: list[Row], stem: Path) -> list[Path]:
    """Write `<stem>-time.png`, `-roofline.png` and `-memory.png`, a panel for each case with three lengths or more.

    A provider has one colour in all of them.
    """
    colours = dict(zip(_ours_first(row["provider"] for row in rows), COLOURS * 2, strict=False))
    written = []
    for name, metric in METRICS.items():
        panels = []
        for group in unique(family(row) for row in rows):
            members = [row for row in rows if family(row) == group]
            lines = _lines(members, metric)
            if len({length for line in lines.values() for length, _ in line}) >= FEWEST_LENGTHS:
                panels.append(Panel(", ".join(group), lines, members))
        if panels:
            path = stem.with_name(f"{stem.name}-{name}.png")
            _figure(panels, metric, colours).savefig(path, dpi=100)
            written.append(path)
    return written


def _ours_first(names: Iterable[str]) -> list[str]:
    return sorted(unique(names), key=lambda name: (OURS.index(name) if name in OURS else len(OURS), name))


def _lines(rows: list[Row], metric: Metric) -> Lines:
    """Return provider to (length, value), without what has no number or cannot be drawn on a logarithmic axis."""
    found: Lines = {}
    for row in sorted(rows, key=length_of):
        value = metric.value(row)
        if value is not None and value > 0:
            found.setdefault(row["provider"], []).append((length_of(row), value))
    return found


def _figure(panels: list[Panel], metric: Metric, colours: dict[str, tuple[float, ...]]) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, panel in zip(axes, panels, strict=False):
        _draw(ax, panel, metric, colours)
        at = crossover(panel.rows) if metric.value is milliseconds else None
        if at is not None and 0 < at < math.inf:
            ax.axvline(at, color="0.4", linestyle=":")
            ax.annotate(f" {at:.0f}", (at, 0.02), xycoords=("data", "axes fraction"), color="0.4", fontsize=8)
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure


def _draw(ax: Axes, panel: Panel, metric: Metric, colours: dict[str, tuple[float, ...]]) -> None:
    for provider in _ours_first(panel.lines):
        width = 2.2 if provider in OURS else 1.0
        points = zip(*panel.lines[provider], strict=True)
        ax.plot(*points, color=colours[provider], marker="o", markersize=3, linewidth=width, label=provider)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda length, _: f"{length / 1024:g}k" if length >= 1 << 13 else f"{length:g}")
    if metric.is_share:
        ax.set_ylim(0, max(100.0, ax.get_ylim()[1]))
    else:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("length")
    ax.set_ylabel(metric.label)
    ax.set_title(panel.title, fontsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=6)
