"""Aggregated forecast errors."""

from pathlib import Path

import pytest
import torch
from holey_batches import NAN, errors_of_one_process, holey_batches

from favorcast.forecasting.metrics.forecast_errors import ForecastErrors


def test_the_mean_runs_over_all_observed_entries_not_over_batches():
    errors = ForecastErrors()
    for forecast, target in holey_batches():
        errors.update(forecast, target)
    forecast, target = (torch.cat(parts) for parts in zip(*holey_batches(), strict=True))
    error = (forecast - target)[~target.isnan()].double()
    means = errors.compute()
    torch.testing.assert_close(means["mse"], error.square().mean())
    torch.testing.assert_close(means["mae"], error.abs().mean())
    torch.testing.assert_close(means["loss"], error.square().mean())


def test_horizon_and_sensor_errors_come_from_the_same_sums():
    errors = ForecastErrors()
    for forecast, target in holey_batches():
        errors.update(forecast, target)
    forecast, target = (torch.cat(parts) for parts in zip(*holey_batches(), strict=True))
    squared = (forecast - target).square().double()
    torch.testing.assert_close(errors.per_horizon()["mse"], squared.nanmean(dim=(0, 2)))
    torch.testing.assert_close(errors.per_sensor()["mse"], squared.nanmean(dim=(0, 1)))
    assert errors.per_horizon()["mae"].shape == (3,)
    assert errors.per_sensor()["loss"].shape == (2,)


def test_a_single_step_and_a_single_sensor_keep_their_vector_shape():
    errors = ForecastErrors()
    errors.update(torch.zeros(4, 1, 1), torch.ones(4, 1, 1))
    assert errors.per_horizon()["mse"].shape == (1,)
    assert errors.per_sensor()["mse"].shape == (1,)


def test_the_scale_enters_the_loss_but_not_mae_and_mse():
    errors = ForecastErrors("mae")
    errors.update(torch.full((1, 1, 2), 6.0), torch.zeros(1, 1, 2), torch.tensor([2.0, 3.0]))
    assert {name: value.item() for name, value in errors.compute().items()} == {"loss": 2.5, "mae": 6.0, "mse": 36.0}


def test_a_sensor_without_observations_has_no_error():
    errors = ForecastErrors()
    target = torch.zeros(2, 2, 2)
    target[..., 1] = NAN
    errors.update(torch.ones(2, 2, 2), target)
    per_sensor = errors.per_sensor()["mse"]
    assert per_sensor[0] == 1.0
    assert per_sensor[1].isnan()
    assert errors.compute()["mse"] == 1.0


def test_reset_forgets_and_an_empty_metric_says_so():
    errors = ForecastErrors()
    errors.update(torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
    errors.reset()
    with pytest.raises(ValueError, match="at least one update"):
        errors.per_horizon()
    errors.update(torch.ones(1, 5, 3), torch.zeros(1, 5, 3))
    assert errors.per_horizon()["mse"].shape == (5,)


def test_sums_do_not_drift_over_many_batches():
    errors = ForecastErrors()
    for _ in range(2000):
        errors.update(torch.full((8, 1, 1), 0.1), torch.zeros(8, 1, 1))
    expected = torch.tensor(0.1).square().double()
    torch.testing.assert_close(errors.compute()["mse"], expected, rtol=1e-12, atol=0)


def test_the_metric_keeps_no_graph():
    errors = ForecastErrors()
    errors.update(torch.ones(1, 1, 1, requires_grad=True), torch.zeros(1, 1, 1))
    assert not errors.compute()["mse"].requires_grad


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_processes_with_unequal_shares_report_the_global_mean(tmp_path: Path):
    torch.multiprocessing.spawn(errors_of_one_process, args=(tmp_path,), nprocs=2)
    whole = ForecastErrors()
    for batch in holey_batches():
        whole.update(*batch)
    expected = (whole.compute(), whole.per_horizon(), whole.per_sensor())
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)
