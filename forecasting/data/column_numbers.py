"""Turn the columns of a table into numbers, or say which cell is none."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import numpy as np
import pandas as pd

from .cell_kinds import PERCENT, is_missing, is_number
from .number_spelling import plain_numbers
from .number_text import Marks, check_marks, holds_numbers, numbers_of
from .table_format import Table, TableFormat
from .time_values import is_text


def plainly_spelled(table: Table, notes: list[str]) -> Table:
    """Read numbers that are spelled as Fortran, C or a report spells them (1.0D+00, -1.#IND, 12 %)."""
    columns, units = list(table.columns), list(table.units)
    marks = Marks(table.given.decimal or ".", table.given.thousands)
    for i, (name, column) in enumerate(zip(table.names, columns, strict=True)):
        spelled = plain_numbers(column, marks) if is_text(column) else None
        if spelled is not None:
            columns[i], said = spelled.numbers, spelled.said
            units[i] = units[i] or spelled.unit
            notes.extend(f"column {name!r}: {note}" for note in said)
    return table._replace(columns=columns, units=units)


def column_numbers(table: Table, index: int) -> np.ndarray | None:
    """Return float64 numbers, NaN where missing; None for a column of text."""
    column, name, source = table.columns[index], table.names[index], table.source
    if getattr(column.dtype, "kind", "O") in "fiub":
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    cells = column.astype(object).where(column.notna(), np.nan)
    if is_text(column):
        cells = column.str.strip()
        cells = cells.mask(cells.map(is_missing, na_action="ignore").eq(True) | cells.isin(table.given.missing or []))
        cells = _with_stated_marks(cells, table.given, source)
    try:
        numbers = pd.to_numeric(cells, errors="coerce")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: column {name!r} must hold numbers, got dtype {column.dtype}: {error}") from error
    wrong = cells.notna() & numbers.isna()
    if not wrong.any():
        return numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    row = int(np.argmax(wrong))
    if is_text(column) and numbers.isna().all() and not holds_numbers(cells):
        return None
    if is_text(column) and cells.str.contains(PERCENT).any():
        raise ValueError(
            f"{source}: column {name!r} holds numbers with a percent sign, and data row {row} (counted from 0) holds "
            f"{cells.iloc[row]!r}; write all of them alike, in percent or as shares"
        )
    if is_text(column) and is_number(str(cells.iloc[row])):
        raise ValueError(
            f"{source}: column {name!r} holds text with the form of numbers, such as {cells.iloc[row]!r} in data row "
            f"{row} (counted from 0); state its marks of decimals and thousands as table.decimal and table.thousands, "
            "or remove the column"
        )
    raise ValueError(
        f"{source}: column {name!r} must hold numbers, but data row {row} (counted from 0) holds {cells.iloc[row]!r}; "
        f"remove the column, state table.missing [{str(cells.iloc[row])!r}] if that marks missing values, or pass "
        f"time_col_name={name!r} if it holds the time"
    )


def _with_stated_marks(cells: pd.Series, given: TableFormat, source: str) -> pd.Series:
    if given.decimal is None and given.thousands is None:
        return cells
    check_marks(given, source)
    return numbers_of(cells, Marks(given.decimal or ("," if given.thousands == "." else "."), given.thousands))
