"""GPU kernels of FAVOR attention, forward: the two softmax hops of `definition.py` in flash-attention form.

Dimension key: b batch, h key heads, t queries, s keys, d head dim, e value dim, m features;
tiles [T] queries, [S] keys, [M] features, [D] and [E] padded head and value dims.

    kernel               one program owns               loops over         keeps in registers
    _summarize_kernel    M features, a split of keys    key tiles          max, sum [M], sum of p v [M, E]
    _merge_splits_kernel M features                     splits             the same
    _attend_kernel       T queries                      feature tiles      max, sum [T], sum of p V [T, E]
    _short_kernel        T queries                      features, keys     both; no state is read back

Every hop is an online softmax whose running maximum belongs to its owner (a feature, a query), so nothing overflows
and no epsilon is needed. Exponents are in base 2; the log-weight c_r is constant in hop 1 and enters L alone.

`ANTITHETIC` features are [H; -H]: w . x is computed for H, and used a second time with the opposite sign.

Memory traffic: the keys and values are read once a feature tile (from the second-level cache but for the first),
queries once, the state once a query tile. Splits are merged in a fixed order; there are no atomics, so equal inputs
give equal bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .feature_maps import exponent_of
from .tiles import (
    LN_2,
    LOG2_E,
    NO_MAX,
    NORM_DOMINATES,
    cut_entries,
    keep_if,
    load_block,
    load_block_vector,
    load_tile,
    load_vector,
    online_softmax_update,
    online_softmax_update_pair,
    seen_keys,
    square_norm,
    store_block,
    store_block_vector,
    store_tile,
    tile_of,
    with_key_bias,
)


@triton.jit
def relative_maximum(log_normalizer, log_weight, head, features, keep):
    """Return log2(e) (L - c) [M] of a state, and NO_MAX where it has seen no key or no key counts (c = -inf)."""
    seen = log_normalizer != float("-inf")
    if log_weight is not None:
        weight = load_vector(log_weight, head * 0, head, features, keep, 0.0)
        seen = seen & (weight != float("-inf"))
        log_normalizer = tl.where(seen, log_normalizer - weight, 0.0)
    return tl.where(seen, log_normalizer * LOG2_E, NO_MAX)


@triton.jit
def initial_softmax(initial, log_weight, plane, head, features, keep, S: tl.constexpr):
    """Return maximum, sum [M] and sum of p v [M, E] of the initial state (L, V), or of no keys where it is None."""
    if initial is None:
        row_max = tl.full([S.BLOCK_M], NO_MAX, tl.float32)
        return row_max, tl.zeros([S.BLOCK_M], tl.float32), tl.zeros([S.BLOCK_M, S.BLOCK_E], tl.float32)
    else:
        log_normalizer, value = initial
        logarithm = load_block_vector(log_normalizer, plane, S.ALL, features, keep, float("-inf")).to(tl.float32)
        row_max = relative_maximum(logarithm, log_weight, head, features, keep)
        row_sum = tl.where(row_max == NO_MAX, 0.0, 1.0)
        acc = load_block(value, plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E).to(tl.float32)
        return row_max, row_sum, tl.where((row_sum == 0)[:, None], 0.0, acc)


@triton.jit
def summarize_tile(
    key, value, mask, w, initial, neg_initial, batch, head, first, end, logit_scale, norm_scale, BLOCK_S: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """Run hop 1 over keys first ... end: maximum, sum [M] and sum of p v [M, E] for w [M, D], and if ANTITHETIC for -w.

    It goes on from the same three of earlier keys, `initial` for w and `neg_initial` for -w.
    """
    row_max, row_sum, acc = initial
    neg_row_max, neg_row_sum, neg_acc = neg_initial
    for start in range(first, end, BLOCK_S):
        rows = start + tl.arange(0, BLOCK_S)
        keep = seen_keys(mask, batch, head, rows, end)
        k = load_tile(key, batch, head, rows, keep, S.DIM, S.BLOCK_D)  # [S, D]
        v = load_tile(value, batch, head, rows, keep, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [S, E]
        x = tl.dot(w, tl.trans(k), input_precision=S.PRECISION)  # [M, D] @ [D, S] -> [M, S]
        if S.HAS_NORM:
            norm = square_norm(k)
            x = tl.where((norm > NORM_DOMINATES)[None, :], 0.0, x)
            bias = tl.where(keep, -norm_scale * norm, float("-inf"))
        else:
            bias = tl.where(keep, 0.0, float("-inf"))
        bias = with_key_bias(bias, mask, batch, head, rows, keep)
        exponent = exponent_of(x, logit_scale, bias[None, :], S)
        row_max, row_sum, acc = online_softmax_update(exponent, v, row_max, row_sum, acc, S)
        if S.ANTITHETIC:
            exponent = exponent_of(x, -logit_scale, bias[None, :], S)
            neg_row_max, neg_row_sum, neg_acc = online_softmax_update(exponent, v, neg_row_max, neg_row_sum, neg_acc, S)
    return row_max, row_sum, acc, neg_row_max, neg_row_sum, neg_acc


@triton.jit
def log_normalizer_of(row_max, row_sum, log_weight, head, features, keep):
    """Return L [M] = ln sum_s exp(e_sr), -inf where no key was seen."""
    logarithm = tl.where(row_sum == 0, float("-inf"), row_max * LN_2 + tl.log(tl.where(row_sum == 0, 1.0, row_sum)))
    if log_weight is not None:
        logarithm += load_vector(log_weight, head * 0, head, features, keep, 0.0)
    return logarithm


@triton.jit
def inverse_of(row_sum):
    """Return 1 / total, and 0 where nothing was summed."""
    return tl.where(row_sum == 0, 0.0, 1.0 / tl.where(row_sum == 0, 1.0, row_sum))


@triton.jit
def store_statistics(statistics, planes, plane, count, rows, keep, maximum, total):
    """Write the maximum and the sum (or its inverse) of a softmax; the maxima of all planes stand before the sums."""
    store_block_vector(statistics, plane, count, rows, keep, maximum)
    store_block_vector(statistics, planes + plane, count, rows, keep, total)


@triton.jit
def store_state(state, states, log_weight, softmax, state_index, head, features, keep, S: tl.constexpr):
    """Write L and V of M features, with the maximum and sum of their softmax."""
    log_normalizers, values, statistics = state
    row_max, row_sum, acc = softmax
    acc = acc * inverse_of(row_sum)[:, None]
    store_block(values, state_index, S.ALL, features, keep, acc, S.VALUE_DIM, S.BLOCK_E)
    store_statistics(statistics, states, state_index, S.ALL, features, keep, row_max, row_sum)
    logarithm = log_normalizer_of(row_max, row_sum, log_weight, head, features, keep)
    store_block_vector(log_normalizers, state_index, S.ALL, features, keep, logarithm)


@triton.jit(do_not_specialize=["batch_heads", "key_count", "split_length", "splits"])
def _summarize_kernel(
    key, value, mask, projection, log_weight, state, projection_copy, batch_heads, key_count, split_length, splits,
    heads, logit_scale, norm_scale, BLOCK_S: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own a feature tile and a split of the keys of one head; states of a split stand behind all of the one before."""
    index = tl.program_id(0)
    tile, index = index % S.TILES, index // S.TILES  # neighbours share keys and values, in the second-level cache
    split, plane = index % splits, index // splits
    head, batch = plane % heads, plane // heads
    features = tile * S.BLOCK_M + tl.arange(0, S.BLOCK_M)
    keep = features < S.FEATURES
    w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(key.pointer.dtype.element_ty)  # [M, D]
    if projection_copy is not None:  # what later kernels load instead of converting again
        writes = split + batch + head * (projection_copy.head_stride == 0) == 0  # one writer for each element
        store_tile(projection_copy, batch, head, features, keep_if(writes, keep), w, S.DIM, S.BLOCK_D)
    first = split * split_length
    end = tl.minimum(first + split_length, key_count)
    nothing = initial_softmax(None, None, plane, head, features, keep, S)
    row_max, row_sum, acc, neg_row_max, neg_row_sum, neg_acc = summarize_tile(
        key, value, mask, w, nothing, nothing, batch, head, first, end, logit_scale, norm_scale, BLOCK_S, S
    )
    state_index = split * batch_heads + plane
    states = splits * batch_heads
    store_state(state, states, log_weight, (row_max, row_sum, acc), state_index, head, features, keep, S)
    if S.ANTITHETIC:
        others = features + S.FEATURES
        softmax = (neg_row_max, neg_row_sum, neg_acc)
        store_state(state, states, log_weight, softmax, state_index, head, others, keep, S)


