"""The GPU kernels of full FAVOR attention against float64: on a CUDA device, or else in Triton's interpreter.

What only a device can show (tensor cores, graphs, sizes) is in `test_favor_gpu.py`.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from adversarial_keys import (
    ADVERSARIAL,
    PROJECTION,
    Gradients,
    assert_within_budget,
    definition_gradients,
    differentiate,
    natural_scales,
)
from favor_textbook import bias_of, qkv
from kernel_runs import BOUNDS, DEVICE, DTYPE_IDS, LAYOUTS, RUNS_KERNELS, assert_close, both
from torch import Tensor

from favorcast.kernels import FavorState, RandomFeatures, attend, draw_features, favor_attention, merge, summarize
from favorcast.kernels.favor.feature_maps import FEATURE_MAPS, Map
from favorcast.kernels.favor.types import FeatureSpace, FullInputs

pytest.importorskip("triton", reason="triton is not installed")
favor_attention_triton = importlib.import_module("favorcast.kernels.favor.triton.full")
favor_launch = importlib.import_module("favorcast.kernels.favor.triton.problem")

pytestmark = [RUNS_KERNELS, pytest.mark.usefixtures("poisoned_allocations")]


@pytest.fixture(params=["short", "long"])
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run both hops in one launch, or each in its own whatever the lengths."""
    if request.param == "long":
        monkeypatch.setattr(favor_attention_triton, "SHORT_QUERIES", -1)
    return request.param


SHAPES = {
    "b2-h2-t33-d16-m64": ({"t": 33, "d": 16}, 64, None),
    "cross-t5-s130-d20-e24-m40": ({"b": 1, "t": 5, "s": 130, "d": 20, "e": 24}, 40, None),
    "gqa3-t40-s70-d16-e5-m100": ({"query_heads": 6, "t": 40, "s": 70, "d": 16, "e": 5}, 100, None),
    "t130-d48-m96": ({"b": 1, "h": 1, "t": 130, "d": 48}, 96, None),
    "s700-d96-m200": ({"b": 1, "h": 1, "t": 3, "s": 700, "d": 96, "e": 96}, 200, None),
    "t1-s1-d1-m2": ({"t": 1, "d": 1}, 2, None),
    "t17-d5-m10": ({"t": 17, "d": 5, "e": 256}, 10, None),
    "d256-m2": ({"b": 1, "h": 1, "t": 20, "d": 256, "e": 1}, 2, None),
    "biased-t33-d16-m64": ({"t": 33, "d": 16}, 64, bias_of(2, 33)),
    "biased-gqa3-t40-s70-d16-e5-m100": (
        {"query_heads": 6, "t": 40, "s": 70, "d": 16, "e": 5},
        100,
        bias_of(2, 2, 70, largest=8.0),
    ),
    "biased-s700-d16-m32": ({"b": 1, "h": 1, "t": 3, "s": 700, "d": 16}, 32, bias_of(1, 1, 700)),
}


