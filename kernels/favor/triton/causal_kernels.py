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
from .full_kernels import initial_softmax, inverse_of, log_normalizer_of
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
    online_softmax_update,
    seen_keys,
    store_block,
    store_block_vector,
    store_tile,
    usable_tokens,
)

HEADROOM = tl.constexpr(60.0)  # bits a key may exceed its anchor by: 2^20 such terms times |v| < 2^40 fit float32


@triton.jit
def initial_walk(initial, log_weight, parts, split, plane, batch_heads, head, features, keep, S: tl.constexpr):
    """Return maximum, sum [M] and sum of p v [M, E] of the initial state and of the splits before `split`."""
    row_max, row_sum, acc = initial_softmax(initial, log_weight, plane, head, features, keep, S)
    if parts is not None:
        part_max, part_row_sum, part_acc = parts
        for earlier in range(split):
            state_index = earlier * batch_heads + plane
            part_row_max = load_block_vector(part_max, state_index, S.ALL, features, keep, NO_MAX)
            new_max = tl.maximum(row_max, part_row_max)
            rescale, part_rescale = tl.exp2(row_max - new_max), tl.exp2(part_row_max - new_max)
            more = load_block_vector(part_row_sum, state_index, S.ALL, features, keep, 0.0)
            row_sum = row_sum * rescale + more * part_rescale
            block = load_block(part_acc, state_index, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)
            acc = acc * rescale[:, None] + block * part_rescale[:, None]
            row_max = new_max
    return row_max, row_sum, acc


@triton.jit
def project_keys(key, mask, w, batch, head, rows, end, norm_scale, S: tl.constexpr):
    """Return w . k [M, S] and the bias [S] of the keys' exponents, -inf for those that are not seen."""
    keep = seen_keys(mask, batch, head, rows, end)
    raw = load_tile(key, batch, head, rows, keep, S.DIM, S.BLOCK_D)
    k = usable_tokens(raw, True, S)
    x = tl.dot(w, tl.trans(k), input_precision=S.PRECISION)  # [M, D] @ [D, S]
    return x, exponent_bias(raw, mask, batch, head, rows, keep, norm_scale, S)


@triton.jit
def store_prefix(states, state, first_anchor, state_index, features, keep, S: tl.constexpr):
    """Write V, z and M of the keys so far and return M; without any it is `first_anchor`."""
    anchors, row_sums, value = states
    row_max, row_sum, acc = state
    seen = row_sum != 0  # or NaN, which stays
    anchor = tl.where(seen, tl.ceil(row_max + tl.log2(tl.where(seen, row_sum, 1.0))), first_anchor)
    z = tl.where(seen, row_sum * tl.exp2(tl.where(seen, row_max - anchor, 0.0)), 0.0)
    store_block(value, state_index, S.ALL, features, keep, acc * inverse_of(row_sum)[:, None], S.VALUE_DIM, S.BLOCK_E)
    store_block_vector(anchors, state_index, S.ALL, features, keep, anchor)
    store_block_vector(row_sums, state_index, S.ALL, features, keep, z)
    return anchor


@triton.jit
def exceeds(row_max, anchor, keep):
    """Return 1 where a kept feature has seen a key beyond its headroom, else 0."""
    return tl.max((keep & (row_max > anchor + HEADROOM)).to(tl.int32), 0)


@triton.jit
def close_walk(final, log_weight, state, plane, head, features, keep, S: tl.constexpr):
    """Write the state (L, V) of all keys."""
    log_normalizer, value = final
    row_max, row_sum, acc = state
    logarithm = log_normalizer_of(row_max, row_sum, log_weight, head, features, keep)
    store_block_vector(log_normalizer, plane, S.ALL, features, keep, logarithm)
    store_block(value, plane, S.ALL, features, keep, acc * inverse_of(row_sum)[:, None], S.VALUE_DIM, S.BLOCK_E)


