"""What a forecaster must know of the data it was trained on, to forecast other records of the same sensors."""

from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from .column_statistics import rows_of
from .covariates import TimeCovariates
from .field_choice import FieldChoice
from .place_axes import PlaceAxis
from .series import SimulationTimeSeries
from .table_format import TableFormat
from .time_grid import TOLERANCE, Gaps, TimeGrid
from .training_range import TrainingRange

VERSION = 1


@dataclass(frozen=True)
class DataCard:
    """Windows, columns, units, clock and reader options of the training data.

    Args:
        context_len, target_len, time_resolution: of the windows.
        target_columns, exogenous_columns, known_columns: names, in the order of the model's columns.
        other_columns: names in the training data that the model does not use.
        units: of target and exogenous columns, None where unknown.
        coordinates: of target and exogenous columns, None where unknown.
        time_unit, time_zone: of times, None where unknown.
        step: time between rows, in nanoseconds for dates.
        months: whole months between rows where a calendar counts, else None.
        has_times: whether the training data held times, rather than rows only.
        covariates: what turns times into covariates.
        null_value: number that marks a missing value.
        time_column, table, gaps: how the training data were read.
        source: where they came from.
        rows: of each split.
        runs: names of the runs of each split, empty for a single record.
        choice: which part of a simulation was read.
        axes: of the coordinates, none where unknown.
        seen: what training saw of the context columns; None in cards of before.
    """

    context_len: int
    target_len: int
    time_resolution: int
    target_columns: list[str]
    exogenous_columns: list[str]
    known_columns: list[str]
    other_columns: list[str]
    units: list[str | None] | None
    coordinates: list[list[float]] | None
    time_unit: str | None
    time_zone: str | None
    step: float
    months: int | None
    has_times: bool
    covariates: TimeCovariates
    null_value: float | None
    time_column: str | None
    table: TableFormat | None
    gaps: Gaps
    source: str | None
    rows: dict[str, int]
    runs: dict[str, list[str]] = field(default_factory=dict)
    choice: FieldChoice = field(default_factory=FieldChoice)
    axes: list[PlaceAxis] = field(default_factory=list)
    seen: TrainingRange | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which checkpoints hold."""
        return asdict(self) | {"covariates": self.covariates.to_dict(), "version": VERSION}

    @classmethod
    def of_dict(cls, content: dict[str, Any]) -> "DataCard":
        """Restore what `to_dict` gave.

        Raises:
            ValueError: for a card of a later version.
        """
        content = dict(content)
        if (version := content.pop("version")) != VERSION:
            raise ValueError(f"this favorcast reads data cards of version {VERSION}, got {version}; update favorcast")
        table = content["table"]
        return cls(
            **content
            | {
                "covariates": TimeCovariates.of_dict(content["covariates"]),
                "table": None if table is None else TableFormat(**table),
                "choice": FieldChoice(**content.get("choice", {})),  # cards of before know none
                "axes": [PlaceAxis(**axis) for axis in content.get("axes", [])],
                "seen": TrainingRange(**content["seen"]) if content.get("seen") else None,
            }
        )

    @property
    def context_columns(self) -> list[str]:
        """Names of the model's context columns, targets first."""
        return self.target_columns + self.exogenous_columns

    def positions(self, columns: list[str], *, need_known: bool = True) -> list[int]:
        """Return where the model's columns (context, then known ones) stand among those of other data, by name.

        Raises:
            ValueError: a column that is missing, or one that training did not know.
        """
        wanted = self.context_columns + (self.known_columns if need_known else [])
        missing = [name for name in wanted if name not in columns]
        unknown = [name for name in columns if name not in {*wanted, *self.known_columns, *self.other_columns}]
        if missing or unknown:
            parts = [f"{each} {what}" for each, what in ((missing, "are missing"), (unknown, "are unknown")) if each]
            close = get_close_matches(missing[0], unknown, n=1, cutoff=0.0) if missing and unknown else []
            remedy = f"rename {close[0]!r} to {missing[0]!r}" if close else "remove unknown columns, add missing ones"
            raise ValueError(
                f"the columns do not match those of training: {' and '.join(parts)}; {remedy}"
                + (" (missing values are NaN)" if missing else "")
            )
        return [columns.index(name) for name in wanted]

    def check_step(self, grid: TimeGrid | None) -> None:
        """Raise ValueError for data whose time between rows is not that of training."""
        if grid is None or not self.has_times:
            return
        if grid.months != self.months or abs(grid.step / self.step - 1) > TOLERANCE:
            raise ValueError(
                f"the rows are {self._spelled(grid.step, grid.months)} apart, those of training "
                f"{self.spelled_step}; resample the data to the step of training, or train on "
                "data of this step"
            )

    def check_times(self, timestamps: np.ndarray | None, time_zone: str | None = None) -> None:
        """Raise ValueError for data without times of the kind that the covariates follow, or of an unknown clock.

        Args:
            timestamps: of the data, None where they have none.
            time_zone: of the data; None where their dates name none.
        """
        if not self.has_times or not self.covariates.needs_clock:
            return
        dated = timestamps is not None and timestamps.dtype.kind == "M"
        if timestamps is None or dated != self.covariates.has_dates:
            raise ValueError(
                f"the training data had {'dates' if self.covariates.has_dates else 'numbers'} for times, these have "
                f"{'none' if timestamps is None else 'dates' if dated else 'numbers'}; covariates follow the clock of "
                "training: give the data a column of such times"
            )
        if dated and self.time_zone is None and time_zone is not None:
            raise ValueError(
                f"the times have the time zone {time_zone}, those of training had none, so that covariates would be "
                "off by the hours between the two clocks; write the times by the clock of the training data, without a "
                "zone, or train again with table.time_zone, the zone of that clock"
            )
        if dated and self.time_zone is not None and time_zone is None:
            raise ValueError(
                f"the times name no time zone, those of training were in {self.time_zone}, so that covariates might be "
                f"off by hours; write the times with their offset from UTC (2016-07-01T00:00:00+02:00), or state their "
                "zone as table.time_zone"
            )

    @property
    def spelled_step(self) -> str:
        """The time between rows, in words."""
        return self._spelled(self.step, self.months)

    def _spelled(self, step: float, months: int | None) -> str:
        if months is not None:
            return f"{months} months"
        if self.covariates.has_dates:
            return str(np.timedelta64(round(step), "ns").astype("timedelta64[us]").item())
        return f"{step:.10g}" + (f" {self.time_unit}" if self.time_unit else "")


