"""Tell which marks divide the numbers of a text, decimals from thousands; what leaves a choice is refused."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import NamedTuple

import pandas as pd

from .cell_kinds import GROUP_MARKS, is_number, plain_number
from .table_format import TableFormat


class Marks(NamedTuple):
    """Hold the marks in numbers: "1.234,5" has the decimal mark "," and "." for thousands; None where there is none."""

    decimal: str
    thousands: str | None


def find_marks(rows: list[list[str]], delimiter: str, given: TableFormat, source: object) -> Marks:
    """Return the marks that all numbers of a table agree on.

    A number with two kinds of marks (1.234,5) or a repeated one (1.234.567) tells which is which. Without such a number
    the comma is the decimal mark where it cannot group thousands, and the point otherwise.

    Raises:
        ValueError: numbers that can be read in two ways, or that disagree.
    """
    check_marks(given, source)
    cells = [plain_number(cell) for row in rows for cell in row if is_number(cell) and not cell.isdecimal()]
    thousands = given.thousands or _common_thousands(cells, source)
    if thousands is None:
        return Marks(given.decimal or _find_decimal(rows, cells, delimiter, source), None)
    decimal = given.decimal or {".": ",", ",": "."}.get(thousands)
    if decimal is None:  # white space and apostrophes go with either decimal mark
        decimal = _find_decimal([], [_without(cell, thousands) for cell in cells], delimiter, source)
    marks = Marks(decimal, thousands)
    form = _form(marks)
    wrong = next((cell for cell in cells if not form.fullmatch(cell)), None)
    if wrong is not None:
        raise ValueError(
            f"{source}: {wrong!r} is no number with {thousands!r} between thousands and {decimal!r} before decimals, "
            "as other numbers of this table are; write them alike, or state table.thousands and table.decimal"
        )
    return marks


def check_marks(given: TableFormat, source: object) -> None:
    """Raise ValueError for stated marks that are none, or the same."""
    if given.thousands is not None and (given.thousands not in GROUP_MARKS or given.thousands == given.decimal):
        raise ValueError(
            f"{source}: table.thousands must be one of {list(GROUP_MARKS)} and not table.decimal ({given.decimal!r}), "
            f"got {given.thousands!r}"
        )


def numbers_of(cells: pd.Series, marks: Marks) -> pd.Series:
    """Return a column of text as numbers where all of its cells are some, else as it was."""
    stripped = cells.str.strip()
    observed = stripped[stripped.notna()]
    if observed.empty or not observed.str.fullmatch(_form(marks)).all():
        return cells
    plain = stripped.str.replace(marks.thousands, "", regex=False) if marks.thousands else stripped
    plain = plain.str.replace(marks.decimal, ".", regex=False)
    return pd.to_numeric(plain) if observed.str.fullmatch(r"[+-]?\d+").all() else plain.astype("float64")


def holds_numbers(cells: pd.Series) -> bool:
    """Tell whether any cell of a column of text has the form of a number, whatever its marks."""
    return any(is_number(cell.strip()) for cell in pd.unique(cells.dropna()))


def _form(marks: Marks) -> re.Pattern[str]:
    decimal = re.escape(marks.decimal)
    grouped = rf"\d{{1,3}}(?:{re.escape(marks.thousands)}\d{{3}})+|" if marks.thousands else ""
    return re.compile(rf"[+-]?(?:(?:{grouped}\d+)(?:{decimal}\d*)?|{decimal}\d+)(?:[eE][+-]?\d+)?")


def _without(cell: str, thousands: str) -> str:
    return cell.replace(thousands, "")


def _common_thousands(cells: Iterable[str], source: object) -> str | None:
    """Return the mark of thousands that numbers tell by themselves."""
    found: dict[str, str] = {}
    for cell in cells:
        marks = [mark for mark in cell if mark in GROUP_MARKS]
        if marks and (marks[0] not in ".," or len(marks) > 1):
            found.setdefault(marks[0], cell)
    if len(found) > 1:
        raise ValueError(f"{source}: the numbers {list(found.values())} use different marks; write them alike")
    return next(iter(found), None)


def _find_decimal(rows: list[list[str]], numbers: list[str], delimiter: str, source: object) -> str:
    if delimiter != ",":
        _refuse_points_of_thousands(rows, source)
    commas = [cell for cell in numbers if "," in cell]
    points = [cell for cell in numbers if "." in cell]
    if commas and points:
        raise ValueError(
            f"{source} holds numbers with decimal points ({points[0]!r}) and with commas ({commas[0]!r}); write them "
            "alike, or state which of them marks thousands as table.thousands"
        )
    if commas and all(_may_be_thousands(cell, ",") for cell in commas):
        raise ValueError(
            f"{source}: the comma in {commas[0]!r} may mark decimals or thousands; state table.decimal ',' for "
            "decimals, or table.thousands ',' for thousands"
        )
    return "," if commas else "."


def doubtful_points(rows: list[list[str]]) -> list[str]:
    """Point out columns in which every number has a point that may mark thousands, where no other number tells.

    Semicolons separate cells where commas mark decimals; there 15.038 may be fifteen thousand.
    """
    columns = [[cell for cell in column if is_number(cell)] for column in zip_longest(*rows, fillvalue="")]
    pointed = [[cell for cell in column if "." in cell] for column in columns]
    told = any(not _may_be_thousands(cell, ".") for column in pointed for cell in column)
    open_to_both = [column[0] for column in pointed if column]
    if told or not open_to_both:
        return []
    return [
        f"took the point in {open_to_both[0]!r} for a decimal mark, though semicolons separate cells and no number "
        "tells; state table.thousands '.' if it marks thousands, else table.decimal '.'"
    ]


def _refuse_points_of_thousands(rows: list[list[str]], source: object) -> None:
    """Raise ValueError where a column holds numbers such as 973 beside 1.256, and no other kind of point."""
    for column in zip_longest(*rows, fillvalue=""):
        pointed = [cell for cell in column if is_number(cell) and "." in cell]
        whole = any(cell.lstrip("+-").isdecimal() for cell in column)
        if pointed and whole and all(_may_be_thousands(cell, ".") for cell in pointed):
            raise ValueError(
                f"{source}: the point in {pointed[0]!r} may mark decimals or thousands; state table.decimal '.' for "
                "decimals, or table.thousands '.' for thousands"
            )


def _may_be_thousands(cell: str, mark: str) -> bool:
    head, *groups = plain_number(cell).lstrip("+-").split(mark)
    return 1 <= len(head) <= 3 and head[0] != "0" and all(len(group) == 3 and group.isdecimal() for group in groups)
