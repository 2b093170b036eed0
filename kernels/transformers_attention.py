"""FAVOR attention as transformers calls attention.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value head dim.

This module is importable without transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_inputs import with_norm
from .favor_attention import favor_attention
from .random_features import FeatureKind, FeatureMap, RandomFeatures, draw_features
from .transformers_cache import FavorCacheState
from .transformers_masks import Visible, read_mask

LocalLayers = Literal["refuse", "softmax"]

REFUSED = {
    "position_bias": "a bias on the logits",
    "softcap": "capped logits",
    "s_aux": "attention sinks",
    "cu_seq_lens_q": "packed sequences",
    "output_attentions": "attention weights as an output",
}
"""Keywords of transformers' attention functions for what linear attention cannot do."""


@dataclass(frozen=True)
class FavorForTransformers:
    """The function behind an `attn_implementation`; see `register_with_transformers` for the options."""

    num_features: int | None = None
    features: FeatureKind = "hyperbolic"
    feature_map: FeatureMap = "exponential"
    qk_norm: bool = False
    seed: int = 0
    local_layers: LocalLayers = "refuse"

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        favor_cache_state: FavorCacheState | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend, as transformers' AttentionInterface asks; the names are its own.

        Args:
            module: the layer, for its is_causal and layer_idx.
            query: (b, h g, t, d).
            key: (b, h, s, d).
            value: (b, h, s, e).
            attention_mask: see `read_mask`.
            dropout: applied to the heads' output, in training only: there are no attention weights to drop.
            scaling: of q . k; d ** -0.5 by default.
            is_causal: instead of the layer's own.
            favor_cache_state: of a `favor_cache`, which puts it here; key and value are then the new ones only.
            options: other keywords of the model.

        Returns:
            ((b, t, h g, e), None).

        Raises:
            ValueError: something that linear attention cannot do.
        """
        for name, meaning in REFUSED.items():
            if options.get(name) is not None and options[name] is not False:
                raise ValueError(
                    f"linear attention has no {meaning}: expected a model without, got {name}; use another "
                    "attn_implementation"
                )
        is_causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        keys = key.shape[-2] if favor_cache_state is None else favor_cache_state.length
        window = options.get("sliding_window")
        if window is not None and keys > window:
            self._check_local(attention_mask, keys, window)
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            softmax = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
            return sdpa_attention_forward(module, query, key, value, attention_mask, **softmax, **options)
        visible = read_mask(attention_mask, query.shape[-2], keys, is_causal)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.qk_norm:
            query, key = with_norm(query, scale**-0.5), with_norm(key, scale**-0.5)
        features = self._features(query, getattr(module, "layer_idx", None) or 0)
        attend = attend_last if favor_cache_state is None else favor_cache_state.attend
        output = attend(query, key, value, features, visible, feature_map=self.feature_map, scale=scale)
        return F.dropout(output, dropout, module.training).transpose(1, 2).contiguous(), None

    def _check_local(self, mask: Tensor | None, keys: int, window: int) -> None:
        """Raise unless this layer of a sliding window may be left to softmax attention."""
        if self.local_layers == "refuse":
            raise ValueError(
                f"linear attention has no sliding window: expected layers that see all keys, got a window of {window} "
                f"for {keys} keys; register_with_transformers(local_layers='softmax') leaves such layers, whose cost "
                "is linear as it is, to softmax attention"
            )
        if mask is None or mask.ndim != 4:
            raise ValueError(
                f"a layer with a sliding window of {window} must come with its mask (b, 1, t, s), got "
                f"{None if mask is None else tuple(mask.shape)}: the model does not make masks through transformers' "
                "AttentionMaskInterface; use another attn_implementation"
            )

    def _features(self, query: Tensor, layer: int) -> RandomFeatures:
        d = query.shape[-1]
        wide = query.dtype == torch.float64
        drawn_by = (self.num_features or 4 * d, d, self.features, self.seed + layer, str(query.device), wide)
        if drawn_by not in _DRAWN:
            _DRAWN[drawn_by] = _draw_outside_graphs(*drawn_by)
        return _DRAWN[drawn_by]


def attend_last(
    query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, visible: Visible, **options: Any
) -> Tensor:
    """Attend where causal queries are the last ones of the keys: query (b, h g, t, d), key (b, h, s, d), s >= t.

    `favor_attention` counts causal queries and keys from the start, so queries of earlier keys are put in front; a
    single last query sees everything as it is.
    """
    t, s = query.shape[-2], key.shape[-2]
    padding = None if visible.padding is None else visible.padding.expand(key.shape[0], s)
    is_causal = visible.is_causal and t > 1
    if is_causal and t < s:
        query = F.pad(query, (0, 0, s - t, 0))
    options = {"key_padding_mask": padding, "is_causal": is_causal, **options}
    return favor_attention(query, key, value, features, **options)[:, :, -t:]


_DRAWN: dict[tuple[Any, ...], RandomFeatures] = {}
"""Features that have been drawn; a plain dict, which torch.compile reads without leaving its graph."""


def _draw(num_features: int, d: int, kind: FeatureKind, seed: int, device: str, wide: bool) -> RandomFeatures:
    """Draw the features of a layer, on the CPU, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.device("cpu"):
        drawn = draw_features(num_features, d, kind=kind, generator=generator, dtype=torch.float64)
        dtype = torch.float64 if wide else torch.float32
        log_weight = None if drawn.log_weight is None else drawn.log_weight.to(device, dtype)
        return drawn._replace(projection=drawn.projection.to(device, dtype), log_weight=log_weight)


_draw_outside_graphs: Any = torch.compiler.disable(_draw)
