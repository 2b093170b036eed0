"""GPU kernels of the moving-average decomposition, forward and adjoint.

Dimension key: b batch, l steps of time, c channel, n kernel sizes; tiles [G] groups of GROUP consecutive steps, [C]
channels.

    kernel                 launched                     writes
    _decompose_kernel      forward                      trend, seasonal
    _carry_kernel          forward, mask                trend, where a window has no observation
    _weights_kernel        backward, weights            d_weights
    _carry_weights_kernel  backward, weights, mask      d_weights, where a window has no observation
    _share_kernel          backward, mask               what every output gives to the values of its window
    _adjoint_kernel        backward                     d_x
    _receive_kernel        backward, mask               d_x, where windows without an observation carry the value

A program owns a tile of the result and gathers what it needs (`series_decomposition_tiles.py`): there are no atomics,
and equal inputs give equal bits. Neighbouring tiles read (k - 1) rows in common, from the caches.

A window without any observation carries the nearest one, which a tile finds by walking along the mask until every
channel has met one; in the adjoint an observation walks along the windows that carry it. Both take time in proportion
to the longest gap near the tile, and would weigh on every window if they were not in kernels that run with a mask only.
"""

# ruff: noqa: RUF005 - Triton concatenates tuples, it does not unpack into them

from __future__ import annotations

import triton
import triton.language as tl

from .series_decomposition_tiles import (
    carried_value,
    existing,
    load_rows,
    load_seen,
    load_signal,
    observed_counts,
    observed_neighbours,
    place_of,
    store_rows,
    tile_pointers,
    window_means,
    window_sums,
)


@triton.jit
def store_parts(trend_of, seasonal_of, x, mask, place, steps, keep, trend):
    """Write the rounded trend, and what it leaves of x."""
    rounded = trend.to(trend_of.pointer.dtype.element_ty)
    tl.store(tile_pointers(trend_of, place, steps, 0), rounded, mask=keep)
    if seasonal_of is not None:
        rest = load_rows(x, place, steps, keep, 0) - rounded.to(tl.float32)
        if mask is not None:
            rest = tl.where(load_seen(mask, place, steps, keep), rest, 0.0)
        store_rows(seasonal_of, place, steps, keep, rest, 0)


