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
    hop 1: dv_n = sum_r P_nr G_r                  dw_r = sum_n d_nr x_n            hop 1: dbias_n = sum_r d_nr

`_landmark_gradient_kernel` gathers R_r = sum_t P_tr do_t and E_r = sum_t P_tr (do_t . o_t) over queries, and
`_reduce_gradient_kernel` turns them into dV_r = R_r and dL_r = V_r . R_r - E_r, and those into G_r and A_r of hop 1.
A_r is taken from the rounded G_r, so that a constant v gets no gradient through the weights. Maximum and sum are kept
apart, and no exponent may exceed 0: a logarithm of the sum would round to a part of its own size, which is in the
thousands when norms are large.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .feature_maps import exponent_of, feature_slope
from .full_kernels import landmark_bias, largest_log_normalizer
from .tiles import (
    cut_entries,
    exponent_bias,
    load_block,
    load_block_vector,
    load_tile,
    project_back,
    seen_keys,
    store_block,
    store_block_vector,
    store_tile,
    store_vector,
    tile_of,
    usable_tokens,
)


@triton.jit
def softmax_weight(x, logit_scale, inner, outer, S: tl.constexpr):
    """Return P [A, B] before its division by a sum: at most 1, and finite even where w . x overflows.

    The biases are added in the forward's order, `inner` with the product and `outer` in place of its maximum.
    """
    exponent = exponent_of(x, logit_scale, inner, S) + outer
    return tl.exp2(tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def softmax_gradient(x, logit_scale, inner, outer, shift, rows, columns, S: tl.constexpr):
    """Return P [A, B] before its division, and d [A, B] of the module docstring with respect to ln phi."""
    weight = softmax_weight(x, logit_scale, inner, outer, S)
    d_weight = tl.dot(rows, tl.trans(columns), input_precision=S.PRECISION)  # [A, E] @ [E, B] -> [A, B]
    return weight, weight * (d_weight + shift)


@triton.jit
def query_terms(statistics, query_planes, query_plane, query_count, rows, exists):
    """Return -maximum, -inf for queries that are not there, and 1 / sum [N] of the softmax of queries."""
    inverse = load_block_vector(statistics, query_planes + query_plane, query_count, rows, exists, 0.0)
    return -load_block_vector(statistics, query_plane, query_count, rows, exists, float("inf")), inverse


@triton.jit
def minus_row_max(statistics, plane, features, keep, S: tl.constexpr):
    """Return -maximum [M] of the softmax of landmarks over keys, -inf for features that are not there."""
    return tl.where(keep, -load_block_vector(statistics, plane, S.ALL, features, keep, 0.0), float("-inf"))


@triton.jit
def hop_gradient(x, logit_scale, tokens, landmarks, rows, columns, KEYS: tl.constexpr, S: tl.constexpr):
    """Return P and d [A, B] of either hop; tokens and landmarks are (bias, shift), broadcast to [A, B].

    Keys carry their bias into the product's sum and landmarks the shift; of queries it is the other way round.
    """
    token_bias, token_shift = tokens
    bias, landmark_shift = landmarks
    if KEYS:
        return softmax_gradient(x, logit_scale, token_bias, bias, landmark_shift, rows, columns, S)
    else:
        return softmax_gradient(x, logit_scale, bias, token_bias, token_shift, rows, columns, S)


@triton.jit
def landmark_terms(
    log_normalizer, row_max, shifts, reference, plane, features, keep, KEYS: tl.constexpr, S: tl.constexpr
):
    """Return the bias [M] in the exponent and the shift A [M], which queries do not have."""
    if KEYS:
        bias = minus_row_max(row_max, plane, features, keep, S)
        return bias, load_block_vector(shifts, plane, S.ALL, features, keep, 0.0)
    else:
        bias = landmark_bias(log_normalizer, reference, plane, features, keep, S)
        return bias, bias


@triton.jit(do_not_specialize=["token_count"])
def _token_gradient_kernel(
    tokens, token_rows, mask, output, statistics, projection, log_normalizer, landmark_rows, row_max, shifts, d_tokens,
    d_token_rows, d_mask, delta, token_count, token_heads, group, logit_scale, norm_scale, chain, KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own N tokens and loop over features: dq, or with KEYS dk, dv and, of a key bias, its gradient `d_mask`.

    Writes D_t = do_t . o_t for the next kernel.
    """
    rows, exists, token_plane = tile_of(tl.program_id(0), token_count, BLOCK_N)
    token_head, batch = token_plane % token_heads, token_plane // token_heads
    head, plane = token_head // group, token_plane // group
    seen = seen_keys(mask, batch, token_head, rows, token_count) & exists
    raw = load_tile(tokens, batch, token_head, rows, seen, S.DIM, S.BLOCK_D)
    x = usable_tokens(raw, KEYS, S)  # [N, D]
    u = load_tile(token_rows, batch, token_head, rows, seen, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [N, E]
    if KEYS:
        token_bias = exponent_bias(raw, mask, batch, token_head, rows, seen, norm_scale, S)
        token_shift = tl.zeros([BLOCK_N], tl.float32)
        inverse = token_shift + 1.0
        reference = 0.0
    else:
        o = load_tile(output, batch, token_head, rows, exists, S.VALUE_DIM, S.BLOCK_E)
        weighted = tl.sum(u.to(tl.float32) * o.to(tl.float32), 1)
        store_block_vector(delta, token_plane, token_count, rows, exists, weighted)
        token_planes = tl.num_programs(0) // tl.cdiv(token_count, BLOCK_N)
        token_bias, inverse = query_terms(statistics, token_planes, token_plane, token_count, rows, exists)
        token_shift = -weighted
        reference = largest_log_normalizer(log_normalizer, plane, S)
    own = (token_bias[:, None], token_shift[:, None])
    d_x = tl.zeros([BLOCK_N, S.BLOCK_D], tl.float32)
    d_u = tl.zeros([BLOCK_N, S.BLOCK_E], tl.float32)
    d_sum = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, S.FEATURES, S.BLOCK_M):
        features = start + tl.arange(0, S.BLOCK_M)
        keep = features < S.FEATURES
        w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(x.dtype)  # [M, D]
        y = tl.dot(x, tl.trans(w), input_precision=S.PRECISION)  # [N, D] @ [D, M] -> [N, M]
        g = load_block(landmark_rows, plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [M, E]
        bias, offset = landmark_terms(log_normalizer, row_max, shifts, reference, plane, features, keep, KEYS, S)
        landmarks = (bias[None, :], offset[None, :])
        weight, d_exponent = hop_gradient(y, logit_scale, own, landmarks, u, g, KEYS, S)
        d_projected = feature_slope(d_exponent, y, logit_scale, S)
        if KEYS:
            d_sum += tl.sum(d_exponent, 1)
            d_u = tl.dot(weight.to(S.OPERAND), g, d_u, input_precision=S.PRECISION)  # [N, M] @ [M, E]
        if S.ANTITHETIC:
            others = features + S.FEATURES
            g = load_block(landmark_rows, plane, S.ALL, others, keep, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)
            bias, offset = landmark_terms(log_normalizer, row_max, shifts, reference, plane, others, keep, KEYS, S)
            landmarks = (bias[None, :], offset[None, :])
            weight, d_exponent = hop_gradient(y, -logit_scale, own, landmarks, u, g, KEYS, S)
            d_projected -= feature_slope(d_exponent, y, -logit_scale, S)
            if KEYS:
                d_sum += tl.sum(d_exponent, 1)
                d_u = tl.dot(weight.to(S.OPERAND), g, d_u, input_precision=S.PRECISION)
        if KEYS:
            d_x = project_back(d_projected, w, d_x, S)  # [N, M] @ [M, D]
        else:
            d_x = tl.dot(d_projected.to(S.OPERAND), w.to(S.OPERAND), d_x, input_precision=S.PRECISION)
    d_x *= (chain * inverse)[:, None]
    if KEYS:
        if S.HAS_NORM:
            k = cut_entries(load_tile(tokens, batch, token_head, rows, seen, S.DIM, S.BLOCK_D)).to(tl.float32)
            d_x -= chain * chain * d_sum[:, None] * k
        if d_mask is not None:
            store_vector(d_mask, batch, token_head, rows, exists, d_sum)
        store_tile(d_token_rows, batch, token_head, rows, exists, d_u, S.VALUE_DIM, S.BLOCK_E)
    store_tile(d_tokens, batch, token_head, rows, exists, d_x, S.DIM, S.BLOCK_D)


@triton.jit(do_not_specialize=["batch_heads", "query_count", "split_length", "splits"])
def _landmark_gradient_kernel(
    query, d_output, statistics, delta, projection, log_normalizer, received_weighted, received, batch_heads,
    query_count, split_length, splits, heads, group, logit_scale, BLOCK_N: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own M features and a split of the query tiles of a key head: R_r and E_r, each split's behind the last one's."""
    index = tl.program_id(0)
    tile, index = index % S.TILES, index // S.TILES
    split, plane = index % splits, index // splits
    head, batch = plane % heads, plane // heads
    features = tile * S.BLOCK_M + tl.arange(0, S.BLOCK_M)
    keep = features < S.FEATURES
    w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(
        query.pointer.dtype.element_ty
    )  # [M, D]
    others = features + S.FEATURES
    reference = largest_log_normalizer(log_normalizer, plane, S)
    bias = landmark_bias(log_normalizer, reference, plane, features, keep, S)
    neg_bias = landmark_bias(log_normalizer, reference, plane, others, keep & S.ANTITHETIC, S)
    rows_sum = tl.zeros([S.BLOCK_M, S.BLOCK_E], tl.float32)
    weighted_sum = tl.zeros([S.BLOCK_M], tl.float32)
    neg_rows_sum, neg_weighted_sum = rows_sum, weighted_sum
    head_tiles = tl.cdiv(query_count, BLOCK_N)
    last = tl.minimum((split + 1) * split_length, head_tiles * group)
    for position in range(split * split_length, last):
        query_head = head * group + position // head_tiles
        rows = position % head_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        exists = rows < query_count
        q = load_tile(query, batch, query_head, rows, exists, S.DIM, S.BLOCK_D)  # [N, D]
        do = load_tile(d_output, batch, query_head, rows, exists, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [N, E]
        query_plane = plane * group + position // head_tiles
        token_bias, inverse = query_terms(statistics, batch_heads * group, query_plane, query_count, rows, exists)
        weighted = load_block_vector(delta, query_plane, query_count, rows, exists, 0.0)
        x = tl.dot(w, tl.trans(q), input_precision=S.PRECISION)  # [M, D] @ [D, N] -> [M, N]
        weight = (softmax_weight(x, logit_scale, bias[:, None], token_bias[None, :], S) * inverse[None, :]).to(
            S.OPERAND
        )
        rows_sum = tl.dot(weight, do, rows_sum, input_precision=S.PRECISION)  # [M, N] @ [N, E]
        weighted_sum += tl.sum(weight.to(tl.float32) * weighted[None, :], 1)  # rounded alike: V . R - E cancels
        if S.ANTITHETIC:
            weight = softmax_weight(x, -logit_scale, neg_bias[:, None], token_bias[None, :], S) * inverse[None, :]
            weight = weight.to(S.OPERAND)
            neg_rows_sum = tl.dot(weight, do, neg_rows_sum, input_precision=S.PRECISION)
            neg_weighted_sum += tl.sum(weight.to(tl.float32) * weighted[None, :], 1)
    state_index = split * batch_heads + plane
    store_block(received, state_index, S.ALL, features, keep, rows_sum, S.VALUE_DIM, S.BLOCK_E)
    store_block_vector(received_weighted, state_index, S.ALL, features, keep, weighted_sum)
    if S.ANTITHETIC:
        store_block(received, state_index, S.ALL, others, keep, neg_rows_sum, S.VALUE_DIM, S.BLOCK_E)
        store_block_vector(received_weighted, state_index, S.ALL, others, keep, neg_weighted_sum)


@triton.jit(do_not_specialize=["splits", "batch_heads"])
def _reduce_gradient_kernel(
    received_weighted, received, state_value, statistics, d_log_normalizer, d_state_value, shifts, landmark_rows,
    batch_heads, splits, IS_REDUCED: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Sum the splits in order into dL and dV (unless they are dL and dV), and write what hop 1 needs: A and G.

    Any of the results may be None: dL and dV are those of the state, A and G are operands of the key gradient.
    """
    index = tl.program_id(0)
    tile, plane = index % S.TILES, index // S.TILES
    features = tile * S.BLOCK_M + tl.arange(0, S.BLOCK_M)
    keep = features < S.ALL
    rows_sum = tl.zeros([S.BLOCK_M, S.BLOCK_E], tl.float32)
    for split in range(splits):
        rows_sum += load_block(received, split * batch_heads + plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)
    v = load_block(state_value, plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E).to(tl.float32)
    if IS_REDUCED:
        d_log = load_block_vector(received_weighted, plane, S.ALL, features, keep, 0.0)
    else:
        d_log = tl.sum(rows_sum * v, 1)
        for split in range(splits):
            d_log -= load_block_vector(received_weighted, split * batch_heads + plane, S.ALL, features, keep, 0.0)
    if d_state_value is not None:
        store_block(d_state_value, plane, S.ALL, features, keep, rows_sum, S.VALUE_DIM, S.BLOCK_E)
    if d_log_normalizer is not None:
        store_block_vector(d_log_normalizer, plane, S.ALL, features, keep, d_log)
    if landmark_rows is not None:
        z = load_block_vector(statistics, batch_heads + plane, S.ALL, features, keep, 1.0)
        z = tl.where(z == 0, 1.0, z)
        rounded = (rows_sum / z[:, None]).to(landmark_rows.dtype.element_ty)
        store_block(landmark_rows, plane, S.ALL, features, keep, rounded, S.VALUE_DIM, S.BLOCK_E)
        shift = d_log / z - tl.sum(rounded.to(tl.float32) * v, 1)
        store_block_vector(shifts, plane, S.ALL, features, keep, shift)


@triton.jit(do_not_specialize=["batch_heads", "token_count", "split_length", "splits"])
def _projection_gradient_kernel(
    tokens, token_rows, mask, statistics, delta, projection, log_normalizer, landmark_rows, row_max, shifts,
    d_projection, batch_heads, token_count, split_length, splits, heads, group, logit_scale, norm_scale,
    KEYS: tl.constexpr, BLOCK_N: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own M features and a split of the token tiles of a key head: sum_n d_nr x_n, for learnt features."""
    index = tl.program_id(0)
    tile, index = index % S.TILES, index // S.TILES
    split, plane = index % splits, index // splits
    head, batch = plane % heads, plane // heads
    features = tile * S.BLOCK_M + tl.arange(0, S.BLOCK_M)
    keep = features < S.FEATURES
    w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(
        tokens.pointer.dtype.element_ty
    )  # [M, D]
    g = load_block(landmark_rows, plane, S.FEATURES, features, keep, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [M, E]
    reference = 0.0 if KEYS else largest_log_normalizer(log_normalizer, plane, S)
    bias, offset = landmark_terms(log_normalizer, row_max, shifts, reference, plane, features, keep, KEYS, S)
    landmarks = (bias[:, None], offset[:, None])
    d_w = tl.zeros([S.BLOCK_M, S.BLOCK_D], tl.float32)
    head_tiles = tl.cdiv(token_count, BLOCK_N)
    last = tl.minimum((split + 1) * split_length, head_tiles * group)
    for position in range(split * split_length, last):
        token_head = head * group + position // head_tiles
        rows = position % head_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        seen = seen_keys(mask, batch, token_head, rows, token_count)
        raw = load_tile(tokens, batch, token_head, rows, seen, S.DIM, S.BLOCK_D)
        x = usable_tokens(raw, KEYS, S)  # [N, D]
        u = load_tile(token_rows, batch, token_head, rows, seen, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [N, E]
        if KEYS:
            token_bias = exponent_bias(raw, mask, batch, token_head, rows, seen, norm_scale, S)
            token_shift = tl.zeros([BLOCK_N], tl.float32)
            inverse = token_shift + 1.0
        else:
            token_plane = plane * group + position // head_tiles
            token_bias, inverse = query_terms(statistics, batch_heads * group, token_plane, token_count, rows, seen)
            token_shift = -load_block_vector(delta, token_plane, token_count, rows, seen, 0.0)
        y = tl.dot(w, tl.trans(x), input_precision=S.PRECISION)  # [M, D] @ [D, N] -> [M, N]
        own = (token_bias[None, :], token_shift[None, :])
        _, d_exponent = hop_gradient(y, logit_scale, own, landmarks, g, u, KEYS, S)
        d_y = feature_slope(d_exponent * inverse[None, :], y, logit_scale, S)
        d_w = project_back(d_y, x, d_w, S)  # [M, N] @ [N, D]
    store_block(d_projection, split * batch_heads + plane, S.FEATURES, features, keep, d_w, S.DIM, S.BLOCK_D)
