"""The decomposition kernels against the dense matrices and the float64 reference: in Triton's interpreter, or on a GPU.

The interpreter is slow, so a case covers several masks in the channels of one series. bfloat16 and sizes that need a
device are in the tests marked gpu.
"""

from __future__ import annotations

import pytest
import torch
from exact_averages import dense_matrix, exact_average, window
from kernel_runs import RUNS_KERNELS
from torch.library import opcheck
from torch.nn import functional as F

from favorcast.kernels import moving_average, series_decomposition

pytestmark = [RUNS_KERNELS, pytest.mark.usefixtures("poisoned_allocations")]

OPERATORS = torch.ops.favorcast
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
# Windows below 8 steps, up to 63, and from 64 on are summed in three ways; the last two cases take several tiles.
LENGTHS_AND_KERNELS = [(1, 1), (1, 70), (2, 3), (5, 2), (5, 100), (30, 8), (30, 25), (30, 64), (90, 65), (90, 333)]
MASKED = [(1, 70), (5, 2), (5, 9), (30, 8), (70, 65)]


def triton_average(x, k, **options):
    return moving_average(x.to(DEVICE), k, impl="triton", **{n: _move(v) for n, v in options.items()}).cpu()


def triton_decomposition(x, k, **options):
    parts = series_decomposition(x.to(DEVICE), k, impl="triton", **{n: _move(v) for n, v in options.items()})
    return tuple(part.cpu() for part in parts)


def _move(value):
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def with_gradients(x, upstream, second, mask, k, causal):
    """Return the trend, d_x, and the gradient of d_x with respect to the upstream gradient."""
    x, upstream = x.requires_grad_(), upstream.requires_grad_()
    trend = triton_average(x, k, causal=causal, mask=mask)
    (d_x,) = torch.autograd.grad(trend, x, upstream, create_graph=True)
    (dd,) = torch.autograd.grad(d_x, upstream, second)
    return trend.detach(), d_x.detach(), dd


def assert_dense(results, matrix, inputs, channel):
    """Compare trend, d_x and the second gradient of one channel with A x, A^T and A again."""
    for result, applied, given in zip(results, (matrix, matrix.T, matrix), inputs, strict=True):
        expected = applied @ given[0, :, channel].double()
        atol = 1e-6 * max(1.0, expected.abs().max().item())  # a few float32 roundings of the largest sum
        torch.testing.assert_close(result[0, :, channel].double(), expected, rtol=0, atol=atol)


@CAUSAL
@pytest.mark.parametrize(("length", "k"), LENGTHS_AND_KERNELS, ids=str)
def test_forward_gradient_and_second_gradient_are_those_of_the_dense_matrix(length, k, causal):
    inputs = torch.randn(3, 1, length, 1)
    matrix = dense_matrix(torch.ones(length, dtype=torch.bool), k, causal)
    assert_dense(with_gradients(*inputs.clone(), None, k, causal), matrix, inputs, 0)


@CAUSAL
@pytest.mark.parametrize(("length", "k"), MASKED, ids=str)
def test_with_a_mask_they_are_those_of_its_dense_matrix(length, k, causal):
    inputs = torch.randn(3, 1, length, 4)
    mask = torch.rand(1, length, 4) < torch.tensor([1.0, 0.7, 0.1, 0.0])
    results = with_gradients(*inputs.clone(), mask, k, causal)
    for channel in range(4):
        assert_dense(results, dense_matrix(mask[0, :, channel], k, causal), inputs, channel)


