"""GPU kernels of causal FAVOR attention, forward: a walk over the keys that leaves states, and queries that read them.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features;
tiles [S] keys of the walk, [C] tokens of a segment (queries or keys), [M] features, [D] and [E] padded dims.

    kernel                   one program owns                     loops over            keeps in registers
    _prefix_states_kernel    M features, a split of the segments  key tiles             max, sum [M], sum of v [M, E]
    _causal_attend_kernel    C queries of one segment             feature tiles         max, sum [C], o [C, E], T [C, C]

A segment holds whole time steps. The walk is hop 1 of full attention that goes on from segment to segment; before each
it stores the state of the keys so far, in the operands' dtype. A segment's queries read that state, and where WITHIN
their own segment's keys through a [C, C] product. Steps too long for that are segments by themselves, whose queries
see all of them: they read the state behind their segment. With c_jr the exponent of key j and a_ir that of query i
(base 2, log-weight on the query's side):

    f_ir = exp2(a_ir + M_r - x_i),  x_i = max_r (a_ir + M_r)     phi_jr = exp2(c_jr - M_r)
    z_r = sum_{earlier j} phi_jr    V_r = sum_{earlier j} phi_jr v_j / z_r
    T_ij = sum_r f_ir phi_jr where step(j) <= step(i), else 0
    o_i = (sum_r f_ir z_r V_r + sum_j T_ij v_j) / (sum_r f_ir z_r + sum_j T_ij)

The anchor M_r is a whole number, so that moving it is exact: the logarithm of the state before the segment, or of the
first step where there is none. The walk notes for each segment whether one of its keys exceeds an anchor by more than
HEADROOM. If so, the segment is cut before that step into *parts*, each with its own anchors (`next_part`): an anchor is
thus attained by keys that all rows it serves can see, nothing overflows, what underflows is below 2^-126 of something
kept, no row is 0 / 0, and no bit of a row depends on a key it cannot see. All but unusual inputs have one part.

Memory traffic: keys and values once a feature tile, queries once, m (e + 2) numbers of state written and read a
segment. Splits of the walk go on from the sums of earlier ones, merged in order; there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .feature_maps import exponent_of
from .full_backward_kernels import key_shift, usable_tokens
from .full_kernels import inverse_of, relative_maximum
from .tiles import (
    LN_2,
    LOG2_E,
    NO_MAX,
    cut_entries,
    keep_if,
    load_block,
    load_block_vector,
    load_tile,
    load_vector,
    online_softmax_update,
    seen_keys,
    store_block,
    store_block_vector,
    store_tile,
)

HEADROOM = tl.constexpr(60.0)  # bits a key may exceed its anchor by: 2^20 such terms times |v| < 2^40 fit float32


@triton.jit
def open_walk(initial, log_weight, parts, split, plane, batch_heads, head, features, keep, S: tl.constexpr):
    """Return maximum, sum [M] and sum of p v [M, E] of the initial state and of the splits before `split`."""
    top = tl.full([S.BLOCK_M], NO_MAX, tl.float32)
    total = tl.zeros([S.BLOCK_M], tl.float32)
    sums = tl.zeros([S.BLOCK_M, S.BLOCK_E], tl.float32)
    if initial is not None:
        log_normalizer, value = initial
        logarithm = load_block_vector(log_normalizer, plane, S.ALL, features, keep, float("-inf"))
        top = relative_maximum(logarithm, log_weight, head, features, keep)
        total = tl.where(top == NO_MAX, 0.0, 1.0)
        average = load_block(value, plane, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)
        sums = tl.where((total == 0)[:, None], 0.0, average)
    if parts is not None:
        part_max, part_total, part_sums = parts
        for earlier in range(split):
            place = earlier * batch_heads + plane
            part_top = load_block_vector(part_max, place, S.ALL, features, keep, NO_MAX)
            new_max = tl.maximum(top, part_top)
            rescale, neg_shrink = tl.exp2(top - new_max), tl.exp2(part_top - new_max)
            other = load_block_vector(part_total, place, S.ALL, features, keep, 0.0)
            total = total * rescale + other * neg_shrink
            block = load_block(part_sums, place, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)
            sums = sums * rescale[:, None] + block * neg_shrink[:, None]
            top = new_max
    return top, total, sums


@triton.jit
def project_keys(key, mask, w, batch, head, rows, end, norm_scale, S: tl.constexpr):
    """Return w . k [M, S] and the bias [S] of the keys' exponents, -inf for those that are not seen."""
    keep = seen_keys(mask, batch, rows, end)
    raw = load_tile(key, batch, head, rows, keep, S.DIM, S.BLOCK_D)
    k = usable_tokens(raw, True, S)
    x = tl.dot(w, tl.trans(k), input_precision=S.PRECISION)  # [M, D] @ [D, S]
    return x, key_shift(raw, keep, norm_scale, S)


