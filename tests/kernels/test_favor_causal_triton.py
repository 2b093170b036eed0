"""The GPU kernels of causal and step-causal FAVOR attention against float64: on a device, or else in the interpreter.

Tiles are shrunk to 16 x 32, so that short sequences have many segments, feature tiles and splits of the walks.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from adversarial_keys import (
    ADVERSARIAL,
    ON_LANDMARKS,
    PROJECTION,
    Gradients,
    assert_within_budget,
    definition_gradients,
    differentiate,
    natural_scales,
)
from favor_textbook import bias_of, qkv
from kernel_runs import DEVICE, LAYOUTS, RUNS_KERNELS, assert_close, both
from torch import Tensor

from favorcast.kernels import RandomFeatures, draw_features, favor_attention, summarize
from favorcast.kernels.favor.feature_maps import FEATURE_MAPS
from favorcast.kernels.favor.types import CausalInputs, FeatureSpace

pytest.importorskip("triton", reason="triton is not installed")
favor_causal_triton = importlib.import_module("favorcast.kernels.favor.triton.causal")
favor_launch = importlib.import_module("favorcast.kernels.favor.triton.problem")
launch_table = importlib.import_module("favorcast.kernels.favor.triton.tuning")

pytestmark = [RUNS_KERNELS, pytest.mark.usefixtures("poisoned_allocations", "small_tiles")]

DRAWN = RandomFeatures(
    draw_features(64, 16, generator=torch.Generator().manual_seed(7)).projection.to(DEVICE), None, True
)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tabled = launch_table.launch_config
    monkeypatch.setattr(favor_launch, "launch_config", lambda *x: tabled(*x)._replace(tokens=16, features=32))
    monkeypatch.setattr(favor_causal_triton, "SHORTEST_SPLIT_SEGMENTS", 2)


def problem_of(inputs: tuple[Tensor, ...], tokens_per_step: int):
    """Return how a launch would cut these tokens."""
    space = FeatureSpace(DRAWN.projection, None, 0.25, "exponential", True)
    tensors = (x.to(DEVICE) for x in inputs)
    return favor_causal_triton.CausalProblem.of(CausalInputs(*tensors, None, None, space, "triton", tokens_per_step))


def splits_of(inputs: tuple[Tensor, ...], tokens_per_step: int) -> int:
    problem = problem_of(inputs, tokens_per_step)
    return problem.split(problem.queries.launch("prefix_states").tiles)[1]


SHAPES = {
    "causal": ({"b": 1, "h": 1, "t": 83, "d": 16}, 100, 1),
    "biased": ({"b": 1, "h": 1, "t": 83, "d": 16}, 100, 1),
    "biased-steps-of-3-gqa": ({"b": 1, "query_heads": 4, "t": 50, "d": 8, "e": 5}, 40, 3),
    "biased-steps-of-49": ({"b": 1, "t": 110, "d": 16, "e": 3}, 40, 49),
    "biased-one-step": ({"t": 30, "d": 16}, 64, 10**6),
    "biased-cross-fewer-keys": ({"t": 60, "s": 33, "d": 8}, 16, 4),
    "steps-of-3-gqa": ({"b": 1, "query_heads": 4, "t": 50, "d": 8, "e": 5}, 40, 3),
    "steps-of-16": ({"b": 1, "t": 70, "d": 20, "e": 24}, 40, 16),
    "steps-of-17": ({"t": 60, "d": 16}, 64, 17),
    "steps-of-49-gqa": ({"b": 1, "query_heads": 4, "t": 110, "d": 16, "e": 3}, 100, 49),
    "one-step": ({"t": 30, "d": 16}, 64, 10**6),
    "two-segments-of-one-head": ({"b": 1, "h": 1, "t": 64, "d": 16}, 32, 1),
    "cross-fewer-keys": ({"t": 60, "s": 33, "d": 8}, 16, 4),
    "cross-fewer-queries": ({"t": 21, "s": 60, "d": 8}, 16, 4),
    "d1-m2": ({"t": 20, "d": 1}, 2, 1),
    "wide-values": ({"b": 1, "h": 1, "t": 20, "d": 5, "e": 40}, 10, 1),
}


IN_HALF = ("steps-of-3-gqa", "biased-steps-of-3-gqa", "steps-of-17", "two-segments-of-one-head")
RUNS = [(case, dtype) for dtype in (torch.float32, torch.bfloat16) for case in SHAPES]
RUNS += [(case, torch.float16) for case in IN_HALF]


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=[f"{case}-{str(dtype)[6:]}" for case, dtype in RUNS])
def test_output_and_gradients_equal_the_float64_reference(case, dtype):
    shape, num_features, tokens_per_step = SHAPES[case]
    inputs = qkv(**shape, dtype=dtype)
    features = draw_features(num_features, inputs[0].shape[-1])
    options = {"is_causal": True, "tokens_per_step": tokens_per_step}
    if case.startswith("biased"):
        options["key_bias"] = bias_of(*inputs[1].shape[:3])
    assert_close(*both(inputs, features, **options), dtype)


@pytest.mark.parametrize("growth", [46.0, 400.0, -400.0])
@pytest.mark.parametrize("tokens_per_step", [1, 3, 20])
def test_weights_that_grow_or_fade_along_the_sequence_keep_their_digits(growth, tokens_per_step):
    """Float32 holds an exponent to half a unit in the last place of the bias beside it, and so a weight."""
    inputs = qkv(b=1, h=1, t=50, d=16, query_heads=2, dtype=torch.float32)
    options = {"is_causal": True, "tokens_per_step": tokens_per_step}
    bias = torch.linspace(0, growth, 50).expand(1, 1, -1)
    assert_close(*both(inputs, draw_features(64, 16), key_bias=bias, **options), torch.float32, 1 + abs(growth) / 50)


@pytest.mark.parametrize(
    ("length", "tokens_per_step", "expected"),
    [
        (83, 1, (3, 6, 16, True)),
        (83, 3, (3, 6, 15, True)),
        (83, 8, (3, 6, 16, True)),
        (83, 9, (4, 10, 9, False)),
        (83, 17, (1, 5, 17, False)),
        (83, 100, (1, 1, 83, False)),
    ],
)
def test_the_shapes_above_reach_every_schedule(length, tokens_per_step, expected):
    inputs = qkv(b=1, h=1, t=length, d=16)
    problem = problem_of(inputs, tokens_per_step)
    splits = splits_of(inputs, tokens_per_step)
    assert (splits, problem.segments, problem.segment_length, problem.within) == expected


FEATURES = {
    "unpaired": {"kind": "orthogonal"},
    "log-weight": {"kind": "favor++"},
    "per-head-log-weight": {"kind": "favor++", "num_heads": 2},
}


LEARNT = [("unpaired", "relu", 1), ("log-weight", "exponential", 1), ("per-head-log-weight", "elu", 1)]
LEARNT += [("unpaired", "elu", 20), ("per-head-log-weight", "exponential", 20), ("log-weight", "relu", 20)]


@pytest.mark.parametrize(("case", "feature_map", "tokens_per_step"), LEARNT)
@pytest.mark.parametrize("bias", [None, bias_of(2, 2, 36)], ids=["padded", "padded-biased"])
def test_learnt_features_of_every_kind_and_map_have_their_gradients(case, feature_map, tokens_per_step, bias):
    inputs = qkv(t=36, d=8, query_heads=4, dtype=torch.float32)
    drawn = draw_features(24, 8, **FEATURES[case], generator=torch.Generator().manual_seed(7))
    features = drawn._replace(projection=drawn.projection.requires_grad_())
    mask = torch.rand(2, 36, generator=torch.Generator().manual_seed(3)) < 0.3
    options = {"feature_map": feature_map, "key_padding_mask": mask, "key_bias": bias, "scale": 0.4}
    assert_close(*both(inputs, features, is_causal=True, tokens_per_step=tokens_per_step, **options), torch.float32, 2)


@pytest.mark.parametrize("feature_map", [name for name, one in FEATURE_MAPS.items() if one.slope is not None])
def test_paired_features_of_other_maps_equal_the_reference(feature_map):
    inputs = qkv(t=40, d=8, dtype=torch.float32)
    assert_close(*both(inputs, draw_features(32, 8), is_causal=True, feature_map=feature_map), torch.float32, 2)


CHANGES = {
    "replaced": lambda k: torch.randn(k.shape, generator=torch.Generator().manual_seed(5)).to(k),
    "x1e3": lambda k: 1e3 * k,
    "x1e18": lambda k: 1e18 * k,
    "shrinking-to-0.01": lambda k: k * torch.logspace(0, -2, k.shape[2]).to(k).unsqueeze(-1),
    "on-landmarks": lambda k: ON_LANDMARKS.repeat(3, 1)[: k.shape[2]].to(k).expand_as(k),
}


MOVES = [(change, start, 0.0) for change in CHANGES for start in (1.0, 50.0)]
MOVES += [("replaced", 1.0, 150.0), ("replaced", 1.0, -150.0), ("x1e3", 50.0, 150.0)]


@pytest.mark.parametrize(("change", "start", "growth"), MOVES)
@pytest.mark.parametrize(("tokens_per_step", "at"), [(1, 20), (5, 20), (20, 20)])
def test_invisible_keys_values_and_biases_do_not_move_a_bit(change, start, growth, tokens_per_step, at):
    """Token `at` starts a step: outputs and query gradients before it are equal to the last bit."""
    results = []
    for changed in (False, True):
        q, k, v = (x.to(DEVICE) for x in qkv(b=1, h=1, t=40, d=16, dtype=torch.float32))
        k = k * start
        if changed:
            k[:, :, at:] = CHANGES[change](k[:, :, at:])
            v[:, :, at:] *= -1e6
        q.requires_grad_()
        options = {"is_causal": True, "tokens_per_step": tokens_per_step, "impl": "triton"}
        if growth:  # of the weights of keys, and for the changed ones another
            bias = torch.linspace(0, growth, 40, device=DEVICE).repeat(1, 1)
            bias[:, at:] -= 2 * growth * changed
            options["key_bias"] = bias.requires_grad_()
        output = favor_attention(q, k, v, PROJECTION.to(DEVICE), **options)
        (d_query,) = torch.autograd.grad(output[:, :, :at].square().sum(), q)
        results.append((output[:, :, :at], d_query[:, :, :at]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][0].isfinite().all()


HARDEST = (
    "norms-x4",
    "keys-shrink-30x",
    "first-8-keys-x50",
    "far-keys-then-landmarks",
    "alternating-mean-6",
    "all-x1e9",
)
INPUTS = [(case, 1) for case in ADVERSARIAL] + [(case, step) for case in HARDEST for step in (7, 75)]


@pytest.mark.parametrize(("case", "tokens_per_step"), INPUTS)
def test_adversarial_inputs_stay_within_the_error_budget(case, tokens_per_step, monkeypatch):
    """As for full attention: weights move by eps times their exponent where products of another shape recompute it.

    In the interpreter even equal rows of one product differ by a rounding, so that outputs have the term as well.
    Exponents above 4000 allow no more than that: one key then takes all the weight.
    """
    monkeypatch.setattr(favor_launch, "launch_config", lambda *x: launch_table.LaunchConfig(64, 64, 4, 1))
    inputs = ADVERSARIAL[case]()
    tensors = [x.double() * 16**-0.25 for x in inputs[:2]]
    logit = float((tensors[0] @ PROJECTION.double().T).abs().max())
    largest = max(logit, min(4000.0, float(tensors[1].square().sum(-1).max()) / 2))
    options = {"is_causal": True, "tokens_per_step": tokens_per_step}
    features = PROJECTION.to(DEVICE)
    result = differentiate(
        lambda *x: favor_attention(*(y.to(DEVICE) for y in x), features, impl="triton-ieee", **options).cpu(),
        inputs,
        torch.float32,
    )
    plain = definition_gradients(inputs, torch.float32, **options)
    exact = definition_gradients(inputs, torch.float64, **options)
    moved = 1 + largest / 4
    assert_within_budget(result, plain, exact, Gradients(*(x * moved for x in natural_scales(inputs))))


@pytest.mark.parametrize("tokens_per_step", [1, 3, 20])
def test_padded_output_and_gradients_equal_the_float64_reference(tokens_per_step):
    inputs = qkv(t=50, d=16, query_heads=4, dtype=torch.float32)
    mask = torch.rand(2, 50, generator=torch.Generator().manual_seed(3)) < 0.5
    options = {"is_causal": True, "tokens_per_step": tokens_per_step, "key_padding_mask": mask}
    assert_close(*both(inputs, draw_features(32, 16), **options), torch.float32)


@pytest.mark.parametrize("tokens_per_step", [1, 20])
def test_padding_may_hold_anything_and_blind_queries_get_zeros(tokens_per_step):
    query, key, value = qkv(t=50, d=16, dtype=torch.float32)
    mask = torch.rand(2, 50, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[0, :30] = True

    def attend_to(key: Tensor, value: Tensor, **hiding: Tensor) -> list[Tensor]:
        tensors = [x.to(DEVICE).requires_grad_() for x in (query, key, value)]
        options = {"is_causal": True, "tokens_per_step": tokens_per_step, "impl": "triton"}
        output = favor_attention(*tensors, DRAWN, **{k: x.to(DEVICE) for k, x in hiding.items()}, **options)
        return [output, *torch.autograd.grad(output, tensors, torch.ones_like(output))]

    hidden = mask[:, None, :, None]
    clean = attend_to(key, value, key_padding_mask=mask)
    garbage = key.masked_fill(hidden, torch.nan), value.masked_fill(hidden, torch.inf)
    for hiding in ({"key_padding_mask": mask}, {"key_bias": torch.zeros(2, 50).masked_fill(mask, -torch.inf)}):
        assert all(torch.equal(x, y) for x, y in zip(attend_to(*garbage, **hiding), clean, strict=True))
    blind = 30 // tokens_per_step * tokens_per_step
    assert all(x.isfinite().all() for x in clean)
    assert not clean[0][0, :, :blind].any()
    assert not clean[1][0, :, :blind].any()


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("tokens_per_step", [1, 4])
def test_empty_and_single_lengths_are_legal(length, batch, tokens_per_step):
    inputs = qkv(b=batch, t=length, d=16, dtype=torch.float32)
    options = {"is_causal": True, "tokens_per_step": tokens_per_step}
    results = both(inputs, draw_features(32, 16), **options)
    assert_close(*results, torch.float32, factor=4)  # the gradients of one key are differences of equals


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_are_read_in_place_and_change_no_bit(layout):
    inputs = [x.to(DEVICE) for x in qkv(t=40, d=16, dtype=torch.float32)]
    arranged = [layout(x.cpu()).to(DEVICE) if DEVICE == "cpu" else layout(x) for x in inputs]
    results = []
    for tensors in (inputs, arranged):
        leaves = [x.detach().requires_grad_() for x in tensors]
        output = favor_attention(*leaves, DRAWN, is_causal=True, impl="triton")
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_number_of_splits_changes_only_the_rounding(monkeypatch):
    inputs = qkv(b=1, h=1, t=160, d=16, dtype=torch.float32)
    results = {}
    for processors, longest in ((1, 10**6), (64, 10**6), (1, 32)):
        monkeypatch.setattr(favor_causal_triton, "processors", lambda device, p=processors: p)
        monkeypatch.setattr(favor_causal_triton, "LONGEST_SPLIT", longest)
        kernels, reference = both(inputs, draw_features(64, 16), is_causal=True)
        assert_close(kernels, reference, torch.float32)
        results[splits_of(inputs, 1)] = kernels[0]
    assert list(results) == [1, 5]
    assert not torch.equal(results[1], results[5])


@pytest.mark.parametrize("tokens_per_step", [1, 20])
def test_equal_inputs_give_equal_bits(tokens_per_step):
    inputs = qkv(b=1, t=50, d=16, dtype=torch.float32)
    options = {"is_causal": True, "tokens_per_step": tokens_per_step}
    features = draw_features(64, 16)
    first, again = (both(inputs, features, **options)[0] for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_constant_values_come_out_unchanged():
    q, k, _ = (x.to(DEVICE) for x in qkv(t=70, d=16, dtype=torch.float32))
    value = torch.full((2, 2, 70, 3), 0.7, device=DEVICE)
    output = favor_attention(q, k, value, DRAWN, is_causal=True, impl="triton")
    torch.testing.assert_close(output, value, rtol=0, atol=1e-6)


def test_compile_is_one_graph_for_all_lengths():
    torch._dynamo.reset()
    features = RandomFeatures(draw_features(16, 4).projection.to(DEVICE), None, True)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    def attention(q, k, v):
        return favor_attention(q, k, v, features, is_causal=True, tokens_per_step=2, impl="triton")

    compiled = torch.compile(attention, backend=backend, fullgraph=True, dynamic=True)
    for length in (5, 9, 70):
        inputs = [x.to(DEVICE).requires_grad_() for x in qkv(t=length, dtype=torch.float32)]
        upstream = torch.randn(2, 2, length, 4, device=DEVICE)
        results = [(o := f(*inputs), *torch.autograd.grad(o, inputs, upstream)) for f in (compiled, attention)]
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert len(graphs) == 1


def test_second_derivatives_are_those_of_the_definition():
    def penalised(q: Tensor, k: Tensor, v: Tensor, features: RandomFeatures, impl: str, key_bias: Tensor) -> Tensor:
        output = favor_attention(q, k, v, features, is_causal=True, impl=impl, key_bias=key_bias)
        (gradient,) = torch.autograd.grad(output.square().sum(), k, create_graph=True)
        return gradient.square()

    inputs, bias = qkv(t=9, d=8, dtype=torch.float32), bias_of(2, 9)
    assert_close(*both(inputs, draw_features(16, 8), penalised, key_bias=bias), torch.float32, 4)


class LargestAllocation:
    """Record the largest tensor that the launchers allocate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.elements = 0
        for name in ("empty", "zeros", "empty_like", "zeros_like"):
            monkeypatch.setattr(torch, name, self._counted(getattr(torch, name)))

    def _counted(self, allocate):
        def counted(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            self.elements = max(self.elements, tensor.numel())
            return tensor

        return counted


@pytest.mark.parametrize("tokens_per_step", [1, 100])
def test_nothing_of_tokens_times_features_is_allocated(monkeypatch, tokens_per_step):
    b, h, t, d, m = 1, 2, 400, 4, 32
    inputs = [x.requires_grad_() for x in qkv(b=b, h=h, t=t, d=d, dtype=torch.float32)]
    features = draw_features(m, d)
    segments = problem_of(qkv(b=b, h=h, t=t, d=16), tokens_per_step).segments
    largest = LargestAllocation(monkeypatch)
    output = favor_attention(*inputs, features, is_causal=True, tokens_per_step=tokens_per_step, impl="triton")
    torch.autograd.grad(output.sum(), inputs)
    anchors = b * h * m * (-(-t // 16))  # one number a feature and chunk
    assert largest.elements <= max(b * h * (segments + 1) * m * d, anchors, b * h * t * d)
    assert summarize(*inputs[1:], features).value.numel() == b * h * m * d
