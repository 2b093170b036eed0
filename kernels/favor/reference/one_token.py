"""One token of a sequence against a FavorState of all that came before, as decoding and streams have it.

Dimension key: b batch, h key heads, g query heads per key head, d head dim, e value dim, m features.

With so little arithmetic an operator's own work is what costs, so that a single token goes by the formula wherever
nothing but numbers is asked for, on a CPU: no graph, gradient or mask that hides something.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...dispatch.operator import in_own_context
from ...dispatch.tracing import is_readable, wants_gradients
from ..feature_maps import FEATURE_MAPS
from ..types import LOWEST_BIAS, AttendInputs, CausalInputs, FavorState, FeatureSpace
from .blocks import accumulation_dtype, scale_entries


def is_one_token(inputs: CausalInputs) -> bool:
    """Whether `one_token` may take the place of the operator."""
    query, key, value, mask, state, space, impl, _ = inputs
    if state is None or query.shape[-2] != 1 or query.dtype != key.dtype or not _is_plain(query, state, space, impl):
        return False
    rest = [key, value] if mask is None else [key, value, mask]
    return is_readable(*rest) and not wants_gradients(*rest) and (mask is None or not _hides(mask))


def is_one_query(inputs: AttendInputs) -> bool:
    """Whether `one_query` may take the place of the operator."""
    query, state, space, impl = inputs
    return query.shape[-2] == 1 and _is_plain(query, state, space, impl)


@in_own_context
def one_token(inputs: CausalInputs) -> tuple[Tensor, FavorState]:
    """Take in one key, then let one query attend.

        e_r = w_r . k - |k|^2 / 2 + c_r         L'_r = log(exp L_r + exp e_r)
        V'_r = (exp(L_r) V_r + exp(e_r) v) / (exp(L_r) + exp(e_r))
        o = sum_r softmax_r(w_r . q + L'_r) V'_r

    Args:
        inputs: of which `is_one_token` holds.

    Returns:
        (output (b, h g, 1, e) in query's dtype, state).
    """
    query, key, value, bias, state, space, _, _ = inputs
    assert state is not None
    before, values = state
    dtype = values.dtype
    projection = space.projection_for(query).to(dtype)
    token = scale_entries(key.to(dtype, copy=True), space.scale)
    log_feature, _, has_norm = FEATURE_MAPS[space.feature_map]
    exponent = log_feature(token @ projection.mT).squeeze(-2)
    if has_norm:
        exponent = exponent - token.square().sum(-1) / 2
    if space.log_weight is not None:
        exponent = exponent + space.log_weight
    if bias is not None and bias.is_floating_point():
        exponent = exponent + bias.to(dtype)
    largest = torch.maximum(before, exponent).clamp(min=torch.finfo(dtype).min / 2)  # -inf: a feature of weight zero
    kept, share = torch.exp(before - largest).unsqueeze(-1), torch.exp(exponent - largest).unsqueeze(-1)
    # not V + (v - V) share, which stands still once a step is less than half a digit of V, as after 1e7 / |V| tokens
    values = (values * kept).addcmul_(share, value.to(dtype)).div_((kept + share).clamp(min=1.0))
    state = FavorState(torch.logaddexp(before, exponent), values)
    return _attended(query, state, space, projection), state


@in_own_context
def one_query(inputs: AttendInputs) -> Tensor:
    """Let one query attend: o = sum_r softmax_r(w_r . q + L_r) V_r.

    Args:
        inputs: of which `is_one_query` holds.

    Returns:
        (b, h g, 1, e) in query's dtype.
    """
    query, state, space, _ = inputs
    return _attended(query, state, space, space.projection_for(query).to(state.value.dtype))


def _attended(query: Tensor, state: FavorState, space: FeatureSpace, projection: Tensor) -> Tensor:
    """Return what one query reads, with W in the state's dtype as it meets the tokens."""
    total, values = state
    b, h, d, dtype = *total.shape[:2], query.shape[-1], values.dtype
    tokens = query.reshape(b, h, query.shape[1] // h, d).to(dtype, copy=True)
    tokens = scale_entries(tokens, space.scale)
    products = FEATURE_MAPS[space.feature_map].log_feature(tokens @ projection.mT)
    known = total.clamp(min=torch.finfo(dtype).min / 2).unsqueeze(-2)
    output = torch.softmax(products + known, -1) @ values
    unseen = total.amax(-1) == -torch.inf  # heads without a key, or that have forgotten all, whatever their values are
    output = output.masked_fill(unseen[:, :, None, None], 0.0)
    return output.reshape(b, query.shape[1], 1, values.shape[-1]).to(query.dtype)


def _is_plain(query: Tensor, state: FavorState, space: FeatureSpace, impl: str) -> bool:
    tensors = (query, *state, *space.tensors)
    return (
        impl == "reference"
        and query.device.type == "cpu"
        and query.numel() > 0
        and state.value.dtype == accumulation_dtype(query, *space.tensors)
        and is_readable(*tensors)
        and not wants_gradients(*tensors)
        and not torch.jit.is_tracing()
        and forward_ad._current_level < 0
    )


def _hides(mask: Tensor) -> bool:
    return bool((mask <= LOWEST_BIAS).any() if mask.is_floating_point() else mask.any())
