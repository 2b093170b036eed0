"""Autoregressive linear model."""

import pytest
import torch

from favorcast.forecasting.linear_model import LinearModel

NAN = float("nan")


def rolled_forward(model: LinearModel, context: torch.Tensor, target_len: int) -> torch.Tensor:
    """Roll the autoregression forward in plain loops."""
    weight = model.weight.expand(-1, model.d_y_target)
    bias = model.bias.expand(model.d_y_target)
    rows = [list(window.tolist()) for window in context]
    for batch in rows:
        for _ in range(target_len):
            window = batch[-model.linear_window :]
            batch.append(
                [
                    bias[c].item() + sum(weight[i, c].item() * window[i][c] for i in range(model.linear_window))
                    for c in range(model.d_y_target)
                ]
            )
    return torch.tensor(rows)[:, context.shape[1] :]


@pytest.mark.parametrize("shared", [False, True], ids=["per sensor", "shared"])
@pytest.mark.parametrize(("window", "target_len"), [(1, 1), (3, 7), (5, 2)])
def test_the_forecast_is_the_autoregression_rolled_forward(shared: bool, window: int, target_len: int):
    torch.manual_seed(0)
    model = LinearModel(window, 2, shared)
    torch.nn.init.normal_(model.weight, std=0.4)
    torch.nn.init.normal_(model.bias)
    context = torch.randn(3, 5, 2)
    torch.testing.assert_close(model(context, target_len), rolled_forward(model, context, target_len))


def test_an_untrained_model_repeats_the_last_observed_value():
    context = torch.tensor([[[1.0, 5.0, NAN], [2.0, NAN, NAN], [3.0, 7.0, NAN], [4.0, NAN, NAN]]])
    forecast = LinearModel(3, 3)(context, 6)
    torch.testing.assert_close(forecast, torch.tensor([4.0, 7.0, 0.0]).expand(1, 6, 3))


def test_a_value_observed_before_the_window_is_carried_into_it():
    context = torch.full((1, 6, 1), NAN)
    context[0, 1] = 2.5
    assert LinearModel(3, 1)(context, 2).flatten().tolist() == [2.5, 2.5]


def test_only_the_first_columns_are_read():
    model = LinearModel(2, 2)
    context = torch.randn(1, 4, 5)
    changed = context.clone()
    changed[..., 2:] = NAN
    torch.testing.assert_close(model(context, 3), model(changed, 3))


@pytest.mark.parametrize("shared", [False, True], ids=["per sensor", "shared"])
def test_gradients_pass_gradcheck_and_missing_values_leave_them_finite(shared: bool):
    torch.manual_seed(0)
    model = LinearModel(2, 2, shared).double()
    context = torch.randn(2, 4, 2, dtype=torch.float64)
    context[0, :, 0] = NAN
    context[1, 3, 1] = NAN

    def forecast(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {"weight": weight, "bias": bias}, (context, 3))

    weight = torch.randn_like(model.weight).requires_grad_()
    bias = torch.randn_like(model.bias).requires_grad_()
    assert torch.autograd.gradcheck(forecast, (weight, bias))


def test_a_window_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="expected at least 9, got 8"):
        LinearModel(9, 1)(torch.zeros(1, 8, 1), 2)


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="linear_window=0"):
        LinearModel(0, 1)