@triton.jit
def share_of(weights, size, place, steps, length, SIZES: tl.constexpr):
    """Return the weight of one size's trend in the mixture."""
    if weights is not None:
        share = load_rows(weights, place, steps, existing(place, steps, length), size)
    else:
        share = 1.0 / SIZES
    return share


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _decompose_kernel(
    x, mask, weights, trend_of, seasonal_of, length, channel_count, time_tiles, reach,
    MODES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mix the trends of all kernel sizes for a tile of outputs; reach is (before, after) of every size in turn."""
    SIZES: tl.constexpr = len(MODES)
    place, first = place_of(channel_count, time_tiles, GROUPS * GROUP, BLOCK_C)
    trends = ()
    for size in tl.static_range(SIZES):
        means, _ = window_means(x, mask, place, first, length, reach, size, MODES, GROUPS, GROUP)
        mixed = ()
        for r in tl.static_range(GROUP):
            steps = first + tl.arange(0, GROUPS) * GROUP + r
            mean = means[r]
            if SIZES > 1:
                mean *= share_of(weights, size, place, steps, length, SIZES)
            mixed = mixed + (mean if size == 0 else trends[r] + mean,)
        trends = mixed
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        store_parts(trend_of, seasonal_of, x, mask, place, steps, existing(place, steps, length), trends[r])


@triton.jit
def lacks_observation(earlier, later, steps, length, before, after):
    """Tell, [G, C], whether a window of rows that are not observed themselves ends before the observations around."""
    row = steps[:, None]
    return ((earlier < 0) | (row - earlier > before)) & ((later >= length) | (later - row > after))


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _carry_kernel(
    x, mask, weights, trend_of, length, channel_count, time_tiles, reach,
    CAUSAL: tl.constexpr, SIZES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add the nearest observed value to trends of sizes whose window has no observation, zero so far."""
    place, first = place_of(channel_count, time_tiles, GROUPS * GROUP, BLOCK_C)
    earlier, later = observed_neighbours(mask, place, first, length, GROUPS, GROUP)
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        exists = existing(place, steps, length)
        unseen = exists & ~load_seen(mask, place, steps, exists)
        missing = tl.zeros([GROUPS, BLOCK_C], tl.float32)
        for size in tl.static_range(SIZES):
            before, after = reach[2 * size], reach[2 * size + 1]
            lacks = unseen & lacks_observation(earlier[r], later[r], steps, length, before, after)
            missing += tl.where(lacks, share_of(weights, size, place, steps, length, SIZES), 0.0)
        lacks = exists & (missing != 0)
        carried = carried_value(x, place, steps, earlier[r], later[r], length, CAUSAL)
        trend = load_rows(trend_of, place, steps, lacks, 0) + missing * carried
        store_rows(trend_of, place, steps, lacks, trend, 0)


@triton.jit
def upstream_of(d_trend, d_seasonal, mask, place, steps, keep):
    """Return h = d_trend - d_seasonal, the latter where observed."""
    upstream = tl.zeros([steps.shape[0], place[1].shape[0]], tl.float32)
    if d_trend is not None:
        upstream = load_rows(d_trend, place, steps, keep, 0)
    if d_seasonal is not None:
        seen = keep
        if mask is not None:
            seen = load_seen(mask, place, steps, keep)
        upstream -= load_rows(d_seasonal, place, steps, seen, 0)
    return upstream


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _weights_kernel(
    x, mask, d_trend, d_seasonal, d_weights, length, channel_count, time_tiles, reach,
    MODES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write d_weights, h times each size's trend; a window without an observation has no trend here yet."""
    SIZES: tl.constexpr = len(MODES)
    place, first = place_of(channel_count, time_tiles, GROUPS * GROUP, BLOCK_C)
    for size in tl.static_range(SIZES):
        means, _ = window_means(x, mask, place, first, length, reach, size, MODES, GROUPS, GROUP)
        for r in tl.static_range(GROUP):
            steps = first + tl.arange(0, GROUPS) * GROUP + r
            exists = existing(place, steps, length)
            upstream = upstream_of(d_trend, d_seasonal, mask, place, steps, exists)
            store_rows(d_weights, place, steps, exists, upstream * means[r], size)


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _carry_weights_kernel(
    x, mask, d_trend, d_weights, length, channel_count, time_tiles, reach,
    CAUSAL: tl.constexpr, SIZES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write d_weights of sizes whose window has no observation: h times the nearest observed value.

    A kernel of its own: the observations around and the sums of the windows do not fit the registers together.
    """
    place, first = place_of(channel_count, time_tiles, GROUPS * GROUP, BLOCK_C)
    earlier, later = observed_neighbours(mask, place, first, length, GROUPS, GROUP)
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        exists = existing(place, steps, length)
        unseen = exists & ~load_seen(mask, place, steps, exists)
        upstream = load_rows(d_trend, place, steps, unseen, 0)
        carried = carried_value(x, place, steps, earlier[r], later[r], length, CAUSAL)
        for size in tl.static_range(SIZES):
            before, after = reach[2 * size], reach[2 * size + 1]
            lacks = unseen & lacks_observation(earlier[r], later[r], steps, length, before, after)
            store_rows(d_weights, place, steps, lacks, upstream * carried, size)


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _share_kernel(
    mask, weights, d_trend, d_seasonal, shares, carry, length, channel_count, time_tiles, reach,
    MODES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write what every output passes on in the adjoint.

    That is w_k h / count to each observation in its window of size k (shares), or, of sizes whose window has none, the
    sum of w_k h to the nearest observation (carry).
    """
    SIZES: tl.constexpr = len(MODES)
    place, first = place_of(channel_count, time_tiles, GROUPS * GROUP, BLOCK_C)
    passed = ()
    for size in tl.static_range(SIZES):
        counts = observed_counts(mask, place, first, length, reach, size, MODES, GROUPS, GROUP)
        added = ()
        for r in tl.static_range(GROUP):
            steps = first + tl.arange(0, GROUPS) * GROUP + r
            exists = existing(place, steps, length)
            share = upstream_of(d_trend, d_seasonal, mask, place, steps, exists)
            share *= share_of(weights, size, place, steps, length, SIZES)
            spread = tl.where(counts[r] > 0, share / tl.maximum(counts[r], 1.0), 0.0)
            store_rows(shares, place, steps, exists, spread, size)
            share = tl.where(counts[r] > 0, 0.0, share)
            added = added + (share if size == 0 else passed[r] + share,)
        passed = added
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        store_rows(carry, place, steps, existing(place, steps, length), passed[r], 0)


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
    """Apply the adjoint of `padded_sums` to a signal of which row t is what output t gives each row of its window."""
    before, after = reach[2 * SIZE], reach[2 * SIZE + 1]
    MODE: tl.constexpr = MODES[SIZE]
    sums = window_sums(signal, SIZE, place, first, length, after, before, 0.0, MODE, GROUPS, GROUP)
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
def received_by(carry, place, steps, seen, earlier, later, smallest, length, CAUSAL: tl.constexpr):
    """Sum what windows without an observation pass on to each row that is seen, [G, C].

    Those of rows nearer to it than to the observations next to it, and further away than a window reaches.
    """
    row = steps[:, None]
    end = later  # one behind the last row
    begin = row
    if not CAUSAL:
        end = tl.where(later < length, (row + later) // 2 + 1, length)
        begin = tl.where(earlier >= 0, (earlier + row) // 2 + 1, 0)
    total = tl.zeros(end.shape, tl.float32)
    batch, channels, _ = place
    start = carry.pointer + batch.to(tl.int64) * carry.batch_stride
    start = start + (channels.to(tl.int64) * carry.channel_stride)[None, :]
    low = row + smallest[0] + 1
    ahead = tl.where(seen, end - low, 0)
    back = tl.where(seen, row - smallest[1] - begin, 0)
    for step in range(0, tl.max(tl.max(tl.maximum(ahead, back), 1), 0)):
        total += tl.load(start + (low + step).to(tl.int64) * carry.step_stride, mask=step < ahead, other=0.0)
        total += tl.load(start + (begin + step).to(tl.int64) * carry.step_stride, mask=step < back, other=0.0)
    return total


@triton.jit(do_not_specialize=["length", "time_tiles", "reach"])
def _adjoint_kernel(
    d_trend, d_seasonal, weights, mask, d_x, length, channel_count, time_tiles, reach,
    MODES: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum for a tile of values what the outputs give them: h weights, or with a mask the shares in place of weights."""
    SIZES: tl.constexpr = len(MODES)
    # Made here: Triton 3.6 loses the constants of a tuple of tuples that is a kernel's argument.
    signal = (d_trend, d_seasonal, None, weights)
    if mask is not None:
        signal = (None, None, None, weights)
    place, first = place_of(channel_count, time_tiles, GROUPS * GROUP, BLOCK_C)
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
        seen = keep
        if mask is not None:
            seen = load_seen(mask, place, steps, keep)
        if d_seasonal is not None:
            gradient += load_rows(d_seasonal, place, steps, keep, 0)
        store_rows(d_x, place, steps, keep, tl.where(seen, gradient, 0.0), 0)


@triton.jit(do_not_specialize=["length", "time_tiles"])
def _receive_kernel(
    carry, mask, d_x, length, channel_count, time_tiles, smallest,
    CAUSAL: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add to d_x what windows without an observation pass on; smallest is (before, after) of the smallest size."""
    place, first = place_of(channel_count, time_tiles, GROUPS * GROUP, BLOCK_C)
    earlier, later = observed_neighbours(mask, place, first, length, GROUPS, GROUP)
    for r in tl.static_range(GROUP):
        steps = first + tl.arange(0, GROUPS) * GROUP + r
        seen = load_seen(mask, place, steps, existing(place, steps, length))
        received = received_by(carry, place, steps, seen, earlier[r], later[r], smallest, length, CAUSAL)
        receives = seen & (received != 0)
        store_rows(d_x, place, steps, receives, load_rows(d_x, place, steps, receives, 0) + received, 0)
