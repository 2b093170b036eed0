"""Hold one record of sensors, divided by time, with its time covariates.

d_x time covariates, d_y_context sensor columns of which the first d_y_target are forecast.
"""

import warnings
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..flat_arguments import FieldsSignature, arguments_of, check_names, takes_fields_of
from .column_choice import listed
from .column_statistics import in_float32_if_fine_enough, rows_of, statistics, varies
from .covariates import CovariateConfig, TimeCovariates, fitting_cycles, local_clock
from .field_choice import FieldChoice
from .runs import Runs, read_runs
from .series_config import SeriesConfig
from .table_format import TableFormat
from .time_features import check_calendar, generate_spectral_welch, phasors, refine_frequencies

GIVEN_ELSEWHERE = {
    "table=TableFormat({name}={value})": {field.name for field in fields(TableFormat)},
    "DataModule(series, {name}={value})": {"context_len", "target_len", "batch_size", "num_workers", "stride"},
}


class DataWarning(UserWarning):
    """What was noticed about a user's data, and what was done about it."""


class SimulationTimeSeries:
    """Read a record, split it by time, and compute its time covariates from the training rows.

    Give data_path or data. The order is fixed: split first; then the frequencies, the range of Time_Index and the
    statistics come from training rows alone, so that nothing of validation or test reaches them.

    Its arguments are the fields of SeriesConfig, with those of Split, ColumnChoice, FieldChoice and CovariateConfig.

    Attributes:
        values: (rows, d_y_context), targets first, missing entries NaN; float32 where that rounds by less than 1e-5 of
            each column's training standard deviation, else float64, so that a small fluctuation about a large mean (a
            pressure of 101 325 Pa ± 0.01 Pa) survives until the model has subtracted the mean.
        time_features: (rows, d_x) float32.
        target_cols, exo_cols, time_cols: column names.
        splits: {"train", "val", "test"} to the range of rows; without a test split that key is absent.
        rows_of_runs: the rows of each run by its name, in the order of the splits; empty for a single record.
        times: (rows,) datetime64[ns] (UTC where there is a time zone) or float64; those of each run may start anew.
        breaks: rows that no window may reach across, each the first one after a break.
        notes: what was left out, taken for something, or irregular; warned of as DataWarning.
        sampling_time, time_unit, unit: of the record; unit and time_unit None where unknown.
        time_zone: that dates are shown in, None where there is none.
        units: of each column of values, None where unknown.
        coordinates: (d_y_context, dimensions) or None, in the order of the columns of values; axes: of its dimensions.
        covariates: how the covariates follow from times.
        known_cols, known_values: names and values (rows, known columns) of what is known ahead.
        other_cols: columns of the source that are not used.
        grid: how the rows lie in time, None where the source holds no times; step: time between rows in the unit of
            times.
        reading, source: how and where from the data were read.
        frequencies: dominant frequencies in 1 / unit of time_step_feature; empty with use_cycles=False.

    Raises:
        ValueError: input that cannot be used as asked; the message says what came and how to fix it.
        TypeError: an argument that it does not take; the message says where it belongs.
        FileNotFoundError: data_path names nothing.
    """

    __signature__ = FieldsSignature()

    @takes_fields_of(SeriesConfig)
    def __init__(self, *args: Any, **arguments: Any) -> None:
        check_names("SimulationTimeSeries", arguments, SeriesConfig, GIVEN_ELSEWHERE)
        config = SeriesConfig(*args, **arguments)
        runs = read_runs(config)
        record, self.grid, self.splits = runs.record, runs.grid, runs.splits
        within = self.grid.breaks if self.grid is not None and config.gaps == "split" else np.empty(0, np.int64)
        edges = [*runs.starts, len(record.values)]
        self.rows_of_runs = {name: range(*ends) for name, ends in zip(runs.names, pairwise(edges), strict=False)}
        self.breaks = np.union1d(within, runs.starts[1:]).astype(np.int64)
        self.reading: dict[str, Any] = {name: getattr(config, name) for name in ("null_value", "table", "gaps")}
        self.reading["time_column"] = config.time_col_name
        self.reading["choice"] = FieldChoice(**arguments_of(config, FieldChoice))
        path = config.data_path
        self.source = ", ".join(map(str, path)) if isinstance(path, list) else None if path is None else str(path)
        self.target_cols, self.exo_cols, self.known_cols = config.choose(record.columns)
        used = self.target_cols + self.exo_cols + self.known_cols
        self.other_cols = [name for name in record.columns if name not in used]
        order = [record.columns.index(name) for name in self.target_cols + self.exo_cols]
        values = np.take(record.values, order, axis=1)
        _check_training_rows(values, self.splits["train"])
        self.notes = [*record.notes, *self._notes_of_unseen(values)]
        if self.notes:
            warnings.warn(f"{self.source or 'data'}: {'; '.join(self.notes)}", DataWarning, stacklevel=2)
        self.values = in_float32_if_fine_enough(values, self.splits["train"])
        self.coordinates = None if record.coordinates is None else record.coordinates[order]
        self.axes = record.axes
        self.times, self.step = _clock(runs, config.start_time, config.time_step_df)
        self.sampling_time = config.time_step_feature or record.sampling_time or self.step
        self.time_unit = record.time_unit
        self.units = None if record.units is None else [record.units[index] for index in order]
        self.unit = self.units[0] if self.units and len(set(self.units)) == 1 else None
        self.time_zone = record.time_zone
        known = [record.columns.index(name) for name in self.known_cols]
        self.known_values = record.values[:, known]
        self.frequencies = np.empty(0) if config.use_cycles is False else self._dominant_frequencies(config)
        self.covariates = self._covariates(config)
        self.time_features, self.time_cols = self.covariates.compute(self.times, self.known_values)

    def _notes_of_unseen(self, values: np.ndarray) -> list[str]:
        """Tell the targets that training never sees: no error tells a forecast of them from any other number."""
        train = self.splits["train"]
        targets = zip(self.target_cols, values[train.start : train.stop].T, strict=False)
        names = [name for name, column in targets if np.isnan(column).all()]
        said = f"no training row holds a value of {listed(names)}: leave out of the targets what never will"
        return [said] if names else []

    @property
    def d_x(self) -> int:
        """Number of time covariates."""
        return len(self.time_cols)

    @property
    def d_y_context(self) -> int:
        """Number of sensor columns, targets and exogenous ones."""
        return len(self.target_cols) + len(self.exo_cols)

    @property
    def d_y_target(self) -> int:
        """Number of forecast sensor columns, the first of values."""
        return len(self.target_cols)

    @property
    def longest_training_run(self) -> range:
        """The longest range of training rows without a break."""
        train = self.splits["train"]
        inside = [int(row) for row in self.breaks if train.start < row < train.stop]
        return max((range(*ends) for ends in pairwise([train.start, *inside, train.stop])), key=len)

    def runs_of(self, split: str) -> dict[str, range]:
        """Return the rows of each run of a split by its name; nothing for a single record."""
        rows = self.split_range(split)
        return {name: run for name, run in self.rows_of_runs.items() if run.start in rows}

    def split_range(self, split: str) -> range:
        """Return the rows of a split.

        Raises:
            ValueError: the series has no such split.
        """
        if split not in self.splits:
            hint = "; build the series with have_test=True" if split == "test" else ""
            raise ValueError(f"this series has the splits {list(self.splits)}, got {split!r}{hint}")
        return self.splits[split]

    def length(self, split: str) -> int:
        """Count the rows of a split."""
        return len(self.split_range(split))

    def get_slice(self, split: str, start: int, stop: int, skip: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return views of (time_features, values) at rows start, start + skip, ... < stop, counted in the split."""
        rows = self.split_range(split)
        if not (0 <= start <= stop <= len(rows) and skip >= 1):
            raise ValueError(
                f"expected 0 <= start <= stop <= {len(rows)}, the rows of {split}, and skip >= 1, got "
                f"start={start}, stop={stop}, skip={skip}"
            )
        chosen = slice(rows.start + start, rows.start + stop, skip)
        return self.time_features[chosen], self.values[chosen]

    def training_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each column over its observed training values: float64 (d_y_context,).

        A column that never varies has standard deviation 1, so that dividing by it is safe; one that is never observed
        has mean 0 and standard deviation 1.
        """
        mean, std = statistics(rows_of(self.values, self.splits["train"]))
        return torch.from_numpy(mean), torch.from_numpy(std)

    def _covariates(self, config: CovariateConfig) -> TimeCovariates:
        use_cycles, calendar = config.use_cycles, config.calendar
        train = self.splits["train"]
        has_dates = self.times.dtype.kind == "M"
        if self.rows_of_runs and not has_dates:
            if use_cycles:
                raise ValueError(
                    "several runs without dates have no common phase: expected use_cycles=False or None (the time "
                    "on the clock of each run), got True"
                )
            use_cycles = False
        if calendar is not None:
            check_calendar(self.times if self.grid is not None else None, calendar)
        has_index = use_cycles is False
        if use_cycles is None and calendar is None and has_dates:
            seen = self.longest_training_run if self.rows_of_runs else train
            calendar = fitting_cycles(local_clock(rows_of(self.times, seen), self.time_zone), self.step * 1e-9)
            use_cycles = not calendar
        known_mean, known_std = statistics(rows_of(self.known_values, train))
        elapsed = np.arange(train.start, train.stop) * self.sampling_time
        index_start, index_span = train.start, max(len(train) - 1, 1)
        origin = int(self.times[0].astype(np.int64)) if has_dates else float(self.times[0])
        if self.rows_of_runs:  # whose clocks are not those of rows
            rows = (rows_of(self.times, train).astype(np.int64 if has_dates else np.float64) - origin) / self.step
            index_start, index_span = round(float(rows.min())), max(round(float(rows.max() - rows.min())), 1)
        waves = phasors(rows_of(self.values, train), self.frequencies, elapsed)
        amplitudes = [float(part) for parts in (np.real(waves), np.imag(waves)) for part in parts.ravel()]
        return TimeCovariates(
            origin=origin,
            step=self.step,
            feature_step=self.sampling_time,
            frequencies=tuple(self.frequencies.tolist()) if use_cycles is not False else (),
            index_start=index_start,
            index_span=index_span if has_index else 0,
            calendar=tuple(calendar or ()),
            zone=self.time_zone,
            known=tuple(self.known_cols),
            known_mean=tuple(known_mean.tolist()),
            known_std=tuple(known_std.tolist()),
            has_dates=has_dates,
            amplitudes=() if self.grid is not None else tuple(amplitudes),
        )

    def _dominant_frequencies(self, config: CovariateConfig) -> np.ndarray:
        rows = self.longest_training_run
        mean, std = statistics(rows_of(self.values, self.splits["train"]))
        # z-scored: a sensor in large units must not decide alone which frequencies are dominant
        scaled = (rows_of(self.values, rows) - mean) / std
        frequencies, _ = generate_spectral_welch(
            scaled, 1 / self.sampling_time, config.nperseg, config.num_dominant_frequencies
        )
        width = 1 / (self.sampling_time * min(config.nperseg, len(scaled)))
        return refine_frequencies(scaled, 1 / self.sampling_time, frequencies, width)


def _clock(runs: Runs, start_time: float, time_step: float | None) -> tuple[np.ndarray, float]:
    """Return the times, and the time between rows in their unit."""
    record, grid = runs.record, runs.grid
    if grid is not None and record.timestamps is not None:
        return record.timestamps, grid.step
    step = time_step or record.sampling_time or 1.0
    rows = np.concatenate([np.arange(length) for length in runs.lengths])
    return start_time + step * rows, step


def _check_training_rows(values: np.ndarray, train: range) -> None:
    if not varies(rows_of(values, train)).any():
        raise ValueError(
            f"no column varies over the training rows {train.start} to {train.stop} (exclusive): every value is "
            "missing or constant; check null_value, the split and the columns"
        )
