"""Forecast beyond the end of a record: labelled as the record is, continued from its latest context.

n horizon, d d_y_target, l context_len
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .data import DataWarning, TableFormat
from .data.column_statistics import mark_missing
from .data.data_card import DataCard
from .data.record import SensorRecord
from .data.sources import has_fields, record_of
from .data.time_grid import TimeGrid, continue_times, on_grid
from .data.time_labels import time_texts
from .labelled_forecast import Forecast

if TYPE_CHECKING:
    from .forecaster import Forecaster


class Stated(NamedTuple):
    """What is stated about data that are not written as those of training were; see Forecaster.forecast."""

    table: TableFormat | None = None
    time_column: str | None = None
    choice: Mapping[str, Any] = MappingProxyType({})  # options of FieldChoice


AS_IN_TRAINING = Stated()


def forecast(
    model: Forecaster,
    data: Any,
    horizon: int | None = None,
    covariates: Any = None,
    intervals: Sequence[float] = (),
    *,
    stated: Stated = AS_IN_TRAINING,
    predict: Callable[..., torch.Tensor] | None = None,
) -> Forecast:
    """Forecast the rows that follow the end of `data`; see Forecaster.forecast.

    `predict` takes the place of the model's, as that of a Continuation does.
    """
    if model.data_card is None:
        raise ValueError(
            "this forecaster does not know its data: fit it with a DataModule, or load a checkpoint that fit wrote"
        )
    card = DataCard.of_dict(model.data_card)
    horizon = card.target_len if horizon is None else horizon
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    radii = _radii(model, intervals, horizon)
    record, grid = _read(data, card, stated)
    context_rows, target_times, target_clock = _rows_and_times(record, grid, card, horizon)
    order = _positions(record.columns, card)
    context, known = order[: len(card.context_columns)], order[len(card.context_columns) :]
    values = mark_missing(record.values[context_rows][:, context], card.null_value)
    unseen = np.isnan(values[:, : len(card.target_columns)]).all(axis=0)
    if unseen.all():
        raise ValueError(f"the last {card.context_len} rows hold no value of any target; end the data where values end")
    if unseen.any():
        names = ", ".join(np.array(card.target_columns)[unseen])
        warnings.warn(
            f"the last {card.context_len} rows hold no value of {names}: what is forecast there follows from training "
            "and the other columns alone",
            DataWarning,
            stacklevel=3,
        )
    if card.seen is not None and (note := card.seen.note(card.context_columns, values)):
        warnings.warn(note, DataWarning, stacklevel=3)
    past_known = mark_missing(record.values[context_rows][:, known], card.null_value)
    future_known = _future_known(covariates, card, target_times, record, horizon)
    clock = _clock(record, card)
    start = _start(record, context, clock, card)
    context_x, _ = card.covariates.compute(clock[context_rows], past_known, start)
    target_x, _ = card.covariates.compute(target_clock, future_known, start)
    rolled = (predict or model.predict)(
        torch.from_numpy(context_x)[None],
        torch.from_numpy(values)[None],
        torch.from_numpy(target_x)[None],
        block_len=card.target_len,
    )
    indices = context[: len(card.target_columns)]
    times = record.timestamps if record.timestamps is not None else clock
    center = rolled[0, :horizon].double().numpy(force=True)
    return Forecast(
        values=center,
        times=target_times[:horizon],
        columns=list(card.target_columns),
        units=_units(record, indices, card),
        coordinates=None if card.coordinates is None else np.array(card.coordinates)[: len(indices)],
        axes=card.axes,
        time_unit=record.time_unit or card.time_unit,
        time_zone=record.time_zone,
        context_times=times[context_rows],
        context=values[:, : len(indices)].astype(np.float64),
        intervals={level: np.stack((center - radius, center + radius)) for level, radius in radii.items()},
    )


def _radii(model: Forecaster, levels: Sequence[float], horizon: int) -> dict[float, np.ndarray]:
    """Return the half widths (n, d) of intervals for each level; NaN beyond the horizon of training."""
    if not levels:
        return {}
    if model.conformal is None:
        raise ValueError(
            "this forecaster has no prediction intervals: train it with favorcast fit or train_forecaster, or call "
            "calibrate(data.val_dataloader())"
        )
    found = model.conformal.radii(levels).double().numpy(force=True)
    trained = found.shape[1]
    beyond = np.full((len(levels), max(0, horizon - trained), found.shape[2]), np.nan)
    windows = int(model.conformal.counts.max())
    lacking = [f"{level:.0%}" for level in levels if windows < model.conformal.needed(level)]
    if lacking:
        warnings.warn(
            f"no intervals of {', '.join(lacking)}: validation has {windows} windows, "
            f"{model.conformal.needed(max(levels))} are needed",
            DataWarning,
            stacklevel=4,
        )
    if horizon > trained:
        warnings.warn(
            f"intervals end at step {trained}, the horizon of training: {horizon} steps are forecast",
            DataWarning,
            stacklevel=4,
        )
    return dict(zip(levels, np.concatenate((found, beyond), axis=1)[:, :horizon], strict=True))


def _read(data: Any, card: DataCard, stated: Stated) -> tuple[SensorRecord, TimeGrid | None]:
    """Read data as those of training were read, but for what is stated."""
    time_column = stated.time_column
    if time_column is None and _has_column(data, card.time_column):
        time_column = card.time_column
    choice = replace(card.choice, **stated.choice) if stated.choice or has_fields(data) else None
    table = card.table if stated.table is None else stated.table.over(card.table)
    record = record_of(data, time_column=time_column, table=table, choice=choice)
    record, grid = on_grid(record, card.gaps, None)
    if record.notes:
        source = data if isinstance(data, str | Path) else "data"
        warnings.warn(f"{source}: {'; '.join(record.notes)}", DataWarning, stacklevel=4)
    card.check_times(record.timestamps, record.time_zone)
    card.check_step(grid)
    return record, grid


def _has_column(data: Any, name: str | None) -> bool:
    if name is None or isinstance(data, str | Path):
        return name is not None
    return name in getattr(data, "columns", ()) or name in getattr(data, "dims", ())


def _positions(columns: list[str], card: DataCard) -> list[int]:
    """Return the indices of the model's columns; those of an array without names are taken as they stand."""
    wanted = card.context_columns + card.known_columns
    unnamed = columns == [f"Sensor_{i}" for i in range(1, len(columns) + 1)]
    if unnamed and len(columns) == len(wanted) and set(columns) != set(wanted):
        return list(range(len(wanted)))
    return card.positions(columns)


