import numpy as np
import pytest
import torch

from favorcast.forecasting.evaluation.baseline import HeldOutChoice, carry_missing
from favorcast.forecasting.evaluation.baselines import (
    Analogs,
    DynamicModeDecomposition,
    Persistence,
    RidgeRegression,
    SeasonalNaive,
    VectorRidge,
    default_baselines,
)

SIZES = {"context_len": 24, "target_len": 8, "d_y_target": 2}
NAN = float("nan")


def travelling_wave(rows=600, sensors=3, noise=0.0, seed=0):
    steps = torch.arange(rows, dtype=torch.float64)[:, None]
    phase = 0.7 * torch.arange(sensors)
    wave = torch.sin(2 * torch.pi * steps / 12 - phase) + 0.5 * torch.sin(2 * torch.pi * steps / 7.3 - 2 * phase)
    generator = torch.Generator().manual_seed(seed)
    return wave * (1 + 99 * torch.arange(sensors)) + 5 + noise * torch.randn(rows, sensors, generator=generator)


def windows_of(values, context_len=24, target_len=8):
    windows = values.unfold(0, context_len + target_len, 1).mT
    return windows[:, :context_len], windows[:, context_len:]


def all_baselines():
    return default_baselines(period=12)


@pytest.mark.parametrize("baseline", all_baselines(), ids=lambda baseline: baseline.name)
def test_forecasts_have_the_shape_and_type_of_the_context(baseline):
    context, _ = windows_of(travelling_wave(200))
    baseline.fit(travelling_wave(), **SIZES)
    forecast = baseline.predict(context.float())
    assert forecast.shape == (len(context), 8, 2)
    assert forecast.dtype == torch.float32


@pytest.mark.parametrize("baseline", all_baselines(), ids=lambda baseline: baseline.name)
def test_missing_values_never_reach_a_forecast(baseline):
    generator = torch.Generator().manual_seed(0)
    values = travelling_wave(noise=0.1)
    values[torch.rand(values.shape, generator=generator) < 0.2] = NAN
    values[:40] = NAN
    context = windows_of(values)[0][::20].clone()
    context[0] = NAN
    context[1, :, 1] = NAN
    baseline.fit(values, **SIZES)
    assert baseline.predict(context).isfinite().all()
    torch.testing.assert_close(baseline.predict(context)[3], baseline.predict(context[3:4])[0])


@pytest.mark.parametrize("baseline", all_baselines(), ids=lambda baseline: baseline.name)
def test_units_of_the_sensors_do_not_matter(baseline):
    values = travelling_wave(noise=0.1)
    scale, offset = torch.tensor([1.0, 1e3, 1e-3]), torch.tensor([0.0, 50.0, 2.0])
    context, _ = windows_of(values[-100:])
    expected = baseline.fit(values, **SIZES).predict(context) * scale[:2] + offset[:2]
    found = baseline.fit(values * scale + offset, **SIZES).predict(context * scale + offset)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("baseline", all_baselines(), ids=lambda baseline: baseline.name)
def test_a_constant_and_an_empty_column_are_harmless(baseline):
    values = torch.cat([travelling_wave(), torch.full((600, 1), 0.1), torch.full((600, 1), NAN)], dim=1)
    context, _ = windows_of(values[-100:])
    forecast = baseline.fit(values, context_len=24, target_len=8, d_y_target=5).predict(context)
    assert forecast.isfinite().all()
    torch.testing.assert_close(forecast[..., 3], torch.full_like(forecast[..., 3], 0.1))


@pytest.mark.parametrize("baseline", all_baselines(), ids=lambda baseline: baseline.name)
def test_training_rows_may_be_numpy_and_predicting_needs_a_fit(baseline):
    values = travelling_wave()
    fresh = type(baseline)(12) if isinstance(baseline, SeasonalNaive) else baseline
    with pytest.raises(ValueError, match="must be fitted before it predicts"):
        SeasonalNaive(12).predict(values[None, :24])
    fresh.fit(values.numpy().astype(np.float32), **SIZES)
    with pytest.raises(ValueError, match=r"\(b, 24, 3\), got \(1, 23, 3\)"):
        fresh.predict(values[None, :23])


def test_persistence_repeats_the_last_observed_value():
    context = torch.tensor([[[1.0, 5.0], [2.0, NAN], [NAN, NAN]]])
    baseline = Persistence().fit(torch.randn(20, 2), context_len=3, target_len=2, d_y_target=2)
    torch.testing.assert_close(baseline.predict(context), torch.tensor([[[2.0, 5.0], [2.0, 5.0]]]))


def test_persistence_of_an_unobserved_sensor_is_its_training_mean():
    values = torch.arange(20.0)[:, None]
    baseline = Persistence().fit(values, context_len=3, target_len=1, d_y_target=1)
    assert baseline.predict(torch.full((1, 3, 1), NAN)).item() == pytest.approx(9.5)


def test_seasonal_naive_repeats_the_last_period_beyond_one_period():
    baseline = SeasonalNaive(3).fit(torch.randn(40, 1), context_len=6, target_len=7, d_y_target=1)
    forecast = baseline.predict(torch.arange(6.0).reshape(1, 6, 1))
    torch.testing.assert_close(forecast.flatten(), torch.tensor([3.0, 4, 5, 3, 4, 5, 3]))


