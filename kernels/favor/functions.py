"""FAVOR attention: linear attention with positive random features, as functions.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.

Attention with random features is two softmax attentions through m landmarks (the projection rows): the landmarks attend
to the keys, which gives a state of fixed size, and the queries attend to the landmarks. `definition.py` states
the formulas; `summarize` and `attend` are the two hops, `merge` joins states of disjoint key sets, and

    favor_attention(q, k, v, f) == attend(q, summarize(k, v, f), f)
    summarize(cat(k1, k2), cat(v1, v2), f) == merge(summarize(k1, v1, f), summarize(k2, v2, f)).

`stream_attention` is the causal form chunk by chunk, with a state in and out.

What it estimates: softmax attention, well only while |x|^2 <~ 1 for the scaled queries and keys x (d = 64, m = 256);
for N(0, 1) entries at d >= 32 it is further from softmax attention than the plain mean of v. Use it as an attention
to train with, and measure the distance on your own tensors with `softmax_error`.

Dtypes: bfloat16, float16, float32, float64; sums run in float32 (float64 for float64); the output has query's dtype and
the state is float32 (float64). Features are float32 or float64, half-precision ones are widened; half-precision queries
and keys meet a projection rounded to their dtype, gradients passing straight through. Drawn ones lie on the bfloat16
grid, where that changes nothing. Under autocast all inputs are cast first, as `scaled_dot_product_attention` does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch.implementation import Impl, resolve_impl
from ..random_features import (
    RandomFeatures,
)
from .arguments import (
    as_state,
    check_attend,
    check_batch,
    check_chunk,
    check_initial,
    check_keys,
    check_state,
    check_states,
    check_steps,
    feature_space,
    weighed_keys,
)
from .definition import joined_definition
from .feature_maps import FeatureMap
from .operators import attend_op, causal_op, full_op, summarize_op
from .reference.one_token import is_one_query, is_one_token, one_query, one_token
from .types import AttendInputs, CausalInputs, FavorState, FullInputs, SummarizeInputs

torch.serialization.add_safe_globals([FavorState, RandomFeatures])  # saved ones load with weights_only=True


def favor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: RandomFeatures | Tensor,
    *,
    feature_map: FeatureMap = "exponential",
    is_causal: bool = False,
    tokens_per_step: int = 1,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attend with positive random features, in time and memory linear in the lengths.

    o_i = sum_j A_ij v_j / sum_j A_ij,   A_ij = sum_r phi_r(q_i) phi_r(k_j)       (Choromanski et al. 2021, eq. (4))

    over the visible keys j; a query that sees none gets zeros and zero gradients. With a key bias, A_ij exp(key_bias_j)
    takes the place of A_ij. Differentiable, any number of times, in query, key, value, bias, projection, log-weight.

        features = draw_features(256, 64)
        output = favor_attention(query, key, value, features, is_causal=True)

    Args:
        query: (b, h g, t, d). Query heads are a multiple of key heads; head i reads key head i // g.
        key: (b, h, s, d).
        value: (b, h, s, e).
        features: from `draw_features`, or a bare projection (m, d) or (h, m, d).
        feature_map: of `FeatureMap`; "exponential" is FAVOR+, others generalised attention (`random_features.py`).
        is_causal: key j is visible to query i iff j // tokens_per_step <= i // tokens_per_step. With t != s, both
            count from the start, as in `scaled_dot_product_attention`.
        tokens_per_step: tokens that see each other, e.g. the sensors of one time step in time-major order.
        key_padding_mask: (b, s) bool, True = ignore. Ignored keys and values may hold anything, NaN included.
        key_bias: (b, s) or (b, h, s), floating point, differentiable: key j counts exp(key_bias_j) times, under every
            feature map; -inf (and all up to -1e37) ignores it as key_padding_mask does. Only differences matter, which
            float32 holds to 1e-7 of the largest: keep it small. NaN and +inf give NaN.
        scale: of q . k; d ** -0.5 by default.
        impl: "reference" (torch, any device), "triton" (GPU kernels; float32 at about its full accuracy),
            "triton-ieee" (float32 without tensor cores), or "auto": "triton" for CUDA tensors where it exists, or what
            `set_impl` says.

    Returns:
        (b, h g, t, e) in query's dtype.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, naming what was expected and what came.
        NotImplementedError: under forward-mode differentiation.
    """
    query, key, value = _autocast(query, key, value)
    space = feature_space(features, feature_map, scale, query, key)
    check_keys(key, value, key_padding_mask, space)
    mask = weighed_keys(key_padding_mask, key_bias, key)
    check_attend(query, key.shape[1], value.shape[-1], space)
    check_batch(query, "key", key)
    check_steps(tokens_per_step)
    if tokens_per_step > 1 and not is_causal:
        raise ValueError("tokens_per_step applies to causal attention: pass is_causal=True as well, or leave it at 1")
    chosen = resolve_impl(impl, query, key, value, *space.tensors)
    if is_causal:
        query_count = query.shape[-2]
        query, key, value, mask = _align_steps(query, key, value, mask, int(tokens_per_step))
        inputs = CausalInputs(query, key, value, mask, None, space, chosen, int(tokens_per_step))
        return causal_op(inputs).output[:, :, :query_count]
    return full_op(FullInputs(query, key, value, mask, space, chosen)).output


