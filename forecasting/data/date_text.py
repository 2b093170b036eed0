"""Parse dates written as text, when their order is stated or follows from them; nothing is guessed."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from typing import NamedTuple

import numpy as np
import pandas as pd

from .cell_kinds import MONTH
from .table_format import DateOrder

ISO = (
    r"(?:\d{4}-\d{2}-\d{2}(?:[T ]\d{2}(?::\d{2}(?::\d{2}(?:\.\d+)?)?)?)?|\d{8}T\d{4}(?:\d{2}(?:\.\d+)?)?)"
    r"(?P<zone> ?(?:Z|[+-]\d{2}(?::?\d{2})?))?"
)
PARTS = (
    r"(?P<first>\d{1,4})(?P<separator>[-/.])(?P<second>\d{1,2})[-/.](?P<third>\d{1,4})"
    r"(?:[T ,;]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<whole_second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?(?P<zone> ?(?:Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?))?"
)
WITH_MONTH_NAME = ("%d-%b-%Y", "%d %b %Y", "%d-%b-%y", "%d %B %Y", "%d.%b.%Y", "%d-%B-%Y")
CLOCKS = ("", " %H:%M:%S", " %H:%M", " %H:%M:%S.%f")
PLACES: dict[DateOrder, tuple[str, str, str]] = {
    "ymd": ("first", "second", "third"),
    "dmy": ("third", "second", "first"),
    "mdy": ("third", "first", "second"),
}


class Dates(NamedTuple):
    """Hold parsed dates.

    Attributes:
        stamps: (rows,) datetime64[ns], in UTC where the text names a zone or offset, else as written.
        offset: of the first one, such as "+01:00"; None where there is none.
        is_mixed: whether offsets differ, as those of summer and winter do.
        order: the order that was taken, where others would have been possible.
    """

    stamps: np.ndarray
    offset: str | None
    is_mixed: bool = False
    order: DateOrder | None = None


def parse_dates(cells: pd.Series, source: str, order: DateOrder | None = None) -> Dates:
    """Parse a column of dates in one order of year, month and day.

    A year of four digits tells whether it comes first; dots mean day first. Between day and month first, a number
    above 12 decides, else the only order in which time never runs back.

    Raises:
        ValueError: a cell that is no date, or dates that can be read in two orders.
    """
    cells = cells.str.strip()
    iso = cells.str.fullmatch(ISO).fillna(False)
    if iso.all() and order in (None, "ymd"):
        zones = cells.str.extract(ISO)["zone"].str.strip()
        return Dates(_stamps(cells, "ISO8601", source), *_common_offset(zones, source))
    if cells.str.fullmatch(MONTH).fillna(False).all():
        return Dates(_stamps(cells.str.replace("/", "-", regex=False), "%Y-%m", source), None)
    parts = cells.str.extract(f"^{PARTS}$")
    wrong = parts["first"].isna()
    if wrong.any():
        return _parse_month_names(cells, source, row=int(np.argmax(wrong)))
    readings = _readings(parts, order, source)
    if not readings:
        raise ValueError(
            f"{source}: {cells.iloc[0]!r} and the dates below it fit no order of year, month and day"
            + (f" as stated ({order})" if order else "")
            + "; write them as 2016-07-01 00:00:00"
        )
    if len(readings) > 1:
        forward = {
            name: stamps for name, stamps in readings.items() if not (np.diff(stamps.astype(np.int64)) < 0).any()
        }
        readings = forward if len(forward) == 1 else readings
    if len(readings) > 1:
        meanings = ", ".join(f"{name} ({stamps[-1].astype('datetime64[D]')})" for name, stamps in readings.items())
        raise ValueError(
            f"{source}: dates such as {cells.iloc[-1]!r} can be read as {meanings}; state table.date_order"
        )
    found, stamps = next(iter(readings.items()))
    offset, is_mixed = _common_offset(parts["zone"].str.strip(), source)
    if offset is not None:
        stamps = stamps - _offsets(parts["zone"].str.strip())
    return Dates(stamps, offset, is_mixed, None if found == "ymd" else found)


def _readings(parts: pd.DataFrame, order: DateOrder | None, source: str) -> dict[DateOrder, np.ndarray]:
    has_long_year = {place: bool((parts[place].str.len() == 4).all()) for place in ("first", "third")}
    if order is not None:
        possible: list[DateOrder] = [order]
    elif has_long_year["first"]:
        possible = ["ymd"]
    elif (parts["separator"] == ".").all():
        possible = ["dmy"]
    else:
        possible = ["dmy", "mdy"] if has_long_year["third"] else ["ymd", "dmy", "mdy"]
    clock = _clock(parts, source)
    readings: dict[DateOrder, np.ndarray] = {}
    for name in possible:
        year, month, day = (parts[place].astype(int) for place in PLACES[name])
        is_short = parts[PLACES[name][0]].str.len() <= 2
        year = year.where(~is_short, year + np.where(year < 69, 2000, 1900))  # as strptime reads two digits
        try:
            days = pd.to_datetime({"year": year, "month": month, "day": day})
        except ValueError:
            continue  # no such day: another order
        readings[name] = days.to_numpy().astype("datetime64[ns]") + clock
    return readings


def _clock(parts: pd.DataFrame, source: str) -> np.ndarray:
    hour, minute, second = (parts[name].fillna("0").astype(int) for name in ("hour", "minute", "whole_second"))
    half = parts["half"].str.lower()
    if ((hour > 23) | (minute > 59) | (second > 60) | (half.notna() & ~hour.between(1, 12))).any():
        raise ValueError(f"{source}: clock times must lie between 00:00 and 23:59 (with AM or PM: between 1 and 12)")
    hour = hour.where(half.isna(), hour % 12 + 12 * (half == "p"))
    fraction = parts["fraction"].fillna("").str.pad(9, side="right", fillchar="0").astype("int64")
    whole = (3600 * hour + 60 * minute + second).astype("int64") * 1_000_000_000
    return (whole + fraction).to_numpy().astype("timedelta64[ns]")


def _parse_month_names(cells: pd.Series, source: str, row: int) -> Dates:
    for date in WITH_MONTH_NAME:
        for clock in CLOCKS:
            stamps = pd.to_datetime(cells, format=date + clock, errors="coerce")
            if stamps.notna().all():
                return Dates(stamps.to_numpy().astype("datetime64[ns]"), None)
    raise ValueError(
        f"{source}: data row {row} holds {cells.iloc[row]!r}; expected a number or a time such as 2016-07-01 00:00:00"
    )


def _stamps(cells: pd.Series, form: str, source: str) -> np.ndarray:
    parsed = pd.to_datetime(cells, format=form, utc=True, errors="coerce")
    if parsed.isna().any():
        row = int(np.argmax(parsed.isna()))
        raise ValueError(
            f"{source}: data row {row} holds {cells.iloc[row]!r}, which is no time of the calendar; correct it "
            "(24:00 is 00:00 of the next day), and where a model counts years without leap days or of 360 days, write "
            "its times as numbers, such as days since the start"
        )
    return parsed.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")


def _common_offset(zones: pd.Series, source: str) -> tuple[str | None, bool]:
    if zones.isna().all():
        return None, False
    if zones.isna().any():
        raise ValueError(f"{source}: some times have an offset from UTC and some have none; write them alike")
    found = zones.replace({"Z": "UTC", "GMT": "UTC", "+00:00": "UTC", "+0000": "UTC", "+00": "UTC"})
    offset = found.iloc[0]
    if offset != "UTC":
        offset = f"{offset[:3]}:{offset.replace(':', '')[3:] or '00'}"
    return offset, found.nunique() > 1


def _offsets(zones: pd.Series) -> np.ndarray:
    parts = zones.str.extract(r"(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?").fillna("0")
    minutes = 60 * parts["hours"].astype(int) + parts["minutes"].astype(int)
    return (minutes * np.where(parts["sign"] == "-", -1, 1)).to_numpy().astype("timedelta64[m]")
