"""Patches: several steps of a sensor in one token.

b batch, t time steps, n columns, p patch_len, s = t / p patches. Patches end where the context ends: it is padded at
its front, the horizon at its end.
"""

import torch
from einops import rearrange
from torch import Tensor


def patch_count(steps: int, patch_len: int) -> int:
    """Return how many patches hold that many steps."""
    return -(-steps // patch_len)


def pad_front(series: Tensor, patch_len: int, value: float | None = None) -> Tensor:
    """Lengthen (b, t, n) to whole patches by `value`, or by its first step, before the first step."""
    missing = -series.shape[1] % patch_len
    return series if missing == 0 else torch.cat((_filling(series[:, :1], missing, value), series), dim=1)


def pad_back(series: Tensor, patch_len: int, value: float | None = None) -> Tensor:
    """Lengthen (b, t, n) to whole patches by `value`, or by its last step, after the last step."""
    missing = -series.shape[1] % patch_len
    return series if missing == 0 else torch.cat((series, _filling(series[:, -1:], missing, value)), dim=1)


def to_patches(series: Tensor, patch_len: int) -> Tensor:
    """Lay out whole patches (b, t, n) as (b, s, n, p)."""
    return rearrange(series, "b (s p) n -> b s n p", p=patch_len)


def from_patches(patches: Tensor) -> Tensor:
    """Undo `to_patches`."""
    return rearrange(patches, "b s n p -> b (s p) n")


def _filling(step: Tensor, count: int, value: float | None) -> Tensor:
    filling = step.expand(-1, count, -1)
    return filling if value is None else torch.full_like(filling, value)
