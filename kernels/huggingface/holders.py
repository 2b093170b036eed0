"""Which layer of a cache handed out a tensor of keys.

A model gives its new keys to the cache and hands what it gets back to its attention function, which so finds the layer
by the tensor itself. Models that give the cache no keywords (GPT-NeoX), and those that read keys off the cache
(cross-attention), are served as all others.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..dispatch.tracing import is_readable
from ..layers.masks import Visible
from ..random_features import RandomFeatures

Prepared = Callable[[Tensor], Tensor]
"""What an attention does to its keys (b, h, n, d) before it attends."""


class Holder(Protocol):
    """A layer of a cache that FAVOR attention can attend through."""

    @property
    def length(self) -> int:
        """Tokens seen, the new ones included."""
        ...

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
    ) -> Tensor | None:
        """Return the heads' output, or None if the keys and values in hand are to be attended to as they are."""
        ...


_HOLDERS: Any = WeakTensorKeyDictionary()


def hold(key: Tensor, layer: Holder) -> None:
    """Have a layer be found by keys that it hands out; tensors without values, as while tracing, are passed over."""
    if is_readable(key):
        _HOLDERS[key] = weakref.ref(layer)


def holder_of(key: Tensor) -> Holder | None:
    """Return the layer that handed out these very keys, or None."""
    found = _HOLDERS.get(key) if is_readable(key) else None
    return None if found is None else found()
