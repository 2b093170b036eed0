"""FAVOR attention on the GPU: allocates, chooses the launch and calls the kernels; the CUDA side of `favor_ops.py`.

Dimension key: b batch, h key heads, g query heads per key head, t queries, s keys, d head dim, e value dim, m features.

    call                        launches
    full forward, short         _short_kernel
    full forward                _summarize_kernel [, _merge_splits_kernel], _attend_kernel
    full backward               _token_gradient_kernel (dq), _landmark_gradient_kernel, _reduce_gradient_kernel,
                                _token_gradient_kernel (dk, dv) [, _projection_gradient_kernel twice]

Products run on tensor cores: bfloat16 inputs in bfloat16 (the projection rounded once), float16 inputs in float16 for
w . x and in TF32 for everything a weight takes part in (weights leave float16's range), float32 inputs in three TF32
products ("tf32x3", about float32's accuracy) or, with impl="triton-ieee", in float32 without tensor cores. Sums and
exponents are float32. The state is float32 for `summarize`; inside `full_attention` it has the operands' dtype.
"""

# Kernel parameters are annotated for the device, launches pass host values:
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .favor_backward_kernels import (
    _landmark_gradient_kernel,
    _projection_gradient_kernel,
    _reduce_gradient_kernel,
    _token_gradient_kernel,
)
from .favor_forward_kernels import _attend_kernel, _merge_splits_kernel, _short_kernel, _summarize_kernel
from .favor_launch import launch_config, next_power_of_two
from .favor_reference import KeySummary, ParameterGradients, attention_output
from .favor_tiles import Rows, Vectors, mask_of, rows_of, vectors_of
from .random_features import FeatureSpace

