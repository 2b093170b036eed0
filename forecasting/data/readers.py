"""Read sensor series from files, and those shipped with the package by name."""

import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..flows import embedded
from .delimited_text import read_delimited_text
from .field_choice import FieldChoice
from .field_files import FIELD_SUFFIXES, ZARR_SUFFIX, open_field
from .frame_record import record_from_frame, record_from_table
from .labelled_array import record_from_xarray
from .openfoam import read_openfoam
from .probe_folders import holds_probes
from .record import SensorRecord, sensor_record
from .table_format import Table, TableFormat

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat")
SUFFIXES = (".npy", ".npz", *TEXT_SUFFIXES, ".parquet", *FIELD_SUFFIXES)
NPZ_KEYS = ("dataset", "columns", "timestamps", "sampling_time", "time_unit", "unit", "coordinates")


def embedded_names() -> list[str]:
    """List the series that ship with the package; each name is a valid data_path."""
    return sorted(
        file.name.removesuffix(".npz") for file in resources.files(embedded).iterdir() if file.name.endswith(".npz")
    )


def embedded_path(name: str) -> Path:
    """Return the file behind an embedded name.

    Raises:
        ValueError: no embedded series has this name.
    """
    if name not in embedded_names():
        raise ValueError(f"no embedded series is called {name!r}; there are {embedded_names()}")
    return Path(str(resources.files(embedded) / f"{name}.npz"))


def is_record(path: Path) -> bool:
    """Tell whether a path is one record, by its suffix or as a case of OpenFOAM; other folders may hold several."""
    return _has_suffix(path) or holds_probes(path)


def _has_suffix(path: Path) -> bool:
    """Tell whether a path has a suffix that says how it is read; a Zarr store is a folder, all others are files."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES and (path.is_dir() if suffix == ZARR_SUFFIX else path.is_file())


def is_field_source(path: Path) -> bool:
    """Tell whether fields and sensors can be chosen of what is read from a path."""
    return path.suffix.lower() in FIELD_SUFFIXES or (path.suffix.lower() not in SUFFIXES and holds_probes(path))


def read_series(
    path: str | Path,
    *,
    time_column: str | None = None,
    table: TableFormat | None = None,
    choice: FieldChoice | None = None,
) -> SensorRecord:
    """Read a sensor series from a file or an OpenFOAM case, or an embedded one by its bare name.

    Args:
        path: a .npy file (rows, columns); a .npz file with the key `dataset` (rows, columns) and, optionally, columns,
            timestamps, sampling_time, time_unit, unit and coordinates; a text table (.csv, .tsv, .txt, .dat), a
            .parquet table, a NetCDF (.nc), HDF5 (.h5) or Zarr (.zarr) field; an OpenFOAM case, or a folder or file of
            probes within it; or an embedded name.
        time_column: the column of a table, or the dimension of a field, that holds the time; None finds it by name and
            content.
        table: what the user states about a table whose content leaves a choice.
        choice: which part of a simulation is read.

    Raises:
        FileNotFoundError: neither a file, a case nor an embedded name.
        ValueError: an unknown suffix, or content that is not a clean numeric table; the message says where.
    """
    path = Path(path)
    if not path.exists() and path.name == str(path) and str(path) in embedded_names():
        path = embedded_path(str(path))
    suffix = path.suffix.lower()
    if not _has_suffix(path) and holds_probes(path):
        return read_openfoam(path, choice=choice, given=table)
    if path.is_dir() and not _has_suffix(path):
        found = sorted(each.name for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
        remedy = f"give one of its {len(found)} files, such as {path / found[0]}" if found else "give a file"
        raise FileNotFoundError(f"expected one record, but {str(path)!r} is a folder and no OpenFOAM case; {remedy}")
    if not (path.is_file() or _has_suffix(path)):
        raise FileNotFoundError(
            f"no series at {str(path)!r}: expected a {', '.join(SUFFIXES)} file, an OpenFOAM case, or one of the "
            f"embedded names {embedded_names()}"
        )
    if suffix in SUFFIXES and suffix not in FIELD_SUFFIXES:
        (choice or FieldChoice()).refuse_all(str(path), "a table or plain array")
    match suffix:
        case ".npy":
            missing = (table or TableFormat()).missing_numbers
            return sensor_record(_load_array(path), missing=missing, source=str(path))
        case ".npz":
            return _read_npz(path, table or TableFormat())
        case _ if suffix in TEXT_SUFFIXES:
            return _read_text(path, time_column, table or TableFormat())
        case ".parquet":
            return record_from_frame(_load_parquet(path), time_column=time_column, given=table, source=str(path))
        case _ if suffix in FIELD_SUFFIXES:
            with open_field(path) as field:
                return record_from_xarray(field, time_column=time_column, given=table, choice=choice, source=str(path))
    raise ValueError(
        f"{path} must end in one of {', '.join(SUFFIXES)}, or hold probes as OpenFOAM writes them, got {path.suffix!r}"
    )


def _load_array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} must be a plain numeric NumPy file (pickled objects are refused): {error}; "
            "write it with np.save or np.savez from an array of numbers"
        ) from error


def _read_npz(path: Path, given: TableFormat) -> SensorRecord:
    archive = _load_array(path)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} must be an archive written by np.savez, got a single array; rename it to .npy")
    with archive:
        if "dataset" not in archive.files:
            raise ValueError(f"{path} must hold the key 'dataset' (rows, columns); its keys are {archive.files}")
        try:
            found = {key: archive[key] for key in NPZ_KEYS if key in archive.files}
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
        missing=given.missing_numbers,
        source=str(path),
    )


def _number(value: np.ndarray, name: str) -> float:
    if value.size != 1 or value.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be one number, got {value.dtype} of shape {value.shape}")
    return float(value.item())


def _read_text(path: Path, time_column: str | None, given: TableFormat) -> SensorRecord:
    text = read_delimited_text(path, given)
    columns = [text.frame.iloc[:, i] for i in range(text.frame.shape[1])]
    found = replace(given, decimal=text.marks.decimal, thousands=text.marks.thousands)
    table = Table(columns, text.names, text.units, found, str(path))
    return record_from_table(table, time_column, notes=text.notes)


def _load_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow: pip install 'favorcast[data]'") from error
