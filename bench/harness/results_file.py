"""Result files: one row for each (op, provider, shape, dtype, passes, device, versions, commit), the newest one."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]

MACHINE = ["device", "threads", "torch", "triton", "ptxas", "commit"]
KEY = ["op", "provider", "shape", "dtype", "pass", *MACHINE]
VALUES = [
    "status",  # ok, wrong, failed, absent, skipped
    "message",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "graph_p20_ms",
    "graph_p50_ms",
    "graph_p80_ms",
    "peak_mib",
    "gb_s",
    "tflop_s",
    "roofline_percent",
    "bound",
    "error",
]
FIELDS = [*KEY[:5], *VALUES, *KEY[5:], "driver", "python", "date"]

NUMBERS = [name for name in VALUES if name not in ("status", "message", "bound")]
FIRST_FORMAT = {"op", "shape", "provider", "p20_ms", "p50_ms", "p80_ms", "ratio_to_peer", "max_error", "threads", "cpu"}
"""Columns of the files of version 0.1."""


class ResultFileError(ValueError):
    """A file that cannot be read as results: it is left as it is."""


def read(path: Path) -> list[Row]:
    """Return the rows of a result file, also of one in version 0.1's format; none if there is no file.

    Raises:
        ResultFileError: it is no result file, or holds something else where a number should be.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            if not (columns >= FIRST_FORMAT or columns >= {*KEY, "status"}):
                raise ResultFileError(f"{path} is no result file: expected the columns {FIELDS}, got {sorted(columns)}")
            convert = _from_first_format if columns >= FIRST_FORMAT else _complete
            return [_checked(convert(row), path, reader.line_num) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultFileError(f"{path} is no result file: {error}") from error


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file; a row replaces the one of the same key."""
    merged = {_key(row): row for row in read(path)}
    for row in rows:
        complete = {field: row.get(field, "") for field in FIELDS}
        merged.pop(_key(complete), None)  # the newest rows come last
        merged[_key(complete)] = complete
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # a run that is cut off leaves the old file whole
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
    partial.replace(path)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Keep, of rows that differ in versions or commit only, the one that was written last."""
    kept: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row[field] for field in ("op", "provider", "shape", "dtype", "pass", "device"))
        kept.pop(key, None)
        kept[key] = row
    return list(kept.values())


def milliseconds(row: Row) -> float | None:
    """Return the median latency of a row, without the host's part where that is known; None if there is none."""
    text = row["graph_p50_ms"] or row["p50_ms"]
    return float(text) if text and row["status"] == "ok" else None


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[field] for field in KEY)


def _complete(row: dict[str, str]) -> Row:
    return {field: row.get(field) or "" for field in FIELDS}


def _checked(row: Row, path: Path, line: int) -> Row:
    for field in NUMBERS:
        try:
            float(row[field] or 0)
        except ValueError:
            raise ResultFileError(f"{path}, line {line}: {field} should be a number, got {row[field]!r}") from None
    return row


def _from_first_format(row: dict[str, str]) -> Row:
    kept = {field: row.get(field, "") for field in FIELDS}
    return kept | {
        "dtype": "float32",
        "pass": "forward+backward",
        "status": "ok",
        "device": row["cpu"],
        "provider": "favorcast reference" if row["provider"] == "favorcast" else row["provider"],
    }