@pytest.mark.parametrize(
    "baseline",
    [
        RidgeRegression(penalty=1e-6),
        VectorRidge(10, penalty=1e-6),
        DynamicModeDecomposition(10, energy=1.0),
    ],
    ids=lambda baseline: baseline.name,
)
def test_linear_baselines_solve_a_travelling_wave(baseline):
    values = travelling_wave()
    context, target = windows_of(values[-150:])
    forecast = baseline.fit(values[:-150], **SIZES).predict(context)
    error = (forecast - target[..., :2]).square().mean(dim=(0, 1)).sqrt() / values.std(dim=0)[:2]
    assert (error < 1e-2).all()


def test_ridge_is_the_minimiser_of_its_definition():
    values = travelling_wave(noise=0.5)
    scaled = (values - values.mean(dim=0)) / values.std(dim=0, correction=0)
    context, target = windows_of(scaled)
    last = context[:, -1:, :2]
    inputs = (context[..., :2] - last).mT.reshape(-1, 24)
    outputs = (target[..., :2] - last).mT.reshape(-1, 8)
    stacked = torch.cat([inputs, 2.0**0.5 * torch.eye(24, dtype=torch.float64)])
    weight = torch.linalg.lstsq(stacked, torch.cat([outputs, torch.zeros(24, 8)])).solution
    ridge = RidgeRegression(penalty=2.0).fit(values, **SIZES)
    expected = (inputs @ weight).reshape(-1, 2, 8).mT + last
    torch.testing.assert_close(ridge.predict(context * values.std(dim=0, correction=0) + values.mean(dim=0)),
                               expected * values.std(dim=0, correction=0)[:2] + values.mean(dim=0)[:2])  # fmt: skip


@pytest.mark.parametrize(
    "baseline", [RidgeRegression(), VectorRidge(5), DynamicModeDecomposition(5)], ids=lambda b: b.name
)
def test_chunks_do_not_change_the_fit(baseline, monkeypatch):
    values = travelling_wave(noise=0.3)
    context, _ = windows_of(values[-60:])
    expected = baseline.fit(values, **SIZES).predict(context)
    monkeypatch.setattr("favorcast.forecasting.evaluation.training_rows.CHUNK_ELEMENTS", 700)
    torch.testing.assert_close(baseline.fit(values, **SIZES).predict(context), expected)


def test_analogs_average_the_futures_of_the_nearest_pasts_by_their_nearness():
    values = travelling_wave(noise=0.2)
    scaled = (values - values.mean(dim=0)) / values.std(dim=0, correction=0)
    past, future = windows_of(scaled, 3, 8)
    query = windows_of(values, 24, 8)[0][40:43] + 0.01
    present = ((query - values.mean(dim=0)) / values.std(dim=0, correction=0))[:, -3:]
    expected = []
    for each in present:
        distance = (past - each).square().sum(dim=(1, 2))
        nearest = distance.argsort()[:4]
        weight = 1 / distance[nearest]
        expected.append((weight[:, None, None] * future[nearest][..., :2]).sum(dim=0) / weight.sum())
    forecast = Analogs(lags=3, neighbours=4).fit(values, **SIZES).predict(query)
    expected = torch.stack(expected) * values.std(dim=0, correction=0)[:2] + values.mean(dim=0)[:2]
    torch.testing.assert_close(forecast, expected)


def test_an_analog_that_is_the_present_itself_decides_alone():
    values = travelling_wave(noise=0.2)
    context, target = windows_of(values)
    forecast = Analogs(lags=5, neighbours=8).fit(values, **SIZES).predict(context[:3])
    torch.testing.assert_close(forecast, target[:3, :, :2], rtol=1e-3, atol=1e-3)


def test_more_neighbours_than_windows_are_all_of_them():
    values = travelling_wave(33)
    assert Analogs(neighbours=99).fit(values, **SIZES).predict(values[None, :24]).isfinite().all()


