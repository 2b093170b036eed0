"""FAVOR attention against its peers: shapes, inputs and providers; `run.py` does the measuring.

Dimension key: b batch, h heads, l length, d head dim, m features.

Every provider of a case gets the same q, k, v and, where it uses random features, the same projection.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from favorcast.kernels import draw_features, favor_attention

Provider = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Self-attention over l tokens."""

    b: int
    h: int
    l: int  # noqa: E741 - the dimension key's letter
    d: int
    m: int

    def __str__(self) -> str:
        return f"b{self.b}-h{self.h}-l{self.l}-d{self.d}-m{self.m}"


SHAPES = [
    Shape(1, 8, 1024, 64, 256),
    Shape(1, 8, 4096, 64, 256),
    Shape(4, 8, 3920, 16, 100),  # the seed's encoder: 80 steps of 49 sensors
    Shape(1, 4, 16384, 64, 256),
]
QUICK_SHAPES = [Shape(1, 2, 256, 16, 64), Shape(2, 2, 130, 8, 20)]
SDPA_LIMIT = 4096
"""Softmax attention is quadratic; beyond this length it is left out of the CPU table."""


def inputs(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v (b, h, l, d) with standard normal entries."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape.b, shape.h, shape.l, shape.d, generator=generator) for _ in range(3))


def projection(shape: Shape) -> Tensor:
    """Return the hyperbolic projection (m, d) shared by the providers."""
    return draw_features(shape.m, shape.d, generator=torch.Generator().manual_seed(1)).projection


def providers(shape: Shape, *, causal: bool) -> dict[str, Provider]:
    """Return the implementations to compare on one shape; a peer that is not installed is absent."""
    features = projection(shape)
    found: dict[str, Provider] = {
        "favorcast": lambda q, k, v: favor_attention(q, k, v, features, is_causal=causal, impl="reference")
    }
    if importlib.util.find_spec("performer_pytorch") is not None and not causal:
        # Its causal path needs a CUDA extension; its pure-torch substitute holds (l, m, d) sums.
        from performer_pytorch import FastAttention

        peer = FastAttention(shape.d, nb_features=shape.m)
        peer.projection_matrix.copy_(features)
        found["performer-pytorch"] = peer
    if shape.l <= SDPA_LIMIT:
        found["sdpa"] = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return found


def exact(q: Tensor, k: Tensor, v: Tensor, shape: Shape, *, causal: bool, rows: int) -> Tensor:
    """Return FAVOR attention of the last `rows` queries in float64, from the quotient itself: the correctness gate."""
    w = projection(shape).double()
    q, k, v = (x.double() for x in (q[:, :, -rows:], k, v))
    query_side = q * shape.d**-0.25 @ w.T
    key = k * shape.d**-0.25
    key_side = key @ w.T - key.square().sum(-1, keepdim=True) / 2
    reference = key_side.amax(-2, keepdim=True)
    attention = torch.softmax(query_side + reference, -1) @ torch.exp(key_side - reference).transpose(-1, -2)
    if causal:
        attention = attention.tril(shape.l - rows)
    return attention @ v / attention.sum(-1, keepdim=True)
