"""What only a CUDA device can show of the causal kernels: tensor cores, bfloat16, graphs, length, races."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cuda_inputs import features_of, random_inputs, relative, run
from torch import Tensor

from favorcast.kernels import RandomFeatures, favor_attention, stream_attention
from favorcast.kernels.favor.definition import causal_definition
from favorcast.kernels.favor.types import FeatureSpace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("poisoned_allocations"),
]

PROBLEMS = [
    *((d, m, torch.bfloat16) for d in (16, 32, 64, 128) for m in (64, 256)),
    (16, 100, torch.bfloat16),
    (64, 256, torch.float16),
    *((d, 128, torch.float32) for d in (16, 64, 128)),
]


def causal(features: RandomFeatures, tokens_per_step: int = 1, impl: str = "triton") -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return favor_attention(q, k, v, features, is_causal=True, tokens_per_step=tokens_per_step, impl=impl)

    return attention


def plain(features: RandomFeatures, dtype: torch.dtype, tokens_per_step: int) -> Callable[..., Tensor]:
    """Return the definition in plain torch, all of it in one dtype."""
    space = FeatureSpace(features.projection.to(dtype), None, features.projection.shape[-1] ** -0.5, "exponential")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_definition(q, k, v, None, None, space, tokens_per_step)

    return attention


@pytest.mark.parametrize(("d", "m", "dtype"), PROBLEMS)
@pytest.mark.parametrize("tokens_per_step", [1, 20, 49, 150])
def test_errors_are_at_most_twice_those_of_plain_torch_in_the_same_dtype(tokens_per_step, d, m, dtype):
    torch.manual_seed(0)
    inputs = random_inputs(1, 2, 400, d, dtype, d**-0.25)
    features = features_of(m, d)
    exact = run(plain(features, torch.float64, tokens_per_step), inputs, torch.float64)
    kernel = run(causal(features, tokens_per_step), inputs)
    same = run(plain(features, dtype, tokens_per_step), inputs)
    rounding = torch.finfo(dtype).eps
    for name, got, other, want in zip(("output", "d_query", "d_key", "d_value"), kernel, same, exact, strict=True):
        assert got.isfinite().all(), name
        allowed = 2 * relative(other, want) + rounding
        assert relative(got, want) <= allowed, f"{name}: {relative(got, want):.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize(("d", "m", "dtype"), PROBLEMS)
@pytest.mark.parametrize("tokens_per_step", [1, 49])
def test_twenty_runs_give_the_same_bits(tokens_per_step, d, m, dtype):
    """Each program reads what it stored itself: a missing barrier would show, as would miscompiled products."""
    torch.manual_seed(0)
    inputs = random_inputs(2, 8, 3000, d, dtype)
    attention = causal(features_of(m, d), tokens_per_step)
    first = run(attention, inputs)
    for _ in range(19):
        assert all(torch.equal(x, y) for x, y in zip(run(attention, inputs), first, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("tokens_per_step", "at"), [(1, 700), (49, 735), (150, 750)])
@pytest.mark.parametrize("factor", [0.01, 1.0, 50.0])
def test_invisible_keys_and_values_do_not_move_a_bit(factor, tokens_per_step, at, dtype):
    torch.manual_seed(0)
    features, results = features_of(256, 64), []
    q, k, v, _ = random_inputs(1, 4, 1500, 64, dtype)
    for changed in (False, True):
        if changed:
            k[:, :, at:] = factor * torch.randn_like(k[:, :, at:])
            v[:, :, at:] *= -100
        query = q.detach().requires_grad_()
        output = causal(features, tokens_per_step)(query, k, v)[:, :, :at]
        results.append([output, *torch.autograd.grad(output.float().square().sum(), query)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one[:, :, :at], other[:, :, :at])
        assert one.isfinite().all()


@pytest.mark.parametrize("scale", [0.3, 4.0, 30.0])
@pytest.mark.parametrize("ramp", [0.01, 1.0, 100.0], ids=["shrinking", "steady", "growing"])
def test_norms_of_any_size_and_trend_give_what_the_reference_gives(ramp, scale):
    torch.manual_seed(0)
    q, k, v, upstream = random_inputs(1, 2, 1000, 32, torch.float32)
    inputs = [
        q,
        k * scale * torch.logspace(0, torch.tensor(ramp).log10(), 1000, device="cuda").unsqueeze(-1),
        v,
        upstream,
    ]
    features = features_of(128, 32)
    kernel = run(causal(features, impl="triton-ieee"), inputs)
    wide = RandomFeatures(features.projection.double())
    exact = run(causal(wide, impl="reference"), inputs, torch.float64)
    for got, want in zip(kernel, exact, strict=True):
        assert got.isfinite().all()
        assert relative(got, want) < 5e-3


def test_a_hundred_thousand_tokens_do_not_drift():
    features, t = features_of(64, 16), 100_000
    ones = torch.ones(1, 2, t, 16, device="cuda")
    value = torch.randn(1, 2, t, 16, device="cuda")
    output = causal(features)(ones, ones, value)
    count = torch.arange(1, t + 1, device="cuda", dtype=torch.float64).unsqueeze(-1)
    assert float((output.double() - value.double().cumsum(2) / count).abs().max()) < 5e-5


def test_a_captured_graph_replays_with_new_inputs():
    *tensors, upstream = random_inputs(2, 4, 1000, 64, torch.bfloat16)
    tensors = [x.detach().requires_grad_() for x in tensors]
    attention = causal(features_of(256, 64))

    def step() -> list[Tensor]:
        output = attention(*tensors)
        return [output, *torch.autograd.grad(output, tensors, upstream)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in tensors:
            x.copy_(torch.randn_like(x))
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, step(), strict=True))


def test_inductor_compiles_one_graph_for_all_lengths():
    torch._dynamo.reset()
    attention = causal(features_of(128, 32), 7)
    compiled = torch.compile(attention, fullgraph=True, dynamic=True)
    for t in (42, 301, 1204):
        inputs = random_inputs(2, 4, t, 32, torch.bfloat16)
        assert all(torch.equal(x, y) for x, y in zip(run(compiled, inputs), run(attention, inputs), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decoding_from_a_prompt_equals_the_parallel_form(dtype):
    torch.manual_seed(0)
    q, k, v, _ = random_inputs(4, 8, 700, 64, dtype, 64**-0.25)
    features = features_of(256, 64)
    whole = causal(features)(q, k, v)
    output, state = stream_attention(*(x[:, :, :650] for x in (q, k, v)), None, features, impl="triton")
    outputs = [output]
    for i in range(650, 700):
        output, state = stream_attention(*(x[:, :, i : i + 1] for x in (q, k, v)), state, features, impl="triton")
        outputs.append(output)
    assert relative(torch.cat(outputs, 2), whole.double()) < (1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_training_memory_does_not_grow_with_tokens_times_features():
    attention = causal(features_of(256, 64))
    inputs = random_inputs(1, 8, 65536, 64, torch.bfloat16)
    run(attention, inputs)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(attention, inputs)
    extra = torch.cuda.max_memory_allocated() - before
    tensors = inputs[0].numel() * 2
    assert extra < 12 * tensors, f"{extra / tensors:.1f} times a tensor; (b, h, s, m) alone would be 4 times in half"
