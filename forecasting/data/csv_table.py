"""Read a numeric CSV table with the standard library: one header line, one row per time step, one column per sensor."""

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

DELIMITERS = (",", ";", "\t")
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
BLOCK_ROWS = 8192  # strings of one block live at a time: a large file costs little more memory than its numbers


class CsvTable(NamedTuple):
    """Hold the columns of a CSV file: numbers as float64, missing entries as NaN, the time column apart."""

    columns: list[str]
    values: np.ndarray
    timestamps: np.ndarray | None


def read_csv_table(path: Path, find_time_column: Callable[[list[str]], str | None]) -> CsvTable:
    """Read a table of numbers from a CSV file.

    The delimiter is the one of `,`, `;` and tab that the header holds most often. Empty cells and NA, N/A, NaN, null
    and none in any case are missing values.

    Args:
        path: the file, in UTF-8 (with or without a byte-order mark).
        find_time_column: given the header, the name of the time column, or None when there is none.

    Raises:
        ValueError: no header, rows of unequal length, a cell that is not a number, a time that is not ISO 8601.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header_line = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(DELIMITERS, key=header_line.count))
            header = [name.strip() for name in next(rows, [])]
            _check_header(header, path)
            time_column = find_time_column(header)
            blocks, times = _read_blocks(rows, header, time_column, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 text, but {error}; save it again as UTF-8") from error
    columns = [name for name in header if name != time_column]
    values = np.concatenate(blocks) if blocks else np.empty((0, len(columns)))
    return CsvTable(columns, values, None if time_column is None else parse_times(times, f"{path}, {time_column!r}"))


def parse_times(cells: list[str], source: str) -> np.ndarray:
    """Turn a column of times into float64 numbers or, for ISO 8601 stamps, datetime64[ns] (offsets become UTC)."""
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        pass  # not a column of numbers: stamps
    stamps = []
    for row, cell in enumerate(cells):
        try:
            stamp = datetime.fromisoformat(cell.strip())
        except ValueError:
            raise ValueError(
                f"{source}: data row {row} holds {cell!r}; expected a number or an ISO 8601 time such as "
                "2016-07-01 00:00:00"
            ) from None
        stamps.append(stamp if stamp.tzinfo is None else stamp.astimezone(UTC).replace(tzinfo=None))
    return np.array(stamps, dtype="datetime64[ns]")


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise ValueError(f"{path} is empty: expected a header line with the column names, then one row per time step")
    for name in header:
        # Whole numbers are allowed: detector ids are common names.
        if _is_number(name) and not name.isdecimal():
            raise ValueError(
                f"{path} starts with data ({name!r}) where the header is expected; add a first line with column names"
            )


def _read_blocks(rows, header: list[str], time_column: str | None, path: Path) -> tuple[list[np.ndarray], list[str]]:
    time_index = -1 if time_column is None else header.index(time_column)
    blocks: list[np.ndarray] = []
    times: list[str] = []
    first_row = 0
    while block := list(islice(rows, BLOCK_ROWS)):
        block = [row for row in block if row]  # blank lines, usually the last one
        for offset, row in enumerate(block):
            if len(row) != len(header):
                raise ValueError(
                    f"{path}: data row {first_row + offset} has {len(row)} cells, the header has {len(header)}"
                )
        numbers = []
        for index, cells in enumerate(zip(*block, strict=True)):
            if index == time_index:
                times.extend(cells)
            else:
                numbers.append(_parse_numbers(cells, header[index], first_row, path))
        blocks.append(np.stack(numbers, axis=1) if numbers else np.empty((len(block), 0)))
        first_row += len(block)
    return blocks, times


def _parse_numbers(cells: tuple[str, ...], column: str, first_row: int, path: Path) -> np.ndarray:
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        pass  # a missing entry, or something that is no number: look at each cell
    numbers = np.empty(len(cells))
    for offset, cell in enumerate(cells):
        if cell.strip().casefold() in MISSING:
            numbers[offset] = np.nan
        elif _is_number(cell):
            numbers[offset] = float(cell)
        else:
            raise ValueError(
                f"{path}: column {column!r} must hold numbers, but data row {first_row + offset} (counted from 0) "
                f"holds {cell!r}; remove the column, or pass time_col_name={column!r} if it holds the time"
            )
    return numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
