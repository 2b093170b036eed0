"""Report what a test found: scores of the model and of the baselines as a table and as a CSV file.

n target_len, d d_y_target
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..metrics.dynamics import DynamicsErrors
from ..metrics.forecast_errors import ForecastErrors
from .baselines import Persistence
from .interval_scores import IntervalReport, interval_lines

METRICS = ("mse", "mae")
DOMINANT = 0.25  # share of persistence's squared error that goes to other sensors once errors are standardised
SENSORS_NAMED = 3
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
        scales: (d,) training standard deviation of each sensor, None where unknown.
        left_out: names of forecasters without scores, each with the reason.
        intervals: scores of the model's prediction intervals, None where it has none.
    """

    scores: dict[str, Score]
    sensors: list[str]
    windows: int
    unit: str | None = None
    time_unit: str | None = None
    time_step: float = 1.0
    scales: np.ndarray | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    intervals: IntervalReport | None = None

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

    def standardised_error(self, name: str) -> float:
        """Return the mean over sensors of MSE / variance of training, in which no sensor counts more for its unit."""
        assert self.scales is not None
        errors = self.scores[name].sensor["mse"] / np.square(self.scales)
        return float(np.mean(errors[~np.isnan(errors)])) if not np.isnan(errors).all() else np.nan

    def standardised_skill(self, name: str) -> float:
        """Return 1 - standardised error / that of persistence; NaN where persistence makes no error."""
        reference = self.standardised_error(Persistence.name)
        return 1 - self.standardised_error(name) / reference if reference > 0 else np.nan

    @property
    def dominant(self) -> tuple[list[str], float] | None:
        """The fewest sensors that make half of persistence's squared error in original units, with their share.

        None where scales are unknown, or where sensors share standardised errors about as they share those.
        """
        if self.scales is None:
            return None
        mse = np.nan_to_num(self.scores[Persistence.name].sensor["mse"])
        shares, fair = (part / max(part.sum(), np.finfo(float).tiny) for part in (mse, mse / np.square(self.scales)))
        if np.maximum(shares - fair, 0).sum() < DOMINANT:
            return None
        order = np.argsort(-shares)
        count = int(np.searchsorted(np.cumsum(shares[order]), 0.5)) + 1
        return [self.sensors[i] for i in order[:count]], float(shares[order[:count]].sum())


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
    """Lay out the overall scores, one forecaster a row, the model first.

    Where the units of few sensors decide the errors, that is said, and standardised skills stand beside.
    """
    dominant = report.dominant
    lines = ["skill: share of persistence's squared error that is avoided", verdict(report)]
    if dominant is not None:
        names, share = dominant
        more = f" and {len(names) - SENSORS_NAMED} more" if len(names) > SENSORS_NAMED else ""
        lines.append(
            f"{share:.0%} of that error is of {', '.join(names[:SENSORS_NAMED])}{more}, by their units; standardised, "
            "each sensor counts in its training standard deviation"
        )
        lines.append(standardised_verdict(report))
    lines += left_out_lines(report)
    lines += [] if report.intervals is None else interval_lines(report.intervals)
    table = Table(
        title=f"Test: {report.windows} windows, {len(report.sensors)} sensors, {report.target_len} steps ahead",
        caption=escape("\n".join(lines)),
    )
    table.add_column("forecaster")
    headings = ["skill", with_unit("MAE", report.unit), with_unit("MSE", report.unit, power=2)]
    for heading in [*headings, *(["standardised skill"] if dominant else [])]:
        table.add_column(escape(heading), justify="right")
    for row, (name, score) in enumerate(report.scores.items()):
        numbers = [f"{report.skill(name):.5f}", *(f"{score.overall[metric]:.3e}" for metric in ("mae", "mse"))]
        numbers += [f"{report.standardised_skill(name):.5f}"] if dominant else []
        table.add_row(name, *numbers, style="bold" if row == 0 else None, end_section=row == 0)
    return table


