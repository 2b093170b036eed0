"""GPU kernels of the moving-average decomposition, forward and adjoint.

Dimension key: b batch, l steps of time, c channel, n kernel sizes; tiles [G] groups of GROUP consecutive steps, [C]
channels.

    kernel              launched            writes
    _nearest_kernel     mask                the row of the observation that is nearest to each row
    _decompose_kernel   forward             trend, seasonal
    _weights_kernel     backward, weights   d_weights
    _share_kernel       backward, mask      what every output gives to the values of its window
    _adjoint_kernel     backward            d_x

A program owns a tile of the result and gathers what it needs (`series_decomposition_tiles.py`): there are no atomics,
and equal inputs give equal bits. Neighbouring tiles read (k - 1) rows in common, from the caches.

A window without any observation carries the nearest one; in the adjoint an observation walks along the windows that
carry it, in time that is proportional to the longest gap near the tile.
"""

# ruff: noqa: RUF005 - Triton concatenates tuples, it does not unpack into them

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    earlier_of,
    existing,
    later_of,
    load_rows,
    load_seen,
    load_signal,
    observed_before,
    observed_counts,
    observed_from,
    place_of,
    store_rows,
    tile_pointers,
    upstream_of,
    window_means,
    window_sums,
)


@triton.jit(do_not_specialize=["length", "time_tiles"])
def _nearest_kernel(
    mask, nearest, length, channel_count, time_tiles,
    WIDE: tl.constexpr, CAUSAL: tl.constexpr, STEPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the observed row nearest to each row, the earlier of two, only earlier ones if CAUSAL; -1 for none."""
    place, first = place_of(channel_count, time_tiles, WIDE, STEPS, BLOCK_C)
    steps = first + tl.arange(0, STEPS)
    exists, row = existing(place, steps, length), steps[:, None]
    seen = load_seen(mask, place, steps, exists)
    found = tl.associative_scan(tl.where(seen, row, -1), 0, later_of)
    found = tl.maximum(found, observed_before(mask, place, first, STEPS)[None, :])
    if not CAUSAL:
        later = tl.associative_scan(tl.where(seen, row, length), 0, earlier_of, reverse=True)
        later = tl.minimum(later, observed_from(mask, place, first + STEPS, length, STEPS)[None, :])
        found = tl.where((later < length) & ((found < 0) | (later - row < row - found)), later, found)
    store_rows(nearest, place, steps, exists, found, 0)


@triton.jit
def share_of(weights, size, place, steps, keep, SIZES: tl.constexpr):
    """Return the weight of one size's trend in the mixture."""
    share = 1.0 / SIZES
    if weights is not None:
        share = load_rows(weights, place, steps, keep, size)
    return share


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _decompose_kernel(
    x, mask, nearest, weights, trend, seasonal, length, channel_count, time_tiles, reach,
    WIDE: tl.constexpr, MODES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mix the trends of all kernel sizes for a tile of outputs; reach is (before, after) of every size in turn."""
    SIZES: tl.constexpr = len(MODES)
    place, first = place_of(channel_count, time_tiles, WIDE, GROUPS * GROUP, BLOCK_C)
    trends = ()
    for size in tl.static_range(SIZES):
        means = window_means(x, mask, nearest, place, first, length, reach, size, MODES, GROUPS, GROUP)
        mixed = ()
        for r in tl.static_range(GROUP):
            steps = first + tl.arange(0, GROUPS) * GROUP + r
            mean = means[r]
            if SIZES > 1:
                mean *= share_of(weights, size, place, steps, existing(place, steps, length), SIZES)
            mixed = mixed + (mean if size == 0 else trends[r] + mean,)
        trends = mixed
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        keep = existing(place, steps, length)
        rounded = trends[r].to(trend.pointer.dtype.element_ty)
        tl.store(tile_pointers(trend, place, steps, 0), rounded, mask=keep)
        if seasonal is not None:
            seen = keep if mask is None else load_seen(mask, place, steps, keep)
            rest = load_rows(x, place, steps, seen, 0) - rounded.to(tl.float32)
            store_rows(seasonal, place, steps, keep, tl.where(seen, rest, 0.0), 0)


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _weights_kernel(
    x, mask, nearest, d_trend, d_seasonal, d_weights, length, channel_count, time_tiles, reach,
    WIDE: tl.constexpr, MODES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write d_weights, h times each size's trend."""
    SIZES: tl.constexpr = len(MODES)
    place, first = place_of(channel_count, time_tiles, WIDE, GROUPS * GROUP, BLOCK_C)
    for size in tl.static_range(SIZES):
        means = window_means(x, mask, nearest, place, first, length, reach, size, MODES, GROUPS, GROUP)
        for r in tl.static_range(GROUP):
            steps = first + tl.arange(0, GROUPS) * GROUP + r
            exists = existing(place, steps, length)
            upstream = upstream_of(d_trend, d_seasonal, mask, place, steps, exists)
            store_rows(d_weights, place, steps, exists, upstream * means[r], size)


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _share_kernel(
    mask, weights, d_trend, d_seasonal, shares, length, channel_count, time_tiles, reach,
    WIDE: tl.constexpr, MODES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write what every output passes on in the adjoint, a series a kernel size and a last one.

    That is w_k h / count to each observation in its window of size k, or, of sizes whose window has none, the sum of
    w_k h to the nearest observation: the last.
    """
    SIZES: tl.constexpr = len(MODES)
    place, first = place_of(channel_count, time_tiles, WIDE, GROUPS * GROUP, BLOCK_C)
    carried = ()
    for size in tl.static_range(SIZES):
        counts = observed_counts(mask, place, first, length, reach, size, MODES, GROUPS, GROUP)
        added = ()
        for r in tl.static_range(GROUP):
            steps = first + tl.arange(0, GROUPS) * GROUP + r
            exists = existing(place, steps, length)
            share = upstream_of(d_trend, d_seasonal, mask, place, steps, exists)
            share *= share_of(weights, size, place, steps, exists, SIZES)
            spread = tl.where(counts[r] > 0, share / tl.maximum(counts[r], 1.0), 0.0)
            store_rows(shares, place, steps, exists, spread, size)
            share = tl.where(counts[r] > 0, 0.0, share)
            added = added + (share if size == 0 else carried[r] + share,)
        carried = added
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        store_rows(shares, place, steps, existing(place, steps, length), carried[r], SIZES)


@triton.jit
def ramp_sums(signal, size, place, begin, end, origin, SIGN: tl.constexpr, GROUPS: tl.constexpr):
    """Sum SIGN (t - origin) times row t over begin <= t < end, [C]: what a repeated end gave to the windows near it."""
    total = tl.zeros([GROUPS, place[1].shape[0]], tl.float32)
    for row in range(begin, end, GROUPS):
        steps = row + tl.arange(0, GROUPS)
        times = (SIGN * (steps - origin)).to(tl.float32)[:, None]
        total += times * load_signal(signal, size, place, steps, end, 0.0)
    return tl.sum(total, 0)


@triton.jit
def spread_sums(
    signal, place, first, length, reach, SIZE: tl.constexpr, MODES: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Apply the adjoint of the window sums to a signal of which row t is what output t gives each row of its window."""
    before, after = reach[2 * SIZE], reach[2 * SIZE + 1]
    sums = window_sums(signal, SIZE, place, first, length, after, before, 0.0, MODES[SIZE], GROUPS, GROUP)
    # Only the tiles that own an end have anything to sum.
    end = tl.where(first == 0, tl.minimum(before, length), 0)
    to_first = ramp_sums(signal, SIZE, place, 0, end, before, -1, GROUPS)
    begin = tl.where(first + GROUPS * GROUP >= length, tl.maximum(length - after, 0), length)
    to_last = ramp_sums(signal, SIZE, place, begin, length, length - 1 - after, 1, GROUPS)
    spread = ()
    for r in tl.static_range(GROUP):
        steps = (first + tl.arange(0, GROUPS) * GROUP + r)[:, None]
        total = sums[r] + tl.where(steps == 0, to_first[None, :], 0.0)
        spread = spread + (total + tl.where(steps == length - 1, to_last[None, :], 0.0),)
    return spread


@triton.jit
def received_from(shares, nearest, place, row, at, keep, length, SIZES: tl.constexpr):
    """Return what rows `at` pass on to the rows whose observation they are nearest to, [G, C], and which do."""
    keep = keep & existing(place, at, length)
    keep = keep & (tl.load(tile_pointers(nearest, place, at, 0), mask=keep, other=-1) == row[:, None])
    return load_rows(shares, place, at, keep, SIZES), keep


@triton.jit
def received_by(shares, nearest, place, row, seen, length, SIZES: tl.constexpr):
    """Sum what rows without an observation pass on to each that is seen, [G, C], going away from it on both sides."""
    total = tl.zeros(seen.shape, tl.float32)
    distance, before, after = 1, seen, seen
    while tl.max(tl.max((before | after).to(tl.int32), 1), 0) > 0:
        part, before = received_from(shares, nearest, place, row, row - distance, before, length, SIZES)
        total += part
        part, after = received_from(shares, nearest, place, row, row + distance, after, length, SIZES)
        total += part
        distance += 1
    return total


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _adjoint_kernel(
    d_trend, d_seasonal, weights, mask, nearest, d_x, length, channel_count, time_tiles, reach,
    WIDE: tl.constexpr, MODES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum for a tile of values what the outputs give them: h weights, or with a mask the shares in place of weights."""
    SIZES: tl.constexpr = len(MODES)
    # Made here: Triton 3.6 loses the constants of a tuple of tuples that is a kernel's argument.
    signal = (d_trend, d_seasonal, weights)
    if mask is not None:
        signal = (None, None, weights)
    place, first = place_of(channel_count, time_tiles, WIDE, GROUPS * GROUP, BLOCK_C)
    gradients = ()
    for size in tl.static_range(SIZES):
        spread = spread_sums(signal, place, first, length, reach, size, MODES, GROUPS, GROUP)
        added = ()
        for r in tl.static_range(GROUP):
            part = spread[r]
            if mask is None:
                part *= 1.0 / (reach[2 * size] + reach[2 * size + 1] + 1)
                if weights is None and SIZES > 1:
                    part *= 1.0 / SIZES
            added = added + (part if size == 0 else gradients[r] + part,)
        gradients = added
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        keep = existing(place, steps, length)
        gradient = gradients[r]
        if d_seasonal is not None:
            gradient += load_rows(d_seasonal, place, steps, keep, 0)
        if mask is not None:
            seen = load_seen(mask, place, steps, keep)
            gradient += received_by(weights, nearest, place, steps, seen, length, SIZES)
            gradient = tl.where(seen, gradient, 0.0)
        store_rows(d_x, place, steps, keep, gradient, 0)
