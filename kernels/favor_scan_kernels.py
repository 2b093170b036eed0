"""GPU kernels that carry states across the segments of a causal sequence, and their gradients back.

Dimension key: b batch, h key heads, d head dim, e value dim, m features; tiles [M] features, [E] padded value dim.

A state is an online softmax over keys: maximum (base 2), sum and average of values; without the log-weight c_r, which
enters L alone. States of segment i stand at batch i B + b.

    _prefix_states_kernel     state i = states of segments before i, or up to i (INCLUSIVE), and the initial state
    _suffix_gradients_kernel  what queries of segment i and later ask of keys before them, relative to state i:
                              G_i = R_i / z_i + G_{i+1} exp2(max_i - max_{i+1})      A_i likewise, of -E_i / z_i

with R_i = sum_t p_tr do_t and E_i = sum_t p_tr (do_t . o_t) over the queries that read state i (given relative to
max_i, and so without z_i, where chunks are scanned). A key with exponent e then gets dv = exp2(e - max_i) G_i and
de = exp2(e - max_i) (v . G_i + A_i). The gradient of the final state, which every key feeds, opens the scan as G = dV,
A = dL - V . dV relative to its L; the initial state gets what is left at the front. Maxima only grow along the
sequence, so no factor exceeds 1. One program owns M features and walks over the segments in order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .favor_forward_kernels import inverse_of, log_normalizer_of, open_state, relative_maximum, store_state
from .favor_tiles import UNSEEN, load_tile, load_vector, store_tile, store_vector


@triton.jit(do_not_specialize=["batch_count", "segments", "summarised"])
def _prefix_states_kernel(
    state, initial, final, log_weight, batch_count, segments, summarised, heads,
    INCLUSIVE: tl.constexpr, FEATURES: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Replace the states of the first `summarised` segments by prefix states of all `segments`, in place."""
    tiles: tl.constexpr = (FEATURES + BLOCK_M - 1) // BLOCK_M
    index = tl.program_id(0)
    tile, index = index % tiles, index // tiles
    head, batch = index % heads, index // heads
    features = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    keep = features < FEATURES
    value, _, row_max, row_sum = state
    top, total, average = open_state(initial, log_weight, batch, head, features, keep, VALUE_DIM, BLOCK_E)
    for segment in range(segments):
        place = segment * batch_count + batch
        exists = keep & (segment < summarised)
        part_top = load_vector(row_max, place, head, features, exists, UNSEEN)
        part_total = load_vector(row_sum, place, head, features, exists, 0.0)
        part_average = load_tile(value, place, head, features, exists, VALUE_DIM, BLOCK_E).to(tl.float32)
        tl.debug_barrier()  # all threads have loaded what is overwritten
        if not INCLUSIVE:
            store_state(
                state, log_weight, top, total, average * total[:, None], place, head, features, keep,
                VALUE_DIM, BLOCK_E,
            )  # fmt: skip
        raised = tl.maximum(top, part_top)
        one, other = total * tl.exp2(top - raised), part_total * tl.exp2(part_top - raised)
        top, total = raised, one + other
        share = inverse_of(total)
        average = average * (one * share)[:, None] + part_average * (other * share)[:, None]
        if INCLUSIVE:
            store_state(
                state, log_weight, top, total, average * total[:, None], place, head, features, keep,
                VALUE_DIM, BLOCK_E,
            )  # fmt: skip
    if final is not None:
        final_value, final_log_normalizer = final
        logarithm = log_normalizer_of(top, total, log_weight, head, features, keep)
        store_vector(final_log_normalizer, batch, head, features, keep, logarithm)
        store_tile(final_value, batch, head, features, keep, average, VALUE_DIM, BLOCK_E)


