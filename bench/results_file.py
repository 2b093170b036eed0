"""Result files: one row for each (op, provider, shape, dtype, passes, device, versions, commit), the newest one."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]

KEY = ["op", "provider", "shape", "dtype", "pass", "device", "threads", "torch", "triton", "ptxas", "commit"]
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

FIRST_FORMAT = {"op", "shape", "provider", "p20_ms", "p50_ms", "p80_ms", "ratio_to_peer", "max_error", "threads", "cpu"}
"""Columns of the files of version 0.1."""


def read(path: Path) -> list[Row]:
    """Return the rows of a result file, also of one in version 0.1's format; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        first_format = set(reader.fieldnames or ()) >= FIRST_FORMAT
        return [_from_first_format(row) if first_format else {f: row.get(f) or "" for f in FIELDS} for row in reader]


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


def _from_first_format(row: dict[str, str]) -> Row:
    kept = {field: row.get(field, "") for field in FIELDS}
    return kept | {
        "dtype": "float32",
        "pass": "forward+backward",
        "status": "ok",
        "device": row["cpu"],
        "provider": "favorcast reference" if row["provider"] == "favorcast" else row["provider"],
    }