INTERPRETED = not isinstance(_attend_kernel, triton.runtime.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when the kernels were imported: they then run on CPU tensors, slowly."""

LONGEST_SPLIT = 8192
"""Tokens summed in one go: more would let float32 sums drift, by 2e-4 over 1e5 equal values."""

SHORTEST_SPLIT_TILES = 4
"""Token tiles below which a split is not worth its merging."""

SHORT_QUERIES = 256
SHORT_KEYS = 256
"""Keys up to which hop 1 may be repeated by every query tile of a head, for the sake of a single launch."""


class State(NamedTuple):
    """What hop 1 leaves behind: V (b, h, m, e), L, and the maximum (base 2) and sum of its softmax, (b, h, m) each."""

    value: Tensor
    log_normalizer: Tensor | None
    row_max: Tensor
    row_sum: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...], value_dim: int, dtype: torch.dtype, device: torch.device) -> State:
        vectors = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(3))
        return cls(torch.empty((*shape, value_dim), dtype=dtype, device=device), *vectors)

    def described(self) -> tuple[Rows, Vectors | None, Vectors, Vectors]:
        log_normalizer = None if self.log_normalizer is None else vectors_of(self.log_normalizer)
        return rows_of(self.value), log_normalizer, vectors_of(self.row_max), vectors_of(self.row_sum)


@lru_cache(maxsize=256)
def _constants(m: int, d: int, e: int, feature_map: str, paired: bool, dtype: torch.dtype, impl: str) -> dict[str, Any]:
    """Return the compile-time values that most kernels share."""
    precision = "tf32" if dtype != torch.float32 else "ieee" if impl == "triton-ieee" else "tf32x3"
    return {
        "FEATURES": m // 2 if paired else m,
        "DIM": d,
        "VALUE_DIM": e,
        "FEATURE_MAP": feature_map,
        "PAIRED": paired,
        "BLOCK_D": next_power_of_two(d),
        "BLOCK_E": next_power_of_two(e),
        "OPERAND": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
        "PRECISION": precision,
    }


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which softmax weights and state enter a product: never float16."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _shared_constants(space: FeatureSpace, like: Tensor, m: int, value_dim: int, impl: str) -> dict[str, Any]:
    return _constants(m, like.shape[-1], value_dim, space.feature_map, space.paired, like.dtype, impl)


def _gains(space: FeatureSpace) -> tuple[float, float]:
    """Return what w . x and |x|^2 are multiplied with: the scale, and log2(e) for the exponential map."""
    base = math.log2(math.e) if space.feature_map == "exponential" else 1.0
    return math.sqrt(space.scale) * base, 0.5 * space.scale * base


@lru_cache(maxsize=16)
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # under the interpreter: enough to exercise splits
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return triton.runtime.driver.active.get_current_target().arch if not INTERPRETED else 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


class _Launch(NamedTuple):
    """Tile sizes clipped to the problem, and the keyword arguments of Triton's launcher."""

    tokens: int
    features: int
    tiles: int
    options: dict[str, int]


def _launch(kernel: str, constants: dict[str, Any], token_count: int, device: torch.device) -> _Launch:
    dim = max(constants["BLOCK_D"], constants["BLOCK_E"])
    config = launch_config(kernel, dim, constants["OPERAND"] is tl.float32, _capability(device))
    tokens = min(config.tokens, next_power_of_two(token_count))
    features = min(config.features, next_power_of_two(constants["FEATURES"]))
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return _Launch(tokens, features, triton.cdiv(constants["FEATURES"], features), options)


def _splits(token_tiles: int, tile_length: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Return (splits, token tiles of each) so that two waves of programs fill the device and no split is too long."""
    wanted = triton.cdiv(2 * _processors(device), programs)
    allowed = token_tiles // SHORTEST_SPLIT_TILES
    needed = triton.cdiv(token_tiles * tile_length, LONGEST_SPLIT)
    each = triton.cdiv(token_tiles, max(1, needed, min(wanted, allowed)))
    return max(1, triton.cdiv(token_tiles, max(1, each))), max(1, each)


def summarize_triton(key: Tensor, value: Tensor, mask: Tensor | None, space: FeatureSpace, impl: str) -> KeySummary:
    """Summarize keys (b, h, s, d) and values (b, h, s, e) into a float32 state."""
    state = State.empty((*key.shape[:2], space.projection.shape[-2]), value.shape[-1], torch.float32, key.device)
    _launch_summarize(key, value, mask, space, impl, state, None)
    assert state.log_normalizer is not None
    return KeySummary(state.log_normalizer, state.value, state.row_max, state.row_sum)


def _launch_summarize(
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    space: FeatureSpace,
    impl: str,
    state: State,
    projection_copy: Tensor | None,
) -> None:
    b, h, s, _ = key.shape
    m, e = state.value.shape[-2:]
    if b * h == 0:
        return
    constants = _shared_constants(space, key, m, e, impl)
    launch = _launch("summarize", constants, s, key.device)
    splits, each = _splits(triton.cdiv(s, launch.tokens), launch.tokens, b * h * launch.tiles, key.device)
    parts = state
    if splits > 1:
        parts = State.empty((splits * b, h, m), e, torch.float32, key.device)._replace(log_normalizer=None)
    log_weight = None if space.log_weight is None else vectors_of(space.log_weight)
    _summarize_kernel[(b * h * splits * launch.tiles,)](
        rows_of(key),
        rows_of(value),
        mask_of(mask),
        rows_of(space.projection),
        log_weight,
        parts.described(),
        None if projection_copy is None else rows_of(projection_copy),
        b,
        s,
        each * launch.tokens,
        splits,
        h,
        *_gains(space),
        **constants,
        BLOCK_M=launch.features,
        BLOCK_S=launch.tokens,
        **launch.options,
    )
    if splits > 1:
        block = min(16, next_power_of_two(m))
        _merge_splits_kernel[(b * h * triton.cdiv(m, block),)](
            parts.described(),
            log_weight,
            state.described(),
            b,
            splits,
            h,
            FEATURES=m,
            VALUE_DIM=e,
            BLOCK_M=block,
            BLOCK_E=constants["BLOCK_E"],
        )


def attend_triton(query: Tensor, state: tuple[Tensor, Tensor], space: FeatureSpace, impl: str) -> tuple[Tensor, Tensor]:
    """Return o (b, h g, t, e) in query's dtype, and log2 of the sums of its softmax (b, h g, t)."""
    log_normalizer, state_value = state
    b, heads, t, _ = query.shape
    h, m, e = state_value.shape[1:]
    output = attention_output(query, e)
    log_total = torch.empty((b, heads, t), dtype=torch.float32, device=query.device)
    if b * heads * t == 0:
        return output, log_total
    constants = _shared_constants(space, query, m, e, impl)
    launch = _launch("attend", constants, t, query.device)
    _attend_kernel[(b * heads * triton.cdiv(t, launch.tokens),)](
        rows_of(query),
        rows_of(space.projection),
        vectors_of(log_normalizer),
        rows_of(state_value),
        rows_of(output),
        vectors_of(log_total),
        t,
        heads,
        heads // h,
        _gains(space)[0],
        **constants,
        BLOCK_T=launch.tokens,
        BLOCK_M=launch.features,
        BLOCK_ALL=next_power_of_two(m),
        **launch.options,
    )
    return output, log_total


class FullResults(NamedTuple):
    """Output and log2 softmax sums of hop 2, the state of hop 1, and the projection in the operands' dtype."""

    output: Tensor
    log_total: Tensor
    log_normalizer: Tensor
    state_value: Tensor
    row_max: Tensor
    row_sum: Tensor
    projection: Tensor


def full_attention_triton(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, space: FeatureSpace, impl: str
) -> FullResults:
    """Run both hops; the state is kept in the dtype in which hop 2 reads it."""
    m, e = space.projection.shape[-2], value.shape[-1]
    state = State.empty((*key.shape[:2], m), e, torch.float32, key.device)
    state_value, projection = operands_like(query, key, state.value, space)
    state = state._replace(value=state_value)
    assert state.log_normalizer is not None
    if _is_short(query, key):
        output, log_total = _short_attention(query, key, value, mask, space, impl, state)
    else:
        copy = projection if projection.numel() else None
        _launch_summarize(key, value, mask, space, impl, state, copy)
        operands = space if copy is None else space._replace(projection=copy)
        output, log_total = attend_triton(query, (state.log_normalizer, state.value), operands, impl)
    return FullResults(output, log_total, state.log_normalizer, state.value, state.row_max, state.row_sum, projection)


def operands_like(query: Tensor, key: Tensor, state_value: Tensor, space: FeatureSpace) -> tuple[Tensor, Tensor]:
    """Allocate V, and the projection where hop 1 is to leave a copy of it, in the dtypes in which hop 2 reads them."""
    operand = state_value.new_empty(0)
    if query.dtype == key.dtype != torch.float32 and not _is_short(query, key):
        m = space.projection.shape[-2] // (2 if space.paired else 1)
        operand = key.new_empty((*space.projection.shape[:-2], m, space.projection.shape[-1]))
    return torch.empty_like(state_value, dtype=operand_dtype(query.dtype)), operand


def _is_short(query: Tensor, key: Tensor) -> bool:
    """Whether one launch that repeats hop 1 for each query tile beats two launches."""
    return query.dtype == key.dtype and query.shape[-2] <= SHORT_QUERIES and key.shape[-2] <= SHORT_KEYS


def _short_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, space: FeatureSpace, impl: str, state: State
) -> tuple[Tensor, Tensor]:
    b, heads, t, _ = query.shape
    m, e = state.value.shape[-2:]
    s, h = key.shape[-2], key.shape[1]
    output = attention_output(query, e)
    log_total = torch.empty((b, heads, t), dtype=torch.float32, device=query.device)
    if b * heads == 0:
        return output, log_total
    constants = _shared_constants(space, query, m, e, impl)
    launch = _launch("short", constants, max(t, s), query.device)
    tokens = min(launch.tokens, next_power_of_two(t))
    _short_kernel[(b * heads * max(1, triton.cdiv(t, tokens)),)](
        rows_of(query),
        rows_of(key),
        rows_of(value),
        mask_of(mask),
        rows_of(space.projection),
        None if space.log_weight is None else vectors_of(space.log_weight),
        state.described(),
        rows_of(output),
        vectors_of(log_total),
        t,
        s,
        heads,
        heads // h,
        *_gains(space),
        **constants,
        BLOCK_T=tokens,
        BLOCK_S=min(launch.tokens, next_power_of_two(s)),
        BLOCK_M=launch.features,
        **launch.options,
    )
    return output, log_total


class FullGradients(NamedTuple):
    """Gradients of `full_attention_triton`."""

    query: Tensor
    key: Tensor
    value: Tensor
    parameters: ParameterGradients


class _Softmax(NamedTuple):
    """One hop as the backward kernels see it: what the weights are made of and what they average."""

    log_normalizer: Tensor | None
    row_max: Tensor | None
    landmark_rows: Tensor
    shifts: Tensor | None
    output: Tensor | None
    log_total: Tensor | None
    weighted_output: Tensor | None


def full_attention_backward_triton(
    d_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    space: FeatureSpace,
    impl: str,
    results: tuple[Tensor, ...],
    parameter_gradients: bool,
) -> FullGradients:
    """Differentiate `full_attention_triton`, whose results are given."""
    results = FullResults(*results)
    operands = space if results.projection.numel() == 0 else space._replace(projection=results.projection)
    hop, d_query, received = _query_side(
        d_output, query, results.output, results.log_total, results.log_normalizer, results.state_value, operands, impl
    )
    state = State(results.state_value, results.log_normalizer, results.row_max, results.row_sum)
    log_gradient = torch.empty_like(results.log_normalizer) if parameter_gradients else None
    landmarks = torch.empty_like(results.state_value, dtype=operand_dtype(key.dtype))
    shifts = torch.empty_like(results.row_max)
    _reduce_gradient(received, None, state, None, log_gradient, landmarks, shifts)
    d_key, d_value = _key_side(key, value, mask, operands, impl, state, landmarks, shifts)
    none = results.row_max.new_empty(0)
    parameters = ParameterGradients(none, none.clone())
    if parameter_gradients:
        assert log_gradient is not None
        key_hop = _key_hop(state, landmarks, shifts)
        parts = _projection_gradient(query, d_output, None, hop, space, impl, is_key_side=False)
        parts += _projection_gradient(key, value, mask, key_hop, space, impl, is_key_side=True)
        parameters = _parameter_gradients(parts, log_gradient, space)
    return FullGradients(d_query, d_key, d_value, parameters)


def summarize_backward_triton(
    d_state: tuple[Tensor, Tensor],
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    space: FeatureSpace,
    impl: str,
    results: tuple[Tensor, Tensor, Tensor],
    parameter_gradients: bool,
) -> tuple[Tensor, Tensor, ParameterGradients]:
    """Return (d_key, d_value, parameter gradients) from the gradient of the state; `results` is (V, max, sum)."""
    d_log_normalizer, d_state_value = d_state
    state_value, row_max, row_sum = results
    state = State(state_value, None, row_max, row_sum)
    landmarks = torch.empty_like(state_value, dtype=operand_dtype(key.dtype))
    shifts = torch.empty_like(row_max)
    _reduce_gradient((d_state_value, None), d_log_normalizer, state, None, None, landmarks, shifts)
    d_key, d_value = _key_side(key, value, mask, space, impl, state, landmarks, shifts)
    none = row_max.new_empty(0)
    if not parameter_gradients:
        return d_key, d_value, ParameterGradients(none, none.clone())
    parts = _projection_gradient(key, value, mask, _key_hop(state, landmarks, shifts), space, impl, is_key_side=True)
    return d_key, d_value, _parameter_gradients(parts, d_log_normalizer, space)


def attend_backward_triton(
    d_output: Tensor,
    query: Tensor,
    state: tuple[Tensor, Tensor],
    space: FeatureSpace,
    impl: str,
    results: tuple[Tensor, Tensor],
    parameter_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, ParameterGradients]:
    """Return (d_query, d_log_normalizer, d_state_value, parameter gradients); `results` is (output, log_total)."""
    log_normalizer, state_value = state
    hop, d_query, received = _query_side(d_output, query, *results, log_normalizer, state_value, space, impl)
    whole = State(state_value, log_normalizer, log_normalizer, log_normalizer)  # max and sum are not read
    d_state_value = torch.empty_like(state_value, memory_format=torch.contiguous_format)
    d_log_normalizer = torch.empty_like(log_normalizer, memory_format=torch.contiguous_format)
    _reduce_gradient(received, None, whole, d_state_value, d_log_normalizer, None, None)
    none = log_normalizer.new_empty(0)
    parameters = ParameterGradients(none, none.clone())
    if parameter_gradients:
        parts = _projection_gradient(query, d_output, None, hop, space, impl, is_key_side=False)
        parameters = _parameter_gradients(parts, d_log_normalizer, space._replace(log_weight=None))
    return d_query, d_log_normalizer, d_state_value, parameters


def _key_hop(state: State, landmarks: Tensor, shifts: Tensor) -> _Softmax:
    return _Softmax(None, state.row_max, landmarks, shifts, None, None, None)


def _query_side(
    d_output: Tensor,
    query: Tensor,
    output: Tensor,
    log_total: Tensor,
    log_normalizer: Tensor,
    state_value: Tensor,
    space: FeatureSpace,
    impl: str,
) -> tuple[_Softmax, Tensor, tuple[Tensor, Tensor | None]]:
    """Return the queries' hop, dq, and the partial sums R (splits b, h, m, e) and E (splits b, h, m)."""
    weighted = torch.empty_like(log_total)
    hop = _Softmax(log_normalizer, None, state_value, None, output, log_total, weighted)
    d_query = torch.empty_like(query)
    _token_gradient(query, d_output, None, hop, space, impl, d_query, None)
    b, heads, t, _ = query.shape
    h, m, e = state_value.shape[1:]
    constants = _shared_constants(space, query, m, e, impl)
    launch = _launch("landmark_gradient", constants, t, query.device)
    tiles = triton.cdiv(t, launch.tokens) * (heads // h)
    splits, each = _splits(tiles, launch.tokens, max(1, b * h * launch.tiles), query.device)
    received = torch.empty((splits * b, h, m, e), dtype=torch.float32, device=query.device)
    received_weighted = torch.empty((splits * b, h, m), dtype=torch.float32, device=query.device)
    if received.numel():
        _landmark_gradient_kernel[(b * h * splits * launch.tiles,)](
            rows_of(query),
            rows_of(d_output),
            vectors_of(log_total),
            vectors_of(weighted),
            rows_of(space.projection),
            vectors_of(log_normalizer),
            rows_of(received),
            vectors_of(received_weighted),
            b,
            t,
            each,
            splits,
            h,
            heads // h,
            _gains(space)[0],
            **constants,
            BLOCK_M=launch.features,
            BLOCK_N=launch.tokens,
            BLOCK_ALL=next_power_of_two(m),
            **launch.options,
        )
    return hop, d_query, (received, received_weighted)


def _key_side(
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    space: FeatureSpace,
    impl: str,
    state: State,
    landmarks: Tensor,
    shifts: Tensor,
) -> tuple[Tensor, Tensor]:
    d_key, d_value = torch.empty_like(key), torch.empty_like(value)
    _token_gradient(key, value, mask, _key_hop(state, landmarks, shifts), space, impl, d_key, d_value)
    return d_key, d_value


def _token_gradient(
    tokens: Tensor,
    token_rows: Tensor,
    mask: Tensor | None,
    hop: _Softmax,
    space: FeatureSpace,
    impl: str,
    d_tokens: Tensor,
    d_token_rows: Tensor | None,
) -> None:
    b, heads, n, _ = tokens.shape
    h, m, e = hop.landmark_rows.shape[1:]
    if b * heads * n == 0:
        return
    keys = d_token_rows is not None
    constants = _shared_constants(space, tokens, m, e, impl)
    launch = _launch("key_gradient" if keys else "query_gradient", constants, n, tokens.device)
    _token_gradient_kernel[(b * heads * triton.cdiv(n, launch.tokens),)](
        rows_of(tokens),
        rows_of(token_rows),
        mask_of(mask),
        _rows(hop.output),
        _vectors(hop.log_total),
        rows_of(space.projection),
        rows_of(hop.landmark_rows),
        _vectors(hop.log_normalizer),
        _vectors(hop.row_max),
        _vectors(hop.shifts),
        rows_of(d_tokens),
        _rows(d_token_rows),
        _vectors(hop.weighted_output),
        n,
        heads,
        heads // h,
        *_gains(space),
        math.sqrt(space.scale),
        keys,
        **constants,
        BLOCK_N=launch.tokens,
        BLOCK_M=launch.features,
        BLOCK_ALL=next_power_of_two(m),
        **launch.options,
    )


def _reduce_gradient(
    received: tuple[Tensor, Tensor | None],
    d_log_normalizer: Tensor | None,
    state: State,
    d_state_value: Tensor | None,
    d_log_result: Tensor | None,
    landmarks: Tensor | None,
    shifts: Tensor | None,
) -> None:
    b, h, m, e = state.value.shape
    if b * h == 0:
        return
    block = min(16, next_power_of_two(m))
    _reduce_gradient_kernel[(b * h * triton.cdiv(m, block),)](
        rows_of(received[0]),
        _vectors(received[1]),
        _vectors(d_log_normalizer),
        rows_of(state.value),
        vectors_of(state.row_sum),
        _rows(d_state_value),
        _vectors(d_log_result),
        _rows(landmarks),
        _vectors(shifts),
        b,
        received[0].shape[0] // b,
        h,
        FEATURES=m,
        VALUE_DIM=e,
        BLOCK_M=block,
        BLOCK_E=next_power_of_two(e),
    )


def _projection_gradient(
    tokens: Tensor,
    token_rows: Tensor,
    mask: Tensor | None,
    hop: _Softmax,
    space: FeatureSpace,
    impl: str,
    *,
    is_key_side: bool,
) -> Tensor:
    """Return sum_n d_nr x_n, (b, h, m, d), float32."""
    b, heads, n, d = tokens.shape
    h, m, e = hop.landmark_rows.shape[1:]
    constants = dict(_shared_constants(space._replace(paired=False), tokens, m, e, impl))
    del constants["PAIRED"]
    launch = _launch("projection_gradient", constants, n, tokens.device)
    tiles = triton.cdiv(n, launch.tokens) * (heads // h)
    splits, each = _splits(tiles, launch.tokens, max(1, b * h * launch.tiles), tokens.device)
    parts = torch.empty((splits * b, h, m, d), dtype=torch.float32, device=tokens.device)
    if parts.numel():
        _projection_gradient_kernel[(b * h * splits * launch.tiles,)](
            rows_of(tokens),
            rows_of(token_rows),
            mask_of(mask),
            _vectors(hop.log_total),
            _vectors(hop.weighted_output),
            rows_of(space.projection),
            rows_of(hop.landmark_rows),
            _vectors(hop.log_normalizer),
            _vectors(hop.row_max),
            _vectors(hop.shifts),
            rows_of(parts),
            b,
            n,
            each,
            splits,
            h,
            heads // h,
            *_gains(space),
            KEYS=is_key_side,
            **constants,
            BLOCK_M=launch.features,
            BLOCK_N=launch.tokens,
            BLOCK_ALL=next_power_of_two(m),
            **launch.options,
        )
    return parts.unflatten(0, (splits, b)).sum(0)


def _parameter_gradients(parts: Tensor, d_log_normalizer: Tensor, space: FeatureSpace) -> ParameterGradients:
    """Sum over the batch, and over heads that share a parameter; the log-weight enters L as it is."""
    projection = parts.sum(0 if space.projection.ndim == 3 else (0, 1)).mul_(math.sqrt(space.scale))
    projection = projection.to(space.projection.dtype)
    if space.log_weight is None:
        return ParameterGradients(projection, parts.new_empty(0))
    log_weight = d_log_normalizer.sum(0 if space.log_weight.ndim == 2 else (0, 1))
    return ParameterGradients(projection, log_weight.to(space.log_weight.dtype))


def _rows(x: Tensor | None) -> Rows | None:
    return None if x is None else rows_of(x)


def _vectors(x: Tensor | None) -> Vectors | None:
    return None if x is None else vectors_of(x)
