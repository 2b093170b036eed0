"""What the encoder and decoder layers have in common, checked once, and the parts built from it."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

from torch import nn

from ...kernels import FavorAttention
from .argument_checks import require_at_least, require_choice, require_probability
from .attention import GlobalAttention, LocalAttention
from .feed_forward import Activation, FeedForward
from .token_norm import NormalizationType, token_norm

PerformerKernel = Literal["softmax", "relu", "elu"]
AttentionFactory = Callable[..., nn.Module]


@dataclass(frozen=True)
class LayerConfig:
    """Hyper-parameters of one transformer layer.

    Args:
        d_model: width of a token.
        n_heads: attention heads.
        d_q_k: width of queries and keys per head; None: d_model / n_heads.
        d_v: width of values per head; None: d_model / n_heads.
        d_ff: hidden width of the feed-forward networks; None: 4 d_model.
        dropout_attn: dropout rate on the heads' outputs, handed to `attention_factory` as `dropout`.
        dropout_qkv: dropout rate on the tokens that queries, keys and values are projected from.
        dropout_ff: dropout rate in the feed-forward networks.
        activation: "relu", "gelu" or "silu".
        normalization_type: "layernorm" or "batchnorm".
        performer_attention_kernel: "softmax" (FAVOR+), "relu" or "elu" (generalised attention).
        num_features: random features per head; None: FavorAttention's default.
        features: how the random features are drawn, see `favorcast.kernels.draw_features`.
        qk_norm: normalise queries and keys, which keeps FAVOR+ in the range where it estimates softmax attention well.
        redraw_interval: optimiser steps between draws of the random features; None: never redraw.
        local_attention: attend along time within each sensor too, before attending to all sensors; without it half
            the cost.
        attention_factory: builds each attention; called with the keyword arguments of FavorAttention.

    Raises:
        ValueError: a value outside its range, an unknown name, or d_model not divisible by n_heads when a head width
            is derived from them.
    """

    d_model: int = 128
    _: KW_ONLY
    n_heads: int = 4
    d_q_k: int | None = None
    d_v: int | None = None
    d_ff: int | None = None
    dropout_attn: float = 0.0
    dropout_qkv: float = 0.0
    dropout_ff: float = 0.2
    activation: Activation = "gelu"
    normalization_type: NormalizationType = "layernorm"
    performer_attention_kernel: PerformerKernel = "softmax"
    num_features: int | None = None
    features: str = "hyperbolic"
    qk_norm: bool = True
    redraw_interval: int | None = None
    local_attention: bool = True
    attention_factory: AttentionFactory = FavorAttention

    def __post_init__(self) -> None:
        require_at_least(1, d_model=self.d_model, n_heads=self.n_heads)
        for name in ("d_q_k", "d_v", "d_ff", "num_features", "redraw_interval"):
            value = getattr(self, name)
            if value is not None:
                require_at_least(1, **{name: value})
        for name in ("d_q_k", "d_v"):
            if getattr(self, name) is None and self.d_model % self.n_heads != 0:
                raise ValueError(
                    f"d_model must be divisible by n_heads when {name} is None, got d_model={self.d_model}, "
                    f"n_heads={self.n_heads}; give {name} or choose another n_heads"
                )
        require_probability(dropout_attn=self.dropout_attn, dropout_qkv=self.dropout_qkv, dropout_ff=self.dropout_ff)
        require_choice("activation", self.activation, get_args(Activation))
        require_choice("normalization_type", self.normalization_type, get_args(NormalizationType))
        require_choice("performer_attention_kernel", self.performer_attention_kernel, get_args(PerformerKernel))

    def build_attention(self, seed: int, *, is_causal: bool = False, tokens_per_step: int = 1) -> nn.Module:
        """Build one attention whose random features come from `seed`."""
        return self.attention_factory(
            embed_dim=self.d_model,
            num_heads=self.n_heads,
            dropout=self.dropout_attn,
            batch_first=True,
            num_features=self.num_features,
            features=self.features,
            feature_map="exponential"
            if self.performer_attention_kernel == "softmax"
            else self.performer_attention_kernel,
            qk_norm=self.qk_norm,
            is_causal=is_causal,
            tokens_per_step=tokens_per_step,
            redraw_interval=self.redraw_interval,
            seed=seed,
            head_dim=self.d_model // self.n_heads if self.d_q_k is None else self.d_q_k,
            value_head_dim=self.d_model // self.n_heads if self.d_v is None else self.d_v,
        )

    def build_local_attention(self, seed: int, *, is_causal: bool = False) -> LocalAttention:
        """Build one attention along time; a causal one hides later steps."""
        return LocalAttention(self.build_attention(seed, is_causal=is_causal), dropout=self.dropout_qkv)

    def build_global_attention(self, seed: int, *, is_causal: bool = False, num_sensors: int = 1) -> GlobalAttention:
        """Build one attention over all tokens; a causal one hides later steps of its `num_sensors` query sensors."""
        attention = self.build_attention(seed, is_causal=is_causal, tokens_per_step=num_sensors)
        return GlobalAttention(attention, dropout=self.dropout_qkv)

    def build_norm(self) -> nn.Module:
        """Build one normalisation of tokens."""
        return token_norm(self.normalization_type, self.d_model)

    def build_feed_forward(self) -> nn.Module:
        """Build one feed-forward network, its dropout included."""
        d_ff = 4 * self.d_model if self.d_ff is None else self.d_ff
        return FeedForward(self.d_model, d_ff, activation=self.activation, dropout=self.dropout_ff)
