"""Hold one record of sensors, divided by time, with its time covariates.

d_x time covariates, d_y_context sensor columns of which the first d_y_target are forecast.
"""

import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch

from .column_choice import choose_columns
from .frame_record import record_from_frame
from .labelled_array import is_xarray, record_from_xarray
from .readers import read_series
from .record import SensorRecord, sensor_record
from .splits import split_rows
from .table_format import TableFormat
from .time_features import calendar_features, generate_spectral_welch, spectral_features, time_index
from .time_grid import Gaps, on_grid


class DataWarning(UserWarning):
    """What was noticed about a user's data, and what was done about it."""


class SimulationTimeSeries:
    """Read a record, split it by time, and compute its time covariates from the training rows.

    Give data_path or data. The order is fixed: split first; then the frequencies, the range of Time_Index and the
    statistics come from training rows alone, so that nothing of validation or test reaches them.

    Args:
        data_path: a .npy, .npz, .csv, .parquet or .nc file, or the name of an embedded series (see read_series).
        data: (rows, sensors) array or tensor, a pandas DataFrame or Series, an xarray DataArray or Dataset, whatever
            has to_pandas(), or a SensorRecord; missing entries NaN.
        time_col_name: the time column of a table; None finds it by name and content.
        start_time: time of row 0 where the file holds no times.
        time_step_df: time between rows, in seconds for dates; None takes the usual step of the file's times, else its
            sampling time, else 1.
        time_step_feature: time between rows in the unit of the frequencies; None takes the file's sampling time, else
            time_step_df.
        idx_start_train, idx_end_train, idx_start_val, idx_end_val, idx_start_test, idx_end_test: rows of the splits,
            ends exclusive; without any end the rows from idx_start_train on are divided by fractions (see split_rows).
        have_test: whether there is a test split.
        num_dominant_frequencies: number of frequencies, each of which gives two covariates, sine and cosine.
        use_cycles: True for the frequencies, False for one covariate Time_Index (0 to 1 over the training rows).
        nperseg: rows of a Welch segment.
        fractions: shares of training, validation and test.
        target_columns: names or shell patterns ("u_*") of the forecast sensors, in this order; None takes all that are
            not exogenous. Every other column that is not exogenous is dropped.
        exogenous_columns: names or patterns of sensors that are only ever context.
        null_value: a number that marks missing entries in the file, such as -9999.
        calendar: cycles "day", "week", "year" to add as covariates; needs dates.
        gaps: what to do where times have gaps, repeat themselves or differ in step, which is always reported: "split"
            lets no window reach across, "resample" puts the rows on a regular grid (see on_grid), "refuse" raises
            ValueError, "ignore" counts each row as one step.
        table: what you state about a table whose content leaves a choice.

    Attributes:
        values: (rows, d_y_context), targets first, missing entries NaN; float32 where that rounds by less than 1e-5 of
            each column's training standard deviation, else float64, so that a small fluctuation about a large mean (a
            pressure of 101 325 Pa ± 0.01 Pa) survives until the model has subtracted the mean.
        time_features: (rows, d_x) float32.
        target_cols, exo_cols, time_cols: column names.
        splits: {"train", "val", "test"} to the range of rows; without a test split that key is absent.
        times: (rows,) datetime64[ns] (UTC where there is a time zone) or float64.
        breaks: rows that no window may reach across, each the first one after a break.
        notes: what was left out, taken for something, or irregular; warned of as DataWarning.
        sampling_time, time_unit, unit: of the record; unit and time_unit None where unknown.
        time_zone: that dates are shown in, None where there is none.
        units: of each column of values, None where unknown.
        coordinates: (d_y_context, dimensions) or None, in the order of the columns of values.
        frequencies: dominant frequencies in 1 / unit of time_step_feature; empty without use_cycles.

    Raises:
        ValueError: input that cannot be used as asked; the message says what came and how to fix it.
        FileNotFoundError: data_path names nothing.
    """

    def __init__(
        self,
        data_path: str | None = None,
        data: Any = None,
        time_col_name: str | None = None,
        start_time: float = 0.0,
        time_step_df: float | None = None,
        time_step_feature: float | None = None,
        idx_start_train: int = 0,
        idx_end_train: int | None = None,
        idx_start_val: int | None = None,
        idx_end_val: int | None = None,
        have_test: bool = True,
        idx_start_test: int | None = None,
        idx_end_test: int | None = None,
        num_dominant_frequencies: int = 1,
        use_cycles: bool = True,
        nperseg: int = 1024,
        *,
        fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
        target_columns: list[str] | None = None,
        exogenous_columns: list[str] | None = None,
        null_value: float | None = None,
        calendar: list[str] | None = None,
        gaps: Gaps = "split",
        table: TableFormat | None = None,
    ):
        record = _as_record(data_path, data, time_col_name, table)
        if gaps not in get_args(Gaps):
            raise ValueError(f"gaps must be one of {get_args(Gaps)}, got {gaps!r}")
        _check_steps(time_step_df=time_step_df, time_step_feature=time_step_feature)
        record, grid = on_grid(record, gaps, time_step_df)
        self.breaks = grid.breaks if grid is not None and gaps == "split" else np.empty(0, np.int64)
        self.notes = list(record.notes)
        if self.notes:
            warnings.warn(f"{data_path or 'data'}: {'; '.join(self.notes)}", DataWarning, stacklevel=2)
        self.splits = split_rows(
            len(record.values),
            fractions=fractions,
            idx_start_train=idx_start_train,
            idx_end_train=idx_end_train,
            idx_start_val=idx_start_val,
            idx_end_val=idx_end_val,
            have_test=have_test,
            idx_start_test=idx_start_test,
            idx_end_test=idx_end_test,
        )
        self.target_cols, self.exo_cols = choose_columns(record.columns, target_columns, exogenous_columns)
        order = [record.columns.index(name) for name in self.target_cols + self.exo_cols]
        values = _mark_missing(np.take(record.values, order, axis=1), null_value)
        _check_training_rows(values, self.splits["train"])
        self.values = _in_float32_if_fine_enough(values, self.splits["train"])
        self.coordinates = None if record.coordinates is None else record.coordinates[order]
        self.times, self.sampling_time = _clock(record, start_time, time_step_df, time_step_feature)
        self.time_unit = record.time_unit
        self.units = None if record.units is None else [record.units[index] for index in order]
        self.unit = self.units[0] if self.units and len(set(self.units)) == 1 else None
        self.time_zone = record.time_zone
        self._compute_time_features(num_dominant_frequencies, use_cycles, nperseg, record.timestamps, calendar or [])

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
        mean, std = _statistics(_rows(self.values, self.splits["train"]))
        return torch.from_numpy(mean), torch.from_numpy(std)

    def _compute_time_features(
        self, num_frequencies: int, use_cycles: bool, nperseg: int, timestamps: np.ndarray | None, calendar: list[str]
    ) -> None:
        train = self.splits["train"]
        self.frequencies = np.empty(0)
        if use_cycles:
            mean, std = (statistic.numpy() for statistic in self.training_statistics())
            # z-scored: a sensor in large units must not decide alone which frequencies are dominant
            scaled = (_rows(self.values, train) - mean) / std
            self.frequencies, _ = generate_spectral_welch(scaled, 1 / self.sampling_time, nperseg, num_frequencies)
            elapsed = np.arange(len(self.values)) * self.sampling_time
            features, names = spectral_features(self.frequencies, elapsed)
        else:
            features, names = time_index(len(self.values), train)
        if calendar:
            more, more_names = calendar_features(timestamps, calendar)
            features, names = np.concatenate([features, more], axis=1), names + more_names
        self.time_features = features.astype(np.float32)
        self.time_cols = names


