"""Softmax attention with the interface of FavorAttention, to compare a model with.

Dimension key: b batch, h heads, t queries, s keys, d head dim, e value head dim.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..flat_arguments import FieldsSignature, takes_fields_of


class SoftmaxState(NamedTuple):
    """All keys and values seen so far: it grows with them, unlike that of FavorAttention."""

    key: Tensor  # (b, h, s, d)
    value: Tensor  # (b, h, s, e)
    hidden: Tensor  # (b, s) bool, True = ignore


@dataclass(frozen=True)
class SoftmaxConfig:
    """Arguments of a SoftmaxAttention: those of FavorAttention that a LayerConfig gives.

    Args:
        embed_dim: width of query, key, value and output.
        num_heads: h.
        dropout: rate on the heads' output, where FavorAttention has it.
        batch_first: must be True.
        qk_norm: normalise queries and keys.
        is_causal: hide later steps.
        tokens_per_step: tokens that see each other when causal.
        head_dim: d; None: embed_dim / num_heads.
        value_head_dim: e; None: d.
        num_features: of FavorAttention, without meaning here, as are those that follow.
        features: likewise.
        feature_map: likewise.
        redraw_interval: likewise.
        seed: likewise.

    Raises:
        ValueError: for batch_first=False.
    """

    embed_dim: int
    num_heads: int
    dropout: float = 0.0
    batch_first: bool = True
    _: KW_ONLY
    qk_norm: bool = False
    is_causal: bool = False
    tokens_per_step: int = 1
    head_dim: int | None = None
    value_head_dim: int | None = None
    num_features: int | None = None
    features: str | None = None
    feature_map: str | None = None
    redraw_interval: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.batch_first:
            raise ValueError("SoftmaxAttention is batch first: expected batch_first=True, got False")


class SoftmaxAttention(nn.Module):
    """Exact attention, quadratic in the length, in the place of FavorAttention.

        o_t = sum_s softmax_s(q_t . k_s / sqrt(d)) v_s

    Takes FavorAttention's arguments, batch first (see SoftmaxConfig). With `qk_norm`, |q|^2 = |k|^2 = temperature
    sqrt(d), learnable for each head and 1 at the start, as there.
    """

    __signature__ = FieldsSignature()

    @takes_fields_of(SoftmaxConfig)
    def __init__(self, *args: Any, **arguments: Any) -> None:
        config = SoftmaxConfig(*args, **arguments)
        super().__init__()
        embed_dim, num_heads = config.embed_dim, config.num_heads
        head_dim = embed_dim // num_heads if config.head_dim is None else config.head_dim
        value_head_dim = head_dim if config.value_head_dim is None else config.value_head_dim
        self.num_heads, self.dropout = num_heads, config.dropout
        self.is_causal, self.tokens_per_step = config.is_causal, config.tokens_per_step
        self.query = nn.Linear(embed_dim, num_heads * head_dim)
        self.key = nn.Linear(embed_dim, num_heads * head_dim)
        self.value = nn.Linear(embed_dim, num_heads * value_head_dim)
        self.out_proj = nn.Linear(num_heads * value_head_dim, embed_dim)
        self.log_temperature = nn.Parameter(torch.zeros(num_heads, 1, 1)) if config.qk_norm else None
        for projection in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend; query (b, t, embed_dim), key and value (b, s, embed_dim), key_padding_mask (b, s) True = ignore."""
        state = self.summarize(key, value, key_padding_mask)
        return self._read(query, state, first_step=0 if self.is_causal else None), None

    def summarize(self, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> SoftmaxState:
        """Project keys and values, for any number of calls of `attend`."""
        hidden = key_padding_mask
        if hidden is None:
            hidden = torch.zeros(key.shape[:2], dtype=torch.bool, device=key.device)
        return SoftmaxState(self._normalized(self._split(self.key(key))), self._split(self.value(value)), hidden)

    def attend(self, query: Tensor, state: SoftmaxState) -> Tensor:
        """Let queries (b, t, embed_dim) read every key of a state."""
        return self._read(query, state, first_step=None)

    def stream(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        state: SoftmaxState | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, SoftmaxState]:
        """Continue causal attention by whole time steps; return the output and the state with the new keys."""
        new = self.summarize(key, value, key_padding_mask)
        seen = 0 if state is None else state.key.shape[2]
        if state is not None:
            new = SoftmaxState(
                torch.cat((state.key, new.key), 2),
                torch.cat((state.value, new.value), 2),
                torch.cat((state.hidden, new.hidden), 1),
            )
        return self._read(query, new, first_step=seen // self.tokens_per_step), new

    def _read(self, query: Tensor, state: SoftmaxState, *, first_step: int | None) -> Tensor:
        """Attend to the keys that are not hidden; causally with the queries starting at `first_step`, if given."""
        visible = ~state.hidden[:, None, None, :]  # (b, 1, 1, s)
        if first_step is not None:
            keys = torch.arange(state.key.shape[2], device=query.device) // self.tokens_per_step
            queries = torch.arange(query.shape[1], device=query.device) // self.tokens_per_step + first_step
            visible = visible & (keys <= queries.unsqueeze(-1))
        sees_any = visible.any(-1, keepdim=True)
        q = self._normalized(self._split(self.query(query)))
        heads = F.scaled_dot_product_attention(q, state.key, state.value, attn_mask=visible | ~sees_any)
        heads = torch.where(sees_any, heads, 0.0)  # a query that sees no key gets zeros, as in FavorAttention
        return self.out_proj(F.dropout(rearrange(heads, "b h t e -> b t (h e)"), self.dropout, self.training))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b s (h d) -> b h s d", h=self.num_heads)

    def _normalized(self, x: Tensor) -> Tensor:
        if self.log_temperature is None:
            return x
        radius = (self.log_temperature / 2).exp() * x.shape[-1] ** 0.25
        return x * (radius * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6 * x.shape[-1]))
