"""The moving-average decomposition on the GPU: allocates, chooses the launch and calls the kernels.

Dimension key: b batch, l steps of time, c channel, n kernel sizes.

    call                          launches
    forward                       _decompose_kernel: trend and seasonal of all sizes in one pass
    forward, mask                 _decompose_kernel, then _carry_kernel for the windows without an observation
    backward                      _adjoint_kernel
    backward, mask                _share_kernel, _adjoint_kernel, then _receive_kernel
    d_weights                     before those, _weights_kernel
    d_weights, mask               then _carry_weights_kernel, for the windows without an observation

Least traffic, in elements of x's dtype: forward reads 1 and writes 2, backward reads 2 and writes 1. A masked backward
writes and reads one float32 series a kernel size, and one more, between its launches. Results have x's layout.
Sums are float32 and rounded once, but for what a value hands to windows that observe nothing else, or gets back from
them: that is added to what the first launch rounded.
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

from .launch import launch_kernel
from .series_decomposition_kernels import (
    _adjoint_kernel,
    _carry_kernel,
    _carry_weights_kernel,
    _decompose_kernel,
    _receive_kernel,
    _share_kernel,
    _weights_kernel,
)
from .series_decomposition_reference import window_reach
from .series_decomposition_tiles import CORE, DIRECT, LONG, Series

GROUP = 8
"""Consecutive steps a thread owns: a row it loads serves up to this many windows. Half of them where a mask leaves no
registers for the trends of three sizes and more."""

LONG_WINDOW = 64
"""Kernel size from which windows are summed across the whole tile: below, shared rows are few enough to load again."""

LONGEST_TILE = {4: 512, 2: 256, 1: 128}
"""Steps of a tile with this many elements a thread; longer windows load k / LONGEST_TILE rows an output."""


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
        """Return the keyword arguments all kernels share; those that sum windows take MODES too."""
        return {
            "maxnreg": 255,  # as 8 warps allow; left alone, ptxas spills in places to stay at 128
            "GROUPS": self.groups,
            "GROUP": self.group,
            "BLOCK_C": self.channels,
            "num_warps": self.num_warps,
        }


@lru_cache(maxsize=256)
def launch_config(sizes: tuple[int, ...], length: int, channels: int, masked: bool) -> Launch:
    """Choose tiles of four elements a thread and row, fewer where counts or several trends want registers too.

    Chosen by the registers that sm_80 to sm_120 need without a spill (bench/compile_report.py); not timed yet.
    """
    each = 1 if len(sizes) > 1 else 2 if masked else 4
    group = GROUP // 2 if masked and len(sizes) > 2 else GROUP
    block = min(64, triton.next_power_of_2(channels))
    groups = min(128 * each // block, max(2, triton.next_power_of_2(_tiles(length, group))))
    longest = max(sizes)
    if longest >= LONG_WINDOW:
        below = 1 << (longest.bit_length() - 1)  # a tile no longer than the window, nor than the series
        longest_tile = LONGEST_TILE[each] * group // GROUP
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


def decompose_triton(
    x: Tensor, mask: Tensor | None, weights: Tensor | None, sizes: Sequence[int], causal: bool, trend_only: bool
) -> tuple[Tensor | None, Tensor]:
    """Return (seasonal, trend) in x's dtype and layout; weights, if any, are (b, l, c, n)."""
    trend = torch.empty_like(x)
    seasonal = None if trend_only else torch.empty_like(x)
    if x.numel() == 0:
        return seasonal, trend
    launch = launch_config(tuple(sizes), *x.shape[1:], mask is not None)
    extent = (*_extent(x, launch), _reaches(sizes, causal))
    launch_kernel(
        _decompose_kernel,
        _programs(x, launch),
        series_of(x),
        series_of(mask),
        series_of(weights),
        series_of(trend),
        series_of(seasonal),
        *extent,
        MODES=launch.modes,
        **launch.options,
    )
    if mask is not None:
        launch_kernel(
            _carry_kernel,
            _programs(x, launch),
            series_of(x),
            series_of(mask),
            series_of(weights),
            series_of(trend),
            *extent,
            CAUSAL=causal,
            SIZES=len(sizes),
            **launch.options,
        )
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
    d_x = torch.empty_like(like)
    d_weights = None
    if x is not None:
        assert weights is not None
        d_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    if like.numel() == 0:
        return d_x, d_weights
    launch = launch_config(tuple(sizes), *like.shape[1:], mask is not None)
    if x is not None and d_weights is not None:
        _differentiate_weights(d_weights, d_seasonal, d_trend, x, mask, sizes, causal, launch)
    extent = (*_extent(like, launch), _reaches(sizes, causal))
    shares, carry = weights, None
    if mask is not None:
        shares, carry = _scratch(like, len(sizes)), _scratch(like, 1)
        launch_kernel(
            _share_kernel,
            _programs(like, launch),
            series_of(mask),
            series_of(weights),
            series_of(d_trend),
            series_of(d_seasonal),
            series_of(shares),
            series_of(carry),
            *extent,
            MODES=launch.modes,
            **launch.options,
        )
    launch_kernel(
        _adjoint_kernel,
        _programs(like, launch),
        series_of(d_trend),
        series_of(d_seasonal),
        series_of(shares),
        series_of(mask),
        series_of(d_x),
        *extent,
        MODES=launch.modes,
        **launch.options,
    )
    if mask is not None:
        launch_kernel(
            _receive_kernel,
            _programs(like, launch),
            series_of(carry),
            series_of(mask),
            series_of(d_x),
            *_extent(like, launch),
            window_reach(min(sizes), causal),
            CAUSAL=causal,
            **launch.options,
        )
    return d_x, d_weights


def _differentiate_weights(
    d_weights: Tensor,
    d_seasonal: Tensor | None,
    d_trend: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    sizes: Sequence[int],
    causal: bool,
    launch: Launch,
) -> None:
    """Write d_weights (b, l, c, n)."""
    extent = (*_extent(x, launch), _reaches(sizes, causal))
    launch_kernel(
        _weights_kernel,
        _programs(x, launch),
        series_of(x),
        series_of(mask),
        series_of(d_trend),
        series_of(d_seasonal),
        series_of(d_weights),
        *extent,
        MODES=launch.modes,
        **launch.options,
    )
    if mask is not None and d_trend is not None:  # d_seasonal does not reach a step that is not observed
        launch_kernel(
            _carry_weights_kernel,
            _programs(x, launch),
            series_of(x),
            series_of(mask),
            series_of(d_trend),
            series_of(d_weights),
            *extent,
            CAUSAL=causal,
            SIZES=len(sizes),
            **launch.options,
        )


def _scratch(like: Tensor, count: int) -> Tensor:
    """Return float32 (b, l, c, count) in which each of the `count` series is contiguous."""
    return torch.empty((count, *like.shape), dtype=torch.float32, device=like.device).permute(1, 2, 3, 0)


def _reaches(sizes: Sequence[int], causal: bool) -> tuple[int, ...]:
    return tuple(steps for k in sizes for steps in window_reach(k, causal))


def _tiles(extent: int, tile: int) -> int:
    return -(-extent // tile)


def _programs(x: Tensor, launch: Launch) -> int:
    b, length, c = x.shape
    return b * _tiles(length, launch.steps) * _tiles(c, launch.channels)


def _extent(x: Tensor, launch: Launch) -> tuple[int, int, int]:
    """Return length, channels and the number of tiles in time."""
    return x.shape[1], x.shape[2], _tiles(x.shape[1], launch.steps)
