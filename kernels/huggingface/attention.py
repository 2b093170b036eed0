"""FAVOR attention as transformers calls attention.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value head dim.

This module is importable without transformers.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from ..dispatch.tracing import is_traced
from ..favor.feature_maps import FeatureMap
from ..favor.functions import favor_attention
from ..layers.inputs import with_norm
from ..layers.masks import Visible, weighing
from ..random_features import (
    FeatureKind,
    RandomFeatures,
    draw_features,
)
from .holders import Holder, holder_of
from .masks import LinearMask, read_mask

LocalLayers = Literal["mixed", "softmax", "refuse"]

RECORD = "favor"
"""Entry of a model's configuration, and of its config.json: the options that it runs FAVOR attention with."""

LAYER = "favor_layer"
"""Attribute of an attention layer without a layer_idx: its number among those of the innermost model around it."""

REFUSED = {
    "position_bias": "a bias on the logits",
    "softcap": "capped logits",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "indices": "choice of keys a query",
    "block_indices": "choice of keys a query",
    "cu_seq_lens_q": "packed sequences",
    "output_attentions": "attention weights as an output",
}
"""Keywords of transformers' attention functions for what linear attention cannot do."""

HARMLESS = {"position_ids", "cache_position", "num_items_in_batch"}
"""Keywords with tensors that say nothing about who sees whom; any other one is refused, for it might."""


@dataclass(frozen=True)
class FavorForTransformers:
    """The function behind an `attn_implementation`; see `register_with_transformers` for the options."""

    num_features: int | None = None
    features: FeatureKind = "hyperbolic"
    feature_map: FeatureMap = "exponential"
    qk_norm: bool = False
    seed: int = 0
    local_layers: LocalLayers = "mixed"

    def record(self, name: str) -> dict[str, Any]:
        """Return what a configuration remembers: the name of the attn_implementation, and the options."""
        return {"name": name, **asdict(self)}

    def _is_recorded(self, record: dict[str, Any]) -> bool:
        """Whether a record is of these very options; asked in every call, so without making another."""
        names = type(self).__dataclass_fields__
        return len(record) == len(names) + 1 and all(getattr(self, name) == record.get(name) for name in names)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Return the attention that a configuration remembers.

        Raises:
            ValueError: entries that are no options, as of a later version.
        """
        options = {name: value for name, value in record.items() if name != "name"}
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"the configuration's entry {RECORD!r} must hold options of register_with_transformers, got "
                f"{', '.join(unknown)} as well: was it saved by a later version of favorcast?"
            )
        return cls(**options)

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | LinearMask | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        favor_cache_state: Holder | None = None,
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
            favor_cache_state: of a `favor_cache`, which puts it here; key and value are then the new ones only. Keys
                that a cache is known to have handed out (`holders`) are attended to through it as well.
            options: other keywords of the model.

        Returns:
            ((b, t, h g, e), None).

        Raises:
            ValueError: something that linear attention cannot do.
        """
        saved = getattr(getattr(module, "config", None), RECORD, None)
        if saved is not None and not self._is_recorded(saved):
            self = FavorForTransformers.from_record(saved)
        _check_options(options)
        is_causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        held = holder_of(key) if favor_cache_state is None else favor_cache_state
        keys = key.shape[-2] if held is None else held.length
        window = options.pop("sliding_window", None)
        if window is None and isinstance(attention_mask, LinearMask):
            window = attention_mask.window
        if window is not None:
            softmax = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **options}
            return self._attend_locally(module, query, key, value, attention_mask, window, softmax)
        visible = read_mask(attention_mask, query.shape[-2], keys, is_causal)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer = layer_number(module)
        features, output = self._features(query, layer), None
        prepared = functools.partial(with_norm, radius=scale**-0.5) if self.qk_norm else _as_it_is
        query, shared = prepared(query), {"feature_map": self.feature_map, "scale": scale}
        if held is not None:
            reader = (self, layer, scale)
            output = held.attend(query, key, value, features, visible, reader=reader, prepared=prepared, **shared)
        if output is None:
            output = attend_last(query, prepared(key), value, features, visible, **shared)
        return F.dropout(output, dropout, module.training).transpose(1, 2).contiguous(), None

    def _attend_locally(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | LinearMask | None,
        window: int,
        softmax: dict[str, Any],
    ) -> tuple[Tensor, Any]:
        """Leave a layer with a sliding window, or in chunks, to scaled_dot_product_attention under its own mask."""
        wanted = {"refuse": "every layer to see", "mixed": "some layers that see", "softmax": ""}[self.local_layers]
        if self.local_layers == "refuse" or (self.local_layers == "mixed" and not _sees_all_keys_somewhere(module)):
            raise ValueError(
                f"linear attention has no sliding window: expected {wanted} all keys, got a window of {window}; "
                "register_with_transformers(local_layers='softmax') leaves layers with a window, whose cost is linear "
                "as it is, to softmax attention"
            )
        pattern = mask.pattern if isinstance(mask, LinearMask) else mask
        if pattern is None or pattern.ndim != 4:
            got = (
                "one without a window" if isinstance(mask, LinearMask) else mask if mask is None else tuple(mask.shape)
            )
            raise ValueError(
                f"a layer with a sliding window of {window} must come with its own mask (b, 1, t, s), got {got}; use "
                "another attn_implementation"
            )
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, pattern, **softmax)

    def _features(self, query: Tensor, layer: int) -> RandomFeatures:
        d, wide = query.shape[-1], query.dtype == torch.float64
        drawn_by = (self.num_features or 4 * d, d, self.features, self.seed + layer, str(query.device), wide)
        name = "_".join(map(str, drawn_by))
        _draw(name, *drawn_by)
        drawn: RandomFeatures = getattr(_DRAWN, name)
        if isinstance(query, FakeTensor) and not is_traced():
            projection, log_weight = (x if x is None else query.fake_mode.from_tensor(x) for x in drawn[:2])
            drawn = drawn._replace(projection=projection, log_weight=log_weight)
        return drawn


