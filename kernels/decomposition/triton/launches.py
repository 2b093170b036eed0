"""The moving-average decomposition on the GPU: allocates, chooses the launch and calls the kernels.

Dimension key: b batch, l steps of time, c channel, n kernel sizes.

    call             launches
    forward          _decompose_kernel: trend and seasonal of all sizes in one pass
    d_weights        _weights_kernel, before
    backward         _adjoint_kernel
    backward, mask   _share_kernel, then _adjoint_kernel
    any with a mask  _nearest_kernel first, where a window may have no observation

Least traffic, in elements of x's dtype: forward reads 1 and writes 2, backward reads 2 and writes 1. A mask adds an
int32 series of nearest observations, and to the backward a float32 series a kernel size and one more. Results have x's
layout. Sums are float32 and rounded once.
"""

# triton.next_power_of_2 is annotated for the device, and called on the host:
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...dispatch.launch import launch_kernel
from ..reference import window_reach
from .kernels import (
    _adjoint_kernel,
    _decompose_kernel,
    _nearest_kernel,
    _share_kernel,
    _weights_kernel,
)
from .tiles import CORE, DIRECT, LONG, Series

MOST_STEPS = 16
"""Consecutive steps a thread owns at most: a row it loads serves up to this many windows. Half of them where float32
series, a mask or several sizes take more registers, a quarter with a mask and more than two sizes."""

LONG_WINDOW = 64
"""Kernel size from which windows are summed across the whole tile: below, shared rows are few enough to load again."""

LONGEST_TILE = 512
"""Steps of a tile at most; longer windows load k / LONGEST_TILE rows an output."""

NEAREST_STEPS = 128
"""Steps of a tile that looks for the nearest observations."""


class Launch(NamedTuple):
    """How a problem is cut: how each size is summed, groups of steps, their length, channels and warps of a tile."""

    modes: tuple[int, ...]
    groups: int
    group: int
    channels: int
    num_warps: int

    @property
    def steps(self) -> int:
        return self.groups * self.group

    @property
    def options(self) -> dict[str, Any]:
        """Return the keyword arguments that all kernels which sum windows share."""
        return {
            "MODES": self.modes,
            "maxnreg": 255,  # as 8 warps allow; left alone, ptxas spills in places to stay at 128
            "GROUPS": self.groups,
            "GROUP": self.group,
            "BLOCK_C": self.channels,
            "num_warps": self.num_warps,
        }


