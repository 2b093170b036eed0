"""Blocks of work for the CPU reference: which heads and tokens fit the cache, and how a block is loaded.

Dimension key: b batch, h key heads, g query heads per key head, n tokens of a block, d head dim, e value dim,
m features, G heads of a block (batch and head flattened).

A block is loaded once into an augmented matrix, so that one batched product yields finished exponents:

    keys      [sqrt(scale) k, bias - |k|^2 / 2, -inf when hidden, 1]   against   [w, 1, c_r]
    queries   [sqrt(scale) q, 1]                                       against   [w, shift_r]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..feature_maps import FEATURE_MAPS
from ..types import LOWEST_BIAS, CausalInputs, FeatureSpace, SummarizeInputs

BLOCK_ELEMENTS = 1 << 19
"""Exponents held at once, 2 MiB in float32: the second-level caches of two cores.

Chosen with `bench/suites/favor_attention.py` among 2**17 ... 2**21 on a two-core Zen 4 machine; flat within 10 %
from 2**18 to 2**20.
"""

MIN_TOKENS = 64
"""Fewer tokens a block make the matrix products thin; blocks then take fewer heads instead."""

MAX_TOKENS = 1024
"""More tokens a block let a sum drift: products add token by token, by 2e-3 over 2e5 equal values in float32."""


class HeadGroup(NamedTuple):
    """A rectangle of the (batch, key head) plane."""

    batch: slice
    heads: slice

    @property
    def size(self) -> int:
        return (self.batch.stop - self.batch.start) * (self.heads.stop - self.heads.start)


def head_groups(batch: int, heads: int, tokens: int, features: int) -> Iterator[HeadGroup]:
    """Split (batch, heads) so that a group with min(tokens, MIN_TOKENS) tokens fits a block."""
    fitting = max(1, BLOCK_ELEMENTS // (features * max(1, min(tokens, MIN_TOKENS))))
    if fitting >= heads:
        step = fitting // heads
        for lo in range(0, batch, step):
            yield HeadGroup(slice(lo, min(lo + step, batch)), slice(0, heads))
        return
    for index in range(batch):
        for lo in range(0, heads, fitting):
            yield HeadGroup(slice(index, index + 1), slice(lo, min(lo + fitting, heads)))


def chunks(length: int, heads: int, features: int) -> Iterator[slice]:
    """Split `length` tokens so that `heads` heads of a chunk fit a block."""
    size = min(MAX_TOKENS, max(MIN_TOKENS, BLOCK_ELEMENTS // (features * max(1, heads))))
    for lo in range(0, length, size):
        yield slice(lo, min(lo + size, length))


def accumulation_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return float64 if any tensor has it, else float32: sums never run in half precision."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def scale_entries(tokens: Tensor, scale: float) -> Tensor:
    """Multiply tokens (…, d) by sqrt(scale) in place, and return them.

    Entries are bounded so that |x|^2 stays finite: beyond it a key's weight is decided by its norm alone anyway.
    """
    bound = math.sqrt(torch.finfo(tokens.dtype).max / (8 * tokens.shape[-1]))
    return tokens.mul_(math.sqrt(scale)).clamp_(-bound, bound)


Keyed = SummarizeInputs | CausalInputs
"""Inputs with keys, values, a mask of them, and features."""


def load_keys(inputs: Keyed, group: HeadGroup, rows: slice, dtype: torch.dtype) -> Tensor:
    """Return the augmented keys (G, n, d + 2) of a block."""
    source, mask, space = inputs.key[group.batch, group.heads, rows], inputs.mask, inputs.space
    d = source.shape[-1]
    block = torch.ones((*source.shape[:-1], d + 2), dtype=dtype, device=source.device)
    entries, bias = block[..., :d], block[..., d]
    scale_entries(entries.copy_(source), space.scale)
    hidden = None if mask is None else _hidden(mask, group, rows)
    if hidden is not None:
        entries.masked_fill_(hidden.unsqueeze(-1), 0.0)
    if FEATURE_MAPS[space.feature_map].has_norm:
        torch.sum(entries.square(), -1, out=bias).mul_(-0.5)
    else:
        bias.zero_()
    if mask is not None and mask.is_floating_point():
        bias += mask[group.batch, group.heads, rows]
    if hidden is not None:
        bias.masked_fill_(hidden, -torch.inf)
    return block.flatten(0, 1)


def load_values(inputs: Keyed, group: HeadGroup, rows: slice, dtype: torch.dtype) -> Tensor:
    """Return [v, 1], (G, n, e + 1), with zeros for hidden values whatever they hold."""
    source = inputs.value[group.batch, group.heads, rows]
    block = torch.ones((*source.shape[:-1], source.shape[-1] + 1), dtype=dtype, device=source.device)
    block[..., :-1] = source
    if inputs.mask is not None:
        block[..., :-1].masked_fill_(_hidden(inputs.mask, group, rows).unsqueeze(-1), 0.0)
    return block.flatten(0, 1)


def _hidden(mask: Tensor, group: HeadGroup, rows: slice) -> Tensor:
    """Return which keys of a block a mask hides, (batch, 1 or heads, n)."""
    if mask.is_floating_point():
        return mask[group.batch, group.heads, rows] <= LOWEST_BIAS
    return mask[group.batch, None, rows]


def bias_gradient(mask: Tensor | None) -> Tensor | None:
    """Allocate the gradient of a key bias, which padding has not."""
    return torch.zeros_like(mask) if mask is not None and mask.is_floating_point() else None


def load_queries(query: Tensor, group: HeadGroup, rows: slice, space: FeatureSpace, dtype: torch.dtype) -> Tensor:
    """Return the augmented queries (G, g n, d + 1) of a block of a (b, h, g, t, d) tensor."""
    source = query[group.batch, group.heads, :, rows]
    d = source.shape[-1]
    block = torch.ones((*source.shape[:-1], d + 1), dtype=dtype, device=query.device)
    scale_entries(block[..., :d].copy_(source), space.scale)
    return block.flatten(0, 1).flatten(1, 2)


def load_rows(x: Tensor, group: HeadGroup, rows: slice, dtype: torch.dtype) -> Tensor:
    """Return (G, g n, e) of a (b, h, g, t, e) tensor."""
    return x[group.batch, group.heads, :, rows].to(dtype).flatten(0, 1).flatten(1, 2)


def store_rows(target: Tensor, group: HeadGroup, rows: slice, block: Tensor) -> None:
    """Write (G, g n, e) back into a (b, h, g, t, e) tensor."""
    view = target[group.batch, group.heads, :, rows]
    view.copy_(block.view(view.shape))


def store_tokens(target: Tensor, group: HeadGroup, rows: slice, block: Tensor) -> None:
    """Write (G, n, d) back into a (b, h, s, d) tensor."""
    view = target[group.batch, group.heads, rows]
    view.copy_(block.view(view.shape))


def add_to(target: Tensor, group: HeadGroup, block: Tensor) -> None:
    """Add (G, ...) to the group's rectangle of a (b, h, ...) tensor."""
    view = target[group.batch, group.heads]
    view += block.view(view.shape)


