"""FavorAttention: linear attention in the shape of `torch.nn.MultiheadAttention`.

Dimension key: b batch, h heads, t queries, s keys, d head dim, e value head dim, m features.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from ..dispatch.implementation import Impl, check_impl
from ..dispatch.tracing import as_leaf
from ..favor.arguments import check_feature_map
from ..favor.feature_maps import FeatureMap
from ..favor.functions import favor_attention
from ..random_features import (
    FeatureKind,
)
from .conversion import convert
from .extra_keys import extended
from .gating import attend_forgetting, initial_gate_bias, needs_chunks
from .implied_weights import implied_weights
from .inputs import check_flags, check_sizes, with_norm
from .masks import joined_masks, key_mask, recognise_attention_mask, weighing
from .stateful import StateModule


class FavorAttention(StateModule):
    """Multi-head attention with positive random features (FAVOR+, Choromanski et al. 2021), linear in the lengths.

    Takes the place of `nn.MultiheadAttention`: same constructor, call and parameter names, so its state dict loads
    here (the projection, which it lacks, is kept as drawn). It is another attention, not an approximation to rely on:
    FAVOR+ estimates softmax attention well only for scaled queries and keys of norm about one, so a layer filled with
    trained softmax weights needs further training. `qk_norm=True` keeps queries and keys in the good range;
    `softmax_error` measures the distance on your tensors.

        layer = FavorAttention(512, 8, batch_first=True)
        output, _ = layer(x, x, x, key_padding_mask=padding)      # x (b, t, 512), padding (b, t) True = ignore

    Args:
        embed_dim: width of query and output.
        num_heads: h.
        dropout: applied to the heads' output, in training only: there are no attention weights to drop.
        bias: biases on the input and output projections.
        add_bias_kv: a learnt key and value that every query sees beside those given, `bias_k` and `bias_v`.
        add_zero_attn: a key and value of zeros likewise.
        kdim, vdim: widths of key and value, embed_dim by default.
        batch_first: (b, t, embed_dim) instead of (t, b, embed_dim).
        device, dtype: of the parameters; the projection stays float32 in half-precision modules.
        num_features: m, by default 4 d: complete blocks of every kind of feature.
        features: kind of random features, see `draw_features`.
        feature_map: a name of `FeatureMap`, "exponential" for FAVOR+.
        qk_norm: normalise queries and keys to |x|^2 = temperature after scaling, learnable per head, 1 at the start.
        gate: forget: head by head, a key counts the product of the gates sigmoid(gate_weight . x + gate_bias) of all
            later tokens x (time steps: their mean), up to the query's own. For causal calls, whole sequences and
            streams alike; at the start gates do not depend on x, and memories are of 32 to 4096 tokens.
        is_causal: causal in every call, whatever the call says.
        tokens_per_step: tokens that see each other in causal calls (time-major sequences: sensors a time step).
        redraw_interval: optimiser steps between new projections, see `redraw_if_due`; None keeps the first.
        learnable_projection: make the projection a parameter; the drawn one is where it starts. In half precision it
            is rounded where it meets queries and keys, and learns through the rounding.
        seed: of the projection; the same seed gives the same projection on every rank and device.
        head_dim, value_head_dim: d and e, embed_dim / num_heads by default.
        impl: as in `favor_attention`, in every call; `set_impl` chooses for the whole process.

    Raises:
        ValueError: sizes or options that do not fit.
    """

    softmax_names: ClassVar[set[str]] = {"in_proj_weight", "q_proj_weight"}

    in_proj_weight: Tensor
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_features: int | None = None,
        features: FeatureKind = "hyperbolic",
        feature_map: FeatureMap = "exponential",
        qk_norm: bool = False,
        gate: bool = False,
        is_causal: bool = False,
        tokens_per_step: int = 1,
        redraw_interval: int | None = None,
        learnable_projection: bool = False,
        seed: int = 0,
        head_dim: int | None = None,
        value_head_dim: int | None = None,
        impl: Impl = "auto",
    ) -> None:
        check_impl(impl)
        check_flags(bias=bias, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn, batch_first=batch_first, gate=gate)
        if gate and (add_bias_kv or add_zero_attn):
            raise ValueError(
                "gate=True forgets what came before, but keys of add_bias_kv and add_zero_attn are for every query: "
                "leave one of them out"
            )
        sizes = {"kdim": kdim, "vdim": vdim, "num_features": num_features, "value_head_dim": value_head_dim}
        check_sizes(embed_dim, num_heads, dropout, head_dim, tokens_per_step, redraw_interval=redraw_interval, **sizes)
        check_feature_map(feature_map)
        head_dim = embed_dim // num_heads if head_dim is None else head_dim
        super().__init__(
            4 * head_dim if num_features is None else num_features,
            head_dim,
            features,
            seed=seed,
            redraw_interval=redraw_interval,
            learnable_projection=learnable_projection,
        )
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.value_head_dim = self.head_dim if value_head_dim is None else value_head_dim
        self.feature_map: FeatureMap = feature_map
        self.impl: Impl = impl
        self.is_causal, self.tokens_per_step = is_causal, tokens_per_step

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        key_width, value_width = num_heads * self.head_dim, num_heads * self.value_head_dim
        self._widths = [key_width, key_width, value_width]
        self._fused = self.kdim == self.vdim == embed_dim
        # PyTorch's encoder layers take a native softmax path in eval mode unless this says that they cannot.
        self._qkv_same_embed_dim = False
        # As in nn.MultiheadAttention, the weights that a layer does not have are there as None.
        shapes = {
            "in_proj_weight": (sum(self._widths), embed_dim) if self._fused else None,
            "q_proj_weight": None if self._fused else (key_width, embed_dim),
            "k_proj_weight": None if self._fused else (key_width, self.kdim),
            "v_proj_weight": None if self._fused else (value_width, self.vdim),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, None if shape is None else nn.Parameter(torch.empty(shape, **factory)))
        self.in_proj_bias = nn.Parameter(torch.empty(sum(self._widths), **factory)) if bias else None
        self.out_proj = nn.Linear(value_width, embed_dim, bias=bias, **factory)
        bias_widths = (key_width, value_width) if add_bias_kv else (None, None)
        for name, width in zip(("bias_k", "bias_v"), bias_widths, strict=True):
            self.register_parameter(name, None if width is None else nn.Parameter(torch.empty(1, 1, width, **factory)))
        self.add_zero_attn = add_zero_attn
        self.log_temperature = nn.Parameter(torch.zeros(num_heads, **factory)) if qk_norm else None
        self.gate_weight = nn.Parameter(torch.empty(num_heads, self.kdim, **factory)) if gate else None
        self.gate_bias = nn.Parameter(torch.empty(num_heads, **factory)) if gate else None
        # A float64 layer computes in float64 throughout; features never run in half.
        wide = self.out_proj.weight.dtype == torch.float64
        self._register_features(device, torch.float64 if wide else torch.float32)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `nn.MultiheadAttention` does, Xavier weights and zero biases, with the first projection.

        Sets every parameter and buffer this module itself holds, as initialisation after the meta device expects of
        each module; `out_proj` is a module of its own, of which this zeroes the bias only.
        """
        weights = [self.in_proj_weight] if self._fused else [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        for weight in weights:
            nn.init.xavier_uniform_(weight)
        for zero in (self.in_proj_bias, self.out_proj.bias):
            if zero is not None:
                nn.init.zeros_(zero)
        for normal in (self.bias_k, self.bias_v):
            if normal is not None:
                nn.init.xavier_normal_(normal)
        self.reset_own_parameters()

    def _initial(self) -> dict[str, Tensor]:
        own = super()._initial()
        if self.gate_weight is not None:
            own |= {
                "gate_weight": torch.zeros(self.gate_weight.shape, device="cpu"),
                "gate_bias": initial_gate_bias(self.num_heads),
            }
        return own

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: (t, b, embed_dim), (b, t, embed_dim) if batch_first, or (t, embed_dim).
            key, value: likewise with s, kdim and vdim.
            key_padding_mask: (b, s) or (s,), bool with True = ignore, or float, which is added to the logits as
                `key_bias` of `favor_attention` (0 is as without, -1e4 and less ignore). Ignored inputs are projected
                all the same: what is not finite there stays out of the output, but not of the weights' gradients.
            need_weights: also return the implied attention weights; quadratic, for looking at short inputs.
            attn_mask: (t, s) or (b h, t, s), bool or float, causal or hiding nothing, padding that is the same for all
                queries and heads aside; step-causal with this layer's tokens_per_step. Recognised by its values, on a
                GPU once a mask, not once a call. In a graph of torch.compile or torch.export, which has no values, it
                is taken to be causal, and running the graph raises RuntimeError if it is not. Any other raises.
            average_attn_weights: average the weights over the heads.
            is_causal: attend causally. attn_mask is not needed beside it; one that is given must be causal.

        Returns:
            (output in query's layout, None or the weights (b, t, s) or (b, h, t, s)); the weights of extra keys
            (add_bias_kv, add_zero_attn) are in further columns.

        Raises:
            ValueError: inputs that do not fit, a mask that linear attention cannot apply, gates without causality.
        """
        if isinstance(query, Proxy):
            options: dict[str, Any] = {
                "key_padding_mask": key_padding_mask,
                "need_weights": need_weights,
                "attn_mask": attn_mask,
            }
            options |= {"average_attn_weights": average_attn_weights, "is_causal": is_causal}
            return as_leaf(self, query, key, value, **options)
        query, key, value, is_batched = self._arrange(query, key, value)
        mask = key_mask(key_padding_mask, key.shape[0], key.shape[1])
        causal = self.is_causal or is_causal
        if attn_mask is not None:
            shape = (query.shape[0] * self.num_heads, query.shape[1], key.shape[1])
            visible = recognise_attention_mask(
                attn_mask, shape, self.num_heads, self.tokens_per_step, is_causal=is_causal
            )
            causal |= visible.is_causal
            mask = joined_masks(mask, None if visible.padding is None else visible.padding.expand(key.shape[:2]))
        steps = self.tokens_per_step if causal else 1
        heads, extra = self._project(query, key, value), self._extra_keys()
        gates, weighed = None, mask
        if self.gate_weight is not None:
            if not causal:
                raise ValueError("gate=True forgets along time: expected causal attention, pass is_causal=True")
            gates = self._gates(key, mask, steps)
            weighed = joined_masks(mask, -gates.cumsum(-1))
        inputs = extended(heads, weighed, extra, is_causal=causal, tokens_per_step=steps)
        options = {**self._options, **weighing(inputs.mask), "is_causal": causal, "tokens_per_step": steps}
        if gates is not None and needs_chunks(heads, steps):
            streaming = {**self._options, "tokens_per_step": steps}
            attended = attend_forgetting(heads, gates, mask, None, self._drawn, **streaming).output
        else:
            attended = inputs.own_queries(favor_attention(*inputs[:3], self._drawn, **options))
        output = self._as_given(self._merge_heads(attended), is_batched)
        if not need_weights:
            return output, None
        weights = inputs.own_weights(implied_weights(*inputs[:2], self._drawn, **options))
        if average_attn_weights:
            weights = weights.mean(1)
        return output, weights if is_batched else weights.squeeze(0)

    @classmethod
    def from_multihead_attention(cls, attention: nn.MultiheadAttention, **favor: Any) -> Self:
        """Return a layer with a copy of the weights of a softmax attention; see `replacement.py`.

        Args:
            attention: the layer to take weights, sizes, layout, dropout, device, dtype and mode from.
            favor: keywords of this class (num_features, qk_norm, seed, …).

        Raises:
            ValueError: a layer whose behaviour would be lost (a subclass, hooks, pruned weights).
        """
        return copy.deepcopy(convert(attention, cls, favor))

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_features={self.num_features}, "
            f"features={self.features!r}, feature_map={self.feature_map!r}, is_causal={self.is_causal}"
        )

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (q, k, v) as (b, h, length, d), in as few matrix products as the inputs allow."""
        if self._fused and query is key and key is value:
            parts = F.linear(query, self.in_proj_weight, self.in_proj_bias).split(self._widths, -1)
        elif self._fused and key is value:
            first = self._widths[0]
            weights = self.in_proj_weight.split([first, sum(self._widths[1:])])
            biases = (
                (None, None) if self.in_proj_bias is None else self.in_proj_bias.split([first, sum(self._widths[1:])])
            )
            parts = (
                F.linear(query, weights[0], biases[0]),
                *F.linear(key, weights[1], biases[1]).split(self._widths[1:], -1),
            )
        else:
            weights = (
                self.in_proj_weight.split(self._widths)
                if self._fused
                else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            )
            biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(self._widths)
            parts = tuple(F.linear(x, w, c) for x, w, c in zip((query, key, value), weights, biases, strict=True))
        h = self.num_heads  # einops would cost the host as much as the product
        q, k, v = (x.view(*x.shape[:2], h, x.shape[2] // h).transpose(1, 2) for x in parts)
        if self.log_temperature is None:
            return q, k, v
        return with_norm(q, self._radius()), with_norm(k, self._radius()), v

    def _radius(self) -> Tensor:
        """Return |x| of normalised queries and keys, (h, 1, 1).

        |x|^2 = temperature sqrt(d) before the kernel's scaling by d ** -0.25, so temperature after it.
        """
        assert self.log_temperature is not None
        return (self.log_temperature / 2).exp().view(-1, 1, 1) * self.head_dim**0.25

    def _extra_keys(self) -> tuple[Tensor, Tensor] | None:
        keys, values = [], []
        if self.bias_k is not None and self.bias_v is not None:
            keys.append(self.bias_k.view(1, self.num_heads, 1, self.head_dim))
            values.append(self.bias_v.view(1, self.num_heads, 1, self.value_head_dim))
            if self.log_temperature is not None:
                keys[0] = with_norm(keys[0], self._radius())
        if self.add_zero_attn:
            keys.append(self.out_proj.weight.new_zeros(1, self.num_heads, 1, self.head_dim))
            values.append(self.out_proj.weight.new_zeros(1, self.num_heads, 1, self.value_head_dim))
        return (torch.cat(keys, 2), torch.cat(values, 2)) if keys else None
