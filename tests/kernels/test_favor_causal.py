"""Causal and step-causal FAVOR attention: nothing invisible moves a bit, and anchors hold for every norm."""

from __future__ import annotations

import pytest
import torch
from adversarial_keys import (
    ADVERSARIAL,
    ON_LANDMARKS,
    PROJECTION,
    assert_within_budget,
    definition_gradients,
    differentiate,
    natural_scales,
)
from favor_textbook import qkv, textbook_attention
from kernel_runs import error
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from favorcast.kernels import draw_features, favor_attention
from favorcast.kernels.favor.reference.causal import (
    causal_backward_reference,
    causal_reference,
)
from favorcast.kernels.favor.types import CausalInputs, CausalUpstream, FeatureSpace

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

LENGTH, HEAD_DIM = 150, 16
CHANGES = {
    "replaced": lambda k: torch.randn(k.shape, generator=torch.Generator().manual_seed(5)),
    "zeroed": torch.zeros_like,
    "x50": lambda k: 50 * k,
    "x1e3": lambda k: 1e3 * k,
    "x1e6": lambda k: 1e6 * k,
    "x1e18": lambda k: 1e18 * k,
    "growing-100x": lambda k: k * torch.logspace(0, 2, k.shape[2]).unsqueeze(-1),
    "shrinking-to-0.01": lambda k: k * torch.logspace(0, -2, k.shape[2]).unsqueeze(-1),
    "on-landmarks": lambda k: ON_LANDMARKS.repeat(3, 1)[: k.shape[2]].expand_as(k),
}
STARTS = {
    "small": lambda k: k,
    "huge": lambda k: 50 * k,  # landmarks then raise every anchor by thousands
    "mixed": lambda k: k * (1.0 + 49.0 * (torch.arange(k.shape[2]) % 3 == 0)).unsqueeze(-1),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("tokens_per_step", "at"), [(1, 64), (1, 100), (7, 98), (49, 98), (65, 65)])
