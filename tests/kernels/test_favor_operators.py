"""The kernels under PyTorch's transformations: opcheck, compile, export, autocast, inference mode and vmap."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from favor_textbook import bias_of, qkv
from kernel_runs import RUNS_KERNELS
from torch.library import opcheck

from favorcast.kernels import (
    FavorAttention,
    draw_features,
    favor_attention,
    moving_average,
    series_decomposition,
    softmax_error,
)
from favorcast.kernels.favor.feature_maps import FEATURE_MAPS

OPERATORS = torch.ops.favorcast
CAUSAL = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
FEATURES = draw_features(8, 4, kind="favor++", generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[False, False, False, True, True, True, True], [False] * 7])
BIAS = bias_of(2, 2, 7).float().masked_fill(MASK.unsqueeze(1), -torch.inf)


def leaf(*shape: int, transposed: bool = False) -> torch.Tensor:
    x = torch.randn(shape)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if transposed else x
    return x.requires_grad_()


@pytest.mark.parametrize(
    ("feature_map", "transposed", "impl", "mask"),
    [
        *product(FEATURE_MAPS, [False, True], ["reference"], [MASK, BIAS]),
        pytest.param("exponential", True, "triton", BIAS, marks=RUNS_KERNELS),
    ],
)
def test_opcheck_accepts_the_forward_operators(feature_map, transposed, impl, mask):
    mask = mask.clone().requires_grad_() if mask.is_floating_point() else mask
    key, value = leaf(2, 2, 7, 4, transposed=transposed), leaf(2, 2, 7, 3, transposed=transposed)
    query = leaf(2, 4, 7, 4, transposed=transposed)
    space = [x.clone().requires_grad_() for x in FEATURES[:2] if x is not None]
    options = (0.5, feature_map, False, impl)
    opcheck(OPERATORS.summarize.default, (key, value, mask, *space, *options))
    opcheck(OPERATORS.summarize.default, (key, value, None, space[0], None, *options))
    state = [x.detach().requires_grad_() for x in OPERATORS.summarize(key, value, None, *space, *options)[:2]]
    opcheck(OPERATORS.attend.default, (query, *state, space[0], None, *options))
    opcheck(OPERATORS.full_attention.default, (query, key, value, mask, *space, *options))
    if impl == "reference":
        opcheck(OPERATORS.causal_attention.default, (query, key, value, mask, None, None, *space, *options, 2))
        opcheck(OPERATORS.causal_attention.default, (query, key, value, mask, *state, *space, *options, 7))


@pytest.mark.parametrize(
    ("impl", "parameter_gradients", "mask"),
    [
        *product(["reference"], [False, True], [MASK, BIAS]),
        pytest.param("triton", True, BIAS, marks=RUNS_KERNELS),
    ],
)
def test_opcheck_accepts_the_backward_operators(parameter_gradients, impl, mask):
    key, value, query = torch.randn(2, 2, 7, 4), torch.randn(2, 2, 7, 3), torch.randn(2, 4, 7, 4)
    space = (*FEATURES[:2], 0.5, "exponential", False, impl)
    log_normalizer, state_value, *softmax = OPERATORS.summarize(key, value, mask, *space)
    upstream = torch.randn_like(log_normalizer), torch.randn_like(state_value)
    arguments = (*upstream, key, value, mask, *space, log_normalizer, state_value, *softmax, parameter_gradients)
    opcheck(OPERATORS.summarize_backward.default, arguments)
    without_log_weight = (space[0], None, *space[2:])
    results = OPERATORS.attend(query, log_normalizer, state_value, *without_log_weight)
    d_output = torch.randn_like(results[0])
    arguments = (d_output, query, log_normalizer, state_value, *without_log_weight, *results, parameter_gradients)
    opcheck(OPERATORS.attend_backward.default, arguments)
    results = OPERATORS.full_attention(query, key, value, mask, *space)
    arguments = (d_output, query, key, value, mask, *space, *results, parameter_gradients)
    opcheck(OPERATORS.full_attention_backward.default, arguments)
    if impl == "reference":
        for initial, d_state in (((None, None), (None, None)), ((log_normalizer, state_value), upstream)):
            results = OPERATORS.causal_attention(query, key, value, mask, *initial, *space, 2)
            arguments = (d_output, *d_state, query, key, value, mask, *initial, *space, 2)
            opcheck(OPERATORS.causal_attention_backward.default, (*arguments, *results, parameter_gradients))


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck_accepts_the_moving_average(masked):
    mask = torch.rand(2, 7, 3) > 0.5 if masked else None
    for causal in (False, True):
        opcheck(OPERATORS.moving_average.default, (leaf(2, 7, 3), mask, 4, causal, "reference"))
        opcheck(OPERATORS.moving_average_backward.default, (leaf(2, 7, 3, transposed=True), mask, 4, causal, ""))


@CAUSAL
@pytest.mark.parametrize("unbiased", [True, False], ids=["plain", "biased"])
def test_compile_is_one_graph_for_all_lengths(is_causal, unbiased):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    def attention(q, k, v, bias):
        return favor_attention(q, k, v, FEATURES, is_causal=is_causal, key_bias=bias)

    compiled = torch.compile(attention, backend=backend, fullgraph=True, dynamic=True)
    for length in (5, 9, 70, 131):
        bias = None if unbiased else bias_of(2, length).float()
        inputs = [x.requires_grad_() for x in (*qkv(t=length, dtype=torch.float32), *([] if unbiased else [bias]))]
        upstream = torch.randn(2, 2, length, 4)
        given = (*inputs[:3], bias)
        results = [(o := f(*given), *torch.autograd.grad(o, inputs, upstream)) for f in (compiled, attention)]
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert len(graphs) == 1


def test_the_module_and_the_decomposition_compile_without_a_graph_break():
    torch._dynamo.reset()
    layer = FavorAttention(8, 2, batch_first=True, qk_norm=True, is_causal=True)

    def step(x):
        seasonal, trend = series_decomposition(x, [3, 4])
        return layer(seasonal, seasonal, seasonal)[0] + trend

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (6, 11):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x), step(x))


@CAUSAL
def test_export_keeps_a_dynamic_length(is_causal):
    layer = FavorAttention(8, 2, batch_first=True, is_causal=is_causal).eval()
    x = torch.randn(2, 6, 8)
    exported = torch.export.export(layer, (x, x, x), dynamic_shapes=({1: torch.export.Dim("t")},) * 3, strict=False)
    y = torch.randn(2, 9, 8)
    torch.testing.assert_close(exported.module()(y, y, y)[0], layer(y, y, y)[0])


@CAUSAL
def test_autocast_casts_inputs_and_keeps_float32_sums(is_causal):
    inputs = [x.requires_grad_() for x in qkv(t=200, dtype=torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = favor_attention(*inputs, FEATURES, is_causal=is_causal)
    plain = favor_attention(*(x.bfloat16() for x in inputs), FEATURES, is_causal=is_causal)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, plain)
    output.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 and x.grad.isfinite().all() for x in inputs)


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert favor_attention(*qkv(), FEATURES).dtype == torch.float64


@CAUSAL
def test_inference_mode_gives_the_same_bits(is_causal):
    inputs = qkv(t=70, dtype=torch.float32)
    expected = favor_attention(*inputs, FEATURES, is_causal=is_causal)
    with torch.inference_mode():
        assert torch.equal(favor_attention(*inputs, FEATURES, is_causal=is_causal), expected)


@CAUSAL
def test_vmap_over_inputs_and_over_projections_is_a_loop(is_causal):
    def attention(q, k, v, bias, projection):
        return favor_attention(q, k, v, projection, is_causal=is_causal, key_bias=bias)

    inputs = [torch.stack([x, 2 * x]) for x in (*qkv(dtype=torch.float32), bias_of(2, 7).float())]
    projections = torch.stack([FEATURES.projection, -2 * FEATURES.projection])
    both = torch.vmap(attention)(*inputs, projections)
    shared = torch.vmap(attention, in_dims=(0, 0, 0, 0, None))(*inputs, projections[0])
    for i in range(2):
        sample = [x[i] for x in inputs]
        torch.testing.assert_close(both[i], attention(*sample, projections[i]))
        torch.testing.assert_close(shared[i], attention(*sample, projections[0]))


def test_softmax_error_is_a_python_float_without_a_graph():
    inputs = [x.requires_grad_() for x in qkv(dtype=torch.float32)]
    assert isinstance(softmax_error(*inputs, FEATURES), float)


@pytest.mark.parametrize("is_causal", [False, True])
def test_forward_mode_is_refused_instead_of_dropping_the_tangent(is_causal: bool) -> None:
    features = draw_features(8, 4)
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: favor_attention(x, q, q, features, is_causal=is_causal), (q,), (torch.ones_like(q),))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: moving_average(x, 3), (q[0],), (torch.ones_like(q[0]),))
