"""Several runs of the same sensors, such as simulations at several Reynolds numbers, as one record with breaks.

Runs follow one another in the order of their splits, so that each split is a range of rows; no window reaches from one
into the next.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .column_choice import listed
from .labelled_array import is_xarray
from .readers import SUFFIXES, is_record
from .record import SensorRecord
from .series_config import SeriesConfig
from .sources import record_of
from .table_format import TableFormat
from .time_grid import TOLERANCE, TimeGrid, on_grid


@dataclass(frozen=True)
class Runs:
    """One record made of runs.

    Attributes:
        record: of all rows. Its timestamps may start again with each run.
        grid: how rows lie in time within runs; its breaks hold the first row of each run but the first.
        names: of the runs, in the order of their rows.
        starts: first row of each run.
        splits: rows of each split.
    """

    record: SensorRecord
    grid: TimeGrid | None
    names: list[str]
    starts: list[int]
    splits: dict[str, range]

    @property
    def lengths(self) -> list[int]:
        """Rows of each run."""
        return np.diff([*self.starts, len(self.record.values)]).tolist()


def read_runs(config: SeriesConfig) -> Runs:
    """Read the runs, one or several, and divide them: one by rows, several by runs.

    Raises:
        ValueError, FileNotFoundError: see record_of; runs of other columns, times or time steps than the first.
    """
    found = sources_of(config.data_path if config.data is None else config.data)
    if found is None:
        source = config.data if config.data_path is None else config.data_path
        record, grid = _read(source, config)
        return Runs(record, grid, [], [0], config.divide(len(record.values)))
    names = list(found)
    by_split = config.divide_runs(names)
    order = [names.index(name) for chosen in by_split.values() for name in chosen]
    read = [_read_run(names[index], found[names[index]], config) for index in order]
    names = [names[index] for index in order]
    records, grids = [record for record, _ in read], [grid for _, grid in read]
    for name, each, grid in zip(names[1:], records[1:], grids[1:], strict=True):
        _check_alike(names[0], records[0], grids[0], name, each, grid)
    starts = np.cumsum([0, *(len(each.values) for each in records)]).tolist()
    splits, first = {}, 0
    for split, chosen in by_split.items():
        splits[split] = range(starts[first], starts[first := first + len(chosen)])
    return Runs(_joined(names, records), _joined_grid(grids, starts), names, starts[:-1], splits)


def _read(source: Any, config: SeriesConfig) -> tuple[SensorRecord, TimeGrid | None]:
    table = config.table
    if config.null_value is not None:
        table = replace(table or TableFormat(), missing=[*(table.missing or [] if table else []), config.null_value])
    record = record_of(source, time_column=config.time_col_name, table=table, choice=config)
    return on_grid(record, config.gaps, config.time_step_df)


def _read_run(name: str, source: Any, config: SeriesConfig) -> tuple[SensorRecord, TimeGrid | None]:
    try:
        record, grid = _read(source, config)
    except ValueError as error:
        raise ValueError(
            f"run {name!r}: {error}; a file that is no run is left out by a pattern, as 'runs/*.csv'"
        ) from error
    if len(record.values) < 2:
        raise ValueError(f"run {name!r} has a single row; leave it out")
    return record, grid


def sources_of(data: Any) -> dict[str, Any] | None:
    """Return the runs by name; None for a single record.

    Several are a folder, a pattern such as "runs/*.csv", or a list (or dict by name) of whatever record_of takes. A
    folder that is an OpenFOAM case is one record, a folder of cases holds several.
    """
    if isinstance(data, dict):
        return {str(name): each for name, each in data.items()}
    if isinstance(data, str | Path):
        folder = Path(data)
        if is_record(folder):
            return None
        if folder.is_dir():
            paths = [path for path in folder.iterdir() if path.name[0] != "." and _is_run(path)]
        elif has_magic(str(data)) and not folder.exists():
            paths = [Path(path) for path in glob(str(data), recursive=True)]
        else:
            return None
        if not paths:
            raise FileNotFoundError(
                f"no runs at {str(data)!r}: expected {', '.join(SUFFIXES)} files or OpenFOAM cases there"
            )
        return _by_name(sorted(paths, key=_natural))
    is_list = isinstance(data, list | tuple) and not isinstance(data, SensorRecord)
    if is_list and data and all(isinstance(each, str | Path) for each in data):
        return _by_name([Path(str(each)) for each in data])
    if is_list and data and all(_is_record(each) for each in data):
        return {f"run {i}": each for i, each in enumerate(data, 1)}
    return None


def name_of(data_path: str | list[str] | None) -> str:
    """Return a name for results: of a file without its suffix, of several runs that of their folder."""
    if data_path is None:
        return "series"
    if isinstance(data_path, list) or has_magic(data_path):
        path = Path(data_path[0] if isinstance(data_path, list) else data_path).parent
        while has_magic(str(path)):
            path = path.parent
    else:
        path = Path(data_path)
    return _without_suffix(path.resolve()).name or "runs"


def _is_record(x: Any) -> bool:
    is_array = isinstance(x, np.ndarray | torch.Tensor) and x.ndim == 2
    return is_array or isinstance(x, pd.DataFrame | SensorRecord) or is_xarray(x)


def _is_run(path: Path) -> bool:
    """Tell whether an entry of a folder of runs is one: a file by its suffix, a Zarr store, or a case."""
    return is_record(path) if path.is_dir() else path.suffix.lower() in SUFFIXES


def _by_name(paths: Sequence[Path]) -> dict[str, Any]:
    """Name runs by their files, with as many folders as tell them apart."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"each run must be given once, got {[str(path) for path in paths]}")
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(_without_suffix(path).parts[-parts:]) for path in paths]
        if len(set(names)) == len(paths):
            return dict(zip(names, map(str, paths), strict=True))
    return {str(path): str(path) for path in paths}


