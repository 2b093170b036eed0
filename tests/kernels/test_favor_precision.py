"""The dtype policy of FAVOR attention: half in, float32 sums, the input's dtype out; and layouts and repeatability."""

from __future__ import annotations

import pytest
import torch
from favor_textbook import qkv

from favorcast.kernels import attend, draw_features, favor_attention, summarize

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

CAUSAL = pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
# relative Frobenius bounds of outputs and gradients: a rounding of the result, and one of o in the gradients' do . o
BOUNDS = {torch.bfloat16: (4e-3, 1.5e-2), torch.float16: (5e-4, 2e-3), torch.float32: (2e-5, 4e-5)}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm())


@CAUSAL
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_every_dtype_is_exact_on_its_own_rounded_inputs(dtype, is_causal):
    features = draw_features(64, 16)
    inputs = [x.requires_grad_() for x in qkv(t=300, d=16, dtype=dtype)]
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    output = favor_attention(*inputs, features, is_causal=is_causal)
    exact = favor_attention(*exact_inputs, features, is_causal=is_causal)
    upstream = torch.randn_like(exact).to(dtype)
    gradients = torch.autograd.grad(output, inputs, upstream)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, upstream.double())
    assert output.dtype == dtype
    assert error(output, exact) < BOUNDS[dtype][0]
    for got, want in zip(gradients, exact_gradients, strict=True):
        assert got.dtype == dtype
        assert error(got, want) < BOUNDS[dtype][1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_states_are_float32_for_half_inputs(dtype):
    _, k, v = qkv(dtype=dtype)
    state = summarize(k, v, draw_features(16, 4))
    assert state.log_normalizer.dtype == state.value.dtype == torch.float32


def test_output_has_the_dtype_of_the_query_when_keys_have_another():
    q, k, v = qkv(dtype=torch.float32)
    features = draw_features(16, 4)
    for is_causal in (False, True):
        assert favor_attention(q.bfloat16(), k, v, features, is_causal=is_causal).dtype == torch.bfloat16
    assert attend(q.half(), summarize(k, v, features), features).dtype == torch.float16


@CAUSAL
def test_long_constant_sequences_do_not_drift(is_causal):
    """20 000 equal keys: float32 sums one token at a time would be off by 1e-3, and t * s weights would need 1.6 GB."""
    length = 20_000
    k = torch.ones(1, 1, length, 4)
    output = favor_attention(k, k, torch.full((1, 1, length, 2), 0.1), draw_features(16, 4), is_causal=is_causal)
    torch.testing.assert_close(output, torch.full_like(output, 0.1), rtol=2e-5, atol=0)


@CAUSAL
def test_any_strides_give_the_same_result_and_gradients(is_causal):
    features = draw_features(16, 4)
    q, k, v = qkv(t=70, dtype=torch.float32)
    k, v = k[:1], v[:1]
    views = {
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "dim-major": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "every-second": lambda x: torch.stack([x, x + 1], -1)[..., 0],
        "flipped-twice": lambda x: x.flip(2).contiguous().flip(2),
    }
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = favor_attention(leaves[0], *(x.repeat(2, 1, 1, 1) for x in leaves[1:]), features, is_causal=is_causal)
    expected_gradients = torch.autograd.grad(expected.square().sum(), leaves)
    for name, view in views.items():
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        arguments = (view(leaves[0]), *(view(x).expand(2, -1, -1, -1) for x in leaves[1:]))
        output = favor_attention(*arguments, features, is_causal=is_causal)
        assert torch.equal(output, expected), name
        for got, want in zip(torch.autograd.grad(output.square().sum(), leaves), expected_gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@CAUSAL
def test_the_same_inputs_give_the_same_bits(is_causal):
    features = draw_features(16, 4)
    runs = []
    for _ in range(2):
        inputs = [x.requires_grad_() for x in qkv(t=200, dtype=torch.float32)]
        output = favor_attention(*inputs, features, is_causal=is_causal)
        runs.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@CAUSAL
def test_the_number_of_threads_changes_rounding_only(is_causal):
    features = draw_features(64, 16)
    inputs = qkv(t=300, d=16, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs.append(favor_attention(*inputs, features, is_causal=is_causal))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*outputs, rtol=0, atol=2e-6)


@CAUSAL
def test_a_projection_can_be_trained_alone_and_its_graph_walked_twice(is_causal):
    projection = draw_features(16, 4).projection.requires_grad_()
    output = favor_attention(*qkv(dtype=torch.float32), projection, is_causal=is_causal).square().sum()
    (first,) = torch.autograd.grad(output, projection, retain_graph=True)
    (second,) = torch.autograd.grad(output, projection)
    assert torch.equal(first, second)
    assert first.abs().max() > 0


@CAUSAL
def test_one_tensor_may_be_query_key_and_value(is_causal):
    features = draw_features(16, 4, dtype=torch.float64)
    x = qkv()[0].requires_grad_()
    copies = [x.detach().clone().requires_grad_() for _ in range(3)]
    (shared,) = torch.autograd.grad(favor_attention(x, x, x, features, is_causal=is_causal).square().sum(), x)
    separate = torch.autograd.grad(favor_attention(*copies, features, is_causal=is_causal).square().sum(), copies)
    torch.testing.assert_close(shared, sum(separate), rtol=1e-12, atol=1e-12)
