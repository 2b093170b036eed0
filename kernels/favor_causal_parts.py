"""Chunks of a causal sequence, their anchors and the state carried between them.

Dimension key: b batch, h key heads, t tokens, d head dim, e value dim, m features, G heads of a block, n tokens of a
chunk. `favor_causal_reference.py` says what the parts are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .favor_blocks import MIN_TOKENS, HeadGroup, exponents, key_weights, load_keys, load_values
from .favor_definition import visibility
from .random_features import FeatureSpace

HEADROOM = 40.0
"""A key feature may exceed its anchor by exp(40), about 2e17: sums of 1e6 such terms times |v| < 1e14 fit float32."""


@dataclass(frozen=True)
class Part:
    """The steps of a chunk that share an anchor; `rows` are the chunk's tokens, `inside` (G, n) those of this part.

    `state` sums the keys before the part, and the part's own as well where a chunk is a single step, which sees itself.
    """

    rows: slice
    inside: Tensor | None
    anchor: Tensor
    keys: Tensor
    phi: Tensor
    slope: Tensor | None
    values: Tensor
    state: Tensor


@dataclass(frozen=True)
class CausalInputs:
    """The tensors of one group of heads; queries are (b, h, g, t, d)."""

    key: Tensor
    value: Tensor
    mask: Tensor | None
    space: FeatureSpace
    group: HeadGroup
    plane: tuple[int, int]
    tokens_per_step: int
    dtype: torch.dtype

    @property
    def chunk_tokens(self) -> int:
        return max(1, MIN_TOKENS // self.tokens_per_step) * self.tokens_per_step

    @property
    def chunk_is_one_step(self) -> bool:
        """Whether all tokens of a chunk see each other: they then need no (n, n) product, however long the step."""
        return self.chunk_tokens == self.tokens_per_step

    def visible(self, part: Part, heads_per_key: int) -> Tensor:
        """Return the (g n, n) mask of a chunk, 1 where the key is visible to the row."""
        n = part.rows.stop - part.rows.start
        return visibility(n, n, self.tokens_per_step, self.key.device).to(self.dtype).repeat(heads_per_key, 1)


def causal_parts(inputs: CausalInputs) -> Iterator[Part]:
    """Walk over the chunks of a group, splitting where an anchor must be raised, and carry the state along."""
    weights = key_weights(inputs.space, inputs.group, inputs.plane, inputs.dtype)
    size, m = inputs.group.size, weights.shape[1]
    lowest = -torch.finfo(inputs.dtype).max / 2
    anchor = torch.full((size, m), lowest, dtype=inputs.dtype, device=weights.device)
    state = torch.zeros((size, m, inputs.value.shape[-1] + 1), dtype=inputs.dtype, device=weights.device)
    length, chunk = inputs.key.shape[-2], inputs.chunk_tokens
    for start in range(0, length, chunk):
        rows = slice(start, min(start + chunk, length))
        keys = load_keys(inputs.key, inputs.mask, inputs.group, rows, inputs.space, inputs.dtype)
        exponent, slope = exponents(keys, weights, inputs.key.shape[-1], inputs.space.feature_map)
        values = load_values(inputs.value, inputs.mask, inputs.group, rows, inputs.dtype)
        steps = torch.arange(rows.stop - rows.start, device=weights.device) // inputs.tokens_per_step
        first = torch.zeros(size, dtype=torch.long, device=weights.device)
        while True:
            raised, last = _next_part(exponent, anchor, steps, first)
            if raised is not anchor:
                state = state * (anchor - raised).exp().unsqueeze(-1)
                anchor = raised
            whole = bool((first == 0).all() and (last > steps[-1]).all())
            inside = None if whole else (steps >= first.unsqueeze(1)) & (steps < last.unsqueeze(1))
            phi = exponent - anchor.unsqueeze(1)
            phi = (phi if inside is None else phi.masked_fill_(~inside.unsqueeze(-1), -torch.inf)).exp_()
            after = state + torch.bmm(phi.transpose(1, 2), values)  # baddbmm adds token by token, and drifts
            yield Part(rows, inside, anchor, keys, phi, slope, values, after if inputs.chunk_is_one_step else state)
            state = after
            if bool((last > steps[-1]).all()):
                break
            first = last


def _next_part(exponent: Tensor, anchor: Tensor, steps: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return the anchor for the steps from `first` on, and the step (G,) before which this part ends.

    The anchor is raised to step `first`'s own keys where they exceed it by HEADROOM; the part ends before the next
    step that does. `anchor` itself is returned when no head raises.
    """
    if bool((exponent - anchor.unsqueeze(1)).amax() <= HEADROOM):
        return anchor, torch.full_like(first, int(steps[-1]) + 1)
    numbers = torch.arange(int(steps[-1]) + 1, device=steps.device)
    pending = numbers >= first.unsqueeze(1)

    def jumps(current: Tensor) -> Tensor:
        excess = (exponent - current.unsqueeze(1)).amax(-1)
        per_step = torch.full((excess.shape[0], len(numbers)), -torch.inf, dtype=excess.dtype, device=excess.device)
        per_step.scatter_reduce_(1, steps.expand_as(excess), excess, "amax")
        return (per_step > HEADROOM) & pending

    own = (steps == first.unsqueeze(1)).unsqueeze(-1)
    own_highest = exponent.masked_fill(~own, -torch.inf).amax(1)
    must_raise = (jumps(anchor) & (numbers == first.unsqueeze(1))).any(1, keepdim=True)
    raised = torch.where(must_raise, torch.maximum(anchor, own_highest), anchor)
    later = jumps(raised) & (numbers > first.unsqueeze(1))
    last = torch.where(later.any(1), later.int().argmax(1), len(numbers))
    return raised, last


def rebuild_part(inputs: CausalInputs, rows: slice, inside: Tensor | None, anchor: Tensor, weights: Tensor) -> Part:
    """Rebuild a part for the reverse scan; its state is not needed there and left empty."""
    keys = load_keys(inputs.key, inputs.mask, inputs.group, rows, inputs.space, inputs.dtype)
    exponent, slope = exponents(keys, weights, inputs.key.shape[-1], inputs.space.feature_map)
    exponent -= anchor.unsqueeze(1)
    if inside is not None:
        exponent.masked_fill_(~inside.unsqueeze(-1), -torch.inf)
    values = load_values(inputs.value, inputs.mask, inputs.group, rows, inputs.dtype)
    return Part(rows, inside, anchor, keys, exponent.exp_(), slope, values, anchor.new_empty(0))