@lru_cache(maxsize=256)
def launch_config(sizes: tuple[int, ...], length: int, channels: int, masked: bool, half: bool) -> Launch:
    """Choose tiles of four elements a thread and row, fewer where counts or several trends want registers too.

    Chosen by the registers that sm_80 to sm_120 need without a spill (`python bench compile_report`); not timed yet.
    """
    each = 1 if len(sizes) > 1 else 2 if masked else 4
    most = MOST_STEPS // (1 + (len(sizes) > 1 or masked or not half)) // (1 + (masked and len(sizes) > 2))
    candidates = [2**i for i in range(most.bit_length())]
    group = min(reversed(candidates), key=lambda g: 8 / g + sum(k if k < g else 1 + (k - 1) / g for k in sizes))
    block = min(64, triton.next_power_of_2(channels))
    groups = min(128 * each // block, max(2, triton.next_power_of_2(_tiles(length, group))))
    longest = max(sizes)
    if longest >= LONG_WINDOW:
        below = 1 << (longest.bit_length() - 1)  # a tile no longer than the window, nor than the series
        longest_tile = LONGEST_TILE * each // 4 * group // most
        steps = min(below, longest_tile, max(2 * group, triton.next_power_of_2(length)))
        groups = steps // group
        block = min(block, max(16, 256 * each // groups))
    modes = tuple(
        DIRECT.value if k < group else LONG.value if k >= max(LONG_WINDOW, groups * group) else CORE.value
        for k in sizes
    )
    return Launch(modes, groups, group, block, max(1, min(8, groups * block // (32 * each))))


def series_of(x: Tensor | None) -> Series | None:
    """Describe a (b, l, c) or (b, l, c, n) tensor."""
    return None if x is None else Series(x, *x.stride(), *(0,) * (4 - x.ndim))


class Problem(NamedTuple):
    """What every launch of a call shares: the series' shape, the windows, and how they are cut."""

    shape: torch.Size
    sizes: tuple[int, ...]
    causal: bool
    launch: Launch

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None, sizes: Sequence[int], causal: bool) -> Problem:
        """Describe windows over x (b, l, c)."""
        launch = launch_config(tuple(sizes), *x.shape[1:], mask is not None, x.element_size() < 4)
        return cls(x.shape, tuple(sizes), causal, launch)

    def run(self, kernel: Any, *series: Tensor | None) -> None:
        """Launch a kernel that sums windows, on tensors (b, l, c) or (b, l, c, n)."""
        b, length, c = self.shape
        time_tiles = _tiles(length, self.launch.steps)
        reaches = tuple(steps for k in self.sizes for steps in window_reach(k, self.causal))
        launch_kernel(
            kernel,
            b * time_tiles * _tiles(c, self.launch.channels),
            *map(series_of, series),
            length,
            c,
            time_tiles,
            reaches,
            WIDE=any(map(_is_wide, series)),
            **self.launch.options,
        )

    def nearest(self, mask: Tensor | None) -> Tensor | None:
        """Return the row of each row's nearest observation, (b, l, c) int32, -1 where there is none."""
        if mask is None:
            return None
        b, length, c = self.shape
        rows = torch.empty(self.shape, dtype=torch.int32, device=mask.device)
        time_tiles = _tiles(length, NEAREST_STEPS)
        channels = min(32, triton.next_power_of_2(c))
        programs = b * time_tiles * _tiles(c, channels)
        extent = (length, c, time_tiles)
        constants = {"WIDE": _is_wide(mask), "CAUSAL": self.causal, "STEPS": NEAREST_STEPS, "BLOCK_C": channels}
        launch_kernel(_nearest_kernel, programs, series_of(mask), series_of(rows), *extent, **constants)
        return rows


def decompose_triton(
    x: Tensor, mask: Tensor | None, weights: Tensor | None, sizes: Sequence[int], causal: bool, trend_only: bool
) -> tuple[Tensor | None, Tensor]:
    """Return (seasonal, trend) in x's dtype and layout; weights, if any, are (b, l, c, n)."""
    trend = torch.empty_like(x)
    seasonal = None if trend_only else torch.empty_like(x)
    if x.numel() > 0:
        problem = Problem.of(x, mask, sizes, causal)
        problem.run(_decompose_kernel, x, mask, problem.nearest(mask), weights, trend, seasonal)
    return seasonal, trend


def decompose_backward_triton(
    d_seasonal: Tensor | None,
    d_trend: Tensor | None,
    x: Tensor | None,
    mask: Tensor | None,
    weights: Tensor | None,
    sizes: Sequence[int],
    causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return d_x and, where x is given, d_weights (b, l, c, n) in the weights' dtype."""
    like = d_trend if d_trend is not None else d_seasonal
    assert like is not None
    d_x, d_weights = torch.empty_like(like), None
    if x is not None:
        assert weights is not None
        d_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    if like.numel() == 0:
        return d_x, d_weights
    problem = Problem.of(like, mask, sizes, causal)
    nearest = problem.nearest(mask)
    if x is not None:
        problem.run(_weights_kernel, x, mask, nearest, d_trend, d_seasonal, d_weights)
    shares = weights
    if mask is not None:
        series = (len(sizes) + 1, *like.shape)  # each contiguous
        shares = torch.empty(series, dtype=torch.float32, device=like.device).permute(1, 2, 3, 0)
        problem.run(_share_kernel, mask, weights, d_trend, d_seasonal, shares)
    problem.run(_adjoint_kernel, d_trend, d_seasonal, shares, mask, nearest, d_x)
    return d_x, d_weights


def _is_wide(x: Tensor | None) -> bool:
    """Tell whether offsets within one batch element take more than 32 bits."""
    return x is not None and sum((n - 1) * s for n, s in zip(x.shape[1:3], x.stride()[1:3], strict=True)) >= 2**31


def _tiles(extent: int, tile: int) -> int:
    return -(-extent // tile)
