"""What `nn.MultiheadAttention` accepts as masks, reduced to what linear attention can apply.

Dimension key: b batch, t queries, s keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .favor_definition import visibility


def is_readable(x: Tensor) -> bool:
    """Whether Python may look at the values of a tensor: not while tracing or under vmap, nor where there are none."""
    if is_traced() or type(x) not in (Tensor, torch.nn.Parameter):  # FakeTensor and other subclasses
        return False
    return not x.is_meta and not is_functorch_wrapped_tensor(x)


def is_traced() -> bool:
    """Whether a graph is being made of what runs: what Python decides now holds for every later call of it."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def key_padding(mask: Tensor | None, batch: int, keys: int) -> Tensor | None:
    """Return a padding mask as (b, s) bool, True = ignore; a float mask may hold 0 and -inf only."""
    if mask is None:
        return None
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    if mask.shape != (batch, keys):
        raise ValueError(f"key_padding_mask must be ({batch}, {keys}), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask
    hidden = _hidden_entries(mask, "key_padding_mask")
    if hidden is None:
        raise ValueError(
            "a float key_padding_mask must hold only 0 (attend) and -inf (ignore): other biases cannot be applied by "
            "linear attention; pass a bool mask, True = ignore"
        )
    return hidden


def recognise_attention_mask(
    mask: Tensor, shape: tuple[int, int, int], tokens_per_step: int, *, is_known: bool = False
) -> bool:
    """Return whether a mask is causal (True) or hides nothing (False).

    Args:
        mask: (t, s), or (b h, t, s).
        shape: the latter.
        tokens_per_step: of causality.
        is_known: the caller says that it is causal; only its shape is looked at.

    Raises:
        ValueError: for any other mask.
    """
    _, queries, keys = shape
    if mask.shape in (shape, shape[1:]):
        if is_known:
            return True
        hidden = mask if mask.dtype == torch.bool else _hidden_entries(mask, "attn_mask")
        if hidden is not None:
            causal = ~visibility(queries, keys, tokens_per_step, mask.device)
            if bool((hidden == causal).all()):
                return True
            if not bool(hidden.any()):
                return False
    steps = "" if tokens_per_step == 1 else f" with {tokens_per_step} tokens a step"
    raise ValueError(
        f"attn_mask must be a causal mask{steps} ({queries}, {keys}), True or -inf above the diagonal, or hide "
        f"nothing: linear attention cannot apply any other mask or bias, got {mask.dtype} {tuple(mask.shape)}; "
        "use key_padding_mask to ignore keys"
    )


def _hidden_entries(mask: Tensor, name: str) -> Tensor | None:
    """Return where a float mask is -inf, or None if it holds anything but 0 and -inf."""
    if not mask.is_floating_point():
        raise ValueError(f"{name} must be bool or floating point, got {mask.dtype}")
    hidden = mask == -torch.inf
    if torch.compiler.is_compiling():
        torch._assert_async((hidden | (mask == 0)).all())
        return hidden
    return hidden if bool((hidden | (mask == 0)).all()) else None