@triton.jit(do_not_specialize=["splits", "batch_heads"])
def _merge_splits_kernel(parts, log_weight, state, batch_heads, splits, heads, S: tl.constexpr):
    """Join the states of the splits, in order: their common maximum first, then the weighted sums."""
    index = tl.program_id(0)
    tile, plane = index % S.TILES, index // S.TILES
    features = tile * S.BLOCK_M + tl.arange(0, S.BLOCK_M)
    keep = features < S.ALL
    _, part_value, part_statistics = parts
    row_max = tl.full([S.BLOCK_M], NO_MAX, tl.float32)
    for split in range(splits):
        state_index = split * batch_heads + plane
        row_max = tl.maximum(row_max, load_block_vector(part_statistics, state_index, S.ALL, features, keep, NO_MAX))
    row_sum = tl.zeros([S.BLOCK_M], tl.float32)
    acc = tl.zeros([S.BLOCK_M, S.BLOCK_E], tl.float32)
    for split in range(splits):
        state_index = split * batch_heads + plane
        weight = tl.exp2(load_block_vector(part_statistics, state_index, S.ALL, features, keep, NO_MAX) - row_max)
        weight *= load_block_vector(part_statistics, splits * batch_heads + state_index, S.ALL, features, keep, 0.0)
        row_sum += weight
        acc += weight[:, None] * load_block(part_value, state_index, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)
    store_state(state, batch_heads, log_weight, (row_max, row_sum, acc), plane, plane % heads, features, keep, S)


