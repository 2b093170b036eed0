"""Tables as users have them: hourly temp and pres, one oddity each."""

import numpy as np
import pandas as pd

ROWS = 400
STAMPS = pd.date_range("2024-03-01", periods=ROWS, freq="h")
HOURS = np.arange(ROWS)
VALUES = np.stack(
    [
        20 + 5 * np.sin(2 * np.pi * HOURS / 24) + np.random.default_rng(0).normal(0, 0.3, ROWS),
        1013 + 0.2 * np.random.default_rng(1).normal(size=ROWS).cumsum(),
    ],
    axis=1,
).round(3)
ISO = "%Y-%m-%d %H:%M:%S"


def rows(times, values=VALUES, *, delimiter=",", decimal="."):
    """Join times and values to lines."""
    return [
        delimiter.join([str(time), *(f"{value:.3f}".replace(".", decimal) for value in row)])
        for time, row in zip(times, values, strict=True)
    ]


def table(form=ISO, header="time,temp,pres", *, stamps=STAMPS, **dialect):
    """Write the table with times in a format of strftime."""
    return "\n".join([header, *rows(stamps.strftime(form), **dialect)]) + "\n"


def numbered(numbers, header, *, delimiter=","):
    """Write the table with numbers for times."""
    return "\n".join([header, *rows(numbers, delimiter=delimiter)]) + "\n"


def insert_after_header(line, text=None):
    """Put a line below the header."""
    head, _, body = (text or table()).partition("\n")
    return f"{head}\n{line}\n{body}"


def seconds(per_second):
    return [int(stamp.timestamp() * per_second) for stamp in STAMPS]


LONG = "unique_id,ds,y\n" + "".join(
    f"s{k},{stamp:{ISO}},{temp + k:.3f}\n" for k in range(3) for stamp, temp in zip(STAMPS, VALUES[:, 0], strict=True)
)
YMDH = "year,month,day,hour,temp,pres\n" + "\n".join(
    f"{stamp.year},{stamp.month},{stamp.day},{stamp.hour},{a:.3f},{b:.3f}"
    for stamp, (a, b) in zip(STAMPS, VALUES, strict=True)
)
R_STYLE = "temp,pres\n" + "\n".join(f'"{i}",{a:.3f},{b:.3f}' for i, (a, b) in enumerate(VALUES, start=1))
DATE_AND_HOUR = "date,hour,temp,pres\n" + "\n".join(rows(f"{stamp:%Y-%m-%d},{stamp.hour}" for stamp in STAMPS))
DATE_AND_CLOCK = "Date,Time,temp,pres\n" + "\n".join(rows(STAMPS.strftime("%Y-%m-%d,%H:%M:%S")))

# name: (text, encoding)
DATED = {
    "ISO": (table(), "utf-8"),
    "ISO without marks": (table("%Y%m%dT%H%M"), "utf-8"),
    "ISO with T": (table("%Y-%m-%dT%H:%M"), "utf-8"),
    "semicolons": (table(header="time;temp;pres", delimiter=";"), "utf-8"),
    "semicolons and decimal comma": (table(header="time;temp;pres", delimiter=";", decimal=","), "utf-8"),
    "tabs": (table(header="time\ttemp\tpres", delimiter="\t"), "utf-8"),
    "tabs and decimal comma": (table(header="time\ttemp\tpres", delimiter="\t", decimal=","), "utf-8"),
    "pipes": (table(header="time|temp|pres", delimiter="|"), "utf-8"),
    "commas and spaces": (table(header="time, temp, pres", delimiter=", "), "utf-8"),
    "spaces": (table("%Y-%m-%dT%H:%M:%S", "time temp pres", delimiter="  "), "utf-8"),
    "spaces, and one between date and clock": (table(header="time temp pres", delimiter=" "), "utf-8"),
    "German dates": (table("%d.%m.%Y %H:%M", "Datum;temp;pres", delimiter=";"), "utf-8"),
    "German dates called time": (table("%d.%m.%Y %H:%M", "time;temp;pres", delimiter=";"), "utf-8"),
    "American dates": (table("%m/%d/%Y %I:%M %p", "date,temp,pres"), "utf-8"),
    "British dates": (table("%d/%m/%Y %H:%M", "date,temp,pres"), "utf-8"),
    "slashes": (table("%Y/%m/%d %H:%M", "date,temp,pres"), "utf-8"),
    "names of months": (table("%d-%b-%Y %H:%M:%S", "date,temp,pres"), "utf-8"),
    "digits only": (table("%Y%m%d%H%M", "date,temp,pres"), "utf-8"),
    "byte-order mark": ("\ufeff" + table(), "utf-8"),
    "UTF-16": (table(), "utf-16"),
    "UTF-16 without mark": (table(), "utf-16-le"),
    "comment lines": ("# station 42\n# lat 51 lon 7\n" + table(), "utf-8"),
    "header in a comment": ("# station 42\n# " + table(), "utf-8"),
    "index column": ("\n".join([",time,temp,pres", *(f"{i},{row}" for i, row in enumerate(rows(STAMPS)))]), "utf-8"),
    "units below the header": (insert_after_header("UTC,degC,hPa"), "utf-8"),
    "year, month, day and hour": (YMDH, "utf-8"),
    "date and clock": (DATE_AND_CLOCK, "utf-8"),
    "date and hour": (DATE_AND_HOUR, "utf-8"),
    "called ds": (table(header="ds,temp,pres"), "utf-8"),
    "called Date (UTC)": (table(header="Date (UTC),temp,pres"), "utf-8"),
    "no name for the time": (table(header=",temp,pres"), "utf-8"),
    "another name for the time": (table(header="when,temp,pres"), "utf-8"),
    "trailing comma": ("\n".join(line + "," for line in table().splitlines()), "utf-8"),
    "trailing comma in the rows": ("time,temp,pres\n" + ",\n".join(rows(STAMPS)) + ",\n", "utf-8"),
    "epoch seconds": (numbered(seconds(1), "timestamp,temp,pres"), "utf-8"),
    "epoch milliseconds": (numbered(seconds(1000), "timestamp,temp,pres"), "utf-8"),
    "epoch nanoseconds": (numbered(seconds(10**9), "timestamp,temp,pres"), "utf-8"),
    "Windows line ends": (table().replace("\n", "\r\n"), "utf-8"),
    "quotes": (table(header='"time","temp","pres"').replace("2024", '"2024').replace(":00,", ':00",'), "utf-8"),
}
