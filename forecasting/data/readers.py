"""Read sensor series from files: .npy, .npz, .csv, .parquet, and the series shipped with the package by name."""

import zipfile
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .csv_table import read_csv_table

SUFFIXES = (".npy", ".npz", ".csv", ".parquet")
TIME_NAMES = ("time", "date", "datetime", "timestamp")


class SensorRecord(NamedTuple):
    """Hold one record of sensors over time, as read_series and sensor_record return it.

    Args:
        values: (rows, columns) float32, or float64 where the source holds more digits; missing entries NaN.
        columns: one name a column, all different.
        timestamps: (rows,) datetime64[ns] or float64, never decreasing; None when the file holds no times.
        sampling_time: time between two rows, in time_unit; None when unknown.
        time_unit: unit of sampling_time, such as "s" or "D/U".
        unit: unit of the values, where all sensors share one.
        coordinates: (columns, dimensions) float32 sensor positions.
    """

    values: np.ndarray
    columns: list[str]
    timestamps: np.ndarray | None = None
    sampling_time: float | None = None
    time_unit: str | None = None
    unit: str | None = None
    coordinates: np.ndarray | None = None


def embedded_names() -> list[str]:
    """List the series that ship with the package; each name is a valid data_path."""
    folder = resources.files(__name__.rpartition(".")[0]) / "embedded"
    if not folder.is_dir():
        return []
    return sorted(file.name.removesuffix(".npz") for file in folder.iterdir() if file.name.endswith(".npz"))


def embedded_path(name: str) -> Path:
    """Return the file behind an embedded name.

    Raises:
        ValueError: no embedded series has this name.
    """
    if name not in embedded_names():
        raise ValueError(f"no embedded series is called {name!r}; there are {embedded_names()}")
    return Path(str(resources.files(__name__.rpartition(".")[0]) / "embedded" / f"{name}.npz"))


def read_series(path: str | Path, *, time_column: str | None = None) -> SensorRecord:
    """Read a sensor series from a file, or an embedded one by its bare name.

    Args:
        path: a .npy file (rows, columns); a .npz file with the key `dataset` (rows, columns) and, optionally, columns,
            timestamps, sampling_time, time_unit, unit and coordinates; a .csv or .parquet table; or an embedded name.
        time_column: the column of a table that holds the time. None takes the first one called time, date, datetime or
            timestamp in any case, if there is one.

    Raises:
        FileNotFoundError: neither a file nor an embedded name.
        ValueError: an unknown suffix, or content that is not a clean numeric table; the message says where.
    """
    path = Path(path)
    if not path.exists() and path.name == str(path) and str(path) in embedded_names():
        path = embedded_path(str(path))
    if not path.is_file():
        raise FileNotFoundError(
            f"no series at {str(path)!r}: expected a {', '.join(SUFFIXES)} file, or one of the embedded names "
            f"{embedded_names()}"
        )
    match path.suffix.lower():
        case ".npy":
            return sensor_record(_load_array(path), source=str(path))
        case ".npz":
            return _read_npz(path)
        case ".csv":
            table = read_csv_table(path, lambda header: _find_time_column(header, time_column, str(path)))
            return sensor_record(table.values, table.columns, timestamps=table.timestamps, source=str(path))
        case ".parquet":
            return record_from_frame(_load_parquet(path), time_column=time_column, source=str(path))
    raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}, got {path.suffix!r}")


