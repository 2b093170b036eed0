"""Rows that belong together: our yardstick of a case, a case over its lengths, where two lines cross."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TypeVar

from harness.results_file import Row, milliseconds

OURS = ("favorcast triton", "favorcast reference", "favorcast triton (interpreted)")
"""The yardstick of a case: the first of these that has a number."""

SOFTMAX = ("sdpa", "softmax", "nn.MultiheadAttention")
"""How the providers' names begin that compute softmax attention, or a layer or model with it inside."""

Item = TypeVar("Item")


def yardstick(rows: Iterable[Row]) -> Row | None:
    """Return our row of a case: the kernels' if they have a number, else the reference's."""
    found = {row["provider"]: row for row in rows if milliseconds(row) is not None}
    return next((found[name] for name in OURS if name in found), None)


def best_softmax(rows: Iterable[Row]) -> Row | None:
    """Return the fastest softmax attention of a case."""
    found = [row for row in rows if row["provider"].startswith(SOFTMAX) and milliseconds(row) is not None]
    return min(found, key=lambda row: milliseconds(row) or math.inf, default=None)


def family(row: Row) -> tuple[str, str, str, str]:
    """Return what a row has in common with the same case at other lengths."""
    return row["op"], re.sub(r"-l\d+", "", row["shape"]), row["dtype"], row["pass"]


def length_of(row: Row) -> int:
    """Return the length in a row's shape."""
    found = re.search(r"(?:^|-)l(\d+)", row["shape"])
    return int(found.group(1)) if found else 0


def crossover(rows: list[Row]) -> float | None:
    """Return the length from which we are faster than softmax attention, of rows of one family.

    Interpolated on logarithmic axes; 0 if faster at all lengths, infinity if at none, None if they share fewer than
    two lengths.
    """
    ratios = []
    for length in sorted({length_of(row) for row in rows}):
        case = [row for row in rows if length_of(row) == length]
        ours, peer = yardstick(case), best_softmax(case)
        if ours is not None and peer is not None:
            ratios.append((length, math.log((milliseconds(peer) or 1) / (milliseconds(ours) or 1))))
    if len(ratios) < 2:
        return None
    if ratios[-1][1] <= 0:
        return math.inf
    slower = [index for index, (_, ratio) in enumerate(ratios) if ratio <= 0]
    if not slower:
        return 0.0
    (length, ratio), (next_length, next_ratio) = ratios[slower[-1]], ratios[slower[-1] + 1]
    return length * (next_length / length) ** (-ratio / (next_ratio - ratio))


def unique(items: Iterable[Item]) -> list[Item]:
    """Return the items without repetitions, in their order."""
    return list(dict.fromkeys(items))
