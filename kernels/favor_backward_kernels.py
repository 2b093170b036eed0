"""GPU kernels of FAVOR attention, backward: everything of width m is recomputed, nothing is added atomically.

Dimension key: b batch, h key heads, t queries, s keys, d head dim, e value dim, m features;
tiles [N] tokens (queries or keys), [M] features, [D] and [E] padded head and value dims.

Both hops are softmaxes between tokens x_n (with a row u_n) and landmarks w_r (with a row G_r), so that one kernel
computes the gradients of the tokens of either, and one those of the projection:

                         hop 1, the keys                       hop 2, the queries
    token, its row       k_s, v_s                              q_t, do_t
    landmark row G_r     dV_r / z_r                            V_r
    weight P_nr          exp(e_sr - max_r)                     exp(w_r . q_t + L_r - max_t) / sum_t
    landmark shift A_r   dL_r / z_r - G_r . V_r                0
    token shift B_n      0                                     -do_t . o_t

    d_nr = P_nr (G_r . u_n + A_r + B_n)           dx_n = sum_r d_nr w_r  (hop 1: - k_n sum_r d_nr)
    hop 1: dv_n = sum_r P_nr G_r                  dw_r = sum_n d_nr x_n

`_landmark_gradient_kernel` gathers R_r = sum_t P_tr do_t and E_r = sum_t P_tr (do_t . o_t) over queries, and
`_reduce_gradient_kernel` turns them into dV_r = R_r and dL_r = V_r . R_r - E_r, and those into G_r and A_r of hop 1.
A_r is taken from the rounded G_r, so that a constant v gets no gradient through the weights. Maximum and sum are kept
apart, and no exponent may exceed 0: a logarithm of the sum would round to a part of its own size, which is in the
thousands when norms are large.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .favor_forward_kernels import common_shift, landmark_bias
from .favor_tiles import (
    FAR,
    cut_entries,
    exponent_of,
    feature_slope,
    load_block,
    load_block_vector,
    load_tile,
    project_back,
    seen_keys,
    square_norm,
    store_block,
    store_block_vector,
    store_tile,
    tile_of,
)


@triton.jit
def key_shift(k, keep, norm_gain, FEATURE_MAP: tl.constexpr):
    """Return -log2(e) |k|^2 / 2 [N] of keys, -inf where they are not seen."""
    if FEATURE_MAP == "exponential":
        return tl.where(keep, -norm_gain * square_norm(k), float("-inf"))
    else:
        return tl.where(keep, 0.0, float("-inf"))


@triton.jit
def usable_tokens(x, KEYS: tl.constexpr, FEATURE_MAP: tl.constexpr):
    """Return tokens [N, D] as the forward used them: keys so far away that only their norm counts are zero."""
    if KEYS and FEATURE_MAP == "exponential":
        return tl.where((square_norm(x) > FAR)[:, None], 0.0, x).to(x.dtype)
    else:
        return cut_entries(x)


@triton.jit
def share(x, gain, inner, outer, FEATURE_MAP: tl.constexpr):
    """Return P [A, B] before its division by a sum: at most 1, and finite even where w . x overflows.

    The biases are added in the forward's order, `inner` with the product and `outer` in place of its maximum.
    """
    exponent = exponent_of(x, gain, inner, FEATURE_MAP) + outer
    return tl.exp2(tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def share_gradient(
    x, gain, inner, outer, shift, rows, columns, FEATURE_MAP: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Return P [A, B] before its division, and d [A, B] of the module docstring with respect to ln phi."""
    weight = share(x, gain, inner, outer, FEATURE_MAP)
    reach = tl.dot(rows, tl.trans(columns), input_precision=PRECISION)  # [A, E] @ [E, B] -> [A, B]
    return weight, weight * (reach + shift)


