"""Causal FAVOR attention in blocks, linear in the length and exact whatever the norms: the CPU implementation.

Dimension key: b batch, h key heads, g query heads per key head, t tokens, d head dim, e value dim, m features,
G heads of a block, n tokens of a chunk.

A chunk holds whole time steps. Rows attend to the keys before the chunk through a state and to the chunk's own keys
through an (n, n) product:

    phi_jr = exp(e_jr - a_r)    f_ir = exp(w_r . q_i + a_r - x_i),  x_i = max_r(w_r . q_i + a_r)
    S_r = sum_{earlier j} phi_jr [v_j, 1]      T_ij = sum_r f_ir phi_jr where step(j) <= step(i), else 0
    [num_i, den_i] = f_i S + sum_j T_ij [v_j, 1]           o_i = num_i / den_i

Where a chunk is a single step, its rows all see all its keys: S_r then includes them and there is no T.

The anchor a_r cancels in o, but decides what underflows. It starts at the first visible key's exponent and is raised,
S being rescaled, only when a step's exponent exceeds it by more than HEADROOM. The chunk is then split before that
step: a raise never uses a key that one of the rows it serves cannot see. So each S_r holds a term of at least
exp(-HEADROOM) times the largest one lost, no row can end in 0 / 0, and a row's bits do not depend on later keys: rows
of both parts of a split chunk are computed in matrix products of the same shape, with the other part's keys at zero.

Backward, with alpha_ir = f_ir / den_i, D_i = do_i . o_i and G_ij = do_i . v_j - D_i: a forward scan for

    dlogit_ir = alpha_ir ([do_i, -D_i] . S_r + sum_{visible j in chunk} G_ij phi_jr)             dq = dlogit W

and a reverse scan carrying R_r = sum_{later i} alpha_ir [do_i, -D_i] (rescaled where the anchor was raised) for

    de_jr = phi_jr ([v_j, 1] . R_r + sum_i G_ij alpha_ir)     dv_j = phi_j R + sum_i (alpha phi^T)_ij do_i
    dk_j = sum_r de_jr (w_r - k_j)     dbeta_j = sum_r de_jr.

An initial state (L0, V0) opens the scan as S = [V0, 1] with a = L0; the state of all keys is read off S at the end, and
its gradient opens the reverse scan. Anchors and maxima are constants of the result, so no gradient passes through them.
Kept between the passes: q, k, v, o, x and den; of the state nothing, it is rebuilt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import (
    CausalGradients,
    CausalInputs,
    CausalResults,
    CausalUpstream,
    FavorState,
    attention_output,
)
from .blocks import (
    HeadGroup,
    accumulation_dtype,
    add_to,
    bias_gradient,
    exponents,
    head_groups,
    key_weights,
    load_queries,
    query_weights,
    store_rows,
)
from .causal_chunks import (
    NO_MAX,
    CausalGroup,
    Part,
    causal_parts,
    initial_sums,
    rebuild_part,
    state_of_sums,
)
from .full import (
    key_gradient,
    output_gradient,
    query_gradient,
    reduce_to_parameters,
    weight_gradient,
)


def causal_reference(inputs: CausalInputs) -> CausalResults:
    """Attend to the keys of the own and of earlier steps, and to the initial state; o has query's dtype."""
    query, key, value, space = inputs.query, inputs.key, inputs.value, inputs.space
    (b, h, t, d), e = key.shape, value.shape[-1]
    m = space.projection.shape[-2]
    dtype = accumulation_dtype(query, key, value, space.projection)
    output = attention_output(query, e)
    statistics = torch.empty((2, *query.shape[:-1]), dtype=dtype, device=query.device)
    log_normalizer = torch.empty((b, h, m), dtype=dtype, device=query.device)
    state = FavorState(log_normalizer, torch.empty((b, h, m, e), dtype=dtype, device=query.device))
    queries, outputs, maxima, sums = (x.unflatten(1, (h, -1)) for x in (query, output, *statistics))
    heads_per_key = queries.shape[2]
    for heads in head_groups(b, h, t * (1 + heads_per_key), m):
        group = CausalGroup(inputs, heads, dtype)
        last: Part | None = None
        weights = query_weights(space, None, heads, queries, dtype)
        for part in causal_parts(group):
            block = load_queries(queries, heads, part.rows, space, dtype)
            logits, _ = exponents(block, weights, d, space.feature_map)
            logits += part.anchor.unsqueeze(1)
            highest = logits.amax(-1, keepdim=True)
            phi_query = logits.sub_(highest).exp_()
            total = torch.bmm(phi_query, part.state)
            if not group.chunk_is_one_step:
                scores = torch.bmm(phi_query, part.phi.transpose(1, 2)).mul_(group.visible(part, heads_per_key))
                total.baddbmm_(scores, part.values)
            denominator = total[..., e:]
            rows = torch.cat(
                [total[..., :e] / torch.where(denominator > 0, denominator, 1.0), highest, denominator], -1
            )
            for target, columns in ((outputs, rows[..., :e]), (maxima, rows[..., e]), (sums, rows[..., e + 1])):
                _store_inside(target, heads, part, columns)
            last = part
        final = initial_sums(group) if last is None else (last.anchor, last.after)
        _store_state(state, heads, state_of_sums(*final))
    return CausalResults(output, state, statistics)