def finely_sampled(rows, columns, period, growth=0.0, drift=1e-4):
    """A smooth wave at a fraction of its period, in two groups of sensors with units of their own."""
    time = np.arange(rows)[:, None]
    phase = np.linspace(0, 2, columns)[None]
    wave = np.sin(2 * np.pi * time / period + phase) + 0.3 * np.sin(4 * np.pi * time / period + 3 * phase)
    values = wave * np.exp(growth * time / rows) + drift * time
    values[:, columns // 2 :] = 50 * values[:, columns // 2 :] + 1e3
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize(
    "values",
    [
        finely_sampled(3000, 40, 20_000),
        finely_sampled(1000, 40, 1000, growth=2.0, drift=1e-3),
        finely_sampled(800, 6, 8000, growth=-2.0),
        finely_sampled(3000, 6, 500),
    ],
    ids=["part of a period", "growing", "decaying", "several periods"],
)
def test_no_yardstick_falls_below_persistence_on_finely_sampled_data(values):
    """Without a path from the last value, vector ridge, dmd and analogs ended at skills of -2, -0.2 and -1785."""
    train, seen = int(0.7 * len(values)), int(0.85 * len(values))
    windows = values.unfold(0, 120, 1).mT[seen - 96 :]
    context, target = windows[:, :96], windows[:, 96:]
    sizes = {"context_len": 96, "target_len": 24, "d_y_target": values.shape[1], "validation_rows": seen - train}
    errors = {}
    for baseline in default_baselines():
        error = (baseline.fit(values[:seen], **sizes).predict(context) - target) / values[:train].std(dim=0)
        errors[baseline.name] = error.square().mean().item()
    skill = {name: 1 - error / errors["persistence"] for name, error in errors.items()}
    assert min(skill["ridge"], skill["vector ridge"]) > 0.9999
    assert skill["dmd"] > 0.5
    assert skill["analogs"] > 0


def test_a_fit_that_would_take_too_much_is_refused_before_it_starts(monkeypatch):
    values = torch.randn(400, 100, dtype=torch.float64)
    monkeypatch.setattr("favorcast.forecasting.evaluation.baseline.MOST_RANK", 150)
    with pytest.raises(ValueError, match=r"vector ridge would decompose a matrix of 300 rows .*: at most 150 rows"):
        VectorRidge(3).fit(values, context_len=24, target_len=8, d_y_target=100)
    choice = HeldOutChoice("vector ridge", [VectorRidge(1), VectorRidge(3)])
    choice.fit(values, context_len=24, target_len=8, d_y_target=100)
    assert {each.lags for each in choice.chosen} == {1}
    monkeypatch.setattr("favorcast.forecasting.evaluation.baseline.MOST_RANK", 50)
    with pytest.raises(ValueError, match="vector ridge would decompose a matrix of 100 rows"):
        choice.fit(values, context_len=24, target_len=8, d_y_target=100)


def test_growing_modes_do_not_explode():
    growing = torch.exp(torch.arange(200.0, dtype=torch.float64) / 20)[:, None] * torch.tensor([[1.0, 2.0]])
    baseline = DynamicModeDecomposition(4).fit(growing, context_len=10, target_len=100, d_y_target=2)
    forecast = baseline.predict(growing[None, -10:])
    assert forecast.abs().max() < 2 * growing.abs().max()


def test_held_out_choice_keeps_the_candidate_that_forecasts_best():
    candidates = [Persistence(), SeasonalNaive(12), SeasonalNaive(5)]
    values = torch.sin(2 * torch.pi * torch.arange(400.0) / 12)[:, None]
    choice = HeldOutChoice("naive", candidates).fit(values, context_len=24, target_len=8, d_y_target=1)
    assert choice.chosen == [candidates[1]] * 8
    assert choice.name == "naive"


def test_held_out_choice_needs_rows_to_hold_back():
    choice = HeldOutChoice("vector ridge", [VectorRidge(1), VectorRidge(2)])
    with pytest.raises(ValueError, match="holds back a fifth of the training rows to choose a setting, but 35 rows"):
        choice.fit(torch.randn(35, 2), context_len=24, target_len=8, d_y_target=2)


def test_gaps_take_the_last_value_and_leading_gaps_the_first():
    series = torch.tensor([[NAN, NAN, 3.0, NAN, 5.0, NAN], [NAN] * 6]).T
    carried = carry_missing(series)
    assert carried[:, 0].tolist() == [3, 3, 3, 3, 5, 5]
    assert carried[:, 1].isnan().all()


@pytest.mark.parametrize(
    ("values", "sizes", "message"),
    [
        (torch.zeros(50), SIZES, "must be \\(rows, columns\\)"),
        (torch.zeros(50, 3), {**SIZES, "d_y_target": 4}, "at least d_y_target=4"),
        (torch.zeros(50, 3), {**SIZES, "d_y_target": 0}, "d_y_target=0"),
        (torch.zeros(31, 3), SIZES, "context_len=24, target_len=8 and 31 rows"),
        (torch.zeros(50, 3), {**SIZES, "target_len": 0}, "at least 1"),
    ],
)
def test_unfit_training_rows_are_refused(values, sizes, message):
    with pytest.raises(ValueError, match=message):
        Persistence().fit(values, **sizes)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="period must be at least 1"):
        SeasonalNaive(0)
    with pytest.raises(ValueError, match="period=30 and context_len=24"):
        SeasonalNaive(30).fit(travelling_wave(), **SIZES)
    with pytest.raises(ValueError, match="penalty must be positive"):
        RidgeRegression(0.0)
    with pytest.raises(ValueError, match="lags must be at least 1"):
        VectorRidge(0)
    with pytest.raises(ValueError, match=r"energy must lie in \(0, 1\]"):
        DynamicModeDecomposition(energy=1.5)
    with pytest.raises(ValueError, match="delays and max_modes"):
        DynamicModeDecomposition(delays=0)
    with pytest.raises(ValueError, match="lags and neighbours"):
        Analogs(neighbours=0)
    with pytest.raises(ValueError, match="at least one baseline"):
        HeldOutChoice("empty", [])
