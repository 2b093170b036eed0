"""Tell what a cell of text holds: a number, a date, a missing value, or other text."""

import re

MISSING = ("", "na", "n/a", "nan", "null", "none")
GROUP_MARKS = (".", ",", " ", "'", "’", "\u00a0", "\u202f")  # between thousands; the last two are spaces of print
GROUPED = (
    r"\d{1,3}((\.\d{3})+(,\d*)?|(,\d{3})+(\.\d*)?|"
    r"(?P<mark>[ '’\u00a0\u202f])\d{3}((?P=mark)\d{3})*([.,]\d*)?)"
)
MINUS = re.compile("\u2212(?=[\\d.,])")  # as typesetting programs write it before a number
PERCENT = re.compile(r"(?<=[\d.,])\s*%$")
FORTRAN_EXPONENT = re.compile(r"^([+-]?\d*[.,]\d*)(?:[dD]([+-]?\d+)|([+-]\d{3}))$")  # 1.0D+00, 1.0-101
NOT_A_NUMBER = re.compile(r"[+-]?(nan(\([a-z0-9_]*\))?|1[.,]#(ind|qnan|snan|nan)\d*)", re.IGNORECASE)  # of C
INFINITE = re.compile(r"^([+-]?)1[.,]#inf\d*$", re.IGNORECASE)
NUMBER = re.compile(
    rf"[+\-\u2212]?((\d+([.,]\d*)?|[.,]\d+|{GROUPED})([eE][+-]?\d+)?(\s*%)?|"
    r"(\d+[.,]\d*|[.,]\d+)([dD][+-]?\d+|[+-]\d{3})|inf|infinity|1[.,]#inf\d*)",
    re.IGNORECASE,
)
MONTH = r"(1[5-9]|2[01])\d\d[-/](0[1-9]|1[0-2])"
DIGITS = r"\d{8}T\d{4}(\d{2}([.,]\d+)?)?"
DATE = r"\d{1,4}(?P<separator>[-/.])\d{1,2}(?P=separator)\d{1,4}|\d{1,2}[-/. ]*[A-Za-z]{3,9}[-/., ]*\d{2,4}"
CLOCK = r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?"
ZONE = r"( ?(Z|UTC|GMT|[+-]\d{2}(:?\d{2})?))?"
STAMP = re.compile(rf"({DATE})([T ,;]+{CLOCK}|[T ]\d{{2}})?{ZONE}|{DIGITS}{ZONE}|{MONTH}|{CLOCK}")


def is_missing(cell: str) -> bool:
    """Tell whether a cell marks a missing value."""
    return cell.casefold() in MISSING or NOT_A_NUMBER.fullmatch(cell) is not None


def is_number(cell: str) -> bool:
    """Tell whether a cell is a number, with a decimal point or comma and perhaps marks between thousands."""
    return NUMBER.fullmatch(cell) is not None


def plain_number(cell: str) -> str:
    """Return the cell of a number without a percent sign, its exponent as 1e-101, its minus as a hyphen."""
    cell = PERCENT.sub("", MINUS.sub("-", cell))
    return FORTRAN_EXPONENT.sub(lambda found: f"{found[1]}e{found[2] or found[3]}", cell)


def looks_like_date(cell: str) -> bool:
    """Tell whether a cell has the form of a date, a clock time or both."""
    return STAMP.fullmatch(cell) is not None


def is_plain_cell(cell: str) -> bool:
    """Tell whether a cell is a number, a time or a missing value."""
    return is_number(cell) or looks_like_date(cell) or is_missing(cell)
