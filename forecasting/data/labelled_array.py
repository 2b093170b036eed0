"""Read xarray objects: one dimension is the time, everything else is sensors with names, units and coordinates."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from .record import SensorRecord, sensor_record
from .table_format import TableFormat
from .time_column import Times, is_time_name, times_of


def is_xarray(data: Any) -> bool:
    """Tell whether data is a DataArray or a Dataset, without importing xarray."""
    return type(data).__module__.partition(".")[0] == "xarray" and hasattr(data, "dims")


def record_from_xarray(data: Any, *, given: TableFormat | None = None, source: str = "data") -> SensorRecord:
    """Turn a DataArray or Dataset into a record.

    The time is the dimension of dates or durations, else the one called time or t. Each point of the other dimensions
    is a sensor, named after the variable and its coordinates: "T(z=0.72)". In a Dataset, every numeric variable over
    time is read; others are left out. Units come from the attribute "units", coordinates from the other dimensions.

    Raises:
        ValueError: no dimension, or more than one, that may be the time.
    """
    arrays = [data] if not hasattr(data, "data_vars") else [data[name] for name in data.data_vars]
    time = _time_dimension(data, source)
    used = [array for array in arrays if time in array.dims and array.dtype.kind in "fiub"]
    left_out = [str(array.name) for array in arrays if not any(array is each for each in used)]
    notes = [f"left out the variable {name!r}, which is no number over {time!r}" for name in left_out]
    if not used:
        raise ValueError(f"{source} must hold numbers over {time!r}, got the variables {left_out}")
    blocks, names, units, positions = [], [], [], []
    for array in used:
        others = [dimension for dimension in array.dims if dimension != time]
        values = array.transpose(time, *others).to_numpy()
        blocks.append(values.reshape(len(values), -1))
        labels = [_labels(array, dimension) for dimension in others]
        for position in product(*labels):
            label = ", ".join(f"{name}={value}" for name, value in zip(others, position, strict=True))
            prefix = "" if array.name is None else str(array.name)
            names.append(f"{prefix}({label})" if label else prefix or "value")
            units.append(array.attrs.get("units"))
            positions.append(position)
    same = all(each.dims == used[0].dims for each in used) and used[0].ndim > 1
    numeric = same and all(isinstance(value, int | float) for position in positions for value in position)
    given = given or TableFormat()
    times = _times(data, time, given, source)
    return sensor_record(
        np.concatenate(blocks, axis=1),
        names,
        timestamps=None if times is None else times.stamps,
        time_unit=None if times is None else times.unit,
        time_zone=None if times is None else times.zone,
        coordinates=np.array(positions, dtype=np.float64) if numeric else None,
        units=units,
        notes=[*notes, *(() if times is None else times.notes)],
        missing=given.missing_numbers,
        source=source,
    )


def _time_dimension(data: Any, source: str) -> str:
    dimensions = [str(dimension) for dimension in data.dims]
    dated = [name for name in dimensions if name in data.coords and data[name].dtype.kind in "mM"]
    named = [name for name in dimensions if is_time_name(name) or name.casefold() == "t"]
    found = dated or named
    if len(found) != 1:
        raise ValueError(
            f"{source} must have one dimension of time, by dates or by the name 'time', got {dimensions}; rename it, "
            "as in array.rename(x='time')"
        )
    return found[0]


def _times(data: Any, time: str, given: TableFormat, source: str) -> Times | None:
    if time not in data.coords:
        return None
    coordinate = data[time]
    times = times_of(pd.Series(coordinate.to_numpy()), given, f"{source}, {time!r}", unit=coordinate.attrs.get("units"))
    return times._replace(notes=tuple(f"time {time!r}: {note}" for note in times.notes))


def _labels(array: Any, dimension: str) -> list[Any]:
    if dimension in array.coords and array[dimension].ndim == 1:
        return [
            float(f"{value:.6g}") if isinstance(value, float) else value for value in array[dimension].values.tolist()
        ]
    return list(range(array.sizes[dimension]))