class Streamed(NamedTuple):
    """What a chunk of a causal sequence yields.

    Attributes:
        output: (b, h g, t, e) in query's dtype.
        state: of all keys so far, to go on with.
    """

    output: Tensor
    state: FavorState


def stream_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: FavorState | None,
    features: RandomFeatures | Tensor,
    *,
    feature_map: FeatureMap = "exponential",
    tokens_per_step: int = 1,
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> Streamed:
    """Go on with causal attention: tokens see those before them and, through its state, all that came earlier.

    Chunk by chunk this equals `favor_attention(..., is_causal=True)` of the whole sequence, up to rounding, with
    memory and time a token that do not depend on what came before. A prompt is one chunk, decoding goes on token by
    token (or step by step), training by truncated chunks may carry or detach the state:

        output, state = stream_attention(q_prompt, k_prompt, v_prompt, None, features)
        output, state = stream_attention(q_next, k_next, v_next, state, features)

    Differentiable, any number of times, in query, key, value, bias, projection, log-weight and state.

    Args:
        query: (b, h g, t, d).
        key, value: (b, h, t, d) and (b, h, t, e), of the same tokens.
        state: of everything before, from an earlier call, `summarize` or `merge`; None at the start.
        features, feature_map, scale, impl: as in `favor_attention`, the same for all chunks.
        tokens_per_step: as in `favor_attention`; a chunk holds whole steps.
        key_padding_mask: (b, t) bool, True = ignore.
        key_bias: (b, t) or (b, h, t), as in `favor_attention`; the state has that of earlier tokens. To forget these
            instead (exp(g) times what they were), pass on `state.weighed(g)`.

    Returns:
        Streamed(output (b, h g, t, e), state ((b, h, m), (b, h, m, e))).

    Raises:
        ValueError: as in `favor_attention`; a length that is not whole steps; a state that does not fit.
        NotImplementedError: under forward-mode differentiation.
    """
    query, key, value = _autocast(query, key, value)
    space = feature_space(features, feature_map, scale, query, key)
    check_keys(key, value, key_padding_mask, space)
    mask = weighed_keys(key_padding_mask, key_bias, key)
    check_attend(query, key.shape[1], value.shape[-1], space)
    check_batch(query, "key", key)
    check_chunk(query, key, tokens_per_step)
    if state is not None:
        state = as_state(state)
        check_state(state, space)
        check_batch(query, "state", state.log_normalizer)
        check_initial(state, key, value)
    chosen = resolve_impl(impl, query, key, value, *space.tensors, *(state or ()))
    inputs = CausalInputs(query, key, value, mask, state, space, chosen, int(tokens_per_step))
    if is_one_token(inputs):
        return Streamed(*one_token(inputs))
    output, final, _ = causal_op(inputs)
    return Streamed(output, final)


