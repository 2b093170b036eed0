"""FAVOR attention as the papers write it, for tests: features first, then the quotient, dense and without any trick.

Dimension key: b batch, h key heads, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from favorcast.kernels import RandomFeatures

PLAIN_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda projected: torch.relu(projected) + 1e-3,
    "elu": lambda projected: torch.nn.functional.elu(projected) + 1,
}
"""Features of w . x, map by map, without the logarithms and stabilisers of the package."""


def phi(x: Tensor, projection: Tensor, feature_map: str, scale: float) -> Tensor:
    """Return the features (..., m) of x (..., d), unstabilised."""
    x = x * math.sqrt(scale)
    projected = torch.einsum("bhtd,hmd->bhtm", x, projection)
    if feature_map != "exponential":
        return PLAIN_MAPS[feature_map](projected)
    return torch.exp(projected - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(projection.shape[-2])


def visible_pairs(t: int, s: int, is_causal: bool, tokens_per_step: int, mask: Tensor | None) -> Tensor:
    """Return (b or 1, 1, t, s), True where the query may see the key."""
    pairs = torch.tensor(
        [[not is_causal or j // tokens_per_step <= i // tokens_per_step for j in range(s)] for i in range(t)],
        dtype=torch.bool,
    ).view(1, 1, t, s)
    return pairs if mask is None else pairs & ~mask[:, None, None, :]


def textbook_weights(
    query: Tensor,
    key: Tensor,
    features: RandomFeatures | Tensor,
    *,
    feature_map: str = "exponential",
    is_causal: bool = False,
    tokens_per_step: int = 1,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return the attention weights (b, heads of query, t, s); rows that see no key are zero."""
    projection, log_weight = (features, None) if isinstance(features, Tensor) else features[:2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads, repeats = key.shape[1], query.shape[1] // key.shape[1]
    projection = projection.expand(heads, *projection.shape[-2:])
    key_features = phi(key, projection, feature_map, scale)
    if log_weight is not None:
        key_features = key_features * log_weight.exp().expand(heads, -1).unsqueeze(-2)
    if key_bias is not None:
        key_features = key_features * key_bias.exp().view(key.shape[0], -1, key.shape[2], 1)
    query_features = phi(query, projection.repeat_interleave(repeats, 0), feature_map, scale)
    scores = query_features @ key_features.repeat_interleave(repeats, 1).transpose(-1, -2)
    visible = visible_pairs(query.shape[-2], key.shape[-2], is_causal, tokens_per_step, key_padding_mask)
    scores = torch.where(visible, scores, 0.0)
    total = scores.sum(-1, keepdim=True)
    return scores / torch.where(total > 0, total, 1.0)


def textbook_attention(
    query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures | Tensor, **options
) -> Tensor:
    """Return phi(Q) (phi(K)^T V) / phi(Q) (phi(K)^T 1), with the sum over visible keys only."""
    repeats = query.shape[1] // key.shape[1]
    return textbook_weights(query, key, features, **options) @ value.repeat_interleave(repeats, 1)


def bias_of(*shape: int, largest: float = 2.0, seed: int = 4) -> Tensor:
    """Return a key bias of evenly spread numbers up to `largest` in size, float64."""
    return largest * (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)


def qkv(
    b: int = 2,
    h: int = 2,
    t: int = 7,
    s: int | None = None,
    d: int = 4,
    e: int | None = None,
    query_heads: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random (query, key, value) of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    s, e = t if s is None else s, d if e is None else e
    shapes = ((b, query_heads or h, t, d), (b, h, s, d), (b, h, s, e))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v