def _as_record(
    data_path: str | Path | None, data: Any, time_column: str | None, table: TableFormat | None
) -> SensorRecord:
    if (data_path is None) == (data is None):
        raise ValueError("give either data_path or data, got " + ("neither" if data is None else "both"))
    if data_path is not None:
        return read_series(data_path, time_column=time_column, table=table)
    if isinstance(data, SensorRecord):
        return sensor_record(data.values, data.columns, **{k: getattr(data, k) for k in data._fields[2:]})
    if is_xarray(data):
        return record_from_xarray(data, given=table)
    if hasattr(data, "to_pandas"):
        data = data.to_pandas()
    if isinstance(data, pd.Series):
        data = data.to_frame(data.name if data.name is not None else "value")
    if isinstance(data, pd.DataFrame):
        return record_from_frame(data, time_column=time_column, given=table)
    return sensor_record(data)


def _clock(
    record: SensorRecord, start_time: float, time_step: float | None, feature_step: float | None
) -> tuple[np.ndarray, float]:
    row_step = time_step or record.sampling_time or 1.0
    times = record.timestamps
    if times is None:
        times = start_time + row_step * np.arange(len(record.values))
    return times, feature_step or record.sampling_time or row_step


def _check_steps(**steps: float | None) -> None:
    for name, step in steps.items():
        if step is not None and not (np.isfinite(step) and step > 0):
            raise ValueError(f"{name} must be positive and finite, got {step}")


def _varies(values: np.ndarray) -> np.ndarray:
    lowest = np.where(np.isnan(values), np.inf, values).min(axis=0)
    highest = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    return highest > lowest


def _rows(array: np.ndarray, rows: range) -> np.ndarray:
    return array[rows.start : rows.stop]


def _statistics(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = rows.astype(np.float64)
    observed = ~np.isnan(rows)
    count = np.maximum(observed.sum(axis=0), 1)
    mean = np.where(observed, rows, 0.0).sum(axis=0) / count
    variance = np.square(np.where(observed, rows - mean, 0.0)).sum(axis=0) / count
    return mean, np.where(_varies(rows), np.sqrt(variance), 1.0)


def _in_float32_if_fine_enough(values: np.ndarray, train: range) -> np.ndarray:
    if values.dtype == np.float32:
        return values
    rows = _rows(values, train)
    varies = _varies(rows)
    mean, std = _statistics(rows)
    rounding = np.finfo(np.float32).eps / 2 * (np.abs(mean) + std)
    return values.astype(np.float64 if (rounding > 1e-5 * std)[varies].any() else np.float32)


def _mark_missing(values: np.ndarray, null_value: float | None) -> np.ndarray:
    if null_value is None:
        return values
    return np.where(values == values.dtype.type(null_value), values.dtype.type(np.nan), values)


def _check_training_rows(values: np.ndarray, train: range) -> None:
    if not _varies(_rows(values, train)).any():
        raise ValueError(
            f"no column varies over the training rows {train.start} to {train.stop} (exclusive): every value is "
            "missing or constant; check null_value, the split and the columns"
        )
