"""GPU kernels of causal FAVOR attention over short steps: a state carried from chunk to chunk, and pairs within one.

Dimension key: b batch, h key heads, t tokens, d head dim, e value dim, m features;
tiles [C] tokens of a chunk (queries or keys), [M] features, [D] and [E] padded head and value dims.

A chunk holds whole time steps. Its rows read the keys before it through the state of hop 1, and its own keys through a
[C, C] product. With c_jr the exponent of key j and a_ir that of query i (base 2, log-weight on the query's side):

    phi_jr = exp2(c_jr - M_r)       f_ir = exp2(a_ir + M_r - x_i),   x_i = max_r (a_ir + M_r)
    z_r = sum_{earlier j} phi_jr    S_r = sum_{earlier j} phi_jr v_j
    T_ij = sum_r f_ir phi_jr where step(j) <= step(i), else 0
    o_i = (sum_r f_ir z_r (S_r / z_r) + sum_j T_ij v_j) / (sum_r f_ir z_r + sum_j T_ij)

The anchor M_r is a whole number, so that moving it is exact. It starts at the state's own size and is raised only when
a step's exponents exceed it by more than HEADROOM; the chunk is then cut before that step into *parts*, each with its
own anchors (`next_part`). An anchor is thus attained by keys that all rows it serves can see: nothing overflows, what
underflows is below 2^-126 of something kept, no row is 0 / 0, and no bit of a row depends on a key it cannot see.
All but unusual inputs have one part a chunk.

One program owns a segment of one query head and walks over its chunks in order. The state is (m, e) float32, too large
for registers: a program keeps it in memory of its own, read and written once a chunk, mostly in the second-level
cache. Nothing of width m is stored for a token; there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .favor_backward_kernels import key_shift, usable_tokens
from .favor_forward_kernels import inverse_of
from .favor_tiles import (
    LN_2,
    LOG2_E,
    UNSEEN,
    cut_entries,
    exponent_of,
    load_tile,
    load_vector,
    seen_keys,
    segment_bounds,
    store_tile,
    store_vector,
)

HEADROOM = tl.constexpr(60.0)  # bits a key may exceed its anchor by: 2^20 such terms times |v| < 2^40 fit float32


@triton.jit
def load_chunk(
    query, key, value, batch, head, query_head, rows, exists, seen, norm_gain,
    FEATURE_MAP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Load keys [C, D] with the bias of their exponents [C], values [C, E] and queries [C, D]."""
    raw = load_tile(key, batch, head, rows, seen, DIM, BLOCK_D)
    bias = key_shift(raw, seen, norm_gain, FEATURE_MAP)
    v = load_tile(value, batch, head, rows, seen, VALUE_DIM, BLOCK_E).to(OPERAND)
    q = cut_entries(load_tile(query, batch, query_head, rows, exists, DIM, BLOCK_D))
    return usable_tokens(raw, True, FEATURE_MAP), bias, v, q


@triton.jit
def project_chunk(k, q, w, PRECISION: tl.constexpr):
    """Return w . k and w . q, [C, D] @ [D, M] each."""
    of_keys = tl.dot(k, tl.trans(w.to(k.dtype)), input_precision=PRECISION)
    return of_keys, tl.dot(q, tl.trans(w.to(q.dtype)), input_precision=PRECISION)


@triton.jit
def exponents_of_keys(projected, gain, bias, keep, FEATURE_MAP: tl.constexpr):
    """Return c [C, M], -inf for keys that are not seen and features that are not there."""
    return tl.where(keep[None, :], exponent_of(projected, gain, bias[:, None], FEATURE_MAP), float("-inf"))


@triton.jit
def exponents_of_queries(projected, gain, log_weight, head, features, keep, FEATURE_MAP: tl.constexpr):
    """Return a [C, M] with the log-weight."""
    bias = tl.zeros([features.shape[0]], tl.float32)
    if log_weight is not None:
        bias += load_vector(log_weight, head * 0, head, features, keep, 0.0) * LOG2_E
    return exponent_of(projected, gain, bias[None, :], FEATURE_MAP)


@triton.jit
def next_part(exponent, anchor, low, local, tokens_per_step):
    """Return the anchors [M] from the step at row `low` on, and the row before which a later step needs higher ones."""
    BLOCK_C: tl.constexpr = exponent.shape[0]
    in_step = (local >= low) & (local < low + tokens_per_step)
    peak = tl.max(tl.where(in_step[:, None], exponent, float("-inf")), 0)  # [M]
    anchor = tl.where(peak > anchor + HEADROOM, tl.ceil(peak), anchor)
    jumps = (exponent > (anchor + HEADROOM)[None, :]) & (local >= low)[:, None]
    step_start = local - local % tokens_per_step
    end = tl.min(tl.where(tl.max(jumps.to(tl.int32), 1) > 0, step_start, BLOCK_C), 0)
    return anchor, end