def causal_backward_reference(
    upstream: CausalUpstream, inputs: CausalInputs, results: CausalResults, parameter_gradients: bool
) -> CausalGradients:
    """Differentiate `causal_reference`; a state without an upstream gradient has zeros."""
    query, key, value, initial, space = inputs.query, inputs.key, inputs.value, inputs.initial, inputs.space
    b, h, t, d = key.shape
    m = space.projection.shape[-2]
    dtype = results.statistics.dtype
    d_initial = None if initial is None else FavorState(*(x.new_empty(x.shape) for x in initial))
    d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    d_mask = bias_gradient(inputs.mask)
    d_weights = torch.zeros((b, h, m, d + 2), dtype=dtype, device=key.device)
    by_key_head = tuple(x.unflatten(1, (h, -1)) for x in (query, upstream.output, results.output, *results.statistics))
    d_queries = d_query.unflatten(1, (h, -1))
    for heads in head_groups(b, h, t * (1 + by_key_head[0].shape[2]), m):
        group = CausalGroup(inputs, heads, dtype)
        scan = _BackwardScan(group, by_key_head)
        if upstream.state is not None:
            scan.receive(results.state, upstream.state)
        parts = []
        for part in causal_parts(group):
            d_logits, slope, block = scan.query_side(part)
            d_block = query_gradient(d_logits, slope, scan.query_weights, d, space.scale)
            _store_inside(d_queries, heads, part, d_block)
            parts.append((part.rows, part.inside, part.anchor))
            if parameter_gradients:
                d_projection = weight_gradient(d_logits, slope, block, d)
                add_to(d_weights[..., :d], heads, d_projection[..., :d])
        for rows, inside, anchor in reversed(parts):
            d_exponent, slope, keys, d_part_value = scan.key_side(rows, inside, anchor)
            add_to(d_value[:, :, rows], heads, d_part_value.to(value.dtype))
            d_part_key = key_gradient(d_exponent, slope, keys, scan.key_weights, space)
            add_to(d_key[:, :, rows], heads, d_part_key.to(key.dtype))
            if d_mask is not None:
                add_to(d_mask[:, :, rows], heads, d_exponent.sum(-1))
            if parameter_gradients:
                add_to(d_weights, heads, weight_gradient(d_exponent, slope, keys, d))
        if d_initial is not None:
            _store_state(d_initial, heads, scan.initial_gradient())
    features = reduce_to_parameters(d_weights, space) if parameter_gradients else None
    return CausalGradients(d_query, d_key, d_value, d_mask, d_initial, features)


