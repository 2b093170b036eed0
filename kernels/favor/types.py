"""What the operators hand to their implementations and get back, whichever runs.

Dimension key: b batch, h heads, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FeatureSpace(NamedTuple):
    """Everything that turns queries and keys into exponents: features, softmax scale and feature map."""

    projection: Tensor
    log_weight: Tensor | None
    scale: float
    feature_map: str
    paired: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the features, one or two."""
        return [x for x in (self.projection, self.log_weight) if x is not None]

    def projection_for(self, tokens: Tensor) -> Tensor:
        """Return W as it meets tokens, in its own dtype: rounded to theirs if that is a half one, as the kernels do.

        The gradient passes straight through: W + (round(W) - W), which is round(W) to the last bit.
        """
        if tokens.dtype not in (torch.bfloat16, torch.float16):
            return self.projection
        exact = self.projection.detach()
        return self.projection + (exact.to(tokens.dtype).to(exact.dtype) - exact)


class KeySummary(NamedTuple):
    """Hop 1: the state (L, V), and the maximum x (b, h, m) and sum z (b, h, m) of its softmax, for the backward."""

    log_normalizer: Tensor
    value: Tensor
    highest: Tensor
    total: Tensor


class CausalTensors(NamedTuple):
    """What causal attention reads: queries (b, h g, t, d), keys, values, padding, and the state of earlier keys."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    initial: tuple[Tensor, Tensor] | None


class CausalSummary(NamedTuple):
    """Output o, the state (L, V) of all keys, and x and den of the rows, stacked in (2, b, h g, t)."""

    output: Tensor
    log_normalizer: Tensor
    state_value: Tensor
    softmax: Tensor


class ParameterGradients(NamedTuple):
    """Gradients of the projection and the log-weight; empty tensors where none was asked for."""

    projection: Tensor
    log_weight: Tensor


class CausalGradients(NamedTuple):
    """Gradients of causal attention; `initial` is None where there is no initial state."""

    query: Tensor
    key: Tensor
    value: Tensor
    initial: tuple[Tensor, Tensor] | None
    parameters: ParameterGradients


def attention_output(query: Tensor, value_dim: int) -> Tensor:
    """Allocate (b, h, t, e) with memory as (b, t, h, e), so that merging the heads costs no copy.

    No view of anything, so that callers may change it in place.
    """
    b, h, t, _ = query.shape
    strides = (t * h * value_dim, value_dim, h * value_dim, 1)
    return torch.empty_strided((b, h, t, value_dim), strides, dtype=query.dtype, device=query.device)