def head_parameters(parameter: Tensor, batch: int, heads: int, shared_ndim: int) -> Tensor:
    """View a parameter that is shared or per head as (b, h, ...), without a copy."""
    per_head = parameter if parameter.ndim > shared_ndim else parameter.unsqueeze(0)
    return per_head.unsqueeze(0).expand(batch, heads, *per_head.shape[1:])


def key_weights(space: FeatureSpace, group: HeadGroup, key: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [w, 1, c], (G, m, d + 2), for a group of the heads of keys (b, h, s, d)."""
    b, h = key.shape[:2]
    rows = head_parameters(space.projection_for(key), b, h, 2)[group.batch, group.heads].to(dtype)
    column = torch.zeros_like(rows[..., 0])
    if space.log_weight is not None:
        column += head_parameters(space.log_weight, b, h, 1)[group.batch, group.heads]
    return torch.cat([rows, torch.ones_like(rows[..., :1]), column.unsqueeze(-1)], -1).flatten(0, 1)


def query_weights(
    space: FeatureSpace, shift: Tensor | None, group: HeadGroup, queries: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return [w, shift], (G, m, d + 1), for a group of queries (b, h, g, t, d); shift (b, h, m) or None for zeros."""
    b, h = queries.shape[:2]
    rows = head_parameters(space.projection_for(queries), b, h, 2)[group.batch, group.heads].to(dtype)
    column = torch.zeros_like(rows[..., 0]) if shift is None else shift[group.batch, group.heads]
    return torch.cat([rows, column.unsqueeze(-1)], -1).flatten(0, 1)


def exponents(left: Tensor, right: Tensor, head_dim: int, feature_map: str) -> tuple[Tensor, Tensor | None]:
    """Return left right^T with the feature map applied to the first `head_dim` columns, and its slope.

    One of the two sides holds augmented tokens, the other augmented projection rows; (G, x, y) and None, or the slope
    d log phi / d(w . x) in the same shape.
    """
    log_feature, slope_of, _ = FEATURE_MAPS[feature_map]
    if slope_of is None:
        return torch.bmm(left, right.transpose(1, 2)), None
    log_phi = log_feature(torch.bmm(left[..., :head_dim], right[..., :head_dim].transpose(1, 2)))
    slope = slope_of(log_phi)
    return log_phi.baddbmm_(left[..., head_dim:], right[..., head_dim:].transpose(1, 2)), slope
