"""Masks of transformers, where True means attend, brought to what linear attention can apply.

Dimension key: b batch, h heads, t queries, s keys.

transformers makes one mask a model and hands it to every layer. `linear_mask` keeps it linear in the length where it
can: None, or (b, s) padding for causal layers, or (b, 1, 1, s) padding for layers that see everything. Whatever else
arrives, a mask of the user's or of a sliding window, is (b, 1, t, s), and `read_mask` recognises it by its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Visible(NamedTuple):
    """What queries see: all keys, or those up to their own, the last query seeing the last key.

    Attributes:
        padding: (b or 1, s) bool, True = ignore, or None.
        is_causal: whether later keys are hidden.
    """

    padding: Tensor | None
    is_causal: bool


def linear_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **options: Any,
) -> Tensor | None:
    """Return the mask of a model's layers, as transformers' AttentionMaskInterface asks; the names are its own.

    Returns:
        As at the top of this file; (b, 1, t, s), quadratic, for patterns that are neither causal nor full, which a
        layer then refuses or hands to softmax attention.

    Raises:
        ValueError: a cache that holds more keys than have been seen (StaticCache).
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        rest = {**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        sizes: tuple[Any, ...] = (batch_size, q_length, kv_length, q_offset, kv_offset)  # which it takes as tensors too
        return sdpa_mask(*sizes, mask_function, attention_mask, local_size, **rest)  # pyright: ignore[reportCallIssue]
    is_causal = mask_function is causal_mask_function
    if is_causal and (isinstance(q_offset, Tensor) or kv_length + kv_offset != q_length + q_offset):
        raise ValueError(
            f"the keys must end with the queries: expected {q_length} new keys at the end, got a cache of {kv_length}; "
            "a StaticCache holds empty keys, use a DynamicCache or favorcast.kernels.favor_cache(model)"
        )
    if attention_mask is not None:
        attention_mask = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.bool)
        if attention_mask.shape[-1] != kv_length:
            raise ValueError(
                f"attention_mask must cover every key: expected {kv_length}, got {attention_mask.shape[-1]}"
            )
        if not torch.compiler.is_compiling() and bool(attention_mask.all()):
            attention_mask = None
    return attention_mask if is_causal or attention_mask is None else attention_mask[:, None, None, :]


def read_mask(mask: Tensor | None, queries: int, keys: int, is_causal: bool) -> Visible:
    """Return what a mask leaves visible.

    Args:
        mask: None; (b, s), padding of a layer that is causal or not; or (b or 1, h or 1, t or 1, s), where a bool True
            or a float 0 is visible and False, -inf or the dtype's lowest number is hidden.
        queries, keys: t and s; with t < s the queries are the last ones.
        is_causal: of the layer, where the mask leaves it open.

    Raises:
        ValueError: a mask that is neither causal nor full, padding aside.
    """
    if mask is None:
        return Visible(None, is_causal)
    if mask.ndim == 2 and mask.shape[-1] == keys:
        return Visible(~mask.to(torch.bool), is_causal)
    if mask.ndim == 4 and mask.shape[-1] == keys and mask.shape[-2] in (1, queries):
        if mask.dtype == torch.bool and mask.shape[1:3] == (1, 1):
            return Visible(~mask[:, 0, 0], False)
        if torch.compiler.is_compiling():
            raise ValueError(
                "a compiled model cannot look into a mask (b, h, t, s): pass attention_mask as padding (b, s), which "
                "may be all ones"
            )
        hidden = _hidden(mask)
        if hidden is not None and bool((hidden == hidden[:, :1]).all()):
            found = _recognised(hidden[:, 0], keys - queries)
            if found is not None:
                return found
    raise ValueError(
        f"linear attention cannot apply this mask: expected none, padding (b, {keys}), or a mask "
        f"(b, 1, {queries}, {keys}) that is causal or hides nothing but padding, got {mask.dtype} {tuple(mask.shape)}; "
        "sliding windows, packed sequences, prefixes and biases need another attn_implementation"
    )


def _recognised(hidden: Tensor, offset: int) -> Visible | None:
    """Read a mask (b, t, s), True = hidden: padding is what no query sees."""
    t, s = hidden.shape[-2:]
    padding = hidden.all(-2)
    future = torch.ones(t, s, dtype=torch.bool, device=hidden.device).triu(offset + 1)
    if torch.equal(hidden, padding[:, None] | future):
        return Visible(padding, t > 1)
    return Visible(padding, False) if torch.equal(hidden, padding[:, None].expand_as(hidden)) else None


def _hidden(mask: Tensor) -> Tensor | None:
    """Return where a mask hides, or None if it is a bias."""
    if mask.dtype == torch.bool:
        return ~mask
    if not mask.is_floating_point():
        return None
    hidden = mask <= torch.finfo(mask.dtype).min
    return hidden if bool((hidden | (mask == 0)).all()) else None
