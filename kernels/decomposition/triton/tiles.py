"""What the decomposition kernels share: how a tile is addressed, and how its windows are summed.

Dimension key: b batch, l steps of time, c channel, n kernel sizes; tiles [G] groups of GROUP consecutive steps, [C]
channels. A program owns G * GROUP steps of C channels, as GROUP tensors [G, C]: tensor r holds step r of each group.

The window of output t is the rows t - before ... t + after. Windows of neighbouring outputs share most rows, so they
are summed as (rows all of them share) + (a suffix of the rows before) + (a prefix of the rows after): no subtraction,
hence NaN and outliers stay within their windows, and the additions of one window form a shallow tree. By MODE:

    DIRECT  k < GROUP           each window by itself: k loads an output
    CORE    GROUP <= k          the outputs of a group share rows: 1 + k / GROUP loads an output
    LONG    G * GROUP <= k      all outputs of the tile share rows, suffixes and prefixes continue across groups by a
                                scan of the groups' totals: 1 + k / (G * GROUP) loads an output

The forward pass reads the nearest row in place of one that does not exist, which repeats the ends, and sums float32
series as differences to a pivot, a value that stands in all windows concerned, which spares the digits of an offset.
The adjoint is the same sum with before and after exchanged, over rows that are zero where they do not exist.
"""

# ruff: noqa: RUF005 - Triton concatenates tuples, it does not unpack into them

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

DIRECT = tl.constexpr(0)
CORE = tl.constexpr(1)
LONG = tl.constexpr(2)


class Series(NamedTuple):
    """A (b, l, c) tensor, or (b, l, c, n) with one series a kernel size: its start and strides."""

    pointer: Tensor
    batch_stride: int
    step_stride: int
    channel_stride: int
    size_stride: int


