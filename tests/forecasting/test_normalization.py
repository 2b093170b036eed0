"""Normalisation."""

import math

import pytest
import torch
from torch import Tensor

from favorcast.forecasting.normalization import GlobalNorm, NoNorm, Normalization, RevIN

NAN = float("nan")
KINDS = {"none": NoNorm, "global": GlobalNorm, "revin": RevIN}


def fitted(kind: str, columns: int) -> Normalization:
    norm = KINDS[kind](columns)
    norm.fit(torch.arange(columns) + 1.0, torch.arange(columns) + 0.5)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return norm


def holey(*shape: int, share: float = 0.3) -> Tensor:
    y = 3.0 + 2.0 * torch.randn(*shape)
    return y.masked_fill(torch.rand(*shape) < share, NAN)


@pytest.mark.parametrize("kind", KINDS)
def test_denormalize_inverts_normalize_and_keeps_missing_entries(kind: str):
    torch.manual_seed(0)
    norm, y = fitted(kind, 3), holey(4, 10, 3)
    statistics = norm.statistics(y, ~y.isnan())
    z = norm.normalize(y, statistics)
    assert torch.equal(z.isnan(), y.isnan())
    torch.testing.assert_close(norm.denormalize(z, statistics), y, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_may_hold_only_the_first_columns(kind: str):
    torch.manual_seed(0)
    norm, y = fitted(kind, 5), holey(2, 6, 5)
    statistics = norm.statistics(y, ~y.isnan())
    torch.testing.assert_close(
        norm.normalize(y[..., :2], statistics), norm.normalize(y, statistics)[..., :2], equal_nan=True
    )
    z = torch.randn(2, 3, 5)
    torch.testing.assert_close(norm.denormalize(z[..., :2], statistics), norm.denormalize(z, statistics)[..., :2])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_missing_entry_holds_reaches_no_statistic_and_no_weight(kind: str):
    torch.manual_seed(0)
    norm, y = fitted(kind, 2), holey(3, 8, 2)
    y[0, :, 1] = NAN
    observed = ~y.isnan()
    statistics = norm.statistics(y, observed)
    garbage = norm.statistics(torch.where(observed, y, 1e9), observed)
    for value, other in zip(statistics, garbage, strict=True):
        assert torch.equal(value, other)
        assert value.isfinite().all()
    norm.normalize(y, statistics).nansum().backward() if kind != "none" else None
    for parameter in norm.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_revin_uses_the_mean_and_std_of_the_observed_values():
    y = torch.tensor([[[1.0], [NAN], [3.0], [5.0]]])
    mean, std = RevIN(1, eps=1e-12).statistics(y, ~y.isnan())
    assert mean.item() == 3.0
    assert std.item() == pytest.approx(math.sqrt(8 / 3))


def test_revin_statistics_carry_no_gradient():
    y = torch.randn(2, 5, 3, requires_grad=True)
    assert not any(value.requires_grad for value in RevIN(3).statistics(y, ~y.isnan()))


def test_a_constant_window_is_finite_at_every_data_scale():
    for scale in (1e-6, 1.0, 1e6):
        norm = RevIN(1)
        norm.fit(torch.zeros(1), torch.tensor([scale]))
        y = torch.full((1, 8, 1), 3 * scale)
        statistics = norm.statistics(y, ~y.isnan())
        assert norm.normalize(y, statistics).abs().max() < 1e-3
        assert statistics.std.item() == pytest.approx(math.sqrt(1e-5) * scale, rel=1e-3)


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1e6, 1e30])
def test_the_unit_of_the_values_does_not_matter_once_fitted(unit: float):
    torch.manual_seed(0)
    y = torch.randn(1, 50, 1)
    results = []
    for scale in (unit, 1.0):
        norm = RevIN(1)
        norm.fit(torch.zeros(1), torch.tensor([scale]))
        statistics = norm.statistics(y * scale, ~y.isnan())
        results.append(norm.normalize(y * scale, statistics))
        torch.testing.assert_close(norm.denormalize(results[-1], statistics), y * scale, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(*results)


def test_a_window_without_observations_takes_the_training_statistics():
    norm = RevIN(2)
    norm.fit(torch.tensor([4.0, 5.0]), torch.tensor([2.0, 3.0]))
    y = torch.full((1, 6, 2), NAN)
    mean, std = norm.statistics(y, ~y.isnan())
    assert mean.flatten().tolist() == [4.0, 5.0]
    assert std.flatten().tolist() == [2.0, 3.0]


def test_global_norm_refuses_to_work_before_it_is_fitted():
    norm, y = GlobalNorm(2), torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match="no statistics yet"):
        norm.statistics(y, ~y.isnan())


def test_a_loaded_state_dict_brings_the_statistics_along():
    source, target = fitted("global", 3), GlobalNorm(3)
    target.load_state_dict(source.state_dict())
    y = torch.randn(2, 4, 3)
    observed = ~y.isnan()
    for value, other in zip(source.statistics(y, observed), target.statistics(y, observed), strict=True):
        assert torch.equal(value, other)


def test_constant_and_never_observed_sensors_get_scale_one():
    norm = GlobalNorm(4)
    norm.fit(torch.tensor([1e5, 2.0, NAN, -3.0]), torch.tensor([1e-3, 0.0, NAN, 4.0]))
    assert norm.mean.tolist() == [1e5, 2.0, 0.0, -3.0]
    assert norm.std.tolist() == [1.0, 1.0, 1.0, 4.0]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(2), torch.ones(3), r"mean .*\(3,\).*\(2,\)"),
        (torch.zeros(3), torch.ones(3, 1), r"std .*\(3,\).*\(3, 1\)"),
        (torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), "std >= 0"),
        (torch.tensor([0.0, math.inf, 0.0]), torch.ones(3), "finite"),
    ],
    ids=["mean shape", "std shape", "negative", "infinite"],
)
def test_bad_training_statistics_are_refused(mean: Tensor, std: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        GlobalNorm(3).fit(mean, std)


def test_the_affine_inverse_exists_for_every_weight():
    norm = RevIN(1)
    y = torch.randn(1, 20, 1)
    statistics = norm.statistics(y, ~y.isnan())
    for log_weight in (-8.0, 0.0, 8.0):
        torch.nn.init.constant_(norm.log_weight, log_weight)
        torch.testing.assert_close(norm.denormalize(norm.normalize(y, statistics), statistics), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_windows_can_be_in_flight_at_once(kind: str):
    torch.manual_seed(0)
    norm, first, second = fitted(kind, 2), torch.randn(1, 9, 2), 100 * torch.randn(1, 9, 2)
    first_statistics = norm.statistics(first, ~first.isnan())
    z = norm.normalize(first, first_statistics)
    norm.normalize(second, norm.statistics(second, ~second.isnan()))
    torch.testing.assert_close(norm.denormalize(z, first_statistics), first, rtol=1e-4, atol=1e-5)
