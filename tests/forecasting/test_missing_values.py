"""Missing values: marking, filling, carrying forward."""

import pytest
import torch

from favorcast.forecasting.missing_values import carry_forward, fill_missing, mark_missing

NAN = float("nan")


def test_the_null_value_becomes_nan_and_nan_stays():
    y = torch.tensor([[0.0, 1.0, NAN, -999.9]])
    torch.testing.assert_close(mark_missing(y, 0.0), torch.tensor([[NAN, 1.0, NAN, -999.9]]), equal_nan=True)
    torch.testing.assert_close(mark_missing(y, -999.9), torch.tensor([[0.0, 1.0, NAN, NAN]]), equal_nan=True)


def test_without_a_null_value_the_data_are_returned_as_they_are():
    y = torch.tensor([[0.0, NAN]])
    assert mark_missing(y, None) is y


def test_a_filled_entry_sends_no_gradient_back():
    y = torch.tensor([1.0, NAN, 3.0], requires_grad=True)
    fill_missing(y, 7.0).square().sum().backward()
    assert y.grad is not None
    assert y.grad.tolist() == [2.0, 0.0, 6.0]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1.0, NAN, NAN, 4.0, NAN], [1.0, 1.0, 1.0, 4.0, 4.0]),
        ([NAN, NAN, 3.0, NAN, 5.0], [3.0, 3.0, 3.0, 3.0, 5.0]),
        ([NAN, NAN, NAN, NAN, NAN], [0.0, 0.0, 0.0, 0.0, 0.0]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]),
    ],
    ids=["gap", "late start", "dead", "complete"],
)
def test_a_gap_carries_the_last_observed_value(column: list[float], expected: list[float]):
    y = torch.stack((torch.tensor(column), torch.arange(5.0)), dim=-1)[None]
    carried = carry_forward(y)
    assert carried[0, :, 0].tolist() == expected
    assert carried[0, :, 1].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
