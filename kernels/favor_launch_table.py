"""Tile sizes of the FAVOR kernels."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class LaunchConfig(NamedTuple):
    """How one kernel is launched: its tile of tokens, its tile of features, warps a program and pipeline stages."""

    tokens: int
    features: int
    num_warps: int
    num_stages: int


@lru_cache(maxsize=256)
def launch_config(kernel: str, dim: int, wide: bool, architecture: int) -> LaunchConfig:
    return LaunchConfig(64, 32, 4, 2)
