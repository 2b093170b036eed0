"""Find what holds the time in a table, by name and content; what else tells the time is named."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import re
from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
import pandas as pd

from .date_text import parse_dates
from .table_format import ID_NAMES, Table
from .time_joins import calendar_times, date_and_clock, parts_of
from .time_names import (
    CALENDAR_NAMES,
    counts_steps,
    is_symbol,
    is_time_name,
    may_be_time,
    must_grow,
    plain_name,
    time_unit_in_name,
)
from .time_values import Times, is_clock, is_numeric, is_text, times_of

DAY_SECONDS = 86_400
FORWARD = 0.75  # of the steps of a column that may hold the time: more back and forth than that is a sensor
FEWEST_STEPS = 4  # that tell forth from back and forth
SAME = 0.05  # of a step: how far two columns that tell the same time may differ


def find_times(table: Table, wanted: str | None, *, has_index: bool = False) -> Times | None:
    """Return the times of a table, None where no column holds any.

    Dates come first, then columns whose name says time, then columns called year, month, ..., then one whose name may
    say it (t, flow_time, step, seconds, year) and whose numbers run forward, though some may repeat, lie back or lack:
    those are times that are refused or reported as all others, not sensors.

    Args:
        table: as it was read.
        wanted: name of the time column; None finds it.
        has_index: whether an index holds times, which win over a column that only may hold some.

    Raises:
        ValueError: no such column, several that may hold the time, or a time that cannot be read.
    """
    columns, names = table.columns, table.names
    if wanted is not None:
        if wanted not in names:
            close = get_close_matches(wanted, names, n=3, cutoff=0.4) or names[:5]
            raise ValueError(f"{table.source} has no time column {wanted!r}; close matches: {close}")
        return _times_at(names.index(wanted), table)
    named = [i for i, name in enumerate(names) if is_time_name(name)]
    dated = [i for i, column in enumerate(columns) if _holds_dates(column)]
    dates = dated or [i for i in named if plain_name(names[i]) in CALENDAR_NAMES and is_numeric(columns[i])]
    joined = date_and_clock(dates[0], table) if len(dates) == 1 else None
    if joined is not None:
        return joined
    clocks = [i for i, column in enumerate(columns) if is_clock(column)]
    candidates = [i for i in dated if i in named] or dated or named or clocks
    if candidates:
        return _times_at(_only(candidates, table), table)
    return calendar_times(table) or (None if has_index else _running_times(table))


def other_times(times: Times, table: Table) -> dict[int, str]:
    """Return the positions of columns that tell the time beside the one that was taken, and why each is left out.

    These count steps, tell the same time in another form, or repeat a part of it (the month of a date).
    """
    found = dict.fromkeys(parts_of(times, table), "which repeats a part of the time")
    for i, (name, column) in enumerate(zip(table.names, table.columns, strict=True)):
        if i in times.columns or (not may_be_time(name) and not is_time_name(name)) or not is_numeric(column):
            continue
        numbers = _floats(column)
        if np.isnan(numbers).any() or (np.diff(numbers) < 0).any() or np.ptp(numbers) == 0:
            continue
        if counts_steps(name) and (numbers == np.floor(numbers)).all():
            found[i] = "which counts steps beside the time"
        elif _tell_the_same(numbers, times.stamps.astype(np.float64)):
            found[i] = "which tells the time in another form"
    return found


def notes_of_sensors(table: Table, kept: Sequence[int], *, is_timed: bool) -> list[str]:
    """Name the columns that are sensors for their numbers alone, although their names say time.

    Args:
        table: as it was read.
        kept: positions of the columns that are sensors.
        is_timed: whether another column holds the time.
    """
    says_time = is_time_name if is_timed else may_be_time
    names = [
        table.names[i]
        for i in kept
        if says_time(table.names[i]) and not is_symbol(table.names[i])
        if is_numeric(table.columns[i]) and table.columns[i].nunique() > 1
    ]
    return [
        f"took {name!r}, which does not grow from row to row, for a sensor; pass time_col_name={name!r} if it holds "
        "the time"
        for name in names
    ]


def _only(candidates: list[int], table: Table) -> int:
    if len(candidates) > 1:
        raise ValueError(
            f"{table.source}: {' and '.join(repr(table.names[i]) for i in candidates)} may hold the time; choose one "
            "with time_col_name"
        )
    return candidates[0]


def _times_at(index: int, table: Table) -> Times:
    name, given = table.names[index], table.given
    unit = table.units[index] or time_unit_in_name(name)
    words = {*re.split(r"[^a-z]+", name.casefold()), (unit or "").casefold()}
    column = table.columns[index]
    times = times_of(column, given, f"{table.source}, {name!r}", unit=unit, name=name)
    if times.zone is None and times.stamps.dtype.kind == "M" and words & {"utc", "gmt"} and given.time_zone is None:
        times = times._replace(zone="UTC")
    if is_clock(column) and not _is_long(table, index):
        times = _beyond_midnight(times)
    return times._replace(columns=(index,), notes=tuple(f"time column {name!r}: {note}" for note in times.notes))


def _beyond_midnight(times: Times) -> Times:
    """Count on where a clock starts again, more than half a day back."""
    starts = np.diff(times.stamps) < -DAY_SECONDS / 2
    if not starts.any():
        return times
    days = np.r_[0, np.cumsum(starts)]
    often = "once" if days[-1] == 1 else f"{days[-1]} times"
    note = f"the clock passes midnight {often}, counting on from the first day; a column of dates tells the days"
    return times._replace(stamps=times.stamps + DAY_SECONDS * days, notes=(*times.notes, note))


def _running_times(table: Table) -> Times | None:
    """Return the times of the column whose name may say time and whose numbers run forward."""
    columns, names = table.columns, table.names
    running = [i for i, name in enumerate(names) if may_be_time(name) and _runs_forward(i, table)]
    running += [i for i in (0,) if names and names[0] == "" and _is_float(columns[0]) and _grows(columns[0])]
    times = [i for i in running if not counts_steps(names[i])] or running
    regular = [i for i in times if _is_regular(columns[i])]
    if not times:
        return None
    alike = [i for i in times if _tell_the_same(_floats(columns[i]), _floats(columns[times[0]]))]
    index = _only(regular if len(regular) == 1 else alike[:1] if alike == times else times, table)
    how = "grows" if _grows(columns[index]) else "mostly grows"
    note = f"took {names[index]!r}, which {how} from row to row, for the time"
    found = _times_at(index, table)
    return found._replace(notes=(note, *found.notes))


def _holds_dates(column: pd.Series) -> bool:
    if getattr(column.dtype, "kind", "O") == "M" or isinstance(column.dtype, pd.PeriodDtype):
        return True
    if not is_text(column):
        return pd.api.types.infer_dtype(column, skipna=True) in ("datetime", "datetime64", "date")
    first = column.dropna()
    try:
        return len(first) > 0 and len(parse_dates(first.iloc[:1], "").stamps) == 1
    except ValueError as error:
        return "can be read as" in str(error)


def _is_long(table: Table, index: int) -> bool:
    """Tell whether another column may name the sensor of each row, so that times repeat."""
    for i, (name, column) in enumerate(zip(table.names, table.columns, strict=True)):
        is_id = name == table.given.id_column or name.casefold() in ID_NAMES
        is_label = is_text(column) and not is_clock(column) and not _holds_dates(column)
        if i != index and (is_id or is_label) and column.nunique() > 1:
            return True
    return False


def _is_float(column: pd.Series) -> bool:
    return getattr(column.dtype, "kind", "O") == "f"


def _steps(column: pd.Series) -> np.ndarray:
    return np.diff(_floats(column))


def _floats(column: pd.Series) -> np.ndarray:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _grows(column: pd.Series) -> bool:
    return is_numeric(column) and len(column) > 1 and bool((_steps(column) > 0).all())


def _runs_forward(index: int, table: Table) -> bool:
    """Tell whether a column grows from row to row, or, where its name is no symbol or part of a date, in most."""
    column = table.columns[index]
    if not is_numeric(column):
        return False
    steps = _steps(column if must_grow(table.names[index]) else column.dropna())
    steps = steps[steps != 0] if _is_long(table, index) else steps
    if must_grow(table.names[index]) or len(steps) < FEWEST_STEPS:
        return len(steps) > 0 and bool((steps > 0).all())
    return float((steps > 0).mean()) >= FORWARD


def _is_regular(column: pd.Series) -> bool:
    steps = _steps(column)
    return _grows(column) and bool(np.ptp(steps) <= SAME * np.median(steps))


def _tell_the_same(numbers: np.ndarray, times: np.ndarray) -> bool:
    """Tell whether numbers grow in proportion to times, within the rounding of both."""
    if len(numbers) < 3 or np.ptp(times) == 0:
        return False
    steps = np.diff(numbers)
    in_proportion = numbers[0] + (times - times[0]) * (np.ptp(numbers) / np.ptp(times))
    return bool(np.abs(numbers - in_proportion).max() <= SAME * np.median(steps))