def card_of(series: SimulationTimeSeries, *, context_len: int, target_len: int, time_resolution: int) -> DataCard:
    """Return what a model trained on windows of a series must know to forecast other records."""
    return DataCard(
        context_len=context_len,
        target_len=target_len,
        time_resolution=time_resolution,
        target_columns=list(series.target_cols),
        exogenous_columns=list(series.exo_cols),
        known_columns=list(series.known_cols),
        other_columns=list(series.other_cols),
        units=series.units,
        coordinates=None if series.coordinates is None else series.coordinates.tolist(),
        time_unit=series.time_unit,
        time_zone=series.time_zone,
        step=series.step,
        months=None if series.grid is None else series.grid.months,
        has_times=series.grid is not None,
        covariates=series.covariates,
        source=series.source,
        rows={split: len(rows) for split, rows in series.splits.items()},
        runs={split: list(series.runs_of(split)) for split in series.splits if series.rows_of_runs},
        axes=list(series.axes),
        seen=TrainingRange.of(rows_of(series.values, series.splits["train"])),
        **series.reading,
    )


def adopt(series: SimulationTimeSeries, card: DataCard) -> None:
    """Let a series go on as the data did that a model was trained on: columns in its order, covariates by its clock.

    Arrays are changed in place, so that windows that view them follow.

    Raises:
        ValueError: columns, time step or kind of times other than those of training, or a run of another split.
    """
    now = {name: split for split in series.splits for name in series.runs_of(split)}
    moved = [
        (name, split, now[name])
        for split, names in card.runs.items()
        for name in names
        if now.get(name, split) != split
    ]
    if moved:
        name, split, other = moved[0]
        raise ValueError(
            f"{len(moved)} runs are of another split than in training, such as {name!r}, of {split} then, of {other} "
            f"now: the runs have changed; state "
            + " and ".join(
                f"{split}_runs={[x for x in card.runs.get(split, []) if x in now]}" for split in ("val", "test")
            )
        )
    if set(card.target_columns) != set(series.target_cols):
        raise ValueError(
            f"the targets do not match those of training: expected {card.target_columns}, got {series.target_cols}; "
            "choose them with target_columns and exogenous_columns"
        )
    columns = series.target_cols + series.exo_cols
    order = card.positions(columns + series.known_cols)
    context = order[: len(columns)]
    known_values = series.known_values[:, [index - len(columns) for index in order[len(columns) :]]]
    card.check_times(series.times if series.grid is not None else None, series.time_zone)
    card.check_step(series.grid)
    features, names = card.covariates.compute(series.times, known_values)
    if features.shape != series.time_features.shape:
        raise ValueError(
            f"training had the covariates {names}, this series has {series.time_cols}; build it with the use_cycles, "
            "calendar and known_columns of training"
        )
    series.values[:] = series.values[:, context]
    series.time_features[:] = features
    series.covariates, series.time_cols = card.covariates, names
    series.target_cols, series.exo_cols = list(card.target_columns), list(card.exogenous_columns)
    series.known_cols, series.known_values = list(card.known_columns), known_values
    if series.units is not None:
        series.units = [series.units[index] for index in context]
    if series.coordinates is not None:
        series.coordinates = series.coordinates[context]