@triton.jit
def store_prefix(states, state, opening, place, features, keep, S: tl.constexpr):
    """Write V, z and M of the keys so far and return M; without any it is `opening`."""
    anchors, totals, value = states
    top, total, sums = state
    seen = total != 0  # or NaN, which stays
    anchor = tl.where(seen, tl.ceil(top + tl.log2(tl.where(seen, total, 1.0))), opening)
    z = tl.where(seen, total * tl.exp2(tl.where(seen, top - anchor, 0.0)), 0.0)
    store_block(value, place, S.ALL, features, keep, sums * inverse_of(total)[:, None], S.VALUE_DIM, S.BLOCK_E)
    store_block_vector(anchors, place, S.ALL, features, keep, anchor)
    store_block_vector(totals, place, S.ALL, features, keep, z)
    return anchor


@triton.jit
def exceeds(top, anchor, keep):
    """Return 1 where a kept feature has seen a key beyond its headroom, else 0."""
    return tl.max((keep & (top > anchor + HEADROOM)).to(tl.int32), 0)


@triton.jit
def close_walk(final, log_weight, state, plane, head, features, keep, S: tl.constexpr):
    """Write the state (L, V) of all keys."""
    log_normalizer, value = final
    top, total, sums = state
    logarithm = top * LN_2 + tl.log(tl.where(total != 0, total, 1.0))
    if log_weight is not None:
        logarithm += load_vector(log_weight, head * 0, head, features, keep, 0.0)
    logarithm = tl.where(total != 0, logarithm, float("-inf"))
    store_block_vector(log_normalizer, plane, S.ALL, features, keep, logarithm)
    store_block(value, plane, S.ALL, features, keep, sums * inverse_of(total)[:, None], S.VALUE_DIM, S.BLOCK_E)


@triton.jit
def store_part(parts, state, place, features, keep, S: tl.constexpr):
    """Write the sums of a split."""
    part_max, part_total, part_sums = parts
    top, total, sums = state
    store_block_vector(part_max, place, S.ALL, features, keep, top)
    store_block_vector(part_total, place, S.ALL, features, keep, total)
    store_block(part_sums, place, S.ALL, features, keep, sums, S.VALUE_DIM, S.BLOCK_E)


@triton.jit(do_not_specialize=["token_count", "segment_length", "segments", "split_segments", "splits",
                               "tokens_per_step", "batch_heads"])  # fmt: skip
