"""Read numbers as Fortran, C and reports spell them: 1.0D+00, 1.0-101, nan(ind), -1.#IND, 12 %, a typographic minus."""
# pandas annotates most results as a union of a column and a scalar
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

from typing import NamedTuple

import pandas as pd

from .cell_kinds import FORTRAN_EXPONENT, INFINITE, PERCENT, is_missing, plain_number
from .number_text import Marks, numbers_of


class Spelled(NamedTuple):
    """Hold the numbers of a column of text, the unit that stands behind them, and how they were spelled."""

    numbers: pd.Series
    unit: str | None
    said: list[str]


def plain_numbers(cells: pd.Series, marks: Marks) -> Spelled | None:
    """Return the numbers of a column of text; None where it holds other text, or numbers as they are usually spelled.

    Args:
        cells: of text, missing ones NaN.
        marks: of decimals and thousands.
    """
    text = cells.str.strip()
    text = text.mask(text.map(is_missing, na_action="ignore").eq(True))
    observed = text.dropna()
    plain = observed.map(plain_number).str.replace(INFINITE, r"\1inf", regex=True)
    if observed.empty or (plain.equals(observed) and len(observed) == cells.notna().sum()):
        return None
    numbers = numbers_of(plain, marks)
    if marks == Marks(".", None) and numbers.dtype.kind not in "fi":  # infinite ones are refused where all data are
        numbers = pd.to_numeric(plain, errors="coerce")
    percent = observed.str.contains(PERCENT)
    if numbers.dtype.kind not in "fi" or numbers.isna().any() or percent.nunique() > 1:
        return None
    fortran = observed[observed.map(lambda cell: FORTRAN_EXPONENT.search(cell) is not None)]
    said = [f"read {cell!r} as Fortran writes exponents" for cell in fortran[:1]]
    if percent.all():
        said.append("read numbers with percent signs in percent")
    return Spelled(numbers.astype("float64").reindex(cells.index), "%" if percent.all() else None, said)
