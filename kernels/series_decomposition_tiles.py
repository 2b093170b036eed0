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

Rows that do not exist count as zero. The forward pass adds the repeated ends by their number; it sums differences to
a pivot, a value that stands in all windows concerned, which spares the digits of an offset. The adjoint is the same
sum with before and after exchanged.
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
def tile_pointers(x, place, steps, size):
    """Return pointers [G, C] to rows `steps` of the channels of this program."""
    batch, channels, _ = place
    start = x.pointer + batch.to(tl.int64) * x.batch_stride + tl.cast(size, tl.int64) * x.size_stride
    return start + (steps.to(tl.int64) * x.step_stride)[:, None] + (channels.to(tl.int64) * x.channel_stride)[None, :]


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
def load_signal(signal, size, place, steps, end, pivot):
    """Return a signal's rows `steps` less the pivot, [G, C] float32; rows outside 0 ... end - 1 are zero.

    A signal is a tuple (values, minus, mask, weights) of Series: (values - minus) weights where the mask is True.
    Whatever is None is left out; without values, minus and weights it is 1.
    """
    values, minus, mask, weights = signal
    keep = existing(place, steps, end)
    seen = keep
    if mask is not None:
        seen = load_seen(mask, place, steps, keep)
    value = seen.to(tl.float32)
    if values is not None:
        value = load_rows(values, place, steps, keep, 0)
    if minus is not None:
        lost = load_rows(minus, place, steps, keep, 0)
        value = value - lost if values is not None else -lost
    if weights is not None:
        value *= load_rows(weights, place, steps, keep, size)
    return tl.where(seen, value - pivot, 0.0)


@triton.jit
def totals_beyond(totals, REVERSE: tl.constexpr):
    """Sum the totals [G, C] of the earlier groups, or of the later ones, each group's own left out."""
    GROUPS: tl.constexpr = totals.shape[0]
    neighbour = tl.arange(0, GROUPS)[:, None] + (1 if REVERSE else -1)
    exists = (neighbour >= 0) & (neighbour < GROUPS)
    index = tl.where(exists, neighbour, 0).broadcast_to(totals.shape)
    return tl.where(exists, tl.gather(tl.cumsum(totals, 0, reverse=REVERSE), index, 0), 0.0)


