"""Moving averages from their definition: windows, dense matrices, and sums in float64 that lose nothing."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def window(i: int, length: int, k: int, causal: bool) -> list[int]:
    back = k - 1 if causal else (k - 1) // 2
    return [min(max(j, 0), length - 1) for j in range(i - back, i - back + k)]


def dense_matrix(mask: torch.Tensor, k: int, causal: bool) -> torch.Tensor:
    """Return A (l, l) of one channel with observations mask (l,), row by row from the definition."""
    length = len(mask)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    for i in range(length):
        seen = [j for j in window(i, length, k, causal) if mask[j]]
        if not seen:
            candidates = [j for j in range(length) if mask[j] and not (causal and j > i)]
            seen = sorted(candidates, key=lambda j: (abs(i - j), j))[:1]
        for j in seen:
            matrix[i, j] += 1 / len(seen)
    return matrix


def exact_average(x: torch.Tensor, offset: float, k: int, causal: bool) -> torch.Tensor:
    """Average x (1, l, 1), noise around the offset, by differences of a float64 cumulative sum that stays near zero."""
    back = k - 1 if causal else (k - 1) // 2
    padded = F.pad(x.double().mT - offset, (back, k - 1 - back), mode="replicate")
    total = F.pad(padded.cumsum(-1), (1, 0))
    return offset + (total[..., k:] - total[..., :-k]).mT / k