def summarize(
    key: Tensor,
    value: Tensor,
    features: RandomFeatures | Tensor,
    *,
    feature_map: FeatureMap = "exponential",
    key_padding_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    impl: Impl = "auto",
) -> FavorState:
    """Let the landmarks attend to the keys: L_r = logsumexp_s e_sr, V_r = sum_s softmax_s(e_sr) v_s.

    Args:
        key: (b, h, s, d).
        value: (b, h, s, e).
        features, feature_map, key_padding_mask, key_bias, scale, impl: as in `favor_attention`; later calls of `attend`
            and `merge` must use the same features, map and scale.

    Returns:
        FavorState((b, h, m), (b, h, m, e)); (-inf, 0) where there is no visible key.

    Raises:
        ValueError: as in `favor_attention`.
    """
    key, value = _autocast(key, value)
    space = feature_space(features, feature_map, scale, key, key)
    check_keys(key, value, key_padding_mask, space)
    mask = weighed_keys(key_padding_mask, key_bias, key)
    chosen = resolve_impl(impl, key, value, *space.tensors)
    return summarize_op(SummarizeInputs(key, value, mask, space, chosen)).state


def attend(
    query: Tensor,
    state: FavorState,
    features: RandomFeatures | Tensor,
    *,
    feature_map: FeatureMap = "exponential",
    scale: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Let the queries attend to the landmarks: o_t = sum_r softmax_r(w_r . q_t + L_r) V_r.

    Args:
        query: (b, h g, t, d).
        state: of the keys, from `summarize` or `merge` with the same features, map and scale.
        features, feature_map, scale, impl: as in `favor_attention`.

    Returns:
        (b, h g, t, e) in query's dtype.

    Raises:
        ValueError: as in `favor_attention`, or a state that does not fit the features.
    """
    (query,) = _autocast(query)
    state = as_state(state)
    space = feature_space(features, feature_map, scale, query, state.log_normalizer)
    check_state(state, space)
    check_attend(query, state.log_normalizer.shape[1], state.value.shape[-1], space)
    check_batch(query, "state", state.log_normalizer)
    chosen = resolve_impl(impl, query, state.value, *space.tensors)
    inputs = AttendInputs(query, state, space._replace(log_weight=None), chosen)
    return one_query(inputs) if is_one_query(inputs) else attend_op(inputs).output


def merge(first: FavorState, second: FavorState) -> FavorState:
    """Join the states of two disjoint sets of keys; associative and commutative up to rounding.

    L = logaddexp(L1, L2)        V = V1 exp(L1 - L) + V2 exp(L2 - L)

    Args:
        first, second: states made with the same features; their shapes must match.

    Returns:
        The state of the union; differentiable in both.

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    first, second = as_state(first), as_state(second)
    check_states(first, second)
    return joined_definition(first, second)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as `scaled_dot_product_attention` does under autocast, before anything is checked.

    What autocast left in float32 (rotary queries and keys) may so stand beside what it did not. Projection and states
    keep their precision.
    """
    if not all(isinstance(x, Tensor) for x in tensors):
        return tensors  # which the checks then name
    device_type = tensors[0].device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _align_steps(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, tokens_per_step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Bring causal queries and keys to one length: drop keys no query sees, pad the shorter side with hidden tokens."""
    t, s = query.shape[-2], key.shape[-2]
    if t == s:
        return query, key, value, mask
    seen = min(s, -(-t // tokens_per_step) * tokens_per_step)
    key, value, mask = key[:, :, :seen], value[:, :, :seen], None if mask is None else mask[..., :seen]
    length = max(t, seen)
    if seen < length:
        mask = torch.zeros(key.shape[0], seen, dtype=torch.bool, device=key.device) if mask is None else mask
        mask = F.pad(mask, (0, length - seen), value=-torch.inf if mask.is_floating_point() else True)
        key, value = F.pad(key, (0, 0, 0, length - seen)), F.pad(value, (0, 0, 0, length - seen))
    return F.pad(query, (0, 0, 0, length - t)), key, value, mask