def sensor_record(
    values: np.ndarray | torch.Tensor,
    columns: Sequence[str] | None = None,
    *,
    timestamps: np.ndarray | None = None,
    sampling_time: float | None = None,
    time_unit: str | None = None,
    unit: str | None = None,
    coordinates: np.ndarray | None = None,
    source: str = "data",
) -> SensorRecord:
    """Check an array of sensor values and give it names.

    Columns without names are called Sensor_1, Sensor_2, ... A sampling time that is not given is the median step of
    the timestamps, in seconds where they are dates.

    Raises:
        ValueError: wrong dimensions, not real numbers, infinite values, names or times that do not fit.
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{source} must hold real numbers, got dtype {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        hint = {1: "; give one sensor as array[:, None]"}.get(array.ndim, "")
        hint = "; pick sensors from a field with extract_datapoints" if array.ndim > 2 else hint
        raise ValueError(f"{source} must have shape (rows, columns), both at least 1, got {array.shape}{hint}")
    array = array.astype(np.result_type(array.dtype, np.float32), copy=False)  # digits are dropped once centred
    rows, width = array.shape
    names = [f"Sensor_{i}" for i in range(1, width + 1)] if columns is None else [str(name) for name in columns]
    _check_names(names, width, source)
    infinite = np.argwhere(np.abs(array) > np.finfo(np.float32).max)
    if len(infinite):
        row, column = infinite[0]
        raise ValueError(
            f"{source} holds {len(infinite)} infinite values (or beyond float32), the first at row {row}, column "
            f"{names[column]!r}; mark missing values as NaN"
        )
    if coordinates is not None and (coordinates.ndim != 2 or len(coordinates) != width):
        raise ValueError(f"{source}: coordinates must have shape ({width}, dimensions), got {coordinates.shape}")
    if timestamps is not None:
        timestamps = _checked_timestamps(timestamps, rows, source)
        if sampling_time is None and rows > 1:
            is_date = timestamps.dtype.kind == "M"
            step = float(np.median(np.diff(timestamps).astype(np.float64)))
            sampling_time, time_unit = (step * 1e-9, "s") if is_date else (step, time_unit)
    if sampling_time is not None and not (np.isfinite(sampling_time) and sampling_time > 0):
        raise ValueError(f"{source}: sampling_time must be positive and finite, got {sampling_time}")
    return SensorRecord(array, names, timestamps, sampling_time, time_unit, unit, coordinates)


def record_from_frame(frame: Any, *, time_column: str | None = None, source: str = "data") -> SensorRecord:
    """Turn a pandas DataFrame into a SensorRecord; a DatetimeIndex gives the times where no column does."""
    columns = [str(name) for name in frame.columns]
    time_name = _find_time_column(columns, time_column, source)
    timestamps = frame.index.to_numpy() if frame.index.dtype.kind == "M" else None
    values = []
    for name, column in zip(columns, (frame.iloc[:, i] for i in range(len(columns))), strict=True):
        if name == time_name:
            timestamps = column.to_numpy()
        elif getattr(column.dtype, "kind", "O") in "fiub":
            values.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            raise ValueError(
                f"{source}: column {name!r} must hold numbers, got dtype {column.dtype}, first value "
                f"{column.iloc[0]!r}; remove the column, or pass time_col_name={name!r} if it holds the time"
            )
    array = np.stack(values, axis=1) if values else np.empty((len(frame), 0))
    names = [name for name in columns if name != time_name]
    return sensor_record(array, names, timestamps=timestamps, source=source)


def _find_time_column(columns: list[str], wanted: str | None, source: str) -> str | None:
    if wanted is None:
        return next((name for name in columns if name.casefold() in TIME_NAMES), None)
    if wanted not in columns:
        close = get_close_matches(wanted, columns, n=3, cutoff=0.4) or columns[:5]
        raise ValueError(f"{source} has no time column {wanted!r}; close matches: {close}")
    return wanted


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
            f"({timestamps[row - 1]}); sort the file by time (local clocks: convert to UTC)"
        )
    return timestamps


def _load_array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} must be a plain numeric NumPy file (pickled objects are refused): {error}; "
            "write it with np.save or np.savez from an array of numbers"
        ) from error


def _read_npz(path: Path) -> SensorRecord:
    archive = _load_array(path)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} must be an archive written by np.savez, got a single array; rename it to .npy")
    with archive:
        if "dataset" not in archive.files:
            raise ValueError(f"{path} must hold the key 'dataset' (rows, columns); its keys are {archive.files}")
        try:
            found = {key: archive[key] for key in ("dataset", *SensorRecord._fields[1:]) if key in archive.files}
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is damaged: {error}; write it again, or copy it again from its source") from error
        except ValueError as error:
            raise ValueError(
                f"{path} holds pickled objects, which are refused: {error}; save plain arrays of numbers and text"
            ) from error
    return sensor_record(
        found["dataset"],
        found["columns"].tolist() if "columns" in found else None,
        timestamps=found.get("timestamps"),
        sampling_time=_number(found["sampling_time"], f"{path}: sampling_time") if "sampling_time" in found else None,
        time_unit=str(found["time_unit"]) if "time_unit" in found else None,
        unit=str(found["unit"]) if "unit" in found else None,
        coordinates=found.get("coordinates"),
        source=str(path),
    )


def _number(value: np.ndarray, name: str) -> float:
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be one number, got {value.dtype} of shape {value.shape}")
    return float(value.item())


def _load_parquet(path: Path) -> Any:
    try:
        import pandas  # an optional dependency, and slow to import

        return pandas.read_parquet(path)
    except ImportError as error:
        raise ImportError(f"reading {path} needs pandas and pyarrow: pip install 'favorcast[data]'") from error
