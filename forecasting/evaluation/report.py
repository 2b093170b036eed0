"""Report what a test found: scores of the model and of the baselines as a table and as a CSV file.

n target_len, d d_y_target
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..metrics.dynamics import DynamicsErrors
from ..metrics.forecast_errors import ForecastErrors
from .baselines import Persistence

METRICS = ("mse", "mae")
CSV_COLUMNS = ("forecaster", "scope", "position", "metric", "value")

Means = dict[str, np.ndarray]  # "mse" and "mae" to values in original units, NaN where nothing was observed


class Score(NamedTuple):
    """Errors of one forecaster over all observed test targets: overall (), by horizon step (n,) and by sensor (d,).

    `dynamics` holds what DynamicsErrors computes; None when that was not measured.
    """

    overall: Means
    horizon: Means
    sensor: Means
    dynamics: dict[str, float] | None = None

    @classmethod
    def of(cls, errors: ForecastErrors, dynamics: DynamicsErrors | None = None) -> "Score":
        """Read the means from accumulated errors."""
        scopes = (errors.compute(), errors.per_horizon(), errors.per_sensor())
        means = ({metric: means[metric].numpy(force=True) for metric in METRICS} for means in scopes)
        measured = None if dynamics is None else {name: float(value) for name, value in dynamics.compute().items()}
        return cls(*means, dynamics=measured)


@dataclass(frozen=True)
class Report:
    """Scores of the forecasters on the same windows, with what is needed to label them.

    Args:
        scores: name of a forecaster to its Score; the model first, persistence among the others.
        sensors: names of the d forecast sensors.
        windows: number of test windows.
        unit: unit of the sensor values, None where unknown.
        time_unit: unit of time_step, None where unknown.
        time_step: time from one horizon step to the next.
    """

    scores: dict[str, Score]
    sensors: list[str]
    windows: int
    unit: str | None = None
    time_unit: str | None = None
    time_step: float = 1.0

    @property
    def target_len(self) -> int:
        """Number of horizon steps n."""
        return len(self.scores[Persistence.name].horizon["mse"])

    def skill(self, name: str, scope: str = "overall") -> np.ndarray:
        """Return 1 - MSE / MSE of persistence: 1 is perfect, 0 no better than persistence.

        NaN where persistence makes no error.

        Args:
            name: of the forecaster.
            scope: "overall", "horizon" or "sensor".
        """
        mse, reference = (getattr(self.scores[each], scope)["mse"] for each in (name, Persistence.name))
        return 1 - np.divide(mse, reference, out=np.full_like(mse, np.nan), where=reference > 0)


def with_unit(label: str, unit: str | None, power: int = 1) -> str:
    """Append the unit in brackets, where it is known.

    Example:
        >>> with_unit("MSE", "m/s", 2)
        'MSE [(m/s)²]'
    """
    if unit is None:
        return label
    if power == 2:
        unit = f"({unit})²" if len(unit) > 1 else f"{unit}²"
    return f"{label} [{unit}]"


def score_table(report: Report) -> Table:
    """Lay out the overall scores, one forecaster a row, the model first."""
    table = Table(
        title=f"Test: {report.windows} windows, {len(report.sensors)} sensors, {report.target_len} steps ahead",
        caption=f"skill: share of persistence's squared error that is avoided\n{escape(verdict(report))}",
    )
    table.add_column("forecaster")
    for heading in ("skill", with_unit("MAE", report.unit), with_unit("MSE", report.unit, power=2)):
        table.add_column(escape(heading), justify="right")
    for row, (name, score) in enumerate(report.scores.items()):
        numbers = (f"{report.skill(name):.5f}", *(f"{score.overall[metric]:.3e}" for metric in ("mae", "mse")))
        table.add_row(name, *numbers, style="bold" if row == 0 else None, end_section=row == 0)
    return table


def verdict(report: Report) -> str:
    """Say in one sentence how the model compares with the best yardstick, by mean squared error.

    Example:
        Forecaster: squared error 17 % below the best yardstick, vector ridge; least of all at 38 of 40 steps
    """
    (model, own), *yardsticks = report.scores.items()
    name, best = min(yardsticks, key=lambda each: each[1].overall["mse"])
    ratio = float(own.overall["mse"] / best.overall["mse"]) if best.overall["mse"] > 0 else np.nan
    if not np.isfinite(ratio):
        return f"{model}: nothing to compare with the best yardstick, {name}"
    if ratio >= 1.995:
        difference = f"{ratio:.3g} times that of"
    else:
        percent = round(100 * abs(ratio - 1))
        difference = "equal to that of" if percent == 0 else f"{percent} % {'below' if ratio < 1 else 'above'}"
    least = np.min([each.horizon["mse"] for _, each in yardsticks], axis=0)
    steps = int((own.horizon["mse"] < least).sum())
    return (
        f"{model}: squared error {difference} the best yardstick, {name}; least of all at {steps} of "
        f"{report.target_len} steps"
    )


def metric_rows(report: Report) -> Iterator[tuple[str, str, str, str, float]]:
    """List every number of the report, one a row, in the columns CSV_COLUMNS.

    ==========  =================================================================================
    forecaster  class name of the model, or name of a baseline
    scope       "overall", "horizon" (one horizon step, all sensors) or "sensor" (all steps)
    position    empty, the horizon step from 1 to n, or the name of the sensor
    metric      "skill" against persistence at the same position, "mse" or "mae" in original units; overall
                also "spectral_error", "frequency_error" (both relative) and "valid_time" in time_unit, see
                DynamicsErrors
    value       NaN where nothing was observed
    ==========  =================================================================================
    """
    steps = [str(step) for step in range(1, report.target_len + 1)]
    positions = {"overall": [""], "horizon": steps, "sensor": report.sensors}
    for name, score in report.scores.items():
        for scope, labels in positions.items():
            values = {"skill": report.skill(name, scope), **getattr(score, scope)}
            for i, label in enumerate(labels):
                for metric, value in values.items():
                    yield name, scope, label, metric, float(np.atleast_1d(value)[i])
        if score.dynamics is not None:
            yield name, "overall", "", "spectral_error", score.dynamics["spectral_error"]
            yield name, "overall", "", "frequency_error", score.dynamics["frequency_error"]
            yield name, "overall", "", "valid_time", score.dynamics["valid_steps"] * report.time_step


def write_metrics(report: Report, path: Path) -> None:
    """Write the rows of `metric_rows` below a header to a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        writer.writerows(metric_rows(report))
