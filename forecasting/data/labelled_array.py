"""Read xarray objects: one dimension is the time, everything else is sensors with names, units and coordinates."""

from typing import Any

import numpy as np
import pandas as pd

from .column_choice import match_names
from .field_choice import FieldChoice
from .field_sensors import FieldSensors, sensors_of
from .field_values import check_size, read_sensors
from .place_axes import PlaceAxis
from .record import SensorRecord, sensor_record
from .table_format import TableFormat
from .time_names import is_time_name
from .time_values import Times, times_of

SPACE_NAMES = frozenset(("x", "y", "z", "lat", "lon", "latitude", "longitude"))


def is_xarray(data: Any) -> bool:
    """Tell whether data is a DataArray or a Dataset, without importing xarray."""
    return type(data).__module__.partition(".")[0] == "xarray" and hasattr(data, "dims")


def record_from_xarray(
    data: Any,
    *,
    time_column: str | None = None,
    given: TableFormat | None = None,
    choice: FieldChoice | None = None,
    source: str = "data",
) -> SensorRecord:
    """Turn a DataArray or Dataset into a record; of one on disk, only the chosen sensors are read.

    The time is the dimension of dates or durations, else the one called time or t, or that of a variable so called.
    Each point of the other dimensions is a sensor, named after the variable and its coordinates: "T(z=0.72)"; neither
    names nor order of sensors depend on the order of the dimensions. In a Dataset, every numeric variable over time is
    read; others are left out. Units come from the attribute "units", coordinates from the other dimensions, or from
    coordinates along them.

    Args:
        data: the object.
        time_column: the dimension of time, or a variable over it; None finds it.
        given: how times are read, and further marks of missing values.
        choice: the variables and sensors to read.
        source: of the data, for messages.

    Raises:
        ValueError: no dimension, or more than one, that may be the time; a choice of what is not there; more sensors
            than fit into memory.
    """
    given, choice = given or TableFormat(), choice or FieldChoice()
    choice.refuse(("objects",), source, "a field")
    time, clock = _time_dimension(data, time_column, source)
    data = _with_places(data, time)
    fields, notes = _fields(data, time, clock, choice, source)
    sensors = [sensors_of(array, time, choice.sensors, source) for array in fields]
    check_size(data.sizes[time], sum(each.count for each in sensors), source)
    names, units = [], []
    for array, each in zip(fields, sensors, strict=True):
        prefix = "" if array.name is None else str(array.name)
        names.extend(f"{prefix}({label})" if label else prefix or "value" for label in each.labels)
        units.extend([array.attrs.get("units")] * each.count)
    times = _times(data, clock, given, source)
    blocks = [read_sensors(array, time, each) for array, each in zip(fields, sensors, strict=True)]
    return sensor_record(
        np.concatenate(blocks, axis=1),
        names,
        timestamps=None if times is None else times.stamps,
        time_unit=None if times is None else times.unit,
        time_zone=None if times is None else times.zone,
        coordinates=(places := _places(sensors)),
        axes=() if places is None else _axes(fields[0], sensors[0]),
        units=units,
        notes=[*notes, *(() if times is None else times.notes)],
        missing=given.missing_numbers,
        source=source,
    )


def _time_dimension(data: Any, wanted: str | None, source: str) -> tuple[str, str | None]:
    """Return the dimension of time and the variable of its times, None where it has none."""
    dimensions = [str(dimension) for dimension in data.dims]
    variables = {str(name): data[name] for name in [*data.coords, *getattr(data, "data_vars", ())]}
    along = {name: str(each.dims[0]) for name, each in variables.items() if each.ndim == 1}
    if wanted is not None:
        if wanted not in dimensions and wanted not in along:
            raise ValueError(f"{source} has no dimension of time {wanted!r}; its dimensions are {_sizes(data)}")
        return along.get(wanted, wanted), wanted if wanted in along else None
    dated = [name for name in dimensions if name in data.coords and data[name].dtype.kind in "mM"]
    named = [name for name in dimensions if _is_time(name)]
    found = {name: name if name in along else None for name in dated or named}
    if not found:
        found = {along[name]: name for name in along if variables[name].dtype.kind in "mM" or _is_time(name)}
    if len(found) != 1:
        raise ValueError(
            f"{source} must have one dimension of time, by dates or by the name 'time', got {_sizes(data)}; state it "
            f"as time_col_name={dimensions[0] if dimensions else 'time'!r}"
        )
    return next(iter(found.items()))


def _is_time(name: str) -> bool:
    return is_time_name(name) or name.casefold() == "t"


def _sizes(data: Any) -> str:
    return ", ".join(f"{name} ({size})" for name, size in data.sizes.items()) or "none"


def _with_places(data: Any, time: str) -> Any:
    """Let variables of a Dataset that say where its points are, such as x over the cells, be coordinates."""
    places = [
        name
        for name in getattr(data, "data_vars", ())
        if str(name).casefold() in SPACE_NAMES and data[name].ndim == 1 and data[name].dims != (time,)
    ]
    return data.set_coords(places) if places else data


def _fields(data: Any, time: str, clock: str | None, choice: FieldChoice, source: str) -> tuple[list[Any], list[str]]:
    """Return the chosen arrays of numbers over time, and notes of what is left out."""
    arrays = [data] if not hasattr(data, "data_vars") else [data[name] for name in data.data_vars if name != clock]
    numeric = [array for array in arrays if time in array.dims and array.dtype.kind in "fiub"]
    left_out = [str(array.name) for array in arrays if not any(array is each for each in numeric)]
    if not numeric:
        raise ValueError(f"{source} must hold numbers over {time!r}, got the variables {left_out}")
    if choice.fields is not None:
        names = match_names([str(array.name) for array in numeric], choice.fields, kind="field")
        return [array for array in numeric if str(array.name) in names], []
    return numeric, [f"left out the variable {name!r}, which is no number over {time!r}" for name in left_out]


def _places(sensors: list[FieldSensors]) -> np.ndarray | None:
    """Return where all sensors are, None where they have no coordinates or have different ones."""
    kinds = {each.coordinates for each in sensors}
    if len(kinds) > 1 or kinds == {()}:
        return None
    return np.concatenate([each.places for each in sensors])


def _axes(array: Any, sensors: FieldSensors) -> tuple[PlaceAxis, ...]:
    """Return the axes of places, as the coordinates of a field describe them."""
    attributes = {str(name): each.attrs for name, each in array.coords.items()}
    return tuple(PlaceAxis.of(name, attributes.get(name, {})) for name in sensors.coordinates)


def _times(data: Any, clock: str | None, given: TableFormat, source: str) -> Times | None:
    if clock is None:
        return None
    variable = data[clock]
    times = times_of(pd.Series(variable.to_numpy()), given, f"{source}, {clock!r}", unit=variable.attrs.get("units"))
    return times._replace(notes=tuple(f"time {clock!r}: {note}" for note in times.notes))
