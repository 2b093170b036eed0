"""The exact results that attention is gated against, and the work it needs at least.

Dimension key: b batch, h heads, l length, d head dim, m features, p picked queries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from harness.cases import Expected, Passes, Work
from torch import Tensor

PICKED = 64
"""Queries of the last head that are compared; spread over the length."""

CAUSAL_TILE = 128
"""Tokens of a causal tile, whose products inside the tile belong to the work of the causal form."""


class AttentionShape(NamedTuple):
    """Self-attention over l tokens, in steps of `step` tokens where it is causal over steps."""

    b: int
    h: int
    l: int  # noqa: E741 - the dimension key's letter
    d: int
    m: int
    step: int = 1

    def __str__(self) -> str:
        steps = f"-s{self.step}" if self.step > 1 else ""
        return f"b{self.b}-h{self.h}-l{self.l}-d{self.d}-m{self.m}{steps}"

    @property
    def length(self) -> int:
        return self.l


class Mask(NamedTuple):
    """Which keys a query sees: all, or those of its own and of earlier steps."""

    is_causal: bool
    step: int = 1


def expected_attention(
    inputs: dict[str, Tensor], target: str, mask: Mask, projection: Tensor, count: int = PICKED
) -> Expected:
    """Return exact outputs and gradients of the last head, for an upstream gradient at the picked queries only.

    "favor": the quotient of random-feature attention; "softmax": softmax attention. Both in float64, O(p l + l m).
    """
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    length = query.shape[-2]
    rows = torch.linspace(0, length - 1, min(count, length), device=query.device).round().long().unique()
    q, k, v = (x[-1, -1].detach().double().requires_grad_() for x in (query, key, value))
    weigh = _favor_weights if target == "favor" else _softmax_weights
    attention = weigh(q[rows], k, projection.to(q))
    if mask.is_causal:
        steps = torch.arange(length, device=query.device) // mask.step
        attention = attention.masked_fill(steps > (rows // mask.step).unsqueeze(-1), 0.0)
    output = attention @ v / attention.sum(-1, keepdim=True)
    generator = torch.Generator().manual_seed(2)
    picked = torch.randn(output.shape, generator=generator).to(query)
    d_query, d_key, d_value = torch.autograd.grad(output, (q, k, v), picked.double())
    upstream = torch.zeros_like(query)
    head = (-1, -1, rows)
    upstream[head] = picked
    gradients = {"query": (head, d_query[rows]), "key": ((-1, -1), d_key), "value": ((-1, -1), d_value)}
    return Expected((upstream,), [(head, output.detach())], gradients)


def _favor_weights(query: Tensor, key: Tensor, projection: Tensor) -> Tensor:
    scale = query.shape[-1] ** -0.25
    query_side = query * scale @ projection.T
    key = key * scale
    key_side = key @ projection.T - key.square().sum(-1, keepdim=True) / 2
    reference = key_side.detach().amax(0)
    query_side = query_side + reference
    features = torch.exp(query_side - query_side.detach().amax(-1, keepdim=True))
    return features @ torch.exp(key_side - reference).T


def _softmax_weights(query: Tensor, key: Tensor, projection: Tensor) -> Tensor:
    logits = query @ key.T * query.shape[-1] ** -0.5
    return torch.exp(logits - logits.detach().amax(-1, keepdim=True))


def favor_work(shape: AttentionShape, passes: Passes, is_causal: bool, size: int, paired: bool) -> Work:
    """Return the work of FAVOR attention whose features never leave the chip, `size` bytes an element.

    A token of a head needs 2 P + 2 S products forward, P = 2 m d to project (half of it for paired rows), S = 2 m d
    to sum values, and 2 m exponentials; backward 4 P + 4 S and 2 m again. It reads q, k, v, writes o and a row
    statistic; backward reads those and the upstream gradient, and writes three gradients. The causal form adds the
    products inside a tile and a pass over keys and values that sums segments.
    """
    d, m, tile = shape.d, shape.m, CAUSAL_TILE
    project, add = 2 * m * d / (2 if paired else 1), 2 * m * d
    if is_causal:
        forward = Work(size * 6 * d + 4, 3 * project + 3 * add + 2 * tile * (m + d), 3 * m)
        backward = Work(size * 12 * d + 16, 6 * project + 5 * add + 6 * tile * (m + d), 4 * m)
    else:
        forward = Work(size * 4 * d + 4, 2 * project + 2 * add, 2 * m)
        backward = Work(size * 8 * d + 8, 4 * project + 4 * add, 2 * m)
    tokens = shape.b * shape.h * shape.l
    return (forward if passes == "forward" else forward + backward).times(tokens)


def softmax_work(shape: AttentionShape, passes: Passes, is_causal: bool, size: int) -> Work:
    """Return the work of softmax attention that recomputes its weights backward: 2 products forward, 5 backward."""
    pairs = shape.l * (shape.l + shape.step) / 2 if is_causal else shape.l**2
    forward = Work(shape.l * (size * 4 * shape.d + 4), 4 * pairs * shape.d, pairs)
    backward = Work(shape.l * (size * 8 * shape.d + 8), 10 * pairs * shape.d, pairs)
    return (forward if passes == "forward" else forward + backward).times(shape.b * shape.h)
