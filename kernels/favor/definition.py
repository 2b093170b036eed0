"""FAVOR attention by its definition: the formulas, in plain differentiable torch.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.

These functions say what is computed. They hold every exponent in memory, so they serve the tests as an oracle and
autograd for second derivatives; `reference/` and `triton/` compute the same in blocks.

With x scaled by `scale ** 0.5` (d ** -0.25 unless told otherwise), projection rows w_r, log-weights c_r and the key
bias beta_s, 0 unless given, by which key s counts exp(beta_s) times:

    hop 1, summarize   e_sr = w_r . k_s - |k_s|^2 / 2 + beta_s + c_r
                       L_r  = logsumexp_s e_sr                V_r = sum_s softmax_s(e_sr) v_s
    hop 2, attend      o_t  = sum_r softmax_r(w_r . q_t + L_r) V_r

which is the quotient phi(Q) (phi(K)^T V) / phi(Q) (phi(K)^T 1) of Choromanski et al. 2021, eq. (4), without ever
forming phi: |q|^2 / 2 and 1 / sqrt(m) cancel, both hops are softmax averages, nothing can overflow and no epsilon is
needed. In the causal form key j is visible to query i iff j // tokens_per_step <= i // tokens_per_step, and

    A_ij = sum_r exp(w_r . q_i + e_jr)      o_i = sum_{visible j} A_ij v_j / sum_{visible j} A_ij.

A state (L0, V0) of earlier keys is visible to all queries: it adds, for each r, a key of weight exp(w_r . q_i + L0_r)
and value V0_r. A query that sees no key gets zeros and sends zero gradients.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .feature_maps import FEATURE_MAPS
from .types import LOWEST_BIAS, FavorState, FeatureSpace


def hidden_keys(mask: Tensor) -> Tensor:
    """Return which keys a mask hides, (b, 1 or h, s): True of padding (b, s), -inf of a bias (b, h, s)."""
    return mask <= LOWEST_BIAS if mask.is_floating_point() else mask.unsqueeze(1)


def key_exponents(key: Tensor, mask: Tensor | None, space: FeatureSpace) -> Tensor:
    """Return e_sr, (b, h, s, m), with -inf at hidden keys."""
    projection = space.projection_for(key)
    key = key.to(projection.dtype) * space.scale**0.5
    hidden = None if mask is None else hidden_keys(mask).unsqueeze(-1)
    if hidden is not None:
        key = key.masked_fill(hidden, 0.0)
    log_feature, _, has_norm = FEATURE_MAPS[space.feature_map]
    exponents = log_feature(key @ projection.transpose(-1, -2))
    if has_norm:
        exponents = exponents - key.square().sum(-1, keepdim=True) / 2
    if space.log_weight is not None:
        exponents = exponents + space.log_weight.unsqueeze(-2)
    if mask is not None and mask.is_floating_point():
        exponents = exponents + mask.unsqueeze(-1).to(exponents.dtype)
    return exponents if hidden is None else exponents.masked_fill(hidden, -torch.inf)


def visible_values(value: Tensor, mask: Tensor | None) -> Tensor:
    """Return values (b, h, s, e) with zeros under a mask, whatever stood there."""
    return value if mask is None else value.masked_fill(hidden_keys(mask).unsqueeze(-1), 0.0)


def query_exponents(query: Tensor, heads: int, space: FeatureSpace) -> Tensor:
    """Return the query side of log phi, (b, h, g, t, m)."""
    projection = space.projection_for(query)
    query = rearrange(query.to(projection.dtype) * space.scale**0.5, "b (h g) t d -> b h g t d", h=heads)
    return FEATURE_MAPS[space.feature_map].log_feature(query @ projection.transpose(-1, -2).unsqueeze(-3))


def summarize_definition(key: Tensor, value: Tensor, mask: Tensor | None, space: FeatureSpace) -> FavorState:
    """Return the state (L, V) of hop 1."""
    exponents = key_exponents(key, mask, space)
    value = visible_values(value.to(exponents.dtype), mask)
    seen = (exponents != -torch.inf).any(-2, keepdim=True)
    exponents = torch.where(seen, exponents, 0.0)
    weights = torch.where(seen, exponents.softmax(-2), 0.0)
    log_normalizer = torch.where(seen.squeeze(-2), exponents.logsumexp(-2), -torch.inf)
    return FavorState(log_normalizer, weights.transpose(-1, -2) @ value)


def attend_definition(query: Tensor, log_normalizer: Tensor, state_value: Tensor, space: FeatureSpace) -> Tensor:
    """Return o (b, h g, t, e) of hop 2, in the dtype of the state."""
    logits = query_exponents(query, log_normalizer.shape[1], space)
    seen = (log_normalizer != -torch.inf).any(-1)[..., None, None, None]
    logits = logits + torch.where(seen[..., 0, 0], log_normalizer, 0.0)[..., None, None, :]
    weights = torch.where(seen, logits.softmax(-1), 0.0)
    return rearrange(weights @ state_value.unsqueeze(-3), "b h g t e -> b (h g) t e")


def causal_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    initial: FavorState | None,
    space: FeatureSpace,
    tokens_per_step: int,
) -> Tensor:
    """Return o (b, h g, t, e) where queries see the keys of their own and of earlier steps; O(t s m) memory.

    `initial` is the state (L0 (b, h, m), V0 (b, h, m, e)) of the keys before the first.
    """
    key_side = key_exponents(key, mask, space)
    query_side = query_exponents(query, key.shape[1], space)
    value = visible_values(value.to(key_side.dtype), mask)
    pairs = rearrange(query_side, "b h g t m -> b h g t 1 m") + rearrange(key_side, "b h s m -> b h 1 1 s m")
    visible = visibility(query.shape[-2], key.shape[-2], tokens_per_step, query.device).expand(pairs.shape[:-1])
    if mask is not None:
        visible = visible & ~hidden_keys(mask)[:, :, None, None, :]
    log_attention = torch.where(visible.unsqueeze(-1), pairs, 0.0).logsumexp(-1)
    value = value.unsqueeze(-3)
    if initial is not None:
        log_normalizer, state_value = (x.to(value.dtype)[:, :, None] for x in initial)
        known = (log_normalizer != -torch.inf).unsqueeze(-2)
        bias = torch.where(known, log_normalizer.unsqueeze(-2), 0.0)
        log_attention = torch.cat([log_attention, query_side + bias], -1)
        visible = torch.cat([visible, known.expand_as(query_side)], -1)
        value = torch.cat([value, state_value], -2)
    seen = visible.any(-1, keepdim=True)
    log_attention = torch.where(visible, log_attention, torch.where(seen, -torch.inf, 0.0))
    weights = torch.where(seen, log_attention.softmax(-1), 0.0)
    return rearrange(weights @ value, "b h g t e -> b (h g) t e")


def joined_definition(first: FavorState, second: FavorState) -> FavorState:
    """Return the state (L, V) of two disjoint sets of keys: L = logaddexp(L1, L2), V = sum_i V_i exp(L_i - L)."""
    highest = torch.maximum(first[0], second[0]).detach()
    seen = highest != -torch.inf
    shift = torch.where(seen, highest, 0.0)
    one, other = ((log_normalizer - shift).exp() for log_normalizer, _ in (first, second))
    total = torch.where(seen, one + other, 1.0)
    value = first[1] * (one / total).unsqueeze(-1) + second[1] * (other / total).unsqueeze(-1)
    return FavorState(torch.where(seen, shift + total.log(), -torch.inf), value)


def visibility(queries: int, keys: int, tokens_per_step: int, device: torch.device) -> Tensor:
    """Return the (t, s) mask that is True where the key's step is not after the query's."""
    query_step = torch.arange(queries, device=device) // tokens_per_step
    key_step = torch.arange(keys, device=device) // tokens_per_step
    return query_step[:, None] >= key_step[None, :]
