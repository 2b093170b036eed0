"""Join several columns to one time: date and clock, date and hour, year, month and day, year and day of the year."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pandas as pd

from .table_format import Table
from .time_names import CLOCK_NAMES, HOUR_NAMES, MINUTE_NAMES, SECOND_NAMES, plain_name
from .time_values import DAY, Times, clock_nanoseconds, is_clock, is_numeric, localized, times_of

CALENDAR_PARTS = ("year", "month", "day", "hour", "minute", "second")
DAYS_OF_YEAR = frozenset(("doy", "day_of_year", "dayofyear", "jday", "julian_day", "yday"))
HOUR, MINUTE, SECOND = 3_600_000_000_000, 60_000_000_000, 1_000_000_000  # in nanoseconds


def date_and_clock(date: int, table: Table) -> Times | None:
    """Join a column of dates with the one that holds the time of day; None where none does.

    The time of day is text (13:45, 1:45 PM), or, where dates repeat, numbers: in columns called hour, minute and
    second, or in one called time (1345, 13 or 0.573 of a day).
    """
    naive = table.given if table.given.time_zone is None else replace(table.given, time_zone=None)
    dates = times_of(table.columns[date], naive, f"{table.source}, {table.names[date]!r}", name=table.names[date])
    if dates.stamps.dtype.kind != "M" or dates.zone is not None or (dates.stamps.astype(np.int64) % DAY != 0).any():
        return None
    clocks = [i for i, column in enumerate(table.columns) if i != date and is_clock(column)]
    found: tuple[tuple[int, ...], np.ndarray] | None = None
    if len(clocks) == 1:
        found = (clocks[0],), clock_nanoseconds(table.columns[clocks[0]])
    elif not clocks and not pd.Series(dates.stamps).is_unique:
        found = _numbers_of_day(date, table)
    if found is None:
        return None
    used, since_midnight = found
    times = localized(dates.stamps + since_midnight.astype("timedelta64[ns]"), table.given, table.source)
    names = [repr(table.names[i]) for i in (date, *used)]
    late = (since_midnight >= DAY).any()
    notes = [f"took {' and '.join(names) if len(names) == 2 else ', '.join(names)} together for the time"]
    notes += [f"24:00 of {names[0]} is 00:00 of the next day"] if late else []
    return times._replace(columns=(date, *used), notes=(*notes, *dates.notes))


def calendar_times(table: Table) -> Times | None:
    """Join columns called year, month, day, hour, ..., or year and day of the year; None where there are none."""
    names = [plain_name(name) for name in table.names]
    found = [part for part in CALENDAR_PARTS if part in names]
    days, added = _position(names, DAYS_OF_YEAR), np.int64(0)
    if "year" not in found or ("month" not in found and days is None):
        return None
    indices = tuple(names.index(part) for part in found)
    parts = {part: table.columns[index] for part, index in zip(found, indices, strict=True)}
    if "month" not in found and days is not None:
        indices, found = (*indices, days), [*found, table.names[days]]
        added = (table.columns[days].to_numpy(dtype=np.float64, na_value=np.nan) - 1) * DAY
    try:
        starts = {part: pd.Series(1, index=parts["year"].index) for part in ("month", "day") if part not in parts}
        stamps = pd.to_datetime(pd.DataFrame(parts | starts)).to_numpy().astype("datetime64[ns]")
        stamps = stamps + np.asarray(added).astype("timedelta64[ns]")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{table.source}: the columns {found} hold no valid dates: {error}; correct them, or rename them if they "
            "are sensors"
        ) from error
    note = f"took the columns {', '.join(repr(part) for part in found)} together for the time"
    return localized(stamps, table.given, table.source)._replace(columns=indices, notes=(note,))


def parts_of(times: Times, table: Table) -> list[int]:
    """Return the positions of columns that repeat a part of the times, such as the month beside a date."""
    if times.stamps.dtype.kind != "M":
        return []
    local = pd.DatetimeIndex(times.stamps)
    if times.zone is not None:
        local = local.tz_localize("UTC").tz_convert(times.zone)
    found = []
    for i, (name, column) in enumerate(zip(table.names, table.columns, strict=True)):
        part = plain_name(name)
        if i not in times.columns and part in CALENDAR_PARTS and _is_complete_number(column):
            found += [i] if np.array_equal(column.to_numpy(), getattr(local, part)) else []
    return found


def _numbers_of_day(date: int, table: Table) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Return the columns of numbers that tell the time of day, and it, (rows,) int64 nanoseconds since midnight."""
    usable = [i != date and _is_complete_number(column) for i, column in enumerate(table.columns)]
    names = [plain_name(name) if use else "" for name, use in zip(table.names, usable, strict=True)]
    hours = _position(names, HOUR_NAMES)
    clock = _position(names, CLOCK_NAMES) if hours is None else None
    if hours is None and clock is None:
        return None
    if hours is None:
        assert clock is not None
        nanoseconds = _nanoseconds_of_day(table.columns[clock].to_numpy(dtype=np.float64))
        return None if nanoseconds is None else ((clock,), nanoseconds)
    used, total = [], np.zeros(len(table.columns[date]))
    for index, unit, most in (
        (hours, HOUR, 24),
        (_position(names, MINUTE_NAMES), MINUTE, 59),
        (_position(names, SECOND_NAMES), SECOND, 60),
    ):
        if index is not None:
            numbers = table.columns[index].to_numpy(dtype=np.float64)
            if not ((numbers >= 0) & (numbers <= most)).all():
                return None
            used.append(index)
            total += numbers * unit
    return tuple(used), np.rint(total).astype(np.int64)


def _nanoseconds_of_day(numbers: np.ndarray) -> np.ndarray | None:
    """Read 1345, 13 or 0.573 (of a day) for a time of day; None for numbers that are none of these."""
    if not (np.isfinite(numbers) & (numbers >= 0)).all():
        return None
    if (numbers != np.floor(numbers)).any():
        return np.rint(numbers * (DAY / 1e6)).astype(np.int64) * 1_000_000 if (numbers < 1).all() else None
    hours, minutes = numbers // 100, numbers % 100
    if numbers.max() <= 24:
        hours, minutes = numbers, np.zeros_like(numbers)
    elif hours.max() > 24 or minutes.max() > 59:
        return None
    return (hours * HOUR + minutes * MINUTE).astype(np.int64)


def _position(names: list[str], wanted: Collection[str]) -> int | None:
    """Return the position of the only name among those wanted; None for none or several."""
    found = [i for i, name in enumerate(names) if name in wanted]
    return found[0] if len(found) == 1 else None


def _is_complete_number(column: pd.Series) -> bool:
    return is_numeric(column) and not column.isna().any()
