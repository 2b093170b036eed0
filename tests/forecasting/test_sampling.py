"""Scheduled-sampling ratio."""

import math

import pytest

from favorcast.forecasting.training.scheduled_sampling import inverse_sigmoid_ratio


@pytest.mark.parametrize("k", [1.0, 50.0, 1000.0])
@pytest.mark.parametrize("step", [0, 1, 500, 10_000])
def test_the_ratio_is_the_inverse_sigmoid(step: int, k: float):
    if step / k < 700:
        assert inverse_sigmoid_ratio(step, k) == pytest.approx(k / (k + math.exp(step / k)), rel=1e-12)


@pytest.mark.parametrize(("step", "k"), [(35_500, 50.0), (1, 1e-6), (10**12, 1.0)])
def test_a_late_step_does_not_overflow(step: int, k: float):
    assert 0.0 <= inverse_sigmoid_ratio(step, k) < 1e-200


def test_the_ratio_falls_from_almost_one_to_almost_zero():
    ratios = [inverse_sigmoid_ratio(step, 1000.0) for step in range(0, 30_000, 500)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] == pytest.approx(1000 / 1001)
    assert ratios[-1] < 1e-6


def test_a_speed_that_is_not_positive_and_a_negative_step_are_refused():
    with pytest.raises(ValueError, match="k must be positive"):
        inverse_sigmoid_ratio(1, 0.0)
    with pytest.raises(ValueError, match="step"):
        inverse_sigmoid_ratio(-1, 10.0)
