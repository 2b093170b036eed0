"""A checkpoint knows its data: other records are matched by name, step and clock, or refused with what to do."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_forecaster import SMALL, cpu_trainer

from favorcast.forecasting import DataModule, SimulationTimeSeries, SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.data import TableFormat
from favorcast.forecasting.data.data_card import DataCard

ROWS = 600
HOURS = pd.date_range("2024-01-01", periods=ROWS, freq="h")


def frame(freq="h", rows=ROWS):
    index = pd.date_range("2024-01-01", periods=rows, freq=freq, name="time")
    phase = 2 * np.pi * np.arange(rows)[:, None] / 22 + np.arange(3)
    noise = 0.02 * np.random.default_rng(0).normal(size=(rows, 3))
    return pd.DataFrame((np.sin(phase) + noise) * [1, 5, 0.2] + [0, 50, -3], columns=["u", "v", "p"], index=index)


def data_of(data, **options):
    return DataModule(SimulationTimeSeries(data=data, **options), context_len=8, target_len=4, batch_size=16)


def trained(data, steps=2, **options):
    sizes = {"d_x": data.d_x, "d_y_context": data.d_y_context, "d_y_target": data.d_y_target}
    model = SpatioTemporalPerformer_Forecaster(**(SMALL | sizes | options))
    cpu_trainer(max_steps=steps, limit_val_batches=0).fit(model, datamodule=data)
    return model


def predictions(model, data):
    return torch.cat(cpu_trainer().predict(model, datamodule=data))


@pytest.mark.parametrize("kind", ["cycles", "calendar", "index", "known"])
def test_a_card_returns_from_a_checkpoint_as_it_was(tmp_path, kind):
    options = {
        "cycles": {"use_cycles": True},
        "calendar": {"table": TableFormat(date_order="dmy")},
        "index": {"use_cycles": False},
        "known": {"known_columns": ["p"]},
    }[kind]
    model = trained(data := data_of(frame(), **options))
    torch.save({"card": model.data_card}, tmp_path / "card.pt")
    content = torch.load(tmp_path / "card.pt", weights_only=True)["card"]
    assert content == data.data_card()
    assert DataCard.of_dict(content) == DataCard.of_dict(data.data_card())
    with pytest.raises(ValueError, match=r"data cards of version 1, got 2; update favorcast"):
        DataCard.of_dict(content | {"version": 2})


def test_a_lone_checkpoint_holds_windows_columns_step_and_clock(tmp_path):
    model = trained(data_of(frame(), exogenous_columns=["p"]))
    trainer = cpu_trainer(max_steps=0)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = SpatioTemporalPerformer_Forecaster.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    card = DataCard.of_dict(loaded.data_card)
    assert (card.context_len, card.target_len, card.time_resolution) == (8, 4, 1)
    assert (card.target_columns, card.exogenous_columns) == (["u", "v"], ["p"])
    assert card.step == 3600e9
    assert card.covariates.calendar == ("day", "week")


def test_reordered_columns_are_put_in_order():
    table = frame()
    model = trained(data_of(table))
    expected = predictions(model, data_of(table))
    other = data_of(table[["p", "u", "v"]])
    torch.testing.assert_close(predictions(model, other), expected, rtol=0, atol=0)
    assert other.series.target_cols == ["u", "v", "p"]


@pytest.mark.parametrize(
    "options", [{"use_cycles": True}, {"use_cycles": False}, {}], ids=["cycles", "index", "calendar"]
)
def test_covariates_go_on_by_the_clock_of_training(options):
    table = frame()
    model = trained(data_of(table, **options))
    whole = data_of(table, **options)
    expected = predictions(model, whole)
    for rows in (500, 511):
        part = data_of(table.iloc[-rows:], **options)
        found = predictions(model, part)
        count = min(len(found), len(expected))
        np.testing.assert_allclose(part.series.time_features, whole.series.time_features[-rows:], atol=1e-6)
        torch.testing.assert_close(found[-count:], expected[-count:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="v"), r"expected \['u', 'v', 'p'\], got \['u', 'p'\]"),
        (lambda t: t.rename(columns={"v": "w"}), r"the targets do not match those of training"),
        (lambda t: t.iloc[::2], r"the rows are 2:00:00 apart, those of training 1:00:00; resample"),
        (lambda t: t.reset_index(drop=True), "had dates for times, these have none"),
        (lambda t: t.set_index(np.arange(ROWS) * 0.5), "had dates for times, these have numbers"),
    ],
    ids=["missing", "renamed", "step", "no times", "numbers"],
)
@pytest.mark.parametrize("stage", ["test", "fit"])
def test_data_that_do_not_match_are_refused(change, message, stage):
    model = trained(data_of(frame()))
    other = data_of(change(frame()))
    with pytest.raises(ValueError, match=message):
        getattr(cpu_trainer(max_steps=1), stage)(model, datamodule=other)


def test_a_model_may_forget_its_data():
    model = trained(data_of(frame()))
    model.data_card = None
    other = data_of(frame().rename(columns={"v": "w"}))
    cpu_trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=other)
    assert model.data_card["target_columns"] == ["u", "w", "p"]


def test_known_columns_are_covariates_scaled_by_training_rows():
    series = SimulationTimeSeries(data=frame(), known_columns=["p"], use_cycles=False)
    assert (series.target_cols, series.time_cols) == (["u", "v"], ["Time_Index", "p"])
    train = frame()["p"].to_numpy()[:420]
    np.testing.assert_allclose(
        series.time_features[:, 1], (frame()["p"] - train.mean()) / train.std(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("freq", "rows", "calendar"),
    [
        ("h", 600, ("day", "week")),
        ("h", 60, ()),
        ("h", 100, ("day",)),
        ("D", 600, ("week",)),
        ("D", 3000, ("week", "year")),
        ("10ms", 600, ()),
    ],
)
def test_dates_choose_the_cycles_that_training_rows_hold_twice(freq, rows, calendar):
    series = SimulationTimeSeries(data=frame(freq, rows))
    assert series.covariates.calendar == calendar
    assert bool(series.covariates.frequencies) == (not calendar)
    assert len(series.frequencies) == 1  # the season of a yardstick, whatever the covariates


def test_the_calendar_follows_the_local_clock():
    table = frame().tz_localize("UTC").tz_convert("Asia/Tokyo")
    series = SimulationTimeSeries(data=table, use_cycles=False, calendar=["day"])
    midnight = int(np.argmax(table.index.hour == 0))
    np.testing.assert_allclose(series.time_features[midnight, 1:], [0, 1], atol=1e-6)


def test_a_daily_cycle_keeps_its_phase_to_the_last_test_row():
    rows, noise = 9000, 0.1 * np.random.default_rng(0).normal(size=(9000, 3))
    data = np.sin(2 * np.pi * np.arange(rows)[:, None] / 24 + np.arange(3)) + noise
    series = SimulationTimeSeries(data=data)
    drift = abs(series.frequencies[0] - 1 / 24) * rows * 360
    assert drift < 5  # degrees; a Welch bin of 1024 rows is 844 off by the first test row


@pytest.mark.parametrize(
    ("trained_in", "given_in", "message"),
    [
        (None, "Europe/Berlin", r"have the time zone Europe/Berlin, those of training had none.*without a zone"),
        (None, "UTC", r"have the time zone UTC, those of training had none"),
        ("Europe/Berlin", None, r"name no time zone, those of training were in Europe/Berlin.*table.time_zone"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"use_cycles": True}], ids=["calendar", "frequencies"])
def test_clocks_that_cannot_be_compared_are_refused(trained_in, given_in, message, options):
    model = trained(data_of(frame().tz_localize(trained_in), **options))
    other = frame().tz_localize(given_in)
    with pytest.raises(ValueError, match=message):
        model.forecast(other)
    with pytest.raises(ValueError, match=message):
        cpu_trainer().test(model, datamodule=data_of(other, **options))


def test_other_time_zones_than_that_of_training_are_the_same_moments():
    there = frame().tz_localize("Europe/Berlin")
    model = trained(data_of(there))
    here = model.forecast(there.tz_convert("America/New_York"))
    np.testing.assert_allclose(here.values, model.forecast(there).values, rtol=1e-6)
    assert here.time_zone == "America/New_York"