@triton.jit
def query_terms(statistics, query_planes, query_plane, query_count, rows, exists):
    """Return -maximum, -inf for queries that are not there, and 1 / sum [N] of the softmax of queries."""
    inverse = load_block_vector(statistics, query_planes + query_plane, query_count, rows, exists, 0.0)
    return -load_block_vector(statistics, query_plane, query_count, rows, exists, float("inf")), inverse


@triton.jit
def minus_row_max(row_max, plane, features, keep, FEATURES: tl.constexpr):
    """Return -maximum [M] of the softmax of landmarks over keys, -inf for features that are not there."""
    return tl.where(keep, -load_block_vector(row_max, plane, FEATURES, features, keep, 0.0), float("-inf"))


@triton.jit
def hop_gradient(
    x, gain, tokens, landmarks, rows, columns, FEATURE_MAP: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Return P and d [A, B] of either hop; tokens and landmarks are (bias, shift), broadcast to [A, B].

    Keys carry their bias into the product's sum and landmarks the shift; of queries it is the other way round.
    """
    token_bias, token_shift = tokens
    bias, landmark_shift = landmarks
    if KEYS:
        return share_gradient(x, gain, token_bias, bias, landmark_shift, rows, columns, FEATURE_MAP, PRECISION)
    else:
        return share_gradient(x, gain, bias, token_bias, token_shift, rows, columns, FEATURE_MAP, PRECISION)


@triton.jit
def landmark_terms(
    log_normalizer, row_max, shifts, shift, plane, features, keep, KEYS: tl.constexpr, FEATURES: tl.constexpr
):  # fmt: skip
    """Return the bias [M] in the exponent and the shift A [M], which queries do not have."""
    if KEYS:
        bias = minus_row_max(row_max, plane, features, keep, FEATURES)
        return bias, load_block_vector(shifts, plane, FEATURES, features, keep, 0.0)
    else:
        bias = landmark_bias(log_normalizer, shift, plane, features, keep, FEATURES)
        return bias, bias


@triton.jit(do_not_specialize=["token_count"])
def _token_gradient_kernel(
    tokens, token_rows, mask, output, statistics, projection, landmark_rows, log_normalizer, row_max, shifts,
    d_tokens, d_token_rows, weighted_output,
    token_count, token_heads, group, gain, norm_gain, chain,
    KEYS: tl.constexpr, FEATURES: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    FEATURE_MAP: tl.constexpr, PAIRED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Own N tokens and loop over features: dq, or with KEYS dk and dv. Writes D_t = do_t . o_t for the next kernel."""
    ALL: tl.constexpr = FEATURES * (2 if PAIRED else 1)
    rows, exists, token_plane = tile_of(tl.program_id(0), token_count, BLOCK_N)
    token_head, batch = token_plane % token_heads, token_plane // token_heads
    head, plane = token_head // group, token_plane // group
    seen = seen_keys(mask, batch, rows, token_count) & exists
    raw = load_tile(tokens, batch, token_head, rows, seen, DIM, BLOCK_D)
    x = usable_tokens(raw, KEYS, FEATURE_MAP)  # [N, D]
    u = load_tile(token_rows, batch, token_head, rows, seen, VALUE_DIM, BLOCK_E).to(OPERAND)  # [N, E]
    if KEYS:
        token_bias = key_shift(raw, seen, norm_gain, FEATURE_MAP)
        token_shift = tl.zeros([BLOCK_N], tl.float32)
        inverse = token_shift + 1.0
        shift = 0.0
    else:
        o = load_tile(output, batch, token_head, rows, exists, VALUE_DIM, BLOCK_E)
        weighted = tl.sum(u.to(tl.float32) * o.to(tl.float32), 1)
        store_block_vector(weighted_output, token_plane, token_count, rows, exists, weighted)
        token_planes = tl.num_programs(0) // tl.cdiv(token_count, BLOCK_N)
        token_bias, inverse = query_terms(statistics, token_planes, token_plane, token_count, rows, exists)
        token_shift = -weighted
        shift = common_shift(log_normalizer, plane, ALL)
    own = (token_bias[:, None], token_shift[:, None])
    d_x = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    d_u = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    d_sum = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, FEATURES, BLOCK_M):
        features = start + tl.arange(0, BLOCK_M)
        keep = features < FEATURES
        w = load_tile(projection, batch, head, features, keep, DIM, BLOCK_D).to(x.dtype)  # [M, D]
        y = tl.dot(x, tl.trans(w), input_precision=PRECISION)  # [N, D] @ [D, M] -> [N, M]
        g = load_block(landmark_rows, plane, ALL, features, keep, VALUE_DIM, BLOCK_E).to(OPERAND)  # [M, E]
        bias, offset = landmark_terms(log_normalizer, row_max, shifts, shift, plane, features, keep, KEYS, ALL)
        landmarks = (bias[None, :], offset[None, :])
        weight, d_exponent = hop_gradient(y, gain, own, landmarks, u, g, FEATURE_MAP, KEYS, PRECISION)
        d_projected = feature_slope(d_exponent, y, gain, FEATURE_MAP)
        if KEYS:
            d_sum += tl.sum(d_exponent, 1)
            d_u = tl.dot(weight.to(OPERAND), g, d_u, input_precision=PRECISION)  # [N, M] @ [M, E]
        if PAIRED:
            others = FEATURES + features
            g = load_block(landmark_rows, plane, ALL, others, keep, VALUE_DIM, BLOCK_E).to(OPERAND)
            bias, offset = landmark_terms(log_normalizer, row_max, shifts, shift, plane, others, keep, KEYS, ALL)
            landmarks = (bias[None, :], offset[None, :])
            weight, d_exponent = hop_gradient(y, -gain, own, landmarks, u, g, FEATURE_MAP, KEYS, PRECISION)
            d_projected -= feature_slope(d_exponent, y, -gain, FEATURE_MAP)
            if KEYS:
                d_sum += tl.sum(d_exponent, 1)
                d_u = tl.dot(weight.to(OPERAND), g, d_u, input_precision=PRECISION)
        if KEYS:
            d_x = project_back(d_projected, w, d_x, OPERAND, PRECISION)  # [N, M] @ [M, D]
        else:
            d_x = tl.dot(d_projected.to(OPERAND), w.to(OPERAND), d_x, input_precision=PRECISION)
    d_x *= (chain * inverse)[:, None]
    if KEYS:
        if FEATURE_MAP == "exponential":
            k = cut_entries(load_tile(tokens, batch, token_head, rows, seen, DIM, BLOCK_D)).to(tl.float32)
            d_x -= chain * chain * d_sum[:, None] * k
        store_tile(d_token_rows, batch, token_head, rows, exists, d_u, VALUE_DIM, BLOCK_E)
    store_tile(d_tokens, batch, token_head, rows, exists, d_x, DIM, BLOCK_D)