@CAUSAL
def test_gaps_longer_than_a_tile_are_carried_and_give_their_gradient_back(causal):
    """A tile is 32 steps of 64 channels here; gaps reach across three tiles, and some channels are never observed."""
    x, upstream = torch.randn(2, 1, 70, 64)
    mask = torch.rand(1, 70, 64) < torch.linspace(0, 0.2, 64)
    x.requires_grad_()
    trend = triton_average(x, 5, causal=causal, mask=mask)
    (d_x,) = torch.autograd.grad(trend, x, upstream)
    exact = x.detach().double().requires_grad_()
    expected = moving_average(exact, 5, causal=causal, mask=mask)
    torch.testing.assert_close(trend.double(), expected, rtol=0, atol=1e-6)
    (d_exact,) = torch.autograd.grad(expected, exact, upstream.double())
    torch.testing.assert_close(d_x.double(), d_exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("k", [5, 25, 101])
def test_odd_windows_are_those_of_autoformer_and_dlinear(k):
    x = torch.randn(1, 80, 3)
    ends = [x[:, :1].repeat(1, (k - 1) // 2, 1), x, x[:, -1:].repeat(1, (k - 1) // 2, 1)]
    expected = F.avg_pool1d(torch.cat(ends, 1).transpose(1, 2), k, 1).transpose(1, 2)
    seasonal, trend = triton_decomposition(x, k)
    torch.testing.assert_close(trend, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(seasonal, x - expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [2, 24, 100])
def test_even_windows_have_their_longer_end_ahead_as_in_basicts_and_darts(k):
    x = torch.randn(1, 80, 3)
    padded = F.pad(x.transpose(1, 2), ((k - 1) // 2, k // 2), mode="replicate")
    torch.testing.assert_close(triton_average(x, k), F.avg_pool1d(padded, k, 1).transpose(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "k"),
    [(100_000, 25), (3000, 600), (8000, 4097), *(pytest.param(1_000_000, k, marks=GPU) for k in (3, 25, 1025, 4097))],
    ids=str,
)
def test_an_offset_of_1000_costs_one_rounding_of_the_offset(length, k):
    """The rounding of the trend is 3.05e-5, half an ulp; float32 sums by doubling cost 1.5e-4, a cumulative sum 24.

    The interpreter has run a million steps too: 2.93e-5 for k = 25, 3.09e-5 for k = 4097 (half an hour).
    """
    noise = torch.randn(1, length, 1)
    offset = noise + 1000
    assert (triton_average(offset, k).double() - exact_average(offset, 1000, k, False)).abs().max() < 3.2e-5
    assert (triton_average(noise, k).double() - exact_average(noise, 0, k, False)).abs().max() < 1e-6


@CAUSAL
def test_a_window_far_beyond_the_series_counts_its_ends(causal):
    x, upstream = torch.randn(2, 1, 20, 2)
    ours, exact = x.requires_grad_(), x.detach().double().requires_grad_()
    results = [triton_average(ours, 2**30, causal=causal), moving_average(exact, 2**30, causal=causal)]
    results += [torch.autograd.grad(results[0], ours, upstream)[0]]
    results += [torch.autograd.grad(results[1], exact, upstream.double())[0]]
    torch.testing.assert_close(results[0].double(), results[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[2].double(), results[3], rtol=1e-6, atol=1e-6)


@CAUSAL
@pytest.mark.parametrize("k", [7, 8, 70])
@pytest.mark.parametrize("outlier", [float("nan"), 1e8])
def test_a_nan_or_spike_stays_within_its_window(k, causal, outlier):
    """In the middle of the first channel, at the start of the second and at the end of the third."""
    x = torch.randn(1, 200, 3)
    clean = triton_average(x, k, causal=causal)
    places = (90, 0, 199)
    for channel, at in enumerate(places):
        x[0, at, channel] = outlier
    trends = triton_average(x, k, causal=causal)
    exact = moving_average(x.double(), k, causal=causal)
    for channel, at in enumerate(places):
        trend = trends[0, :, channel]
        touched = torch.tensor([at in window(i, 200, k, causal) for i in range(200)])
        assert torch.equal(trend.isnan(), touched & (outlier != 1e8))
        if outlier == 1e8:
            torch.testing.assert_close(trend[touched].double(), exact[0, touched, channel], rtol=1e-6, atol=0)
        torch.testing.assert_close(trend[~touched], clean[0, ~touched, channel], rtol=0, atol=1e-6)


def test_what_stands_under_a_false_mask_is_never_read():
    x = torch.randn(1, 40, 3)
    mask = torch.rand(1, 40, 3) > 0.3
    mask[0, 5:25, 1] = False
    dirty = x.masked_fill(~mask, float("nan")).requires_grad_()
    clean = x.masked_fill(~mask, 0.0).requires_grad_()
    results = [triton_decomposition(v, 9, mask=mask) for v in (dirty, clean)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    assert not results[0][0][~mask].any()
    gradients = [torch.autograd.grad(r[0].square().sum(), v)[0] for r, v in zip(results, (dirty, clean), strict=True)]
    assert torch.equal(*gradients)
    assert not gradients[0][~mask].any()


@pytest.mark.parametrize(
    ("sizes", "masked"),
    [([3, 9], True), ([9, 70], False), ([3, 9, 70], True)],
    ids=["masked", "unmasked", "masked-three"],
)
def test_mixtures_and_the_gradients_of_their_weights_are_the_references(sizes, masked):
    x, weights = torch.randn(1, 30, 3), torch.randn(1, 30, 1, len(sizes))
    mask = torch.rand(1, 30, 3) < 0.3 if masked else None
    upstream = torch.randn(2, 1, 30, 3)
    second = torch.randn(1, 30, 3), torch.randn(1, 30, 1, len(sizes))

    def differentiate(impl, dtype):
        inputs = [t.to(dtype).requires_grad_() for t in (x, weights)]
        decompose = triton_decomposition if impl == "triton" else series_decomposition
        outputs = decompose(inputs[0], sizes, mask=mask, weights=inputs[1])
        firsts = torch.autograd.grad(outputs, inputs, list(upstream.to(dtype)), create_graph=True)
        if masked:  # second gradients are the same two operators again: once is enough for the interpreter
            return *outputs, *firsts
        return *outputs, *firsts, *torch.autograd.grad(firsts, inputs, [s.to(dtype) for s in second])

    for ours, exact in zip(differentiate("triton", torch.float32), differentiate("", torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("part", [0, 1], ids=["seasonal", "trend"])
def test_a_masked_mixture_of_which_one_part_is_used_has_the_references_gradients(part):
    x, weights = torch.randn(1, 70, 2), torch.randn(2)
    mask = torch.rand(1, 70, 2) < torch.tensor([0.05, 0.4])  # windows without an observation, of one size and of both
    upstream = torch.randn(1, 70, 2)
    found = []
    for decompose, dtype in ((triton_decomposition, torch.float32), (series_decomposition, torch.float64)):
        inputs = [t.to(dtype).requires_grad_() for t in (x, weights)]
        output = decompose(inputs[0], [3, 12], mask=mask, weights=inputs[1].expand(1, 70, 2, 2))[part]
        found.append(torch.autograd.grad(output, inputs, upstream.to(dtype)))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [7, 25, 70])
def test_a_nan_gradient_stays_with_the_values_of_its_window(k):
    x = torch.randn(1, 90, 2, requires_grad=True)
    upstream = torch.ones(1, 90, 2)
    upstream[0, 1, 0] = upstream[0, 50, 1] = float("nan")
    (d_x,) = torch.autograd.grad(triton_average(x, k), x, upstream)
    for channel, t in enumerate((1, 50)):
        reached = torch.zeros(90, dtype=torch.bool)
        reached[window(t, 90, k, False)] = True
        assert torch.equal(d_x[0, :, channel].isnan(), reached)


def test_several_sizes_without_weights_are_averaged():
    x = torch.randn(1, 40, 3)
    seasonal, trend = triton_decomposition(x, [3, 9, 25])
    expected = moving_average(x.double(), [3, 9, 25])
    torch.testing.assert_close(trend.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(triton_average(x, [3, 9, 25]), trend)
    assert torch.equal(seasonal, x - trend)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_series_are_averaged_in_float32_and_split_after_rounding(dtype):
    x = (5 + torch.randn(1, 300, 3)).to(dtype)
    seasonal, trend = triton_decomposition(x, 25)
    assert torch.equal(trend, triton_average(x.float(), 25).to(dtype))
    assert torch.equal(seasonal, x - trend)
    assert seasonal.dtype == trend.dtype == dtype
    assert ((seasonal + trend) == x).float().mean() > 0.98


def test_any_strides_are_read_and_the_layout_is_kept():
    x = torch.randn(2, 3, 20)
    view = x.transpose(1, 2)
    trend = triton_average(view, 9)
    assert trend.stride() == view.stride()
    assert torch.equal(trend, triton_average(view.contiguous(), 9))
    expanded = x[:1].transpose(1, 2).expand(2, -1, -1)
    assert torch.equal(triton_average(expanded, 4), triton_average(expanded.contiguous(), 4))
    sliced = torch.randn(1, 40, 6)[:, ::2, 1::2]
    mask = torch.rand(1, 6, 40).transpose(1, 2)[:, ::2, 1::2] > 0.5
    expected = triton_average(sliced.contiguous(), 4, mask=mask.contiguous())
    assert torch.equal(triton_average(sliced, 4, mask=mask), expected)


@pytest.mark.parametrize("strides", [(0, 1, 2**31), (0, 2**30, 1)], ids=["channels", "steps"])
def test_offsets_beyond_32_bits_are_served(strides):
    """Nothing but the elements of the series is ever touched of the memory that it lies in."""
    shape = (1, 3, 2)
    x, upstream, mask = (
        torch.zeros(2**31 + 16, dtype=dtype, device=DEVICE).as_strided(shape, strides)
        for dtype in (torch.float16, torch.float16, torch.bool)
    )
    x.copy_(torch.randn(shape))
    upstream.copy_(torch.randn(shape))
    mask.copy_(torch.tensor([[False, True], [True, False], [False, False]]))
    ours = x.detach().requires_grad_()
    exact = x.double().contiguous().requires_grad_()
    for options in ({}, {"mask": mask}):
        trend, expected = moving_average(ours, 2, impl="triton", **options), moving_average(exact, 2, **options)
        torch.testing.assert_close(trend.double(), expected, rtol=1e-3, atol=1e-3)
        (d_x,), (d_exact,) = (
            torch.autograd.grad(y, leaf, upstream.to(y.dtype)) for y, leaf in ((trend, ours), (expected, exact))
        )
        torch.testing.assert_close(d_x.double(), d_exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_empty_series_give_empty_results_and_gradients(shape):
    x = torch.randn(shape, requires_grad=True)
    seasonal, trend = triton_decomposition(x, 3, mask=torch.ones(shape, dtype=torch.bool))
    assert seasonal.shape == trend.shape == shape
    (seasonal.sum() + trend.sum()).backward()
    assert x.grad is not None


def test_equal_inputs_give_equal_bits():
    x = torch.randn(1, 40, 3)
    mask = torch.rand(1, 40, 3) < 0.4

    def run():
        leaf = x.clone().requires_grad_()
        parts = triton_decomposition(leaf, 9, mask=mask)
        return *parts, *torch.autograd.grad(parts[0].square().sum(), leaf)

    assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))


def test_auto_takes_the_reference_on_the_cpu():
    x = torch.randn(1, 40, 3)
    assert torch.equal(moving_average(x, 9), moving_average(x, 9, impl="reference"))


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_opcheck_accepts_the_operators(impl, masked):
    x = torch.randn(1, 3, 7, device=DEVICE).transpose(1, 2).requires_grad_()
    mask = torch.rand(1, 7, 3, device=DEVICE) > 0.5 if masked else None
    weights = torch.randn(1, 7, 3, 2, device=DEVICE, requires_grad=True)
    # The interpreter is slow; that the operators go through AOT dispatch is in the compile test.
    brief = ("test_faketensor",) if masked else ("test_schema", "test_faketensor", "test_autograd_registration")
    checks = brief if impl == "triton" else (*brief, "test_aot_dispatch_dynamic")
    forward, backward = OPERATORS.series_decomposition.default, OPERATORS.series_decomposition_backward.default
    opcheck(forward, (x, mask, weights, [3, 4], True, False, impl), test_utils=checks)
    opcheck(forward, (x, mask, None, [4], False, True, impl), test_utils=brief)
    d_seasonal, d_trend = torch.randn(2, 1, 7, 3, device=DEVICE)
    opcheck(backward, (d_seasonal, d_trend, x.detach(), mask, weights.detach(), [3, 4], True, impl), test_utils=brief)
    opcheck(backward, (None, d_trend, None, mask, None, [4], True, impl), test_utils=brief)
    if not masked:
        for op in (OPERATORS.moving_average.default, OPERATORS.moving_average_backward.default):
            opcheck(op, (x, mask, 4, False, impl), test_utils=brief)


def test_compile_is_one_graph_for_all_lengths():
    torch._dynamo.reset()

    def decompose(x, weights):
        # The operator itself: tracing cannot ask whether the interpreter is on, as the public function does.
        mix = weights.softmax(-1).expand(*x.shape, 2)
        seasonal, trend = OPERATORS.series_decomposition(x, None, mix, [3, 9], False, False, "triton")
        return seasonal * trend

    assert_compiled_equals(decompose, [(1, 12, 2), (1, 15, 2)], "aot_eager")


def assert_compiled_equals(decompose, shapes, backend):
    compiled = torch.compile(decompose, backend=backend, fullgraph=True, dynamic=True)
    for shape in shapes:
        inputs = [torch.randn(s, device=DEVICE).requires_grad_() for s in (shape, (2,))]
        upstream = torch.randn(shape, device=DEVICE)
        results = [(o := f(*inputs), *torch.autograd.grad(o, inputs, upstream)) for f in (compiled, decompose)]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnTheDevice:
    @CAUSAL
    @pytest.mark.parametrize("k", [3, 25, 200, 4097])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
    def test_large_series_are_those_of_the_reference(self, k, dtype, causal, masked):
        x = torch.randn(3, 5000, 70, device=DEVICE).to(dtype)
        mask = torch.rand(x.shape, device=DEVICE) < torch.linspace(0, 1, 70, device=DEVICE) ** 4 if masked else None
        upstream = torch.randn(2, *x.shape, device=DEVICE).to(dtype)
        results = []
        for impl, wide in (("triton", dtype), ("reference", torch.float64)):
            leaf = x.to(wide).requires_grad_()
            parts = series_decomposition(leaf, k, causal=causal, mask=mask, impl=impl)
            results.append((parts[1], *torch.autograd.grad(parts, leaf, list(upstream.to(wide)))))
        for ours, exact in zip(*results, strict=True):
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(ours.double(), exact, rtol=2 * eps, atol=2 * eps * exact.abs().max().item())

    def test_more_than_2_to_the_31_elements(self):
        x = torch.ones(1, 2**21 + 3, 1025, dtype=torch.bfloat16, device=DEVICE)
        x[0, -40:, -1] = 3.0
        trend = moving_average(x, 25, impl="triton")
        expected = moving_average(x[:, -100:, -1:].float(), 25, impl="reference")[:, 50:]
        torch.testing.assert_close(trend[:, -50:, -1:].float(), expected, rtol=0, atol=0.02)
        assert (trend[:, :1000] == 1).all()

    @pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
    def test_a_cuda_graph_replays_with_new_inputs(self, masked):
        x = torch.randn(2, 500, 33, device=DEVICE).requires_grad_()
        mask = torch.rand(x.shape, device=DEVICE) < 0.2 if masked else None

        def step():
            seasonal, trend = series_decomposition(x, 25, mask=mask, impl="triton")
            return seasonal, trend, *torch.autograd.grad((seasonal * trend).sum(), x)

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(torch.equal(*pair) for pair in zip(captured, step(), strict=True))

    def test_inductor_compiles_the_public_function(self):
        torch._dynamo.reset()

        def decompose(x, weights):
            seasonal, trend = series_decomposition(x, [3, 9], weights=weights.softmax(-1), impl="triton")
            return seasonal * trend

        assert_compiled_equals(decompose, [(2, 120, 7), (2, 333, 7)], "inductor")