@triton.jit
def lower_state(total, sums, difference):
    """Multiply z [M] and S [M, E] by exp2(difference); what falls below the rounding of anything kept becomes zero."""
    shrink = tl.where(difference > -100.0, tl.exp2(difference), 0.0)
    return total * shrink, sums * shrink[:, None]


@triton.jit
def features_of_part(exponent, anchor, low, end, local):
    """Return which rows [C] are in a part, and phi [C, M] of its keys, zero for the others."""
    inside = (local >= low) & (local < end)
    return inside, tl.exp2(tl.where(inside[:, None], exponent - anchor[None, :], float("-inf")))


@triton.jit
def absorb_keys(phi, values, total, sums, PRECISION: tl.constexpr):
    """Add the keys of a part to z [M] and S [M, E]; the rounded features are summed, so that weights sum to one."""
    sums = tl.dot(tl.trans(phi), values, sums, input_precision=PRECISION)  # [M, C] @ [C, E] -> [M, E]
    return total + tl.sum(phi.to(tl.float32), 0), sums


@triton.jit
def attend_chunk(
    exponent, logits, values, local, filled, tokens_per_step, anchor, total, sums, top, den, num, scores,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold M features of a chunk into its rows: x, den [C], num [C, E], T [C, C]; and its keys into the state."""
    low = filled * 0
    while low < filled:
        raised, end = next_part(exponent, anchor, low, local, tokens_per_step)
        total, sums = lower_state(total, sums, anchor - raised)
        anchor = raised
        inside, phi = features_of_part(exponent, anchor, low, end, local)
        phi = phi.to(OPERAND)  # [C, M]
        shifted = tl.where(inside[:, None], logits + anchor[None, :], float("-inf"))
        highest = tl.maximum(top, tl.max(shifted, 1))
        feature = tl.exp2(shifted - highest[:, None])  # [C, M]
        shrink = tl.exp2(top - highest)
        weight = (feature * total[None, :]).to(OPERAND)
        average = (sums * inverse_of(total)[:, None]).to(OPERAND)  # [M, E]
        num = tl.dot(weight, average, num * shrink[:, None], input_precision=PRECISION)  # [C, M] @ [M, E]
        den = den * shrink + tl.sum(weight.to(tl.float32), 1)
        scores = tl.dot(
            feature.to(OPERAND), tl.trans(phi), scores * shrink[:, None], input_precision=PRECISION
        )  # [C, M] @ [M, C]
        top = highest
        total, sums = absorb_keys(phi, values, total, sums, PRECISION)
        low = end
    return anchor, total, sums, top, den, num, scores


@triton.jit
def visible_pairs(local, tokens_per_step):
    """Return [C, C], True where the key's step is not after the query's."""
    step = local // tokens_per_step
    return step[:, None] >= step[None, :]


@triton.jit
def load_running(running, place, head, features, keep, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr):
    """Load the anchors, z [M] and S [M, E] that a program keeps in memory."""
    sums, anchor, total = running
    return (
        load_vector(anchor, place, head, features, keep, UNSEEN),
        load_vector(total, place, head, features, keep, 0.0),
        load_tile(sums, place, head, features, keep, VALUE_DIM, BLOCK_E),
    )


@triton.jit
def store_running(
    running, anchor, total, sums, place, head, features, keep, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr
):  # fmt: skip
    """Store them, with z in (1/2, 1]: the anchors follow the state."""
    bump = tl.where(total > 0, tl.ceil(tl.log2(tl.where(total > 0, total, 1.0))), 0.0)
    shrink = tl.exp2(-bump)
    sums_rows, anchor_vectors, total_vectors = running
    tl.debug_barrier()  # all threads have loaded what is overwritten
    store_vector(anchor_vectors, place, head, features, keep, anchor + bump)
    store_vector(total_vectors, place, head, features, keep, total * shrink)
    store_tile(sums_rows, place, head, features, keep, sums * shrink[:, None], VALUE_DIM, BLOCK_E)


@triton.jit
def open_segment(
    running, prefix, place, head, query_head,
    ALL_FEATURES: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Bring the state before a segment into the program's memory; no prefix state is no earlier key."""
    for start in range(0, ALL_FEATURES, BLOCK_M):
        features = start + tl.arange(0, BLOCK_M)
        keep = features < ALL_FEATURES
        top = tl.full([BLOCK_M], UNSEEN, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        average = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
        if prefix is not None:
            value, _, row_max, row_sum = prefix
            top = load_vector(row_max, place, head, features, keep, UNSEEN)
            total = load_vector(row_sum, place, head, features, keep, 0.0)
            average += load_tile(value, place, head, features, keep, VALUE_DIM, BLOCK_E)
        anchor = tl.where(total != 0, tl.ceil(top), UNSEEN)
        total = tl.where(total != 0, total * tl.exp2(top - anchor), 0.0)
        store_running(
            running, anchor, total, average * total[:, None], place, query_head, features, keep, VALUE_DIM, BLOCK_E
        )
    tl.debug_barrier()  # what one thread stored, another loads


@triton.jit
def close_segment(
    running, final, log_weight, place, batch, head, query_head, writes,
    ALL_FEATURES: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write (V, L) of all keys so far."""
    value, log_normalizer = final
    for start in range(0, ALL_FEATURES, BLOCK_M):
        features = start + tl.arange(0, BLOCK_M)
        keep = (features < ALL_FEATURES) & writes
        anchor, total, sums = load_running(running, place, query_head, features, keep, VALUE_DIM, BLOCK_E)
        logarithm = anchor * LN_2 + tl.log(tl.where(total != 0, total, 1.0))
        if log_weight is not None:
            logarithm += load_vector(log_weight, head * 0, head, features, keep, 0.0)
        logarithm = tl.where(total != 0, logarithm, float("-inf"))
        store_vector(log_normalizer, batch, head, features, keep, logarithm)
        store_tile(value, batch, head, features, keep, sums * inverse_of(total)[:, None], VALUE_DIM, BLOCK_E)


@triton.jit(do_not_specialize=["batch_count", "token_count", "segment_length", "segments", "tokens_per_step", "chunk"])
def _causal_attend_kernel(
    query, key, value, mask, projection, log_weight, prefix, running, output, statistics, final,
    batch_count, token_count, segment_length, segments, tokens_per_step, chunk, query_heads, group, gain, norm_gain,
    FEATURES: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, FEATURE_MAP: tl.constexpr,
    PAIRED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Own a segment of one query head: outputs, and from the last segment the state of all keys."""
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
    query_max, inverse_sum, _ = statistics
    local = tl.arange(0, BLOCK_C)
    first, last = segment_bounds(segment, segment_length, token_count)
    for start in range(first, last, chunk):
        filled = tl.minimum(chunk, last - start)
        rows, exists = start + local, local < filled
        seen = seen_keys(mask, batch, rows, start + filled)
        k, bias, v, q = load_chunk(
            query, key, value, batch, head, query_head, rows, exists, seen, norm_gain,
            FEATURE_MAP, DIM, VALUE_DIM, BLOCK_D, BLOCK_E, OPERAND,
        )  # fmt: skip
        top = tl.full([BLOCK_C], UNSEEN, tl.float32)
        den = tl.zeros([BLOCK_C], tl.float32)
        num = tl.zeros([BLOCK_C, BLOCK_E], tl.float32)
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
            of_keys, of_queries = project_chunk(k, q, w, PRECISION)
            exponent = exponents_of_keys(of_keys, gain, bias, keep, FEATURE_MAP)
            logits = exponents_of_queries(of_queries, gain, log_weight, head, features, keep, FEATURE_MAP)
            anchor, total, sums = load_running(running, place, query_head, features, keep, VALUE_DIM, BLOCK_E)
            anchor, total, sums, top, den, num, scores = attend_chunk(
                exponent, logits, v, local, filled, tokens_per_step, anchor, total, sums, top, den, num, scores,
                OPERAND, PRECISION,
            )  # fmt: skip
            store_running(running, anchor, total, sums, place, query_head, features, keep, VALUE_DIM, BLOCK_E)
            if PAIRED:
                others = FEATURES + features
                exponent = exponents_of_keys(of_keys, -gain, bias, keep, FEATURE_MAP)
                logits = exponents_of_queries(of_queries, -gain, log_weight, head, others, keep, FEATURE_MAP)
                anchor, total, sums = load_running(running, place, query_head, others, keep, VALUE_DIM, BLOCK_E)
                anchor, total, sums, top, den, num, scores = attend_chunk(
                    exponent, logits, v, local, filled, tokens_per_step, anchor, total, sums, top, den, num, scores,
                    OPERAND, PRECISION,
                )  # fmt: skip
                store_running(running, anchor, total, sums, place, query_head, others, keep, VALUE_DIM, BLOCK_E)
        scores = tl.where(visible_pairs(local, tokens_per_step), scores, 0.0).to(OPERAND)
        den += tl.sum(scores.to(tl.float32), 1)
        num = tl.dot(scores, v, num, input_precision=PRECISION)  # [C, C] @ [C, E]
        inverse = inverse_of(den)
        store_tile(output, batch, query_head, rows, exists, num * inverse[:, None], VALUE_DIM, BLOCK_E)
        store_vector(query_max, batch, query_head, rows, exists, top)
        store_vector(inverse_sum, batch, query_head, rows, exists, inverse)
        tl.debug_barrier()  # the next chunk loads what this one stored
    writes = (segment == segments - 1) & (query_head % group == 0)
    close_segment(
        running, final, log_weight, place, batch, head, query_head, writes,
        ALL_FEATURES, VALUE_DIM, BLOCK_M, BLOCK_E,
    )  # fmt: skip
