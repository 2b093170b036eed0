"""Describe a user's data: rows, columns, times, spectrum and the windows that training would cut."""

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from ..automatic_settings import AutomaticSettings
from ..data import SimulationTimeSeries
from ..data.time_features import generate_spectral_welch, refine_frequencies
from ..data.time_labels import time_texts
from ..evaluation.report import with_unit

PEAKS = 3
SECONDS_IN = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0))


def describe(series: SimulationTimeSeries, settings: AutomaticSettings | None) -> list[RenderableType]:
    """Return what to print about a series.

    Args:
        series: the data.
        settings: chosen for it, None where it is too short for any.
    """
    return [*_facts(series), _columns(series), *_spectrum(series), *settings_lines(series, settings)]


LINEAR_PARTS = {
    "per_sensor": "a matrix for each sensor",
    "shared": "one matrix for all sensors",
    "vector": "a matrix from all columns to all sensors",
}


def settings_lines(series: SimulationTimeSeries, settings: AutomaticSettings | None) -> list[str]:
    """Say which windows and covariates `favorcast fit --data` takes."""
    if settings is None:
        return ["windows: none, the data are too short to train on"]
    why = f", the dominant period of {settings.period:.4g} rows" if settings.period is not None else ""
    counts = ", ".join(f"{count} for {split}" for split, count in settings.counts.items())
    return [
        f"forecast: {settings.target_len} rows ({duration(series, settings.target_len)}){why}, from "
        f"{settings.context_len} rows ({duration(series, settings.context_len)})",
        f"windows: {counts}",
        f"covariates: {', '.join(series.time_cols)}",
        f"linear part: {LINEAR_PARTS[settings.linear_model]}, reading {settings.linear_window} rows, in closed form",
        f"training: {settings.epochs * settings.steps_an_epoch} steps of {settings.batch_size} windows",
    ]


def duration(series: SimulationTimeSeries, rows: float) -> str:
    """Return how long a number of rows lasts, in a unit that suits it."""
    if series.grid is not None and series.grid.months is not None:
        return f"{series.grid.months * rows:.4g} months"
    time = rows * series.sampling_time
    if series.time_unit == "s":
        for unit, seconds in SECONDS_IN:
            if time >= seconds:
                return f"{time / seconds:.4g} {unit}"
    return f"{time:.4g} {series.time_unit}" if series.time_unit else f"{time:.4g}"


def print_all(console: Console, parts: list[RenderableType]) -> None:
    """Print tables, and lines as they are."""
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(part)


def _facts(series: SimulationTimeSeries) -> list[str]:
    rows, columns = series.values.shape
    missing = np.isnan(series.values).mean()
    lines = [f"{rows} rows, {columns} columns, {missing:.2%} of the values missing"]
    for split, inside in series.splits.items() if series.rows_of_runs else ():
        chosen = [f"{name} ({len(run)})" for name, run in series.rows_of_runs.items() if run.start in inside]
        lines.append(f"{split} runs (rows): {', '.join(chosen)}")
    if series.grid is None:
        lines.append("times: none, rows are counted")
    else:
        first, last = time_texts(np.array([series.times.min(), series.times.max()]), series.time_zone)
        zone = f", time zone {series.time_zone}" if series.time_zone else ""
        lines.append(f"times: {first} to {last}, a row every {duration(series, 1)}{zone}")
        grid = series.grid
        lines.append(
            f"irregular: {grid.gaps} gaps, {grid.duplicates} duplicates, {grid.shorter} short steps"
            if grid.gaps or grid.duplicates or grid.shorter
            else "irregular: nothing, all steps are equal"
        )
    return lines + [f"note: {note}" for note in series.notes]


def _columns(series: SimulationTimeSeries) -> Table:
    table = Table(title="Columns")
    for heading in ("column", "mean", "std", "least", "largest", "missing"):
        table.add_column(heading, justify="left" if heading == "column" else "right")
    units = series.units or [None] * series.d_y_context
    for i, name in enumerate(series.target_cols + series.exo_cols):
        values = series.values[:, i].astype(np.float64)
        unit = None if units[i] is None or f"[{units[i]}]" in name else units[i]
        observed = values[~np.isnan(values)]
        numbers = (
            [f"{number:.6g}" for number in (observed.mean(), observed.std(), observed.min(), observed.max())]
            if len(observed)
            else ["-"] * 4
        )
        table.add_row(escape(with_unit(name, unit)), *numbers, f"{1 - len(observed) / len(values):.2%}")
    return table


def _spectrum(series: SimulationTimeSeries) -> list[str]:
    """Name the strongest periods of the training rows, by Welch's estimate averaged over z-scored columns."""
    train = series.longest_training_run
    mean, std = (part.numpy() for part in series.training_statistics())
    scaled = (series.values[train.start : train.stop] - mean) / std
    count = min(PEAKS, min(1024, len(scaled)) // 2)
    frequencies, density = generate_spectral_welch(scaled, 1.0, 1024, count)
    refined = refine_frequencies(scaled, 1.0, frequencies[np.argsort(-density)], 1 / min(1024, len(scaled)))
    periods = [f"{1 / frequency:.4g} rows ({duration(series, 1 / frequency)})" for frequency in refined.tolist()]
    return [f"strongest periods: {', '.join(periods)}"]
