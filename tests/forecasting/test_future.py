"""Forecasts beyond the end of a record: labelled, from the latest context, by the clock of training."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_forecaster import SMALL, cpu_trainer

from favorcast.forecasting import (
    DataModule,
    DataWarning,
    SimulationTimeSeries,
    SpatioTemporalPerformer_Forecaster,
    TableFormat,
    load_forecaster,
)
from favorcast.forecasting.data import read_series
from favorcast.forecasting.data.place_axes import PlaceAxis

ROWS, CONTEXT, TARGET = 400, 8, 4
VALUES = np.sin(2 * np.pi * np.arange(ROWS + 50)[:, None] / 11 + np.arange(3)) * [1, 5, 0.2] + [0, 50, -3]
VALUES += 0.02 * np.random.default_rng(0).normal(size=VALUES.shape)
HOURS = pd.date_range("2024-01-01", periods=ROWS + 50, freq="h", name="time")
TABLE = pd.DataFrame(VALUES, columns=["u [m/s]", "v [m/s]", "p [Pa]"], index=HOURS)


def trained(data, *, time_resolution=1, steps=60, sizes=None, **options):
    series = SimulationTimeSeries(data=data, **options)
    module = DataModule(series, CONTEXT, TARGET, batch_size=16, time_resolution=time_resolution)
    widths = {"d_x": module.d_x, "d_y_context": module.d_y_context, "d_y_target": module.d_y_target}
    torch.manual_seed(0)
    model = SpatioTemporalPerformer_Forecaster(
        **(SMALL | widths | {"initial_lr": 0.01, "warmup_steps": 5} | (sizes or {}))
    )
    cpu_trainer(max_steps=steps, max_epochs=-1, limit_val_batches=0).fit(model, datamodule=module)
    return model, module


@pytest.fixture(scope="module")
def hourly():
    return trained(TABLE.iloc[:ROWS])[0]


@pytest.fixture(scope="module")
def untimed():
    return trained(VALUES[:ROWS], steps=300)[0]


@pytest.fixture(scope="module")
def checkpoint(hourly, tmp_path_factory):
    path = tmp_path_factory.mktemp("lone") / "copied.ckpt"
    trainer = cpu_trainer(max_steps=0)
    trainer.strategy.connect(hourly)
    trainer.save_checkpoint(path)
    return path


def test_a_forecast_continues_times_and_keeps_names_and_units(hourly):
    forecast = hourly.forecast(TABLE.iloc[:ROWS])
    assert forecast.values.shape == (TARGET, 3)
    assert forecast.columns == list(TABLE.columns)
    assert forecast.units == ["m/s", "m/s", "Pa"]
    np.testing.assert_array_equal(forecast.times, HOURS[ROWS : ROWS + TARGET].to_numpy().astype("datetime64[ns]"))
    frame = forecast.to_frame()
    assert (list(frame.columns), frame.index.name) == (list(TABLE.columns), "time")
    assert frame.attrs["units"]["p [Pa]"] == "Pa"


def test_the_forecast_is_that_of_the_window_behind_the_end(hourly):
    padded = TABLE.iloc[: ROWS + TARGET].copy()
    series = SimulationTimeSeries(data=padded)
    windows = DataModule(series, CONTEXT, TARGET).windows("test")
    window = [part[None] for part in windows[len(windows) - 1][:3]]
    expected = hourly.predict(*window)[0]
    np.testing.assert_allclose(hourly.forecast(TABLE.iloc[:ROWS]).values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [CONTEXT, 100, ROWS])
def test_only_the_latest_context_counts(hourly, rows):
    whole = hourly.forecast(TABLE.iloc[:ROWS]).values
    np.testing.assert_allclose(hourly.forecast(TABLE.iloc[ROWS - rows : ROWS]).values, whole, rtol=1e-5, atol=1e-6)


def test_a_longer_horizon_rolls_on_from_the_forecasts_before(hourly):
    long = hourly.forecast(TABLE.iloc[:ROWS], horizon=10)
    assert long.values.shape == (10, 3)
    np.testing.assert_allclose(long.values[:TARGET], hourly.forecast(TABLE.iloc[:ROWS]).values, rtol=1e-5, atol=1e-6)
    table = TABLE.iloc[: ROWS + TARGET].copy()
    table.iloc[ROWS:] = long.values[:TARGET]
    np.testing.assert_allclose(long.values[TARGET : 2 * TARGET], hourly.forecast(table).values, rtol=1e-4, atol=1e-5)
    assert hourly.forecast(TABLE.iloc[:ROWS], horizon=1).values.shape == (1, 3)


def test_rolled_forecasts_follow_the_truth(untimed):
    error = untimed.forecast(VALUES[:ROWS], horizon=40).values - VALUES[ROWS : ROWS + 40]
    assert ((error / VALUES.std(axis=0)) ** 2).mean() < 0.1  # one shot of 40 steps errs by more than the variance


@pytest.mark.parametrize("rows", [CONTEXT, 22, 100, 399])
def test_the_phase_of_rows_without_times_is_read_from_the_values(untimed, rows):
    whole = untimed.forecast(VALUES[:ROWS]).values
    error = (untimed.forecast(VALUES[ROWS - rows : ROWS]).values - whole) / VALUES.std(axis=0)
    assert np.abs(error).max() < (0.5 if rows == CONTEXT else 0.1)  # eight rows are less than a period of eleven


@pytest.mark.parametrize("form", ["frame", "csv", "parquet", "array", "dataarray"])
def test_any_form_of_the_data_gives_the_same_forecast(hourly, untimed, form, tmp_path):
    if form == "array":
        model, expected, data = untimed, untimed.forecast(VALUES[:ROWS]).values, torch.tensor(VALUES[:ROWS])
    else:
        model, expected, data = hourly, hourly.forecast(TABLE.iloc[:ROWS]).values, TABLE.iloc[:ROWS]
    if form == "csv":
        data.to_csv(tmp_path / "a.csv")
        data = tmp_path / "a.csv"
    elif form == "parquet":
        pytest.importorskip("pyarrow", reason='pip install "favorcast[data]"')
        data.to_parquet(tmp_path / "a.parquet")
        data = str(tmp_path / "a.parquet")
    elif form == "dataarray":
        pytest.importorskip("xarray", reason='pip install "favorcast[data]"')
        data = data.to_xarray()
    np.testing.assert_allclose(model.forecast(data).values, expected, rtol=1e-5, atol=1e-5)


def test_a_lone_checkpoint_forecasts(hourly, checkpoint):
    loaded = load_forecaster(checkpoint)
    assert type(loaded) is SpatioTemporalPerformer_Forecaster
    table = TABLE.iloc[:ROWS]
    np.testing.assert_array_equal(loaded.forecast(table, 6).values, hourly.forecast(table, 6).values)


def test_reordered_columns_are_put_in_order(hourly):
    expected = hourly.forecast(TABLE.iloc[:ROWS])
    found = hourly.forecast(TABLE.iloc[:ROWS, [2, 0, 1]])
    assert found.columns == expected.columns
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_column_without_values_in_the_context_is_told(hourly, tmp_path):
    with pytest.warns(DataWarning, match="the last 8 rows hold no value of p"):
        found = hourly.forecast(TABLE.iloc[:ROWS].assign(**{"p [Pa]": np.nan}))
    found.save(tmp_path / "a.csv")
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="p [Pa]"), r"\['p \[Pa\]'\] are missing; remove unknown columns, add missing ones"),
        (
            lambda t: t.rename(columns={"p [Pa]": "p [hPa]"}),
            r"are missing and .*'p \[hPa\]'\] are unknown; rename 'p \[hPa\]'",
        ),
        (lambda t: t.assign(w=1.0), r"\['w'\] are unknown"),
        (lambda t: t.iloc[::2], r"the rows are 2:00:00 apart, those of training 1:00:00; resample"),
        (lambda t: t.iloc[-5:], "a context takes 8 rows, got 5"),
        (lambda t: t.reset_index(drop=True), "had dates for times, these have none; .*give the data a column"),
        (lambda t: t.drop(t.index[-4]), r"the last 8 rows.*reach across a break in time"),
        (lambda t: t * np.nan, "hold no value of any target"),
    ],
    ids=["missing", "renamed", "unknown", "step", "short", "no times", "gap", "nothing observed"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_data_that_do_not_match_are_refused(hourly, change, message):
    with pytest.raises(ValueError, match=message):
        hourly.forecast(change(TABLE.iloc[:ROWS]))


def test_a_horizon_is_positive_and_the_data_known(hourly):
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        hourly.forecast(TABLE, horizon=0)
    fresh = SpatioTemporalPerformer_Forecaster(**SMALL)
    with pytest.raises(ValueError, match="does not know its data: fit it with a DataModule"):
        fresh.forecast(TABLE)


def test_missing_values_in_the_context_are_allowed(hourly):
    table = TABLE.iloc[:ROWS].copy()
    table.iloc[-5:, 0] = np.nan
    table.iloc[-3, 1] = np.nan
    assert np.isfinite(hourly.forecast(table, 9).values).all()


def test_a_gap_before_the_context_does_not_matter(hourly):
    with pytest.warns(DataWarning, match="1 gap "):
        found = hourly.forecast(TABLE.iloc[:ROWS].drop(TABLE.index[200]))
    np.testing.assert_allclose(found.values, hourly.forecast(TABLE.iloc[:ROWS]).values, rtol=1e-5, atol=1e-6)


def test_every_second_row_is_forecast_every_second_row():
    model, _ = trained(TABLE.iloc[:ROWS], time_resolution=2)
    forecast = model.forecast(TABLE.iloc[:ROWS], horizon=6)
    steps = HOURS[ROWS + 1 : ROWS + 13 : 2].to_numpy().astype("datetime64[ns]")
    np.testing.assert_array_equal(forecast.times, steps)
    assert len(forecast.context_times) == CONTEXT
    np.testing.assert_array_equal(forecast.context[-1], TABLE.iloc[ROWS - 1])


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC"])
def test_time_zones_are_kept(zone, tmp_path):
    table = TABLE.iloc[:ROWS].tz_localize("UTC").tz_convert(zone)
    model, _ = trained(table, steps=2)
    frame = model.forecast(table).to_frame()
    expected = HOURS[ROWS : ROWS + TARGET].tz_localize("UTC").tz_convert(zone)
    assert str(frame.index.tz) == zone
    assert list(frame.index) == list(expected)
    model.forecast(table).save(tmp_path / "a.csv")
    written = pd.read_csv(tmp_path / "a.csv")["time"].tolist()
    assert written == [stamp.isoformat() for stamp in expected]


def test_months_and_solver_times_go_on():
    table = TABLE.iloc[:60].set_index(pd.date_range("2019-01-01", periods=60, freq="MS"))
    model, _ = trained(table, steps=2)
    assert [str(t)[:10] for t in model.forecast(table).times] == [
        "2024-01-01",
        "2024-02-01",
        "2024-03-01",
        "2024-04-01",
    ]
    solver = TABLE.iloc[:ROWS].set_index(pd.Index(82490.0 + 0.25 * np.arange(ROWS), name="time"))
    model, _ = trained(solver, steps=2)
    np.testing.assert_allclose(model.forecast(solver).times, 82590.0 + 0.25 * np.arange(TARGET))


def test_exogenous_columns_are_context_only():
    model, _ = trained(TABLE.iloc[:ROWS], exogenous_columns=["p [Pa]"], steps=2)
    forecast = model.forecast(TABLE.iloc[:ROWS], horizon=9)
    assert forecast.columns == ["u [m/s]", "v [m/s]"]
    with pytest.raises(ValueError, match="are missing"):
        model.forecast(TABLE.iloc[:ROWS, :2])


class TestKnownColumns:
    """Columns whose future is known move the forecast, and are asked for."""

    @pytest.fixture(scope="class")
    @staticmethod
    def model():
        table = TABLE.copy()
        plan = np.random.default_rng(1).normal(size=len(table))
        table["plan"] = plan
        table["u [m/s]"] += 3 * plan  # nothing but the plan tells
        return trained(table.iloc[:ROWS], known_columns=["plan"], steps=300)[0], table

    def test_the_future_of_known_columns_is_used(self, model):
        forecaster, table = model
        plan = table[["plan"]].iloc[ROWS : ROWS + 10]
        errors = {}
        for name, covariates in {"right": plan, "wrong": -plan}.items():
            forecast = forecaster.forecast(table.iloc[:ROWS], 10, covariates)
            errors[name] = np.abs(forecast.values[:, 0] - table["u [m/s]"].iloc[ROWS : ROWS + 10]).mean()
        assert errors["right"] < 0.5 * errors["wrong"]

    def test_known_columns_are_matched_by_time(self, model):
        forecaster, table = model
        expected = forecaster.forecast(table.iloc[:ROWS], 6, table[["plan"]].iloc[ROWS : ROWS + 6])
        whole = forecaster.forecast(table.iloc[:ROWS], 6, table)
        by_row = forecaster.forecast(table.iloc[:ROWS], 6, table[["plan"]].iloc[ROWS : ROWS + 6].reset_index(drop=True))
        np.testing.assert_array_equal(whole.values, expected.values)
        np.testing.assert_array_equal(by_row.values, expected.values)

    @pytest.mark.parametrize(
        ("covariates", "message"),
        [
            (None, r"give covariates: the columns \['plan'\] at the 6 times to forecast"),
            (TABLE, r"covariates must hold the columns \['plan'\]: \['plan'\] are missing"),
            (pd.DataFrame({"plan": [1.0, 2.0]}), "covariates must hold 6 rows, the times to forecast, got 2"),
        ],
    )
    def test_what_is_missing_is_said(self, model, covariates, message):
        forecaster, table = model
        with pytest.raises(ValueError, match=message):
            forecaster.forecast(table.iloc[:ROWS], 6, covariates)
        with pytest.raises(ValueError, match="every time from 2024-01-17T16:00:00 to 2024-01-17T21:00:00"):
            forecaster.forecast(table.iloc[:ROWS], 6, table.iloc[: ROWS + 3])

    def test_covariates_by_another_clock_are_refused(self, model):
        forecaster, table = model
        with pytest.raises(ValueError, match="the zone is UTC, that of the data unknown"):
            forecaster.forecast(table.iloc[:ROWS], 6, table[["plan"]].tz_localize("UTC"))

    def test_covariates_that_nothing_asks_for_are_refused(self, hourly):
        with pytest.raises(ValueError, match="trained without known_columns"):
            hourly.forecast(TABLE.iloc[:ROWS], covariates=TABLE)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".nc"])
def test_files_hold_values_times_names_and_units(hourly, tmp_path, suffix):
    if suffix != ".csv":
        pytest.importorskip("pyarrow" if suffix == ".parquet" else "h5netcdf", reason='pip install "favorcast[data]"')
    forecast = hourly.forecast(TABLE.iloc[:ROWS])
    path = tmp_path / f"future{suffix}"
    forecast.save(path)
    record = read_series(path)
    np.testing.assert_allclose(record.values, forecast.values, rtol=1e-6)
    np.testing.assert_array_equal(record.timestamps, forecast.times)
    assert all(name in column for name, column in zip(forecast.columns, record.columns, strict=True))


def test_large_means_keep_their_digits_in_files(tmp_path):
    table = TABLE.iloc[:ROWS] * 0.01 + 101_325
    model, _ = trained(table, steps=2, sizes={"use_revin": True})
    forecast = model.forecast(table)
    forecast.save(tmp_path / "a.csv")
    written = pd.read_csv(tmp_path / "a.csv").iloc[:, 1:].to_numpy()
    np.testing.assert_allclose(written, forecast.values, rtol=0, atol=1e-6)


def test_arrays_of_xarray_keep_coordinates(tmp_path):
    xarray = pytest.importorskip("xarray", reason='pip install "favorcast[data]"')
    data = xarray.DataArray(
        VALUES[:ROWS].T,
        dims=("z", "time"),
        coords={"z": ("z", [0.5, 1.0, 2.0], {"units": "m", "positive": "up", "flag": [1, 2]}), "time": HOURS[:ROWS]},
        name="T",
        attrs={"units": "K"},
    )
    model, _ = trained(data, steps=2)
    forecast = model.forecast(data)
    ends = np.stack([forecast.values - 1, forecast.values + 1])
    array = replace(forecast, intervals={0.8: ends}).to_xarray()
    assert array.dims == ("time", "sensor")
    np.testing.assert_array_equal([array["lo_80"], array["hi_80"]], ends)
    assert array.attrs["units"] == "K"
    np.testing.assert_array_equal(array["z"], [0.5, 1.0, 2.0])
    assert array["z"].attrs == {"long_name": "z", "units": "m", "positive": "up"}
    unnamed = replace(forecast, axes=()).to_xarray()
    np.testing.assert_array_equal(unnamed["coordinate_0"], [0.5, 1.0, 2.0])
    taken = replace(forecast, axes=[PlaceAxis("sensor")]).to_xarray()
    assert taken["coordinate_0"].attrs == {"long_name": "sensor"}
    assert array["sensor"].values.tolist() == ["T(z=0.5)", "T(z=1.0)", "T(z=2.0)"]


def test_a_context_far_outside_of_training_is_told_once(hourly):
    table = TABLE.iloc[:ROWS].copy()
    spread = table.iloc[: ROWS // 2].std()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        hourly.forecast(table + 0.5 * spread)
    table.iloc[-3:] += 77 * spread
    with pytest.warns(DataWarning, match=r"far beyond all that training saw, '.*' by 7\d.*, '.*' by 7\d") as said:
        hourly.forecast(table)
    assert len([each for each in said if issubclass(each.category, DataWarning)]) == 1


def test_later_files_may_be_written_in_another_way(hourly, tmp_path):
    """Ambiguous days, decimal commas and a clock of another name, stated where they are read."""
    table = TABLE.iloc[ROWS - 200 : ROWS - 140]  # the 9th to the 11th of January
    written = table.set_axis(table.index.strftime("%d/%m/%Y %H:%M")).rename_axis("Zeit")
    written.to_csv(tmp_path / "later.csv", sep=";", decimal=",")
    expected = hourly.forecast(table)
    with pytest.raises(ValueError, match=r"table\.date_order"):
        hourly.forecast(tmp_path / "later.csv", time_column="Zeit")
    stated = TableFormat(date_order="dmy", decimal=",")
    found = hourly.forecast(tmp_path / "later.csv", table=stated, time_column="Zeit")
    np.testing.assert_array_equal(found.times, expected.times)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)


def test_another_suffix_is_refused(hourly, tmp_path):
    with pytest.raises(ValueError, match=r"\.csv, \.parquet, \.nc, got '\.xlsx'"):
        hourly.forecast(TABLE.iloc[:ROWS]).save(tmp_path / "a.xlsx")


def test_the_picture_shows_context_and_forecast(hourly, tmp_path):
    forecast = hourly.forecast(TABLE.iloc[:ROWS], horizon=6)
    figure = forecast.plot(["p [Pa]"])
    context, future = figure.axes[0].lines[:2]
    assert (len(context.get_xdata()), len(future.get_xdata())) == (CONTEXT, 7)
    np.testing.assert_array_equal(future.get_ydata()[1:], forecast.values[:, 2])
    figure.savefig(tmp_path / "a.png")
    assert Path(tmp_path / "a.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match=r"sensors must be among .*, got \['w'\]"):
        forecast.plot(["w"])
