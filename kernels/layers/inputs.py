"""What `FavorAttention` is built from and called with: checked, and brought to one layout.

Dimension key: b batch, d head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch.checks import check_count


def arrange_batch_first(
    query: Tensor, key: Tensor, value: Tensor, *, widths: tuple[int, int, int], batch_first: bool
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return the inputs as (b, length, width) and whether they were batched; inputs that are one tensor stay one."""
    inputs = (query, key, value)
    if any(x.is_nested for x in inputs):
        raise ValueError(
            "nested tensors are not supported: pass padded tensors with key_padding_mask; in nn.TransformerEncoder "
            "set enable_nested_tensor=False"
        )
    if len({x.ndim for x in inputs}) != 1 or query.ndim not in (2, 3):
        raise ValueError(
            "query, key and value must all be (length, width) or all batched with three dimensions, "
            f"got {[tuple(x.shape) for x in inputs]}"
        )
    batched = query.ndim == 3

    def arranged(x: Tensor) -> Tensor:
        return x.unsqueeze(0) if not batched else x if batch_first else x.transpose(0, 1)

    own_key, own_value = key is not query, value is not key
    query = arranged(query)
    key = arranged(key) if own_key else query
    value = arranged(value) if own_value else key
    found = (query.shape[-1], key.shape[-1], value.shape[-1])
    if found != widths:
        raise ValueError(f"query, key and value must have widths {widths}, got {found}")
    if key.shape[:2] != value.shape[:2] or key.shape[0] != query.shape[0]:
        layout = "(batch, length, width)"
        raise ValueError(
            "key and value must have one length and all three one batch size: got query, key, value of "
            f"{[tuple(x.shape) for x in (query, key, value)]} as {layout}; is batch_first={batch_first} meant?"
        )
    return query, key, value, batched


def with_norm(x: Tensor, radius: Tensor | float) -> Tensor:
    """Scale the rows of x to the given norm, in float32 and in one product; rows near zero keep a smaller one."""
    square = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(-1, keepdim=True)
    return x * (radius * torch.rsqrt(square + 1e-6 * x.shape[-1])).to(x.dtype)


def check_sizes(
    embed_dim: int, num_heads: int, dropout: float, head_dim: int | None, tokens_per_step: int, **optional: int | None
) -> None:
    """Raise ValueError unless the sizes of a layer are whole numbers of at least 1 that fit; `optional` may be None."""
    given = {"embed_dim": embed_dim, "num_heads": num_heads, "head_dim": head_dim, "tokens_per_step": tokens_per_step}
    for name, size in (given | optional).items():
        if size is not None:
            check_count(name, size)
    if head_dim is None and embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}; change one, or pass head_dim"
        )
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be from 0 to 1, got {dropout}")


def check_flags(**flags: bool) -> None:
    """Raise ValueError unless flags are bools: widths that stand in their places would count as true."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(
                f"{name} must be True or False, got {flag!r}: the order of arguments is that of nn.MultiheadAttention "
                "(embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, "
                "dtype); name them"
            )