def _as_it_is(x: Tensor) -> Tensor:
    return x


def layer_number(module: nn.Module) -> int:
    """Return the layer_idx of an attention layer, or its place in the model where it has none."""
    found = getattr(module, "layer_idx", None)
    return found if isinstance(found, int) else getattr(module, LAYER, 0)


def _sees_all_keys_somewhere(module: nn.Module) -> bool:
    """Whether the model of a layer has layers without a window, as far as its configuration says."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    config: Any = getattr(module, "config", None)
    if config is None:
        return True
    kinds, _ = get_layer_types_and_kwargs(config)
    return "full_attention" in kinds


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is None or value is False or name in HARMLESS:
            continue
        if name in REFUSED or isinstance(value, Tensor):
            meaning = REFUSED.get(name, f"use for {name}")
            raise ValueError(
                f"linear attention has no {meaning}: expected a model without, got {name}; use another "
                "attn_implementation"
            )


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
    options = {**weighing(padding), "is_causal": is_causal, **options}
    return favor_attention(query, key, value, features, **options)[:, :, -t:]


_DRAWN = SimpleNamespace()
"""Features that have been drawn, by name; torch.compile reads attributes as they are at that moment, unlike entries."""


@torch.compiler.assume_constant_result
def _draw(name: str, num_features: int, d: int, kind: FeatureKind, seed: int, device: str, wide: bool) -> None:
    """Draw the features of a layer, once, on the CPU, the same in every process, and aside of whatever traces the call:
    they are constants of a graph, not part of it."""
    if hasattr(_DRAWN, name):
        return
    generator = torch.Generator().manual_seed(seed)
    with _disable_current_modes(), torch._C._DisableFuncTorch(), torch.inference_mode(False), torch.device("cpu"):
        drawn = draw_features(num_features, d, kind=kind, generator=generator, dtype=torch.float64)
        dtype = torch.float64 if wide else torch.float32
        log_weight = None if drawn.log_weight is None else drawn.log_weight.to(device, dtype)
        setattr(_DRAWN, name, drawn._replace(projection=drawn.projection.to(device, dtype), log_weight=log_weight))
