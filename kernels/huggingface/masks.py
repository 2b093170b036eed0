"""Masks of transformers, where True means attend, brought to what linear attention can apply.

Dimension key: b batch, h heads, t queries, s keys.

transformers makes one mask a model, or one a type of layer, and hands it to the layers. `linear_mask` makes a
`LinearMask`: what the queries see, in memory linear in the length, and never None. It is no tensor, so whatever
attention is not ours fails on it with a sentence instead of going on without a mask. Masks of the user's own are
tensors (b, 1, t, s), which `read_mask` recognises by their values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..dispatch.tracing import is_readable, is_traced
from ..layers.masks import Visible, split_mask

FOREIGN = (
    "this mask is for FAVOR attention only, and another attention of the model reads it: expected every layer to take "
    "its attention from transformers' AttentionInterface (ALL_ATTENTION_FUNCTIONS.get_interface); use another "
    "attn_implementation for this model"
)


class ForeignUseError(ValueError, AttributeError):
    """A mask in the hands of an attention that is not ours; an AttributeError where it is asked for what it has not."""


class LinearMask:
    """What `linear_mask` makes and `read_mask` reads. Anything else done with it raises ForeignUseError.

    Attributes:
        shape: (b, 1, t, s), of the mask that it stands for.
        visible: what the queries see, or None where that is neither causal nor full.
        pattern: (b, 1, t, s) bool, True = attend, in that case.
        window: of a layer with a sliding window, or in chunks, whose mask it is.
    """

    ndim = 4

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        visible: Visible | None,
        pattern: Tensor | None = None,
        window: int | None = None,
    ) -> None:
        self.shape, self.visible, self.pattern, self.window = shape, visible, pattern, window

    def dim(self) -> int:
        """Return 4."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or a part of it."""
        return self.shape if dim is None else self.shape[dim]

    def to(self, device: torch.device | str | int, *args: Any, **options: Any) -> LinearMask:
        """Return the mask on a device, as models that are spread over several ask for."""
        if isinstance(device, torch.dtype):
            refuse_foreign_use()
        moved = [None if x is None else x.to(device) for x in (self.visible and self.visible.padding, self.pattern)]
        visible = None if self.visible is None else self.visible._replace(padding=moved[0])
        return LinearMask(self.shape, visible, moved[1], self.window)

    def __getattr__(self, name: str) -> NoReturn:
        refuse_foreign_use()

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        refuse_foreign_use()


def refuse_foreign_use(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise: the mask is in hands that cannot apply it."""
    raise ForeignUseError(FOREIGN)


_USES = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "and", "rand", "or", "ror", "xor", "rxor"),
    *("invert", "neg", "bool", "eq", "ne", "lt", "le", "gt", "ge", "getitem", "iter", "len", "float"),
)
for _use in _USES:
    setattr(LinearMask, f"__{_use}__", refuse_foreign_use)
LinearMask.__hash__ = object.__hash__  # type: ignore[method-assign]


def linear_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | LinearMask | None = None,
    local_size: int | None = None,
    **options: Any,
) -> LinearMask:
    """Return the mask of a model's layers, as transformers' AttentionMaskInterface asks; the names are its own.

    Returns:
        A LinearMask; quadratic for patterns that are neither causal nor full, which a layer then refuses, or hands to
        softmax attention if it has a sliding window.

    Raises:
        ValueError: a cache that holds more keys than have been seen (StaticCache).
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

    if isinstance(attention_mask, LinearMask):  # made before, by a model around this one
        return attention_mask
    shape = (batch_size, 1, q_length, kv_length)
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        rest = {**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        sizes: tuple[Any, ...] = (batch_size, q_length, kv_length, q_offset, kv_offset)  # which it takes as tensors too
        pattern = sdpa_mask(*sizes, mask_function, attention_mask, local_size, **rest)  # pyright: ignore[reportCallIssue]
        return LinearMask(shape, None, pattern, local_size)
    is_causal = mask_function is causal_mask_function
    if is_causal and (isinstance(q_offset, Tensor) or kv_length + kv_offset != q_length + q_offset):
        raise ValueError(
            f"the keys must end with the queries: expected {q_length} new keys at the end, got a cache of {kv_length}; "
            "a StaticCache holds empty keys, use a DynamicCache or favorcast.kernels.favor_cache(model)"
        )
    padding = None
    if attention_mask is not None:
        attention_mask = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.bool)
        if attention_mask.shape[-1] != kv_length:
            raise ValueError(
                f"attention_mask must cover every key: expected {kv_length}, got {attention_mask.shape[-1]}"
            )
        hides_nothing = is_readable(attention_mask) and not attention_mask.is_cuda and bool(attention_mask.all())
        padding = None if hides_nothing else ~attention_mask
    return LinearMask(shape, Visible(padding, is_causal))


def read_mask(mask: Tensor | LinearMask | None, queries: int, keys: int, is_causal: bool) -> Visible:
    """Return what a mask leaves visible.

    Args:
        mask: None; a LinearMask; or (b or 1, h or 1, t or 1, s), where a bool True or a float 0 is visible and False,
            -inf or the like is hidden (`layers/masks.HIDES`), and another float is a bias of its key.
        queries, keys: t and s; with t < s the queries are the last ones.
        is_causal: of the layer, where there is no mask to say it.

    Raises:
        ValueError: a mask that is neither causal nor full, padding aside.
    """
    if mask is None:
        return Visible(None, is_causal)
    expected = (
        f"linear attention cannot apply this mask: expected none, padding (b, {keys}), or a mask "
        f"(b, 1, {queries}, {keys}) that is causal or hides nothing but padding, biases of keys aside, got "
        f"{type(mask).__name__ if isinstance(mask, LinearMask) else mask.dtype} {tuple(mask.shape)}; "
        "sliding windows, packed sequences, prefixes and biases need another attn_implementation"
    )
    if isinstance(mask, LinearMask):
        if mask.visible is not None and mask.shape[-1] == keys:
            return mask.visible
        mask = mask.pattern
    if mask is None or mask.ndim != 4 or mask.shape[-1] != keys or mask.shape[-2] not in (1, queries):
        raise ValueError(expected)
    if isinstance(mask, FakeTensor) and not is_traced():
        return Visible(None, queries > 1)  # nothing is computed, so nothing can be wrong
    if not is_readable(mask):
        raise ValueError(
            "a compiled or traced model cannot look into a mask (b, h, t, s): pass attention_mask as padding (b, s), "
            "which may be all ones"
        )
    mask = ~mask if mask.dtype == torch.bool else mask
    is_known = mask.is_floating_point() or mask.dtype == torch.bool
    if is_known and bool((mask == mask[:, :1]).all()):
        future = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).triu(keys - queries + 1)
        visible = split_mask(mask[:, 0], future)
        if visible is not None:
            return visible
    raise ValueError(expected)
