"""An attention layer's way with states: a memory summarised once, causal attention gone on with step by step.

Dimension key: b batch, h heads, t queries, s keys, d head dim, e value head dim, m features.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..dispatch.implementation import Impl
from ..favor.feature_maps import FeatureMap
from ..favor.functions import FavorState, Streamed, attend, stream_attention, summarize
from .extra_keys import extended
from .features import FeatureModule
from .gating import attend_forgetting, log_gates
from .inputs import arrange_batch_first
from .masks import joined_masks, key_mask, weighing


class StateModule(FeatureModule):
    """Base of a layer that projects its inputs to heads and attends with random features of its own."""

    embed_dim: int
    kdim: int
    vdim: int
    dropout: float
    batch_first: bool
    feature_map: FeatureMap
    tokens_per_step: int
    impl: Impl
    out_proj: nn.Linear
    gate_weight: Tensor | None
    gate_bias: Tensor | None

    def summarize(self, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> FavorState:
        """Project keys and values and reduce them to a state, once for any number of calls of `attend`.

            layer(query, key, value)[0] == layer.attend(query, layer.summarize(key, value))

        Args:
            key, value, key_padding_mask: as in `forward`.

        Returns:
            (b, h, m) and (b, h, m, e); an unbatched input counts as a batch of one. A layer with gates has forgotten in
            it what a token behind the last key would not remember, as in the state of `stream`.

        Raises:
            ValueError: inputs that do not fit.
        """
        nothing, key, value, _ = self._arrange(self._nothing_like(key, self.embed_dim), key, value)
        mask = key_mask(key_padding_mask, key.shape[0], key.shape[1])
        if self.gate_weight is not None:
            gates = self._gates(key, mask, self.tokens_per_step)
            mask = joined_masks(mask, gates.sum(-1, keepdim=True) - gates.cumsum(-1))
        heads = extended(
            self._project(nothing, key, value), mask, self._extra_keys(), is_causal=False, tokens_per_step=1
        )
        return summarize(heads.key, heads.value, self._drawn, **weighing(heads.mask), **self._options)

    def attend(self, query: Tensor, state: FavorState) -> Tensor:
        """Let queries read a state of this layer; the output is laid out as that of `forward`.

        Args:
            query: as in `forward`.
            state: from `summarize` or `stream`.

        Raises:
            ValueError: inputs that do not fit.
        """
        key, value = self._nothing_like(query, self.kdim), self._nothing_like(query, self.vdim)
        query, key, value, is_batched = self._arrange(query, key, value)
        q, _, _ = self._project(query, key, value)
        output = self._merge_heads(attend(q, state, self._drawn, **self._options))
        return self._as_given(output, is_batched)

    def stream(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        state: FavorState | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Streamed:
        """Go on with causal attention by whole time steps, at a cost that does not depend on what came before.

        Over all calls together this is the output of a causal `forward` over the whole sequence, up to rounding.

        Args:
            query, key, value, key_padding_mask: as in `forward`, all of one length, a multiple of tokens_per_step.
            state: of everything before, from the previous call; None at the start.

        Returns:
            Streamed(output in query's layout, state of everything so far).

        Raises:
            ValueError: inputs that do not fit.
        """
        query, key, value, is_batched = self._arrange(query, key, value)
        options = {**self._options, "tokens_per_step": self.tokens_per_step}
        mask = key_mask(key_padding_mask, key.shape[0], key.shape[1])
        heads, extra = self._project(query, key, value), self._extra_keys()
        if state is None and extra is not None:  # which every query sees, as it sees what came before
            keys, values = (x.to(heads[1].dtype).expand(key.shape[0], -1, -1, -1) for x in extra)
            state = summarize(keys, values, self._drawn, **self._options)
        if self.gate_weight is None:
            output, state = stream_attention(*heads, state, self._drawn, **weighing(mask), **options)
        else:
            gates = self._gates(key, mask, self.tokens_per_step)
            output, state = attend_forgetting(heads, gates, mask, state, self._drawn, **options)
        return Streamed(self._as_given(self._merge_heads(output), is_batched), state)

    @property
    def _options(self) -> dict[str, Any]:
        """Keywords of every call of attention."""
        return {"feature_map": self.feature_map, "impl": self.impl}

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (q, k, v) as (b, h, length, d or e) of batch-first inputs."""
        raise NotImplementedError

    def _gates(self, key: Tensor, mask: Tensor | None, tokens_per_step: int) -> Tensor:
        """Return the log-gates (b, h, t) of batch-first inputs of keys, see `gating.py`."""
        assert self.gate_weight is not None
        return log_gates(F.linear(key, self.gate_weight, self.gate_bias), mask, tokens_per_step)

    def _extra_keys(self) -> tuple[Tensor, Tensor] | None:
        """Return keys (1, h, n, d) and values (1, h, n, e) that every query sees beside those given, or None."""
        raise NotImplementedError

    def _arrange(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
        widths = (self.embed_dim, self.kdim, self.vdim)
        return arrange_batch_first(query, key, value, widths=widths, batch_first=self.batch_first)

    def _nothing_like(self, x: Tensor, width: int) -> Tensor:
        """Return an input of length 0 in the layout of x, for the side that a call does without."""
        shape = [*x.shape[:-1], width]
        shape[1 if self.batch_first and x.ndim == 3 else 0] = 0
        return x.new_empty(shape)

    def _merge_heads(self, heads: Tensor) -> Tensor:
        merged = heads.transpose(1, 2).flatten(2)
        return self.out_proj(F.dropout(merged, self.dropout, self.training))

    def _as_given(self, output: Tensor, is_batched: bool) -> Tensor:
        if not is_batched:
            return output.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1)
