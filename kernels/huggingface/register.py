"""Make FAVOR attention an `attn_implementation` of Hugging Face transformers (optional dependency)."""

from __future__ import annotations

from typing import get_args

from ..favor.feature_maps import FeatureMap
from ..random_features import (
    FeatureKind,
)
from .attention import FavorForTransformers, LocalLayers
from .masks import linear_mask
from .models import is_registered, watch


def register_with_transformers(
    name: str = "favor",
    *,
    num_features: int | None = None,
    features: FeatureKind = "hyperbolic",
    feature_map: FeatureMap = "exponential",
    qk_norm: bool = False,
    seed: int = 0,
    local_layers: LocalLayers = "mixed",
) -> None:
    """Register FAVOR attention (Choromanski et al. 2021) with transformers' AttentionInterface.

        register_with_transformers()
        model = AutoModel.from_pretrained(name, attn_implementation="favor")
        model.set_attn_implementation("sdpa")     # and back

    Encoders, decoders (causal, grouped queries, caches) and vision models; bool and float masks that are causal, full
    or padding. A DynamicCache made for such a model, by `generate()` or by the model, keeps a FavorState beside its
    keys, so that a token costs the same however many came before it; `favor_cache` keeps no keys. A model is refused
    when it is made if any of its layers computes softmax attention itself instead of asking the AttentionInterface:
    attn_implementation would not reach it, and its masks would be lost. What linear attention cannot do raises in the
    forward pass: packed sequences, biases and caps on the logits, sinks, StaticCache, output_attentions. Layers with a
    sliding window: see `local_layers`.

    The options are part of the model: they are saved in its configuration, as `favor`, and hold wherever it is loaded,
    whatever the name is registered with there (a warning says so where they differ); without a registration the model
    does not load. Under torch.compile and torch.export pass attention_mask where there is no cache: transformers
    otherwise looks for packed sequences, which a graph cannot.

    It computes another attention than the model was trained with: see `FavorAttention` for what is given up.

    Args:
        name: of the attn_implementation; several may stand beside one another. Registering a name again replaces it.
        num_features: m, by default 4 d for head dim d.
        features, feature_map: as in `FavorAttention`.
        qk_norm: normalise queries and keys to |x|^2 = 1 after scaling. Nothing is learnt: this is for models that are
            trained with it.
        seed: of the projections; layer i has that of seed + i, the same in every process and never redrawn. i is the
            layer_idx of a layer, or else its place in its encoder, decoder or tower.
        local_layers: what becomes of layers with a sliding window, or in chunks, whatever the length of the input:
            "softmax" leaves them to scaled_dot_product_attention, exact and linear in the length as they are, "refuse"
            raises, and "mixed" is "softmax" for models that have other layers too, and "refuse" for those that have
            not, where FAVOR attention would never run.

    Raises:
        ImportError: transformers is not installed: pip install "favorcast[transformers]".
        ValueError: an unknown local_layers.
    """
    if local_layers not in get_args(LocalLayers):
        raise ValueError(
            f"unknown local_layers: expected one of {', '.join(get_args(LocalLayers))}, got {local_layers!r}"
        )
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            'transformers with its AttentionInterface is needed: pip install "favorcast[transformers]"'
        ) from error
    AttentionInterface.register(
        name, FavorForTransformers(num_features, features, feature_map, qk_norm, seed, local_layers)
    )
    AttentionMaskInterface.register(name, linear_mask)
    from .keyed_states import keep_states  # imports transformers

    watch()
    keep_states(lambda config: is_registered(config._attn_implementation))
