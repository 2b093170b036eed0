"""Take whatever a user has, a file or an object of Python, for a record."""

from pathlib import Path
from typing import Any

import pandas as pd

from .field_choice import FieldChoice
from .frame_record import record_from_frame
from .labelled_array import is_xarray, record_from_xarray
from .readers import is_field_source, read_series
from .record import SensorRecord, sensor_record
from .table_format import TableFormat


def record_of(
    data: Any, *, time_column: str | None = None, table: TableFormat | None = None, choice: FieldChoice | None = None
) -> SensorRecord:
    """Return the record in a file or object.

    Args:
        data: a path or embedded name (see read_series), a (rows, sensors) array or tensor, a pandas DataFrame or
            Series, an xarray DataArray or Dataset, whatever has to_pandas(), or a SensorRecord.
        time_column: the column of a table, or the dimension of a field, that holds the time; None finds it.
        table: what the user states about a table.
        choice: which part of a simulation is read.

    Raises:
        ValueError, FileNotFoundError: see read_series.
    """
    if isinstance(data, str | Path):
        return read_series(data, time_column=time_column, table=table, choice=choice)
    missing = [] if table is None else table.missing_numbers
    if not is_xarray(data):
        (choice or FieldChoice()).refuse_all("data", "a table or plain array")
    if isinstance(data, SensorRecord):
        labels = {name: getattr(data, name) for name in data._fields[2:]}
        return sensor_record(data.values, data.columns, missing=missing, **labels)
    if is_xarray(data):
        return record_from_xarray(data, time_column=time_column, given=table, choice=choice)
    if not isinstance(data, pd.DataFrame | pd.Series) and hasattr(data, "to_pandas"):
        data = data.to_pandas()
    if isinstance(data, pd.Series):
        data = data.to_frame(data.name if data.name is not None else "value")
    if isinstance(data, pd.DataFrame):
        return record_from_frame(data, time_column=time_column, given=table)
    return sensor_record(data, missing=missing)


def has_fields(data: Any) -> bool:
    """Tell whether fields and sensors can be chosen of data."""
    return is_field_source(Path(data)) if isinstance(data, str | Path) else is_xarray(data)
