"""Numbers that stand for missing values: replaced where they are stated, pointed out where they look like some."""

from collections.abc import Sequence

import numpy as np

from .column_choice import listed

NINES = (99, 99.9, 99.99, 999, 999.9, 999.99, 9999, 9999.9, 99999, 999999, 9999999)
USUAL_MARKS = np.array(
    [
        *(sign * number for number in NINES for sign in (1, -1)),
        *(999.25, -999.25, 9999.25, 6999, 7777, -7777, 7999, 8888, -8888, -888),  # logs of boreholes, weather stations
        *(32767, -32768, 65535, 2147483647, -2147483648),  # the ends of integers
    ]
)
HUGE = 1e15  # beyond what sensors measure: fill values such as 1e20, 1e30, 9.97e36
MOST_MARKS = 3  # at either end of a column
FEWEST_REPEATED, LARGEST_SHARE = 3, 0.05  # of a number that is no usual mark
SPREADS_AWAY, SPREADS_AWAY_UNUSUAL = 0.5, 10.0  # between a mark and the other values, in their spread
COLUMNS_NAMED = 3


def replace_marks(values: np.ndarray, marks: Sequence[float]) -> np.ndarray:
    """Return values with NaN in place of the marks; the array itself where there are none."""
    if not marks:
        return values
    with np.errstate(over="ignore"):  # a mark beyond float32 was infinite there
        found = np.isin(values, np.array(marks, dtype=values.dtype))
    return np.where(found, values.dtype.type(np.nan), values)


def suspected_marks(values: np.ndarray, columns: Sequence[str]) -> list[str]:
    """Name the numbers that look like marks of missing values, one note a number.

    They stand at an end of their column, far from its other values, and are usual marks (-9999, 999.25, 1e20, ...) or
    repeat themselves. Nothing is changed: a sensor may measure them.
    """
    found: dict[str, dict[str, int]] = {}
    for name, column in zip(columns, values.T, strict=True):
        for number, count in _marks_of(column[~np.isnan(column)]):
            found.setdefault(mark_text(number), {})[name] = count
    return [_note(number, counts) for number, counts in found.items()]


def mark_text(number: np.floating | float) -> str:
    """Write a number with the digits that tell it from its neighbours in its own precision."""
    return str(number).removesuffix(".0")


def _note(number: str, counts: dict[str, int]) -> str:
    times = "once" if (total := sum(counts.values())) == 1 else f"{total} times"
    return (
        f"{number} stands {times} in {listed(list(counts), COLUMNS_NAMED)}, far from all other values; it counts as "
        f"measured unless null_value or table.missing [{number!r}] states that it marks missing values"
    )


def _marks_of(observed: np.ndarray) -> list[tuple[np.floating, int]]:
    """Return the suspected marks of a column without NaN, and how often each stands there."""
    marks: list[tuple[np.floating, int]] = []
    for end in (np.min, np.max):
        for _ in range(MOST_MARKS):
            if len(observed) < 3:
                return marks
            number = end(observed)
            is_it = observed == number
            rest = observed[~is_it]
            count = int(is_it.sum())
            if len(rest) < 2 or not _is_far(float(number), count, rest.astype(np.float64)):
                break
            marks.append((number, count))
            observed = rest
    return marks


def _is_far(number: float, count: int, rest: np.ndarray) -> bool:
    gap = float(np.abs(rest - number).min())
    if np.isclose(USUAL_MARKS, number, rtol=1e-6, atol=0).any() or abs(number) >= HUGE:
        low, high = np.percentile(rest, (5, 95))  # the rest may hold another mark
        return gap > SPREADS_AWAY * (high - low)
    spread = float(np.ptp(rest))
    is_rare = FEWEST_REPEATED <= count <= LARGEST_SHARE * (count + len(rest))
    return is_rare and 0 < SPREADS_AWAY_UNUSUAL * spread < gap
