"""FavorAttention: linear attention in the shape of `torch.nn.MultiheadAttention`.

Dimension key: b batch, h heads, t queries, s keys, d head dim, e value head dim, m features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_inputs import arrange_batch_first, check_sizes, with_norm
from .attention_masks import key_padding, recognise_attention_mask
from .favor_attention import FavorState, attend, favor_attention, merge, summarize
from .random_features import FeatureKind, FeatureMap, RandomFeatures, draw_features, is_paired

MAX_WEIGHTS = 1 << 22
"""The implied attention weights are quadratic; `need_weights=True` answers up to this many a head."""


class FavorAttention(nn.Module):
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
        kdim, vdim: widths of key and value, embed_dim by default.
        batch_first: (b, t, embed_dim) instead of (t, b, embed_dim).
        num_features: m, by default 4 d: complete blocks of every kind of feature.
        features: kind of random features, see `draw_features`.
        feature_map: "exponential", "relu" or "elu".
        qk_norm: normalise queries and keys to |x|^2 = temperature after scaling, learnable per head, 1 at the start.
        is_causal: causal in every call, whatever the call says.
        tokens_per_step: tokens that see each other in causal calls (time-major sequences: sensors a time step).
        redraw_interval: optimiser steps between new projections, see `redraw_if_due`; None keeps the first.
        seed: of the projection; the same seed gives the same projection on every rank and device.
        head_dim, value_head_dim: d and e, embed_dim / num_heads by default.
        device, dtype: of the parameters; the projection stays float32 in half-precision modules.

    Raises:
        ValueError: sizes or options that do not fit.
    """

    projection: Tensor
    log_weight: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        num_features: int | None = None,
        features: FeatureKind = "hyperbolic",
        feature_map: FeatureMap = "exponential",
        qk_norm: bool = False,
        is_causal: bool = False,
        tokens_per_step: int = 1,
        redraw_interval: int | None = None,
        seed: int = 0,
        head_dim: int | None = None,
        value_head_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(embed_dim, num_heads, dropout, head_dim, redraw_interval, tokens_per_step)
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.value_head_dim = self.head_dim if value_head_dim is None else value_head_dim
        self.num_features = 4 * self.head_dim if num_features is None else num_features
        self.features: FeatureKind = features
        self.feature_map: FeatureMap = feature_map
        self.is_causal, self.tokens_per_step = is_causal, tokens_per_step
        self.redraw_interval, self.seed = redraw_interval, seed

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        key_width, value_width = num_heads * self.head_dim, num_heads * self.value_head_dim
        self._widths = [key_width, key_width, value_width]
        self._fused = self.kdim == self.vdim == embed_dim
        # PyTorch's encoder layers take a native softmax path in eval mode unless this says that they cannot.
        self._qkv_same_embed_dim = False
        if self._fused:
            self.in_proj_weight = nn.Parameter(torch.empty(sum(self._widths), embed_dim, **factory))
        else:
            self.q_proj_weight = nn.Parameter(torch.empty(key_width, embed_dim, **factory))
            self.k_proj_weight = nn.Parameter(torch.empty(key_width, self.kdim, **factory))
            self.v_proj_weight = nn.Parameter(torch.empty(value_width, self.vdim, **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(sum(self._widths), **factory)) if bias else None
        self.out_proj = nn.Linear(value_width, embed_dim, bias=bias, **factory)
        self.log_temperature = nn.Parameter(torch.zeros(num_heads, **factory)) if qk_norm else None
        drawn = self._draw(0)
        # A float64 layer computes in float64 throughout; features never run in half.
        precision = torch.float64 if self.out_proj.weight.dtype == torch.float64 else torch.float32
        self.register_buffer("projection", drawn.projection.to(device, precision))
        log_weight = None if drawn.log_weight is None else drawn.log_weight.to(device, precision)
        self.register_buffer("log_weight", log_weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `nn.MultiheadAttention` does, Xavier weights and zero biases, with the first projection.

        Sets every parameter and buffer this module itself holds, as initialisation after the meta device expects of
        each module; `out_proj` is a module of its own, of which this zeroes the bias only.
        """
        weights = [self.in_proj_weight] if self._fused else [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        for weight in weights:
            nn.init.xavier_uniform_(weight)
        for zero in (self.in_proj_bias, self.out_proj.bias, self.log_temperature):
            if zero is not None:
                nn.init.zeros_(zero)
        self.redraw(0)

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
            key_padding_mask: (b, s) or (s,), bool with True = ignore, or float with 0 and -inf.
            need_weights: also return the implied attention weights; quadratic, for looking at short inputs.
            attn_mask: only a causal mask, (t, s) bool or float, or one that hides nothing; step-causal with this
                layer's tokens_per_step. Recognised by value unless is_causal says so. Any other raises.
            average_attn_weights: average the weights over the heads.
            is_causal: attend causally; attn_mask, if also given, is taken to be the causal one.

        Returns:
            (output in query's layout, None or the weights (b, t, s) or (b, h, t, s)).

        Raises:
            ValueError: inputs that do not fit, or a mask that linear attention cannot apply.
        """
        query, key, value, batched = arrange_batch_first(
            query, key, value, widths=(self.embed_dim, self.kdim, self.vdim), batch_first=self.batch_first
        )
        padding = key_padding(key_padding_mask, key.shape[0], key.shape[1])
        causal = self.is_causal or is_causal
        if attn_mask is not None and not is_causal:
            causal |= recognise_attention_mask(attn_mask, query.shape[1], key.shape[1], self.tokens_per_step)
        options: dict[str, Any] = {"feature_map": self.feature_map, "key_padding_mask": padding, "is_causal": causal}
        if causal:
            options["tokens_per_step"] = self.tokens_per_step
        heads = self._project(query, key, value)
        features = RandomFeatures(self.projection, self.log_weight, self._paired)
        merged = rearrange(favor_attention(*heads, features, **options), "b h t e -> b t (h e)")
        output = self.out_proj(F.dropout(merged, self.dropout, self.training))
        weights = self._weights(*heads[:2], features, options) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def summarize(self, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> FavorState:
        """Project keys and values and reduce them to a state, once for any number of calls of `attend`.

            layer(query, key, value)[0] == layer.attend(query, layer.summarize(key, value))

        Args:
            key, value, key_padding_mask: as in `forward`.

        Returns:
            (b, h, m) and (b, h, m, e); an unbatched input counts as a batch of one.

        Raises:
            ValueError: inputs that do not fit.
        """
        nothing, key, value, _ = self._arrange(self._nothing_like(key, self.embed_dim), key, value)
        padding = key_padding(key_padding_mask, key.shape[0], key.shape[1])
        _, k, v = self._project(nothing, key, value)
        return summarize(k, v, self._features, feature_map=self.feature_map, key_padding_mask=padding)

    def attend(self, query: Tensor, state: FavorState) -> Tensor:
        """Let queries read a state of this layer; the output is laid out as that of `forward`.

        Args:
            query: as in `forward`.
            state: from `summarize` or `stream`.

        Raises:
            ValueError: inputs that do not fit.
        """
        key, value = self._nothing_like(query, self.kdim), self._nothing_like(query, self.vdim)
        query, key, value, batched = self._arrange(query, key, value)
        q, _, _ = self._project(query, key, value)
        output = self._merge_heads(attend(q, state, self._features, feature_map=self.feature_map))
        return self._as_given(output, batched)

    def stream(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        state: FavorState | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, FavorState]:
        """Continue causal attention by whole time steps, at a cost that does not depend on the steps before.

        The new keys enter the state step by step, and the queries of a step read what is in it by then: over all calls
        together the output of a causal `forward` over the whole sequence, up to rounding.

        Args:
            query, key, value, key_padding_mask: as in `forward`, all of one length, a positive multiple of
                tokens_per_step.
            state: of the steps before, from the previous call; None at the start.

        Returns:
            (output in query's layout, state after these steps).

        Raises:
            ValueError: inputs that do not fit.
        """
        query, key, value, batched = self._arrange(query, key, value)
        length, step = query.shape[1], self.tokens_per_step
        if length != key.shape[1] or length == 0 or length % step:
            raise ValueError(
                "stream takes whole time steps, as many queries as keys: expected a positive multiple of "
                f"tokens_per_step={step}, got {length} queries and {key.shape[1]} keys"
            )
        padding = key_padding(key_padding_mask, key.shape[0], key.shape[1])
        heads = self._project(query, key, value)
        options: dict[str, Any] = {"feature_map": self.feature_map}
        outputs = []
        for start in range(0, length, step):
            part = slice(start, start + step)
            q, k, v = (x[:, :, part] for x in heads)
            hidden = None if padding is None else padding[:, part]
            new = summarize(k, v, self._features, key_padding_mask=hidden, **options)
            state = new if state is None else merge(state, new)
            outputs.append(attend(q, state, self._features, **options))
        assert state is not None
        return self._as_given(self._merge_heads(torch.cat(outputs, dim=2)), batched), state

    @property
    def _features(self) -> RandomFeatures:
        return RandomFeatures(self.projection, self.log_weight, self._paired)

    def _arrange(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
        widths = (self.embed_dim, self.kdim, self.vdim)
        return arrange_batch_first(query, key, value, widths=widths, batch_first=self.batch_first)

    def _nothing_like(self, x: Tensor, width: int) -> Tensor:
        """Return an input of length 0 in the layout of x, for the side that a call does without."""
        shape = [*x.shape[:-1], width]
        shape[1 if self.batch_first and x.ndim == 3 else 0] = 0
        return x.new_empty(shape)

    def _merge_heads(self, heads: Tensor) -> Tensor:
        merged = rearrange(heads, "b h t e -> b t (h e)")
        return self.out_proj(F.dropout(merged, self.dropout, self.training))

    def _as_given(self, output: Tensor, batched: bool) -> Tensor:
        if not batched:
            return output.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1)

    def redraw(self, index: int) -> None:
        """Replace the projection by number `index` of this layer's seed, in place; 0 is the first one."""
        drawn = self._draw(index)
        self.projection.copy_(drawn.projection)
        self._paired = drawn.paired
        if self.log_weight is not None and drawn.log_weight is not None:
            self.log_weight.copy_(drawn.log_weight)

    def redraw_if_due(self, optimizer_step: int) -> bool:
        """Redraw after every `redraw_interval` optimiser steps; call it after each, outside forward and backward.

        Which projection is drawn follows from (seed, optimizer_step // redraw_interval) alone: ranks agree without
        communication, and a resumed run goes on as an uninterrupted one.

        Returns:
            Whether the projection was redrawn.
        """
        if self.redraw_interval is None or optimizer_step < 1 or optimizer_step % self.redraw_interval:
            return False
        self.redraw(optimizer_step // self.redraw_interval)
        return True

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_features={self.num_features}, "
            f"features={self.features!r}, feature_map={self.feature_map!r}, is_causal={self.is_causal}"
        )

    def _draw(self, index: int) -> RandomFeatures:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        with torch.device("cpu"):
            return draw_features(
                self.num_features, self.head_dim, kind=self.features, generator=generator, dtype=torch.float32
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
        q, k, v = (rearrange(x, "b t (h d) -> b h t d", h=self.num_heads) for x in parts)
        if self.log_temperature is None:
            return q, k, v
        # |x|^2 = temperature sqrt(d) before the kernel's scaling by d ** -0.25, so temperature after it.
        radius = (self.log_temperature / 2).exp().view(-1, 1, 1) * self.head_dim**0.25
        return with_norm(q, radius), with_norm(k, radius), v

    def _weights(self, query: Tensor, key: Tensor, features: RandomFeatures, options: dict[str, Any]) -> Tensor:
        (b, h, s, _), t = key.shape, query.shape[-2]
        if t * s > MAX_WEIGHTS:
            raise ValueError(
                f"need_weights=True would form {t} x {s} weights a head; the limit is {MAX_WEIGHTS}: "
                "pass need_weights=False, or look at a shorter input"
            )
        identity = torch.eye(s, dtype=key.dtype, device=key.device).expand(b, h, s, s)
        return favor_attention(query, key, identity, features, **options)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move and cast as any module, but keep the projection out of half precision: it stands in exponents."""
        buffers = {"projection": self.projection, "log_weight": self.log_weight}
        super()._apply(fn, recurse)
        for name, before in buffers.items():
            after = getattr(self, name)
            if after is not None and before is not None and after.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, before.to(after.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Keep the drawn projection when the state dict is that of a softmax attention and has none."""
        if any(prefix + name in state_dict for name in ("in_proj_weight", "q_proj_weight")):
            for name, buffer in self.named_buffers(recurse=False):
                state_dict.setdefault(prefix + name, buffer)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._paired = is_paired(self.projection)
