"""Checks that all operators make of what they are given."""

from __future__ import annotations

import operator

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_count(name: str, count: int) -> None:
    """Check that something can count: an int, or an integer of another library, such as NumPy's, of at least 1."""
    try:
        is_whole = operator.index(count) >= 1
    except TypeError:
        is_whole = False
    if not is_whole:
        raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