def _prefix_states_kernel(
    key, value, mask, projection, log_weight, initial, parts, states, jumps, final, token_count, segment_length,
    segments, split_segments, splits, tokens_per_step, heads, batch_heads, logit_scale, norm_scale,
    BLOCK_S: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Own a feature tile and a split of the segments of one head: the state before each segment, and of all keys.

    Without `states`, it only sums its split into `parts`, from which a second launch goes on.
    """
    index = tl.program_id(0)
    tile, index = index % S.TILES, index // S.TILES  # neighbours share keys and values, in the second-level cache
    split, plane = index % splits, index // splits
    head, batch = plane % heads, plane // heads
    features = tile * S.BLOCK_M + tl.arange(0, S.BLOCK_M)
    keep, others = features < S.FEATURES, features + S.FEATURES
    w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(key.pointer.dtype.element_ty)  # [M, D]
    opening = tl.full([S.BLOCK_M], NO_MAX, tl.float32)
    neg_opening = opening
    local = tl.arange(0, BLOCK_S)
    if states is None:
        top, total, sums = open_walk(None, None, None, split, plane, batch_heads, head, features, keep, S)
        neg_top, neg_total, neg_sums = top, total, sums
    else:
        top, total, sums = open_walk(initial, log_weight, parts, split, plane, batch_heads, head, features, keep, S)
        neg_top, neg_total, neg_sums = top, total, sums
        if S.ANTITHETIC:
            neg_top, neg_total, neg_sums = open_walk(
                initial, log_weight, parts, split, plane, batch_heads, head, others, keep, S
            )
        x, bias = project_keys(
            key, mask, w, batch, head, local, tl.minimum(tokens_per_step, token_count), norm_scale, S
        )
        if split == 0:
            opening = anchor_of(exponent_of(x, logit_scale, bias[None, :], S))
            neg_opening = anchor_of(exponent_of(x, -logit_scale, bias[None, :], S))
    anchor, neg_anchor = opening, neg_opening
    per_segment = tl.cdiv(segment_length, BLOCK_S)
    first = split * split_segments
    last = tl.minimum(first + split_segments, segments)
    for position in range(first * per_segment, last * per_segment):
        segment = position // per_segment
        start = segment * segment_length
        end = tl.minimum(start + segment_length, token_count)
        if states is not None and position % per_segment == 0:
            if jumps is not None:
                jumped = exceeds(top, anchor, keep) | exceeds(neg_top, neg_anchor, keep & S.ANTITHETIC)
                place = (segment - 1) * batch_heads + plane
                tl.store(jumps + place.to(tl.int64) * S.TILES + tile, jumped, mask=segment > first)
            place = segment * batch_heads + plane
            anchor = store_prefix(states, (top, total, sums), opening, place, features, keep, S)
            if S.ANTITHETIC:
                neg_anchor = store_prefix(states, (neg_top, neg_total, neg_sums), neg_opening, place, others, keep, S)
        rows = start + position % per_segment * BLOCK_S + local
        x, bias = project_keys(key, mask, w, batch, head, rows, end, norm_scale, S)
        v = load_tile(value, batch, head, rows, seen_keys(mask, batch, rows, end), S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)
        top, total, sums = online_softmax_update(exponent_of(x, logit_scale, bias[None, :], S), v, top, total, sums, S)
        if S.ANTITHETIC:
            neg_top, neg_total, neg_sums = online_softmax_update(
                exponent_of(x, -logit_scale, bias[None, :], S), v, neg_top, neg_total, neg_sums, S
            )
    if states is None:
        place = split * batch_heads + plane
        store_part(parts, (top, total, sums), place, features, keep, S)
        if S.ANTITHETIC:
            store_part(parts, (neg_top, neg_total, neg_sums), place, others, keep, S)
    else:
        if jumps is not None:
            jumped = exceeds(top, anchor, keep) | exceeds(neg_top, neg_anchor, keep & S.ANTITHETIC)
            place = (last - 1) * batch_heads + plane
            tl.store(jumps + place.to(tl.int64) * S.TILES + tile, jumped, mask=last > first)
        is_last = keep_if(split == splits - 1, keep)
        place = segments * batch_heads + plane
        state, neg_state = (top, total, sums), (neg_top, neg_total, neg_sums)
        store_prefix(states, state, opening, place, features, is_last, S)
        if S.ANTITHETIC:
            store_prefix(states, neg_state, neg_opening, place, others, is_last, S)
        if final is not None:
            close_walk(final, log_weight, state, plane, head, features, is_last, S)
            if S.ANTITHETIC:
                close_walk(final, log_weight, neg_state, plane, head, others, is_last, S)


@triton.jit
def anchor_of(exponent):
    """Return the anchors [M] of a step with exponents [M, S], NO_MAX where none of its keys is seen."""
    return tl.maximum(tl.ceil(tl.max(exponent, 1)), NO_MAX)


@triton.jit
def load_segment(query, key, value, mask, batch, head, query_head, rows, end, norm_scale, S: tl.constexpr):
    """Load keys [C, D] with the bias of their exponents [C], values [C, E] and queries [C, D]."""
    seen = seen_keys(mask, batch, rows, end)
    raw = load_tile(key, batch, head, rows, seen, S.DIM, S.BLOCK_D)
    bias = key_shift(raw, seen, norm_scale, S)
    v = load_tile(value, batch, head, rows, seen, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)
    q = cut_entries(load_tile(query, batch, query_head, rows, rows < end, S.DIM, S.BLOCK_D))
    return usable_tokens(raw, True, S), bias, v, q


@triton.jit
def segment_jumps(jumps, place, S: tl.constexpr):
    """Return whether one of the segment's keys exceeds its headroom in any feature tile of the walk."""
    tiles = tl.arange(0, triton.next_power_of_2(S.WALK_TILES))
    return tl.max(load_block_vector(jumps, place, S.WALK_TILES, tiles, tiles < S.WALK_TILES, 0), 0) > 0


@triton.jit
def raise_anchors(exponent, source, target, features, keep, low, end, local, tokens_per_step, states, S: tl.constexpr):
    """Write the anchors and z [M] of the part that starts at row `low`; return the first row of a later part, or end.

    An anchor is raised to the largest exponent of the step at `low`, if that exceeds its headroom.
    """
    anchors, totals, _ = states
    anchor = load_block_vector(anchors, source, S.ALL, features, keep, NO_MAX)
    total = load_block_vector(totals, source, S.ALL, features, keep, 0.0)
    in_step = (local >= low) & (local < low + tokens_per_step)
    peak = tl.max(tl.where(in_step[:, None] & keep[None, :], exponent, float("-inf")), 0)  # [M]
    new_max = tl.where(peak > anchor + HEADROOM, tl.ceil(peak), anchor)
    fall = anchor - new_max
    tl.debug_barrier()  # all threads have loaded what is overwritten
    store_block_vector(anchors, target, S.ALL, features, keep, new_max)
    store_block_vector(totals, target, S.ALL, features, keep, tl.where(fall > -100.0, total * tl.exp2(fall), 0.0))
    jumped = (exponent > (new_max + HEADROOM)[None, :]) & (local >= low)[:, None] & keep[None, :]
    step_start = local - local % tokens_per_step
    return tl.minimum(end, tl.min(tl.where(jumped, step_start[:, None], end)))


@triton.jit
def next_part(
    k, bias, projection, batch, head, own, spare, low, filled, local, tokens_per_step, states, logit_scale,
    S: tl.constexpr,
):  # fmt: skip
    """Find the end of the part that starts at row `low`, and leave its anchors and z at place `spare` of the states.

    The first part goes on from the anchors at place `own`, later ones from those of the part before.
    """
    end = filled
    source = tl.where(low == 0, own, spare)
    for tile in range(0, S.FEATURES, S.BLOCK_M):
        features = tile + tl.arange(0, S.BLOCK_M)
        keep = features < S.FEATURES
        w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D).to(k.dtype)  # [M, D]
        x = tl.dot(k, tl.trans(w), input_precision=S.PRECISION)  # [C, D] @ [D, M]
        exponent = exponent_of(x, logit_scale, bias[:, None], S)
        end = raise_anchors(exponent, source, spare, features, keep, low, end, local, tokens_per_step, states, S)
        if S.ANTITHETIC:
            exponent = exponent_of(x, -logit_scale, bias[:, None], S)
            end = raise_anchors(
                exponent, source, spare, features + S.FEATURES, keep, low, end, local, tokens_per_step, states, S
            )
    tl.debug_barrier()  # what one thread stored, another loads
    return end


