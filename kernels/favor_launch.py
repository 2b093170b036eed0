"""Launch parameters of the FAVOR kernels: tile sizes, warps and pipeline stages, from one table.

Dimension key: d head dim, e value dim, m features.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple


class LaunchConfig(NamedTuple):
    """How one kernel is launched: its tile of tokens, its tile of features, warps a program and pipeline stages."""

    tokens: int
    features: int
    num_warps: int
    num_stages: int


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n and at least 16, the least a tensor core takes."""
    return max(16, 1 << (n - 1).bit_length())


@cache
def launch_config(kernel: str, dim: int, wide: bool, capability: int) -> LaunchConfig:
    return LaunchConfig(64, 32, 4, 2)
