"""GPU kernels of causal FAVOR attention over short steps, backward: a scan for the queries, a reverse one for the keys.

Dimension key: b batch, h key heads, t tokens, d head dim, e value dim, m features;
tiles [C] tokens of a chunk (queries or keys), [M] features, [D] and [E] padded head and value dims.

In the notation of `favor_causal_kernels.py`, with alpha_ir = exp2(a_ir + M_r - x_i) / den_i, D_i = do_i . o_i and
G_ij = do_i . v_j - D_i where step(j) <= step(i), else 0: `_causal_query_gradient_kernel` carries the state as the
forward does, for

    da_ir = alpha_ir (do_i . S_r - D_i z_r + sum_{j in chunk} G_ij phi_jr)                       dq_i = sum_r da_ir w_r

and `_causal_key_gradient_kernel` walks over its chunks from the last to the first and carries what later rows ask of
each feature, in units of 2^-M_r:

    R_r = sum_{later i} alpha_ir do_i       A_r = - sum_{later i} alpha_ir D_i
    de_jr = phi_jr (v_j . R_r + A_r + sum_i G_ij alpha_ir)      dv_j = sum_r phi_jr R_r + sum_i (alpha phi^T)_ij do_i
    dk_j = sum_r de_jr (w_r - k_j)

Going back, anchors fall: R and A are multiplied by exp2 of the fall. The parts of a chunk are found again from the
anchors before it, which `_causal_query_gradient_kernel` left. Paired features are projected one by one: the products of
a pair side by side would spill.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .favor_backward_kernels import query_terms
from .favor_causal_kernels import (
    absorb_keys,
    exponents_of_keys,
    exponents_of_queries,
    features_of_part,
    load_chunk,
    load_running,
    lower_state,
    next_part,
    open_segment,
    project_chunk,
    store_running,
    visible_pairs,
)
from .favor_tiles import (
    UNSEEN,
    cut_entries,
    feature_slope,
    load_tile,
    load_vector,
    seen_keys,
    segment_bounds,
    store_tile,
    store_vector,
)


@triton.jit
def query_gradient_chunk(
    exponent, logits, values, do, pairs, terms, local, filled, tokens_per_step, anchor, total, sums,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return da [C, M] of the rows of a chunk for M features, and the state with its keys."""
    minus_max, inverse, weighted = terms
    low = filled * 0
    d_logits = tl.zeros_like(logits)
    while low < filled:
        raised, end = next_part(exponent, anchor, low, local, tokens_per_step)
        total, sums = lower_state(total, sums, anchor - raised)
        anchor = raised
        inside, phi = features_of_part(exponent, anchor, low, end, local)
        phi = phi.to(OPERAND)  # [C, M]
        alpha = share_of_rows(logits, anchor, inside, minus_max, inverse)
        reach = tl.dot(do, tl.trans(sums.to(OPERAND)), input_precision=PRECISION)  # [C, E] @ [E, M]
        reach = tl.dot(pairs, phi, reach - weighted[:, None] * total[None, :], input_precision=PRECISION)
        d_logits += alpha * reach
        total, sums = absorb_keys(phi, values, total, sums, PRECISION)
        low = end
    return d_logits, anchor, total, sums


@triton.jit
def share_of_rows(logits, anchor, inside, minus_max, inverse):
    """Return alpha [C, M] = exp2(a + M - x) / den of the rows in a part, zero for the others.

    An anchor found again may be one above the forward's, where a sum rounds to the other side of a power of two; phi
    then is half. The bound is there for products that overflow.
    """
    shifted = tl.where(inside[:, None], logits + anchor[None, :] + minus_max[:, None], float("-inf"))
    return tl.exp2(tl.minimum(shifted, 8.0, propagate_nan=tl.PropagateNan.ALL)) * inverse[:, None]


@triton.jit
def pair_gradient(do, values, weighted, local, tokens_per_step, PRECISION: tl.constexpr):
    """Return G [C, C] = do_i . v_j - do_i . o_i where key j is visible to row i, else 0."""
    pairs = tl.dot(do, tl.trans(values), input_precision=PRECISION) - weighted[:, None]  # [C, E] @ [E, C]
    return tl.where(visible_pairs(local, tokens_per_step), pairs, 0.0).to(do.dtype)


