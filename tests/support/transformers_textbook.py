"""FAVOR attention with every weight written out, as an attention function and a mask function of transformers.

Dimension key: b batch, h key heads, t queries, s keys, d head dim, m features.
"""

from __future__ import annotations

from typing import Any

import torch
from later_transformers import name_as_later_versions_do
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from favorcast.kernels import draw_features

name_as_later_versions_do()


def textbook(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    """Attend in float64 under transformers' own (b, 1, t, s) mask, in layers with a window by softmax."""
    mask = attention_mask
    if options.get("sliding_window") is not None or getattr(mask, "is_local", False):
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    number = getattr(module, "layer_idx", None)
    number = number if isinstance(number, int) else module.favor_layer
    generator = torch.Generator().manual_seed(number)
    w = draw_features(4 * query.shape[-1], query.shape[-1], generator=generator, dtype=torch.float64).projection
    groups = query.shape[1] // key.shape[1]
    key, inside = (x.repeat_interleave(groups, 1).double() for x in (key, value))
    q, k = query.double() * scaling**0.5, key * scaling**0.5
    log_query, log_key = q @ w.T, k @ w.T - k.square().sum(-1, keepdim=True) / 2
    logits = (log_query.unsqueeze(-2) + log_key.unsqueeze(-3)).logsumexp(-1)
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and is_causal and query.shape[-2] > 1:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril(logits.shape[-1] - logits.shape[-2])
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask > -1e4  # some models hide by -10000
        logits = logits.masked_fill(~seen, -torch.inf)
    weights = logits.softmax(-1).nan_to_num(0.0)  # a padded query sees nothing
    return (weights @ inside).to(query).transpose(1, 2).contiguous(), None


def full_mask(*args: Any, local_size: int | None = None, **options: Any) -> Tensor:
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask = sdpa_mask(*args, local_size=local_size, **options)
    if local_size is not None:
        mask.is_local = True  # type: ignore[union-attr]
    return mask  # pyright: ignore[reportReturnType]


def register_textbook() -> None:
    """Register both as attn_implementation="textbook"."""
    AttentionInterface.register("textbook", textbook)
    AttentionMaskInterface.register("textbook", full_mask)
