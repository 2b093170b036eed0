"""GPU kernels of causal FAVOR attention, backward: the queries' gradients, a walk back over them, the keys' gradients.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features;
tiles [C] tokens of a segment (queries or keys), [N] queries of the walk, [M] features, [D] and [E] padded dims.

    kernel                         one program owns                    loops over              keeps in registers
    _causal_query_gradient_kernel  C queries of one segment            feature tiles           dq [C, D]
    _received_walk_kernel          M features, a split of the segments query tiles, backwards  R [M, E], A [M]
    _causal_key_gradient_kernel    C keys of one segment               query heads, features   dk, dv, T [C, C]

In the notation of `favor_causal_kernels.py`, with alpha_ir = exp2(a_ir + M_r - x_i) / den_i, D_i = do_i . o_i and
G_ij = do_i . v_j - D_i where step(j) <= step(i), else 0 (both sums over j, i go over the own segment):

    da_ir = alpha_ir (z_r (do_i . V_r - D_i) + sum_j G_ij phi_jr)                           dq_i = sum_r da_ir w_r
    R_r = sum_{i of later segments} alpha_ir do_i      A_r = - sum_{i of later segments} alpha_ir D_i
    de_jr = phi_jr (v_j . R_r + A_r + sum_i G_ij alpha_ir)      dv_j = sum_r phi_jr R_r + sum_i (alpha phi^T)_ij do_i
    dk_j = sum_r de_jr (w_r - k_j)

alpha_ir is in units of 2^M_r and phi_jr in units of 2^-M_r, so any anchor will do. R and A are walked from the last
segment to the first, always relative to the anchors of the segment they are gathered from: going back, those fall, and
no factor exceeds 1. Behind a segment, they are relative to the anchors there, which none of its keys exceeds. The
gradient of the state of all keys opens the walk as R = dV, A = dL - V . dV, relative to its L; that of the initial
state is what arrives at the front. What rounding takes from a stored R, A gives back for a typical v: equal values have
no gradient through the weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .causal_kernels import (
    key_features,
    load_segment,
    next_part,
    query_logits,
    segment_jumps,
    segment_of,
    visible_pairs,
)
from .feature_maps import exponent_of, feature_slope
from .full_kernels import relative_maximum
from .tiles import (
    LOG2_E,
    NO_MAX,
    cut_entries,
    exponent_bias,
    keep_if,
    load_block,
    load_block_vector,
    load_tile,
    load_vector,
    project_back,
    rounded_away,
    seen_keys,
    store_block,
    store_block_vector,
    store_tile,
    store_vector,
    usable_tokens,
)


@triton.jit
def softmax_terms(statistics, plane, token_count, rows, exists):
    """Return x and 1 / den [N] of queries; x is inf for those that are not there."""
    query_max, inverse_sum = statistics
    inverse = load_block_vector(inverse_sum, plane, token_count, rows, exists, 0.0)
    return load_block_vector(query_max, plane, token_count, rows, exists, float("inf")), inverse


@triton.jit
def attention_weight(logits, reference, inverse):
    """Return alpha = exp2(a + M - x) / den of tensors that broadcast.

    An anchor found again may be one above the forward's, where a sum rounds to the other side of a power of two; phi
    then is half. The bound is there for products that overflow.
    """
    return tl.exp2(tl.minimum(logits - reference, 8.0, propagate_nan=tl.PropagateNan.ALL)) * inverse


@triton.jit
def pair_gradient(do, values, weighted, local, tokens_per_step, S: tl.constexpr):
    """Return G [C, C] = do_i . v_j - D_i where key j is visible to row i, else 0."""
    pairs = tl.dot(do, tl.trans(values), input_precision=S.PRECISION) - weighted[:, None]  # [C, E] @ [E, C]
    return tl.where(visible_pairs(local, tokens_per_step), pairs, 0.0).to(do.dtype)


@triton.jit
def query_gradient_features(
    of_queries, of_keys, logit_scale, key_bias, do, pairs, weighted, terms, log_weight, states, source,
    landmark_index, head, features, keep, S: tl.constexpr,
):  # fmt: skip
    """Return da [C, M] of the rows of a part."""
    reference, inverse = terms
    logits, anchor = query_logits(of_queries, logit_scale, log_weight, states, source, head, features, keep, S)
    z = load_block_vector(states[1], source, S.ALL, features, keep, 0.0)
    landmarks = load_block(states[2], landmark_index, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)  # [M, E]
    d_weight = tl.dot(do, tl.trans(landmarks), input_precision=S.PRECISION)  # [C, E] @ [E, M]
    d_weight = (d_weight - weighted[:, None]) * z[None, :]
    if S.WITHIN:
        phi = key_features(of_keys, logit_scale, key_bias, anchor, S).to(S.OPERAND)
        d_weight = tl.dot(pairs, phi, d_weight, input_precision=S.PRECISION)  # [C, C] @ [C, M]
    return attention_weight(logits, reference[:, None], inverse[:, None]) * d_weight


@triton.jit
def query_gradient_part(
    q, k, key_bias, do, pairs, weighted, terms, d_q, projection, log_weight, states, source, landmark_index, parameters,
    parameter_index, batch, head, logit_scale, S: tl.constexpr,
):  # fmt: skip
    """Add what all features send to the queries of a part to dq [C, D]."""
    for tile in range(0, S.FEATURES, S.BLOCK_M):
        features = tile + tl.arange(0, S.BLOCK_M)
        keep = features < S.FEATURES
        w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D)  # [M, D]
        of_queries = tl.dot(q, tl.trans(w.to(q.dtype)), input_precision=S.PRECISION)  # [C, D] @ [D, M]
        of_keys = of_queries
        if S.WITHIN:
            of_keys = tl.dot(k, tl.trans(w.to(k.dtype)), input_precision=S.PRECISION)
        d_logits = query_gradient_features(
            of_queries, of_keys, logit_scale, key_bias, do, pairs, weighted, terms, log_weight, states, source,
            landmark_index, head, features, keep, S,
        )  # fmt: skip
        d_projected = feature_slope(d_logits, of_queries, logit_scale, S)
        if S.ANTITHETIC:
            d_logits = query_gradient_features(
                of_queries, of_keys, -logit_scale, key_bias, do, pairs, weighted, terms, log_weight, states, source,
                landmark_index, head, features + S.FEATURES, keep, S,
            )  # fmt: skip
            d_projected -= feature_slope(d_logits, of_queries, -logit_scale, S)
        d_q = tl.dot(d_projected.to(S.OPERAND), w.to(S.OPERAND), d_q, input_precision=S.PRECISION)  # [C, M] @ [M, D]
        if parameters is not None:
            add_parameters(parameters, d_projected, d_logits, q, parameter_index, features, keep, S)
    return d_q


@triton.jit
def add_parameters(parameters, d_projected, d_exponent, tokens, state_index, features, keep, S: tl.constexpr):
    """Add sum_n d_nr x_n [M, D], and of queries sum_n d_nr [M], to what the program's earlier parts have left."""
    d_projection, d_log_weight = parameters
    so_far = tl.trans(load_block(d_projection, state_index, S.FEATURES, features, keep, S.DIM, S.BLOCK_D))
    tokens = tl.trans(tokens.to(S.OPERAND))  # and not the product: see G^T below
    high = d_projected.to(S.OPERAND)
    so_far = tl.dot(tokens, high, so_far, input_precision=S.PRECISION)  # [D, C] @ [C, M]
    if tl.bfloat16 == S.OPERAND:  # as `project_back`
        so_far = tl.dot(tokens, rounded_away(d_projected, high), so_far, input_precision=S.PRECISION)
    tl.debug_barrier()  # all threads have loaded what is overwritten
    store_block(d_projection, state_index, S.FEATURES, features, keep, tl.trans(so_far), S.DIM, S.BLOCK_D)
    if d_log_weight is not None:
        sums = load_block_vector(d_log_weight, state_index, S.FEATURES, features, keep, 0.0) + tl.sum(d_exponent, 0)
        tl.debug_barrier()
        store_block_vector(d_log_weight, state_index, S.FEATURES, features, keep, sums)