@triton.jit(do_not_specialize=["batch_count", "token_count", "segment_length", "segments", "tokens_per_step", "chunk"])
def _causal_query_gradient_kernel(
    query, key, value, mask, projection, log_weight, prefix, running, output, d_output, statistics,
    weighted_output, anchors, d_query, d_projection,
    batch_count, token_count, segment_length, segments, tokens_per_step, chunk, query_heads, group,
    gain, norm_gain, chain,
    FEATURES: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, FEATURE_MAP: tl.constexpr,
    PAIRED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Own a segment of one query head: dq, D_i = do_i . o_i, and the anchors before each chunk for the reverse pass.

    Where features are learnt, d_projection [M, D] of the segment is summed in memory: sum_i da_ir q_i.
    """
    ALL_FEATURES: tl.constexpr = FEATURES * (2 if PAIRED else 1)
    index = tl.program_id(0)
    segment, index = index % segments, index // segments
    query_head, batch = index % query_heads, index // query_heads
    head = query_head // group
    place = segment * batch_count + batch
    open_segment(
        running, prefix, place, head, query_head,
        ALL_FEATURES, VALUE_DIM, BLOCK_M, BLOCK_E,
    )  # fmt: skip
    local = tl.arange(0, BLOCK_C)
    writes = query_head % group == 0
    first, last = segment_bounds(segment, segment_length, token_count)
    for start in range(first, last, chunk):
        filled = tl.minimum(chunk, last - start)
        chunk_place = start // chunk * batch_count + batch
        rows, exists = start + local, local < filled
        seen = seen_keys(mask, batch, rows, start + filled)
        k, bias, v, q = load_chunk(
            query, key, value, batch, head, query_head, rows, exists, seen, norm_gain,
            FEATURE_MAP, DIM, VALUE_DIM, BLOCK_D, BLOCK_E, OPERAND,
        )  # fmt: skip
        do = load_tile(d_output, batch, query_head, rows, exists, VALUE_DIM, BLOCK_E).to(OPERAND)  # [C, E]
        o = load_tile(output, batch, query_head, rows, exists, VALUE_DIM, BLOCK_E)
        weighted = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
        store_vector(weighted_output, batch, query_head, rows, exists, weighted)
        minus_max, inverse = query_terms(statistics, batch, query_head, rows, exists)
        terms = (minus_max, inverse, weighted)
        pairs = pair_gradient(do, v, weighted, local, tokens_per_step, PRECISION)
        d_q = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
        for tile in range(0, FEATURES, BLOCK_M):
            features = tile + tl.arange(0, BLOCK_M)
            keep = features < FEATURES
            w = load_tile(projection, batch, head, features, keep, DIM, BLOCK_D)  # [M, D]
            of_keys, of_queries = project_chunk(k, q, w, PRECISION)
            exponent = exponents_of_keys(of_keys, gain, bias, keep, FEATURE_MAP)
            logits = exponents_of_queries(of_queries, gain, log_weight, head, features, keep, FEATURE_MAP)
            anchor, total, sums = load_running(running, place, query_head, features, keep, VALUE_DIM, BLOCK_E)
            store_vector(anchors, chunk_place, head, features, keep & writes, anchor)
            d_logits, anchor, total, sums = query_gradient_chunk(
                exponent, logits, v, do, pairs, terms, local, filled, tokens_per_step, anchor, total, sums,
                OPERAND, PRECISION,
            )  # fmt: skip
            store_running(running, anchor, total, sums, place, query_head, features, keep, VALUE_DIM, BLOCK_E)
            d_projected = feature_slope(d_logits, of_queries, gain, FEATURE_MAP)
            if PAIRED:
                others = FEATURES + features
                exponent = exponents_of_keys(of_keys, -gain, bias, keep, FEATURE_MAP)
                logits = exponents_of_queries(of_queries, -gain, log_weight, head, others, keep, FEATURE_MAP)
                anchor, total, sums = load_running(running, place, query_head, others, keep, VALUE_DIM, BLOCK_E)
                store_vector(anchors, chunk_place, head, others, keep & writes, anchor)
                d_logits, anchor, total, sums = query_gradient_chunk(
                    exponent, logits, v, do, pairs, terms, local, filled, tokens_per_step, anchor, total, sums,
                    OPERAND, PRECISION,
                )  # fmt: skip
                store_running(running, anchor, total, sums, place, query_head, others, keep, VALUE_DIM, BLOCK_E)
                d_projected -= feature_slope(d_logits, of_queries, -gain, FEATURE_MAP)
            d_projected = d_projected.to(OPERAND)
            d_q = tl.dot(d_projected, w.to(OPERAND), d_q, input_precision=PRECISION)  # [C, M] @ [M, D]
            if d_projection is not None:
                add_to_projection(
                    d_projection, d_projected, q, place, query_head, features, keep, DIM, BLOCK_D, PRECISION
                )
        store_tile(d_query, batch, query_head, rows, exists, d_q * chain, DIM, BLOCK_D)
        tl.debug_barrier()  # the next chunk loads what this one stored


@triton.jit
def add_to_projection(
    d_projection, d_projected, tokens, place, query_head, features, keep,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add sum_n d_nr x_n of a chunk to the program's own rows [M, D] in memory."""
    d_w = load_tile(d_projection, place, query_head, features, keep, DIM, BLOCK_D)
    d_w = tl.dot(tl.trans(d_projected), tokens.to(d_projected.dtype), d_w, input_precision=PRECISION)
    tl.debug_barrier()  # all threads have loaded what is overwritten
    store_tile(d_projection, place, query_head, features, keep, d_w, DIM, BLOCK_D)


@triton.jit
def part_before(exponent, anchor, high, local, tokens_per_step):
    """Return the first row and the anchors [M] of the part that ends before row `high`."""
    low = high * 0
    anchor, end = next_part(exponent, anchor, low, local, tokens_per_step)
    while end < high:
        low = end
        anchor, end = next_part(exponent, anchor, low, local, tokens_per_step)
    return low, anchor


@triton.jit
def key_gradient_chunk(
    exponent, logits, values, do, pairs, terms, local, filled, tokens_per_step, before, anchor, rows, shift,
    d_values, scores, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return de [C, M] of the keys of a chunk for M features, with dv [C, E], T [C, C] and the scan's R, A added to."""
    minus_max, inverse, weighted = terms
    high = filled
    d_exponent = tl.zeros_like(exponent)
    while high > 0:
        low, lowered = part_before(exponent, before, high, local, tokens_per_step)
        # a fall, but for the step from a segment's maximum to the anchor of its last chunk, of log2(tokens) at most
        shrink = tl.exp2(tl.minimum(lowered - anchor, 64.0))
        rows, shift, anchor = rows * shrink[:, None], shift * shrink, lowered
        inside, phi = features_of_part(exponent, anchor, low, high, local)  # [C, M]
        alpha = share_of_rows(logits, anchor, inside, minus_max, inverse)  # [C, M]
        operand, received = alpha.to(OPERAND), rows.to(OPERAND)
        reach = tl.dot(values, tl.trans(received), input_precision=PRECISION) + shift[None, :]  # [C, E] @ [E, M]
        reach = tl.dot(tl.trans(pairs), operand, reach, input_precision=PRECISION)  # [C, C] @ [C, M]
        d_exponent += phi * reach
        feature = phi.to(OPERAND)
        d_values = tl.dot(feature, received, d_values, input_precision=PRECISION)  # [C, M] @ [M, E]
        scores = tl.dot(operand, tl.trans(feature), scores, input_precision=PRECISION)  # [C, M] @ [M, C]
        rows = tl.dot(tl.trans(operand), do, rows, input_precision=PRECISION)  # [M, C] @ [C, E]
        shift -= tl.sum(alpha * weighted[:, None], 0)
        high = low
    return d_exponent, anchor, rows, shift, d_values, scores


@triton.jit
def load_received(received, place, head, features, keep, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr):
    """Load the anchors, A [M] and R [M, E] of the scan."""
    rows, shifts, anchors = received
    return (
        load_vector(anchors, place, head, features, keep, UNSEEN),
        load_vector(shifts, place, head, features, keep, 0.0),
        load_tile(rows, place, head, features, keep, VALUE_DIM, BLOCK_E),
    )


@triton.jit
def store_received(
    received, anchor, shift, rows, place, head, features, keep, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    row_tiles, shifts, anchors = received
    tl.debug_barrier()  # all threads have loaded what is overwritten
    store_vector(anchors, place, head, features, keep, anchor)
    store_vector(shifts, place, head, features, keep, shift)
    store_tile(row_tiles, place, head, features, keep, rows, VALUE_DIM, BLOCK_E)


@triton.jit
def open_reverse(
    running, later, place, later_place, head, query_head, takes,
    ALL_FEATURES: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Bring what queries behind a segment ask of it into the program's memory; one query head of a group takes it."""
    for start in range(0, ALL_FEATURES, BLOCK_M):
        features = start + tl.arange(0, BLOCK_M)
        keep = features < ALL_FEATURES
        anchor = tl.full([BLOCK_M], -UNSEEN, tl.float32)  # nothing received yet, at any anchor
        shift = tl.zeros([BLOCK_M], tl.float32)
        rows = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
        if later is not None:
            found, shift, rows = load_received(later, later_place, head, features, keep & takes, VALUE_DIM, BLOCK_E)
            anchor = tl.where(takes & (found > UNSEEN), found, anchor)
        store_received(running, anchor, shift, rows, place, query_head, features, keep, VALUE_DIM, BLOCK_E)
    tl.debug_barrier()  # what one thread stored, another loads


@triton.jit(do_not_specialize=["batch_count", "token_count", "segment_length", "segments", "tokens_per_step", "chunk"])
def _causal_key_gradient_kernel(
    query, key, value, mask, projection, log_weight, later, running, d_output, statistics, weighted_output,
    anchors, d_key, d_value, d_projection, d_log_weight,
    batch_count, token_count, segment_length, segments, tokens_per_step, chunk, query_heads, group,
    gain, norm_gain, chain,
    FEATURES: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, FEATURE_MAP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Own a segment of one query head: what its rows, and for one head of a group all later ones, send to the keys.

    `later` are G, A and maxima of `_suffix_gradients_kernel`. Where features are learnt, their gradients through the
    keys are summed in memory: sum_j de_jr k_j and sum_j de_jr.
    """
    index = tl.program_id(0)
    segment, index = index % segments, index // segments
    query_head, batch = index % query_heads, index // query_heads
    head = query_head // group
    place = segment * batch_count + batch
    open_reverse(
        running, later, place, place + batch_count, head, query_head, query_head % group == 0,
        FEATURES, VALUE_DIM, BLOCK_M, BLOCK_E,
    )  # fmt: skip
    local = tl.arange(0, BLOCK_C)
    first, last = segment_bounds(segment, segment_length, token_count)
    chunks = tl.cdiv(last - first, chunk)
    for back in range(chunks):
        start = first + (chunks - 1 - back) * chunk
        filled = tl.minimum(chunk, last - start)
        chunk_place = start // chunk * batch_count + batch
        rows, exists = start + local, local < filled
        seen = seen_keys(mask, batch, rows, start + filled)
        k, bias, v, q = load_chunk(
            query, key, value, batch, head, query_head, rows, exists, seen, norm_gain,
            FEATURE_MAP, DIM, VALUE_DIM, BLOCK_D, BLOCK_E, OPERAND,
        )  # fmt: skip
        do = load_tile(d_output, batch, query_head, rows, exists, VALUE_DIM, BLOCK_E).to(OPERAND)  # [C, E]
        weighted = load_vector(weighted_output, batch, query_head, rows, exists, 0.0)
        minus_max, inverse = query_terms(statistics, batch, query_head, rows, exists)
        terms = (minus_max, inverse, weighted)
        pairs = pair_gradient(do, v, weighted, local, tokens_per_step, PRECISION)
        d_k = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
        d_v = tl.zeros([BLOCK_C, BLOCK_E], tl.float32)
        d_sum = tl.zeros([BLOCK_C], tl.float32)
        scores = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
        for tile in range(0, FEATURES, BLOCK_M):
            features = tile + tl.arange(0, BLOCK_M)
            keep = features < FEATURES
            w = load_tile(projection, batch, head, features, keep, DIM, BLOCK_D)  # [M, D]
            if tl.float32 == OPERAND:  # again: kept over the tiles, their TF32 parts would spill
                k, bias, v, q = load_chunk(
                    query, key, value, batch, head, query_head, rows, exists, seen, norm_gain,
                    FEATURE_MAP, DIM, VALUE_DIM, BLOCK_D, BLOCK_E, OPERAND,
                )  # fmt: skip
                do = load_tile(d_output, batch, query_head, rows, exists, VALUE_DIM, BLOCK_E).to(OPERAND)
            of_keys, of_queries = project_chunk(k, q, w, PRECISION)
            exponent = exponents_of_keys(of_keys, gain, bias, keep, FEATURE_MAP)
            logits = exponents_of_queries(of_queries, gain, log_weight, head, features, keep, FEATURE_MAP)
            before = load_vector(anchors, chunk_place, head, features, keep, UNSEEN)
            anchor, shift, received = load_received(running, place, query_head, features, keep, VALUE_DIM, BLOCK_E)
            d_exponent, anchor, received, shift, d_v, scores = key_gradient_chunk(
                exponent, logits, v, do, pairs, terms, local, filled, tokens_per_step, before, anchor, received, shift,
                d_v, scores, OPERAND, PRECISION,
            )  # fmt: skip
            store_received(running, anchor, shift, received, place, query_head, features, keep, VALUE_DIM, BLOCK_E)
            d_sum += tl.sum(d_exponent, 1)
            d_projected = feature_slope(d_exponent, of_keys, gain, FEATURE_MAP)
            if d_log_weight is not None:
                so_far = load_vector(d_log_weight, place, query_head, features, keep, 0.0) + tl.sum(d_exponent, 0)
                tl.debug_barrier()  # all threads have loaded what is overwritten
                store_vector(d_log_weight, place, query_head, features, keep, so_far)
            d_projected = d_projected.to(OPERAND)
            d_k = tl.dot(d_projected, w.to(OPERAND), d_k, input_precision=PRECISION)  # [C, M] @ [M, D]
            if d_projection is not None:
                add_to_projection(
                    d_projection, d_projected, k, place, query_head, features, keep, DIM, BLOCK_D, PRECISION
                )
        scores = tl.where(visible_pairs(local, tokens_per_step), scores, 0.0).to(OPERAND)
        d_v = tl.dot(tl.trans(scores), do, d_v, input_precision=PRECISION)  # [C, C] @ [C, E]
        d_k *= chain
        if FEATURE_MAP == "exponential":
            raw = load_tile(key, batch, head, rows, seen, DIM, BLOCK_D)  # again: kept, it would spill
            d_k -= chain * chain * d_sum[:, None] * cut_entries(raw).to(tl.float32)
        store_tile(d_key, batch, query_head, rows, exists, d_k, DIM, BLOCK_D)
        store_tile(d_value, batch, query_head, rows, exists, d_v, VALUE_DIM, BLOCK_E)
        tl.debug_barrier()  # the next chunk loads what this one stored


@triton.jit(do_not_specialize=["count"])
def _sum_heads_kernel(
    parts, total, count, heads, group, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Own a tile of tokens of one key head, and sum over its query heads what they found each for itself, in order."""
    tiles = tl.cdiv(count, BLOCK_N)
    index = tl.program_id(0)
    tile, index = index % tiles, index // tiles
    head, batch = index % heads, index // heads
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    keep = rows < count
    summed = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for member in range(group):
        summed += load_tile(parts, batch, head * group + member, rows, keep, DIM, BLOCK_D)
    store_tile(total, batch, head, rows, keep, summed, DIM, BLOCK_D)
