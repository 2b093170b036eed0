"""One more token, or a stretch of them, against a FavorState of all that came before.

Dimension key: b batch, h key heads, g query heads per key head, t new tokens, d head dim, e value head dim, m features.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..dispatch.implementation import resolve_impl
from ..favor.feature_maps import FEATURE_MAPS, FeatureMap
from ..favor.functions import FavorState, Streamed, attend, stream_attention
from ..favor.reference.blocks import largest_entry
from ..layers.masks import is_readable
from ..random_features import RandomFeatures

_ANSWERS: Any = WeakTensorKeyDictionary()
"""What `hides_the_same` said of a mask: of which earlier one, how much of it, and whether."""


def stream(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: FavorState | None,
    features: RandomFeatures,
    *,
    key_padding_mask: Tensor | None,
    feature_map: FeatureMap,
    scale: float,
) -> Streamed:
    """Do what `stream_attention` does; a single token where nothing needs an operator goes by `one_token`.

    Args:
        query: (b, h g, t, d).
        key, value: (b, h, t, d) and (b, h, t, e), of the same tokens.
        state: of everything before, or None.
        features: of one projection (m, d) for all heads.
        key_padding_mask: (b, t) bool, True = ignore.
        feature_map, scale: as in `favor_attention`.

    Raises:
        ValueError: as in `stream_attention`.
    """
    options = {"feature_map": feature_map, "scale": scale}
    is_one = query.shape[-2] == key.shape[-2] == 1 and is_plain(query, key, value)
    if state is not None and is_one and (key_padding_mask is None or not bool(key_padding_mask.any())):
        return one_token(query, key, value, state, features, **options)
    return stream_attention(query, key, value, state, features, key_padding_mask=key_padding_mask, **options)


def is_plain(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether nothing but numbers is asked for: no graph, gradient, autocast or kernel, on a CPU, in one dtype."""
    return (
        is_readable(query)
        and query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and not torch.is_autocast_enabled("cpu")
        and not wants_gradients(query, key, value)
        and resolve_impl("auto", query, key, value) == "reference"
    )


def wants_gradients(*tensors: Tensor) -> bool:
    """Whether a backward pass may come."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def one_token(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: FavorState,
    features: RandomFeatures,
    *,
    feature_map: FeatureMap,
    scale: float,
) -> Streamed:
    """Take in one key, then let one query attend, in a dozen small products.

        e_r = w_r . k - |k|^2 / 2 + c_r       L'_r = log(exp L_r + exp e_r)       V'_r = V_r + exp(e_r - L'_r) (v - V_r)
        o = sum_r softmax_r(w_r . q + L'_r) V'_r

    The same as `stream_attention` up to rounding. With so little arithmetic the operator's own work is what costs: 348
    against 43 microseconds (one core, h 4, d 64, m 256), of which a token of a small model has one a layer.

    Args:
        query: (b, h g, 1, d).
        key, value: (b, h, 1, d) and (b, h, 1, e).
        state: of everything before, (b, h, m) and (b, h, m, e).
        features: of one projection (m, d).
        feature_map, scale: as in `favor_attention`.

    Returns:
        Streamed(output (b, h g, 1, e) in query's dtype, state); sums in the state's dtype.
    """
    before, values = state
    dtype, (b, h, _, d) = values.dtype, key.shape
    projection = features.projection.to(query.dtype).to(dtype)  # tokens in half precision meet it rounded as they are
    log_feature, _, has_norm = FEATURE_MAPS[feature_map]
    tokens = torch.cat((query.reshape(b, h, -1, d), key), -2).to(dtype)
    largest = largest_entry(dtype, d)
    tokens = tokens.mul_(math.sqrt(scale)).clamp_(-largest, largest)
    products = log_feature(tokens @ projection.mT)  # (b, h, g + 1, m), the key's last
    exponent = products[:, :, -1]
    if has_norm:
        exponent = exponent - tokens[:, :, -1].square().sum(-1, keepdim=True) / 2
    if features.log_weight is not None:
        exponent = exponent + features.log_weight
    total = torch.logaddexp(before, exponent)
    share = torch.exp(exponent - total).nan_to_num(0.0)  # both -inf: a feature of weight zero
    values = torch.lerp(values, value.to(dtype), share.unsqueeze(-1))
    weights = torch.softmax(products[:, :, :-1] + total.unsqueeze(-2), -1)
    output = (weights @ values).view(b, -1, 1, value.shape[-1])
    return Streamed(output.to(query.dtype), FavorState(total, values))


def read(
    query: Tensor, state: FavorState, features: RandomFeatures, *, feature_map: FeatureMap, scale: float
) -> Tensor:
    """Do what `attend` does; a single query where nothing needs an operator goes by the formula.

        o = sum_r softmax_r(w_r . q + L_r) V_r

    Args:
        query: (b, h g, t, d).
        state: (b, h, m) and (b, h, m, e), of keys that have all been taken in.
        features, feature_map, scale: as in `stream`.

    Returns:
        (b, h g, t, e) in query's dtype.

    Raises:
        ValueError: as in `attend`.
    """
    if query.shape[-2] != 1 or not is_plain(query, query, query):
        return attend(query, state, features, feature_map=feature_map, scale=scale)
    total, values = state
    (b, h, _, e), d, dtype = values.shape, query.shape[-1], values.dtype
    projection = features.projection.to(query.dtype).to(dtype)
    tokens = query.reshape(b, h, -1, d).to(dtype) * math.sqrt(scale)
    largest = largest_entry(dtype, d)
    products = FEATURE_MAPS[feature_map].log_feature(tokens.clamp_(-largest, largest) @ projection.mT)
    lowest = torch.finfo(dtype).min / 2  # of a sample all of whose keys are hidden, and whose values are zero
    weights = torch.softmax(products + total.clamp(min=lowest).unsqueeze(-2), -1)
    return (weights @ values).view(b, -1, 1, e).to(query.dtype)


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