def test_invisible_keys_and_values_do_not_move_a_bit(start, change, tokens_per_step, at):
    """Token `at` starts a step: outputs and query gradients before it are equal to the last bit."""
    results = []
    for changed in (False, True):
        q, k, v = qkv(b=2, t=LENGTH, d=HEAD_DIM, dtype=torch.float32)
        k = STARTS[start](k)
        if changed:
            k[:, :, at:] = CHANGES[change](k[:, :, at:])
            v[:, :, at:] *= -1e6
        q.requires_grad_()
        output = favor_attention(q, k, v, PROJECTION, is_causal=True, tokens_per_step=tokens_per_step)
        (d_query,) = torch.autograd.grad(output[:, :, :at].square().sum(), q)
        results.append((output[:, :, :at], d_query[:, :, :at]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][0].isfinite().all()


@pytest.mark.parametrize("change", CHANGES)
def test_another_head_or_sample_does_not_move_a_bit(change):
    """A jump in one head splits the chunk for the whole block of heads; the others must not notice."""
    results = []
    for changed in (False, True):
        tensors = qkv(b=2, h=3, t=LENGTH, d=HEAD_DIM, dtype=torch.float32)
        if changed:
            tensors[1][0, 1, 10:90] = CHANGES[change](tensors[1][:1, 1:2, 10:90])[0, 0]
        leaves = [x.requires_grad_() for x in tensors]
        output = favor_attention(*leaves, PROJECTION, is_causal=True)
        others = [x.clone() for x in (output, *torch.autograd.grad(output.square().sum(), leaves))]
        for x in others:
            x[0, 1] = 0
        results.append(others)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("growth", [46.0, 1e3, -1e3])
@pytest.mark.parametrize("tokens_per_step", [1, 7, 65])
def test_weights_that_grow_or_fade_along_the_sequence_keep_their_digits(growth, tokens_per_step):
    """Float32 holds an exponent to half a unit in the last place of the bias beside it, and so a weight."""
    bias = torch.linspace(0, growth, LENGTH).expand(2, 2, -1)
    options = {"is_causal": True, "tokens_per_step": tokens_per_step}
    results = []
    for dtype in (torch.float32, torch.float64):
        tensors = [x.to(dtype).requires_grad_() for x in qkv(t=LENGTH, d=HEAD_DIM, dtype=torch.float32)]
        own = bias.to(dtype).requires_grad_()
        output = favor_attention(*tensors, PROJECTION.to(dtype), key_bias=own, **options)
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        results.append([output, *torch.autograd.grad(output, [*tensors, own], upstream)])
    assert all(error(got, want) < 2e-6 + 1e-7 * abs(growth) for got, want in zip(*results, strict=True))


@pytest.mark.parametrize("start", [0.0, 300.0])
@pytest.mark.parametrize("change", [500.0, -500.0, -torch.inf])
@pytest.mark.parametrize(("tokens_per_step", "at"), [(1, 64), (1, 100), (7, 98), (65, 65)])
def test_biases_of_invisible_keys_do_not_move_a_bit(start, change, tokens_per_step, at):
    results = []
    for changed in (False, True):
        q, k, v = (x.requires_grad_() for x in qkv(t=LENGTH, d=HEAD_DIM, dtype=torch.float32))
        bias = torch.linspace(0, start, LENGTH).repeat(2, 1)
        bias[:, at:] += change * changed if changed else 0.0
        options = {"is_causal": True, "tokens_per_step": tokens_per_step, "key_bias": bias.requires_grad_()}
        output = favor_attention(q, k, v, PROJECTION, **options)[:, :, :at]
        (d_query,) = torch.autograd.grad(output.square().sum(), q)
        results.append((output, d_query[:, :, :at]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_keys_of_the_own_step_are_seen():
    q, k, v = qkv(t=12, dtype=torch.float32)
    features = draw_features(16, 4)
    before = favor_attention(q, k, v, features, is_causal=True, tokens_per_step=4)
    v[:, :, 7] += 1
    after = favor_attention(q, k, v, features, is_causal=True, tokens_per_step=4)
    moved = (before != after).any(-1).all((0, 1))
    assert moved.tolist() == [False] * 4 + [True] * 8


@pytest.mark.parametrize("tokens_per_step", [1, 49], ids=["causal", "step-causal"])
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_adversarial_inputs_stay_within_the_error_budget(case, tokens_per_step):
    inputs = ADVERSARIAL[case]()
    options = {"is_causal": True, "tokens_per_step": tokens_per_step}
    result = differentiate(lambda q, k, v: favor_attention(q, k, v, PROJECTION, **options), inputs, torch.float32)
    plain = definition_gradients(inputs, torch.float32, **options)
    exact = definition_gradients(inputs, torch.float64, **options)
    assert_within_budget(result, plain, exact, natural_scales(inputs))


@pytest.mark.parametrize("tokens_per_step", [1, 3, 49, 64, 65, 200, 10**6])
def test_steps_of_any_size_cross_chunk_borders(tokens_per_step):
    inputs = [x.requires_grad_() for x in qkv(b=1, t=210, e=3, query_heads=4)]
    features = draw_features(16, 4, dtype=torch.float64)
    output = favor_attention(*inputs, features, is_causal=True, tokens_per_step=tokens_per_step)
    expected = textbook_attention(*inputs, features, is_causal=True, tokens_per_step=tokens_per_step)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad(output, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_a_step_as_long_as_the_sequence_is_full_attention():
    inputs, features = qkv(t=130), draw_features(16, 4, dtype=torch.float64)
    causal = favor_attention(*inputs, features, is_causal=True, tokens_per_step=130)
    torch.testing.assert_close(causal, favor_attention(*inputs, features), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens_per_step", [1, 7])
def test_truncating_the_sequence_changes_earlier_outputs_to_rounding_only(tokens_per_step):
    inputs, features = qkv(t=350, d=HEAD_DIM, dtype=torch.float32), PROJECTION
    options = {"is_causal": True, "tokens_per_step": tokens_per_step}
    whole = favor_attention(*inputs, features, **options)
    for length in (1, 63, 64, 65, 210):
        visible = -(-length // tokens_per_step) * tokens_per_step
        q, k, v = inputs
        part = favor_attention(q[:, :, :length], k[:, :, :visible], v[:, :, :visible], features, **options)
        torch.testing.assert_close(part, whole[:, :, :length], rtol=0, atol=2e-6)


def test_the_first_token_sees_itself_only():
    q, k, v = qkv(t=5, dtype=torch.float32)
    output = favor_attention(q, k, v, draw_features(16, 4), is_causal=True)
    torch.testing.assert_close(output[:, :, 0], v[:, :, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
def test_left_padding_is_as_if_the_sequence_started_later(is_causal):
    q, k, v = qkv(t=100)
    features = draw_features(16, 4, dtype=torch.float64)
    mask = torch.zeros(2, 100, dtype=torch.bool)
    mask[:, :70] = True
    padded = favor_attention(q, k, v, features, is_causal=is_causal, key_padding_mask=mask)[:, :, 70:]
    short = favor_attention(*(x[:, :, 70:] for x in (q, k, v)), features, is_causal=is_causal)
    torch.testing.assert_close(padded, short, rtol=0, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("tokens_per_step", [1, 1500], ids=["causal", "long-steps"])
def test_no_tensor_grows_with_the_square_of_the_length_or_of_a_step(tokens_per_step):
    length, m = 3000, 64
    q, k, v = qkv(b=1, h=1, t=length, d=8, dtype=torch.float32)
    space = FeatureSpace(draw_features(m, 8).projection, None, 8**-0.5, "exponential")
    with LargestTensor() as largest:
        inputs = CausalInputs(q, k, v, None, None, space, "reference", tokens_per_step)
        results = causal_reference(inputs)
        causal_backward_reference(CausalUpstream(v, None), inputs, results, True)
    assert largest.elements <= max(64, tokens_per_step) * m + length * (8 + 2)
