"""Aggregated forecast errors."""

import pytest
import torch
from favorcast.forecasting.metrics import ForecastErrors
from torch import Tensor

NAN = float("nan")


def holey_batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    batches = []
    for size, missing in ((5, 0.1), (5, 0.9), (1, 0.5)):
        target = torch.randn(size, 3, 2)
        batches.append((torch.randn(size, 3, 2), target.masked_fill(torch.rand(size, 3, 2) < missing, NAN)))
    return batches


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


def test_unequal_processes_merge_to_the_global_mean():
    """A metric whose state is the sum of two processes' states must equal one that saw all batches."""
    whole, ranks = ForecastErrors(), [ForecastErrors(), ForecastErrors()]
    for index, (forecast, target) in enumerate(holey_batches()):
        whole.update(forecast, target)
        ranks[min(index, 1)].update(forecast, target)
    merged = ForecastErrors()
    merged.update(*holey_batches()[0])
    for state, reduce in merged._reductions.items():
        setattr(merged, state, reduce(torch.stack([getattr(rank, state) for rank in ranks])))
    torch.testing.assert_close(merged._means(())["mse"], whole.compute()["mse"])
