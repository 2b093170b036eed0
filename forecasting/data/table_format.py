"""What a user states about a table where its content leaves a choice."""

from dataclasses import dataclass
from typing import Literal

DateOrder = Literal["ymd", "dmy", "mdy"]
EpochUnit = Literal["s", "ms", "us", "ns"]


@dataclass(frozen=True)
class TableFormat:
    """State what a table holds; None (or an empty list) lets its content decide, which refuses where that is ambiguous.

    Args:
        delimiter: of the cells: ",", ";", "|", a tab, or " " for any white space.
        decimal: decimal mark of numbers, "." or ",".
        encoding: of the text, such as "latin-1".
        column_names: names of the columns of a text file without a header line.
        missing: more marks of missing values, beside empty cells, NA, N/A, NaN, null and none.
        date_order: order of year, month and day in dates.
        epoch_unit: unit of a time column that counts since 1970-01-01 UTC.
        time_zone: zone of local times, such as "Europe/Berlin", or the zone to show times in that have one.
        id_column: column that names the sensor in a long table (one row for each time and sensor).
    """

    delimiter: str | None = None
    decimal: Literal[".", ","] | None = None
    encoding: str | None = None
    column_names: list[str] | None = None
    missing: list[str] | None = None
    date_order: DateOrder | None = None
    epoch_unit: EpochUnit | None = None
    time_zone: str | None = None
    id_column: str | None = None