@triton.jit
def largest_log_normalizer(log_normalizer, plane, S: tl.constexpr):
    """Return the largest L_r: logits taken relative to it keep their digits when L is near -5000."""
    features = tl.arange(0, triton.next_power_of_2(S.ALL))
    keep = features < S.ALL
    largest = tl.max(load_block_vector(log_normalizer, plane, S.ALL, features, keep, float("-inf")), 0)
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def landmark_bias(log_normalizer, reference, plane, features, keep, S: tl.constexpr):
    """Return log2(e) (L_r - reference) [M], -inf for features that are not there."""
    return (load_block_vector(log_normalizer, plane, S.ALL, features, keep, float("-inf")) - reference) * LOG2_E


@triton.jit(do_not_specialize=["query_count"])
def _attend_kernel(
    query, projection, state, output, statistics, query_count, query_heads, group, logit_scale,
    BLOCK_T: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own a tile of queries of one query head; what the backward needs of its softmax goes to `statistics`."""
    rows, exists, query_plane = tile_of(tl.program_id(0), query_count, BLOCK_T)
    query_head, batch = query_plane % query_heads, query_plane // query_heads
    head, plane = query_head // group, query_plane // group
    log_normalizer, state_value = state
    q = cut_entries(load_tile(query, batch, query_head, rows, exists, S.DIM, S.BLOCK_D))  # [T, D]
    reference = largest_log_normalizer(log_normalizer, plane, S)
    row_max = tl.full([BLOCK_T], NO_MAX, tl.float32)
    row_sum = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, S.BLOCK_E], tl.float32)
    for start in range(0, S.FEATURES, S.BLOCK_M):
        features = start + tl.arange(0, S.BLOCK_M)
        keep = features < S.FEATURES
        w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(q.dtype)  # [M, D]
        landmarks = load_block(state_value, plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E).to(
            S.OPERAND
        )  # [M, E]
        bias = landmark_bias(log_normalizer, reference, plane, features, keep, S)
        x = tl.dot(q, tl.trans(w), input_precision=S.PRECISION)  # [T, D] @ [D, M] -> [T, M]
        logits = exponent_of(x, logit_scale, bias[None, :], S)
        if S.ANTITHETIC:
            others = features + S.FEATURES
            neg_landmarks = load_block(state_value, plane, S.ALL, others, keep, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)
            bias = landmark_bias(log_normalizer, reference, plane, others, keep, S)
            neg_logits = exponent_of(x, -logit_scale, bias[None, :], S)
            row_max, row_sum, acc = online_softmax_update_pair(
                logits, neg_logits, landmarks, neg_landmarks, row_max, row_sum, acc, S
            )
        else:
            row_max, row_sum, acc = online_softmax_update(logits, landmarks, row_max, row_sum, acc, S)
    inverse = inverse_of(row_sum)
    store_tile(output, batch, query_head, rows, exists, acc * inverse[:, None], S.VALUE_DIM, S.BLOCK_E)
    query_planes = tl.num_programs(0) // tl.cdiv(query_count, BLOCK_T)
    store_statistics(statistics, query_planes, query_plane, query_count, rows, exists, row_max, inverse)


@triton.jit(do_not_specialize=["query_count", "key_count"])
def _short_kernel(
    query, key, value, mask, projection, initial, state, output, statistics, query_count, key_count, query_heads, group,
    logit_scale, norm_scale, RELATIVE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own a tile of queries and run both hops: hop 1 is repeated by each tile of a head, and only the first writes it.

    Keys join those of the initial state. Logits are taken relative to the largest L_r of the first feature tile, which
    is why there are no log-weights; the maxima of queries are left RELATIVE to the largest L, as `_attend_kernel` has
    them, or as they are.
    """
    tiles = tl.maximum(tl.cdiv(query_count, BLOCK_T), 1)  # without queries there is still a state to write
    index = tl.program_id(0)
    tile, query_plane = index % tiles, index // tiles
    query_head, batch = query_plane % query_heads, query_plane // query_heads
    head, plane = query_head // group, query_plane // group
    writes = (tile == 0) & (query_head % group == 0)
    states = tl.num_programs(0) // tiles // group
    rows = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = rows < query_count
    q = cut_entries(load_tile(query, batch, query_head, rows, exists, S.DIM, S.BLOCK_D))  # [T, D]
    row_max = tl.full([BLOCK_T], NO_MAX, tl.float32)
    row_sum = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, S.BLOCK_E], tl.float32)
    reference = 0.0
    highest = float("-inf")
    for start in range(0, S.FEATURES, S.BLOCK_M):
        features = start + tl.arange(0, S.BLOCK_M)
        keep = features < S.FEATURES
        w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(q.dtype)  # [M, D]
        others = features + S.FEATURES
        before = initial_softmax(initial, None, plane, head, features, keep, S)
        neg_before = before
        if S.ANTITHETIC:
            neg_before = initial_softmax(initial, None, plane, head, others, keep, S)
        landmark_max, landmark_sum, landmark_acc, neg_landmark_max, neg_landmark_sum, neg_landmark_acc = summarize_tile(
            key, value, mask, w, before, neg_before, batch, head, 0, key_count, logit_scale, norm_scale, BLOCK_S, S
        )
        softmax = (landmark_max, landmark_sum, landmark_acc)
        store_state(state, states, None, softmax, plane, head, features, keep_if(writes, keep), S)
        logarithm = log_normalizer_of(landmark_max, landmark_sum, None, head, features, keep)
        logarithm = tl.where(keep, logarithm, float("-inf"))
        largest = tl.max(logarithm, 0)
        reference = tl.where((start == 0) & (largest > float("-inf")), largest, reference)
        highest = tl.maximum(highest, largest)
        bias = (logarithm - reference) * LOG2_E
        x = tl.dot(q, tl.trans(w), input_precision=S.PRECISION)  # [T, D] @ [D, M] -> [T, M]
        landmarks = (landmark_acc * inverse_of(landmark_sum)[:, None]).to(S.OPERAND)  # [M, E]
        logits = exponent_of(x, logit_scale, bias[None, :], S)
        if S.ANTITHETIC:
            softmax = (neg_landmark_max, neg_landmark_sum, neg_landmark_acc)
            store_state(state, states, None, softmax, plane, head, others, keep_if(writes, keep), S)
            logarithm = log_normalizer_of(neg_landmark_max, neg_landmark_sum, None, head, others, keep)
            logarithm = tl.where(keep, logarithm, float("-inf"))
            highest = tl.maximum(highest, tl.max(logarithm, 0))
            bias = (logarithm - reference) * LOG2_E
            neg_landmarks = (neg_landmark_acc * inverse_of(neg_landmark_sum)[:, None]).to(S.OPERAND)
            neg_logits = exponent_of(x, -logit_scale, bias[None, :], S)
            row_max, row_sum, acc = online_softmax_update_pair(
                logits, neg_logits, landmarks, neg_landmarks, row_max, row_sum, acc, S
            )
        else:
            row_max, row_sum, acc = online_softmax_update(logits, landmarks, row_max, row_sum, acc, S)
    inverse = inverse_of(row_sum)
    store_tile(output, batch, query_head, rows, exists, acc * inverse[:, None], S.VALUE_DIM, S.BLOCK_E)
    if RELATIVE:
        reference -= tl.where(highest > float("-inf"), highest, 0.0)
    query_planes = tl.num_programs(0) // tiles
    store_statistics(
        statistics, query_planes, query_plane, query_count, rows, exists, row_max + reference * LOG2_E, inverse
    )