@triton.jit(do_not_specialize=["token_count", "segment_length", "segments", "tokens_per_step", "batch_heads"])
def _causal_query_gradient_kernel(
    query, key, value, mask, projection, log_weight, states, jumps, output, d_output, statistics, delta,
    d_query, parameters, token_count, segment_length, segments, tokens_per_step, query_heads, group, batch_heads,
    logit_scale, norm_scale, chain, BLOCK_C: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own C queries of a segment of one query head: dq, and D_i = do_i . o_i for the kernels that follow.

    `parameters`, of learnt features, are zeros for sum_i da_ir q_i and sum_i da_ir of each program.
    """
    rows, end, local, segment, batch, query_head, query_plane = segment_of(
        tl.program_id(0), segment_length, token_count, query_heads, batch_heads, BLOCK_C, S
    )
    head, key_planes = query_head // group, batch_heads // group
    plane = batch * (query_heads // group) + head
    exists = rows < end
    do = load_tile(d_output, batch, query_head, rows, exists, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [C, E]
    o = load_tile(output, batch, query_head, rows, exists, S.VALUE_DIM, S.BLOCK_E)
    weighted = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    store_block_vector(delta, query_plane, token_count, rows, exists, weighted)
    row_max, inverse = softmax_terms(statistics, query_plane, token_count, rows, exists)
    d_q = tl.zeros([BLOCK_C, S.BLOCK_D], tl.float32)
    parameter_index = tl.program_id(0)
    if S.WITHIN:
        k, bias, v, q = load_segment(query, key, value, mask, batch, head, query_head, rows, end, norm_scale, S)
        pairs = pair_gradient(do, v, weighted, local, tokens_per_step, S)
        own = segment * key_planes + plane
        spare = (segments + 1) * key_planes + segment * batch_heads + query_plane
        jumped = segment_jumps(jumps, own, S)
        source = tl.where(jumped, spare, own)
        filled = end - segment * segment_length
        low = 0
        while low < filled:
            part_end = filled
            if jumped:
                part_end = next_part(
                    k, bias, projection, batch, head, own, spare, low, filled, local, tokens_per_step, states,
                    logit_scale, S,
                )  # fmt: skip
            terms = (tl.where((local >= low) & (local < part_end), row_max, float("inf")), inverse)
            d_q = query_gradient_part(
                q, k, tl.where(local < part_end, bias, float("-inf")), do, pairs, weighted, terms, d_q, projection,
                log_weight, states, source, own, parameters, parameter_index, batch, head, logit_scale, S,
            )  # fmt: skip
            low = part_end
    else:
        q = cut_entries(load_tile(query, batch, query_head, rows, exists, S.DIM, S.BLOCK_D))
        own = (segment + 1) * key_planes + plane
        d_q = query_gradient_part(
            q, q, weighted, do, do, weighted, (row_max, inverse), d_q, projection, log_weight, states, own, own,
            parameters, parameter_index, batch, head, logit_scale, S,
        )  # fmt: skip
    store_tile(d_query, batch, query_head, rows, exists, d_q * chain, S.DIM, S.BLOCK_D)


@triton.jit
def initial_received(
    final, d_final, parts, log_weight, states, split, splits, segments, plane, batch_heads, head, features, keep,
    S: tl.constexpr,
):  # fmt: skip
    """Return anchors, A [M] and R [M, E] of what later splits, and the gradient of the state of all keys, ask."""
    acc = tl.zeros([S.BLOCK_M, S.BLOCK_E], tl.float32)
    shift = tl.zeros([S.BLOCK_M], tl.float32)
    anchor = load_block_vector(states[0], segments * batch_heads + plane, S.ALL, features, keep, NO_MAX)
    if d_final is not None:
        final_log_normalizer, final_value = final
        d_log_normalizer, d_value = d_final
        logarithm = load_block_vector(final_log_normalizer, plane, S.ALL, features, keep, float("-inf"))
        row_max = relative_maximum(logarithm, log_weight, head, features, keep)
        factor = tl.where(logarithm != float("-inf"), tl.exp2(tl.where(row_max > NO_MAX, anchor - row_max, 0.0)), 0.0)
        acc = load_block(d_value, plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)
        v = load_block(final_value, plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)
        shift = load_block_vector(d_log_normalizer, plane, S.ALL, features, keep, 0.0) - tl.sum(acc * v, 1)
        acc, shift = acc * factor[:, None], shift * factor
    if parts is not None:
        part_anchors, part_shifts, part_rows = parts
        for back in range(splits - 1 - split):
            state_index = (splits - 1 - back) * batch_heads + plane
            lower = load_block_vector(part_anchors, state_index, S.ALL, features, keep, NO_MAX)
            fall = tl.exp2(tl.minimum(lower - anchor, 0.0))
            anchor = lower
            block = load_block(part_rows, state_index, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)
            acc = acc * fall[:, None] + block
            shift = shift * fall + load_block_vector(part_shifts, state_index, S.ALL, features, keep, 0.0)
    return anchor, shift, acc


@triton.jit
def store_received(received, values, state, state_index, first, features, keep, S: tl.constexpr):
    """Write R, and A with what rounding R has taken from R . v of a typical v: V of the tile's first feature."""
    shifts, rows = received
    shift, acc = state
    rounded = acc.to(rows.dtype.element_ty)
    one = tl.arange(0, 1)
    typical = load_block(values, state_index, S.ALL, first + one, one == 0, S.VALUE_DIM, S.BLOCK_E).to(
        tl.float32
    )  # [1, E]
    store_block(rows, state_index, S.ALL, features, keep, rounded, S.VALUE_DIM, S.BLOCK_E)
    lost = tl.sum((acc - rounded.to(tl.float32)) * typical, 1)
    store_block_vector(shifts, state_index, S.ALL, features, keep, shift + lost)


@triton.jit
def add_queries(x, logit_scale, anchor, bias, reference, inverse, weighted, do, shift, acc, S: tl.constexpr):
    """Add queries with products x [M, N] to A [M] and R [M, E]."""
    logits = exponent_of(x, logit_scale, (anchor + bias)[:, None], S)
    alpha = attention_weight(logits, reference[None, :], inverse[None, :]).to(S.OPERAND)  # [M, N]
    acc = tl.dot(alpha, do, acc, input_precision=S.PRECISION)  # [M, N] @ [N, E]
    shift -= tl.sum(alpha.to(tl.float32) * weighted[None, :], 1)  # rounded alike: v . R + A cancels
    return shift, acc


@triton.jit
def lower_received(state, states, state_index, features, keep, S: tl.constexpr):
    """Return anchors, A and R, relative to those of the segment before."""
    anchor, shift, acc = state
    lower = load_block_vector(states[0], state_index, S.ALL, features, keep, 0.0)
    fall = tl.exp2(tl.minimum(lower - anchor, 0.0))
    return lower, shift * fall, acc * fall[:, None]


@triton.jit
def close_received(initial, d_initial, log_weight, state, plane, head, features, keep, S: tl.constexpr):
    """Write the gradient (dL, dV) of the initial state."""
    log_normalizer, value = initial
    d_log_normalizer, d_value = d_initial
    anchor, shift, acc = state
    logarithm = load_block_vector(log_normalizer, plane, S.ALL, features, keep, float("-inf"))
    row_max = relative_maximum(logarithm, log_weight, head, features, keep)
    weight = tl.where(row_max > NO_MAX, tl.exp2(tl.minimum(row_max - anchor, 0.0)), 0.0)
    v = tl.where((weight > 0)[:, None], load_block(value, plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E), 0.0)
    d_log = weight * (tl.sum(acc * v, 1) + shift)
    store_block(d_value, plane, S.ALL, features, keep, acc * weight[:, None], S.VALUE_DIM, S.BLOCK_E)
    store_block_vector(d_log_normalizer, plane, S.ALL, features, keep, d_log)


@triton.jit
def store_received_part(parts, state, state_index, features, keep, S: tl.constexpr):
    """Write what a split has gathered."""
    part_anchors, part_shifts, part_rows = parts
    anchor, shift, acc = state
    store_block(part_rows, state_index, S.ALL, features, keep, acc, S.VALUE_DIM, S.BLOCK_E)
    store_block_vector(part_shifts, state_index, S.ALL, features, keep, shift)
    store_block_vector(part_anchors, state_index, S.ALL, features, keep, anchor)


@triton.jit(do_not_specialize=["token_count", "segment_length", "segments", "split_segments", "splits", "batch_heads"])
def _received_walk_kernel(
    query, d_output, projection, log_weight, statistics, delta, states, parts, received, initial, d_initial,
    final, d_final, token_count, segment_length, segments, split_segments, splits, heads, group, batch_heads,
    logit_scale, BLOCK_N: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own a feature tile and a split of the segments of one key head: R and A behind each segment.

    Without `received`, it only gathers its split into `parts`, from which a second launch goes on.
    """
    AHEAD: tl.constexpr = 0 if S.WITHIN else 1  # the queries of long steps read the state behind their own
    index = tl.program_id(0)
    tile, index = index % S.TILES, index // S.TILES
    walked = splits
    if received is None:
        walked -= 1  # nobody goes on from the first split
    split, plane = index % walked + splits - walked, index // walked
    head, batch = plane % heads, plane // heads
    features = tile * S.BLOCK_M + tl.arange(0, S.BLOCK_M)
    keep, others = features < S.FEATURES, features + S.FEATURES
    w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(
        query.pointer.dtype.element_ty
    )  # [M, D]
    bias = tl.where(keep, 0.0, float("-inf"))
    neg_bias = bias
    if log_weight is not None:
        bias += load_vector(log_weight, head * 0, head, features, keep, 0.0) * LOG2_E
        neg_bias += load_vector(log_weight, head * 0, head, others, keep & S.ANTITHETIC, 0.0) * LOG2_E
    if received is None:
        anchor, shift, acc = initial_received(
            final, None, None, log_weight, states, split, splits, segments, plane, batch_heads, head, features, keep, S
        )
        neg_anchor, neg_shift, neg_acc = anchor, shift, acc
    else:
        anchor, shift, acc = initial_received(
            final, d_final, parts, log_weight, states, split, splits, segments, plane, batch_heads, head, features,
            keep, S,
        )  # fmt: skip
        neg_anchor, neg_shift, neg_acc = anchor, shift, acc
        if S.ANTITHETIC:
            neg_anchor, neg_shift, neg_acc = initial_received(
                final, d_final, parts, log_weight, states, split, splits, segments, plane, batch_heads, head, others,
                keep, S,
            )  # fmt: skip
    tiles = tl.cdiv(segment_length, BLOCK_N)
    first = split * split_segments
    last = tl.minimum(first + split_segments, segments)
    visits = tiles * group
    for position in range(0, (last - first) * visits):
        segment, visit = last - 1 - position // visits, position % visits
        if visit == 0:
            if received is not None:
                state_index = (segment + 1 + AHEAD) * batch_heads + plane
                due = keep if S.WITHIN else keep_if(position > 0, keep)
                store_received(received, states[2], (shift, acc), state_index, tile * S.BLOCK_M, features, due, S)
                if S.ANTITHETIC:
                    store_received(
                        received, states[2], (neg_shift, neg_acc), state_index, tile * S.BLOCK_M + S.FEATURES, others,
                        due, S,
                    )  # fmt: skip
            state_index = (segment + AHEAD) * batch_heads + plane
            anchor, shift, acc = lower_received((anchor, shift, acc), states, state_index, features, keep, S)
            if S.ANTITHETIC:
                neg_anchor, neg_shift, neg_acc = lower_received(
                    (neg_anchor, neg_shift, neg_acc), states, state_index, others, keep, S
                )
        query_head = head * group + visit // tiles
        query_plane = plane * group + visit // tiles
        start = segment * segment_length
        rows = start + visit % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
        exists = rows < tl.minimum(start + segment_length, token_count)
        q = cut_entries(load_tile(query, batch, query_head, rows, exists, S.DIM, S.BLOCK_D))  # [N, D]
        do = load_tile(d_output, batch, query_head, rows, exists, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [N, E]
        reference, inverse = softmax_terms(statistics, query_plane, token_count, rows, exists)
        weighted = load_block_vector(delta, query_plane, token_count, rows, exists, 0.0)
        x = tl.dot(w, tl.trans(q), input_precision=S.PRECISION)  # [M, D] @ [D, N]
        shift, acc = add_queries(x, logit_scale, anchor, bias, reference, inverse, weighted, do, shift, acc, S)
        if S.ANTITHETIC:
            neg_shift, neg_acc = add_queries(
                x, -logit_scale, neg_anchor, neg_bias, reference, inverse, weighted, do, neg_shift, neg_acc, S
            )
    state, neg_state = (anchor, shift, acc), (neg_anchor, neg_shift, neg_acc)
    if received is None:
        state_index = split * batch_heads + plane
        store_received_part(parts, state, state_index, features, keep, S)
        if S.ANTITHETIC:
            store_received_part(parts, neg_state, state_index, others, keep, S)
    else:
        if not S.WITHIN:
            state_index = (first + 1) * batch_heads + plane
            due = keep_if(last > first, keep)
            store_received(received, states[2], (shift, acc), state_index, tile * S.BLOCK_M, features, due, S)
            if S.ANTITHETIC:
                store_received(
                    received, states[2], (neg_shift, neg_acc), state_index, tile * S.BLOCK_M + S.FEATURES, others, due,
                    S,
                )  # fmt: skip
        if d_initial is not None:
            is_first = keep_if(split == 0, keep)
            close_received(initial, d_initial, log_weight, state, plane, head, features, is_first, S)
            if S.ANTITHETIC:
                close_received(initial, d_initial, log_weight, neg_state, plane, head, others, is_first, S)


@triton.jit
def key_gradient_features(
    of_keys, of_queries, logit_scale, key_bias, values, do, pairs, terms, d_values, scores, log_weight, states, source,
    received, state_index, takes, head, features, keep, D_KEY: tl.constexpr, D_VALUE: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Return de [C, M] of the keys of a part, with dv [C, E] and T^T [C, C] added to; A and R are at `state_index`."""
    later_anchor = load_block_vector(states[0], state_index, S.ALL, features, keep, 0.0)
    received_rows = load_block(
        received[1], state_index, S.ALL, features, keep & takes, S.VALUE_DIM, S.BLOCK_E
    )  # [M, E]
    anchor = later_anchor
    if D_KEY:
        shift = load_block_vector(received[0], state_index, S.ALL, features, keep & takes, 0.0)
        d_weight = (
            tl.dot(values, tl.trans(received_rows), input_precision=S.PRECISION) + shift[None, :]
        )  # [C, E] @ [E, M]
    if S.WITHIN:
        reference, inverse = terms
        logits, anchor = query_logits(of_queries, logit_scale, log_weight, states, source, head, features, keep, S)
        alpha = attention_weight(logits, reference[:, None], inverse[:, None]).to(S.OPERAND)  # [C, M]
    fall = tl.exp2(tl.minimum(anchor - later_anchor, 1.0))  # R is relative to the anchors behind the segment
    phi = tl.where(keep[None, :], key_features(of_keys, logit_scale, key_bias, anchor, S), 0.0)  # [C, M]
    d_exponent = phi
    if D_KEY:
        d_weight *= fall[None, :]
        if S.WITHIN:
            d_weight = tl.dot(pairs, alpha, d_weight, input_precision=S.PRECISION)  # [C, C] @ [C, M]
        d_exponent = phi * d_weight
    if D_VALUE:
        d_values = tl.dot((phi * fall[None, :]).to(S.OPERAND), received_rows, d_values, input_precision=S.PRECISION)
        if S.WITHIN:
            scores = tl.dot(phi.to(S.OPERAND), tl.trans(alpha), scores, input_precision=S.PRECISION)  # [C, M] @ [M, C]
    return d_exponent, d_values, scores


@triton.jit
def key_gradient_part(
    k, q, key_bias, values, do, pairs, terms, d_k, d_v, d_sum, scores, projection, log_weight, states, source, received,
    state_index, takes, d_projection, batch, head, logit_scale, D_KEY: tl.constexpr, D_VALUE: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """Add what all features send to the keys of a part to dk [C, D], sum_r de_jr [C], dv [C, E] and T^T [C, C]."""
    for tile in range(0, S.FEATURES, S.BLOCK_M):
        features = tile + tl.arange(0, S.BLOCK_M)
        keep = features < S.FEATURES
        w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D)  # [M, D]
        of_keys = tl.dot(k, tl.trans(w.to(k.dtype)), input_precision=S.PRECISION)  # [C, D] @ [D, M]
        of_queries = of_keys
        if S.WITHIN:
            of_queries = tl.dot(q, tl.trans(w.to(q.dtype)), input_precision=S.PRECISION)
        d_exponent, d_v, scores = key_gradient_features(
            of_keys, of_queries, logit_scale, key_bias, values, do, pairs, terms, d_v, scores, log_weight, states,
            source, received, state_index, takes, head, features, keep, D_KEY, D_VALUE, S,
        )  # fmt: skip
        if D_KEY:
            d_sum += tl.sum(d_exponent, 1)
            d_projected = feature_slope(d_exponent, of_keys, logit_scale, S)
        if S.ANTITHETIC:
            d_exponent, d_v, scores = key_gradient_features(
                of_keys, of_queries, -logit_scale, key_bias, values, do, pairs, terms, d_v, scores, log_weight,
                states, source, received, state_index, takes, head, features + S.FEATURES, keep, D_KEY, D_VALUE, S,
            )  # fmt: skip
            if D_KEY:
                d_sum += tl.sum(d_exponent, 1)
                d_projected -= feature_slope(d_exponent, of_keys, -logit_scale, S)
        if D_KEY:
            d_k = project_back(d_projected, w, d_k, S)  # [C, M] @ [M, D]
            if d_projection is not None:
                add_parameters((d_projection, None), d_projected, d_exponent, k, tl.program_id(0), features, keep, S)
    return d_k, d_v, d_sum, scores


@triton.jit
def gather_key_gradients(
    query, k, bias, v, projection, log_weight, states, jumps, received, d_output, statistics, delta,
    d_projection, rows, end, local, segment, batch, head, plane, token_count, segment_length, segments, tokens_per_step,
    group, key_planes, logit_scale, D_KEY: tl.constexpr, D_VALUE: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Return dk [C, D] before its last terms, sum_r de_jr [C] and dv [C, E] of the keys of a segment."""
    BLOCK_C: tl.constexpr = k.shape[0]
    own, later = segment * key_planes + plane, (segment + 1) * key_planes + plane
    d_k = tl.zeros([BLOCK_C, S.BLOCK_D], tl.float32)
    d_v = tl.zeros([BLOCK_C, S.BLOCK_E], tl.float32)
    d_sum = tl.zeros([BLOCK_C], tl.float32)
    if S.WITHIN:
        spare = (segments + 1) * key_planes + own
        jumped = segment_jumps(jumps, own, S)
        source = tl.where(jumped, spare, own)
        filled = end - segment * segment_length
        exists = rows < end
        step_start = local // tokens_per_step * tokens_per_step
        sees_key = step_start[:, None] <= local[None, :]  # [keys, queries]
        for member in range(group):
            query_head, query_plane = head * group + member, plane * group + member
            q = cut_entries(load_tile(query, batch, query_head, rows, exists, S.DIM, S.BLOCK_D))
            do = load_tile(d_output, batch, query_head, rows, exists, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)  # [C, E]
            weighted = load_block_vector(delta, query_plane, token_count, rows, exists, 0.0)
            row_max, inverse = softmax_terms(statistics, query_plane, token_count, rows, exists)
            pairs = do
            if D_KEY:  # G^T as a product of its own: Triton before 3.7.1 transposes results wrongly on Hopper
                pairs = tl.dot(v, tl.trans(do), input_precision=S.PRECISION) - weighted[None, :]  # [C, E] @ [E, C]
                pairs = tl.where(sees_key, pairs, 0.0).to(S.OPERAND)
            scores = tl.zeros([BLOCK_C, BLOCK_C if D_VALUE else 1], tl.float32)
            low = 0
            while low < filled:
                part_end = filled
                if jumped:
                    part_end = next_part(
                        k, bias, projection, batch, head, own, spare, low, filled, local, tokens_per_step, states,
                        logit_scale, S,
                    )  # fmt: skip
                terms = (tl.where((local >= low) & (local < part_end), row_max, float("inf")), inverse)
                takes = (member == 0) & (part_end == filled)  # the last anchors are those nearest to R's
                d_k, d_v, d_sum, scores = key_gradient_part(
                    k, q, tl.where(local < part_end, bias, float("-inf")), v, do, pairs, terms, d_k, d_v, d_sum, scores,
                    projection, log_weight, states, source, received, later, takes, d_projection, batch, head,
                    logit_scale, D_KEY, D_VALUE, S,
                )  # fmt: skip
                low = part_end
            if D_VALUE:
                scores = tl.where(sees_key, scores, 0.0).to(S.OPERAND)
                d_v = tl.dot(scores, do, d_v, input_precision=S.PRECISION)  # [C, C] @ [C, E]
    else:
        d_k, d_v, d_sum, _ = key_gradient_part(
            k, k, bias, v, v, v, (d_sum, d_sum), d_k, d_v, d_sum, d_sum, projection, log_weight, states, later,
            received, later, True, d_projection, batch, head, logit_scale, D_KEY, D_VALUE, S,
        )  # fmt: skip
    return d_k, d_sum, d_v


@triton.jit(do_not_specialize=["token_count", "segment_length", "segments", "tokens_per_step", "batch_heads"])
def _causal_key_gradient_kernel(
    query, key, value, mask, projection, log_weight, states, jumps, received, d_output, statistics, delta,
    d_key, d_value, d_mask, d_projection, token_count, segment_length, segments, tokens_per_step, query_heads, group,
    batch_heads, logit_scale, norm_scale, chain, BLOCK_C: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own C keys of a segment of one key head: dk and dv, from the queries of the segment, head by head, and R, A.

    Of a key bias, `d_mask` is its gradient sum_r de_jr.
    Wide dk and dv do not fit the registers beside T, nor does the gradient of learnt features beside both: then
    features are walked over twice, for dk and for dv.
    """
    WIDE: tl.constexpr = (128 if tl.bfloat16 == S.OPERAND else 64) < S.BLOCK_D + S.BLOCK_E
    APART: tl.constexpr = WIDE or d_projection is not None
    rows, end, local, segment, batch, head, plane = segment_of(
        tl.program_id(0), segment_length, token_count, query_heads // group, batch_heads // group, BLOCK_C, S
    )
    seen = seen_keys(mask, batch, head, rows, end)
    raw = load_tile(key, batch, head, rows, seen, S.DIM, S.BLOCK_D)
    k, bias = usable_tokens(raw, True, S), exponent_bias(raw, mask, batch, head, rows, seen, norm_scale, S)
    v = load_tile(value, batch, head, rows, seen, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)
    d_k, d_sum, d_v = gather_key_gradients(
        query, k, bias, v, projection, log_weight, states, jumps, received, d_output, statistics, delta,
        d_projection, rows, end, local, segment, batch, head, plane, token_count, segment_length, segments,
        tokens_per_step, group, batch_heads // group, logit_scale, True, not APART, S,
    )  # fmt: skip
    d_k *= chain
    if S.HAS_NORM:
        raw = load_tile(key, batch, head, rows, seen, S.DIM, S.BLOCK_D)  # again: kept, it would spill
        d_k -= chain * chain * d_sum[:, None] * cut_entries(raw).to(tl.float32)
    store_tile(d_key, batch, head, rows, rows < end, d_k, S.DIM, S.BLOCK_D)
    if d_mask is not None:
        store_vector(d_mask, batch, head, rows, rows < end, d_sum)
    if APART:
        _, _, d_v = gather_key_gradients(
            query, k, bias, v, projection, log_weight, states, jumps, received, d_output, statistics, delta,
            d_projection, rows, end, local, segment, batch, head, plane, token_count, segment_length, segments,
            tokens_per_step, group, batch_heads // group, logit_scale, False, True, S,
        )  # fmt: skip
    store_tile(d_value, batch, head, rows, rows < end, d_v, S.VALUE_DIM, S.BLOCK_E)
