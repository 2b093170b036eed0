"""Hold one record of sensors over time, whatever it was read from."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .marks_of_missing import mark_text, replace_marks, suspected_marks
from .place_axes import PlaceAxis


class SensorRecord(NamedTuple):
    """Hold one record of sensors over time, as read_series and sensor_record return it.

    Args:
        values: (rows, columns) float32, or float64 where the source holds more digits; missing entries NaN.
        columns: one name a column, all different.
        timestamps: (rows,) datetime64[ns] (UTC where there is a time zone) or float64, never decreasing; None when the
            source holds no times.
        sampling_time: time between two rows, in time_unit; None when unknown.
        time_unit: unit of sampling_time, such as "s" or "D/U".
        unit: unit of the values, where all sensors share one.
        coordinates: (columns, dimensions) sensor positions; axes: of their dimensions, none where unknown.
        units: of each column, None where unknown.
        time_zone: name ("Europe/Berlin") or offset ("+01:00") that dates are shown in; None where there is none.
        notes: what a reader left out or took for something.
    """

    values: np.ndarray
    columns: list[str]
    timestamps: np.ndarray | None = None
    sampling_time: float | None = None
    time_unit: str | None = None
    unit: str | None = None
    coordinates: np.ndarray | None = None
    units: list[str | None] | None = None
    time_zone: str | None = None
    notes: Sequence[str] = ()
    axes: tuple[PlaceAxis, ...] = ()


def sensor_record(
    values: np.ndarray | torch.Tensor,
    columns: Sequence[str] | None = None,
    *,
    source: str = "data",
    missing: Sequence[float] = (),
    **labels: Any,
) -> SensorRecord:
    """Check an array of sensor values and give it names.

    Numbers that look like marks of missing values are noted (see suspected_marks).

    Columns without names are called Sensor_1, Sensor_2, ... A sampling time that is not given is the median positive
    step of the timestamps, in seconds where they are dates. A unit that is not given is that of all columns.

    Args:
        values: (rows, columns) numbers.
        columns: one name a column.
        source: of the values, for messages.
        missing: numbers that become NaN.
        labels: other fields of SensorRecord, by name.

    Raises:
        ValueError: wrong dimensions, not real numbers, infinite values, names or times that do not fit.
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{source} must hold real numbers, got dtype {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        hint = {1: "; give one sensor as array[:, None]"}.get(array.ndim, "")
        if array.ndim > 2:
            hint = (
                "; pick sensors from a field with extract_datapoints, or give it as xarray.DataArray(array, "
                "dims=['time', 'y', 'x']) with sensors=7"
            )
        raise ValueError(f"{source} must have shape (rows, columns), both at least 1, got {array.shape}{hint}")
    array = array.astype(np.result_type(array.dtype, np.float32), copy=False)  # digits are dropped once centred
    array = replace_marks(array, missing)
    width = array.shape[1]
    names = [f"Sensor_{i}" for i in range(1, width + 1)] if columns is None else [str(name) for name in columns]
    _check_names(names, width, source)
    infinite = np.argwhere(np.abs(array) > np.finfo(np.float32).max)
    if len(infinite):
        row, column = infinite[0]
        raise ValueError(
            f"{source} holds {len(infinite)} infinite values (or beyond float32), the first at row {row}, column "
            f"{names[column]!r}; mark missing values as NaN, or state the number that "
            f"marks them as table.missing [{mark_text(array.item(row, column))!r}]"
        )
    return _checked_labels(SensorRecord(array, names, **labels), source)


def _checked_labels(record: SensorRecord, source: str) -> SensorRecord:
    """Check what is not values, and fill in what follows from the rest."""
    rows, width = record.values.shape
    coordinates, timestamps, units, unit = record.coordinates, record.timestamps, record.units, record.unit
    if coordinates is not None and (coordinates.ndim != 2 or len(coordinates) != width):
        raise ValueError(f"{source}: coordinates must have shape ({width}, dimensions), got {coordinates.shape}")
    if record.axes and (coordinates is None or len(record.axes) != coordinates.shape[1]):
        shape = None if coordinates is None else coordinates.shape
        raise ValueError(f"{source}: expected an axis for each dimension of the coordinates {shape}, got {record.axes}")
    sampling_time, time_unit = record.sampling_time, record.time_unit
    if timestamps is not None:
        timestamps = _checked_timestamps(timestamps, rows, source)
        if sampling_time is None and rows > 1:
            is_date = timestamps.dtype.kind == "M"
            steps = np.diff(timestamps).astype(np.float64)
            step = float(np.median(steps[steps > 0])) if (steps > 0).any() else None
            if step is not None:
                sampling_time, time_unit = (step * 1e-9, "s") if is_date else (step, time_unit)
    if sampling_time is not None and not (np.isfinite(sampling_time) and sampling_time > 0):
        raise ValueError(f"{source}: sampling_time must be positive and finite, got {sampling_time}")
    if units is not None and unit is None and len(set(units)) == 1:
        unit = units[0]
    units = [unit] * width if units is None else list(units)
    if len(units) != width:
        raise ValueError(f"{source}: expected {width} units, one a column, got {len(units)}")
    return record._replace(
        timestamps=timestamps,
        sampling_time=sampling_time,
        time_unit=time_unit,
        unit=unit,
        units=units,
        notes=tuple(dict.fromkeys((*record.notes, *suspected_marks(record.values, record.columns)))),
    )


def _check_names(names: list[str], width: int, source: str) -> None:
    if len(names) != width:
        raise ValueError(f"{source}: expected {width} column names, one a column, got {len(names)}")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{source}: column names must differ, repeated: {repeated[:5]}")


def _checked_timestamps(timestamps: np.ndarray, rows: int, source: str) -> np.ndarray:
    if timestamps.shape != (rows,) or timestamps.dtype.kind not in "Mfiu":
        raise ValueError(
            f"{source}: timestamps must be dates or numbers of shape ({rows},), got {timestamps.dtype} "
            f"{timestamps.shape}"
        )
    timestamps = timestamps.astype("datetime64[ns]" if timestamps.dtype.kind == "M" else np.float64)
    missing = np.isnat(timestamps) if timestamps.dtype.kind == "M" else ~np.isfinite(timestamps)
    if missing.any():
        raise ValueError(f"{source}: row {int(missing.argmax())} has no time; give every row one, or remove the column")
    backward = timestamps[1:] < timestamps[:-1]
    if backward.any():
        row = int(backward.argmax()) + 1
        raise ValueError(
            f"{source}: rows must be in time order, but row {row} ({timestamps[row]}) lies before row {row - 1} "
            f"({timestamps[row - 1]}); sort the file by time, keep one of two parts where a restart overlaps what came "
            "before (local clocks: convert to UTC), or rename the column if it holds no time"
        )
    return timestamps
