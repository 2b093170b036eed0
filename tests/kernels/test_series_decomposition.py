"""Moving averages against their dense matrices, with masks, and the rounding they are allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_averages import dense_matrix, exact_average, window
from torch.nn import functional as F

from favorcast.kernels import MovingAverage, SeriesDecomposition, moving_average, series_decomposition

pytestmark = pytest.mark.usefixtures("poisoned_allocations")


CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])


@CAUSAL
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 8, 25, 100])
@pytest.mark.parametrize("length", [1, 2, 5, 30])
@pytest.mark.parametrize("observed", [None, 0.7, 0.1, 0.0], ids=["unmasked", "70%", "10%", "none"])
def test_forward_gradient_and_second_gradient_are_those_of_the_dense_matrix(length, k, causal, observed):
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    mask = None if observed is None else torch.rand(2, length, 3) < observed
    given = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    trend = moving_average(x, k, causal=causal, mask=mask)
    upstream, second = torch.randn(2, *x.shape, dtype=torch.float64).requires_grad_()
    (d_x,) = torch.autograd.grad(trend, x, upstream, create_graph=True)
    (d_upstream,) = torch.autograd.grad(d_x, upstream, second)
    for b in range(2):
        for c in range(3):
            matrix = dense_matrix(given[b, :, c], k, causal)
            torch.testing.assert_close(trend[b, :, c], matrix @ x[b, :, c], rtol=0, atol=1e-13)
            torch.testing.assert_close(d_x[b, :, c], matrix.T @ upstream[b, :, c], rtol=0, atol=1e-12)
            torch.testing.assert_close(d_upstream[b, :, c], matrix @ second[b, :, c], rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [3, 4, [3, 6]], ids=str)
@CAUSAL
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_gradcheck_and_gradgradcheck_hold(k, causal, masked):
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 6, 2) > 0.4 if masked else None

    def decompose(x):
        return series_decomposition(x, k, causal=causal, mask=mask)

    assert torch.autograd.gradcheck(decompose, [x])
    assert torch.autograd.gradgradcheck(decompose, [x])


@pytest.mark.parametrize("k", [3, 25, 51])
def test_odd_windows_are_those_of_autoformer_and_dlinear(k):
    x = torch.randn(2, 40, 3, dtype=torch.float64)
    ends = [x[:, :1].repeat(1, (k - 1) // 2, 1), x, x[:, -1:].repeat(1, (k - 1) // 2, 1)]
    expected = F.avg_pool1d(torch.cat(ends, 1).transpose(1, 2), k, 1).transpose(1, 2)
    seasonal, trend = series_decomposition(x, k)
    torch.testing.assert_close(trend, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(seasonal, x - expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [2, 24, 50])
def test_even_windows_have_their_longer_end_ahead_as_in_basicts(k):
    x = torch.randn(2, 40, 3, dtype=torch.float64)
    padded = F.pad(x.transpose(1, 2), ((k - 1) // 2, k // 2), mode="replicate")
    expected = F.avg_pool1d(padded, k, 1).transpose(1, 2)
    torch.testing.assert_close(moving_average(x, k), expected, rtol=0, atol=1e-13)


def test_a_causal_trend_ignores_later_steps():
    x = torch.randn(1, 30, 2)
    trend = moving_average(x, 5, causal=True)
    x[:, 20:] = float("nan")
    assert torch.equal(moving_average(x, 5, causal=True)[:, :20], trend[:, :20])


@CAUSAL
@pytest.mark.parametrize("k", [3, 25, 168, 1025, 4097])
def test_an_offset_of_1000_costs_one_rounding_of_the_offset_in_a_million_steps(k, causal):
    """The rounding of the trend is 3.05e-5, half an ulp; float32 sums by doubling cost 1.5e-4, a cumulative sum 24."""
    noise = torch.randn(1, 1_000_000, 1)
    for offset, half_ulp in ((1000, 2.0**-15), (0, 2.0**-23)):  # of trends below 1024, and below 4
        x = noise + offset
        error = moving_average(x, k, causal=causal).double() - exact_average(x, offset, k, causal)
        assert error.abs().max() <= 1.001 * half_ulp


def test_a_sum_beyond_the_range_of_float32_has_a_finite_average():
    x = torch.full((1, 9, 1), 3e38)
    torch.testing.assert_close(moving_average(x, 25), x)


@CAUSAL
def test_a_window_far_beyond_the_series_takes_no_memory_for_what_it_repeats(causal):
    length, k = 4, 2**30
    back = k - 1 if causal else k // 2 - 1
    x = torch.randn(1, length, 1, dtype=torch.float64, requires_grad=True)
    matrix = torch.full((length, length), 1 / k, dtype=torch.float64)
    steps = torch.arange(length, dtype=torch.float64)
    matrix[:, 0] = (back + 1 - steps) / k
    matrix[:, -1] = (k - back - (length - 1) + steps).clamp(min=0) / k
    if causal:  # rows ahead of a step are in no window
        matrix = matrix.tril()
        matrix[-1, -1] = 1 / k
    trend = moving_average(x, k, causal=causal)
    upstream = torch.randn_like(x)
    (d_x,) = torch.autograd.grad(trend, x, upstream)
    torch.testing.assert_close(trend[0], matrix @ x[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(d_x[0], matrix.T @ upstream[0], rtol=0, atol=1e-12)
    everything = torch.ones(1, length, 1, dtype=torch.bool)
    torch.testing.assert_close(moving_average(x, k, causal=causal, mask=everything), trend, rtol=0, atol=1e-12)


def test_a_spike_costs_no_precision_outside_its_window():
    x = torch.randn(1, 400, 1)
    clean = moving_average(x, 25)
    x[:, 200] = 1e8
    spiked = moving_average(x, 25)
    outside = torch.ones(400, dtype=torch.bool)
    outside[188:213] = False
    assert torch.equal(spiked[:, outside], clean[:, outside])


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e38])
def test_what_stands_under_a_false_mask_is_never_read(garbage):
    x = torch.randn(2, 40, 3)
    mask = torch.rand(2, 40, 3) > 0.3
    mask[0, 5:25, 1] = False
    dirty = x.masked_fill(~mask, garbage).requires_grad_()
    clean = x.masked_fill(~mask, 0.0).requires_grad_()
    results = [series_decomposition(v, 7, mask=mask) for v in (dirty, clean)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    assert not results[0][0][~mask].any()
    gradients = [torch.autograd.grad(r[0].square().sum(), v)[0] for r, v in zip(results, (dirty, clean), strict=True)]
    assert torch.equal(*gradients)
    assert not gradients[0][~mask].any()


@pytest.mark.parametrize(("k", "causal"), [(7, False), (8, False), (7, True)])
@pytest.mark.parametrize("at", [0, 20, 49])
def test_an_unmasked_nan_stays_within_its_window(k, causal, at):
    x = torch.randn(1, 50, 1)
    clean = moving_average(x, k, causal=causal)
    x[0, at] = float("nan")
    touched = torch.tensor([at in window(i, 50, k, causal) for i in range(50)])
    trend = moving_average(x, k, causal=causal)[0, :, 0]
    assert torch.equal(trend.isnan(), touched)
    assert torch.equal(trend[~touched], clean[0, ~touched, 0])


@pytest.mark.parametrize(("k", "causal"), [(7, False), (8, False), (7, True)])
@pytest.mark.parametrize("t", [0, 2, 20, 49])
def test_a_nan_gradient_stays_with_the_values_of_its_window(k, causal, t):
    x = torch.randn(1, 50, 1, requires_grad=True)
    upstream = torch.ones(1, 50, 1)
    upstream[0, t] = float("nan")
    (d_x,) = torch.autograd.grad(moving_average(x, k, causal=causal), x, upstream)
    reached = torch.zeros(50, dtype=torch.bool)
    reached[window(t, 50, k, causal)] = True
    assert torch.equal(d_x[0, :, 0].isnan(), reached)


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_empty_series_give_empty_results_and_gradients(shape):
    x = torch.randn(shape, requires_grad=True)
    seasonal, trend = series_decomposition(x, 3, mask=torch.ones(shape, dtype=torch.bool))
    assert seasonal.shape == trend.shape == shape
    (seasonal.sum() + trend.sum()).backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_series_are_averaged_in_float32_and_split_after_rounding(dtype):
    x = (5 + torch.randn(2, 300, 3)).to(dtype)
    seasonal, trend = series_decomposition(x, 25)
    assert torch.equal(trend, moving_average(x.float(), 25).to(dtype))
    assert torch.equal(seasonal, x - trend)
    assert seasonal.dtype == trend.dtype == dtype
    assert ((seasonal + trend) == x).float().mean() > 0.98


def test_several_kernels_are_averaged_or_mixed_by_weights_with_gradients():
    x = torch.randn(2, 12, 3, dtype=torch.float64, requires_grad=True)
    trends = torch.stack([moving_average(x, k) for k in (3, 6)], -1)
    torch.testing.assert_close(moving_average(x, [3, 6]), trends.mean(-1))
    logits = torch.randn(2, 12, 1, 2, dtype=torch.float64, requires_grad=True)

    def mixed(x, logits):
        return series_decomposition(x, [3, 6], weights=logits.softmax(-1))

    torch.testing.assert_close(mixed(x, logits)[1], (trends * logits.softmax(-1)).sum(-1))
    assert torch.autograd.gradcheck(mixed, [x, logits], fast_mode=True)


def test_a_mixture_of_half_precision_is_rounded_once():
    x = (5 + torch.randn(2, 300, 3)).bfloat16().requires_grad_()
    weights = torch.tensor([0.3, 0.3, 0.4], requires_grad=True)
    seasonal, trend = series_decomposition(x, [3, 25, 70], weights=weights)
    exact = moving_average(x.double(), [3, 25, 70], weights=weights.double())
    torch.testing.assert_close(trend, exact.bfloat16(), rtol=0, atol=0)
    assert torch.equal(seasonal, x - trend)
    upstream = torch.randn(x.shape).bfloat16()
    (d_weights,) = torch.autograd.grad(trend, weights, upstream)
    (d_exact,) = torch.autograd.grad(exact, weights, upstream.double())
    torch.testing.assert_close(d_weights, d_exact, rtol=1e-6, atol=0)


def test_strides_do_not_matter():
    x = torch.randn(3, 2, 20)
    view = x.transpose(1, 2)
    assert torch.equal(moving_average(view, 5), moving_average(view.contiguous(), 5))
    expanded = x[:1].transpose(1, 2).expand(4, -1, -1)
    assert torch.equal(moving_average(expanded, 4), moving_average(expanded.contiguous(), 4))


def test_modules_are_the_functions():
    x, mask = torch.randn(2, 12, 3), torch.rand(2, 12, 3) > 0.5
    assert torch.equal(MovingAverage(5, causal=True)(x, mask), moving_average(x, 5, causal=True, mask=mask))
    for one, other in zip(
        SeriesDecomposition([3, 4])(x, mask), series_decomposition(x, [3, 4], mask=mask), strict=True
    ):
        assert torch.equal(one, other)


def test_whole_numbers_of_numpy_are_kernel_sizes():
    x = torch.randn(2, 12, 3)
    assert torch.equal(moving_average(x, np.int64(5)), moving_average(x, 5))
    assert torch.equal(moving_average(x, [np.int32(5), 4]), moving_average(x, [5, 4]))
    assert repr(MovingAverage(np.int64(5))) == "MovingAverage(kernel_size=[5], causal=False)"


@pytest.mark.parametrize("samples", [0, 3])
def test_vmap_maps_series_masks_and_weights(samples):
    x, mask = torch.randn(samples, 2, 12, 3), torch.rand(samples, 12, 2, 3) > 0.5
    weights = torch.rand(samples, 2)

    def decompose(x, mask, weights):
        return series_decomposition(x, [3, 4], mask=mask, weights=weights)

    mapped = torch.vmap(decompose, in_dims=(0, 0, None))(x, mask.transpose(1, 2), torch.ones(2))
    both = torch.vmap(decompose, in_dims=(None, 1, 0))(torch.ones(2, 12, 3), mask.permute(2, 0, 1, 3), weights)
    averages = torch.vmap(lambda x: moving_average(x, 5))(x)
    assert averages.shape == mapped[0].shape == both[1].shape == x.shape
    for i in range(samples):
        assert torch.equal(averages[i], moving_average(x[i], 5))
        single = decompose(x[i], mask[i].transpose(0, 1), torch.ones(2))
        other = decompose(torch.ones(2, 12, 3), mask[i].transpose(0, 1), weights[i])
        assert torch.equal(torch.stack(single), torch.stack([part[i] for part in mapped]))
        assert torch.equal(torch.stack(other), torch.stack([part[i] for part in both]))


def test_gradients_are_mapped_too():
    x = torch.randn(2, 6, 1, dtype=torch.float64, requires_grad=True)
    slow, fast = (
        torch.autograd.functional.jacobian(lambda x: series_decomposition(x, [3, 4])[0], x, vectorize=vectorize)
        for vectorize in (False, True)
    )
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("k", [5, [3, 8]], ids=str)
def test_compile_is_one_graph_for_all_shapes(k, masked):
    torch._dynamo.reset()

    def decompose(x):
        seasonal, trend = series_decomposition(x, k, mask=x > 0 if masked else None)
        return seasonal * trend + moving_average(x.transpose(0, 1), k, causal=True).transpose(0, 1)

    compiled = torch.compile(decompose, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in [(2, 12, 3), (3, 15, 2), (4, 7, 5)]:
        x = torch.randn(shape, requires_grad=True)
        results = [(y := f(x), *torch.autograd.grad(y, x, torch.ones(shape))) for f in (compiled, decompose)]
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def test_inference_mode_and_frozen_series_are_served():
    x = torch.randn(2, 12, 3)
    with torch.inference_mode():
        seasonal, trend = series_decomposition(x, 5)
    assert seasonal.is_inference()
    assert torch.equal(trend, moving_average(x, 5))
    weights = torch.rand(2, requires_grad=True)
    (d_weights,) = torch.autograd.grad(moving_average(x, [3, 5], weights=weights).sum(), weights)
    torch.testing.assert_close(d_weights, torch.stack([moving_average(x, k).sum() for k in (3, 5)]))


BAD_ARGUMENTS = {
    "kernel 0": ({"kernel_size": 0}, "kernel_size must be a whole number"),
    "kernel 2.5": ({"kernel_size": 2.5}, "kernel_size must be a whole number"),
    "kernel True": ({"kernel_size": True}, "kernel_size must be a whole number"),
    "no kernels": ({"kernel_size": []}, "kernel_size must be a whole number"),
    "rank": ({"x": torch.randn(5, 3)}, r"\(batch, time, channel\).*3 dimensions, got torch.float32 \(5, 3\)"),
    "integers": ({"x": torch.ones(2, 5, 3).long()}, "x must be bfloat16, .*floating point.*got torch.int64"),
    "mask dtype": ({"mask": torch.ones(2, 5, 3)}, "mask must be a bool tensor"),
    "mask shape": ({"mask": torch.ones(2, 5, 1).bool()}, r"mask must be a bool tensor \(2, 5, 3\)"),
    "weights of one": ({"weights": torch.ones(1)}, "weights need one entry a kernel size"),
    "weights of three": ({"kernel_size": [3, 5], "weights": torch.ones(3)}, "weights need one entry a kernel size"),
    "impl": ({"impl": "cuda"}, "unknown impl"),
    "kernel beyond int32": ({"kernel_size": 2**31}, "whole number from 1 to"),
    "weights too wide": ({"kernel_size": [3, 5], "weights": torch.ones(3, 5, 3, 2)}, "weights must be floating point"),
    "an array": ({"x": np.zeros((2, 5, 3), np.float32)}, "x must be a tensor .*got ndarray.*as_tensor"),
    "float8": ({"x": torch.ones(2, 5, 3).to(torch.float8_e4m3fn)}, "x must be bfloat16, float16, float32 or float64"),
    "sparse": ({"x": torch.ones(2, 5, 3).to_sparse()}, "x must be a dense tensor.*to_dense"),
    "mask of an array": ({"mask": np.ones((2, 5, 3), bool)}, "mask must be a bool tensor .*got ndarray"),
    "mask elsewhere": ({"mask": torch.ones(2, 5, 3, dtype=torch.bool, device="meta")}, "on cpu, .* on meta"),
    "weights in a list": ({"kernel_size": [3, 5], "weights": [0.5, 0.5]}, "weights must be a tensor.*got list"),
    "weights of integers": ({"kernel_size": [3, 5], "weights": torch.ones(2).int()}, "weights must be floating point"),
    "weights elsewhere": ({"kernel_size": [3, 5], "weights": torch.ones(2, device="meta")}, "on cpu, .* on meta"),
    "causal in words": ({"causal": "no"}, "causal must be True or False, got 'no'"),
    "causal 1": ({"causal": 1}, "causal must be True or False, got 1"),
    "kernel in words": ({"kernel_size": "25"}, "kernel_size must be a whole number .*got '25'"),
    "kernels in a set": ({"kernel_size": {3, 5}}, "kernel_size must be a whole number"),
    "kernel -3": ({"kernel_size": -3}, "kernel_size must be a whole number"),
    "one of several": ({"kernel_size": [3, 0]}, "kernel_size must be a whole number"),
    "triton in float64": ({"impl": "triton", "x": torch.randn(2, 5, 3).double()}, "cannot be honoured"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_what_does_not_fit_is_refused_with_the_expected_and_the_given(case):
    changes, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        moving_average(**{"x": torch.randn(2, 5, 3), "kernel_size": 3, **changes})


@pytest.mark.parametrize("options", [{"kernel_size": 0}, {"kernel_size": 3, "causal": "yes"}], ids=str)
def test_a_module_refuses_what_does_not_fit_when_it_is_made(options):
    with pytest.raises(ValueError, match=f"{list(options)[-1]} must be"):
        SeriesDecomposition(**options)
