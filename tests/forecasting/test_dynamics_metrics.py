"""Spectra, dominant frequency and valid time of forecasts."""

import math

import pytest
import torch
from small_forecaster import NAN, TimeMap, WindowData, cpu_trainer
from torch import Tensor

from favorcast.forecasting.metrics.dynamics import DynamicsErrors

STEPS = 64


def wave(period: float, *, size: float = 1.0, count: int = 3) -> Tensor:
    time = torch.arange(STEPS).view(1, -1, 1)
    phase = torch.arange(count).view(-1, 1, 1) + torch.arange(2)
    return size * torch.sin(2 * math.pi * time / period + phase)


def errors(forecast: Tensor, target: Tensor, **options) -> dict[str, float]:
    metric = DynamicsErrors(**options)
    metric.update(forecast, target)
    return {name: value.item() for name, value in metric.compute().items()}


def test_a_perfect_forecast_has_no_error_and_stays_valid():
    found = errors(wave(11.0), wave(11.0))
    assert found == {"spectral_error": 0.0, "frequency_error": 0.0, "valid_steps": STEPS}


@pytest.mark.parametrize(("size", "expected"), [(0.0, 1.0), (0.5, 0.75), (2.0, 3.0)])
def test_the_spectral_error_compares_power_whatever_the_phase(size: float, expected: float):
    found = errors(wave(11.0, size=size).roll(1, dims=0), wave(11.0))
    assert found["spectral_error"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("period", [9.3, 11.0, 13.7])
def test_the_dominant_frequency_is_found_between_bins(period: float):
    # a bin is 1/64; a parabola through three points of a Hann window's main lobe is good to a few hundredths of it
    found = errors(wave(period), wave(10.0))
    assert found["frequency_error"] == pytest.approx(abs(10.0 / period - 1), abs=0.01)


def test_a_forecast_without_power_has_no_frequency():
    assert math.isnan(errors(torch.zeros(3, STEPS, 2), wave(10.0))["frequency_error"])


def test_the_valid_time_ends_where_the_error_first_exceeds_the_threshold():
    target = torch.zeros(2, 6, 2)
    forecast = torch.zeros(2, 6, 2)
    forecast[0, 3] = 0.5  # later steps are right again, which does not count
    forecast[1, 5, 0] = 0.5  # one sensor of two: 0.35 in the mean
    assert errors(forecast, target)["valid_steps"] == (3 + 6) / 2
    assert errors(forecast, target, threshold=0.3)["valid_steps"] == (3 + 5) / 2


def test_the_scale_is_the_unit_of_the_valid_time():
    metric = DynamicsErrors()
    metric.update(torch.full((1, 5, 2), 3.0), torch.zeros(1, 5, 2), torch.tensor([10.0, 10.0]))
    assert metric.compute()["valid_steps"] == 5


def test_missing_targets_count_nowhere():
    target = wave(10.0)
    target[0, 5:9, 1] = NAN
    noisy = wave(10.0)
    noisy[0, 5:9, 1] = 99.0  # of this no error is seen, and the window is left out of the sensor's spectra
    assert errors(noisy, target) == {"spectral_error": 0.0, "frequency_error": 0.0, "valid_steps": STEPS}
    nothing = errors(wave(10.0), torch.full((3, STEPS, 2), NAN))
    assert math.isnan(nothing["spectral_error"])
    assert math.isnan(nothing["frequency_error"])


def test_batches_of_any_size_give_the_result_of_all_windows():
    forecast, target = wave(9.0, count=7) + 0.3, wave(10.0, count=7)
    parts = DynamicsErrors()
    for piece in (slice(0, 1), slice(1, 5), slice(5, 7)):
        parts.update(forecast[piece], target[piece])
    for name, value in errors(forecast, target).items():
        assert parts.compute()[name].item() == pytest.approx(value)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_horizons_too_short_for_a_spectrum_are_nan_there(steps: int):
    found = errors(torch.zeros(1, steps, 1), torch.zeros(1, steps, 1))
    assert math.isnan(found["frequency_error"])
    assert found["valid_steps"] == steps


def test_a_test_run_accumulates_them():
    model = TimeMap()
    cpu_trainer().test(model, WindowData(), verbose=False)
    expected = DynamicsErrors()
    for context_x, context_y, target_x, target_y in WindowData().test_dataloader():
        expected.update(model.predict(context_x, context_y, target_x), target_y, model.target_scale)
    for name, value in expected.compute().items():
        torch.testing.assert_close(model.test_dynamics.compute()[name], value, equal_nan=True)


def test_a_metric_without_data_and_a_threshold_of_zero_are_refused():
    with pytest.raises(ValueError, match="no data"):
        DynamicsErrors().compute()
    with pytest.raises(ValueError, match="threshold must be positive: got 0"):
        DynamicsErrors(threshold=0)