@triton.jit
def store_part(parts, state, state_index, features, keep, S: tl.constexpr):
    """Write the sums of a split."""
    part_max, part_row_sum, part_acc = parts
    row_max, row_sum, acc = state
    store_block_vector(part_max, state_index, S.ALL, features, keep, row_max)
    store_block_vector(part_row_sum, state_index, S.ALL, features, keep, row_sum)
    store_block(part_acc, state_index, S.ALL, features, keep, acc, S.VALUE_DIM, S.BLOCK_E)


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
    first_anchor = tl.full([S.BLOCK_M], NO_MAX, tl.float32)
    neg_first_anchor = first_anchor
    local = tl.arange(0, BLOCK_S)
    if states is None:
        row_max, row_sum, acc = initial_walk(None, None, None, split, plane, batch_heads, head, features, keep, S)
        neg_row_max, neg_row_sum, neg_acc = row_max, row_sum, acc
    else:
        row_max, row_sum, acc = initial_walk(
            initial, log_weight, parts, split, plane, batch_heads, head, features, keep, S
        )
        neg_row_max, neg_row_sum, neg_acc = row_max, row_sum, acc
        if S.ANTITHETIC:
            neg_row_max, neg_row_sum, neg_acc = initial_walk(
                initial, log_weight, parts, split, plane, batch_heads, head, others, keep, S
            )
        x, bias = project_keys(
            key, mask, w, batch, head, local, tl.minimum(tokens_per_step, token_count), norm_scale, S
        )
        if split == 0:
            first_anchor = anchor_of(exponent_of(x, logit_scale, bias[None, :], S))
            neg_first_anchor = anchor_of(exponent_of(x, -logit_scale, bias[None, :], S))
    anchor, neg_anchor = first_anchor, neg_first_anchor
    per_segment = tl.cdiv(segment_length, BLOCK_S)
    first = split * split_segments
    last = tl.minimum(first + split_segments, segments)
    for position in range(first * per_segment, last * per_segment):
        segment = position // per_segment
        start = segment * segment_length
        end = tl.minimum(start + segment_length, token_count)
        if states is not None and position % per_segment == 0:
            if jumps is not None:
                jumped = exceeds(row_max, anchor, keep) | exceeds(neg_row_max, neg_anchor, keep & S.ANTITHETIC)
                state_index = (segment - 1) * batch_heads + plane
                tl.store(jumps + state_index.to(tl.int64) * S.TILES + tile, jumped, mask=segment > first)
            state_index = segment * batch_heads + plane
            anchor = store_prefix(states, (row_max, row_sum, acc), first_anchor, state_index, features, keep, S)
            if S.ANTITHETIC:
                neg_anchor = store_prefix(
                    states, (neg_row_max, neg_row_sum, neg_acc), neg_first_anchor, state_index, others, keep, S
                )
        rows = start + position % per_segment * BLOCK_S + local
        x, bias = project_keys(key, mask, w, batch, head, rows, end, norm_scale, S)
        seen = seen_keys(mask, batch, head, rows, end)
        v = load_tile(value, batch, head, rows, seen, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)
        row_max, row_sum, acc = online_softmax_update(
            exponent_of(x, logit_scale, bias[None, :], S), v, row_max, row_sum, acc, S
        )
        if S.ANTITHETIC:
            neg_row_max, neg_row_sum, neg_acc = online_softmax_update(
                exponent_of(x, -logit_scale, bias[None, :], S), v, neg_row_max, neg_row_sum, neg_acc, S
            )
    if states is None:
        state_index = split * batch_heads + plane
        store_part(parts, (row_max, row_sum, acc), state_index, features, keep, S)
        if S.ANTITHETIC:
            store_part(parts, (neg_row_max, neg_row_sum, neg_acc), state_index, others, keep, S)
    else:
        if jumps is not None:
            jumped = exceeds(row_max, anchor, keep) | exceeds(neg_row_max, neg_anchor, keep & S.ANTITHETIC)
            state_index = (last - 1) * batch_heads + plane
            tl.store(jumps + state_index.to(tl.int64) * S.TILES + tile, jumped, mask=last > first)
        is_last = keep_if(split == splits - 1, keep)
        state_index = segments * batch_heads + plane
        state, neg_state = (row_max, row_sum, acc), (neg_row_max, neg_row_sum, neg_acc)
        store_prefix(states, state, first_anchor, state_index, features, is_last, S)
        if S.ANTITHETIC:
            store_prefix(states, neg_state, neg_first_anchor, state_index, others, is_last, S)
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
    seen = seen_keys(mask, batch, head, rows, end)
    raw = load_tile(key, batch, head, rows, seen, S.DIM, S.BLOCK_D)
    bias = exponent_bias(raw, mask, batch, head, rows, seen, norm_scale, S)
    v = load_tile(value, batch, head, rows, seen, S.VALUE_DIM, S.BLOCK_E).to(S.OPERAND)
    q = cut_entries(load_tile(query, batch, query_head, rows, rows < end, S.DIM, S.BLOCK_D))
    return usable_tokens(raw, True, S), bias, v, q