@triton.jit(do_not_specialize=["batch_count", "segments", "splits"])
def _suffix_gradients_kernel(
    received, received_weighted, state, initial, final, d_initial, d_final, log_weight,
    landmark_rows, shifts, anchors, d_log_weight, batch_count, segments, splits, heads,
    FEATURES: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sum R and E over splits and later segments into G, A and, where `anchors` is given, their maxima.

    With anchors there is one more slot, behind the last segment, for the gradient of the final state. d_log_weight is
    that of the log-weight, as far as keys enter through states.
    """
    tiles: tl.constexpr = (FEATURES + BLOCK_M - 1) // BLOCK_M
    index = tl.program_id(0)
    tile, index = index % tiles, index // tiles
    head, batch = index % heads, index // heads
    features = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    keep = features < FEATURES
    value, _, row_max, row_sum = state
    rows = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    shift = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], -UNSEEN, tl.float32)  # nothing received yet, at any maximum
    d_weight = shift
    if d_final is not None:
        final_value, final_log_normalizer = final
        d_final_value, d_final_log = d_final
        logarithm = load_vector(final_log_normalizer, batch, head, features, keep, float("-inf"))
        v = load_tile(final_value, batch, head, features, keep, VALUE_DIM, BLOCK_E)
        rows += load_tile(d_final_value, batch, head, features, keep, VALUE_DIM, BLOCK_E)
        d_weight += load_vector(d_final_log, batch, head, features, keep, 0.0)
        shift += d_weight - tl.sum(rows * v, 1)
        known = logarithm != float("-inf")
        rows = tl.where(known[:, None], rows, 0.0)
        shift = tl.where(known, shift, 0.0)
        d_weight = tl.where(known, d_weight, 0.0)
        top = relative_maximum(logarithm, log_weight, head, features, keep)
    if anchors is not None:
        place = segments * batch_count + batch
        store_tile(landmark_rows, place, head, features, keep, rows, VALUE_DIM, BLOCK_E)
        store_vector(shifts, place, head, features, keep, shift)
        store_vector(anchors, place, head, features, keep, top)
    for back in range(segments):
        segment = segments - 1 - back
        place = segment * batch_count + batch
        state_top = load_vector(row_max, place, head, features, keep, UNSEEN)
        total = load_vector(row_sum, place, head, features, keep, 0.0)
        v = load_tile(value, place, head, features, keep, VALUE_DIM, BLOCK_E).to(tl.float32)
        own_rows = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
        own_shift = tl.zeros([BLOCK_M], tl.float32)
        for split in range(splits):
            part = (split * segments + segment) * batch_count + batch
            own_rows += load_tile(received, part, head, features, keep, VALUE_DIM, BLOCK_E)
            own_shift -= load_vector(received_weighted, part, head, features, keep, 0.0)
        d_weight += tl.sum(own_rows * v, 1) + own_shift
        shrink = tl.exp2(tl.minimum(state_top - top, 0.0))
        inverse = inverse_of(total) if anchors is None else tl.where(total == 0, 0.0, 1.0)
        rows = rows * shrink[:, None] + own_rows * inverse[:, None]
        shift = shift * shrink + own_shift * inverse
        top = state_top
        rounded = rows.to(landmark_rows.pointer.dtype.element_ty).to(tl.float32)
        store_tile(landmark_rows, place, head, features, keep, rounded, VALUE_DIM, BLOCK_E)
        # what rounding takes from G, A gives back: a constant v has no gradient through the weights
        store_vector(shifts, place, head, features, keep, shift + tl.sum((rows - rounded) * v, 1))
        if anchors is not None:
            store_vector(anchors, place, head, features, keep, top)
    if d_initial is not None:
        start, known, v = open_state(initial, log_weight, batch, head, features, keep, VALUE_DIM, BLOCK_E)
        shrink = known * tl.exp2(tl.minimum(start - top, 0.0))
        d_value, d_log = d_initial
        d_logarithm = shrink * (tl.sum(rows * v, 1) + shift)
        store_tile(d_value, batch, head, features, keep, rows * shrink[:, None], VALUE_DIM, BLOCK_E)
        store_vector(d_log, batch, head, features, keep, d_logarithm)
        d_weight -= d_logarithm
    if d_log_weight is not None:
        store_vector(d_log_weight, batch, head, features, keep, d_weight)