def _rows_and_times(
    record: SensorRecord, grid: TimeGrid | None, card: DataCard, horizon: int
) -> tuple[slice, np.ndarray, np.ndarray]:
    """Return the rows of the latest context, and the times of whole blocks of targets: their own, and by the clock."""
    every = card.time_resolution
    span = every * (card.context_len - 1) + 1
    count = len(record.values)
    if count < span:
        raise ValueError(f"a context takes {span} rows, got {count}; give at least that many")
    first = count - span
    if grid is not None and card.gaps == "split" and (grid.breaks > first).any():
        raise ValueError(
            f"the last {span} rows, which the forecast starts from, reach across a break in time at row "
            f"{int(grid.breaks[-1])}; fill the gap, or train with gaps='resample', which leaves missing values there"
        )
    steps = every * card.target_len * ceil(horizon / card.target_len)
    clock = _clock(record, card)
    later = continue_times(clock, steps, card.step, months=card.months, zone=record.time_zone)
    if grid is None or record.timestamps is None or card.has_times:
        own = later
    else:
        own = continue_times(record.timestamps, steps, grid.step, months=grid.months, zone=record.time_zone)
    return slice(first, count, every), own[every - 1 :: every], later[every - 1 :: every]


def _clock(record: SensorRecord, card: DataCard) -> np.ndarray:
    """Return the times that covariates follow: those of the record, else its rows, counted from the origin."""
    if card.has_times and record.timestamps is not None:
        return record.timestamps
    covariates = card.covariates
    rows = np.arange(len(record.values))
    if covariates.has_dates:
        return np.datetime64(int(covariates.origin), "ns") + np.rint(rows * card.step).astype("timedelta64[ns]")
    return covariates.origin + card.step * rows


def _start(record: SensorRecord, context: list[int], clock: np.ndarray, card: DataCard) -> np.ndarray | float:
    """Return the phase of covariates at the first row, which the values tell where training knew rows only.

    A record at least as long as that of training begins where it began, and keeps its clock.
    """
    covariates = card.covariates
    if card.has_times or not covariates.frequencies or len(record.values) >= sum(card.rows.values()):
        return 0.0
    return covariates.start_of(record.values[:, context], clock)


def _future_known(covariates: Any, card: DataCard, times: np.ndarray, data: SensorRecord, horizon: int) -> np.ndarray:
    """Return the known columns at the target times, which continue those of `data`; NaN beyond the horizon."""
    values = np.full((len(times), len(card.known_columns)), np.nan)
    if not card.known_columns:
        if covariates is not None:
            raise ValueError("the forecaster was trained without known_columns: leave covariates out")
        return values
    if covariates is None:
        raise ValueError(f"give covariates: the columns {card.known_columns} at the {horizon} times to forecast")
    record = record_of(covariates, table=card.table)
    missing = [name for name in card.known_columns if name not in record.columns]
    if missing:
        raise ValueError(f"covariates must hold the columns {card.known_columns}: {missing} are missing")
    known = mark_missing(record.values[:, [record.columns.index(name) for name in card.known_columns]], card.null_value)
    rows = np.arange(len(known))
    if data.timestamps is not None and record.timestamps is not None:
        if (record.time_zone is None) != (data.time_zone is None):
            raise ValueError(
                f"covariates must hold times by the clock of the data: the zone is {record.time_zone or 'unknown'}, "
                f"that of the data {data.time_zone or 'unknown'}; write both with their offset, or both without"
            )
        half = np.timedelta64(round(card.step / 2), "ns") if record.timestamps.dtype.kind == "M" else card.step / 2
        rows = np.searchsorted(record.timestamps, times[:horizon] - half)
        inside = rows < len(known)
        if not inside.all() or (np.abs(record.timestamps[rows] - times[:horizon]) >= half).any():
            wanted = time_texts(times[[0, horizon - 1]], record.time_zone)
            raise ValueError(f"covariates must hold every time from {wanted[0]} to {wanted[1]}")
    elif len(known) < horizon:
        raise ValueError(f"covariates must hold {horizon} rows, the times to forecast, got {len(known)}")
    values[:horizon] = known[rows[:horizon]]
    return values


def _units(record: SensorRecord, indices: list[int], card: DataCard) -> list[str | None]:
    own = [None if record.units is None else record.units[index] for index in indices]
    trained = [None] * len(indices) if card.units is None else card.units[: len(indices)]
    return [mine or theirs for mine, theirs in zip(own, trained, strict=True)]
