"""A cache for transformers that keeps a state of fixed size where others keep keys and values.

Dimension key: b batch, h key heads, t new tokens, d head dim, m features, e value head dim.

transformers gives a cache the new keys and values of a layer, together with the keywords that the layer is about to
hand to its attention function. A layer of this cache puts itself among those keywords; the attention function
(`FavorForTransformers`) then attends through it. What a FavorState replaces is s keys and values: memory and time for a
token do not depend on how many came before.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from ..favor.functions import FavorState, stream_attention
from ..layers.masks import Visible
from ..random_features import RandomFeatures


class FavorCacheState:
    """The keys and values that one layer has seen, as a FavorState; a cache layer in the sense of transformers."""

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        self.is_initialized = False
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.state: FavorState | None = None
        self.length = 0
        self.is_waiting = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Announce the new keys and values, (b, h, t, d) and (b, h, t, e), and return them.

        Raises:
            ValueError: a model that does not hand its keywords to the cache, or did not attend through it.
        """
        if kwargs is None:
            raise ValueError(
                "this model does not hand its keywords to the cache: expected cache.update(..., kwargs=kwargs), got "
                "none; leave the cache to transformers (DynamicCache), which works with every model"
            )
        self._refuse_if_waiting()
        kwargs["favor_cache_state"] = self
        self.length += key_states.shape[-2]
        self.is_waiting = True
        return key_states, value_states

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, visible: Visible, **options: Any
    ) -> Tensor:
        """Take in the new keys and values and let the queries of the same tokens attend, each to what came before it.

        A prompt, a chunk of one and a token of decoding are all one call.
        """
        t = query.shape[-2]
        if t > 1 and not visible.is_causal:
            raise ValueError(
                "a cache is for causal attention: expected is_causal=True or a causal mask for several tokens, got "
                "full attention; call the model with use_cache=False"
            )
        self.is_waiting = False
        padding = None if visible.padding is None else visible.padding[:, -t:].expand(key.shape[0], t)
        output, self.state = stream_attention(
            query, key, value, self.state, features, key_padding_mask=padding, **options
        )
        return output

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys including the new ones, 0)."""
        self._refuse_if_waiting()
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of tokens seen."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1: there is no longest sequence."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the first tokens make the state."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the samples that a beam search goes on with."""
        self._apply_to_batch(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        self._apply_to_batch(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        self._apply_to_batch(lambda x: x[indices])

    def crop(self, tokens_to_remove: int) -> None:
        """Raise unless there is nothing to remove: a sum over keys does not remember them one by one."""
        if tokens_to_remove:
            raise ValueError(
                f"a FavorState cannot forget tokens: expected 0 tokens to remove, got {tokens_to_remove}; use a "
                "DynamicCache for assisted and speculative decoding"
            )

    def _apply_to_batch(self, select: Any) -> None:
        if self.state is not None:
            self.state = FavorState(*(select(x) for x in self.state))

    def _refuse_if_waiting(self) -> None:
        if self.is_waiting:
            raise ValueError(
                'the last tokens were not attended through the cache: expected attn_implementation="favor" in every '
                "layer, got another one; this cache is for FAVOR attention only"
            )


def favor_cache(model: Any) -> Any:
    """Return an empty cache of FavorStates for a causal language model of transformers, one a layer.

        register_with_transformers()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="favor")
        model.generate(ids, cache=favor_cache(model))

    Beam search, padding on the left, chunked prefill and several turns work; assisted decoding needs a cache that can
    forget and is refused by transformers.

    Args:
        model: a `transformers.PreTrainedModel` that runs an attention of `register_with_transformers`.

    Returns:
        A `transformers.Cache`.

    Raises:
        ValueError: another attention, an encoder-decoder, or layers that do not see all keys.
    """
    from transformers import Cache
    from transformers.cache_utils import get_layer_types_and_kwargs
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from .attention import FavorForTransformers

    config = model.config.get_text_config(decoder=True)
    implementation = config._attn_implementation
    if not isinstance(ALL_ATTENTION_FUNCTIONS.get(implementation), FavorForTransformers):
        raise ValueError(
            f'the model must run FAVOR attention: expected attn_implementation="favor", got {implementation!r}; call '
            'register_with_transformers() and model.set_attn_implementation("favor")'
        )
    if model.config.is_encoder_decoder:
        raise ValueError("expected a decoder, got an encoder-decoder, whose caches transformers makes in pairs")
    kinds, _ = get_layer_types_and_kwargs(config)
    others = sorted(set(kinds) - {"full_attention"})
    if others:
        raise ValueError(
            f"every layer must see all keys: expected full_attention, got {', '.join(others)}; leave the cache to "
            "transformers"
        )
    layer_class: Any = _layer_class()
    return Cache(layers=[layer_class() for _ in kinds])


@cache
def _layer_class() -> type[FavorCacheState]:
    """Return FavorCacheState as a subclass of transformers' own base, which it looks for."""
    from transformers.cache_utils import CacheLayerMixin

    return type("FavorCacheLayer", (FavorCacheState, CacheLayerMixin), {})