def _without_suffix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path  # a case may be called re_0.5


def _natural(path: Path) -> list[Any]:
    """Sort re_80 before re_100."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+(?:\.[0-9]+)?)", str(path)))]


def _check_alike(
    first: str, one: SensorRecord, one_grid: TimeGrid | None, name: str, other: SensorRecord, grid: TimeGrid | None
) -> None:
    """Raise ValueError for a run that is not of the kind of the first."""
    missing, unknown = (
        [column for column in left.columns if column not in right.columns]
        for left, right in ((one, other), (other, one))
    )
    if missing or unknown:
        said = [f"{verb} {listed(each)}" for verb, each in (("lacks", missing), ("also has", unknown)) if each]
        raise ValueError(
            f"all runs must have the columns of the first, {first!r}: {name!r} {' and '.join(said)}; rename columns, "
            "or remove those that only some runs have"
        )
    kinds = [None if x.timestamps is None else x.timestamps.dtype.kind for x in (one, other)]
    if kinds[0] != kinds[1] or one.time_zone != other.time_zone:
        said = {None: "none", "M": "dates", "f": "numbers"}
        raise ValueError(
            f"all runs must have times of one kind: {first!r} has {said[kinds[0]]} (time zone {one.time_zone}), "
            f"{name!r} {said[kinds[1]]} (time zone {other.time_zone})"
        )
    steps = [x.sampling_time if g is None else g.step for x, g in ((one, one_grid), (other, grid))]
    if steps[0] is not None and steps[1] is not None and abs(steps[1] / steps[0] - 1) > TOLERANCE:
        raise ValueError(
            f"all runs must have one time between rows: {first!r} has {steps[0]:.6g}, {name!r} {steps[1]:.6g}; "
            "resample them, or state time_step_df with gaps='resample'"
        )
    if one.time_unit != other.time_unit:
        raise ValueError(
            f"all runs must have times in one unit: {first!r} has {one.time_unit}, {name!r} {other.time_unit}; convert "
            "the times of one of them"
        )
    places = [x.coordinates for x in (one, other)]
    if places[0] is not None and places[1] is not None:
        order = [other.columns.index(column) for column in one.columns]
        if places[0].shape != places[1].shape or not np.allclose(places[0], places[1][order]):
            raise ValueError(
                f"all runs must have their sensors where the first has them: {name!r} differs from {first!r}"
            )
    units = [dict(zip(x.columns, x.units or [None] * len(x.columns), strict=True)) for x in (one, other)]
    differing = [column for column in one.columns if units[0][column] != units[1][column]]
    if differing:
        column = differing[0]
        raise ValueError(
            f"all runs must have the units of the first: {column!r} is in {units[0][column]} in {first!r}, in "
            f"{units[1][column]} in {name!r}"
        )


def _joined(names: list[str], records: list[SensorRecord]) -> SensorRecord:
    first = records[0]
    values = [each.values[:, [each.columns.index(column) for column in first.columns]] for each in records]
    times = [each.timestamps for each in records if each.timestamps is not None]
    return first._replace(
        values=np.concatenate(values),
        timestamps=np.concatenate(times) if times else None,
        notes=[f"{name}: {note}" for name, each in zip(names, records, strict=True) for note in each.notes],
    )


def _joined_grid(grids: list[TimeGrid | None], starts: list[int]) -> TimeGrid | None:
    present = [(grid, start) for grid, start in zip(grids, starts, strict=False) if grid is not None]
    if len(present) < len(grids):
        return None
    breaks = [np.append(grid.breaks + start, start) for grid, start in present]
    return replace(
        present[0][0],
        breaks=np.unique(np.concatenate(breaks))[1:],
        **{name: sum(getattr(grid, name) for grid, _ in present) for name in ("duplicates", "gaps", "shorter")},
        longest=max(grid.longest for grid, _ in present),
    )
