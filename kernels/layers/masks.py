"""Masks as softmax attention takes them, reduced to what linear attention can apply: causality, padding, a key bias.

Dimension key: b batch, h heads, t queries, s keys.

A mask is recognised by its values. Where they cannot be looked at, because a graph is being made, it is taken for what
it should be, and the graph checks that when it runs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch.tracing import is_readable
from ..favor.definition import visibility

HIDES = -1e4
"""Entries of a float mask up to this one hide: -inf, the lowest number of any dtype, -1e9; exp() of them is 0."""


class Visible(NamedTuple):
    """What queries see: all keys, or those up to their own.

    Attributes:
        padding: (b or 1, s) bool, True = ignore; or float, a key bias; or None.
        is_causal: whether later keys are hidden.
    """

    padding: Tensor | None
    is_causal: bool


def key_mask(mask: Tensor | None, batch: int, keys: int) -> Tensor | None:
    """Return a key_padding_mask as (b, s): bool, True = ignore, or a float key bias, -inf where it hides."""
    if mask is None:
        return None
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    if mask.shape != (batch, keys):
        raise ValueError(f"key_padding_mask must be ({batch}, {keys}), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask
    _check_mask_dtype(mask, "key_padding_mask")
    return mask.masked_fill(mask <= HIDES, -torch.inf)


def joined_masks(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return what two masks of keys do together, (b, s) or (b, h, s): bools hide, biases add up."""
    if first is None or second is None:
        return second if first is None else first
    if first.dtype == second.dtype == torch.bool:
        return first | second
    if first.dtype == torch.bool:
        first, second = second, first
    if second.ndim < first.ndim:
        second = second.unsqueeze(1)
    elif first.ndim < second.ndim:
        first = first.unsqueeze(1)
    return first.masked_fill(second, -torch.inf) if second.dtype == torch.bool else first + second


def weighing(mask: Tensor | None) -> dict[str, Tensor | None]:
    """Return a mask of keys as the keyword of `favor_attention` that takes it."""
    is_bias = mask is not None and mask.is_floating_point()
    return {"key_bias" if is_bias else "key_padding_mask": mask}


def recognise_attention_mask(
    mask: Tensor, shape: tuple[int, int, int], heads: int, tokens_per_step: int, *, is_causal: bool = False
) -> Visible:
    """Return what a mask leaves visible.

    Args:
        mask: (t, s), or (b h, t, s), bool with True = hidden, or float: what hides, or a number for each key.
        shape: the latter.
        heads: h.
        tokens_per_step: of causality.
        is_causal: whether the caller says that it is causal.

    Raises:
        ValueError: a mask that is neither causal nor full, padding aside, or differs between heads; or one that is
            said to be causal and is not.
    """
    rows_of_all, queries, keys = shape

    def unknown() -> ValueError:
        steps = "" if tokens_per_step == 1 else f" with {tokens_per_step} tokens a step"
        return ValueError(
            f"attn_mask must be a causal mask{steps} ({queries}, {keys}), True or -inf above the diagonal, or hide "
            "nothing, padding or biases of keys aside that are the same for all queries and heads: linear attention "
            f"cannot apply any other mask or bias, got {mask.dtype} {tuple(mask.shape)}; use key_padding_mask to "
            "ignore keys"
        )

    # one comparison at a time: in a graph of any length, t and b h are symbols, which others would tie to each other
    if mask.ndim not in (2, 3) or mask.shape[-2] != queries or mask.shape[-1] != keys:
        raise unknown()
    if mask.ndim == 3 and mask.shape[0] != rows_of_all:
        raise unknown()
    future = ~visibility(queries, keys, tokens_per_step, mask.device)
    if not is_readable(mask):
        hidden = hidden_entries(mask, "an attn_mask in a graph must hold 0 and what hides, -inf", name="attn_mask")
        torch._assert_async(
            (hidden == future).all(),
            "in a graph an attn_mask is taken to be causal, and this one is not: leave it out if it hides nothing, and "
            "pass padding as key_padding_mask",
        )
        return Visible(None, True)
    is_kept = mask.is_cuda and not mask.is_inference()
    looked_at = (mask._version, tokens_per_step, heads, is_causal) if is_kept else None
    known = None if looked_at is None else getattr(mask, "_favor_visible", None)
    if known is not None and known[0] == looked_at:  # a GPU is waited for once a mask, not once a call
        return known[1]
    _check_mask_dtype(mask, "attn_mask")
    rows = mask.reshape(-1, queries, keys)
    if rows.shape[0] > 1:
        rows = rows.view(-1, heads, queries, keys)
        if not bool((rows == rows[:, :1]).all()):
            raise unknown()
        rows = rows[:, 0]
    visible = split_mask(rows, future, is_causal=is_causal)
    if visible is None:
        raise unknown()
    if looked_at is not None:
        mask._favor_visible = (looked_at, visible)  # pyright: ignore[reportAttributeAccessIssue]
    return visible


def split_mask(mask: Tensor, future: Tensor, *, is_causal: bool = False) -> Visible | None:
    """Read a mask (b, t or 1, s) whose causal form is `future` (t, s), True = hidden; None if it is another one.

    Padding is what no query sees; a float mask may hold a number for each key, the same for all queries that see it.
    With `is_causal` it must have the causal form.
    """
    hidden = mask if mask.dtype == torch.bool else mask <= HIDES
    padding = hidden.all(-2) if hidden.shape[-2] else torch.zeros_like(hidden[:, :0].any(-2))
    given = padding if bool(padding.any()) else None
    if mask.is_floating_point() and bool(mask.masked_fill(hidden, 0.0).any()):
        given = mask.masked_fill(hidden, -torch.inf).amax(-2)
        if not torch.equal(given.unsqueeze(-2).masked_fill(hidden, 0.0), mask.masked_fill(hidden, 0.0)):
            return None
    if not is_causal and torch.equal(hidden, padding[:, None].expand_as(hidden)):
        return Visible(given, False)
    return Visible(given, True) if torch.equal(hidden, padding[:, None] | future) else None


def _check_mask_dtype(mask: Tensor, name: str) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"{name} must be bool or floating point, got {mask.dtype}")


def hidden_entries(mask: Tensor, expected: str, *, name: str) -> Tensor:
    """Return where a mask hides whose values cannot be looked at.

    Args:
        mask: bool with True = hidden, or float with 0 and what hides.
        expected: the message where it holds anything else.
        name: of the mask.

    Raises:
        ValueError: another dtype; a RuntimeError when a graph comes upon another number.
    """
    _check_mask_dtype(mask, name)
    if mask.dtype == torch.bool:
        return mask
    hidden = mask <= HIDES
    torch._assert_async((hidden | (mask == 0)).all(), expected)
    return hidden
