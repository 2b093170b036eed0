"""How far FAVOR attention is from the softmax attention that it estimates.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..random_features import RandomFeatures
from .arguments import weighed_keys
from .definition import hidden_keys, visibility, visible_values
from .functions import favor_attention


def softmax_error(
    query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures | Tensor, **options: Any
) -> float:
    """Measure how far FAVOR attention is from softmax attention on given tensors.

    |favor - softmax|_F / |softmax|_F, softmax attention being computed in float64 and in full: O(t s) memory a head.
    Beside 1.0, compare with the error of the plain mean of v, which is below 1 when softmax attention is diffuse.

    Args:
        query, key, value, features: as in `favor_attention`.
        options: keywords of `favor_attention`; they apply to both sides.

    Returns:
        The relative error, a Python float; nan if there is nothing to compare.
    """
    with torch.no_grad():
        estimate = favor_attention(query, key, value, features, **options).double()
        exact = _softmax_attention(query.double(), key.double(), value.double(), **options)
        return float((estimate - exact).norm() / exact.norm())


def _softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    tokens_per_step: int = 1,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    **of_features: Any,
) -> Tensor:
    """Attend by softmax under the options of `favor_attention`; zeros for queries that see no key."""
    (t, d), s, repeats = query.shape[-2:], key.shape[-2], query.shape[1] // key.shape[1]
    visible = torch.ones(t, s, dtype=torch.bool, device=query.device)
    if is_causal:
        visible = visibility(t, s, tokens_per_step, query.device)
    visible = visible.expand(query.shape[0], 1, t, s)
    mask = weighed_keys(key_padding_mask, key_bias, key)
    key, value = visible_values(key, mask), visible_values(value, mask)
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    logits = query @ key.transpose(-1, -2) * (d**-0.5 if scale is None else scale)
    if mask is not None:
        hidden = hidden_keys(mask).expand(-1, query.shape[1] // repeats, -1).repeat_interleave(repeats, 1)
        visible = visible & ~hidden.unsqueeze(-2)
        if mask.is_floating_point():
            logits = logits + mask.double().repeat_interleave(repeats, 1).unsqueeze(-2)
    seen = visible.any(-1, keepdim=True)
    weights = torch.where(visible, logits, torch.where(seen, -torch.inf, 0.0)).softmax(-1)
    return torch.where(seen, weights, 0.0) @ value
