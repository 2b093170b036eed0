"""Describe a user's data: rows, columns, times, spectrum and the windows that training would cut."""

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from ..automatic_settings import AutomaticSettings
from ..data import SimulationTimeSeries
from ..data.time_features import generate_spectral_welch, refine_frequencies
from ..data.time_labels import time_texts
from ..data.windows import runs_without_windows
from ..evaluation.report import with_unit
from .flags import with_flags

PEAKS, CANDIDATES = 3, 6  # periods named, and looked at
PERIODS_SEEN = 2  # in the training rows: a longer period cannot be told from a trend
MOST_COLUMNS = 40
SECONDS_IN = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0))


def describe(series: SimulationTimeSeries) -> list[RenderableType]:
    """Return what to print about a series."""
    return [*_facts(series), _columns(series), _spectrum(series)]


LINEAR_PARTS = {
    "per_sensor": "a matrix for each sensor",
    "shared": "one matrix for all sensors",
    "vector": "a matrix from all columns to all sensors",
}


def settings_lines(series: SimulationTimeSeries, settings: AutomaticSettings | None, why_none: str = "") -> list[str]:
    """Say which windows and covariates `favorcast fit --data` takes, or why there are none."""
    if settings is None:
        return [f"windows: none; {why_none}"]
    why = f", the dominant period of {settings.period:.4g} rows" if settings.period is not None else ""
    counts = ", ".join(f"{count} for {split}" for split, count in settings.counts.items())
    span = settings.context_len + settings.target_len
    short = [runs_without_windows(series, split, span) for split in series.splits]
    return [
        *(f"note: {note}" for note in short if note),
        f"forecast: {rows_text(series, settings.target_len)}{why}, from {rows_text(series, settings.context_len)}",
        f"windows: {counts}",
        f"covariates: {', '.join(series.time_cols)}",
        f"linear part: {LINEAR_PARTS[settings.linear_model]}, reading {settings.linear_window} rows, in closed form",
        f"training: {settings.epochs * settings.steps_an_epoch} steps of {settings.batch_size} windows",
    ]


def rows_text(series: SimulationTimeSeries, rows: float) -> str:
    """Return a number of rows with the time that they last, where that is known."""
    is_counted = series.grid is None and series.time_unit is None and series.sampling_time == 1
    return f"{rows:.4g} rows" if is_counted else f"{rows:.4g} rows ({duration(series, rows)})"


def duration(series: SimulationTimeSeries, rows: float) -> str:
    """Return how long a number of rows lasts, in a unit that suits it."""
    if series.grid is not None and series.grid.months is not None:
        return f"{series.grid.months * rows:.4g} months"
    time = rows * series.sampling_time
    if series.time_unit == "s":
        for unit, seconds in SECONDS_IN:
            if float(f"{time / seconds:.4g}") >= 1:  # 23.9999 h are written as 24, and so as a day
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
    for split in series.splits if series.rows_of_runs else ():
        chosen = [f"{name} ({len(run)})" for name, run in series.runs_of(split).items()]
        lines.append(f"{split} runs (rows): {', '.join(chosen)}")
    if series.grid is None:
        lines.append("times: none, rows are counted")
    else:
        first, last = time_texts(np.array([series.times.min(), series.times.max()]), series.time_zone)
        zone = f", time zone {series.time_zone}" if series.time_zone else ""
        lines.append(f"times: {first} to {last}, a row every {duration(series, 1)}{zone}")
        irregular = ", ".join(series.grid.irregularities) or "nothing, all steps are equal"
        lines.append(f"irregular: {irregular}")
    return lines + [f"note: {with_flags(note, own_data=True)}" for note in series.notes]


def _columns(series: SimulationTimeSeries) -> Table:
    names = series.target_cols + series.exo_cols
    table = Table(
        title="Columns" if len(names) <= MOST_COLUMNS else f"The first {MOST_COLUMNS} of {len(names)} columns"
    )
    for heading in ("column", "mean", "std", "least", "largest", "missing"):
        table.add_column(heading, justify="left" if heading == "column" else "right")
    units = series.units or [None] * series.d_y_context
    for i, name in enumerate(names[:MOST_COLUMNS]):
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


def _spectrum(series: SimulationTimeSeries) -> str:
    """Name the strongest periods that training rows hold twice, by Welch's estimate averaged over z-scored columns."""
    train = series.longest_training_run
    mean, std = (part.numpy() for part in series.training_statistics())
    scaled = (series.values[train.start : train.stop] - mean) / std
    segment = min(1024, len(scaled))
    count = min(CANDIDATES, segment // 2)
    frequencies, density = generate_spectral_welch(scaled, 1.0, 1024, count)
    refined = refine_frequencies(scaled, 1.0, frequencies[np.argsort(-density)], 1 / segment)
    periods = [1 / frequency for frequency in refined.tolist() if frequency * len(scaled) >= PERIODS_SEEN]
    texts = [rows_text(series, period) for period in periods[:PEAKS]]
    none = f"none of which the {len(scaled)} training rows hold {PERIODS_SEEN}"
    return f"strongest periods: {', '.join(dict.fromkeys(texts)) or none}"