@triton.jit
def visible_pairs(local, tokens_per_step):
    """Return [C, C], True where the key's step is not after the query's."""
    step_end = (local // tokens_per_step + 1) * tokens_per_step
    return local[None, :] < step_end[:, None]  # a row divides once, whatever the columns


@triton.jit
def query_logits(of_queries, logit_scale, log_weight, states, place, head, features, keep, S: tl.constexpr):
    """Return a + M [C, M] of queries with the anchors M [M] of a state; both are harmless for missing features."""
    anchor = load_block_vector(states[0], place, S.ALL, features, keep, 0.0)
    bias = tl.where(keep, anchor, float("-inf"))
    if log_weight is not None:
        bias += load_vector(log_weight, head * 0, head, features, keep, 0.0) * LOG2_E
    return exponent_of(of_queries, logit_scale, bias[None, :], S), anchor


@triton.jit
def key_features(of_keys, logit_scale, bias, anchor, S: tl.constexpr):
    """Return phi [C, M] = exp2(c - M)."""
    return tl.exp2(exponent_of(of_keys, logit_scale, bias[:, None], S) - anchor[None, :])


@triton.jit
def attend_features(
    logits, anchor, of_keys, logit_scale, key_bias, states, source, landmark_place, features, keep, reference,
    row_sum, acc, scores, S: tl.constexpr,
):  # fmt: skip
    """Add features with logits [C, M], relative to the rows' `reference` [C], to den [C], o [C, E] and T [C, C]."""
    total = load_block_vector(states[1], source, S.ALL, features, keep, 0.0)
    landmarks = load_block(states[2], landmark_place, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)  # [M, E]
    feature = tl.exp2(logits - reference[:, None])  # [C, M]
    weight = (feature * total[None, :]).to(S.OPERAND)
    row_sum += tl.sum(weight.to(tl.float32), 1)  # of the rounded weights, so that they sum to one
    acc = tl.dot(weight, landmarks, acc, input_precision=S.PRECISION)  # [C, M] @ [M, E]
    if S.WITHIN:
        phi = key_features(of_keys, logit_scale, key_bias, anchor, S).to(S.OPERAND)
        scores = tl.dot(feature.to(S.OPERAND), tl.trans(phi), scores, input_precision=S.PRECISION)  # [C, M] @ [M, C]
    return row_sum, acc, scores


@triton.jit
def attend_part(
    q, k, key_bias, projection, log_weight, states, source, landmark_place, batch, head, inside, row_max, row_sum, acc,
    scores, logit_scale, S: tl.constexpr,
):  # fmt: skip
    """Fold all features into x, den [C], o [C, E] and T [C, C] of the rows inside a part; others stay as they are.

    The anchors and z of the part stand at place `source` of the states, V at `landmark_place`.
    """
    for tile in range(0, S.FEATURES, S.BLOCK_M):
        features = tile + tl.arange(0, S.BLOCK_M)
        keep = features < S.FEATURES
        w = load_tile(projection, batch, head, features, keep, S.DIM, S.BLOCK_D)  # [M, D]
        of_queries = tl.dot(q, tl.trans(w.to(q.dtype)), input_precision=S.PRECISION)  # [C, D] @ [D, M]
        of_keys = of_queries
        if S.WITHIN:
            of_keys = tl.dot(k, tl.trans(w.to(k.dtype)), input_precision=S.PRECISION)
        logits, anchor = query_logits(of_queries, logit_scale, log_weight, states, source, head, features, keep, S)
        highest = tl.max(logits, 1)
        if S.ANTITHETIC:
            others = features + S.FEATURES
            neg_logits, neg_anchor = query_logits(
                of_queries, -logit_scale, log_weight, states, source, head, others, keep, S
            )
            highest = tl.maximum(highest, tl.max(neg_logits, 1))
        new_max = tl.maximum(row_max, tl.where(inside, highest, NO_MAX))
        reference = tl.where(inside, new_max, float("inf"))
        rescale = tl.exp2(row_max - new_max)
        row_max = new_max
        row_sum, acc, scores = row_sum * rescale, acc * rescale[:, None], scores * rescale[:, None]
        row_sum, acc, scores = attend_features(
            logits, anchor, of_keys, logit_scale, key_bias, states, source, landmark_place, features, keep, reference,
            row_sum, acc, scores, S,
        )  # fmt: skip
        if S.ANTITHETIC:
            row_sum, acc, scores = attend_features(
                neg_logits, neg_anchor, of_keys, -logit_scale, key_bias, states, source, landmark_place, others, keep,
                reference, row_sum, acc, scores, S,
            )  # fmt: skip
    return row_max, row_sum, acc, scores


@triton.jit
def segment_of(index, segment_length, token_count, heads, batch_heads, BLOCK_C: tl.constexpr, S: tl.constexpr):
    """Return (rows [C], end, local [C], segment, batch, head, plane) of a program; segments WITHIN are one tile."""
    tiles = tl.cdiv(segment_length, BLOCK_C)
    if S.WITHIN:
        tiles = 1
    tile, index = index % tiles, index // tiles
    plane, segment = index % batch_heads, index // batch_heads
    local = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    start = segment * segment_length
    end = tl.minimum(start + segment_length, token_count)
    return start + local, end, local, segment, plane // heads, plane % heads, plane


@triton.jit(do_not_specialize=["token_count", "segment_length", "segments", "tokens_per_step", "batch_heads"])
def _causal_attend_kernel(
    query, key, value, mask, projection, log_weight, states, jumps, output, statistics, token_count, segment_length,
    segments, tokens_per_step, query_heads, group, batch_heads, logit_scale, norm_scale, BLOCK_C: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """Own C queries of a segment of one query head; `batch_heads` counts batches and query heads."""
    rows, end, local, segment, batch, query_head, query_plane = segment_of(
        tl.program_id(0), segment_length, token_count, query_heads, batch_heads, BLOCK_C, S
    )
    head, key_planes = query_head // group, batch_heads // group
    plane = batch * (query_heads // group) + head
    exists = rows < end
    row_max = tl.full([BLOCK_C], NO_MAX, tl.float32)
    row_sum = tl.zeros([BLOCK_C], tl.float32)
    acc = tl.zeros([BLOCK_C, S.BLOCK_E], tl.float32)
    scores = tl.zeros([BLOCK_C, BLOCK_C if S.WITHIN else 1], tl.float32)
    if S.WITHIN:
        k, bias, v, q = load_segment(query, key, value, mask, batch, head, query_head, rows, end, norm_scale, S)
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
                    k,
                    bias,
                    projection,
                    batch,
                    head,
                    own,
                    spare,
                    low,
                    filled,
                    local,
                    tokens_per_step,
                    states,
                    logit_scale,
                    S,
                )
            row_max, row_sum, acc, scores = attend_part(
                q, k, tl.where(local < part_end, bias, float("-inf")), projection, log_weight, states, source, own,
                batch, head, (local >= low) & (local < part_end), row_max, row_sum, acc, scores, logit_scale, S,
            )  # fmt: skip
            low = part_end
        scores = tl.where(visible_pairs(local, tokens_per_step), scores, 0.0).to(S.OPERAND)
        row_sum += tl.sum(scores.to(tl.float32), 1)
        acc = tl.dot(scores, v, acc, input_precision=S.PRECISION)  # [C, C] @ [C, E]
    else:
        q = cut_entries(load_tile(query, batch, query_head, rows, exists, S.DIM, S.BLOCK_D))
        own = (segment + 1) * key_planes + plane
        row_max, row_sum, acc, scores = attend_part(
            q, q, row_sum, projection, log_weight, states, own, own, batch, head, exists, row_max, row_sum, acc, scores,
            logit_scale, S,
        )  # fmt: skip
    inverse = inverse_of(row_sum)
    store_tile(output, batch, query_head, rows, exists, acc * inverse[:, None], S.VALUE_DIM, S.BLOCK_E)
    query_max, inverse_sum = statistics
    store_block_vector(query_max, query_plane, token_count, rows, exists, row_max)
    store_block_vector(inverse_sum, query_plane, token_count, rows, exists, inverse)
