"""Masked losses."""

from typing import get_args

import pytest
import torch

from favorcast.forecasting.metrics.losses import LossName, check_loss, masked_loss, pointwise_loss

NAN = float("nan")


def test_each_loss_has_its_textbook_value():
    error = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    assert pointwise_loss(error, "mse").tolist() == [9.0, 0.25, 0.0, 4.0]
    assert pointwise_loss(error, "mae").tolist() == [3.0, 0.5, 0.0, 2.0]
    assert pointwise_loss(error, "huber", huber_delta=2.0).tolist() == [4.0, 0.125, 0.0, 2.0]


@pytest.mark.parametrize("loss", get_args(LossName))
def test_a_missing_target_changes_neither_loss_nor_gradient(loss: LossName):
    torch.manual_seed(0)
    forecast = torch.randn(3, 4, 2, requires_grad=True)
    target = torch.randn(3, 4, 2)
    missing = torch.rand(3, 4, 2) < 0.4
    value = masked_loss(forecast, target.masked_fill(missing, NAN), loss)
    (gradient,) = torch.autograd.grad(value, forecast)
    kept = pointwise_loss((forecast - target)[~missing], loss).mean()
    (expected,) = torch.autograd.grad(kept, forecast)
    torch.testing.assert_close(value, kept)
    torch.testing.assert_close(gradient, expected)
    assert (gradient[missing] == 0).all()


@pytest.mark.parametrize("loss", get_args(LossName))
def test_a_batch_without_observations_has_zero_loss_and_zero_gradient(loss: LossName):
    forecast = torch.ones(2, 3, 1, requires_grad=True)
    value = masked_loss(forecast, torch.full((2, 3, 1), NAN), loss)
    value.backward()
    assert value.item() == 0.0
    assert forecast.grad is not None
    assert (forecast.grad == 0).all()


def test_a_diverged_forecast_is_not_mistaken_for_a_missing_value():
    forecast, target = torch.tensor([[[NAN, 1.0]]]), torch.tensor([[[0.0, NAN]]])
    assert masked_loss(forecast, target).isnan()
    assert masked_loss(forecast.flip(-1), target).item() == 1.0


def test_errors_are_judged_in_units_of_the_scale():
    forecast, target = torch.tensor([[[2.0, 30.0]]]), torch.zeros(1, 1, 2)
    assert masked_loss(forecast, target, "mse", scale=torch.tensor([2.0, 10.0])).item() == (1 + 9) / 2


def test_an_unknown_loss_and_a_bad_delta_are_refused():
    with pytest.raises(ValueError, match=r"mse, mae, huber: got 'smape'"):
        check_loss("smape", 1.0)
    with pytest.raises(ValueError, match="huber_delta"):
        check_loss("huber", 0.0)
