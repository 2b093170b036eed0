"""Mixtures of linear forecasts: their shares, alone, inside a forecaster, and in checkpoints."""

import pytest
import torch
from small_forecaster import CONTEXT_LEN, NAN, TARGET_LEN, Silent, TimeMap, cpu_trainer, fit_and_load, windows
from torch import Tensor

from favorcast.forecasting import DataModule, SimulationTimeSeries
from favorcast.forecasting.cli.run_folder import check_weights
from favorcast.forecasting.linear_model import LinearPart
from favorcast.forecasting.stacked_linear import StackedLinear, best_shares, parts_of

LENGTH, HORIZON = 8, 5


def record(rows: int = 300, *, seed: int = 0) -> Tensor:
    """Three sensors, each a wave of its own that the next one follows, under noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(rows, dtype=torch.float64)[:, None]
    wave = torch.sin(0.5 * time + torch.arange(3)) + 0.5 * torch.sin(0.37 * time * torch.arange(1, 4))
    return wave + 0.3 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)


def blocks_of(values: Tensor, size: int = 40):
    cut = values.unfold(0, LENGTH + HORIZON, 1).mT
    return lambda: [(each[:, :LENGTH], each[:, LENGTH:, :2]) for each in cut.split(size)]


def fitted(kind: str = "stacked", **options) -> StackedLinear:
    model = StackedLinear(kind, 8, 3, 2).double()
    model.fit(blocks_of(record()), blocks_of(record(seed=1)), **options)
    return model


def held_out_errors(model: StackedLinear) -> Tensor:
    """Return the mean squared error of each part, and of the mixture last, at each step."""
    context, target = (torch.cat(part) for part in zip(*blocks_of(record(seed=1))(), strict=True))
    forecasts = [part(context, HORIZON) for part in (*model.parts, model)]
    return torch.stack([(each - target).square().mean(dim=(0, 2)) for each in forecasts])


def test_no_other_shares_forecast_held_out_windows_better():
    """At the minimum over the simplex, no part has a smaller slope than those that have a share (KKT)."""
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(4, 6, 30, generator=generator, dtype=torch.float64) + torch.tensor([0, 0, 2, 0])[:, None, None]
    errors[3] = 1.5 * errors[0]
    products = torch.einsum("pnk,qnk->npq", errors, errors)
    share = best_shares(products)
    slope = torch.einsum("npq,qn->pn", products, share)
    least = (slope * share).sum(dim=0)
    assert (share >= 0).all()
    torch.testing.assert_close(share.sum(dim=0), torch.ones(6, dtype=torch.float64))
    assert (slope >= least * (1 - 1e-9)).all()
    torch.testing.assert_close(torch.where(share > 0, slope, least), least.expand_as(share))
    assert (share[3] == 0).all()
    assert (share[:2] > 0.2).all()


def test_the_mixture_is_better_than_each_of_its_parts():
    model = StackedLinear("stacked", 8, 3, 2).double()
    model.fit(blocks_of(record(45)), blocks_of(record(seed=1)))
    *parts, mixture = held_out_errors(model)
    assert len(parts) == 7
    assert (mixture <= torch.stack(parts).min(dim=0).values * (1 + 1e-12)).all()
    assert mixture.sum() < 0.97 * min(each.sum() for each in parts)


def test_the_forecast_is_the_sum_of_the_shares_and_longer_ones_roll_on_from_it():
    model = fitted()
    context = record(seed=2)[None, :LENGTH].clone()
    context[0, 3, 1] = NAN
    expected = sum(part(context, HORIZON) * own[:, None] for part, own in zip(model.parts, model.share, strict=True))
    first = model(context, HORIZON)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(model(context, 2), expected[:, :2])
    whole = torch.where(context.isnan(), context[:, 2:3], context)
    kept = whole[:, -1:, 2:].expand(-1, HORIZON, -1)
    second = model(torch.cat((whole, torch.cat((first, kept), dim=2)), dim=1), HORIZON)
    torch.testing.assert_close(model(context, 2 * HORIZON), torch.cat((first, second), dim=1))


def test_units_and_blocks_change_nothing_and_missing_targets_do_not_count():
    expected = fitted().share
    unit = torch.tensor([1e3, 1e-2, 7.0], dtype=torch.float64)
    model = StackedLinear("stacked", 8, 3, 2).double()
    lost = [(x * unit, y * unit[:2]) for x, y in blocks_of(record(seed=1), size=7)()]
    nothing = (lost[0][0], torch.full_like(lost[0][1], NAN))
    model.fit(blocks_of(record() * unit), lambda: [*lost, nothing], scale=unit)
    torch.testing.assert_close(model.share, expected, rtol=0, atol=1e-6)


def test_without_held_out_windows_shares_are_equal():
    model = StackedLinear("stacked_own", 8, 3, 2).double()
    model.fit(blocks_of(record()), tuple)
    torch.testing.assert_close(model.share, torch.full((4, HORIZON), 0.25, dtype=torch.float64))


def test_parts_are_of_every_kind_and_of_windows_that_can_be_solved():
    assert parts_of("stacked_own", 336, 7) == [
        ("per_sensor", 84),
        ("per_sensor", 336),
        ("shared", 84),
        ("shared", 336),
    ]
    assert parts_of("stacked", 12, 207)[4:] == [("vector", 1), ("vector", 2), ("vector", 4)]
    assert parts_of("stacked", 80, 1)[:2] == [("shared", 20), ("shared", 80)]
    assert parts_of("stacked", 1, 5000) == [("per_sensor", 1), ("shared", 1), ("vector", 1)]


def test_what_is_chosen_is_told_of_the_part_with_the_largest_share():
    model = StackedLinear("stacked", 8, 3, 2).double()
    chosen = model.fit(blocks_of(record()), blocks_of(record(seed=1)))
    alone = [part.fit(blocks_of(record()), blocks_of(record(seed=1))) for part in model.parts]
    assert chosen == [alone[i][step] for step, i in enumerate(model.share.argmax(dim=0).tolist())]


def test_wrong_kinds_are_refused():
    with pytest.raises(ValueError, match="must be one of stacked, stacked_own: got 'all'"):
        StackedLinear("all", 8, 3, 2)
    with pytest.raises(ValueError, match="has no weights yet"):
        StackedLinear("stacked", 8, 3, 2)(torch.zeros(1, 8, 3), 2)
    with pytest.raises(ValueError, match="linear_model='stacked_own' is solved in closed form"):
        LinearPart(linear_model="stacked_own", linear_window=3)


def data() -> DataModule:
    values = record(200).float()
    series = SimulationTimeSeries(data=values * torch.tensor([1.0, 50.0, 0.1]) + 3, exogenous_columns=["Sensor_3"])
    return DataModule(series, CONTEXT_LEN, TARGET_LEN, batch_size=16)


RIDGE = {"linear_window": 4, "linear_model": "stacked", "linear_fit": "ridge"}


@pytest.mark.parametrize("kind", ["shared", "per_sensor", "stacked_own"])
def test_windows_normalised_each_by_itself_count_as_they_do_in_the_loss(kind: str):
    """A linear part that keeps the scale of its context is the same whatever normalises the model beside it."""
    forecasts = []
    for norm in ({"use_revin": True}, {"use_global_norm": True}, {}):
        module, model = data(), Silent(**(RIDGE | {"linear_model": kind}), **norm)
        cpu_trainer(max_epochs=0, num_sanity_val_steps=0).fit(model, module)
        context, target = next(iter(module.window_blocks("test")))
        forecasts.append(model.predict(torch.zeros(*context.shape[:2], 2), context, torch.zeros(*target.shape[:2], 2)))
    for other in forecasts[1:]:
        torch.testing.assert_close(forecasts[0], other, rtol=1e-4, atol=1e-4)


def test_the_solution_is_kept_in_the_checkpoint(tmp_path):
    model = TimeMap(**RIDGE, use_global_norm=True)
    loaded = fit_and_load(model, data(), tmp_path / "model.ckpt")
    inputs = windows()[:3]
    torch.testing.assert_close(loaded.predict(*inputs), model.predict(*inputs), rtol=0, atol=0)
    check_weights(TimeMap(**RIDGE, use_global_norm=True), tmp_path / "model.ckpt")
    resumed = TimeMap(**RIDGE, use_global_norm=True)
    cpu_trainer(max_epochs=1).fit(resumed, data(), ckpt_path=tmp_path / "model.ckpt")
    assert torch.equal(resumed.linear_model.share, model.linear_model.share)
    assert resumed.linear_model.is_fitted


@pytest.mark.parametrize("linear_fit", ["ridge", "both"])
def test_frozen_parts_stay_and_trained_ones_move(linear_fit: str):
    model, module = TimeMap(**(RIDGE | {"linear_fit": linear_fit}), use_global_norm=True, learning_rate=0.01), data()
    cpu_trainer(max_epochs=0, num_sanity_val_steps=0).fit(model, module)
    before = [part.weight.clone() for part in model.linear_model.parts]
    cpu_trainer(max_epochs=1).fit(model, module)
    moved = [not torch.equal(part.weight, then) for part, then in zip(model.linear_model.parts, before, strict=True)]
    assert any(moved) == (linear_fit == "both")
