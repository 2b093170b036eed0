"""The attention weights that random features imply, written out for looking at short inputs.

Dimension key: b batch, h heads, t queries, s keys, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..favor.functions import favor_attention
from ..random_features import RandomFeatures

MAX_WEIGHTS = 1 << 22
"""The weights are quadratic in the length, which linear attention never is; this many a head are written out."""


def implied_weights(query: Tensor, key: Tensor, features: RandomFeatures, **options: Any) -> Tensor:
    """Return A_ij / sum_j A_ij, A_ij = sum_r phi_r(q_i) phi_r(k_j): what attention does to the identity matrix.

    Args:
        query: (b, h, t, d).
        key: (b, h, s, d).
        features, options: as in `favor_attention`.

    Returns:
        (b, h, t, s) in query's dtype; rows sum to one, or to zero where a query sees no key.

    Raises:
        ValueError: more than MAX_WEIGHTS weights a head.
    """
    (b, h, s, _), t = key.shape, query.shape[-2]
    if t * s > MAX_WEIGHTS:
        raise ValueError(
            f"need_weights=True would form {t} x {s} weights a head; the limit is {MAX_WEIGHTS}: "
            "pass need_weights=False, or look at a shorter input"
        )
    identity = torch.eye(s, dtype=key.dtype, device=key.device).expand(b, h, s, s)
    return favor_attention(query, key, identity, features, **options)
