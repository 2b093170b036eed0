"""Turn one column of dates, clock times, durations or numbers into timestamps."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from typing import NamedTuple

import numpy as np
import pandas as pd

from .date_text import parse_dates
from .table_format import TableFormat
from .time_names import CALENDAR_NAMES, YEARS, plain_name

EPOCH_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
EPOCH_SECONDS = (3e8, 1e10)  # 1979 to 2286: numbers of this size are seconds since 1970
DIGIT_DATES = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
DIGIT_YEARS = (1678, 2261)  # whole years that nanoseconds reach
EXCEL_ORIGIN, EXCEL_DAYS = np.datetime64("1899-12-30", "ns"), (20_000, 80_000)  # 1954 to 2119
DAY = 86_400_000_000_000  # in nanoseconds
CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[AaPp]\.?[Mm]\.?)?"
CLOCK_PARTS = r"(?P<hour>\d+):(?P<minute>\d+)(?::(?P<second>[\d.,]+))?(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?"


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


def times_of(
    column: pd.Series, given: TableFormat, source: str, *, unit: str | None = None, name: str | None = None
) -> Times:
    """Turn one column of dates, durations or numbers into times.

    Args:
        column: one entry a row.
        given: what the user states about the table.
        source: of the column, for messages.
        unit: of numbers.
        name: of the column: that of a date tells years and days of a spreadsheet from other numbers.

    Raises:
        ValueError: entries that are no times, or can be read in several ways.
    """
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if column.isna().any():
        row = int(np.argmax(column.isna()))
        raise ValueError(
            f"{source}: row {row} has no time; give every row one, remove the column, or rename it if it holds no time"
        )
    kind = getattr(column.dtype, "kind", "O")
    if kind == "m":
        return Times(column.to_numpy().astype("timedelta64[ns]").astype(np.int64) * 1e-9, unit="s")
    if is_clock(column):
        return Times(clock_nanoseconds(column) * 1e-9, unit="s")
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
        return localized(column.to_numpy().astype("datetime64[ns]"), given, source)
    if is_text(column):
        return _from_text(column, given, source)
    return _from_numbers(column, given, unit, source, name)


def is_numeric(column: pd.Series) -> bool:
    """Tell whether a column holds numbers, some of which may be missing."""
    return getattr(column.dtype, "kind", "O") in "fiu"


def is_text(column: pd.Series) -> bool:
    """Tell whether a column holds text, and nothing but text and missing entries."""
    if getattr(column.dtype, "kind", "O") not in "OTU":
        return False
    return pd.api.types.infer_dtype(column, skipna=True) == "string"


def is_clock(column: pd.Series) -> bool:
    """Tell whether a column holds clock times alone, as text or as those of Python."""
    if is_text(column):
        return bool(column.str.strip().str.fullmatch(CLOCK).fillna(False).all())
    return getattr(column.dtype, "kind", "O") == "O" and pd.api.types.infer_dtype(column, skipna=False) == "time"


def clock_nanoseconds(column: pd.Series) -> np.ndarray:
    """Return clock times as (rows,) int64 nanoseconds since midnight."""
    parts = column.astype(str).str.strip().str.extract(f"^{CLOCK_PARTS}$")
    hour, half = parts["hour"].astype("int64"), parts["half"].str.lower()
    hour = hour.where(half.isna(), hour % 12 + 12 * (half == "p"))
    seconds = parts["second"].fillna("0").str.replace(",", ".", regex=False).astype("float64")
    whole = (3600 * hour + 60 * parts["minute"].astype("int64")).to_numpy() * 1_000_000_000
    return whole + np.rint(seconds.to_numpy() * 1e9).astype(np.int64)


def localized(stamps: np.ndarray, given: TableFormat, source: str) -> Times:
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


def _from_text(column: pd.Series, given: TableFormat, source: str) -> Times:
    dates = parse_dates(column, source, given.date_order)
    notes = [] if dates.order is None or given.date_order else [f"dates read as {dates.order}"]
    if dates.offset is None:
        return localized(dates.stamps, given, source)._replace(notes=tuple(notes))
    zone = given.time_zone or ("UTC" if dates.is_mixed else dates.offset)
    if dates.is_mixed and given.time_zone is None:
        notes.append("offsets from UTC differ, so times are shown in UTC; state table.time_zone for local ones")
    return Times(dates.stamps, zone, notes=tuple(notes))


def _from_numbers(column: pd.Series, given: TableFormat, unit: str | None, source: str, name: str | None) -> Times:
    if not is_numeric(column):
        raise ValueError(f"{source}: times must be dates or numbers, got {column.dtype}")
    numbers = column.to_numpy()
    if not np.isfinite(numbers).all():
        raise ValueError(f"{source}: row {int(np.argmin(np.isfinite(numbers)))} has an infinite time; correct it")
    dated = _calendar_numbers(numbers, name, given) if given.epoch_unit is None else None
    if dated is not None:
        stamps, note = dated
        return localized(stamps, given, source)._replace(notes=(note,))
    lowest, highest = float(np.min(numbers)), float(np.max(numbers))
    epoch = given.epoch_unit
    for each, per_second in EPOCH_PER_SECOND.items():
        if epoch is None and EPOCH_SECONDS[0] * per_second <= lowest <= highest < EPOCH_SECONDS[1] * per_second:
            epoch = each
    if epoch is None:
        return Times(numbers.astype(np.float64), unit=unit, notes=_doubts(numbers, unit))
    if epoch == "excel":
        return localized(_excel_stamps(numbers), given, source)
    nanoseconds = 1_000_000_000 // EPOCH_PER_SECOND[epoch]
    if numbers.dtype.kind in "iu":
        count = numbers.astype(np.int64) * nanoseconds
    else:  # float64 resolves a quarter of a microsecond today
        microseconds = np.round(numbers.astype(np.float64) * (nanoseconds / 1000))
        count = microseconds.astype(np.int64) * 1000
    return Times(
        count.view("datetime64[ns]"), given.time_zone or "UTC", notes=(f"counts {epoch} since 1970-01-01 UTC",)
    )


def _calendar_numbers(numbers: np.ndarray, name: str | None, given: TableFormat) -> tuple[np.ndarray, str] | None:
    """Return the dates that numbers spell (20240131, 202401, 2024, 45322.5), and a note; None where they spell none."""
    plain = plain_name(name or "")
    if (numbers == np.floor(numbers)).all():
        texts = pd.Series(numbers.astype(np.int64)).astype(str)
        digits = int(texts.str.len().min()) if texts.str.len().nunique() == 1 else 0
        form = DIGIT_DATES.get(digits)
        if digits == 6 and len(numbers) > 1 and numbers.max() // 100 > numbers.min() // 100:
            form = "%Y%m"  # within one year they may count anything
        is_year = DIGIT_YEARS[0] <= numbers.min() and numbers.max() <= DIGIT_YEARS[1]
        if digits == 4 and is_year and plain in YEARS | CALENDAR_NAMES:
            form = "%Y"
        stamps = pd.to_datetime(texts, format=form, errors="coerce") if form else None
        if stamps is not None and stamps.notna().all() and (form == "%Y" or stamps.dt.year.between(1800, 2200).all()):
            return stamps.to_numpy().astype("datetime64[ns]"), f"dates read as {form}"
    if plain in CALENDAR_NAMES and EXCEL_DAYS[0] <= numbers.min() <= numbers.max() < EXCEL_DAYS[1]:
        return _excel_stamps(numbers), "counts days since 1899-12-30, as spreadsheets do"
    return None


def _excel_stamps(numbers: np.ndarray) -> np.ndarray:
    milliseconds = np.rint(numbers.astype(np.float64) * 86_400_000).astype(np.int64)  # what spreadsheets resolve
    return EXCEL_ORIGIN + milliseconds * np.timedelta64(1_000_000, "ns")


def _doubts(numbers: np.ndarray, unit: str | None) -> tuple[str, ...]:
    """Point out numbers without a unit that may be days of a spreadsheet: far from 0 in steps of at most a month."""
    steps = np.diff(numbers)
    is_far = EXCEL_DAYS[0] <= np.min(numbers) and np.max(numbers) < EXCEL_DAYS[1] and len(steps) > 0
    if unit is not None or not is_far or not np.abs(steps).max() <= 31:
        return ()
    example = f"{numbers[0]:.10g}"
    return (
        f"{example} may be a day of a spreadsheet, counted since 1899-12-30; state table.epoch_unit 'excel' if so, "
        "else it counts as a number without a calendar",
    )
