"""What only a CUDA device can show of the FAVOR kernels: tensor cores, bfloat16, graphs, compilation, size, races."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from cuda_inputs import features_of, random_inputs, relative, run
from torch import Tensor

from favorcast.kernels import RandomFeatures, favor_attention
from favorcast.kernels.favor.definition import attend_definition, summarize_definition
from favorcast.kernels.favor.types import FeatureSpace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("poisoned_allocations"),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Each of these is compiled on first use, which is most of the time a test takes.
PROBLEMS = [
    *((d, m, torch.bfloat16) for d in (16, 32, 64, 96, 128) for m in (64, 256)),
    (64, 512, torch.bfloat16),
    (64, 256, torch.float16),
    *((d, 256, torch.float32) for d in (16, 64, 128)),
]


def plain(features: RandomFeatures, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Return the definition in plain torch, all of it in one dtype."""
    space = FeatureSpace(features.projection.to(dtype), None, features.projection.shape[-1] ** -0.5, "exponential")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_definition(q, *summarize_definition(k, v, None, space), space)

    return attention


@pytest.mark.parametrize(("d", "m", "dtype"), PROBLEMS)
@pytest.mark.parametrize("t", [200, 1000])
def test_errors_are_at_most_twice_those_of_plain_torch_in_the_same_dtype(t, d, m, dtype):
    """Queries and keys of norm 1 after scaling: the range in which the features estimate softmax attention at all."""
    torch.manual_seed(0)
    inputs = random_inputs(2, 4, t, d, dtype, d**-0.25)
    features = features_of(m, d)
    exact = run(plain(features, torch.float64), inputs, torch.float64)
    kernel = run(lambda *x: favor_attention(*x, features, impl="triton"), inputs)
    same = run(plain(features, dtype), inputs)
    rounding = torch.finfo(dtype).eps
    for name, got, other, want in zip(("output", "d_query", "d_key", "d_value"), kernel, same, exact, strict=True):
        assert got.isfinite().all(), name
        allowed = 2 * relative(other, want) + rounding
        assert relative(got, want) <= allowed, f"{name}: {relative(got, want):.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize(
    ("d", "dtype"), [*((d, torch.bfloat16) for d in (16, 32, 64, 128)), *((64, x) for x in DTYPES[1:])]
)
@pytest.mark.parametrize("kind", ["hyperbolic", "orthogonal"])
@pytest.mark.parametrize("t", [150, 3000], ids=["short", "long"])
def test_twenty_runs_give_the_same_bits(t, kind, d, dtype):
    """Races and the miscompiles of chained products known on Hopper show as runs that differ."""
    torch.manual_seed(0)
    inputs = random_inputs(2, 8, t, d, dtype)
    features = features_of(256, d, kind=kind)
    first = run(lambda *x: favor_attention(*x, features, impl="triton"), inputs)
    for _ in range(19):
        again = run(lambda *x: favor_attention(*x, features, impl="triton"), inputs)
        assert all(torch.equal(x, y) for x, y in zip(again, first, strict=True))


@pytest.mark.parametrize("t", [33, 127, 129, 1023])
@pytest.mark.parametrize("d", [24, 64, 80, 256])
def test_every_tile_configuration_is_right_on_random_shapes(d, t):
    """Each product chain against float64; a stale register operand of an asynchronous product would show here."""
    torch.manual_seed(t)
    for m, dtype in ((256, torch.bfloat16), (100, torch.bfloat16), (100, torch.float32)):
        inputs = random_inputs(1, 3, t, d, dtype, d**-0.25)
        features = features_of(m, d, kind="orthogonal" if m == 100 else "hyperbolic")
        exact = run(plain(features, torch.float64), inputs, torch.float64)
        kernel = run(lambda *x, f=features: favor_attention(*x, f, impl="triton"), inputs)
        bound = 3e-2 if dtype == torch.bfloat16 else 2e-4
        assert all(relative(x, y) < bound for x, y in zip(kernel, exact, strict=True)), (m, dtype)