@pytest.mark.parametrize("dtype", BOUNDS, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", SHAPES)
def test_output_and_gradients_equal_the_float64_reference(case, dtype, schedule):
    shape, num_features, bias = SHAPES[case]
    inputs = qkv(**shape, dtype=dtype)
    one_key = inputs[1].shape[-2] == 1  # its gradient is a difference of equals, and o is rounded
    results = both(inputs, draw_features(num_features, inputs[0].shape[-1]), key_bias=bias)
    assert_close(*results, dtype, factor=8 if one_key and dtype == torch.bfloat16 else 1)


FEATURES = {
    "unpaired": {"kind": "orthogonal"},
    "log-weight": {"kind": "favor++"},
    "per-head": {"num_heads": 2},
    "per-head-log-weight": {"kind": "favor++", "num_heads": 2},
}


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
@pytest.mark.parametrize("case", FEATURES)
@pytest.mark.parametrize("learnt", [False, True], ids=["drawn", "learnt"])
@pytest.mark.parametrize("bias", [None, bias_of(2, 2, 70)], ids=["padded", "padded-biased"])
def test_every_feature_set_and_map_has_its_gradients(case, feature_map, learnt, bias, monkeypatch):
    if learnt:  # the drawn ones take the short launch
        monkeypatch.setattr(favor_attention_triton, "SHORT_QUERIES", -1)
    inputs = qkv(t=20, s=70, d=16, query_heads=4, dtype=torch.float32)
    drawn = draw_features(48, 16, **FEATURES[case], generator=torch.Generator().manual_seed(7))
    features = drawn._replace(projection=drawn.projection.requires_grad_(learnt))
    mask = torch.rand(2, 70) < 0.3
    options = {"feature_map": feature_map, "key_padding_mask": mask, "key_bias": bias, "scale": 0.4}
    assert_close(*both(inputs, features, **options), torch.float32, 2)


def test_kernels_refuse_a_feature_map_that_they_do_not_know(monkeypatch):
    monkeypatch.setitem(FEATURE_MAPS, "unknown", Map(torch.nn.functional.logsigmoid, None, has_norm=False))
    """The reference may have one more; taken for the exponential map, it would be wrong without a word."""
    query, key, value = (x.to(DEVICE) for x in qkv(t=20, d=16, dtype=torch.float32))
    space = FeatureSpace(draw_features(16, 16, dtype=torch.float32, device=DEVICE).projection, None, 0.25, "unknown")
    with pytest.raises(Exception, match="do not know this feature map"):
        favor_attention_triton.full_triton(FullInputs(query, key, value, None, space, "triton"))


@pytest.mark.parametrize("low", [-300.0, -2e4, -torch.inf])
def test_log_weights_far_below_the_others_cost_no_digits(low):
    drawn = draw_features(64, 16, generator=torch.Generator().manual_seed(7))
    features = RandomFeatures(drawn.projection, torch.zeros(64).index_fill(0, torch.arange(16), low))
    assert_close(*both(qkv(t=20, d=16, dtype=torch.float32), features), torch.float32)


def test_paired_features_are_computed_from_half_the_projection(schedule):
    """The rows of the second half are never read: broken, they change nothing."""
    features = draw_features(64, 16)
    broken = features.projection.clone()
    broken[32:] = float("nan")
    inputs = [x.to(DEVICE) for x in qkv(t=40, d=16, dtype=torch.float32)]
    whole, half = (
        favor_attention(*inputs, RandomFeatures(p.to(DEVICE), None, True), impl="triton")
        for p in (features.projection, broken)
    )
    assert torch.equal(whole, half)


def test_learnt_features_are_never_taken_for_paired():
    features = draw_features(64, 16)
    projection = (features.projection + 0.1 * torch.randn(64, 16)).requires_grad_()
    assert_close(*both(qkv(t=40, d=16, dtype=torch.float32), RandomFeatures(projection, None, True)), torch.float32)


@pytest.mark.parametrize(("case", "limit"), [(x, 256 if i % 5 == 0 else -1) for i, x in enumerate(ADVERSARIAL)])
def test_adversarial_inputs_stay_within_the_error_budget(case, limit, monkeypatch):
    """The backward computes logits by products of another shape, so they may differ from the forward's by a rounding.

    That moves a weight by eps times the logit. The output has no such term; no result may be infinite in any case.
    """
    monkeypatch.setattr(favor_attention_triton, "SHORT_QUERIES", limit)
    inputs = ADVERSARIAL[case]()
    query = inputs[0].double() * 16**-0.25
    logit = float((query @ PROJECTION.double().T).abs().max())
    features = PROJECTION.to(DEVICE)
    result = differentiate(
        lambda *x: favor_attention(*(y.to(DEVICE) for y in x), features, impl="triton-ieee").cpu(),
        inputs,
        torch.float32,
    )
    plain = definition_gradients(inputs, torch.float32, False, 1)
    exact = definition_gradients(inputs, torch.float64, False, 1)
    output, *gradients = natural_scales(inputs)
    moved = 1 + logit / 4
    assert_within_budget(result, plain, exact, Gradients(output, *(x * moved for x in gradients)))


@pytest.mark.parametrize("dtype", BOUNDS, ids=DTYPE_IDS)
def test_padding_may_hold_anything_and_blind_queries_get_zeros(dtype, schedule):
    query, key, value = qkv(t=30, s=90, d=16, dtype=dtype)
    mask = torch.rand(2, 90) < 0.5
    mask[0] = True
    features = RandomFeatures(draw_features(64, 16).projection.to(DEVICE), None, True)

    def attend_to(key: Tensor, value: Tensor, **hiding: Tensor) -> list[Tensor]:
        tensors = [x.to(DEVICE).requires_grad_() for x in (query, key, value)]
        output = favor_attention(*tensors, features, impl="triton", **{k: x.to(DEVICE) for k, x in hiding.items()})
        return [output, *torch.autograd.grad(output, tensors, torch.ones_like(output))]

    hidden = mask[:, None, :, None]
    clean = attend_to(key, value, key_padding_mask=mask)
    garbage = key.masked_fill(hidden, torch.nan), value.masked_fill(hidden, torch.inf)
    for hiding in ({"key_padding_mask": mask}, {"key_bias": torch.zeros(2, 90).masked_fill(mask, -torch.inf)}):
        assert all(torch.equal(x, y) for x, y in zip(attend_to(*garbage, **hiding), clean, strict=True))
    assert all(x.isfinite().all() and not x[0].any() for x in clean)


@pytest.mark.parametrize(("t", "s"), [(0, 0), (0, 3), (3, 0), (1, 1), (1, 40)])
@pytest.mark.parametrize("batch", [0, 2])
def test_empty_and_single_lengths_are_legal(t, s, batch, schedule):
    inputs = qkv(b=batch, t=t, s=s, d=16, dtype=torch.float32)
    results = both(inputs, draw_features(32, 16))
    assert_close(*results, torch.float32, factor=4)  # the gradients of one key are differences of equals


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_are_read_in_place_and_change_no_bit(layout, schedule):
    features = RandomFeatures(draw_features(64, 16).projection.to(DEVICE), None, True)
    inputs = [x.to(DEVICE) for x in qkv(t=40, d=16, dtype=torch.float32)]
    plain = favor_attention(*inputs, features, impl="triton")
    arranged = [layout(x.cpu()).to(DEVICE) if DEVICE == "cpu" else layout(x) for x in inputs]
    assert torch.equal(favor_attention(*arranged, features, impl="triton"), plain)
    shared = inputs[1][:, :1].expand(-1, 2, -1, -1)  # head stride 0
    expected = favor_attention(inputs[0], shared.contiguous(), inputs[2], features, impl="triton")
    assert torch.equal(favor_attention(inputs[0], shared, inputs[2], features, impl="triton"), expected)


def test_states_of_the_kernels_are_those_of_the_definition_and_carry_gradients():
    def through_states(
        q: Tensor, k: Tensor, v: Tensor, features: RandomFeatures, impl: str, key_bias: Tensor
    ) -> Tensor:
        parts = [
            summarize(k[:, :, i], v[:, :, i], features, impl=impl, key_bias=key_bias[:, i])
            for i in (slice(0, 30), slice(30, 90))
        ]
        state = merge(*parts)
        tilted = FavorState(state.log_normalizer * 1.1, state.value * 0.9)
        return attend(q, tilted, features, impl=impl)

    features = draw_features(64, 16)
    inputs = qkv(t=40, s=90, d=16, query_heads=4, dtype=torch.float32)
    assert_close(*both(inputs, features, through_states, key_bias=bias_of(2, 90)), torch.float32, 2)
    learnt = features._replace(projection=features.projection.requires_grad_())
    assert_close(*both(inputs, learnt, through_states, key_bias=bias_of(2, 90)), torch.float32, 4)


def test_states_and_their_gradients_may_have_any_strides_and_change_no_bit():
    features = RandomFeatures(draw_features(64, 16).projection.to(DEVICE), None, True)
    q, k, v = (x.to(DEVICE).requires_grad_() for x in qkv(t=40, s=90, d=16, e=24, dtype=torch.float32))
    state = summarize(k, v, features, impl="triton")
    upstream = [torch.randn_like(x) for x in (q.new_empty(*q.shape[:-1], 24), *state)]
    results = []
    for arranged in (torch.clone, lambda x: x.detach().transpose(1, -1).contiguous().transpose(1, -1)):
        d_output, *d_state = map(arranged, upstream)
        opening = [arranged(x.detach()).requires_grad_() for x in state]
        output = attend(q, FavorState(*opening), features, impl="triton")
        gradients = torch.autograd.grad(output, [q, *opening], d_output)
        results.append([output, *gradients, *torch.autograd.grad(state, [k, v], d_state, retain_graph=True)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_attend_of_summarize_is_the_full_attention():
    q, k, v = (x.to(DEVICE) for x in qkv(t=40, s=90, d=16, dtype=torch.float32))
    features = RandomFeatures(draw_features(64, 16).projection.to(DEVICE), None, True)
    state = summarize(k, v, features, impl="triton")
    assert state.log_normalizer.dtype == state.value.dtype == torch.float32
    whole = favor_attention(q, k, v, features, impl="triton")
    torch.testing.assert_close(attend(q, state, features, impl="triton"), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", BOUNDS, ids=DTYPE_IDS)
def test_query_and_key_may_differ_in_dtype(dtype):
    q, k, v = qkv(t=40, s=90, d=16, dtype=dtype)
    other = torch.float32 if dtype == torch.float16 else torch.float16
    results = both((q.to(other), k, v), draw_features(64, 16))
    assert results[0][0].dtype == other
    assert_close(*results, torch.bfloat16 if dtype == torch.bfloat16 else torch.float16)


def test_the_number_of_splits_changes_only_the_rounding(monkeypatch):
    inputs = qkv(b=1, h=1, t=500, d=16, dtype=torch.float32)
    results = {}
    for processors, longest in ((1, 8192), (64, 8192), (1, 64)):
        monkeypatch.setattr(favor_launch, "processors", lambda device, p=processors: p)
        monkeypatch.setattr(favor_launch, "LONGEST_SPLIT", longest)
        kernels, reference = both(inputs, draw_features(64, 16))
        assert_close(kernels, reference, torch.float32)
        results[processors, longest] = kernels[0]
    assert not all(torch.equal(results[1, 8192], x) for x in results.values())


@pytest.mark.parametrize(
    ("token_tiles", "programs", "processors", "expected"),
    [
        (1, 1, 132, (1, 1)),
        (0, 1, 132, (1, 1)),
        (64, 8, 132, (16, 4)),
        (64, 2048, 132, (1, 64)),
        (1000, 9999, 4, (8, 125)),
    ],
)
def test_splits_fill_the_device_but_stay_worth_merging(monkeypatch, token_tiles, programs, processors, expected):
    monkeypatch.setattr(favor_launch, "processors", lambda device: processors)
    splits, each = favor_launch.split_tokens(token_tiles, 64, programs, torch.device("cpu"))
    assert (splits, each) == expected
    assert splits * each >= token_tiles


def test_equal_inputs_give_equal_bits(schedule):
    inputs = qkv(t=300, d=16, dtype=torch.float32)
    features = draw_features(64, 16)
    first, again = (both(inputs, features)[0] for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_constant_values_come_out_unchanged(schedule):
    q, k, _ = (x.to(DEVICE) for x in qkv(t=200, d=16, dtype=torch.float32))
    value = torch.full((2, 2, 200, 3), 0.7, device=DEVICE)
    features = RandomFeatures(draw_features(64, 16).projection.to(DEVICE), None, True)
    torch.testing.assert_close(favor_attention(q, k, value, features, impl="triton"), value, rtol=0, atol=1e-6)


def test_second_derivatives_are_those_of_the_definition():
    def penalised(q: Tensor, k: Tensor, v: Tensor, features: RandomFeatures, impl: str, key_bias: Tensor) -> Tensor:
        output = favor_attention(q, k, v, features, impl=impl, key_bias=key_bias)
        (gradient,) = torch.autograd.grad(output.square().sum(), k, create_graph=True)
        return gradient.square()

    inputs, bias = qkv(t=9, d=8, dtype=torch.float32), bias_of(2, 9)
    assert_close(*both(inputs, draw_features(16, 8), penalised, key_bias=bias), torch.float32, 4)


def test_autocast_casts_the_inputs_and_keeps_the_projection():
    q, k, v = (x.to(DEVICE) for x in qkv(t=20, d=16, dtype=torch.float32))
    features = RandomFeatures(draw_features(64, 16).projection.to(DEVICE), None, True)
    with torch.autocast(DEVICE, torch.float16):
        cast = favor_attention(q, k, v, features, impl="triton")
    assert cast.dtype == torch.float16
    assert torch.equal(cast, favor_attention(q.half(), k.half(), v.half(), features, impl="triton"))


def test_compile_is_one_graph_for_all_lengths():
    torch._dynamo.reset()
    features = RandomFeatures(draw_features(16, 4).projection.to(DEVICE), None, True)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    def attention(q, k, v):
        return favor_attention(q, k, v, features, impl="triton")

    compiled = torch.compile(attention, backend=backend, fullgraph=True, dynamic=True)
    for length in (5, 9, 300):
        inputs = [x.to(DEVICE).requires_grad_() for x in qkv(t=length, dtype=torch.float32)]
        upstream = torch.randn(2, 2, length, 4, device=DEVICE)
        results = [(o := f(*inputs), *torch.autograd.grad(o, inputs, upstream)) for f in (compiled, attention)]
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert len(graphs) == 1


def test_vmap_maps_over_samples():
    q, k, v = (x.to(DEVICE) for x in qkv(t=9, dtype=torch.float32))
    features = RandomFeatures(draw_features(16, 4).projection.to(DEVICE), None, True)

    def attention(q, k, v):
        return favor_attention(q, k, v, features, impl="triton")

    stacked = [torch.stack([x, 2 * x]) for x in (q, k, v)]
    mapped = torch.vmap(attention)(*stacked)
    assert torch.equal(mapped, torch.stack([attention(*(x[i] for x in stacked)) for i in range(2)]))