@triton.jit
def place_of(channel_count, time_tiles, WIDE: tl.constexpr, TILE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return (batch, channels [C], which exist) of this program, and its first step, in the bits that offsets take."""
    index = tl.program_id(0)
    if WIDE:
        index = index.to(tl.int64)
    channel_tiles = (channel_count + BLOCK_C - 1) // BLOCK_C
    channels = index % channel_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    index = index // channel_tiles
    return (index // time_tiles, channels, channels < channel_count), index % time_tiles * TILE


@triton.jit
def tile_pointers(x, place, steps, size):
    """Return pointers [G, C] to rows `steps`, [G] or one of its own for each channel [G, C], of this program."""
    batch, channels, _ = place
    start = x.pointer + (batch.to(tl.int64) * x.batch_stride + tl.cast(size, tl.int64) * x.size_stride)
    rows = (steps if len(steps.shape) == 2 else steps[:, None]).to(channels.dtype)
    return start + ((channels * x.channel_stride)[None, :] + rows * x.step_stride)


@triton.jit
def load_rows(x, place, steps, keep, size):
    """Load [G, C] as float32, zero where not kept."""
    return tl.load(tile_pointers(x, place, steps, size), mask=keep, other=0.0).to(tl.float32)


@triton.jit
def load_seen(mask, place, steps, keep):
    return tl.load(tile_pointers(mask, place, steps, 0), mask=keep, other=0) != 0


@triton.jit
def store_rows(x, place, steps, keep, rows, size):
    tl.store(tile_pointers(x, place, steps, size), rows.to(x.pointer.dtype.element_ty), mask=keep)


@triton.jit
def existing(place, steps, end):
    return ((steps >= 0) & (steps < end))[:, None] & place[2][None, :]


@triton.jit
def load_signal(signal, size, place, steps, length, pivot):
    """Return rows `steps` of a signal, [G, C] float32.

    A signal is a tuple of Series. Of the forward pass, (x, mask): x less the pivot where the mask is True, and 1 in
    place of x where there is none; the nearest row in place of one that does not exist. Of the adjoint,
    (d_trend, d_seasonal, weights): (d_trend - d_seasonal) weights, whatever is None left out, zero in rows that do not
    exist.
    """
    if len(signal) == 2:
        steps = tl.minimum(tl.maximum(steps, 0), length - 1)
        keep = place[2][None, :]
        if signal[1] is not None:
            keep = load_seen(signal[1], place, steps, keep)
        if signal[0] is None:
            value = keep.to(tl.float32)
        else:
            value = load_rows(signal[0], place, steps, keep, 0) - pivot
            if signal[1] is not None:
                value = tl.where(keep, value, 0.0)
    else:
        d_trend, d_seasonal, weights = signal
        keep = existing(place, steps, length)
        value = 1.0
        if weights is not None:
            value = load_rows(weights, place, steps, keep, size)
        if d_trend is not None or d_seasonal is not None:
            value *= upstream_of(d_trend, d_seasonal, None, place, steps, keep)
    return value


@triton.jit
def upstream_of(d_trend, d_seasonal, mask, place, steps, keep):
    """Return h, what reaches the trend: d_trend less, where observed, d_seasonal; neither need be there, [G, C]."""
    upstream = tl.zeros([steps.shape[0], place[1].shape[0]], tl.float32)
    if d_trend is not None:
        upstream = load_rows(d_trend, place, steps, keep, 0)
    if d_seasonal is not None:
        if mask is not None:
            keep = load_seen(mask, place, steps, keep)
        upstream -= load_rows(d_seasonal, place, steps, keep, 0)
    return upstream


@triton.jit
def totals_beyond(totals, REVERSE: tl.constexpr):
    """Sum the totals [G, C] of the earlier groups, or of the later ones, each group's own left out."""
    GROUPS: tl.constexpr = totals.shape[0]
    neighbour = tl.arange(0, GROUPS)[:, None] + (1 if REVERSE else -1)
    exists = (neighbour >= 0) & (neighbour < GROUPS)
    index = tl.where(exists, neighbour, 0).broadcast_to(totals.shape)
    return tl.where(exists, tl.gather(tl.cumsum(totals, 0, reverse=REVERSE), index, 0), 0.0)


@triton.jit
def rows_shared_by_tile(signal, size, place, begin, end, length, pivot, GROUPS: tl.constexpr):
    """Sum rows begin ... end - 1, [1, C]; those that do not exist by their number, as there may be any."""
    total = tl.zeros([GROUPS, place[1].shape[0]], tl.float32)
    inside = tl.minimum(end, length)
    for row in range(tl.maximum(begin, 0), inside, GROUPS):
        steps = row + tl.arange(0, GROUPS)
        total += tl.where((steps < inside)[:, None], load_signal(signal, size, place, steps, length, pivot), 0.0)
    total = tl.sum(total, 0)[None, :]
    if len(signal) == 2:
        early = tl.minimum(end, 0) - tl.minimum(begin, 0)
        late = tl.maximum(end, length) - tl.maximum(begin, length)
        one = tl.arange(0, 1)
        row_0 = load_signal(signal, size, place, one, length, pivot)
        row_l = load_signal(signal, size, place, one + (length - 1), length, pivot)
        total += tl.where(early > 0, early.to(tl.float32) * row_0, 0.0)  # 0 NaN would be NaN
        total += tl.where(late > 0, late.to(tl.float32) * row_l, 0.0)
    return total


@triton.jit
def window_sums(
    signal, size, place, first, length, before, after, pivot,
    MODE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Sum rows t - before ... t + after of a signal for every t of the tile: a tuple over r of [G, C]."""
    BLOCK_C: tl.constexpr = place[1].shape[0]
    TILE: tl.constexpr = GROUPS * GROUP
    starts = first + tl.arange(0, GROUPS) * GROUP
    sums = ()
    if MODE == DIRECT:
        for r in tl.static_range(GROUP):
            total = tl.zeros([GROUPS, BLOCK_C], tl.float32)
            for step in range(r - before, r + after + 1):
                total += load_signal(signal, size, place, starts + step, length, pivot)
            sums = sums + (total,)
    else:
        suffix = tl.zeros([GROUPS, BLOCK_C], tl.float32)
        suffixes = ()
        for r in tl.static_range(GROUP):
            suffix += load_signal(signal, size, place, starts + (GROUP - 1 - r - before), length, pivot)
            suffixes = (suffix,) + suffixes
        shared = tl.zeros([GROUPS, BLOCK_C], tl.float32)
        if MODE == CORE:
            for step in range(GROUP - before, after + 1):
                shared += load_signal(signal, size, place, starts + step, length, pivot)
        else:
            shared = totals_beyond(suffix, True) + rows_shared_by_tile(
                signal, size, place, first + TILE - before, first + after + 1, length, pivot, GROUPS
            )
        prefix = tl.zeros([GROUPS, BLOCK_C], tl.float32)
        parts = ()
        for r in tl.static_range(GROUP):
            parts = parts + (suffixes[r] + prefix,)
            if MODE == LONG or r < GROUP - 1:
                prefix += load_signal(signal, size, place, starts + (r + 1 + after), length, pivot)
        if MODE == LONG:
            shared += totals_beyond(prefix, False)
        for r in tl.static_range(GROUP):
            sums = sums + (parts[r] + shared,)
    return sums


@triton.jit
def pivot_of(
    signal, place, first, length, before, after, MODE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr
):
    """Return a finite value that stands in all windows of a group (CORE) or tile (LONG), [G, C] or [1, C]; else 0."""
    HALF: tl.constexpr = signal[0].pointer.dtype.element_ty.primitive_bitwidth < 32  # sums keep all its digits
    pivot = tl.zeros([1, place[1].shape[0]], tl.float32)
    if MODE != DIRECT and not HALF:
        steps = first + (GROUPS * GROUP - 1 - before + after) // 2 + tl.arange(0, 1)
        if MODE == CORE:
            steps = first + (GROUP - 1 - before + after) // 2 + tl.arange(0, GROUPS) * GROUP
        value = load_signal(signal, 0, place, steps, length, 0.0)
        pivot = tl.where(tl.abs(value) < float("inf"), value, 0.0)
    return pivot


@triton.jit
def window_means(
    x, mask, nearest, place, first, length, reach, SIZE: tl.constexpr, MODES: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Return averages of the observed values, the nearest of them where a window has none, a tuple over r of [G, C]."""
    MODE: tl.constexpr = MODES[SIZE]
    before, after = reach[2 * SIZE], reach[2 * SIZE + 1]
    pivot = pivot_of((x, mask), place, first, length, before, after, MODE, GROUPS, GROUP)
    sums = window_sums((x, mask), SIZE, place, first, length, before, after, pivot, MODE, GROUPS, GROUP)
    share = 1.0 / (before + after + 1)
    means = ()
    if mask is None:
        for r in tl.static_range(GROUP):
            means = means + (pivot + sums[r] * share,)
    else:
        counts = observed_counts(mask, place, first, length, reach, SIZE, MODES, GROUPS, GROUP)
        for r in tl.static_range(GROUP):
            lacks = existing(place, first + tl.arange(0, GROUPS) * GROUP + r, length) & (counts[r] == 0)
            rows = tl.load(tile_pointers(nearest, place, first + tl.arange(0, GROUPS) * GROUP + r, 0), lacks, -1)
            carried = load_rows(x, place, rows, lacks & (rows >= 0), 0)
            means = means + (tl.where(counts[r] == 0, carried, pivot + sums[r] / tl.maximum(counts[r], 1.0)),)
    return means


@triton.jit
def observed_counts(
    mask, place, first, length, reach, SIZE: tl.constexpr, MODES: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Count the observed rows of every window, with repeated ends."""
    before, after = reach[2 * SIZE], reach[2 * SIZE + 1]
    return window_sums((None, mask), SIZE, place, first, length, before, after, 0.0, MODES[SIZE], GROUPS, GROUP)


@triton.jit
def later_of(a, b):
    return tl.maximum(a, b)


@triton.jit
def earlier_of(a, b):
    return tl.minimum(a, b)


@triton.jit
def observed_before(mask, place, row, STEPS: tl.constexpr):
    """Return the last observed row before `row`, [C], -1 where there is none."""
    found = tl.where(place[2], -1, 0).to(row.dtype)
    end = row
    while (end > 0) & (tl.min(found, 0) < 0):
        steps = end - STEPS + tl.arange(0, STEPS)
        seen = load_seen(mask, place, steps, existing(place, steps, end))
        found = tl.maximum(found, tl.max(tl.where(seen, steps[:, None], -1), 0))
        end -= STEPS
    return found


@triton.jit
def observed_from(mask, place, row, length, STEPS: tl.constexpr):
    """Return the first observed row from `row` on, [C], length where there is none."""
    found = tl.where(place[2], length, 0).to(row.dtype)
    start = row
    while (start < length) & (tl.max(found, 0) == length):
        steps = start + tl.arange(0, STEPS)
        seen = load_seen(mask, place, steps, existing(place, steps, length))
        found = tl.minimum(found, tl.min(tl.where(seen, steps[:, None], length), 0))
        start += STEPS
    return found
