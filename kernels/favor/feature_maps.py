"""Feature maps in torch, one a row of the table; their device side is `triton/feature_maps.py`.

A random feature of a (pre-scaled) vector x is `phi_r(x)`; FAVOR attention needs only its logarithm, split into a
key side and a query side (a factor that depends on the query alone cancels in the attention quotient):

    map            query exponent                 key exponent
    exponential    w_r . q                        w_r . k - |k|^2 / 2 + c_r
    relu           log(max(w_r . q, 0) + 1e-3)    log(max(w_r . k, 0) + 1e-3) + c_r
    elu            log(elu(w_r . q) + 1)          log(elu(w_r . k) + 1) + c_r
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

FeatureMap = Literal["exponential", "relu", "elu"]

RELU_OFFSET = 1e-3
"""Keeps relu features positive (Choromanski et al. 2021, section 4: the generalised attention kernel)."""


class Map(NamedTuple):
    """A feature map.

    Attributes:
        log_feature: log phi of w . x, in any shape, up to the norm term.
        slope: d(log phi) / d(w . x), from log phi itself; None where it is one.
        has_norm: whether the key exponent holds -|k|^2 / 2.
    """

    log_feature: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor] | None
    has_norm: bool


FEATURE_MAPS: dict[str, Map] = {
    "exponential": Map(lambda x: x, None, has_norm=True),
    "relu": Map(
        lambda x: (x.clamp(min=0) + RELU_OFFSET).log(),
        lambda log_phi: torch.where(log_phi > math.log(RELU_OFFSET), log_phi.neg().exp(), 0.0),
        has_norm=False,
    ),
    "elu": Map(
        lambda x: torch.where(x > 0, x.clamp(min=0).log1p(), x),
        lambda log_phi: log_phi.clamp(min=0).neg().exp(),
        has_norm=False,
    ),
}
"""All maps, by the names of `FeatureMap`; every test of a map takes its list from here."""
