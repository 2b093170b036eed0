"""Whether keys that a state has taken in are hidden as they were."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_ANSWERS: Any = WeakTensorKeyDictionary()
"""What `hides_the_same` said of a mask: of which earlier one, how much of it, and whether."""


def hides_the_same(padding: Tensor | None, before: Tensor | None, length: int) -> bool:
    """Whether the first keys are hidden as they were when they were taken in.

    A GPU is waited for once a forward pass: the layers of a model share the mask, which keeps the answer.

    Args:
        padding: (b or 1, s) bool, True = ignore, or None.
        before: (b or 1, length) bool or more of it, or None.
        length: of what was taken in.
    """
    if padding is None or before is None:
        other = padding if before is None else before
        return other is None or not bool(other[:, :length].any())
    if padding is before:
        return True
    known = _ANSWERS.get(padding)
    if known is not None and known[0]() is before and known[1] == length:
        return known[2]
    same = bool((padding[:, :length] == before[:, :length]).all())
    _ANSWERS[padding] = (weakref.ref(before), length, same)
    return same
