"""Turn a delimited text file into a table of typed columns: what its dialect is, then pandas parses it."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from .cell_kinds import MINUS, MISSING, is_missing, is_number, is_plain_cell, looks_like_date
from .number_text import Marks, doubtful_points, find_marks, holds_numbers, numbers_of
from .table_format import TableFormat
from .time_values import is_text

DELIMITERS = (",", ";", "\t", "|", " ")  # " " stands for any white space
COMMENT_MARKS = ("#", "%")
SAMPLE_LINES = 200
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class TextTable(NamedTuple):
    """Hold a table as the file gives it.

    Attributes:
        frame: one column a position, labelled 0, 1, ...; numbers where all cells are, else text.
        names: of the columns, "" where the header is empty; may repeat.
        units: of the columns from a units row, None where unknown.
        marks: of decimals and thousands in numbers.
        notes: what was noticed and done.
    """

    frame: pd.DataFrame
    names: list[str]
    units: list[str | None]
    marks: Marks
    notes: list[str]


def read_delimited_text(path: Path, given: TableFormat) -> TextTable:
    """Read a table from a text file.

    Encoding, comment lines, delimiter, decimal mark, header and a row of units are found from the content, and each can
    be stated instead.

    Raises:
        ValueError: no header, rows of unequal length, or more than one reading that makes sense.
    """
    notes: list[str] = []
    lines, comments = _without_comments(_decode(path, given.encoding, notes), notes)
    if not lines:
        raise ValueError(f"{path} is empty: expected a header line with the column names, then one row per time step")
    lines = [MINUS.sub("-", line) for line in lines]
    delimiter = given.delimiter or _find_delimiter(lines, path)
    lines = _with_joined_dates(lines, delimiter)
    names, data = _header(lines, comments, delimiter, given, notes, path)
    names, width = _fitting_names(names, data, delimiter, path)
    units: list[str | None] = [None] * len(names)
    if len(data) > 1 and _is_units_row(*_cells(data[:2], delimiter)):
        units = [cell or None for cell in next(_cells(data, delimiter))][: len(names)]
        data = data[1:]
        notes.append("took the row below the header for units")
    sample = list(_cells(data[: 10 * SAMPLE_LINES], delimiter))
    marks = find_marks(sample, delimiter, given, path)
    frame = _parse(data, width, delimiter, marks, given)
    if len(data) > len(sample) and any(_leaves_marks_open(column, delimiter) for _, column in frame.items()):
        sample = list(_cells(data, delimiter))  # marks that come later in the file
        marks = find_marks(sample, delimiter, given, path)
        frame = _parse(data, width, delimiter, marks, given)
    if delimiter == ";" and given.decimal is None and marks.thousands is None:
        notes.extend(doubtful_points(sample))
    if marks.thousands is not None:
        notes.append(
            f"took {marks.thousands!r} in numbers for a mark of thousands, {marks.decimal!r} for that of decimals"
        )
    frame = frame.iloc[:, : len(names)]
    return TextTable(frame, names, units, marks, notes)


def _leaves_marks_open(column: pd.Series, delimiter: str) -> bool:
    """Tell whether the marks of a column may be others than those at its start, of which the parser knew."""
    if is_text(column):
        return holds_numbers(column)
    if delimiter == "," or column.dtype.kind != "f":
        return False
    numbers = column.dropna().abs().to_numpy()
    broken = numbers[numbers != np.floor(numbers)]
    return bool((broken < 1000).all() and np.isclose(1000 * broken, np.rint(1000 * broken), rtol=0, atol=1e-6).all())


def _decode(path: Path, encoding: str | None, notes: list[str]) -> str:
    content = path.read_bytes()
    if encoding is None:
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if encoding is None:
        zeros = [content[start::2].count(0) for start in (0, 1)]
        if max(zeros) > len(content) / 8:  # text without zeros in UTF-8 has many in UTF-16
            encoding = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise ValueError(f"{path} is no {encoding} text: {error}; state another table.encoding") from error
    except LookupError as error:
        raise ValueError(f"table.encoding must name a text encoding, got {encoding!r}") from error
    notes.append("read the text as Windows-1252, because it is no UTF-8; state table.encoding if names look wrong")
    return content.decode("cp1252", errors="replace")


def _without_comments(text: str, notes: list[str]) -> tuple[list[str], list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    comments = [line for line in lines if line.lstrip().startswith(COMMENT_MARKS)]
    if comments:
        notes.append(f"left out {len(comments)} comment lines")
    kept = [line for line in lines if not line.lstrip().startswith(COMMENT_MARKS)]
    return kept, [line.lstrip().lstrip("".join(COMMENT_MARKS)).strip() for line in comments]


def _cells(lines: list[str], delimiter: str) -> Iterator[list[str]]:
    if delimiter == " ":
        return (next(csv.reader([" ".join(line.split())], delimiter=" ")) for line in lines)
    return ([cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True))


def _find_delimiter(lines: list[str], path: Path) -> str:
    """Return the delimiter under which rows have equal lengths and most cells are numbers, times or missing."""
    scores: dict[str, tuple[float, int]] = {}
    for delimiter in DELIMITERS:
        header, *rows = _cells(_with_joined_dates(lines[:SAMPLE_LINES], delimiter), delimiter)
        width = len(rows[0]) if rows else len(header)
        fits = len(header) == width or (len(header) == width - 1 and width > 2)
        if width < 2 or not fits or any(len(row) != width for row in rows):
            continue
        cells = [cell for row in rows for cell in row]
        scores[delimiter] = (sum(map(is_plain_cell, cells)) / max(len(cells), 1), width)
    if not scores:  # one column, or rows of unequal length, which are reported where they are found
        return max(DELIMITERS[:4], key=lines[0].count)
    best = max(fraction for fraction, _ in scores.values())
    likely = {delimiter: width for delimiter, (fraction, width) in scores.items() if fraction == best}
    if len(likely) > 1:
        likely.pop(" ", None)  # white space holds tabs too, and stands inside dates that others delimit
    if len(set(likely.values())) > 1:
        raise ValueError(
            f"{path} can be cut into columns in several ways: {likely} (delimiter: columns); state table.delimiter"
        )
    return next(iter(likely))


def _with_joined_dates(lines: list[str], delimiter: str) -> list[str]:
    """Join date and clock where white space separates columns and the header has one name for both."""
    if delimiter != " " or len(lines) < 2:
        return lines
    header, first = lines[0].split(), lines[1].split()
    if len(first) != len(header) + 1 or not looks_like_date(" ".join(first[:2])) or ":" not in first[1]:
        return lines
    return [lines[0], *("T".join(line.split(maxsplit=1)) for line in lines[1:])]


def _header(
    lines: list[str], comments: list[str], delimiter: str, given: TableFormat, notes: list[str], path: Path
) -> tuple[list[str], list[str]]:
    if given.column_names is not None:
        return list(given.column_names), lines
    first, data = next(_cells(lines, delimiter)), lines[1:]
    data_like = [cell for cell in first if (is_number(cell) and not cell.isdecimal()) or looks_like_date(cell)]
    if data_like and comments and len(named := next(_cells(comments[-1:], delimiter))) == len(first):
        notes.append("took the last comment line for the header")
        return named, lines
    if data_like:
        raise ValueError(
            f"{path} starts with data ({data_like[0]!r}) where the header is expected; add a first line with column "
            "names, or state table.column_names"
        )
    if first and all(cell.isdecimal() for cell in first):  # detector ids are common names
        for name, column in zip(first, zip(*_cells(data, delimiter), strict=False), strict=False):
            numbers = [float(cell) for cell in column if is_number(cell) and "," not in cell]
            if numbers and min(numbers) <= float(name) <= max(numbers):
                raise ValueError(
                    f"{path}: the first line may be data or names, because {name!r} lies among the values below it; "
                    "add a first line with column names, or state table.column_names"
                )
    return first, data


def _fitting_names(names: list[str], data: list[str], delimiter: str, path: Path) -> tuple[list[str], int]:
    """Return the names of the columns, and the number of cells of a row, which may end with a delimiter."""
    widths: dict[int, int] = {}
    ends_empty = True
    for number, row in enumerate(_cells(data, delimiter)):
        widths.setdefault(len(row), number)
        ends_empty = ends_empty and not row[-1]
    if set(widths) == {len(names) + 1} and len(names) > 1:
        # each row ends with a delimiter and the header does not, or the header names no index column, as R writes it
        return (names if ends_empty else ["", *names]), len(names) + 1
    for width, number in widths.items():
        if width != len(names):
            raise ValueError(f"{path}: data row {number} has {width} cells, the header has {len(names)}")
    return names, len(names)


def _is_units_row(row: list[str], below: list[str]) -> bool:
    texts = [cell for cell in row if cell]
    return (
        bool(texts)
        and not any(is_number(cell) or looks_like_date(cell) or is_missing(cell) for cell in texts)
        and any(is_number(under) for cell, under in zip(row, below, strict=False) if cell)
        and all(is_plain_cell(under) for cell, under in zip(row, below, strict=False) if cell)
    )


def _parse(lines: list[str], width: int, delimiter: str, marks: Marks, given: TableFormat) -> pd.DataFrame:
    forms = {form for mark in MISSING for form in (mark, mark.upper(), mark.capitalize())}
    has_groups = marks.thousands is not None
    frame = pd.read_csv(
        io.StringIO("\n".join(lines)),
        sep=r"\s+" if delimiter == " " else delimiter,
        header=None,
        names=list(range(width)),
        decimal=marks.decimal,
        dtype=str if has_groups else None,  # pandas takes marks of thousands out of dates too
        na_values=[*forms, "NaN", *(given.missing or [])],
        keep_default_na=False,
        skipinitialspace=True,
        low_memory=False,
    )
    return frame.apply(lambda column: numbers_of(column, marks)) if has_groups else frame
