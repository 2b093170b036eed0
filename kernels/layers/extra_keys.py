"""Keys that every query of a layer sees beside those it is given: `add_bias_kv` and `add_zero_attn`.

Dimension key: b batch, h heads, t queries, s keys, n extra keys, d head dim, e value head dim.

They stand before the given keys, where causal queries see them too: in whole steps, so that what is a step stays one,
filled up with ignored keys. Causal queries get as many places before them, whose outputs are dropped.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Extended(NamedTuple):
    """Inputs of attention with extra keys in front.

    Attributes:
        query, key, value: (b, h, front + t, d), (b, h, front + s, d), (b, h, front + s, e); full attention's queries
            are as they were.
        mask: (b, front + s) of padding, or (b, front + s) or (b, h, front + s) of a key bias, or None.
        front: places before the given keys.
        count: n, extra keys among them, the last ones.
        is_causal: whether the queries were moved too.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    front: int
    count: int
    is_causal: bool

    def own_queries(self, output: Tensor) -> Tensor:
        """Return what belongs to the given queries of (b, h, places, ...)."""
        return output[:, :, self.front :] if self.is_causal else output

    def own_weights(self, weights: Tensor) -> Tensor:
        """Return weights (b, h, t, s + n) with the extra keys last, as nn.MultiheadAttention has them."""
        rows = self.own_queries(weights)
        return torch.cat([rows[..., self.front :], rows[..., self.front - self.count : self.front]], -1)


def extended(
    heads: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    extra: tuple[Tensor, Tensor] | None,
    *,
    is_causal: bool,
    tokens_per_step: int,
) -> Extended:
    """Put extra keys and values before those of attention.

    Args:
        heads: query (b, h, t, d), key (b, h, s, d), value (b, h, s, e).
        mask: (b, s), of `key_mask`, or None.
        extra: keys (1, h, n, d) and values (1, h, n, e), or None.
        is_causal, tokens_per_step: of the attention.
    """
    if extra is None:
        return Extended(*heads, mask, 0, 0, is_causal)
    query, key, value = heads
    count = extra[0].shape[2]
    front = -(-count // tokens_per_step) * tokens_per_step if is_causal else count
    batch, keys = key.shape[0], key.shape[2]
    if mask is None and front > count:
        mask = key.new_zeros((batch, keys), dtype=torch.bool)
    if mask is not None:
        hides = -torch.inf if mask.is_floating_point() else True
        mask = F.pad(F.pad(mask, (count, 0)), (front - count, 0), value=hides)
    key, value = _behind(extra[0], key, front), _behind(extra[1], value, front)
    return Extended(F.pad(query, (0, 0, front, 0)) if is_causal else query, key, value, mask, front, count, is_causal)


def _behind(extra: Tensor, x: Tensor, front: int) -> Tensor:
    """Return x (b, h, s, d) behind `front` places, the last of which are the extra rows."""
    rows = F.pad(extra.to(x.dtype), (0, 0, front - extra.shape[2], 0))
    return torch.cat([rows.expand(x.shape[0], -1, -1, -1), x], 2)
