"""Full (non-causal) FAVOR attention: against the textbook quotient, against adversarial inputs, in every dtype."""

from __future__ import annotations

import math

import pytest
import torch
from adversarial_keys import (
    ADVERSARIAL,
    PROJECTION,
    assert_within_budget,
    definition_gradients,
    differentiate,
    natural_scales,
)
from favor_textbook import bias_of, qkv, textbook_attention, visible_pairs

from favorcast.kernels import (
    RandomFeatures,
    attend,
    draw_features,
    favor_attention,
    softmax_error,
    stream_attention,
    summarize,
)
from favorcast.kernels.favor.reference import blocks

pytestmark = pytest.mark.usefixtures("poisoned_allocations")


FEATURES_4 = draw_features(8, 4, dtype=torch.float64)


def padding(b: int, s: int) -> torch.Tensor:
    """Hide the end of the first sample and a middle key of the second."""
    mask = torch.zeros(b, s, dtype=torch.bool)
    mask[0, s // 2 :] = True
    mask[1, 1] = True
    return mask


CASES = {
    "plain": ({}, {}, {}),
    "scale": ({}, {}, {"scale": 0.9}),
    "cross": ({"t": 5, "s": 9}, {}, {}),
    "value-dim": ({"e": 3}, {}, {}),
    "grouped": ({"query_heads": 6}, {}, {}),
    "per-head": ({}, {"num_heads": 2}, {}),
    "log-weight": ({}, {"kind": "favor++"}, {}),
    "per-head-log-weight": ({"query_heads": 4}, {"kind": "favor++", "num_heads": 2}, {}),
    "padded": ({}, {}, {"key_padding_mask": padding(2, 7)}),
    "biased": ({}, {}, {"key_bias": bias_of(2, 7)}),
    "per-head-biased-grouped-padded": (
        {"query_heads": 6, "e": 3},
        {"kind": "favor++"},
        {"key_bias": bias_of(2, 2, 7), "key_padding_mask": padding(2, 7)},
    ),
    "elu-biased": ({}, {}, {"feature_map": "elu", "key_bias": bias_of(2, 7)}),
    "relu": ({}, {}, {"feature_map": "relu"}),
    "elu": ({}, {}, {"feature_map": "elu"}),
    "elu-log-weight-padded": ({}, {"kind": "favor++"}, {"feature_map": "elu", "key_padding_mask": padding(2, 7)}),
    "causal": ({}, {}, {"is_causal": True}),
    "causal-log-weight": ({"query_heads": 4, "e": 3}, {"kind": "favor++", "num_heads": 2}, {"is_causal": True}),
    "causal-relu": ({}, {}, {"is_causal": True, "feature_map": "relu"}),
    "causal-elu": ({}, {"num_heads": 2}, {"is_causal": True, "feature_map": "elu"}),
    "causal-padded": ({}, {}, {"is_causal": True, "key_padding_mask": padding(2, 7)}),
    "causal-biased": ({}, {}, {"is_causal": True, "key_bias": bias_of(2, 2, 7)}),
    "causal-relu-biased": ({}, {}, {"is_causal": True, "feature_map": "relu", "key_bias": bias_of(2, 7)}),
    "causal-biased-longer-queries": ({"t": 9, "s": 5}, {}, {"is_causal": True, "key_bias": bias_of(2, 5)}),
    "causal-longer-queries": ({"t": 9, "s": 5}, {}, {"is_causal": True, "tokens_per_step": 2}),
    "causal-longer-keys": ({"t": 5, "s": 9}, {}, {"is_causal": True, "tokens_per_step": 2}),
    "step-causal": ({"t": 11}, {}, {"is_causal": True, "tokens_per_step": 3}),
    "step-causal-grouped-padded": (
        {"query_heads": 6, "e": 1},
        {},
        {"is_causal": True, "tokens_per_step": 3, "key_padding_mask": padding(2, 7)},
    ),
    "step-causal-grouped-biased": (
        {"query_heads": 6, "e": 1},
        {},
        {"is_causal": True, "tokens_per_step": 3, "key_bias": bias_of(2, 2, 7)},
    ),
}


def build(case: str, dtype: torch.dtype = torch.float64):
    shape, feature_options, options = CASES[case]
    generator = torch.Generator().manual_seed(7)
    features = draw_features(16, 4, **feature_options, generator=generator, dtype=torch.float64)
    return qkv(**shape, dtype=dtype), features, options


def leaves_of(inputs, features, options) -> dict[str, torch.Tensor]:
    """Return all that a case can be differentiated in, by name."""
    named = dict(zip(("query", "key", "value", "projection", "log_weight"), (*inputs, *features[:2]), strict=True))
    named["key_bias"] = options.get("key_bias")
    return {name: x.requires_grad_() for name, x in named.items() if x is not None}


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_textbook_quotient(case):
    inputs, features, options = build(case)
    leaves = leaves_of(inputs, features, options)
    output = favor_attention(*inputs, features, **options)
    expected = textbook_attention(*inputs, features, **options)
    assert output.shape == expected.shape
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    gradients = (torch.autograd.grad(x, list(leaves.values()), upstream) for x in (output, expected))
    for name, got, want in zip(leaves, *gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize(
    "case",
    [
        *("per-head-log-weight", "padded", "elu", "per-head-biased-grouped-padded"),
        *("causal-padded", "step-causal-grouped-padded", "step-causal-grouped-biased"),
    ],
)
def test_small_blocks_change_nothing(case, monkeypatch):
    inputs, features, options = build(case)
    whole = favor_attention(*inputs, features, **options)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(blocks, "MIN_TOKENS", 2)
    leaves = list(leaves_of(inputs, features, options).values())
    blocked = favor_attention(*inputs, features, **options)
    torch.testing.assert_close(blocked, whole, rtol=0, atol=1e-12)
    upstream = torch.randn_like(whole)
    expected = torch.autograd.grad(textbook_attention(*inputs, features, **options), leaves, upstream)
    for got, want in zip(torch.autograd.grad(blocked, leaves, upstream), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "case",
    [
        *("log-weight", "padded", "relu", "causal-log-weight", "step-causal-grouped-padded"),
        *("per-head-biased-grouped-padded", "step-causal-grouped-biased", "causal-relu-biased"),
    ],
)
def test_gradcheck_and_gradgradcheck_hold(case):
    shape, feature_options, options = CASES[case]
    inputs = qkv(**{**shape, "t": 4, "d": 2, "s": 4})
    features = draw_features(4, 2, **feature_options, dtype=torch.float64)
    if "key_padding_mask" in options:
        options = {**options, "key_padding_mask": padding(2, 4)}
    if "key_bias" in options:
        options = {**options, "key_bias": options["key_bias"][..., :4].detach().clone()}
    leaves = leaves_of(inputs, features, options)

    def attention(*tensors):
        found = dict(zip(leaves, tensors, strict=True))
        drawn = RandomFeatures(found["projection"], found.get("log_weight"))
        changed = {name: found.get(name, x) for name, x in options.items()}
        return favor_attention(*tensors[:3], drawn, **changed)

    assert torch.autograd.gradcheck(attention, list(leaves.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(attention, list(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("d", [1, 16, 20, 48, 96, 256])
@pytest.mark.parametrize("e", [1, 5])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_head_dims_from_1_to_256_agree_with_the_textbook(d, e, is_causal):
    inputs = qkv(b=1, t=5, d=d, e=e)
    features = draw_features(2 * d, d, dtype=torch.float64)
    output = favor_attention(*inputs, features, is_causal=is_causal)
    torch.testing.assert_close(output, textbook_attention(*inputs, features, is_causal=is_causal), rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("t", "s"), [(0, 0), (0, 3), (3, 0), (1, 1), (1, 4), (4, 1)])
def test_lengths_0_and_1_are_legal(t, s, is_causal):
    inputs = [x.requires_grad_() for x in qkv(t=t, s=s)]
    features = draw_features(8, 4, dtype=torch.float64)
    output = favor_attention(*inputs, features, is_causal=is_causal)
    expected = textbook_attention(*inputs, features, is_causal=is_causal)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    output.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_an_empty_batch_gives_an_empty_output(is_causal):
    output = favor_attention(*qkv(b=0), draw_features(8, 4), is_causal=is_causal)
    assert output.shape == (0, 2, 7, 4)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_single_feature_gives_the_weights_of_the_keys_alone(is_causal):
    """With m = 1 the query cancels: o is the average of v weighted by exp(w.k - |k|^2 / 2)."""
    q, k, v = qkv(b=1)
    features = draw_features(1, 4, kind="iid", dtype=torch.float64)
    same = [favor_attention(x, k, v, features, is_causal=is_causal) for x in (q, -3 * q)]
    torch.testing.assert_close(*same, rtol=0, atol=1e-14)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_what_stands_under_padding_is_never_read(garbage, is_causal):
    q, k, v = qkv(t=70, dtype=torch.float32)
    mask = padding(2, 70)
    features = draw_features(16, 4)
    clean = [x.clone().requires_grad_() for x in (q, k, v)]
    dirty = [x.masked_fill(mask[:, None, :, None], garbage).requires_grad_() for x in (k, v)]
    dirty = [q.clone().requires_grad_(), *dirty]
    biased = [x.detach().clone().requires_grad_() for x in dirty]
    bias = torch.zeros(2, 70).masked_fill(mask, -torch.inf)
    lowest = bias.clamp(min=torch.finfo(torch.float32).min)
    hiding = ((clean, {"key_padding_mask": mask}), (dirty, {"key_padding_mask": mask}), (biased, {"key_bias": bias}))
    outputs = [favor_attention(*x, features, is_causal=is_causal, **hidden) for x, hidden in hiding]
    outputs.append(favor_attention(*biased, features, is_causal=is_causal, key_bias=lowest))
    assert all(torch.equal(outputs[0], x) for x in outputs[1:])
    for output in outputs[:3]:
        output.square().sum().backward()
    for one, *others in zip(clean, dirty, biased, strict=True):
        assert all(torch.equal(one.grad, other.grad) for other in others)
    assert not dirty[1].grad[0, :, 35:].any()
    assert not dirty[2].grad[0, :, 35:].any()


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_query_that_sees_no_key_gets_zeros_and_zero_gradients(is_causal):
    inputs = [x.requires_grad_() for x in qkv(dtype=torch.float32)]
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0] = True
    mask[1, :2] = True
    projection = draw_features(8, 4).projection.requires_grad_()
    output = favor_attention(*inputs, projection, is_causal=is_causal, key_padding_mask=mask)
    output.backward(torch.randn_like(output))
    blind = ~visible_pairs(7, 7, is_causal, 1, mask).any(-1).expand(2, 2, 7)
    assert not output[blind].any()
    assert not inputs[0].grad[blind].any()
    assert all(not x.grad[0].any() and x.grad.isfinite().all() for x in inputs)
    assert projection.grad is not None
    assert projection.grad.isfinite().all()


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_adversarial_inputs_stay_within_the_error_budget(case):
    inputs = ADVERSARIAL[case]()
    result = differentiate(lambda q, k, v: favor_attention(q, k, v, PROJECTION), inputs, torch.float32)
    plain = definition_gradients(inputs, torch.float32, False, 1)
    exact = definition_gradients(inputs, torch.float64, False, 1)
    assert_within_budget(result, plain, exact, natural_scales(inputs))


@pytest.mark.parametrize(("d", "norm"), [(16, 2e3), (256, 30.0), (256, 1e3), (256, 1e5)])
def test_equal_keys_of_any_norm_share_the_gradient_equally(d, norm):
    """The rounding of L = logsumexp e is not small beside exp(e - L): it made d_value wrong by 1e-4 to NaN once."""
    q, k, v = (x.requires_grad_() for x in qkv(b=1, h=1, t=60, d=d, dtype=torch.float32))
    k = norm * k[:, :, :1].detach().expand(1, 1, 60, d)
    favor_attention(q, k, v, draw_features(2 * d, d)).sum().backward()
    torch.testing.assert_close(v.grad, torch.ones_like(v.grad), rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_the_output_is_no_view_and_merges_its_heads_without_a_copy(is_causal):
    """A view could not be changed in place while it has a gradient."""
    output = favor_attention(*(x.requires_grad_() for x in qkv(t=9)), FEATURES_4, is_causal=is_causal)
    assert is_causal or output._base is None
    assert output.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_feature_of_log_weight_minus_infinity_is_no_feature(is_causal):
    inputs = [x.requires_grad_() for x in qkv(t=70)]
    features = draw_features(8, 4, dtype=torch.float64)
    log_weight = torch.zeros(8, dtype=torch.float64).index_fill(0, torch.tensor([3]), -torch.inf).requires_grad_()
    output = favor_attention(*inputs, RandomFeatures(features.projection, log_weight), is_causal=is_causal)
    without = favor_attention(*inputs, features.projection[[0, 1, 2, 4, 5, 6, 7]], is_causal=is_causal)
    torch.testing.assert_close(output, without, rtol=0, atol=1e-12)
    output.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (*inputs, log_weight))
    assert log_weight.grad[3] == 0


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_bias_of_log_2_counts_a_key_twice_and_a_common_bias_cancels(is_causal):
    q, k, v = qkv(t=70)
    steps = {"is_causal": True, "tokens_per_step": 2} if is_causal else {}
    bias = torch.zeros(2, 70, dtype=torch.float64).index_fill(1, torch.tensor([10, 33]), math.log(2))
    twice = torch.arange(70).repeat_interleave(2)
    kept = (torch.arange(140) % 2 == 0) | torch.isin(twice, torch.tensor([10, 33]))
    once = torch.full((140,), False).masked_fill(~kept, True).expand(2, -1)
    repeated = (x.repeat_interleave(2, 2) for x in (q, k, v))
    doubled = favor_attention(*repeated, FEATURES_4, key_padding_mask=once, **steps)[:, :, ::2]
    output = favor_attention(q, k, v, FEATURES_4, key_bias=bias, is_causal=is_causal)
    torch.testing.assert_close(output, doubled, rtol=0, atol=1e-13)
    moved = favor_attention(q, k, v, FEATURES_4, key_bias=bias + 30.0, is_causal=is_causal)
    torch.testing.assert_close(moved, output, rtol=0, atol=1e-12)


def test_permuting_the_keys_changes_nothing_and_constant_values_are_reproduced():
    q, k, v = qkv(t=300, dtype=torch.float32)
    features = draw_features(16, 4)
    order = torch.randperm(300)
    permuted = favor_attention(q, k[:, :, order], v[:, :, order], features)
    torch.testing.assert_close(permuted, favor_attention(q, k, v, features), rtol=0, atol=2e-6)
    constant = favor_attention(q, k, torch.full_like(v, 3.0), features)
    torch.testing.assert_close(constant, torch.full_like(v, 3.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_outputs_stay_within_the_range_of_the_values(is_causal):
    q, k, v = qkv(t=300, dtype=torch.float32)
    output = favor_attention(10 * q, 10 * k, v, draw_features(16, 4), is_causal=is_causal)
    assert output.abs().max() <= v.abs().max() * (1 + 1e-6)


def test_softmax_error_is_the_distance_to_softmax_attention():
    q, k, v = qkv(t=6)
    features = draw_features(64, 4, dtype=torch.float64)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    expected = (favor_attention(q, k, v, features) - exact).norm() / exact.norm()
    assert softmax_error(q, k, v, features) == pytest.approx(float(expected), rel=1e-9)
    assert softmax_error(0.1 * q, 0.1 * k, v, features) < 1e-3


def test_softmax_error_applies_options_to_both_sides():
    q, k, v = qkv(t=6, query_heads=4)
    features = draw_features(64, 4, dtype=torch.float64)
    mask = padding(2, 6)
    k = k.masked_fill(mask[:, None, :, None], float("nan"))
    v = v.masked_fill(mask[:, None, :, None], float("nan"))
    options = {"is_causal": True, "tokens_per_step": 2, "key_padding_mask": mask, "scale": 1e-4}
    options["key_bias"] = bias_of(2, 2, 6)
    assert softmax_error(q, k, v, features, **options) < 1e-3


MIXED = {
    "full": lambda q, k, v, f: favor_attention(q, k, v, f),
    "causal": lambda q, k, v, f: favor_attention(q, k, v, f, is_causal=True),
    "stream": lambda q, k, v, f: stream_attention(q, k, v, None, f).output,
    "summarize and attend": lambda q, k, v, f: attend(q, summarize(k, v, f), f),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MIXED)
def test_under_autocast_rotary_queries_and_keys_may_be_wider_than_values(name, dtype):
    q, k = torch.randn(2, 1, 2, 5, 8)
    v, features = torch.randn(1, 2, 5, 8).to(dtype), draw_features(16, 8)
    with torch.autocast("cpu", dtype):
        found = MIXED[name](q, k, v, features)
        assert found.dtype == torch.nn.functional.scaled_dot_product_attention(q, k, v).dtype == dtype
    assert torch.equal(found, MIXED[name](q.to(dtype), k.to(dtype), v, features))
    with pytest.raises(ValueError, match="value must have key's dtype"):
        MIXED[name](q, k, v, features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["hyperbolic", "favor++"])
def test_features_in_half_are_widened(kind, dtype):
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    features = draw_features(16, 8, kind=kind)
    halved = RandomFeatures(*(x if x is None else x.to(dtype) for x in features[:2]))
    widened = RandomFeatures(*(x if x is None else x.float() for x in halved[:2]))
    for call in MIXED.values():
        assert torch.equal(call(q, k, v, halved), call(q, k, v, widened))
    halved = halved._replace(projection=halved.projection.requires_grad_())
    favor_attention(q, k, v, halved).sum().backward()
    assert halved.projection.grad.dtype == dtype
    assert halved.projection.grad.any()
    with pytest.raises(ValueError, match="the projection must be floating point"):
        favor_attention(q, k, v, features.projection.int())


def test_a_default_dtype_of_half_leaves_features_wide():
    torch.set_default_dtype(torch.bfloat16)
    try:
        features = draw_features(8, 4)
        q = torch.randn(1, 2, 5, 4)
        assert favor_attention(q, q, q, features).dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert features.projection.dtype == torch.float32