@triton.jit(do_not_specialize=["planes", "query_count", "split_length", "splits"])
def _landmark_gradient_kernel(
    query, d_output, statistics, weighted_output, projection, log_normalizer,
    received, received_weighted, planes, query_count, split_length, splits, heads, group, gain,
    FEATURES: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, FEATURE_MAP: tl.constexpr,
    PAIRED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Own M features and a split of the query tiles of a key head: R_r and E_r, each split's behind the last one's."""
    tiles: tl.constexpr = (FEATURES + BLOCK_M - 1) // BLOCK_M
    index = tl.program_id(0)
    tile, index = index % tiles, index // tiles
    split, plane = index % splits, index // splits
    head, batch = plane % heads, plane // heads
    features = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    keep = features < FEATURES
    w = load_tile(projection, batch, head, features, keep, DIM, BLOCK_D).to(query.pointer.dtype.element_ty)  # [M, D]
    others = FEATURES + features
    ALL: tl.constexpr = FEATURES * (2 if PAIRED else 1)
    shift = common_shift(log_normalizer, plane, ALL)
    bias = landmark_bias(log_normalizer, shift, plane, features, keep, ALL)
    other_bias = landmark_bias(log_normalizer, shift, plane, others, keep & PAIRED, ALL)
    rows_sum = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    weighted_sum = tl.zeros([BLOCK_M], tl.float32)
    other_rows_sum, other_weighted_sum = rows_sum, weighted_sum
    head_tiles = tl.cdiv(query_count, BLOCK_N)
    last = tl.minimum((split + 1) * split_length, head_tiles * group)
    for position in range(split * split_length, last):
        query_head = head * group + position // head_tiles
        rows = position % head_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        exists = rows < query_count
        q = load_tile(query, batch, query_head, rows, exists, DIM, BLOCK_D)  # [N, D]
        do = load_tile(d_output, batch, query_head, rows, exists, VALUE_DIM, BLOCK_E).to(OPERAND)  # [N, E]
        query_plane = plane * group + position // head_tiles
        token_bias, inverse = query_terms(statistics, planes * group, query_plane, query_count, rows, exists)
        weighted = load_block_vector(weighted_output, query_plane, query_count, rows, exists, 0.0)
        x = tl.dot(w, tl.trans(q), input_precision=PRECISION)  # [M, D] @ [D, N] -> [M, N]
        weight = (share(x, gain, bias[:, None], token_bias[None, :], FEATURE_MAP) * inverse[None, :]).to(OPERAND)
        rows_sum = tl.dot(weight, do, rows_sum, input_precision=PRECISION)  # [M, N] @ [N, E]
        weighted_sum += tl.sum(weight.to(tl.float32) * weighted[None, :], 1)  # rounded alike: V . R - E cancels
        if PAIRED:
            weight = share(x, -gain, other_bias[:, None], token_bias[None, :], FEATURE_MAP) * inverse[None, :]
            weight = weight.to(OPERAND)
            other_rows_sum = tl.dot(weight, do, other_rows_sum, input_precision=PRECISION)
            other_weighted_sum += tl.sum(weight.to(tl.float32) * weighted[None, :], 1)
    place = split * planes + plane
    store_block(received, place, ALL, features, keep, rows_sum, VALUE_DIM, BLOCK_E)
    store_block_vector(received_weighted, place, ALL, features, keep, weighted_sum)
    if PAIRED:
        store_block(received, place, ALL, others, keep, other_rows_sum, VALUE_DIM, BLOCK_E)
        store_block_vector(received_weighted, place, ALL, others, keep, other_weighted_sum)


@triton.jit(do_not_specialize=["splits", "planes"])
def _reduce_gradient_kernel(
    received, received_weighted, d_log_normalizer, state_value, row_sum,
    d_state_value, d_log_result, landmark_rows, shifts, planes, splits,
    FEATURES: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sum the splits in order into dV and dL (or take dL as given), and write what hop 1 needs: G and A.

    Any of the results may be None: dV and dL are those of the state, G and A are operands of the key gradient.
    """
    tiles: tl.constexpr = (FEATURES + BLOCK_M - 1) // BLOCK_M
    index = tl.program_id(0)
    tile, plane = index % tiles, index // tiles
    features = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    keep = features < FEATURES
    rows_sum = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for split in range(splits):
        rows_sum += load_block(received, split * planes + plane, FEATURES, features, keep, VALUE_DIM, BLOCK_E)
    v = load_block(state_value, plane, FEATURES, features, keep, VALUE_DIM, BLOCK_E).to(tl.float32)
    if d_log_normalizer is not None:
        d_log = load_block_vector(d_log_normalizer, plane, FEATURES, features, keep, 0.0)
    else:
        d_log = tl.sum(rows_sum * v, 1)
        for split in range(splits):
            d_log -= load_block_vector(received_weighted, split * planes + plane, FEATURES, features, keep, 0.0)
    if d_state_value is not None:
        store_block(d_state_value, plane, FEATURES, features, keep, rows_sum, VALUE_DIM, BLOCK_E)
    if d_log_result is not None:
        store_block_vector(d_log_result, plane, FEATURES, features, keep, d_log)
    if landmark_rows is not None:
        total = load_block_vector(row_sum, plane, FEATURES, features, keep, 1.0)
        total = tl.where(total == 0, 1.0, total)
        rounded = (rows_sum / total[:, None]).to(landmark_rows.dtype.element_ty)
        store_block(landmark_rows, plane, FEATURES, features, keep, rounded, VALUE_DIM, BLOCK_E)
        shift = d_log / total - tl.sum(rounded.to(tl.float32) * v, 1)
        store_block_vector(shifts, plane, FEATURES, features, keep, shift)


@triton.jit(do_not_specialize=["planes", "token_count", "split_length", "splits"])
def _projection_gradient_kernel(
    tokens, token_rows, mask, statistics, weighted_output, projection, landmark_rows, log_normalizer, row_max, shifts,
    d_projection, planes, token_count, split_length, splits, heads, group,
    gain, norm_gain,
    KEYS: tl.constexpr, FEATURES: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    FEATURE_MAP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Own M features and a split of the token tiles of a key head: sum_n d_nr x_n, for learnt features."""
    tiles: tl.constexpr = (FEATURES + BLOCK_M - 1) // BLOCK_M
    index = tl.program_id(0)
    tile, index = index % tiles, index // tiles
    split, plane = index % splits, index // splits
    head, batch = plane % heads, plane // heads
    features = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    keep = features < FEATURES
    w = load_tile(projection, batch, head, features, keep, DIM, BLOCK_D).to(tokens.pointer.dtype.element_ty)  # [M, D]
    g = load_block(landmark_rows, plane, FEATURES, features, keep, VALUE_DIM, BLOCK_E).to(OPERAND)  # [M, E]
    shift = 0.0 if KEYS else common_shift(log_normalizer, plane, FEATURES)
    bias, offset = landmark_terms(log_normalizer, row_max, shifts, shift, plane, features, keep, KEYS, FEATURES)
    landmarks = (bias[:, None], offset[:, None])
    d_w = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    head_tiles = tl.cdiv(token_count, BLOCK_N)
    last = tl.minimum((split + 1) * split_length, head_tiles * group)
    for position in range(split * split_length, last):
        token_head = head * group + position // head_tiles
        rows = position % head_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        seen = seen_keys(mask, batch, rows, token_count)
        raw = load_tile(tokens, batch, token_head, rows, seen, DIM, BLOCK_D)
        x = usable_tokens(raw, KEYS, FEATURE_MAP)  # [N, D]
        u = load_tile(token_rows, batch, token_head, rows, seen, VALUE_DIM, BLOCK_E).to(OPERAND)  # [N, E]
        if KEYS:
            token_bias = key_shift(raw, seen, norm_gain, FEATURE_MAP)
            token_shift = tl.zeros([BLOCK_N], tl.float32)
            inverse = token_shift + 1.0
        else:
            token_plane = plane * group + position // head_tiles
            token_bias, inverse = query_terms(statistics, planes * group, token_plane, token_count, rows, seen)
            token_shift = -load_block_vector(weighted_output, token_plane, token_count, rows, seen, 0.0)
        y = tl.dot(w, tl.trans(x), input_precision=PRECISION)  # [M, D] @ [D, N] -> [M, N]
        own = (token_bias[None, :], token_shift[None, :])
        _, d_exponent = hop_gradient(y, gain, own, landmarks, g, u, FEATURE_MAP, KEYS, PRECISION)
        d_y = feature_slope(d_exponent * inverse[None, :], y, gain, FEATURE_MAP)
        d_w = project_back(d_y, x, d_w, OPERAND, PRECISION)  # [M, N] @ [N, D]
    store_block(d_projection, split * planes + plane, FEATURES, features, keep, d_w, DIM, BLOCK_D)
