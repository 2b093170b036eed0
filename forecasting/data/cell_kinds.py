"""Tell what a cell of text holds: a number, a date, a missing value, or other text."""

import re

MISSING = ("", "na", "n/a", "nan", "null", "none")
GROUP_MARKS = (".", ",", " ", "'", "’", "\u00a0", "\u202f")  # between thousands; the last two are spaces of print
GROUPED = (
    r"\d{1,3}((\.\d{3})+(,\d*)?|(,\d{3})+(\.\d*)?|"
    r"(?P<mark>[ '’\u00a0\u202f])\d{3}((?P=mark)\d{3})*([.,]\d*)?)"
)
NUMBER = re.compile(rf"[+-]?(\d+([.,]\d*)?|[.,]\d+|{GROUPED})([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE)
DATE = r"\d{1,4}(?P<separator>[-/.])\d{1,2}(?P=separator)\d{1,4}|\d{1,2}[-/. ]*[A-Za-z]{3,9}[-/., ]*\d{2,4}"
CLOCK = r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?"
ZONE = r"( ?(Z|UTC|GMT|[+-]\d{2}(:?\d{2})?))?"
STAMP = re.compile(rf"({DATE})([T ,;]+{CLOCK})?{ZONE}|{CLOCK}")


def is_missing(cell: str) -> bool:
    """Tell whether a cell marks a missing value."""
    return cell.casefold() in MISSING


def is_number(cell: str) -> bool:
    """Tell whether a cell is a number, with a decimal point or comma and perhaps marks between thousands."""
    return NUMBER.fullmatch(cell) is not None


def looks_like_date(cell: str) -> bool:
    """Tell whether a cell has the form of a date, a clock time or both."""
    return STAMP.fullmatch(cell) is not None


def is_plain_cell(cell: str) -> bool:
    """Tell whether a cell is a number, a time or a missing value."""
    return is_number(cell) or looks_like_date(cell) or is_missing(cell)
