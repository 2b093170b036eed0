"""Chunks of a causal sequence, their anchors and the state carried between them.

Dimension key: b batch, h key heads, t tokens, d head dim, e value dim, m features, G heads of a block, n tokens of a
chunk. `causal.py` says what the parts are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..definition import visibility
from ..types import CausalInputs, FavorState
from .blocks import MIN_TOKENS, HeadGroup, exponents, key_weights, load_keys, load_values

HEADROOM = 40.0
"""A key feature may exceed its anchor by exp(40), about 2e17: sums of 1e6 such terms times |v| < 1e14 fit float32."""


NO_MAX = {dtype: -torch.finfo(dtype).max / 2 for dtype in (torch.float32, torch.float64)}
"""The anchor before the first key: finite, so that no difference is NaN."""


@dataclass(frozen=True)
class Part:
    """The steps of a chunk that share an anchor; `rows` are the chunk's tokens, `inside` (G, n) those of this part.

    `state` sums the keys before the part, and the part's own as well where a chunk is a single step, which sees itself;
    `after` sums all keys up to the part's last.
    """

    rows: slice
    inside: Tensor | None
    anchor: Tensor
    keys: Tensor
    phi: Tensor
    slope: Tensor | None
    values: Tensor
    state: Tensor
    after: Tensor


@dataclass(frozen=True)
class CausalGroup:
    """One group of heads of a causal problem, and how its keys are cut into chunks."""

    inputs: CausalInputs
    heads: HeadGroup
    dtype: torch.dtype

    @property
    def tokens_per_step(self) -> int:
        return self.inputs.tokens_per_step

    @property
    def chunk_tokens(self) -> int:
        return max(1, MIN_TOKENS // self.tokens_per_step) * self.tokens_per_step

    @property
    def chunk_is_one_step(self) -> bool:
        """Whether all tokens of a chunk see each other: they then need no (n, n) product, however long the step."""
        return self.tokens_per_step >= min(self.chunk_tokens, self.inputs.key.shape[-2])

    def visible(self, part: Part, heads_per_key: int) -> Tensor:
        """Return the (g n, n) mask of a chunk, 1 where the key is visible to the row."""
        n = part.rows.stop - part.rows.start
        return visibility(n, n, self.tokens_per_step, part.phi.device).to(self.dtype).repeat(heads_per_key, 1)


def causal_parts(group: CausalGroup) -> Iterator[Part]:
    """Walk over the chunks of a group, splitting where an anchor must be raised, and carry the state along."""
    weights = key_weights(group.inputs.space, group.heads, group.inputs.key, group.dtype)
    anchor, state = initial_sums(group)
    length, chunk = group.inputs.key.shape[-2], group.chunk_tokens
    for start in range(0, length, chunk):
        rows = slice(start, min(start + chunk, length))
        keys, exponent, slope, values = _load(group, rows, weights)
        for inside, new_anchor, phi in _key_features(exponent, anchor, group.tokens_per_step):
            if new_anchor is not anchor:
                state = state * (anchor - new_anchor).exp().unsqueeze(-1)
                anchor = new_anchor
            after = state + torch.bmm(phi.transpose(1, 2), values)  # baddbmm adds token by token, and drifts
            visible = after if group.chunk_is_one_step else state
            yield Part(rows, inside, anchor, keys, phi, slope, values, visible, after)
            state = after


def _load(group: CausalGroup, rows: slice, weights: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return augmented keys (G, n, d + 2), their exponents (G, n, m) with the slope, and [v, 1] of a chunk."""
    inputs = group.inputs
    keys = load_keys(inputs, group.heads, rows, group.dtype)
    exponent, slope = exponents(keys, weights, inputs.key.shape[-1], inputs.space.feature_map)
    return keys, exponent, slope, load_values(inputs, group.heads, rows, group.dtype)


def _key_features(
    exponent: Tensor, anchor: Tensor, tokens_per_step: int
) -> Iterator[tuple[Tensor | None, Tensor, Tensor]]:
    """Split a chunk of exponents (G, n, m) where the anchor must be raised; yields (inside, anchor, phi) of each part.

    A chunk that raises nothing is one part, whose `inside` is None and whose anchor is the one that was given.
    """
    excess = exponent - anchor.unsqueeze(1)
    if bool(excess.amax() <= HEADROOM):
        yield None, anchor, excess.exp_()
        return
    size, n, _ = exponent.shape
    steps = torch.arange(n, device=exponent.device) // tokens_per_step
    first = torch.zeros(size, dtype=torch.long, device=exponent.device)
    while bool((first <= steps[-1]).any()):
        anchor, last = _next_part(exponent, anchor, steps, first)
        whole = bool((first == 0).all() and (last > steps[-1]).all())
        inside = None if whole else (steps >= first.unsqueeze(1)) & (steps < last.unsqueeze(1))
        phi = exponent - anchor.unsqueeze(1)
        yield inside, anchor, (phi if inside is None else phi.masked_fill_(~inside.unsqueeze(-1), -torch.inf)).exp_()
        first = last


def initial_sums(group: CausalGroup) -> tuple[Tensor, Tensor]:
    """Return the anchor (G, m) and the sums (G, m, e + 1) of the keys before the first."""
    value, initial, dtype = group.inputs.value, group.inputs.initial, group.dtype
    size, m, e = group.heads.size, group.inputs.space.projection.shape[-2], value.shape[-1]
    anchor = torch.full((size, m), NO_MAX[dtype], dtype=dtype, device=value.device)
    state = torch.zeros((size, m, e + 1), dtype=dtype, device=value.device)
    if initial is not None:
        log_normalizer, value = (x[group.heads.batch, group.heads.heads].flatten(0, 1) for x in initial)
        known = log_normalizer != -torch.inf  # NaN is a state that has seen a NaN
        anchor = torch.where(known, log_normalizer.to(dtype), anchor)
        state[..., :e] = value
        if not bool(known.all()):  # where all are, a decoding step is spared a pass over the state
            state[..., :e].masked_fill_(~known.unsqueeze(-1), 0.0)
        state[..., e] = known
    return anchor, state


def state_of_sums(anchor: Tensor, sums: Tensor) -> FavorState:
    """Return the state (L (G, m), V (G, m, e)) of sums relative to an anchor; (-inf, 0) where no key was seen."""
    total = sums[..., -1]
    seen = total != 0
    log_normalizer = torch.where(seen, anchor + torch.where(seen, total, 1.0).log(), -torch.inf)
    return FavorState(log_normalizer, sums[..., :-1] / torch.where(seen, total, 1.0).unsqueeze(-1))


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
    new_anchor = torch.where(must_raise, torch.maximum(anchor, own_highest), anchor)
    later = jumps(new_anchor) & (numbers > first.unsqueeze(1))
    last = torch.where(later.any(1), later.int().argmax(1), len(numbers))
    return new_anchor, last


def rebuild_part(group: CausalGroup, rows: slice, inside: Tensor | None, anchor: Tensor, weights: Tensor) -> Part:
    """Rebuild a part for the reverse scan; its states are not needed there and left empty."""
    keys, exponent, slope, values = _load(group, rows, weights)
    exponent -= anchor.unsqueeze(1)
    if inside is not None:
        exponent.masked_fill_(~inside.unsqueeze(-1), -torch.inf)
    none = anchor.new_empty(0)
    return Part(rows, inside, anchor, keys, exponent.exp_(), slope, values, none, none)
