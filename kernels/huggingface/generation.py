"""A cache for `generate()` that holds states and no keys; transformers is imported when it is made."""

from __future__ import annotations

from functools import cache
from typing import Any

from .attention import FavorForTransformers
from .cache import FavorCacheState


def favor_cache(model: Any) -> Any:
    """Return an empty cache of FavorStates for a model of transformers that generates, one a layer, and no keys.

        register_with_transformers()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="favor")
        model.generate(ids, cache=favor_cache(model))      # past_key_values= before transformers 5.24

    Memory for a token does not grow, which is what this cache is for: time for a token does not grow either with the
    DynamicCache that `generate()` makes by itself. Beam search, padding on the left, chunked prefill and several turns
    work; assisted decoding needs a cache that can forget and is refused by transformers. In an encoder-decoder it is
    the decoder's own tokens that no keys are kept of; those of the encoder's stay, as they do not grow.

    Args:
        model: a `transformers.PreTrainedModel` that runs an attention of `register_with_transformers`.

    Returns:
        A `transformers.Cache`, or an `EncoderDecoderCache` with one.

    Raises:
        ValueError: another attention, or layers that do not see all keys. Later, in a forward pass: a mask that hides
            other tokens than it did when they were seen.
    """
    from transformers import Cache, DynamicCache, EncoderDecoderCache
    from transformers.cache_utils import get_layer_types_and_kwargs
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config.get_text_config(decoder=True)
    implementation = config._attn_implementation
    if not isinstance(ALL_ATTENTION_FUNCTIONS.get(implementation), FavorForTransformers):
        raise ValueError(
            f'the model must run FAVOR attention: expected attn_implementation="favor", got {implementation!r}; call '
            'register_with_transformers() and model.set_attn_implementation("favor")'
        )
    kinds, _ = get_layer_types_and_kwargs(config)
    others = sorted(set(kinds) - {"full_attention"})
    if others:
        raise ValueError(
            f"every layer must see all keys: expected full_attention, got {', '.join(others)}; leave the cache to "
            "transformers"
        )
    layer_class: Any = _layer_class()
    states = Cache(layers=[layer_class() for _ in kinds])
    return EncoderDecoderCache(states, DynamicCache(config=config)) if model.config.is_encoder_decoder else states


@cache
def _layer_class() -> type[FavorCacheState]:
    """Return FavorCacheState as a subclass of transformers' own base, which it looks for."""
    from transformers.cache_utils import CacheLayerMixin

    return type("FavorCacheLayer", (FavorCacheState, CacheLayerMixin), {})
