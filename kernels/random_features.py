"""Random projections and the feature maps built on them.

Dimension key: h heads, m features, d head dim.

Every exponential map of the literature is `phi_r(x) = exp(w_r . x - |x|^2 / 2 + c_r)` with another choice of projection
W and log-weight c: a new one is a new branch of `draw_features` and nothing else. Other maps: `favor/feature_maps.py`.

Half-precision tokens meet W rounded to their dtype (`FeatureSpace.projection_for`). Draws lie on the bfloat16 grid,
where that changes nothing: a draw is as good as its neighbour there, and attention in bfloat16 errs by half as much.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

FeatureKind = Literal["hyperbolic", "orthogonal", "iid", "simplex", "favor++"]


class RandomFeatures(NamedTuple):
    """A drawn feature set.

    Attributes:
        projection: rows w_r, (m, d) shared by the heads or (h, m, d), one set per (key) head. Rows that are learnt or
            given are rounded where they meet bfloat16 or float16 tokens; gradients pass straight through.
        log_weight: c_r, (m,) or (h, m), added once, to the key exponent; None stands for zeros.
        paired: a promise that the second half of the rows is the first half negated, row by row; GPU kernels then
            project once for both. Leave it False for rows that are learnt or edited.
    """

    projection: Tensor
    log_weight: Tensor | None = None
    paired: bool = False


def draw_features(
    num_features: int,
    head_dim: int,
    *,
    kind: FeatureKind = "hyperbolic",
    num_heads: int | None = None,
    expected_square: float = 2.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> RandomFeatures:
    """Draw random features whose inner products estimate exp(q . k).

    E[phi(q) . phi(k)] = exp(q . k), phi_r(x) = exp(w_r . x - |x|^2 / 2) / sqrt(m)   (Choromanski et al. 2021, Lemma 1)

    Args:
        num_features: m. Complete orthogonal blocks estimate best: a multiple of 2 d for "hyperbolic", of d for
            "orthogonal" and "simplex"; an incomplete block is allowed and costs accuracy.
        head_dim: d.
        kind:
            "hyperbolic": W = [H; -H], orthogonal blocks with |w| = sqrt(d); odd orders of the series cancel and with
                complete blocks the estimate is exact through third order (SMREG and hyperbolic features, ibid. 2021).
            "orthogonal": orthogonal blocks with chi(d) row norms; the paper's FAVOR+, unbiased.
            "iid": independent Gaussian rows, unbiased.
            "simplex": blocks with pairwise cosine -1/(d-1) and |w| = sqrt(d) (Reid et al. 2023).
            "favor++": orthogonal blocks with importance weights (Likhosherstov et al. 2022, eq. (9)).
        num_heads: draw one set per head, projection (h, m, d); None draws one set for all heads.
        expected_square: only for "favor++": E|q + k|^2 of the pre-scaled vectors the features are tuned for.
        generator: source of randomness; the draw is made on its device in float64, then moved. None uses torch's
            global CPU generator.
        device, dtype: of the result; default CPU and torch's default dtype.

    Returns:
        RandomFeatures(projection (m, d) or (h, m, d), log_weight (m,) or (h, m) or None, paired). Entries of the
        projection are bfloat16 values whatever the dtype, so the geometry above holds to that rounding, 2^-8.

    Raises:
        ValueError: unknown kind, sizes below 1, or an odd num_features for "hyperbolic".
    """
    if kind not in get_args(FeatureKind):
        raise ValueError(f"unknown feature kind: expected one of {', '.join(get_args(FeatureKind))}, got {kind!r}")
    if num_features < 1 or head_dim < 1 or (num_heads is not None and num_heads < 1):
        raise ValueError(
            "num_features, head_dim and num_heads must be at least 1: "
            f"got num_features={num_features}, head_dim={head_dim}, num_heads={num_heads}"
        )
    if kind == "hyperbolic" and num_features % 2:
        raise ValueError(
            f"hyperbolic features come in pairs (w, -w): expected an even num_features, got {num_features}; "
            f"use {num_features + 1}"
        )
    if kind == "favor++" and expected_square <= 0:
        raise ValueError(f"expected_square must be positive, got {expected_square}")
    sets = [_draw_rows(num_features, head_dim, kind, generator) for _ in range(num_heads or 1)]
    rows = torch.stack(sets) if num_heads is not None else sets[0]
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32) if dtype is None else dtype
    target: dict[str, Any] = {"device": device or "cpu", "dtype": dtype}
    if kind != "favor++":
        return RandomFeatures(_on_grid(rows).to(**target), None, paired=kind == "hyperbolic")
    tilt = _favor_plus_plus_tilt(head_dim, expected_square)
    projection = _on_grid(math.sqrt(1 - 4 * tilt) * rows)
    log_weight = 2 * tilt / (1 - 4 * tilt) * projection.square().sum(-1)  # 2 A |omega|^2 of the rounded omega
    return RandomFeatures(projection.to(**target), log_weight.to(**target))


def is_paired(projection: Tensor) -> bool:
    """Whether the second half of the rows is the first half negated; False where the rows have no values (meta)."""
    if projection.is_meta or projection.shape[-2] % 2:
        return False
    first, second = projection.detach().chunk(2, -2)
    return torch.equal(first, -second)


def _on_grid(rows: Tensor) -> Tensor:
    """Round to bfloat16 values."""
    return rows.bfloat16().to(rows.dtype)


def _draw_rows(num_features: int, head_dim: int, kind: str, generator: torch.Generator | None) -> Tensor:
    """Return rows (m, d) in float64; those of favor++ are the omega that its projection scales."""
    radius = math.sqrt(head_dim)
    if kind == "hyperbolic":
        half = _orthogonal_rows(num_features // 2, head_dim, generator) * radius
        return torch.cat([half, -half])
    if kind == "iid":
        return _gaussian(num_features, head_dim, generator)
    if kind == "simplex":
        return _simplex_rows(num_features, head_dim, generator) * radius
    norms = _gaussian(num_features, head_dim, generator).norm(dim=-1, keepdim=True)
    return _orthogonal_rows(num_features, head_dim, generator) * norms


def _favor_plus_plus_tilt(head_dim: int, expected_square: float) -> float:
    """A <= 0 that minimises the variance of the estimate at E|q + k|^2 (Likhosherstov et al. 2022, Theorem 3.1)."""
    d, phi = float(head_dim), float(expected_square)
    rho = (math.sqrt((2 * phi + d) ** 2 + 8 * d * phi) - 2 * phi - d) / (4 * phi)
    return (1 - 1 / rho) / 8


def _gaussian(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else "cpu"
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64, device=device)


def _haar_orthogonal(size: int, generator: torch.Generator | None) -> Tensor:
    """Orthogonal matrix from the Haar measure: QR with the signs of R's diagonal moved into Q (Mezzadri 2007)."""
    q, r = torch.linalg.qr(_gaussian(size, size, generator))
    return q * torch.sign(torch.diagonal(r))


def _orthogonal_rows(rows: int, head_dim: int, generator: torch.Generator | None) -> Tensor:
    blocks = [_haar_orthogonal(head_dim, generator) for _ in range(-(-rows // head_dim))]
    return torch.cat(blocks)[:rows] if blocks else torch.empty(0, head_dim, dtype=torch.float64)


def _simplex_rows(rows: int, head_dim: int, generator: torch.Generator | None) -> Tensor:
    if head_dim == 1:  # a simplex in one dimension has no two directions: unit rows with random sign
        return torch.sign(_gaussian(rows, 1, generator))
    centred = torch.eye(head_dim, dtype=torch.float64) - 1.0 / head_dim
    simplex = centred / centred.norm(dim=-1, keepdim=True)
    blocks = [_haar_orthogonal(head_dim, generator) for _ in range(-(-rows // head_dim))]
    return torch.cat([simplex.to(block) @ block for block in blocks])[:rows]
