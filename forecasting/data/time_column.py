"""Find what holds the time in a table, by name and content, and turn it into timestamps."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import re
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
import pandas as pd

from .date_text import parse_dates
from .table_format import Table, TableFormat

TIME_WORDS = frozenset(
    (
        *("time", "date", "datetime", "timestamp", "ds", "datum", "zeit", "uhrzeit", "zeitpunkt", "stamp"),
        *("utc", "gmt", "local", "epoch", "unix", "unixtime"),
    )
)
TIME_UNITS = frozenset(("s", "sec", "seconds", "ms", "us", "ns", "min", "h", "hours", "days"))  # as in time_ms
# t of solvers is a temperature too, and travel_time a sensor, so that they count only where they grow
PERHAPS_TIME = re.compile(r"t|ts|step_?time|(\w+_)?(time|date|timestamp)")
CALENDAR_PARTS = ("year", "month", "day", "hour", "minute", "second")
EPOCH_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
EPOCH_SECONDS = (3e8, 1e10)  # 1979 to 2286: numbers of this size are seconds since 1970
DIGIT_DATES = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?"


class Times(NamedTuple):
    """Hold the times of a table.

    Attributes:
        stamps: (rows,) datetime64[ns], in UTC if there is a zone, or float64.
        zone: name or offset of the time zone, None where the table names none.
        unit: unit of float64 stamps, None where unknown.
        columns: positions of the columns that they come from.
        notes: how they were read.
    """

    stamps: np.ndarray
    zone: str | None = None
    unit: str | None = None
    columns: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def find_times(table: Table, wanted: str | None) -> Times | None:
    """Return the times of a table, None where no column holds any.

    Args:
        table: as it was read.
        wanted: name of the time column; None finds it.

    Raises:
        ValueError: no such column, several that may hold the time, or a time that cannot be read.
    """
    columns, names = table.columns, table.names
    if wanted is not None:
        if wanted not in names:
            close = get_close_matches(wanted, names, n=3, cutoff=0.4) or names[:5]
            raise ValueError(f"{table.source} has no time column {wanted!r}; close matches: {close}")
        return _times_at(names.index(wanted), table)
    folded = [name.casefold().strip() for name in names]
    named = [i for i, name in enumerate(names) if is_time_name(name)]
    dated = [i for i, column in enumerate(columns) if _holds_dates(column)]
    clocks = [i for i, column in enumerate(columns) if is_text(column) and column.str.fullmatch(CLOCK).all()]
    if len(dated) == len(clocks) == 1 and dated != clocks:
        return _date_and_clock(dated[0], clocks[0], table)
    candidates = [i for i in dated if i in named] or dated or named
    if len(candidates) > 1:
        raise ValueError(
            f"{table.source}: {' and '.join(repr(names[i]) for i in candidates)} may hold the time; choose one with "
            "time_col_name"
        )
    if candidates:
        return _times_at(candidates[0], table)
    if {"year", "month"} <= set(folded):
        return _calendar_times(folded, table)
    growing = [i for i, name in enumerate(folded) if PERHAPS_TIME.fullmatch(_bare(name)) and _grows(columns[i])]
    growing += [i for i in (0,) if names and names[0] == "" and _is_float(columns[0]) and _grows(columns[0])]
    if len(growing) != 1:
        return None
    times = _times_at(growing[0], table)
    return times._replace(
        notes=(f"took {names[growing[0]]!r}, which grows from row to row, for the time", *times.notes)
    )


def times_of(column: pd.Series, given: TableFormat, source: str, *, unit: str | None = None) -> Times:
    """Turn one column of dates, durations or numbers into times.

    Raises:
        ValueError: entries that are no times, or can be read in several ways.
    """
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if column.isna().any():
        row = int(np.argmax(column.isna()))
        raise ValueError(f"{source}: row {row} has no time; give every row one, or remove the column")
    kind = getattr(column.dtype, "kind", "O")
    if kind == "m":
        return Times(column.to_numpy().astype("timedelta64[ns]").astype(np.int64) * 1e-9, unit="s")
    if kind == "O" and not is_text(column):  # dates of Python, pandas or a database
        zones = {getattr(entry, "tzinfo", None) for entry in column}
        try:
            column = pd.to_datetime(column, utc=len(zones) > 1)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: times must be dates or numbers, got {column.iloc[0]!r}") from error
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        stamps = column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[ns]")
        return Times(stamps, given.time_zone or str(column.dt.tz))
    if getattr(column.dtype, "kind", "O") == "M":
        return _localized(column.to_numpy().astype("datetime64[ns]"), given, source)
    if is_text(column):
        if column.str.fullmatch(CLOCK).all():
            clocks = column.where(column.str.count(":") == 2, column + ":00")
            return Times(pd.to_timedelta(clocks).to_numpy().astype("timedelta64[ns]").astype(np.int64) * 1e-9, unit="s")
        return _from_text(column, given, source)
    return _from_numbers(column, given, unit, source)


def is_text(column: pd.Series) -> bool:
    """Tell whether a column holds text, and nothing but text and missing entries."""
    if getattr(column.dtype, "kind", "O") not in "OTU":
        return False
    return pd.api.types.infer_dtype(column, skipna=True) == "string"


def unit_in_name(name: str) -> str | None:
    """Return the unit in brackets at the end of a column's name.

    Example:
        >>> unit_in_name("u [m/s]")
        'm/s'
    """
    found = re.search(r"\[([^\[\]]+)\]\s*$", name)
    return found.group(1).strip() if found else None


def _times_at(index: int, table: Table) -> Times:
    name, given = table.names[index], table.given
    in_round_brackets = re.search(r"\(([^()]+)\)\s*$", name)
    unit = (
        table.units[index] or unit_in_name(name) or (in_round_brackets.group(1).strip() if in_round_brackets else None)
    )
    last = re.split(r"[^a-z]+", name.casefold())[-1]
    unit = last if unit is None and last in TIME_UNITS and last != name.casefold() else unit
    words = {*re.split(r"[^a-z]+", name.casefold()), (unit or "").casefold()}
    times = times_of(table.columns[index], given, f"{table.source}, {name!r}", unit=unit)
    if times.zone is None and times.stamps.dtype.kind == "M" and words & {"utc", "gmt"} and given.time_zone is None:
        times = times._replace(zone="UTC")
    return times._replace(columns=(index,), notes=tuple(f"time column {name!r}: {note}" for note in times.notes))


def _date_and_clock(date: int, clock: int, table: Table) -> Times:
    both = table.columns[date].str.strip() + " " + table.columns[clock].str.strip()
    names = f"{table.names[date]!r} and {table.names[clock]!r}"
    times = times_of(both, table.given, f"{table.source}, {names}")
    note = f"took {names} together for the time"
    return times._replace(columns=(date, clock), notes=(note, *times.notes))


def _calendar_times(folded: list[str], table: Table) -> Times:
    found = [part for part in CALENDAR_PARTS if part in folded]
    indices = tuple(folded.index(part) for part in found)
    parts = {part: table.columns[index] for part, index in zip(found, indices, strict=True)}
    parts.setdefault("day", pd.Series(1, index=parts["year"].index))
    try:
        stamps = pd.to_datetime(parts).to_numpy().astype("datetime64[ns]")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{table.source}: the columns {found} hold no valid dates: {error}; correct them, or rename them if they "
            "are sensors"
        ) from error
    note = f"took the columns {', '.join(repr(part) for part in found)} together for the time"
    return _localized(stamps, table.given, table.source)._replace(columns=indices, notes=(note,))


def _from_text(column: pd.Series, given: TableFormat, source: str) -> Times:
    dates = parse_dates(column, source, given.date_order)
    notes = [] if dates.order is None or given.date_order else [f"dates read as {dates.order}"]
    if dates.offset is None:
        return _localized(dates.stamps, given, source)._replace(notes=tuple(notes))
    zone = given.time_zone or ("UTC" if dates.is_mixed else dates.offset)
    if dates.is_mixed and given.time_zone is None:
        notes.append("offsets from UTC differ, so times are shown in UTC; state table.time_zone for local ones")
    return Times(dates.stamps, zone, notes=tuple(notes))


def _from_numbers(column: pd.Series, given: TableFormat, unit: str | None, source: str) -> Times:
    if getattr(column.dtype, "kind", "O") not in "fiu":
        raise ValueError(f"{source}: times must be dates or numbers, got {column.dtype}")
    numbers = column.to_numpy()
    whole = bool((numbers == np.floor(numbers)).all())
    if whole and given.epoch_unit is None:
        texts = pd.Series(numbers.astype(np.int64)).astype(str)
        form = DIGIT_DATES.get(int(texts.str.len().min())) if texts.str.len().nunique() == 1 else None
        stamps = pd.to_datetime(texts, format=form, errors="coerce") if form else None
        if stamps is not None and stamps.notna().all() and stamps.dt.year.between(1800, 2200).all():
            times = _localized(stamps.to_numpy().astype("datetime64[ns]"), given, source)
            return times._replace(notes=(f"dates read as {form}",))
    lowest, highest = float(np.min(numbers)), float(np.max(numbers))
    epoch = given.epoch_unit
    for name, per_second in EPOCH_PER_SECOND.items():
        if epoch is None and EPOCH_SECONDS[0] * per_second <= lowest <= highest < EPOCH_SECONDS[1] * per_second:
            epoch = name
    if epoch is None:
        return Times(numbers.astype(np.float64), unit=unit)
    nanoseconds = 1_000_000_000 // EPOCH_PER_SECOND[epoch]
    if numbers.dtype.kind in "iu":
        count = numbers.astype(np.int64) * nanoseconds
    else:  # float64 resolves a quarter of a microsecond today
        microseconds = np.round(numbers.astype(np.float64) * (nanoseconds / 1000))
        count = microseconds.astype(np.int64) * 1000
    return Times(
        count.view("datetime64[ns]"), given.time_zone or "UTC", notes=(f"counts {epoch} since 1970-01-01 UTC",)
    )


def _localized(stamps: np.ndarray, given: TableFormat, source: str) -> Times:
    """Turn local times into UTC where the zone is stated; without one they stay as they are."""
    if given.time_zone is None:
        return Times(stamps)
    try:
        local = pd.DatetimeIndex(stamps).tz_localize(given.time_zone, ambiguous="infer", nonexistent="raise")
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{source}: cannot take the times for those of table.time_zone={given.time_zone!r}: {error}; state the "
            "zone of the clock that wrote them"
        ) from error
    return Times(local.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[ns]"), given.time_zone)


def _bare(name: str) -> str:
    return re.sub(r"\[[^\]]*\]|\([^)]*\)", "", name.casefold()).strip()


def is_time_name(name: str) -> bool:
    """Tell whether a name says that its column holds the time, such as "Date (UTC)" or "Time [s]"."""
    words = [word for word in re.split(r"[^a-zà-ÿ]+", _bare(name)) if word]
    return bool(words and words[0] in TIME_WORDS) and all(word in TIME_WORDS | TIME_UNITS for word in words)


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


def _is_float(column: pd.Series) -> bool:
    return getattr(column.dtype, "kind", "O") == "f"


def _grows(column: pd.Series) -> bool:
    if getattr(column.dtype, "kind", "O") not in "fiu" or len(column) < 2:
        return False
    return bool((np.diff(column.to_numpy(dtype=np.float64)) > 0).all())
