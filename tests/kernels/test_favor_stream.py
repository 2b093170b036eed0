"""Causal attention chunk by chunk: splitting, resuming and decoding equal one pass, forward and every gradient."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from favor_textbook import bias_of, qkv, textbook_weights
from kernel_runs import DEVICE, RUNS_KERNELS
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from favorcast.kernels import (
    FavorState,
    RandomFeatures,
    attend,
    draw_features,
    favor_attention,
    merge,
    stream_attention,
    summarize,
)

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

IMPLS = [
    pytest.param("reference", torch.float64, 1e-11, id="reference"),
    pytest.param("triton", torch.float32, 3e-5, marks=RUNS_KERNELS, id="triton"),
]
EVERY_IMPL = pytest.mark.parametrize(("impl", "dtype", "bound"), IMPLS)


def drawn(num_features: int, head_dim: int, dtype: torch.dtype, **options) -> RandomFeatures:
    generator = torch.Generator().manual_seed(1)
    features = draw_features(num_features, head_dim, dtype=dtype, generator=generator, **options)
    return RandomFeatures(*(None if x is None else x.to(DEVICE) for x in features[:2]), features.paired)


def leaves(dtype: torch.dtype, **shape) -> list[Tensor]:
    return [x.to(DEVICE).requires_grad_() for x in qkv(**shape, dtype=dtype)]


def streamed(inputs: list[Tensor], cuts: list[int], features: RandomFeatures, **options) -> tuple[Tensor, FavorState]:
    """Run the chunks between the cuts, handing the state on."""
    keyed = {name: options.pop(name) for name in ("key_padding_mask", "key_bias") if options.get(name) is not None}
    state, outputs = None, []
    for start, stop in pairwise(cuts):
        part = [x[:, :, start:stop] for x in inputs]
        own = {name: x[..., start:stop] for name, x in keyed.items()}
        output, state = stream_attention(*part, state, features, **own, **options)
        outputs.append(output)
    return torch.cat(outputs, 2), state


def assert_equal_with_gradients(one: list[Tensor], other: list[Tensor], inputs: list[Tensor], bound: float) -> None:
    """Compare results and the gradients of all inputs under one random upstream gradient."""
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(x.shape, generator=generator).to(x) for x in one]
    results = [[*x, *torch.autograd.grad(x, inputs, upstream)] for x in (one, other)]
    for index, (got, want) in enumerate(zip(*results, strict=True)):
        assert got.isfinite().all()
        got, want = got.detach(), want.detach()
        size = max(float(want.norm()), 0.01 * want.numel() ** 0.5)
        assert float((got - want).norm()) <= bound * size, f"result {index}"


@EVERY_IMPL
@pytest.mark.parametrize(
    ("length", "tokens_per_step", "cuts"),
    [
        (150, 1, [0, 1, 2, 65, 150]),
        (150, 1, [0, 0, 149, 150]),
        (147, 7, [0, 7, 70, 147]),
        (147, 49, [0, 49, 147]),
        (420, 70, [0, 70, 420]),
        (300, 150, [0, 150, 300]),
    ],
)
@pytest.mark.parametrize("biased", [False, True], ids=["padded", "padded-biased"])
def test_chunks_equal_one_pass_with_all_gradients(impl, dtype, bound, length, tokens_per_step, cuts, biased):
    batch = 1 if impl == "triton" and DEVICE == "cpu" else 2  # the interpreter takes its time
    inputs = leaves(dtype, b=batch, t=length, d=8, e=5, query_heads=4)
    features = drawn(32, 8, dtype)
    mask = (torch.rand(batch, length, generator=torch.Generator().manual_seed(2)) < 0.3).to(DEVICE)
    weighing = {"key_padding_mask": mask, "impl": impl}
    if biased:
        weighing["key_bias"] = bias_of(batch, 2, length).to(DEVICE, dtype).requires_grad_()
    options = {"tokens_per_step": tokens_per_step, **weighing}
    output, state = streamed(inputs, cuts, features, **options)
    whole = favor_attention(*inputs, features, is_causal=True, **options)
    everything = summarize(*inputs[1:], features, **weighing)
    differentiated = [*inputs, *([weighing["key_bias"]] if biased else [])]
    assert_equal_with_gradients([output, *state], [whole, *everything], differentiated, bound)


def forgetting(inputs: list[Tensor], gates: Tensor, length: int, features: RandomFeatures, **options) -> Tensor:
    """Run chunks in which token j counts exp(sum of gates after j); what came before fades with each chunk."""
    state, outputs = None, []
    for start in range(0, gates.shape[-1], length):
        part = slice(start, start + length)
        decay = gates[..., part].cumsum(-1)
        output, state = stream_attention(*(x[:, :, part] for x in inputs), state, features, key_bias=-decay, **options)
        state = state.weighed(decay[..., -1])
        outputs.append(output)
    return torch.cat(outputs, 2)


@EVERY_IMPL
@pytest.mark.parametrize("length", [13, 40])
def test_forgetting_is_a_bias_of_minus_the_summed_gates(impl, dtype, bound, length):
    inputs = leaves(dtype, t=40, d=8, query_heads=4)
    gates = (bias_of(2, 2, 40, largest=0.5).to(DEVICE, dtype) - 0.5).requires_grad_()
    features = drawn(16, 8, dtype)
    decay = gates.double().cumsum(-1)
    weights = textbook_weights(
        *(x.double().cpu() for x in inputs[:2]),
        RandomFeatures(features.projection.double().cpu(), None),
        is_causal=True,
    ) * (decay.unsqueeze(-1) - decay.unsqueeze(-2)).exp().cpu().repeat_interleave(2, 1)
    exact = weights / weights.sum(-1, keepdim=True) @ inputs[2].double().cpu().repeat_interleave(2, 1)
    got = forgetting(inputs, gates, length, features, impl=impl)
    assert_equal_with_gradients([got.cpu().double()], [exact], [*inputs, gates], bound)


@pytest.mark.parametrize(
    "steps", [pytest.param(100_000, id="1e5"), pytest.param(1_000_000, id="1e6", marks=pytest.mark.slow)]
)
def test_a_stream_that_forgets_keeps_its_digits_over_many_steps(steps):
    """Held as one running sum, decay over 1e6 steps would be 5e4, which float32 holds to 0.004."""
    with torch.no_grad():
        inputs = [x.detach() for x in leaves(torch.float32, b=1, h=1, t=steps, d=4)]
        gates = (bias_of(1, 1, steps, largest=0.05) - 0.05).to(DEVICE)
        got = forgetting(inputs, gates.float(), 500, drawn(8, 4, torch.float32))
        exact = forgetting([x.double() for x in inputs], gates.float().double(), 500, drawn(8, 4, torch.float64))
    last = slice(steps - 5000, None)
    assert float((got[:, :, last].double() - exact[:, :, last]).norm() / exact[:, :, last].norm()) < 5e-6


@EVERY_IMPL
@pytest.mark.parametrize("tokens_per_step", [1, 6, 70])
def test_decoding_step_by_step_equals_the_parallel_form_at_every_position(impl, dtype, bound, tokens_per_step):
    steps = 20 if tokens_per_step < 70 else 4
    inputs = [x.detach() for x in leaves(dtype, t=steps * tokens_per_step, d=8, e=5, query_heads=4)]
    features = drawn(32, 8, dtype, kind="favor++")
    options = {"tokens_per_step": tokens_per_step, "impl": impl}
    cuts = list(range(0, steps * tokens_per_step + 1, tokens_per_step))
    output, state = streamed(inputs, cuts, features, **options)
    whole = favor_attention(*inputs, features, is_causal=True, **options)
    torch.testing.assert_close(output, whole, rtol=0, atol=10 * bound)
    everything = summarize(*inputs[1:], features, impl=impl)
    for got, want in zip(state, everything, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=10 * bound)


@EVERY_IMPL
def test_a_chunk_is_read_through_its_own_and_the_earlier_state(impl, dtype, bound):
    """A single step sees all of itself, so it is `attend` of the merged state."""
    inputs = leaves(dtype, t=30, d=8, e=5)
    features = drawn(16, 8, dtype)
    earlier = summarize(*(x.to(DEVICE) for x in qkv(t=40, d=8, e=5, dtype=dtype, seed=8)[1:]), features, impl=impl)
    earlier = FavorState(*(x.detach().requires_grad_() for x in earlier))
    output, state = stream_attention(*inputs, earlier, features, tokens_per_step=30, impl=impl)
    merged = merge(earlier, summarize(*inputs[1:], features, impl=impl))
    expected = attend(inputs[0], merged, features, impl=impl)
    assert_equal_with_gradients([output, *state], [expected, *merged], [*inputs, *earlier], 3 * bound)


@EVERY_IMPL
def test_an_empty_state_is_no_state(impl, dtype, bound):
    inputs = leaves(dtype, t=20, d=8)
    features = drawn(16, 8, dtype)
    empty = summarize(*(x[:, :, :0] for x in inputs[1:]), features, impl=impl)
    assert bool((empty.log_normalizer == -torch.inf).all())
    with_state = stream_attention(*inputs, empty, features, impl=impl)
    without = stream_attention(*inputs, None, features, impl=impl)
    assert_equal_with_gradients([with_state.output, *with_state.state], [without.output, *without.state], inputs, bound)


@EVERY_IMPL
@pytest.mark.parametrize("cut", [0, 1, 60])
def test_padding_of_a_whole_chunk_leaves_the_state_as_it_was(impl, dtype, bound, cut):
    inputs = leaves(dtype, t=60, d=8)
    features = drawn(16, 8, dtype)
    mask = torch.ones(2, 60, dtype=torch.bool, device=DEVICE)
    mask[:, :cut] = False
    output, state = stream_attention(*inputs, None, features, key_padding_mask=mask, impl=impl)
    expected = summarize(*(x[:, :, :cut] for x in inputs[1:]), features, impl=impl)
    for got, want in zip(state, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=100 * bound)
    assert output.isfinite().all()
    if cut == 0:
        assert not output.any()
        assert not any(x.any() for x in torch.autograd.grad(output.sum() + state.value.sum(), inputs))


@EVERY_IMPL
@pytest.mark.parametrize("tokens_per_step", [1, 20])
def test_a_nan_key_stays_visible_in_later_chunks(impl, dtype, bound, tokens_per_step):
    """A state that has seen a NaN is not one that has seen nothing."""
    q, k, v = (x.detach() for x in leaves(dtype, b=1, t=40, d=8))
    k[0, 0, 3, 0] = torch.nan
    features = drawn(16, 8, dtype)
    output, state = streamed([q, k, v], [0, 20, 40], features, tokens_per_step=tokens_per_step, impl=impl)
    assert output[0, 0, 20:].isnan().all()
    assert output[0, 1].isfinite().all()
    assert state.log_normalizer[0, 0].isnan().all()
    merged = merge(summarize(k[:, :, :20], v[:, :, :20], features, impl=impl), state)
    assert attend(q, merged, features, impl=impl)[0, 0].isnan().all()


@RUNS_KERNELS
@pytest.mark.parametrize("tokens_per_step", [1, 6])
def test_a_feature_without_weight_gives_no_nan_whatever_its_state(tokens_per_step):
    inputs = [x.detach() for x in leaves(torch.float32, t=12, d=8)]
    features = drawn(16, 8, torch.float32)
    state = summarize(*inputs[1:], features, impl="triton")
    log_weight = torch.zeros(16, device=DEVICE)
    log_weight[0] = -torch.inf
    weighted = RandomFeatures(features.projection, log_weight)
    output, after = stream_attention(*inputs, state, weighted, tokens_per_step=tokens_per_step, impl="triton")
    assert output.isfinite().all()
    assert after.value.isfinite().all()


def test_state_and_features_have_first_and_second_derivatives():
    features = drawn(6, 3, torch.float64, kind="favor++")
    inputs = leaves(torch.float64, b=1, h=2, t=4, d=3, e=2)
    state = [torch.randn(1, 2, 6, dtype=torch.float64), torch.randn(1, 2, 6, 2, dtype=torch.float64)]
    parameters = [features.projection, features.log_weight]
    tensors = [*inputs, *(x.clone().to(DEVICE).requires_grad_() for x in (*state, *parameters))]

    def stream(q, k, v, log_normalizer, value, projection, log_weight):
        options = {"tokens_per_step": 2, "impl": "reference"}
        features = RandomFeatures(projection, log_weight)
        output, after = stream_attention(q, k, v, FavorState(log_normalizer, value), features, **options)
        return output, *after

    assert gradcheck(stream, tensors)
    assert gradgradcheck(stream, tensors)


def test_a_state_used_alone_has_gradients():
    inputs = leaves(torch.float64, t=9)
    features = drawn(8, 4, torch.float64)
    _, state = stream_attention(*inputs, None, features)
    expected = summarize(*inputs[1:], features)
    got = torch.autograd.grad(state.value.sum() + state.log_normalizer.sum(), inputs[1:], retain_graph=True)
    want = torch.autograd.grad(expected.value.sum() + expected.log_normalizer.sum(), inputs[1:])
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    (alone,) = torch.autograd.grad(state.log_normalizer.sum(), inputs[2])
    assert not alone.any()


def test_a_chunk_that_does_not_fit_is_refused():
    q, k, v = qkv(t=12, dtype=torch.float32)
    features = draw_features(8, 4)
    state = summarize(k, v, features)
    with pytest.raises(ValueError, match="whole steps: expected a multiple of tokens_per_step = 5, got 12"):
        stream_attention(q, k, v, None, features, tokens_per_step=5)
    with pytest.raises(ValueError, match="same tokens: got 11 queries and 12 keys"):
        stream_attention(q[:, :, 1:], k, v, None, features)
    with pytest.raises(ValueError, match=r"must be \(batch, heads, 16\) for 16 features"):
        stream_attention(q, k, v, state, draw_features(16, 4))
    with pytest.raises(ValueError, match="same batch size: got 1 and 2"):
        stream_attention(q[:1], k[:1], v[:1], state, features)
    with pytest.raises(ValueError, match="2 key heads and value dim 3"):
        stream_attention(q, k, v[..., :3], state, features)
    with pytest.raises(ValueError, match="must be a FavorState, as summarize"):
        attend(q, features, state)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="whole number of at least 1, got nan"):
        stream_attention(q, k, v, None, features, tokens_per_step=float("nan"))
    with pytest.raises(ValueError, match="1 key heads"):
        stream_attention(q[:, :1], k[:, :1], v[:, :1], state, features)
