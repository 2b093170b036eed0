"""What the operators hand to their implementations and get back, whichever runs.

A state is always (log_normalizer, value), a softmax always (maximum, sum). Inputs, results and gradients of an operator
are NamedTuples; `dispatch/family.py` makes schemas of them.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FavorState(NamedTuple):
    """A set of keys and values as its m landmarks see it; of fixed size whatever the number of keys.

    Attributes:
        log_normalizer: L_r = logsumexp_s e_sr, (b, h, m), float32; -inf where no key has been seen.
        value: V_r = sum_s softmax_s(e_sr) v_s, (b, h, m, e), float32; zero where no key has been seen, and without
            meaning where the log-weight is -inf.
    """

    log_normalizer: Tensor
    value: Tensor

    def weighed(self, log_weight: Tensor) -> FavorState:
        """Return the state whose keys all count exp(log_weight) times as much as before.

        Args:
            log_weight: (b or 1, h or 1), at most 0 to forget.
        """
        return FavorState(self.log_normalizer + log_weight.unsqueeze(-1), self.value)


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


class FeatureGradients(NamedTuple):
    """Gradients of the features."""

    projection: Tensor
    log_weight: Tensor | None


LOWEST_BIAS = -1e37
"""A key bias from here down hides its key: -inf, and the lowest numbers of float32 and bfloat16."""


class SummarizeInputs(NamedTuple):
    """Keys (b, h, s, d), values (b, h, s, e), mask, features, implementation.

    The mask is padding, (b, s) bool where True is ignored, or a key bias, (b, h, s) floating point, added to e_sr.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None
    space: FeatureSpace
    impl: str


class SummarizeResults(NamedTuple):
    """The state, and for the backward the maximum and the sum of its softmax over keys, stacked in (2, b, h, m).

    The maximum is in nats, that of the kernels in bits.
    """

    state: FavorState
    statistics: Tensor


class SummarizeGradients(NamedTuple):
    """Gradients of `SummarizeInputs`: that of the mask is None if it is padding, those of features if not asked for."""

    key: Tensor
    value: Tensor
    mask: Tensor | None
    space: FeatureGradients | None


class AttendInputs(NamedTuple):
    """Queries (b, h g, t, d), a state, features without log-weight (the state has it), implementation."""

    query: Tensor
    state: FavorState
    space: FeatureSpace
    impl: str


class AttendResults(NamedTuple):
    """The output (b, h g, t, e), and the statistics of its softmax over landmarks, empty for the reference."""

    output: Tensor
    statistics: Tensor


class AttendUpstream(NamedTuple):
    """Gradient of the output."""

    output: Tensor


class AttendGradients(NamedTuple):
    """Gradients of `AttendInputs`."""

    query: Tensor
    state: FavorState
    space: FeatureGradients | None


class FullInputs(NamedTuple):
    """Queries of `AttendInputs` and keys, values, mask of `SummarizeInputs`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    space: FeatureSpace
    impl: str


class FullResults(NamedTuple):
    """The output; for the backward, statistics of hop 2, the results of hop 1, and a copy of the projection.

    V and the copy have the dtype in which hop 2 reads them; the copy is empty where it reads the original.
    """

    output: Tensor
    statistics: Tensor
    state: FavorState
    landmark_statistics: Tensor
    projection: Tensor


class FullGradients(NamedTuple):
    """Gradients of `FullInputs`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    space: FeatureGradients | None


class CausalInputs(NamedTuple):
    """Queries (b, h g, t, d), keys and values of as many tokens, mask, and the state of earlier keys."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    initial: FavorState | None
    space: FeatureSpace
    impl: str
    tokens_per_step: int


class CausalResults(NamedTuple):
    """Output, the state of all keys, and for the backward the maximum x and sum den of each row, (2, b, h g, t)."""

    output: Tensor
    state: FavorState
    statistics: Tensor


class CausalUpstream(NamedTuple):
    """Gradients of the output and, where it goes on, of the state of all keys."""

    output: Tensor
    state: FavorState | None


class CausalGradients(NamedTuple):
    """Gradients of `CausalInputs`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    initial: FavorState | None
    space: FeatureGradients | None


def attention_output(query: Tensor, value_dim: int) -> Tensor:
    """Allocate (b, h, t, e) with memory as (b, t, h, e), so that merging the heads costs no copy.

    No view of anything, so that callers may change it in place.
    """
    b, h, t, _ = query.shape
    strides = (t * h * value_dim, value_dim, h * value_dim, 1)
    return torch.empty_strided((b, h, t, value_dim), strides, dtype=query.dtype, device=query.device)