@triton.jit
def segment_jumps(jumps, state_index, S: tl.constexpr):
    """Return whether one of the segment's keys exceeds its headroom in any feature tile of the walk."""
    tiles = tl.arange(0, triton.next_power_of_2(S.WALK_TILES))
    return tl.max(load_block_vector(jumps, state_index, S.WALK_TILES, tiles, tiles < S.WALK_TILES, 0), 0) > 0


@triton.jit
def raise_anchors(exponent, source, target, features, keep, low, end, local, tokens_per_step, states, S: tl.constexpr):
    """Write the anchors and z [M] of the part that starts at row `low`; return the first row of a later part, or end.

    An anchor is raised to the largest exponent of the step at `low`, if that exceeds its headroom.
    """
    anchors, row_sums, _ = states
    anchor = load_block_vector(anchors, source, S.ALL, features, keep, NO_MAX)
    z = load_block_vector(row_sums, source, S.ALL, features, keep, 0.0)
    in_step = (local >= low) & (local < low + tokens_per_step)
    peak = tl.max(tl.where(in_step[:, None] & keep[None, :], exponent, float("-inf")), 0)  # [M]
    new_max = tl.where(peak > anchor + HEADROOM, tl.ceil(peak), anchor)
    fall = anchor - new_max
    tl.debug_barrier()  # all threads have loaded what is overwritten
    store_block_vector(anchors, target, S.ALL, features, keep, new_max)
    store_block_vector(row_sums, target, S.ALL, features, keep, tl.where(fall > -100.0, z * tl.exp2(fall), 0.0))
    jumped = (exponent > (new_max + HEADROOM)[None, :]) & (local >= low)[:, None] & keep[None, :]
    step_start = local - local % tokens_per_step
    return tl.minimum(end, tl.min(tl.where(jumped, step_start[:, None], end)))


@triton.jit
def next_part(
    k, bias, projection, batch, head, own, spare, low, filled, local, tokens_per_step, states, logit_scale,
    S: tl.constexpr,
):  # fmt: skip
    """Find the end of the part that starts at row `low`, and leave its anchors and z at index `spare` of the states.

    The first part goes on from the anchors at index `own`, later ones from those of the part before.
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
def query_logits(of_queries, logit_scale, log_weight, states, state_index, head, features, keep, S: tl.constexpr):
    """Return a + M [C, M] of queries with the anchors M [M] of a state; both are harmless for missing features."""
    anchor = load_block_vector(states[0], state_index, S.ALL, features, keep, 0.0)
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
    logits, anchor, of_keys, logit_scale, key_bias, states, source, landmark_index, features, keep, reference,
    row_sum, acc, scores, S: tl.constexpr,
):  # fmt: skip
    """Add features with logits [C, M], relative to the rows' `reference` [C], to den [C], o [C, E] and T [C, C]."""
    z = load_block_vector(states[1], source, S.ALL, features, keep, 0.0)
    landmarks = load_block(states[2], landmark_index, S.ALL, features, keep, S.VALUE_DIM, S.BLOCK_E)  # [M, E]
    feature = tl.exp2(logits - reference[:, None])  # [C, M]
    weight = (feature * z[None, :]).to(S.OPERAND)
    row_sum += tl.sum(weight.to(tl.float32), 1)  # of the rounded weights, so that they sum to one
    acc = tl.dot(weight, landmarks, acc, input_precision=S.PRECISION)  # [C, M] @ [M, E]
    if S.WITHIN:
        phi = key_features(of_keys, logit_scale, key_bias, anchor, S).to(S.OPERAND)
        scores = tl.dot(feature.to(S.OPERAND), tl.trans(phi), scores, input_precision=S.PRECISION)  # [C, M] @ [M, C]
    return row_sum, acc, scores


@triton.jit
def attend_part(
    q, k, key_bias, projection, log_weight, states, source, landmark_index, batch, head, inside, row_max, row_sum, acc,
    scores, logit_scale, S: tl.constexpr,
):  # fmt: skip
    """Fold all features into x, den [C], o [C, E] and T [C, C] of the rows inside a part; others stay as they are.

    The anchors and z of the part stand at index `source` of the states, V at `landmark_index`.
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
            logits, anchor, of_keys, logit_scale, key_bias, states, source, landmark_index, features, keep, reference,
            row_sum, acc, scores, S,
        )  # fmt: skip
        if S.ANTITHETIC:
            row_sum, acc, scores = attend_features(
                neg_logits, neg_anchor, of_keys, -logit_scale, key_bias, states, source, landmark_index, others, keep,
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
                    k, bias, projection, batch, head, own, spare, low, filled, local, tokens_per_step, states,
                    logit_scale, S,
                )  # fmt: skip
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
