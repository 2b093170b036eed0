"""A table as it was read, and what a user states about it where its content leaves a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import pandas as pd

DateOrder = Literal["ymd", "dmy", "mdy"]
EpochUnit = Literal["s", "ms", "us", "ns", "excel"]
ID_NAMES = ("unique_id", "id", "sensor_id", "sensor", "station_id", "station", "item_id", "series_id", "series")


@dataclass(frozen=True)
class TableFormat:
    """State what a table holds; None (or an empty list) lets its content decide, which refuses where that is ambiguous.

    Args:
        delimiter: of the cells: ",", ";", "|", a tab, or " " for any white space.
        decimal: decimal mark of numbers, "." or ",".
        thousands: mark between thousands in numbers: ".", ",", a space or an apostrophe.
        encoding: of the text, such as "latin-1".
        column_names: names of the columns of a text file without a header line.
        missing: more marks of missing values, beside empty cells, NA, N/A, NaN, null and none; numbers such as -9999
            are missing in arrays and frames too.
        date_order: order of year, month and day in dates.
        epoch_unit: unit of a time column that counts since 1970-01-01 UTC; "excel" for days of a spreadsheet, which
            count since 1899-12-30.
        time_zone: zone of local times, such as "Europe/Berlin", or the zone to show times in that have one.
        id_column: column that names the sensor in a long table (one row for each time and sensor).
    """

    delimiter: str | None = None
    decimal: Literal[".", ","] | None = None
    thousands: str | None = None
    encoding: str | None = None
    column_names: list[str] | None = None
    missing: list[str | float] | None = None
    date_order: DateOrder | None = None
    epoch_unit: EpochUnit | None = None
    time_zone: str | None = None
    id_column: str | None = None

    def over(self, other: TableFormat | None) -> TableFormat:
        """Return what is stated here, and elsewhere what another states."""
        stated = {option.name: getattr(self, option.name) for option in fields(self)}
        return replace(other or TableFormat(), **{name: value for name, value in stated.items() if value is not None})

    @property
    def missing_numbers(self) -> list[float]:
        """The marks of missing values that are numbers."""
        numbers = []
        for mark in self.missing or []:
            try:
                numbers.append(float(mark))
            except ValueError:
                continue  # a word
        return [number for number in numbers if number == number]


class Table(NamedTuple):
    """The columns of a table.

    Attributes:
        columns: of equal length.
        names: one a column, "" where there is none.
        units: one a column, None where unknown.
        given: what the user states about the table.
        source: of the table, for messages.
    """

    columns: Sequence[pd.Series]
    names: list[str]
    units: list[str | None]
    given: TableFormat
    source: str
