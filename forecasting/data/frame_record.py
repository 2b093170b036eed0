"""Turn a table of columns into a record: which column is the time, which are sensors, which are neither."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .column_numbers import column_numbers, plainly_spelled
from .record import SensorRecord, sensor_record
from .table_format import ID_NAMES, Table, TableFormat
from .time_column import find_times, notes_of_sensors, other_times
from .time_names import unit_in_name
from .time_values import Times, is_numeric, is_text, times_of

COUNTER_NAMES = frozenset(
    (
        *("", "#", "index", "idx", "level_0", "id", "pk", "counter", "seq", "sequence", "obs", "observation"),
        *("no", "no.", "nr", "nr.", "number", "nummer", "lfd", "lfd.", "lfdnr", "lfd nr", "lfd. nr."),
        *("row", "rowid", "row_id", "row number", "row_number", "rownum", "record", "record_no", "recnum", "rec"),
    )
)
FEWEST_COUNTED = 10  # rows from which on a column counts by its numbers alone, whatever its name


def record_from_frame(
    frame: pd.DataFrame, *, time_column: str | None = None, given: TableFormat | None = None, source: str = "data"
) -> SensorRecord:
    """Turn a DataFrame into a record; an index of dates, periods, durations or floats gives the times.

    A column that holds the time wins over the index. Otherwise as `record_from_table`.
    """
    given = given or TableFormat()
    names = [str(name) for name in frame.columns]
    columns = [frame.iloc[:, i].reset_index(drop=True) for i in range(frame.shape[1])]
    times, notes = None, []
    index = frame.index
    if isinstance(index, pd.MultiIndex) or index.dtype.kind in "OTU" or (index.name and index.dtype.kind in "iu"):
        levels = [index.get_level_values(i).to_series(index=range(len(frame))) for i in range(index.nlevels)]
        columns = levels + columns
        names = ["" if name is None else str(name) for name in index.names] + names
    elif index.dtype.kind in "Mmf" or isinstance(index, pd.PeriodIndex | pd.DatetimeIndex):
        times = times_of(index.to_series(index=range(len(frame))), given, f"{source}, the index")
    elif not (isinstance(index, pd.RangeIndex) or (np.diff(index.to_numpy()) == 1).all()):
        notes.append("left out the index, whose whole numbers count no rows")
    table = Table(columns, names, [None] * len(names), given, source)
    return record_from_table(table, time_column, times=times, notes=notes)


def record_from_table(
    table: Table, time_column: str | None, *, times: Times | None = None, notes: Sequence[str] = ()
) -> SensorRecord:
    """Turn the columns of a table into a record.

    Dropped, and noted, are columns that only count rows and those of text; a long table (one row for each time and
    sensor) becomes one column a sensor.

    Args:
        table: as it was read.
        time_column: name of the column that holds the time; None finds it.
        times: those of an index, taken where no column holds the time.
        notes: what was noticed before.

    Raises:
        ValueError: a column that is neither numbers nor text, or no way to tell what holds the time.
    """
    said = list(notes)
    table = plainly_spelled(table, said)
    names = table.names
    found = find_times(table, time_column, has_index=times is not None)
    if found is not None:
        times = found
        said.extend(found.notes)
    kept = _sensors_of(table, times, said)
    ids = _id_column(table, kept, times)
    if ids is not None and times is not None:
        return _record_from_long(table, kept, ids, times, said)
    values, labels, known_units = [], [], []
    for i in kept:
        numbers = column_numbers(table, i)
        if numbers is None:
            said.append(f"left out the text column {names[i]!r}")
            continue
        if not names[i]:
            raise ValueError(f"{table.source}: column {i} has no name in the header; give it one, or remove it")
        values.append(numbers)
        labels.append(names[i])
        known_units.append(table.units[i] or unit_in_name(names[i]))
    if not values:
        raise ValueError(f"{table.source} holds no column of numbers beside the time and counts of rows, only {names}")
    array = np.stack(values, axis=1)
    return _record(array, labels, known_units, times, table.given, table.source, said)


def _sensors_of(table: Table, times: Times | None, said: list[str]) -> list[int]:
    """Return the positions of the columns that may be sensors, or name some; say which others are left out, and why."""
    columns, names = table.columns, table.names
    kept = [i for i in range(len(names)) if times is None or i not in times.columns]
    others = {} if times is None else other_times(times, table)
    if len(others) < sum(not is_text(columns[i]) for i in kept):  # the only sensor may grow as the time does
        said.extend(f"left out the column {names[i]!r}, {why}" for i, why in others.items())
        kept = [i for i in kept if i not in others]
    said.extend(notes_of_sensors(table, kept, is_timed=times is not None))
    kept = [i for i in kept if not _is_left_out(columns[i], names[i], said)]
    counters = [i for i in kept if _counts_rows(columns[i], names[i]) and names[i] != table.given.id_column]
    if len(counters) < sum(not is_text(columns[i]) for i in kept):  # the only sensor may grow by one from row to row
        said.extend(f"left out the column {names[i]!r}, which counts rows" for i in counters)
        kept = [i for i in kept if i not in counters]
    return kept


def _record(
    array: np.ndarray,
    names: list[str],
    units: list[str | None],
    times: Times | None,
    given: TableFormat,
    source: str,
    notes: list[str],
) -> SensorRecord:
    return sensor_record(
        array,
        names,
        timestamps=None if times is None else times.stamps,
        time_unit=None if times is None else times.unit,
        time_zone=None if times is None else times.zone,
        units=units,
        missing=given.missing_numbers,
        source=source,
        notes=notes,
    )


def _is_left_out(column: pd.Series, name: str, notes: list[str]) -> bool:
    folded = name.casefold().strip()
    if (not folded or folded.startswith("unnamed:")) and column.isna().all():
        notes.append("left out a column without name and values")
        return True
    if folded in ID_NAMES and len(column) > 1 and column.nunique(dropna=False) == 1 and not is_text(column):
        notes.append(f"left out the column {name!r}, which is the same in every row")
        return True
    return False


def _counts_rows(column: pd.Series, name: str) -> bool:
    """Tell whether a column only counts rows: by one from row to row, or, of a name that says so, by equal steps.

    Rows that were deleted or repeated leave jumps in a count by one.
    """
    if not is_numeric(column) or len(column) < 2 or column.isna().any():
        return False
    numbers = column.to_numpy(dtype=np.float64)
    steps = np.diff(numbers)
    if (numbers != np.floor(numbers)).any():
        return False
    folded = name.casefold().strip()
    if folded in COUNTER_NAMES or folded.startswith("unnamed:"):
        usual = np.median(steps)
        return bool((steps >= 0).all() and (usual == 1 or (usual > 0 and (steps == usual).all())))
    return len(numbers) >= FEWEST_COUNTED and bool((steps == 1).all())


def _id_column(table: Table, kept: list[int], times: Times | None) -> int | None:
    """Return the position of the column that names the sensor of a row, None where rows are times."""
    columns, names, given = table.columns, table.names, table.given
    if given.id_column is not None:
        if given.id_column not in names or times is None:
            raise ValueError(
                f"{table.source}: table.id_column {given.id_column!r} must name a column of a table with times; it has "
                f"{names}"
            )
        return names.index(given.id_column)
    if times is None or pd.Series(times.stamps).is_unique:
        return None
    possible = [i for i in kept if names[i].casefold() in ID_NAMES and columns[i].notna().all()]
    possible = possible or [i for i in kept if is_text(columns[i]) and columns[i].notna().all()]
    ids = [i for i in possible if columns[i].nunique() > 1]
    ids = [i for i in ids if not pd.DataFrame({"id": columns[i], "time": times.stamps}).duplicated().any()]
    if len(ids) > 1:
        raise ValueError(
            f"{table.source} is a long table, whose sensors {' or '.join(repr(names[i]) for i in ids)} may name; state "
            "table.id_column"
        )
    return ids[0] if ids else None


def _record_from_long(table: Table, kept: list[int], ids: int, times: Times, notes: list[str]) -> SensorRecord:
    names, source = table.names, table.source
    columns: dict[int, Any] = {}
    for i in (i for i in kept if i != ids):
        numbers = column_numbers(table, i)
        if numbers is None:
            notes.append(f"left out the text column {names[i]!r}")
        else:
            columns[i] = numbers
    long = pd.DataFrame(columns | {"time": times.stamps, "id": table.columns[ids].astype(str)})
    if long.duplicated(["time", "id"]).any():
        row = int(np.argmax(long.duplicated(["time", "id"])))
        raise ValueError(
            f"{source}: {long['id'].iloc[row]!r} has more than one row at {long['time'].iloc[row]}; keep one of them"
        )
    wide = long.pivot(index="time", columns="id", values=list(columns))
    order = [(i, label) for i in columns for label in long["id"].unique()]
    labels = [label if len(columns) == 1 else f"{names[i]}_{label}" for i, label in order]
    notes.append(f"long table: one column for each of {long['id'].nunique()} values of {names[ids]!r}")
    times = times._replace(stamps=wide.index.to_numpy())
    return _record(
        wide[order].to_numpy(dtype=np.float64),
        labels,
        [table.units[i] or unit_in_name(names[i]) for i, _ in order],
        times,
        table.given,
        source,
        notes,
    )