@triton.jit
def window_sums(
    signal, size, place, first, length, before, after, pivot,
    MODE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Sum rows t - before ... t + after less the pivot for every t of the tile: a tuple over r of [G, C]."""
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
            end = tl.minimum(first + after + 1, length)
            for row in range(tl.maximum(first + TILE - before, 0), end, GROUPS):
                shared += load_signal(signal, size, place, row + tl.arange(0, GROUPS), end, pivot)
            shared = tl.sum(shared, 0)[None, :] + totals_beyond(suffix, True)
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
    if MODE == DIRECT:
        return tl.zeros([1, place[1].shape[0]], tl.float32)
    if MODE == CORE:
        steps = first + tl.arange(0, GROUPS) * GROUP + (GROUP - 1 - before + after) // 2
    else:
        steps = first + tl.arange(0, 1) + (GROUPS * GROUP - 1 - before + after) // 2
    value = load_signal(signal, 0, place, tl.minimum(tl.maximum(steps, 0), length - 1), length, 0.0)
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def repeated_ends(signal, place, first, length, before, after, pivot, sums, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Add the first and last row as often as windows reach beyond them."""
    end_rows = tl.arange(0, 1)
    row_0 = load_signal(signal, 0, place, end_rows, length, pivot)
    row_l = load_signal(signal, 0, place, end_rows + (length - 1), length, pivot)
    added = ()
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        early = (before - steps)[:, None]
        late = (steps + after - (length - 1))[:, None]
        total = sums[r] + tl.where(early > 0, early.to(tl.float32) * row_0, 0.0)  # 0 NaN would be NaN
        added = added + (total + tl.where(late > 0, late.to(tl.float32) * row_l, 0.0),)
    return added


@triton.jit
def padded_sums(
    signal, place, first, length, before, after, pivot, MODE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr
):
    """Sum windows of the series with repeated ends."""
    sums = window_sums(signal, 0, place, first, length, before, after, pivot, MODE, GROUPS, GROUP)
    return repeated_ends(signal, place, first, length, before, after, pivot, sums, GROUPS, GROUP)


@triton.jit
def window_means(
    x, mask, place, first, length, reach, SIZE: tl.constexpr, MODES: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Return averages of the observed values, and with a mask counts of them, tuples over r of [G, C]."""
    MODE: tl.constexpr = MODES[SIZE]
    before, after = reach[2 * SIZE], reach[2 * SIZE + 1]
    signal = (x, None, mask, None)
    pivot = pivot_of(signal, place, first, length, before, after, MODE, GROUPS, GROUP)
    sums = padded_sums(signal, place, first, length, before, after, pivot, MODE, GROUPS, GROUP)
    means = ()
    counts = sums
    if mask is None:
        share = 1.0 / (before + after + 1)
        for r in tl.static_range(GROUP):
            means = means + (pivot + sums[r] * share,)
    else:
        counts = observed_counts(mask, place, first, length, reach, SIZE, MODES, GROUPS, GROUP)
        for r in tl.static_range(GROUP):
            means = means + (tl.where(counts[r] > 0, pivot + sums[r] / tl.maximum(counts[r], 1.0), 0.0),)
    return means, counts


@triton.jit
def observed_counts(
    mask, place, first, length, reach, SIZE: tl.constexpr, MODES: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    MODE: tl.constexpr = MODES[SIZE]
    signal = (None, None, mask, None)
    return padded_sums(signal, place, first, length, reach[2 * SIZE], reach[2 * SIZE + 1], 0.0, MODE, GROUPS, GROUP)


@triton.jit
def later_of(a, b):
    return tl.maximum(a, b)


@triton.jit
def earlier_of(a, b):
    return tl.minimum(a, b)


@triton.jit
def observed_before(mask, place, row, GROUPS: tl.constexpr):
    """Return the last observed row before `row`, [C], -1 where there is none."""
    BLOCK_C: tl.constexpr = place[1].shape[0]
    found = tl.where(place[2], tl.full([BLOCK_C], -1, tl.int32), 0)
    end = row
    while (end > 0) & (tl.min(found, 0) < 0):
        steps = end - GROUPS + tl.arange(0, GROUPS)
        seen = load_seen(mask, place, steps, existing(place, steps, end))
        found = tl.maximum(found, tl.max(tl.where(seen, steps[:, None], -1), 0))
        end -= GROUPS
    return found


@triton.jit
def observed_from(mask, place, row, length, GROUPS: tl.constexpr):
    """Return the first observed row from `row` on, [C], length where there is none."""
    BLOCK_C: tl.constexpr = place[1].shape[0]
    found = tl.where(place[2], tl.zeros([BLOCK_C], tl.int32) + length, 0)
    start = row
    while (start < length) & (tl.max(found, 0) == length):
        steps = start + tl.arange(0, GROUPS)
        seen = load_seen(mask, place, steps, existing(place, steps, length))
        found = tl.minimum(found, tl.min(tl.where(seen, steps[:, None], length), 0))
        start += GROUPS
    return found


@triton.jit
def observed_neighbours(mask, place, first, length, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Return the observed rows nearest to each row on either side, itself left out: two tuples over r of [G, C].

    -1 and length stand for none.
    """
    TILE: tl.constexpr = GROUPS * GROUP
    BLOCK_C: tl.constexpr = place[1].shape[0]
    starts = first + tl.arange(0, GROUPS) * GROUP
    # Groups are scanned one group early and one late, which leaves each group's own rows out.
    last = tl.full([GROUPS, BLOCK_C], -1, tl.int32)
    following = tl.zeros([GROUPS, BLOCK_C], tl.int32) + length
    for r in tl.static_range(GROUP):
        steps = starts + (r - GROUP)
        seen = load_seen(mask, place, steps, existing(place, steps, length))
        last = tl.where(seen, steps[:, None], last)
        steps = starts + (2 * GROUP - 1 - r)
        seen = load_seen(mask, place, steps, existing(place, steps, length))
        following = tl.where(seen, steps[:, None], following)
    last = tl.associative_scan(last, 0, later_of)
    following = tl.associative_scan(following, 0, earlier_of, reverse=True)
    last = tl.maximum(last, observed_before(mask, place, first - GROUP, GROUPS)[None, :])
    following = tl.minimum(following, observed_from(mask, place, first + TILE + GROUP, length, GROUPS)[None, :])
    earlier = ()
    later = ()
    for r in tl.static_range(GROUP):
        earlier = earlier + (last,)
        steps = starts + r
        last = tl.where(load_seen(mask, place, steps, existing(place, steps, length)), steps[:, None], last)
        later = (following,) + later
        steps = starts + (GROUP - 1 - r)
        following = tl.where(load_seen(mask, place, steps, existing(place, steps, length)), steps[:, None], following)
    return earlier, later


@triton.jit
def carried_value(x, place, steps, earlier, later, length, CAUSAL: tl.constexpr):
    """Return the observed value nearest to each row, the earlier of two, [G, C]; zero where there is none."""
    batch, channels, keep_channel = place
    nearest = earlier
    if not CAUSAL:
        row = steps[:, None]
        use_later = (later < length) & ((earlier < 0) | (later - row < row - earlier))
        nearest = tl.where(use_later, later, earlier)
    start = x.pointer + batch.to(tl.int64) * x.batch_stride + (channels.to(tl.int64) * x.channel_stride)[None, :]
    keep = (nearest >= 0) & (nearest < length) & keep_channel[None, :]
    return tl.load(start + nearest.to(tl.int64) * x.step_stride, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def place_of(channel_count, time_tiles, TILE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return (batch, channels [C], which exist) of this program, and its first step."""
    index = tl.program_id(0)
    channel_tiles = (channel_count + BLOCK_C - 1) // BLOCK_C
    channels = index % channel_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    index = index // channel_tiles
    return (index // time_tiles, channels, channels < channel_count), index % time_tiles * TILE
