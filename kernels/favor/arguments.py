"""Checks of what the public FAVOR functions are given: every message names what was expected, what came and the fix."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch.checks import DTYPES, check_count
from ..random_features import RandomFeatures
from .feature_maps import FEATURE_MAPS
from .types import FavorState, FeatureSpace


def feature_space(
    features: RandomFeatures | Tensor, feature_map: str, scale: float | None, like: Tensor, keys: Tensor
) -> FeatureSpace:
    """Bundle and check the features; `like` has the head dim, `keys` the key heads in dimension 1."""
    if not isinstance(features, Tensor) and not (isinstance(features, tuple) and 1 <= len(features) <= 3):
        raise ValueError(
            f"features must be RandomFeatures or a projection tensor, got {type(features).__name__}; "
            "draw_features(num_features, head_dim) makes them"
        )
    projection, log_weight, paired = (
        RandomFeatures(features) if isinstance(features, Tensor) else RandomFeatures(*features)
    )
    for name, x in (("the projection", projection), ("the first tensor", like), ("keys", keys)):
        _check_is_tensor(name, x)
    if log_weight is not None:
        _check_is_tensor("log_weight", log_weight)
    paired = paired and not projection.requires_grad  # learnt rows need not stay paired
    check_feature_map(feature_map)
    for name, x in (("the first tensor", like), ("keys", keys)):
        if x.ndim < 3:
            raise ValueError(f"{name} must be (batch, heads, length, dim), got shape {tuple(x.shape)}")
    heads, head_dim = keys.shape[1], like.shape[-1]
    if projection.ndim not in (2, 3) or projection.shape[-1] != head_dim or projection.shape[-2] < 1:
        raise ValueError(
            f"features must have a projection (num_features, {head_dim}) or ({heads}, num_features, {head_dim}) for "
            f"head dim {head_dim}, got {tuple(projection.shape)}; draw_features(num_features, {head_dim}) makes one"
        )
    if projection.ndim == 3 and projection.shape[0] != heads:
        raise ValueError(
            f"per-head features must have one set per key head: expected {heads}, got {projection.shape[0]}"
        )
    projection = _widened("the projection", projection)
    if log_weight is not None and log_weight.shape != projection.shape[:-1]:
        raise ValueError(
            f"log_weight must be the projection's {tuple(projection.shape[:-1])}, got {tuple(log_weight.shape)}"
        )
    if log_weight is not None:
        log_weight = _widened("log_weight", log_weight)
        _same_device(("log_weight", log_weight), ("the projection", projection))
    _same_device(("the projection", projection), ("the tensors", like))
    _same_device(("keys or state", keys), ("the tensors", like))
    if scale is not None and not _is_positive(scale):
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    if paired and projection.shape[-2] % 2:
        raise ValueError(f"paired features must have an even number of rows, got {projection.shape[-2]}")
    softmax_scale = head_dim**-0.5 if scale is None else float(scale)
    return FeatureSpace(projection, log_weight, softmax_scale, feature_map, paired)


def check_feature_map(feature_map: str) -> None:
    """Check the name of a feature map."""
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"unknown feature_map: expected one of {', '.join(FEATURE_MAPS)}, got {feature_map!r}")


def check_states(first: FavorState, second: FavorState) -> None:
    """Check that two states can be joined."""
    for name, one, other in zip(("log_normalizer", "value"), first, second, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
            raise ValueError(
                f"states to merge must have the same {name}: got {tuple(one.shape)} {one.dtype} on {one.device} "
                f"and {tuple(other.shape)} {other.dtype} on {other.device}"
            )


def check_keys(key: Tensor, value: Tensor, mask: Tensor | None, space: FeatureSpace) -> None:
    """Check keys, values and their padding mask against each other and the features."""
    _check_tensor("key", key)
    _check_tensor("value", value)
    b, h, s, d = key.shape
    if h < 1:
        raise ValueError("key must have at least one head, got none")
    head_dim = space.projection.shape[-1]
    if d != head_dim:
        raise ValueError(f"key must have query's head dim: expected [{b}, {h}, {s}, {head_dim}], got {list(key.shape)}")
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(f"value must match key: expected [{b}, {h}, {s}, *], got {list(value.shape)}")
    if value.dtype != key.dtype:
        raise ValueError(f"value must have key's dtype: expected {key.dtype}, got {value.dtype}")
    _same_device(("value", value), ("key", key))
    if mask is None:
        return
    _check_is_tensor("key_padding_mask", mask)
    if mask.dtype != torch.bool or mask.shape != (b, s):
        raise ValueError(
            f"key_padding_mask must be a bool tensor [{b}, {s}], True = ignore, got {mask.dtype} {list(mask.shape)}"
        )
    _same_device(("key_padding_mask", mask), ("key", key))


def weighed_keys(mask: Tensor | None, bias: Tensor | None, key: Tensor) -> Tensor | None:
    """Check a key bias, and return what operators take for padding and bias: one mask, -inf where the padding is True.

    Args:
        mask: (b, s), checked before.
        bias: (b, s) or (b, h, s).
        key: (b, h, s, d).
    """
    if bias is None:
        return mask
    _check_is_tensor("key_bias", bias)
    b, h, s, _ = key.shape
    if bias.dtype not in DTYPES or bias.shape != ((b, s) if bias.ndim == 2 else (b, h, s)):
        raise ValueError(
            f"key_bias must be a floating-point tensor [{b}, {s}] or [{b}, {h}, {s}], got {bias.dtype} "
            f"{list(bias.shape)}; what is only seen or ignored can be a key_padding_mask"
        )
    _same_device(("key_bias", bias), ("key", key))
    bias = bias.unsqueeze(1).expand(b, h, s) if bias.ndim == 2 else bias
    return bias if mask is None else bias.masked_fill(mask.unsqueeze(1), -torch.inf)


def check_attend(query: Tensor, heads: int, value_dim: int, space: FeatureSpace) -> None:
    """Check queries against the features and the number of key heads."""
    _check_tensor("query", query)
    if query.shape[-1] != space.projection.shape[-1]:
        raise ValueError(
            f"query must have the features' head dim: expected {space.projection.shape[-1]}, got {query.shape[-1]}"
        )
    if heads < 1 or query.shape[1] < 1 or query.shape[1] % heads:
        raise ValueError(
            f"query heads must be a multiple of key heads: got {query.shape[1]} query heads and {heads} key heads"
        )


def as_state(state: object) -> FavorState:
    """Return a state, which may have come as a bare tuple."""
    if isinstance(state, tuple) and len(state) == 2 and all(isinstance(x, Tensor) for x in state):
        return FavorState(*state)
    raise ValueError(
        "the state must be a FavorState, as summarize, merge and stream_attention return it, got "
        f"{type(state).__name__}"
    )


def check_state(state: FavorState, space: FeatureSpace) -> None:
    """Check a state against the features."""
    log_normalizer, state_value = state
    m = space.projection.shape[-2]
    if log_normalizer.ndim != 3 or log_normalizer.shape[-1] != m:
        raise ValueError(
            f"the state's log_normalizer must be (batch, heads, {m}) for {m} features, "
            f"got {tuple(log_normalizer.shape)}; "
            "attend with the features the state was summarized with"
        )
    if state_value.ndim != 4 or state_value.shape[:3] != log_normalizer.shape:
        raise ValueError(
            f"the state's value must be ({', '.join(map(str, log_normalizer.shape))}, value dim), "
            f"got {tuple(state_value.shape)}"
        )
    if log_normalizer.dtype not in (torch.float32, torch.float64) or state_value.dtype != log_normalizer.dtype:
        raise ValueError(
            f"a state must be float32 or float64 throughout, got {log_normalizer.dtype} and {state_value.dtype}"
        )
    _same_device(("the state's value", state_value), ("its log_normalizer", log_normalizer))


def check_batch(query: Tensor, name: str, other: Tensor) -> None:
    """Check that queries and `other` have one batch size."""
    if query.shape[0] != other.shape[0]:
        raise ValueError(f"query and {name} must have the same batch size: got {query.shape[0]} and {other.shape[0]}")


def check_steps(tokens_per_step: int) -> None:
    """Check that steps have a whole number of tokens."""
    check_count("tokens_per_step", tokens_per_step)


def check_chunk(query: Tensor, key: Tensor, tokens_per_step: int) -> None:
    """Check that queries and keys are those of the same whole steps."""
    check_steps(tokens_per_step)
    t, s = query.shape[-2], key.shape[-2]
    if t != s:
        raise ValueError(f"query and key of a chunk must be of the same tokens: got {t} queries and {s} keys")
    if t % int(tokens_per_step):
        raise ValueError(
            f"a chunk must hold whole steps: expected a multiple of tokens_per_step = {tokens_per_step}, "
            f"got {t} tokens; keep the tokens of an unfinished step for the next call"
        )


def check_initial(state: FavorState, key: Tensor, value: Tensor) -> None:
    """Check that a state can go on with these keys and values."""
    log_normalizer, state_value = state
    b, h, _, e = value.shape
    expected = (b, h, log_normalizer.shape[-1], e)
    if state_value.shape != expected:
        raise ValueError(
            f"the state must be one of {h} key heads and value dim {e}: expected a value {expected}, "
            f"got {tuple(state_value.shape)}"
        )
    _same_device(("the state", state_value), ("key", key))


def _is_positive(number: float) -> bool:
    try:
        return 0 < number < float("inf")
    except TypeError:  # no number at all
        return False


def _check_is_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def _check_tensor(name: str, x: Tensor) -> None:
    _check_is_tensor(name, x)
    if x.ndim != 4:
        raise ValueError(f"{name} must be (batch, heads, length, dim), got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} must be bfloat16, float16, float32 or float64, got {x.dtype}")
    if x.shape[-1] < 1:
        raise ValueError(f"{name} must have a dim of at least 1, got shape {tuple(x.shape)}")


def _widened(name: str, x: Tensor) -> Tensor:
    """Return features as they enter exponents, never in half: a cast module or checkpoint may bring them so."""
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} must be floating point, float32 or float64 at best, got {x.dtype}")
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _same_device(first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
    if first[1].device != second[1].device:
        raise ValueError(
            f"{first[0]} must be on the device of {second[0]}: expected {second[1].device}, got {first[1].device}"
        )