@pytest.mark.parametrize("t", [100, 2000], ids=["short", "long"])
def test_a_captured_graph_replays_with_new_inputs(t):
    features = features_of(256, 64)
    *tensors, upstream = random_inputs(2, 4, t, 64, torch.bfloat16)
    tensors = [x.detach().requires_grad_() for x in tensors]

    def step() -> list[Tensor]:
        output = favor_attention(*tensors, features, impl="triton")
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
    features = features_of(128, 32)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return favor_attention(q, k, v * 2, features)

    compiled = torch.compile(attention, fullgraph=True, dynamic=True)
    for t in (40, 300, 1200):
        inputs = random_inputs(2, 4, t, 32, torch.bfloat16)
        assert all(torch.equal(x, y) for x, y in zip(run(compiled, inputs), run(attention, inputs), strict=True))


def test_auto_runs_the_kernels_and_autocast_gives_bfloat16():
    features = features_of(256, 64)
    q, k, v, _ = random_inputs(2, 4, 500, 64, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        output = favor_attention(q, k, v, features)
    halves = (x.bfloat16() for x in (q, k, v))
    assert torch.equal(output, favor_attention(*halves, features, impl="triton"))


def test_float32_without_tensor_cores_is_as_exact_as_plain_torch():
    inputs = random_inputs(2, 4, 1000, 64, torch.float32, 64**-0.25)
    features = features_of(256, 64)
    exact = run(plain(features, torch.float64), inputs, torch.float64)
    kernel = run(lambda *x: favor_attention(*x, features, impl="triton-ieee"), inputs)
    same = run(plain(features, torch.float32), inputs)
    for got, other, want in zip(kernel, same, exact, strict=True):
        assert relative(got, want) <= 2 * relative(other, want) + 1e-7


def test_more_than_two_to_the_31_elements_are_addressed():
    t = 2**31 // 64 + 1000
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    features = features_of(64, 64)
    x = torch.zeros(1, 1, t, 64, dtype=torch.bfloat16, device="cuda")
    x[:, :, -300:].normal_()
    with torch.no_grad():
        output = favor_attention(x, x, x, features, impl="triton")
    tail = x[:, :, -300:].double()
    space = FeatureSpace(features.projection.double(), None, 64**-0.5, "exponential")
    zeros = torch.zeros(1, 1, 1, 64, dtype=torch.float64, device="cuda")
    log_normalizer, value = summarize_definition(
        torch.cat([zeros, tail], -2), torch.cat([zeros, tail], -2), None, space
    )
    # the other t - 300 keys are zero: they enter each landmark with weight exp(0) and value 0
    total = torch.logaddexp(summarize_definition(tail, tail, None, space)[0], torch.log(torch.tensor(t - 300.0)).cuda())
    value = value * (log_normalizer - total).exp().unsqueeze(-1)
    expected = attend_definition(tail, total, value, space)
    assert float((output[:, :, -300:].double() - expected).abs().max()) < 1e-2 * float(expected.abs().max()) + 1e-8


def test_training_memory_does_not_grow_with_tokens_times_features():
    features = features_of(256, 64)
    inputs = random_inputs(1, 8, 65536, 64, torch.bfloat16)
    run(lambda *x: favor_attention(*x, features), inputs)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(lambda *x: favor_attention(*x, features), inputs)
    extra = torch.cuda.max_memory_allocated() - before
    tensors = inputs[0].numel() * 2
    # inputs' copies as leaves, output, three gradients, and float32 states: 8 tensors of b h t d are ample
    assert extra < 10 * tensors, f"{extra / tensors:.1f} times a tensor; (b, h, s, m) alone would be 4 times in half"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_are_attended_there():
    features = features_of(64, 16)
    inputs = [x.to("cuda:1") for x in random_inputs(1, 2, 100, 16, torch.float32)[:3]]
    moved = RandomFeatures(features.projection.to("cuda:1"), None, True)
    output = favor_attention(*inputs, moved, impl="triton")
    expected = favor_attention(*(x.to("cuda:0") for x in inputs), features, impl="triton")
    assert torch.equal(output.to("cuda:0"), expected)


def test_the_kernels_are_compiled_not_interpreted():
    assert not importlib.import_module("favorcast.kernels.favor.triton.problem").INTERPRETED
