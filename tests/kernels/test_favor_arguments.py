"""What the public FAVOR functions refuse, and what the message says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from favor_textbook import qkv

from favorcast.kernels import (
    FavorAttention,
    FavorState,
    RandomFeatures,
    attend,
    draw_features,
    favor_attention,
    summarize,
)

FEATURES = draw_features(16, 4, generator=torch.Generator().manual_seed(1))


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


BAD_INPUTS = {
    "rank of query": ({"query": ones(2, 7, 4)}, r"query must be \(batch, heads, length, dim\)"),
    "rank of key": ({"key": ones(2, 7, 4), "value": ones(2, 7, 4)}, r"key must be \(batch, heads, length, dim\)"),
    "integer dtype": (
        {"key": ones(2, 2, 7, 4).long(), "value": ones(2, 2, 7, 4).long()},
        "key must be bfloat16, float16, float32 or float64, got torch.int64",
    ),
    "integer query": ({"query": ones(2, 2, 7, 4).int()}, "query must be bfloat16"),
    "complex query": ({"query": ones(2, 2, 7, 4, dtype=torch.complex64)}, "query must be bfloat16"),
    "head dim of key": ({"key": ones(2, 2, 7, 5)}, r"key must have query's head dim: expected \[2, 2, 7, 4\]"),
    "length of value": ({"value": ones(2, 2, 6, 4)}, r"value must match key: expected \[2, 2, 7, \*\]"),
    "dtype of value": ({"value": ones(2, 2, 7, 4).half()}, "value must have key's dtype"),
    "value dim 0": ({"value": ones(2, 2, 7, 0)}, "value must have a dim of at least 1"),
    "query heads": ({"query": ones(2, 3, 7, 4)}, "got 3 query heads and 2 key heads"),
    "no key heads": (
        {"query": ones(2, 0, 7, 4), "key": ones(2, 0, 7, 4), "value": ones(2, 0, 7, 4)},
        "key must have at least one head",
    ),
    "no query heads": ({"query": ones(2, 0, 7, 4)}, "got 0 query heads and 2 key heads"),
    "device of key": (
        {"key": ones(2, 2, 7, 4).to("meta"), "value": ones(2, 2, 7, 4).to("meta")},
        "keys or state must be on the device of the tensors: expected cpu, got meta",
    ),
    "dtype of log_weight": (
        {"features": RandomFeatures(FEATURES.projection, torch.zeros(len(FEATURES.projection), dtype=torch.int64))},
        "log_weight must be floating point, float32 or float64 at best, got torch.int64",
    ),
    "device of log_weight": (
        {"features": RandomFeatures(FEATURES.projection, torch.zeros(len(FEATURES.projection), device="meta"))},
        "log_weight must be on the device of the projection",
    ),
    "batch": ({"query": ones(3, 2, 7, 4)}, "same batch size: got 3 and 2"),
    "mask dtype": ({"key_padding_mask": ones(2, 7)}, r"bool tensor \[2, 7\], True = ignore"),
    "mask shape": ({"key_padding_mask": ones(2, 6).bool()}, r"bool tensor \[2, 7\], True = ignore"),
    "bias shape": ({"key_bias": ones(2, 7, 1)}, r"key_bias must be a floating-point tensor \[2, 7\] or \[2, 2, 7\]"),
    "bias dtype": ({"key_bias": ones(2, 7).bool()}, "got torch.bool .* can be a key_padding_mask"),
    "bias list": ({"key_bias": [[0.0]]}, "key_bias must be a torch.Tensor, got list"),
    "device of bias": ({"key_bias": ones(2, 7).to("meta")}, "key_bias must be on the device of key"),
    "scale 0": ({"scale": 0.0}, "scale must be positive and finite"),
    "scale nan": ({"scale": float("nan")}, "scale must be positive and finite"),
    "scale no number": ({"scale": "0.1"}, "scale must be positive and finite, got '0.1'"),
    "scale inf": ({"scale": float("inf")}, "scale must be positive and finite"),
    "step 0": ({"tokens_per_step": 0, "is_causal": True}, "whole number of at least 1, got 0"),
    "step 1.5": ({"tokens_per_step": 1.5, "is_causal": True}, "whole number of at least 1, got 1.5"),
    "steps without causality": ({"tokens_per_step": 2}, "pass is_causal=True as well"),
    "feature map": ({"feature_map": "softmax"}, "unknown feature_map: expected one of exponential, relu, elu"),
    "impl": ({"impl": "cuda"}, "unknown impl"),
    "triton in float64": (
        {"impl": "triton", **{name: ones(2, 2, 7, 4, dtype=torch.float64) for name in ("query", "key", "value")}},
        "the kernels take bfloat16, float16 and float32, got float64",
    ),
    "triton with a wide value": ({"impl": "triton", "value": ones(2, 2, 7, 257)}, "dims up to 256, got 257"),
    "head dim of features": ({"features": draw_features(16, 8)}, r"draw_features\(num_features, 4\) makes one"),
    "heads of features": ({"features": draw_features(16, 4, num_heads=3)}, "expected 2, got 3"),
    "rank of features": ({"features": ones(1, 2, 16, 4)}, r"features must have a projection \(num_features, 4\)"),
    "no features": ({"features": ones(0, 4)}, "features must have a projection"),
    "integer features": ({"features": FEATURES.projection.int()}, "the projection must be floating point"),
    "log weight": ({"features": RandomFeatures(FEATURES.projection, ones(15))}, r"projection's \(16,\), got \(15,\)"),
    "device of features": ({"features": FEATURES.projection.to("meta")}, "must be on the device"),
    "numpy query": ({"query": np.ones((2, 2, 7, 4), np.float32)}, "must be a torch.Tensor, got ndarray"),
    "no key": ({"key": None}, "keys must be a torch.Tensor, got NoneType"),
    "value list": ({"value": [1.0]}, "value must be a torch.Tensor, got list"),
    "mask list": ({"key_padding_mask": [[True]]}, "key_padding_mask must be a torch.Tensor, got list"),
    "four features": (
        {"features": (*FEATURES, 1)},
        "features must be RandomFeatures or a projection tensor, got tuple",
    ),
    "projection list": ({"features": ([1.0],)}, "the projection must be a torch.Tensor, got list"),
    "device of mask": ({"key_padding_mask": ones(2, 7).bool().to("meta")}, "must be on the device"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_what_does_not_fit_is_refused_with_the_expected_and_the_given(case):
    changes, message = BAD_INPUTS[case]
    arguments = dict(zip(("query", "key", "value"), qkv(dtype=torch.float32), strict=True), features=FEATURES)
    with pytest.raises(ValueError, match=message):
        favor_attention(**{**arguments, **changes})


def test_meta_tensors_give_shapes():
    query, key, value = (x.to("meta") for x in qkv(t=5, s=7, e=3, dtype=torch.float32))
    output = favor_attention(query, key, value, RandomFeatures(FEATURES.projection.to("meta")))
    assert output.is_meta
    assert output.shape == (2, 2, 5, 3)
    layer = FavorAttention(16, 2, batch_first=True, device="meta")
    x = torch.empty(2, 5, 16, device="meta")
    assert layer(x, x, x)[0].shape == x.shape


@pytest.mark.parametrize("impl", ["triton", "triton-ieee"])
def test_an_explicit_triton_is_refused_on_the_cpu(monkeypatch, impl):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=f"impl='{impl}' cannot be honoured: the kernels run on CUDA tensors, got cpu"):
        favor_attention(*qkv(dtype=torch.float32), FEATURES, impl=impl)


def test_an_explicit_reference_is_honoured():
    inputs = qkv(dtype=torch.float32)
    assert torch.equal(favor_attention(*inputs, FEATURES, impl="reference"), favor_attention(*inputs, FEATURES))


def test_summarize_and_attend_check_their_own_arguments():
    q, k, v = qkv(dtype=torch.float32)
    state = summarize(k, v, FEATURES)
    with pytest.raises(ValueError, match="value must match key"):
        summarize(k, v[:, :, :3], FEATURES)
    with pytest.raises(ValueError, match="features must have a projection"):
        summarize(k[..., :3], v, FEATURES)
    with pytest.raises(ValueError, match="same batch size: got 1 and 2"):
        attend(q[:1], state, FEATURES)
    with pytest.raises(ValueError, match="attend with the features the state was summarized with"):
        attend(q, state, draw_features(8, 4))
    with pytest.raises(ValueError, match="the state's value must be"):
        attend(q, FavorState(state.log_normalizer, state.value[:, :1]), FEATURES)
    with pytest.raises(ValueError, match="a state must be float32 or float64 throughout"):
        attend(q, FavorState(state.log_normalizer, state.value.double()), FEATURES)
    with pytest.raises(ValueError, match="value must be on the device of its log_normalizer: expected cpu, got meta"):
        attend(q, FavorState(state.log_normalizer, state.value.to("meta")), FEATURES)
    with pytest.raises(ValueError, match="features must have a projection"):
        attend(q[..., :3], state, FEATURES)