class _BackwardScan:
    """The two scans of one group of heads; `received` is R, carried by the reverse scan in units of its anchor."""

    def __init__(self, group: CausalGroup, by_key_head: tuple[Tensor, ...]) -> None:
        self.group = group
        self.queries, self.d_outputs, self.outputs, self.maxima, self.sums = by_key_head
        self.heads_per_key = self.queries.shape[2]
        self.head_dim = self.queries.shape[-1]
        self.query_weights = query_weights(group.inputs.space, None, group.heads, self.queries, group.dtype)
        self.key_weights = key_weights(group.inputs.space, group.heads, group.inputs.key, group.dtype)
        anchor, state = initial_sums(group)
        self.received = torch.zeros_like(state)
        self.anchor = torch.full_like(anchor, -NO_MAX[group.dtype])  # nothing received yet, at any anchor

    def receive(self, state: FavorState, d_state: FavorState) -> None:
        """Start R with the gradient of the state of all keys: R = [dV, dL - V . dV] relative to L."""
        group, dtype = self.group.heads, self.group.dtype
        (log_normalizer, value), (d_log_normalizer, d_value) = (
            [x[group.batch, group.heads].flatten(0, 1).to(dtype) for x in pair] for pair in (state, d_state)
        )
        known = log_normalizer != -torch.inf
        d_log_normalizer = d_log_normalizer - (value * d_value).sum(-1)
        received = torch.cat([d_value, d_log_normalizer.unsqueeze(-1)], -1)
        self.received = torch.where(known.unsqueeze(-1), received, 0.0)
        self.anchor = torch.where(known, log_normalizer, self.anchor)

    def initial_gradient(self) -> FavorState:
        """Return the gradient (dL0 (G, m), dV0 (G, m, e)) of the initial state: R, of all later rows, from L0."""
        start, state = initial_sums(self.group)
        received = self.received * ((start - self.anchor).exp() * state[..., -1]).unsqueeze(-1)
        return FavorState((state * received).sum(-1), received[..., :-1])

    def query_side(self, part: Part) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return (dlogit (G, g n, m), slope, augmented queries) of a part, zero for rows outside it."""
        alpha, slope, block, upstream = self._alpha(part.rows, part.inside, part.anchor)
        d_logits = torch.bmm(upstream, part.state.transpose(1, 2))
        if not self.group.chunk_is_one_step:
            visible = self.group.visible(part, self.heads_per_key)
            pairs = torch.bmm(upstream, part.values.transpose(1, 2)).mul_(visible)
            d_logits.baddbmm_(pairs, part.phi)
        return d_logits.mul_(alpha), slope, block

    def key_side(
        self, rows: slice, inside: Tensor | None, anchor: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return (de (G, n, m), slope, augmented keys, dv) of a part and add its rows to R."""
        alpha, _, _, upstream = self._alpha(rows, inside, anchor)
        part = rebuild_part(self.group, rows, inside, anchor, self.key_weights)
        received = self.received * (anchor - self.anchor).exp().unsqueeze(-1)
        after = received + torch.bmm(alpha.transpose(1, 2), upstream)
        d_sums = after if self.group.chunk_is_one_step else received
        d_value = torch.bmm(part.phi, d_sums[..., :-1])
        d_exponent = torch.bmm(part.values, d_sums.transpose(1, 2))
        if not self.group.chunk_is_one_step:
            visible = self.group.visible(part, self.heads_per_key)
            scores = torch.bmm(alpha, part.phi.transpose(1, 2)).mul_(visible)
            d_value.baddbmm_(scores.transpose(1, 2), upstream[..., :-1])
            pairs = torch.bmm(upstream, part.values.transpose(1, 2)).mul_(visible)
            d_exponent.baddbmm_(pairs.transpose(1, 2), alpha)
        self.received, self.anchor = after, anchor
        return d_exponent.mul_(part.phi), part.slope, part.keys, d_value

    def _alpha(
        self, rows: slice, inside: Tensor | None, anchor: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        group, dtype, space = self.group.heads, self.group.dtype, self.group.inputs.space
        block = load_queries(self.queries, group, rows, space, dtype)
        logits, slope = exponents(block, self.query_weights, self.head_dim, space.feature_map)
        logits += anchor.unsqueeze(1)
        highest, total = (
            x[group.batch, group.heads, :, rows].flatten(0, 1).flatten(1).unsqueeze(-1)
            for x in (self.maxima, self.sums)
        )
        keep = total > 0 if inside is None else (total > 0) & inside.repeat(1, self.heads_per_key).unsqueeze(-1)
        logits = torch.where(keep, logits.sub_(highest), -torch.inf).exp_().div_(torch.where(keep, total, 1.0))
        return logits, slope, block, output_gradient(self.d_outputs, self.outputs, group, rows, dtype)


def _store_inside(target: Tensor, group: HeadGroup, part: Part, block: Tensor) -> None:
    """Write a part's rows into a (b, h, g, t, ...) tensor, leaving the chunk's other rows as they are."""
    if part.inside is None:
        store_rows(target, group, part.rows, block)
        return
    view = target[group.batch, group.heads, :, part.rows]
    inside = part.inside.view(view.shape[0], view.shape[1], 1, -1)
    inside = inside if view.ndim == 4 else inside.unsqueeze(-1)
    view.copy_(torch.where(inside, block.reshape(view.shape).to(view.dtype), view))


def _store_state(target: FavorState, heads: HeadGroup, state: FavorState) -> None:
    """Write (G, m) and (G, m, e) back into a state of all heads."""
    for x, block in zip(target, state, strict=True):
        view = x[heads.batch, heads.heads]
        view.copy_(block.view(view.shape))
