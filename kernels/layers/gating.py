"""Forgetting that a layer learns: a head weighs a key by the product of its gates over the tokens since.

With log-gates g_l <= 0 and G_i = g_1 + ... + g_i, token i sees key j with the weight exp(G_i - G_j) A_ij. exp(G_i)
cancels in the quotient, so a key bias of -G_j is all it takes, and nothing is approximated. Float32 holds a bias to
1e-7 of itself: what came before is therefore a state relative to its last token, and G starts anew behind it.

Dimension key: b batch, h heads, t tokens, d head dim, e value head dim, m features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch.tracing import is_traced
from ..favor.functions import FavorState, Streamed, stream_attention
from ..random_features import RandomFeatures
from .masks import joined_masks, weighing

FIRST_MEMORIES = 32, 4096
"""Tokens after which gates have a product of 1 / e at the start of training, of the first head and of the last."""

LONGEST_DECAY = 4096
"""Tokens over which gates are summed before a state takes over; graphs of torch.compile and torch.export sum all."""


def initial_gate_bias(heads: int) -> Tensor:
    """Return biases (h,) of gates without inputs, whose memories are spread evenly by their logarithms."""
    first, last = map(math.log, FIRST_MEMORIES)
    return torch.linspace(first, last, heads, device="cpu").exp().sub(1).log()  # sigmoid^-1 of 1 - 1 / memory


def log_gates(scores: Tensor, mask: Tensor | None, tokens_per_step: int) -> Tensor:
    """Return g (b, h, t), at most 0, in float32 or better.

    The tokens of a step share the mean of theirs, which stands at the first; ignored tokens forget nothing.

    Args:
        scores: (b, t, h), whose sigmoid is a gate.
        mask: (b, t), of `key_mask`.
        tokens_per_step: of the attention.
    """
    gates = F.logsigmoid(scores.to(torch.promote_types(scores.dtype, torch.float32))).transpose(1, 2)
    hidden = None if mask is None else (mask == -torch.inf if mask.is_floating_point() else mask).unsqueeze(1)
    gates = gates if hidden is None else gates.masked_fill(hidden, 0.0)
    if tokens_per_step == 1:
        return gates
    t = gates.shape[-1]
    whole = -t % tokens_per_step
    steps = F.pad(gates, (0, whole)).unflatten(-1, (-1, tokens_per_step))
    seen = gates.new_ones(1, 1, t) if hidden is None else (~hidden).to(gates.dtype)
    counts = F.pad(seen, (0, whole)).unflatten(-1, (-1, tokens_per_step)).sum(-1)
    means = steps.sum(-1) / counts.clamp(min=1)
    return F.pad(means.unsqueeze(-1), (0, tokens_per_step - 1)).flatten(-2)[..., :t]


def needs_chunks(heads: tuple[Tensor, Tensor, Tensor], tokens_per_step: int) -> bool:
    """Whether a sequence is so long that `attend_forgetting` keeps digits which one sum of its gates would lose."""
    t, s = heads[0].shape[2], heads[1].shape[2]
    return not is_traced() and t == s > max(LONGEST_DECAY, tokens_per_step) and t % tokens_per_step == 0


def attend_forgetting(
    heads: tuple[Tensor, Tensor, Tensor],
    gates: Tensor,
    mask: Tensor | None,
    state: FavorState | None,
    features: RandomFeatures,
    **options: Any,
) -> Streamed:
    """Go on with causal attention that forgets: `stream_attention`, over a long sequence in chunks.

    Args:
        heads: query (b, h, t, d), key (b, h, t, d), value (b, h, t, e), of whole steps.
        gates: g (b, h, t), of `log_gates`.
        mask: (b, t), of `key_mask`.
        state: of everything before, relative to its last token; None at the start.
        features, options: as in `stream_attention`.
    """
    step, t = options.get("tokens_per_step", 1), gates.shape[-1]
    length = max(1, LONGEST_DECAY // step) * step
    outputs = []
    for start in range(0, max(t, 1), length):
        part = slice(start, start + length)
        decay = gates[..., part].cumsum(-1)
        own = joined_masks(None if mask is None else mask[..., part], -decay)
        query, key, value = (x[:, :, part] for x in heads)
        output, state = stream_attention(query, key, value, state, features, **weighing(own), **options)
        state = state.weighed(gates[..., part].sum(-1))
        outputs.append(output)
    assert state is not None
    return Streamed(outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2), state)
