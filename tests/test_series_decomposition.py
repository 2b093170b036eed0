"""Moving averages against their dense matrices, with masks, and the rounding they are allowed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from favorcast.kernels import MovingAverage, SeriesDecomposition, moving_average, series_decomposition

pytestmark = pytest.mark.usefixtures("poisoned_allocations")


def window(i: int, length: int, k: int, causal: bool) -> list[int]:
    back = k - 1 if causal else (k - 1) // 2
    return [min(max(j, 0), length - 1) for j in range(i - back, i - back + k)]


def dense_matrix(mask: torch.Tensor, k: int, causal: bool) -> torch.Tensor:
    """Return A (l, l) of one channel with observations mask (l,), row by row from the definition."""
    length = len(mask)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    for i in range(length):
        seen = [j for j in window(i, length, k, causal) if mask[j]]
        if not seen:
            candidates = [j for j in range(length) if mask[j] and not (causal and j > i)]
            seen = sorted(candidates, key=lambda j: (abs(i - j), j))[:1]
        for j in seen:
            matrix[i, j] += 1 / len(seen)
    return matrix


@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 8, 25, 100])
@pytest.mark.parametrize("length", [1, 2, 5, 30])
@pytest.mark.parametrize("observed", [None, 0.7, 0.1, 0.0], ids=["unmasked", "70%", "10%", "none"])
def test_forward_and_gradient_are_those_of_the_dense_matrix(length, k, causal, observed):
    x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    mask = None if observed is None else torch.rand(2, length, 3) < observed
    given = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    trend = moving_average(x, k, causal=causal, mask=mask)
    upstream = torch.randn_like(x)
    (d_x,) = torch.autograd.grad(trend, x, upstream)
    for b in range(2):
        for c in range(3):
            matrix = dense_matrix(given[b, :, c], k, causal)
            torch.testing.assert_close(trend[b, :, c], matrix @ x[b, :, c], rtol=0, atol=1e-13)
            torch.testing.assert_close(d_x[b, :, c], matrix.T @ upstream[b, :, c], rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [3, 4, [3, 6]], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
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


def test_an_offset_of_1000_costs_one_rounding_of_the_offset():
    """Direct and doubling sums stay within a few ulp(1000) = 6e-5; a global cumulative sum is off by 6."""
    noise = torch.randn(1, 20_000, 2, dtype=torch.float64)
    exact = moving_average(noise + 1000, 25)
    single = moving_average((noise + 1000).float(), 25)
    assert (single.double() - exact).abs().max() < 3e-4
    assert (moving_average(noise.float(), 25).double() - moving_average(noise, 25)).abs().max() < 5e-7


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
def test_an_unmasked_nan_stays_within_its_window(k, causal):
    x = torch.randn(1, 50, 1)
    clean = moving_average(x, k, causal=causal)
    x[0, 20] = float("nan")
    touched = torch.tensor([20 in window(i, 50, k, causal) for i in range(50)])
    trend = moving_average(x, k, causal=causal)[0, :, 0]
    assert torch.equal(trend.isnan(), touched)
    assert torch.equal(trend[~touched], clean[0, ~touched, 0])


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


BAD_ARGUMENTS = {
    "kernel 0": ({"kernel_size": 0}, "kernel_size must be a whole number"),
    "kernel 2.5": ({"kernel_size": 2.5}, "kernel_size must be a whole number"),
    "kernel True": ({"kernel_size": True}, "kernel_size must be a whole number"),
    "no kernels": ({"kernel_size": []}, "kernel_size must be a whole number"),
    "rank": ({"x": torch.randn(5, 3)}, r"floating point \(batch, time, channel\)"),
    "integers": ({"x": torch.ones(2, 5, 3).long()}, "x must be floating point"),
    "mask dtype": ({"mask": torch.ones(2, 5, 3)}, "mask must be a bool tensor"),
    "mask shape": ({"mask": torch.ones(2, 5, 1).bool()}, r"mask must be a bool tensor \(2, 5, 3\)"),
    "weights of one": ({"weights": torch.ones(1)}, "weights need one entry a kernel size"),
    "weights of three": ({"kernel_size": [3, 5], "weights": torch.ones(3)}, "weights need one entry a kernel size"),
    "impl": ({"impl": "cuda"}, "unknown impl"),
    "kernel beyond int32": ({"kernel_size": 2**31}, "whole number from 1 to"),
    "weights too wide": ({"kernel_size": [3, 5], "weights": torch.ones(3, 5, 3, 2)}, "weights must be floating point"),
    "triton in float64": ({"impl": "triton", "x": torch.randn(2, 5, 3).double()}, "cannot be honoured"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_what_does_not_fit_is_refused_with_the_expected_and_the_given(case):
    changes, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        moving_average(**{"x": torch.randn(2, 5, 3), "kernel_size": 3, **changes})