def left_out_lines(report: Report) -> list[str]:
    """Say which yardsticks have no scores, and why."""
    return [f"left out: {name} ({why.removeprefix(f'{name} ')})" for name, why in report.left_out.items()]


def verdict(report: Report) -> str:
    """Say in one sentence how the model compares with the best yardstick, by mean squared error.

    Example:
        Forecaster: squared error 17 % below the best yardstick, vector ridge; below all yardsticks at 38 of 40 steps
    """
    (model, own), *yardsticks = report.scores.items()
    said, is_known = _beside_the_best(model, {name: float(each.overall["mse"]) for name, each in report.scores.items()})
    if not is_known:
        return said
    least = np.min([each.horizon["mse"] for _, each in yardsticks], axis=0)
    steps = int((own.horizon["mse"] < least).sum())
    if steps in (0, report.target_len):
        return f"{said}; below all yardsticks at {'every' if steps else 'no'} step"
    return f"{said}; below all yardsticks at {steps} of {report.target_len} steps"


def standardised_verdict(report: Report) -> str:
    """Say how the model compares with the best yardstick by the standardised error."""
    model = next(iter(report.scores))
    said, _ = _beside_the_best(model, {name: report.standardised_error(name) for name in report.scores})
    return f"standardised: {said.removeprefix(f'{model}: ')}"


def _beside_the_best(model: str, errors: dict[str, float]) -> tuple[str, bool]:
    """Return the sentence, and whether there was anything to compare."""
    name, best = min(((name, error) for name, error in errors.items() if name != model), key=lambda each: each[1])
    ratio = errors[model] / best if best > 0 else np.nan
    if not np.isfinite(ratio):
        return f"{model}: nothing to compare with the best yardstick, {name}", False
    if ratio >= 1.995:
        difference = f"{ratio:.3g} times that of"
    else:
        percent = round(100 * abs(ratio - 1))
        difference = "equal to that of" if percent == 0 else f"{percent} % {'below' if ratio < 1 else 'above'}"
    return f"{model}: squared error {difference} the best yardstick, {name}", True


def metric_rows(report: Report) -> Iterator[tuple[str, str, str, str, float]]:
    """List every number of the report, one a row, in the columns CSV_COLUMNS.

    ==========  =================================================================================
    forecaster  class name of the model, or name of a baseline
    scope       "overall", "horizon" (one horizon step, all sensors) or "sensor" (all steps)
    position    empty, the horizon step from 1 to n, or the name of the sensor
    metric      "skill" against persistence at the same position, "mse" or "mae" in original units; overall
                also "standardised_skill" (see Report), "spectral_error", "frequency_error" (both relative)
                and "valid_time" in time_unit (see DynamicsErrors). Of the model, overall "crps" in original
                units, and by horizon step "coverage_80", "width_80" and "adaptive_coverage_80" of its
                prediction intervals, and those of 95 %
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
        if report.scales is not None:
            yield name, "overall", "", "standardised_skill", report.standardised_skill(name)
        if score.dynamics is not None:
            yield name, "overall", "", "spectral_error", score.dynamics["spectral_error"]
            yield name, "overall", "", "frequency_error", score.dynamics["frequency_error"]
            yield name, "overall", "", "valid_time", score.dynamics["valid_steps"] * report.time_step

    if report.intervals is not None:
        yield from _interval_rows(next(iter(report.scores)), report.intervals)


def _interval_rows(model: str, report: IntervalReport) -> Iterator[tuple[str, str, str, str, float]]:
    yield model, "overall", "", "crps", report.crps
    kinds = {"coverage": report.coverage, "width": report.width, "adaptive_coverage": report.adaptive_coverage}
    for i, level in enumerate(report.levels):
        for kind, values in kinds.items():
            for step, value in enumerate([] if values is None else values[i], start=1):
                yield model, "horizon", str(step), f"{kind}_{level * 100:.0f}", float(value)


def write_metrics(report: Report, path: Path) -> None:
    """Write the rows of `metric_rows` below a header to a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        writer.writerows(metric_rows(report))
