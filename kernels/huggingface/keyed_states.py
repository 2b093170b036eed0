"""A layer of transformers' DynamicCache that keeps FavorStates beside its keys and values.

Dimension key: b batch, h key heads, g query heads per key head, t new tokens, s keys, d head dim, e value head dim,
m features.

The keys stay, so whatever reads, crops, reorders or copies a DynamicCache finds what it knows. A state of the keys is
what makes a token cost the same after a million as after ten. It is derived from the keys alone: where it cannot be
right any more (keys replaced or changed in place, other tokens hidden than before) it is made again from them, and
where it cannot be used (gradients, graphs, a model that changes keys on their way to its attention) attention goes by
the keys.

transformers is imported with this file, which is imported when attention is registered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..dispatch.tracing import is_readable, wants_gradients
from ..favor.functions import FavorState, attend, merge, stream_attention, summarize
from ..layers.masks import Visible
from ..random_features import RandomFeatures
from .holders import Prepared, hold
from .padding import hides_the_same

ROOM = 8
"""One in so many keys, and 32, are allocated ahead: at 4096 tokens of 4 heads of 64, copying all of them for a new
one, as torch.cat does, takes 3.5 ms of a core; all else of a layer of that width takes 0.5 ms."""

ROLLBACK = 32
"""Tokens between the states that are kept for going back, once tokens have been taken back."""


class Taken(NamedTuple):
    """What one attention has taken in of the keys.

    Attributes:
        length: of the keys, from the start.
        state: of those.
        padding: (b or 1, length or more) bool, True = ignored, or None.
    """

    length: int
    state: FavorState
    padding: Tensor | None


class Room:
    """Keys or values with space behind them. One layer has it to itself, and leaves it when it holds other keys."""

    def __init__(self, kept: Tensor, more: int) -> None:
        shape = (*kept.shape[:-2], kept.shape[-2] + more, kept.shape[-1])
        self.buffer = kept.new_empty(shape)
        self.written = kept.shape[-2]
        self.buffer[..., : self.written, :] = kept

    def append(self, new: Tensor) -> Tensor:
        """Return all that was written, and the new ones (…, t, d)."""
        begin, self.written = self.written, self.written + new.shape[-2]
        self.buffer[..., begin : self.written, :] = new
        return self.buffer[..., : self.written, :]

    def takes(self, new: Tensor) -> bool:
        """Whether new rows may be written behind."""
        return (
            self.written + new.shape[-2] <= self.buffer.shape[-2]
            and (self.buffer.dtype, self.buffer.device) == (new.dtype, new.device)
            and (torch.is_inference_mode_enabled() or not self.buffer.is_inference())
        )


class FavorDynamicLayer(DynamicLayer):
    """A DynamicLayer with states beside its keys, one for each attention that reads them.

    A state has the size of 2 d keys and values at 4 d features. Changes of keys in place are noticed by their version,
    which tensors made under torch.inference_mode do not have: set keys there instead.

    Attributes:
        keys, values: (b, h, s, d) and (b, h, s, e), as in a DynamicLayer; setting them forgets the states.
    """

    def __init__(self, **options: Any) -> None:
        self._forgotten()
        super().__init__(**options)

    @property
    def keys(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The keys; what comes from here is known to `holder_of`."""
        if self._keys is not None and self._held is not self._keys:
            hold(self._keys, self)
            self._held = self._keys
        return self._keys

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self._forgotten()
        self._keys = keys

    @property
    def values(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The values."""
        return self._values

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self._forgotten()
        self._values = values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys (b, h, t, d) and values (b, h, t, e), and return all."""
        if not is_readable(key_states):
            return super().update(key_states, value_states, *args, **kwargs)
        taken = {} if self._is_edited() else self._taken
        if self._keys is None or self._values is None or torch.is_grad_enabled():
            super().update(key_states, value_states, *args, **kwargs)
        else:
            self._keys = self._appended("keys", self._keys, key_states)
            self._values = self._appended("values", self._values, value_states)
        self._taken, self._versions = taken, self._versions_now()
        return self.keys, self.values  # pyright: ignore[reportReturnType]

    @property
    def length(self) -> int:
        """Tokens seen, the new ones included."""
        return 0 if self._keys is None else self._keys.shape[-2]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        features: RandomFeatures,
        visible: Visible,
        *,
        reader: Hashable,
        prepared: Prepared,
        **options: Any,
    ) -> Tensor | None:
        """Let queries attend to the keys, of which they are the last ones if they are causal.

        Args:
            query: (b, h g, t, d).
            key, value: (b, h, s, d) and (b, h, s, e): those of this layer, or others, which it has no states of.
            features: of the reader.
            visible: with padding (b or 1, s) of all keys.
            reader: the attention that asks: whoever has the same features, options and scale.
            prepared: what the reader does to keys before it attends.
            options: feature_map and scale.

        Returns:
            (b, h g, t, e), or None where states are of no use: gradients are wanted, keys have a bias or are others,
            or more of them has been taken in than these queries may see.
        """
        if key is not self._keys or value is not self._values or wants_gradients(query, key, value):
            return None
        if visible.padding is not None and visible.padding.is_floating_point():  # a bias may be another in each call
            return None
        keys, values, length = key, value, key.shape[-2]
        if self._is_edited():
            self._forgotten()
            self._versions = self._versions_now()
        history = self._taken.get(reader, [])
        history = [x for x in history if hides_the_same(visible.padding, x.padding, x.length)]
        last = history[-1] if history else None
        is_last = query.shape[-2] == 1 or visible.is_causal
        end = length - query.shape[-2] if is_last else length
        if last is not None and last.length > end:
            if query.shape[-2] > 1 or last.length != length:
                return None
            end = length  # a single query that comes back to keys it has seen all of: cross-attention

        def part(begin: int, end: int) -> tuple[Tensor, Tensor, Tensor | None]:
            hidden = None if visible.padding is None else visible.padding[:, begin:end]
            hidden = None if hidden is None else hidden.expand(keys.shape[0], end - begin)
            return prepared(keys[..., begin:end, :]), values[..., begin:end, :], hidden

        state, begin = (None, 0) if last is None else (last.state, last.length)
        if begin < end:
            key, value, hidden = part(begin, end)
            new = summarize(key, value, features, key_padding_mask=hidden, **options)
            state = new if state is None else merge(state, new)
            history.append(Taken(end, state, visible.padding))
        if end < length:
            key, value, hidden = part(end, length)
            output, state = stream_attention(query, key, value, state, features, key_padding_mask=hidden, **options)
            history.append(Taken(length, state, visible.padding))
        else:
            assert state is not None
            output = attend(query, state, features, **options)
        self._taken[reader] = self._worth_keeping(history)
        return output

    def get_seq_length(self) -> int:
        """Return the number of tokens seen."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the samples (b,) that a beam search goes on with."""
        self._through(super().reorder_cache, beam_idx, select=lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        self._through(super().batch_repeat_interleave, repeats, select=lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        self._through(super().batch_select_indices, indices, select=lambda x: x[indices.to(x.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back: the number of them, negative, as transformers has it."""
        self._through(super().crop, tokens_to_remove, select=None)
        length = self.get_seq_length()
        self._taken = {reader: [x for x in all_ if x.length <= length] for reader, all_ in self._taken.items()}
        self._goes_back |= tokens_to_remove != 0

    def _through(self, change: Callable[[Any], None], argument: Any, *, select: Any) -> None:
        """Change the keys and values, and the states alike."""
        taken = {} if self._is_edited() else self._taken
        change(argument)
        if select is not None:
            taken = {reader: [_selected(x, select) for x in all_] for reader, all_ in taken.items()}
        self._taken, self._versions = taken, self._versions_now()

    def _worth_keeping(self, history: list[Taken]) -> list[Taken]:
        """Return the last state, and once somebody has gone back two earlier ones, ROLLBACK or a stretch apart."""
        if not self._goes_back:
            return history[-1:]
        if len(history) > 2:
            *_, third, second, last = history
            if last.length - second.length == 1 and second.length - third.length < ROLLBACK:
                history = [*history[:-2], last]
        return history[-3:]

    def _appended(self, name: str, kept: Tensor, new: Tensor) -> Tensor:
        room = self._rooms.get(name)
        if room is None or not room.takes(new):
            room = self._rooms[name] = Room(kept, new.shape[-2] + max(32, kept.shape[-2] // ROOM))
        return room.append(new)

    def _forgotten(self) -> None:
        self._taken: dict[Hashable, list[Taken]] = {}
        self._rooms: dict[str, Room] = {}
        self._versions: tuple[int, int] | None = None
        self._held: Tensor | None = None
        self._goes_back = getattr(self, "_goes_back", False)

    def _versions_now(self) -> tuple[int, int] | None:
        """Count the changes in place of keys and values; None where nobody counts, as under inference_mode."""
        keys, values = self._keys, self._values
        if keys is None or values is None or keys.is_inference() or values.is_inference():
            return None
        return keys._version, values._version

    def _is_edited(self) -> bool:
        return self._versions != self._versions_now()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_taken": dict(self._taken), "_rooms": {}, "_held": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._versions = self._versions_now()


def _selected(taken: Taken, select: Callable[[Tensor], Tensor]) -> Taken:
    padding = taken.padding
    if padding is not None and padding.shape[0] == taken.state.value.shape[0]:
        padding = select(padding)
    return Taken(taken.length, FavorState(*map(select, taken.state)), padding)


def keep_states(runs_favor: Callable[[Any], bool]) -> None:
    """Have every DynamicCache that is made for a configuration keep states beside the keys that FAVOR attention reads.

    Such are made by `generate()`, by models called with use_cache, two for an encoder-decoder, and by
    DynamicCache(config=…). Caches for another attention, of other classes, offloaded ones and layers with a window are
    what they were. A second call does nothing.

    Args:
        runs_favor: whether the decoder's configuration says so.
    """
    original = DynamicCache.__init__
    if getattr(original, "watched_for_favor", False):
        return

    @functools.wraps(original)
    def wrapped(self: Any, ddp_cache_data: Any = None, config: Any = None, *args: Any, **kwargs: Any) -> None:
        original(self, ddp_cache_data, config, *args, **kwargs)
        if type(self) is not DynamicCache or config is None or self.offloading:
            return
        if runs_favor(config.get_text_config(decoder=True)):
            replaces = (type(x) is DynamicLayer and not x.is_initialized for x in self.layers)
            self.layers = [FavorDynamicLayer() if new else old for new, old in zip(replaces, self.layers, strict=True)]

    wrapped.watched_for_favor = True  # type: ignore[attr-defined]
    DynamicCache.__init__ = wrapped  # type: ignore[method-assign]
