"""A cache for transformers that keeps a state of fixed size where others keep keys and values.

Dimension key: b batch, h key heads, t new tokens, d head dim, m features, e value head dim.

transformers gives a cache the new keys and values of a layer, most models also the keywords that the layer is about to
hand to its attention function. A layer of this cache puts itself among those keywords, or else is found by the keys
(`holders`); the attention function (`FavorForTransformers`) then attends through it. What a FavorState replaces is s
keys and values: memory and time for a token do not depend on how many came before.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..favor.functions import FavorState, stream_attention
from ..layers.masks import Visible
from ..random_features import RandomFeatures
from .holders import Prepared, hold
from .padding import hides_the_same


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
        self.padding: Tensor | None = None
        self.length = 0
        self.is_waiting = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Announce the new keys and values, (b, h, t, d) and (b, h, t, e), and return them.

        Raises:
            ValueError: the last ones were not attended through this cache.
        """
        self._refuse_if_waiting()
        if kwargs is None:
            hold(key_states, self)
        else:
            kwargs["favor_cache_state"] = self
        self.length += key_states.shape[-2]
        self.is_waiting = True
        return key_states, value_states

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        features: RandomFeatures,
        visible: Visible,
        *,
        reader: Any,
        prepared: Prepared,
        **options: Any,
    ) -> Tensor:
        """Take in the new keys and values and let the queries of the same tokens attend, each to what came before it.

        A prompt, a chunk of one and a token of decoding are all one call.

        Args:
            query: (b, h g, t, d).
            key, value: (b, h, t, d) and (b, h, t, e), the new ones.
            features: of the layer.
            visible: causal unless t is 1, with padding (b or 1, s) of all keys so far.
            reader: not looked at: a layer of the model has a layer of this cache to itself.
            prepared: what the attention does to keys before it attends.
            options: feature_map and scale.

        Returns:
            (b, h g, t, e).

        Raises:
            ValueError: several queries that see later keys, or a mask that hides other tokens than before.
        """
        t = query.shape[-2]
        if t > 1 and not visible.is_causal:
            raise ValueError(
                "a cache is for causal attention: expected is_causal=True or a causal mask for several tokens, got "
                "full attention; call the model with use_cache=False"
            )
        if visible.padding is not None and visible.padding.is_floating_point():
            raise ValueError(
                "a cache of states takes padding: expected an attention_mask that hides or shows, got a bias of keys; "
                "call the model with use_cache=False, or leave the cache to transformers"
            )
        before = self.length - t
        if before and not hides_the_same(visible.padding, self.padding, before):
            raise ValueError(
                f"a FavorState cannot hide tokens that it has taken in, nor show others: expected an attention_mask "
                f"that goes on from that of the first {before} tokens, got another one for them; pass all of it in "
                "every call, or leave the cache to transformers"
            )
        self.is_waiting, self.padding = False, visible.padding
        padding = None if visible.padding is None else visible.padding[:, -t:].expand(key.shape[0], t)
        output, self.state = stream_attention(
            query, prepared(key), value, self.state, features, key_padding_mask=padding, **options
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

    @property
    def keys(self) -> Any:
        """Raise AttributeError: there are none, nor values."""
        raise AttributeError(
            "a FavorState keeps no keys and values: expected code that goes by the cache's methods, got some that "
            "reads the keys of a layer; leave the cache to transformers (DynamicCache), which keeps both"
        )

    values = keys

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
            if self.padding is not None and self.padding.shape[0] == self.state.value.shape[0]:
                self.padding = select(self.padding)
            self.state = FavorState(*(select(x) for x in self.state))

    def _refuse_if_waiting(self) -> None:
        if self.is_waiting:
            raise ValueError(
                'the last tokens were not attended through the cache: expected attn_implementation="favor" in every '
                "layer, got another one; this cache is for FAVOR attention only"
            )
