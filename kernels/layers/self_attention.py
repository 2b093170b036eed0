"""FAVOR attention in the shape of timm's `Attention`: one input, fused projections, the names of a vision transformer.

Dimension key: b batch, h heads, t tokens, d head dim, m features.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dispatch.implementation import Impl, check_impl
from ..favor.arguments import check_feature_map
from ..favor.feature_maps import FeatureMap
from ..favor.functions import favor_attention
from ..random_features import FeatureKind
from .features import FeatureModule
from .inputs import check_sizes, with_norm
from .masks import recognise_attention_mask, weighing

TIMM = {("timm.layers.attention", "Attention"), ("timm.models.vision_transformer", "Attention")}
"""The class that is taken over, where timm has had it; others of its name compute other things."""

PARTS = ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop")
"""Modules of such a layer, in the order of its calls."""

BIASES = (
    "relative_position_bias_table",
    "rel_pos",
    "rel_pos_h",
    "cpb_mlp",
    "meta_mlp",
    "attention_biases",
    "pos_embed",
)
"""What layers with a bias on their logits hold it in."""


class FavorSelfAttention(FeatureModule):
    """Self-attention with positive random features in the place of `timm.layers.Attention`.

    Made by `replace_attention`, which moves the modules of the softmax layer over: parameters, their names and state
    dicts stay, and what wraps or hooks them stays with them. The projection is one more entry of the state dict; one
    that lacks it loads all the same. See `FavorAttention` for what is given up and for the options.

    Args:
        attention: the layer whose modules and sizes are taken over.
        num_features, features, feature_map, qk_norm, is_causal, tokens_per_step, redraw_interval,
            learnable_projection, seed, impl: as in `FavorAttention`. `qk_norm` comes after the layer's own q_norm.

    Raises:
        ValueError: options that do not fit.
    """

    softmax_names: ClassVar[set[str]] = {"qkv.weight"}

    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Dropout
    norm: nn.Module
    gate: nn.Module | None
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(
        self,
        attention: Any,
        *,
        num_features: int | None = None,
        features: FeatureKind = "hyperbolic",
        feature_map: FeatureMap = "exponential",
        qk_norm: bool = False,
        is_causal: bool = False,
        tokens_per_step: int = 1,
        redraw_interval: int | None = None,
        learnable_projection: bool = False,
        seed: int = 0,
        impl: Impl = "auto",
    ) -> None:
        check_impl(impl)
        check_feature_map(feature_map)
        weight = attention.qkv.weight
        num_heads, head_dim = attention.num_heads, weight.shape[0] // (3 * attention.num_heads)
        counts = {"num_features": num_features, "redraw_interval": redraw_interval}
        check_sizes(weight.shape[1], num_heads, attention.attn_drop.p, head_dim, tokens_per_step, **counts)
        super().__init__(
            4 * head_dim if num_features is None else num_features,
            head_dim,
            features,
            seed=seed,
            redraw_interval=redraw_interval,
            learnable_projection=learnable_projection,
        )
        self.num_heads, self.scale = num_heads, attention.scale
        self.feature_map: FeatureMap = feature_map
        self.impl: Impl = impl
        self.is_causal, self.tokens_per_step = is_causal, tokens_per_step
        for name in PARTS:
            setattr(self, name, getattr(attention, name, None if name == "gate" else nn.Identity()))
        temperature = weight.new_zeros(num_heads) if qk_norm else None
        self.log_temperature = None if temperature is None else nn.Parameter(temperature)
        self._register_features(weight.device, torch.float64 if weight.dtype == torch.float64 else torch.float32)
        self.redraw(0)
        self.train(attention.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend.

        Args:
            x: (b, t, width).
            attn_mask: (t, t), or (b or 1, h or 1, t or 1, t), as in `scaled_dot_product_attention`: bool with True =
                attend, or float; causal or hiding nothing, padding and biases of keys aside.
            is_causal: attend causally.

        Returns:
            (b, t, width of proj).

        Raises:
            ValueError: a mask that linear attention cannot apply.
        """
        b, t, _ = x.shape
        gate = None if self.gate is None else self.gate(x).sigmoid()
        heads = self.qkv(x).view(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = self.q_norm(heads[0]), self.k_norm(heads[1]), heads[2]
        if self.log_temperature is not None:  # |x| after the kernel's scaling is the root of the temperature
            radius = (self.log_temperature / 2).exp().view(-1, 1, 1) * self.scale**-0.5
            query, key = with_norm(query, radius), with_norm(key, radius)
        causal, padding = self.is_causal or is_causal, None
        if attn_mask is not None:
            visible = recognise_attention_mask(
                *_as_multihead_mask(attn_mask, b, self.num_heads, t), tokens_per_step=self.tokens_per_step
            )
            causal |= visible.is_causal
            padding = None if visible.padding is None else visible.padding.expand(b, t)
        attended = favor_attention(
            query,
            key,
            value,
            self._drawn,
            feature_map=self.feature_map,
            is_causal=causal,
            tokens_per_step=self.tokens_per_step if causal else 1,
            **weighing(padding),
            scale=self.scale,
            impl=self.impl,
        )
        merged = F.dropout(attended.transpose(1, 2).flatten(2), self.attn_drop.p, self.training)
        merged = self.norm(merged)
        return self.proj_drop(self.proj(merged if gate is None else merged * gate))

    def extra_repr(self) -> str:
        """Say what defines the layer beside its modules."""
        return (
            f"num_heads={self.num_heads}, num_features={self.num_features}, features={self.features!r}, "
            f"feature_map={self.feature_map!r}, is_causal={self.is_causal}"
        )


def _as_multihead_mask(mask: Tensor, batch: int, heads: int, tokens: int) -> tuple[Tensor, tuple[int, int, int], int]:
    """Return a mask of scaled_dot_product_attention as nn.MultiheadAttention has them, its shape, and its heads."""
    shape = mask.shape if mask.ndim == 4 else (1, 1, *mask.shape)
    sizes = ((1, batch), (1, heads), (1, tokens), (tokens,))
    if len(shape) != 4 or any(n not in fits for n, fits in zip(shape, sizes, strict=True)):
        raise ValueError(
            f"attn_mask must be ({tokens}, {tokens}) or ({batch} or 1, {heads} or 1, {tokens} or 1, {tokens}), "
            f"got {tuple(mask.shape)}"
        )
    hidden = ~mask if mask.dtype == torch.bool else mask
    hidden = hidden.expand(*shape[:2], tokens, tokens).flatten(0, 1)
    return hidden, (len(hidden), tokens, tokens), shape[1]


def is_timm_attention(module: nn.Module) -> bool:
    """Whether a layer is of timm's own class, not of a subclass or of another that bears the name."""
    return (type(module).__module__, type(module).__qualname__) in TIMM


def timm_obstacle(attention: Any) -> str | None:
    """Say what FavorSelfAttention could not keep of a layer of timm's class, or None."""
    modules = dict(attention.named_children())
    others = set(modules) - set(PARTS)
    others |= {name for name, _ in attention.named_parameters(recurse=False)}
    others |= {name for name, _ in attention.named_buffers(recurse=False)}
    if others:
        return f"it has what this version does not know ({', '.join(sorted(others))})"
    if not isinstance(modules.get("qkv"), nn.Linear) or not isinstance(modules.get("attn_drop"), nn.Dropout):
        return "its qkv is no nn.Linear, or its attn_drop no nn.Dropout: replace attention before adapting it"
    if modules["qkv"].out_features % (3 * attention.num_heads) or "proj" not in modules:
        return "its heads do not share qkv evenly, or it has no proj"
    hooks = [name for name, found in vars(attention).items() if name.endswith("hooks") and found]
    return f"it has hooks, which would be lost ({', '.join(hooks)})" if hooks else None


def why_left(module: nn.Module) -> str:
    """Say why an attention of a class of its own is not replaced."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    own = f"it is no nn.MultiheadAttention, but attends in its own way ({kind})"
    held = [name for name in BIASES if getattr(module, name, None) is not None]
    if held:
        return f"{own}: a bias on its logits ({held[0]}), which linear attention cannot have"
    if "window" in type(module).__name__.lower():
        return f"{own}: within windows, whose cost is linear as it is"
    return own
