import warnings

import numpy as np
import pytest
import torch

from favorcast.forecasting.data import DataWarning, SensorRecord, SimulationTimeSeries, embedded_names, sensor_record


def waves(rows=400, sensors=3, period=16, seed=0):
    steps = np.arange(rows)[:, None]
    noise = np.random.default_rng(seed).normal(size=(rows, sensors))
    return np.sin(2 * np.pi * steps / period + np.arange(sensors)) + 0.05 * noise


def named(names, rows=100):
    return sensor_record(waves(rows, len(names)), names, coordinates=np.arange(2.0 * len(names)).reshape(-1, 2))


def test_defaults_give_one_frequency_and_all_sensors_as_targets():
    series = SimulationTimeSeries(data=waves())
    assert series.time_cols == ["Sin_Time_1", "Cos_Time_1"]
    assert series.target_cols == ["Sensor_1", "Sensor_2", "Sensor_3"]
    assert series.exo_cols == []
    assert (series.d_x, series.d_y_context, series.d_y_target) == (2, 3, 3)
    assert series.values.dtype == series.time_features.dtype == np.float32
    assert series.values.flags.c_contiguous
    assert {name: len(rows) for name, rows in series.splits.items()} == {"train": 280, "val": 40, "test": 80}
    assert series.frequencies == pytest.approx([1 / 16], abs=1 / 280)


def test_nothing_after_the_training_rows_reaches_features_or_statistics():
    data = waves()
    changed = data.copy()
    changed[280:] = 1e4 * np.random.default_rng(1).normal(size=changed[280:].shape)
    for use_cycles in (True, False):
        first, second = (SimulationTimeSeries(data=each, use_cycles=use_cycles) for each in (data, changed))
        np.testing.assert_array_equal(first.time_features, second.time_features)
        for one, other in zip(first.training_statistics(), second.training_statistics(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_longer_record_does_not_change_the_time_index_of_training_rows():
    options = {"idx_end_train": 200, "idx_end_val": 250, "use_cycles": False}
    short = SimulationTimeSeries(data=waves(300), idx_end_test=300, **options)
    long = SimulationTimeSeries(data=waves(400), idx_end_test=300, **options)
    np.testing.assert_array_equal(short.time_features, long.time_features[:300])
    assert (short.time_features[0, 0], short.time_features[199, 0]) == (0.0, 1.0)


def test_no_sensor_outweighs_the_others_by_its_unit():
    steps = np.arange(400)
    data = np.stack([np.sin(2 * np.pi * steps / 16)] * 3 + [1e4 * np.sin(2 * np.pi * steps / 5)], axis=1)
    assert SimulationTimeSeries(data=data).frequencies == pytest.approx([1 / 16], abs=1 / 280)


def test_frequencies_are_in_the_unit_of_the_feature_step():
    series = SimulationTimeSeries(data=waves(), time_step_feature=1e-3)
    assert series.frequencies == pytest.approx([1000 / 16], abs=1000 / 280)
    np.testing.assert_allclose(series.time_features, SimulationTimeSeries(data=waves()).time_features, atol=1e-4)


def test_times_count_from_start_time_by_the_time_step():
    series = SimulationTimeSeries(data=waves(), start_time=82490.0, time_step_df=10.0)
    np.testing.assert_array_equal(series.times[:3], [82490.0, 82500.0, 82510.0])
    assert series.sampling_time == 10.0


def test_record_gives_sampling_time_and_units():
    record = sensor_record(waves(), sampling_time=0.2, time_unit="D/U", unit="U")
    series = SimulationTimeSeries(data=record)
    assert (series.sampling_time, series.time_unit, series.unit) == (0.2, "D/U", "U")
    assert series.frequencies == pytest.approx([5 / 16], abs=5 / 280)
    assert series.times[10] == pytest.approx(2.0)


def test_patterns_choose_and_order_targets_and_exogenous_columns():
    series = SimulationTimeSeries(
        data=named(["v_0", "u_0", "p", "u_1"]), target_columns=["u_*"], exogenous_columns=["p"]
    )
    assert (series.target_cols, series.exo_cols) == (["u_0", "u_1"], ["p"])
    expected = named(["v_0", "u_0", "p", "u_1"]).values[:, [1, 3, 2]]
    np.testing.assert_array_equal(series.values, expected.astype(np.float32))
    np.testing.assert_array_equal(series.coordinates, [[2, 3], [6, 7], [4, 5]])


def test_targets_default_to_what_is_not_exogenous():
    series = SimulationTimeSeries(data=named(["u", "v", "p"]), exogenous_columns=["p"])
    assert (series.target_cols, series.exo_cols) == (["u", "v"], ["p"])


def test_an_exact_name_wins_over_its_reading_as_a_pattern():
    series = SimulationTimeSeries(data=named(["p [mbar]", "p m"]), target_columns=["p [mbar]"])
    assert series.target_cols == ["p [mbar]"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_columns": ["w_*"]}, r"no column matches 'w_\*'; close matches: .*, of 3 columns"),
        ({"target_columns": ["u_O"]}, r"no column matches 'u_O'; close matches: \['u_1', 'u_0'\]"),
        ({"target_columns": ["V_0"]}, r"close matches: \['v_0'"),
        ({"target_columns": ["u_*"], "exogenous_columns": ["u_1"]}, r"got both for \['u_1'\]"),
        ({"exogenous_columns": ["*"]}, "at least one of the 3 columns must be a target"),
        ({"target_columns": []}, "at least one of the 3 columns must be a target"),
    ],
)
def test_column_choices_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SimulationTimeSeries(data=named(["u_0", "u_1", "v_0"]), **options)


def test_null_value_becomes_missing_and_stays_out_of_statistics():
    data = waves()
    data[::7, 0] = -9999.0
    series = SimulationTimeSeries(data=data, null_value=-9999.0)
    assert np.isnan(series.values[::7, 0]).all()
    assert np.isnan(series.values).sum() == len(data[::7])
    mean, std = series.training_statistics()
    expected = np.where(data == -9999.0, np.nan, data)[:280]
    np.testing.assert_allclose(mean, np.nanmean(expected, axis=0), atol=1e-5)
    np.testing.assert_allclose(std, np.nanstd(expected, axis=0), rtol=1e-4)
    assert np.isfinite(series.time_features).all()


@pytest.mark.parametrize(("offset", "size"), [(101_325.0, 0.01), (101_325e3, 10.0), (101_325.0, 1e-3), (1e8, 1.0)])
def test_a_small_fluctuation_about_a_large_mean_keeps_its_digits(offset, size):
    fluctuation = size * waves(4000)
    series = SimulationTimeSeries(data=offset + fluctuation)
    np.testing.assert_allclose(series.values - offset, fluctuation, atol=1e-6 * size + 1e-15 * offset)
    mean, std = series.training_statistics()
    np.testing.assert_allclose(mean - offset, fluctuation[:2800].mean(axis=0), atol=1e-6 * size + 1e-14 * offset)
    np.testing.assert_allclose(std, fluctuation[:2800].std(axis=0), rtol=1e-5)


def test_a_constant_column_does_not_ask_for_more_digits():
    assert SimulationTimeSeries(data=np.c_[waves(), np.full(400, 1e8)]).values.dtype == np.float32


def test_the_callers_array_is_left_alone():
    data = waves().astype(np.float32)
    data[3, 0] = -9999.0
    before = data.copy()
    SimulationTimeSeries(data=data, null_value=-9999.0)
    np.testing.assert_array_equal(data, before)


def test_dead_and_empty_sensors_have_statistics_that_can_be_divided_by():
    data = waves()
    data[:, 1] = 0.1
    data[:, 2] = np.nan
    mean, std = SimulationTimeSeries(data=data).training_statistics()
    assert mean[1] == pytest.approx(0.1)
    assert mean[2] == 0
    assert std[1:].tolist() == [1.0, 1.0]


def test_training_rows_without_any_variation_are_refused():
    data = waves()
    data[:280] = 3.0
    with pytest.raises(ValueError, match=r"no column varies over the training rows 0 to 280"):
        SimulationTimeSeries(data=data)


def test_frequency_count_is_checked():
    with pytest.raises(ValueError, match="num_dominant_frequencies must be between 1 and 140"):
        SimulationTimeSeries(data=waves(), num_dominant_frequencies=0)
    assert SimulationTimeSeries(data=waves(), num_dominant_frequencies=0, use_cycles=False).d_x == 1


def test_calendar_adds_covariates_and_needs_dates(tmp_path):
    rows = "".join(f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00:00,{np.sin(i)}\n" for i in range(240))
    (tmp_path / "a.csv").write_text("date,u\n" + rows)
    series = SimulationTimeSeries(str(tmp_path / "a.csv"), use_cycles=False, calendar=["day"])
    assert series.time_cols == ["Time_Index", "Sin_Day", "Cos_Day"]
    np.testing.assert_allclose(series.time_features[6, 1:], [1, 0], atol=1e-6)
    with pytest.raises(ValueError, match="calendar features need dates"):
        SimulationTimeSeries(data=waves(), calendar=["day"])


def test_slices_are_views_counted_within_the_split():
    series = SimulationTimeSeries(data=waves())
    x, y = series.get_slice("val", 2, 8, 3)
    np.testing.assert_array_equal(y, series.values[[282, 285]])
    np.testing.assert_array_equal(x, series.time_features[[282, 285]])
    assert np.shares_memory(y, series.values)
    assert series.length("val") == 40
    with pytest.raises(ValueError, match="start <= stop <= 40, the rows of val"):
        series.get_slice("val", 0, 41)


def test_a_split_that_does_not_exist_is_named():
    series = SimulationTimeSeries(data=waves(), have_test=False)
    with pytest.raises(ValueError, match=r"\['train', 'val'\], got 'test'; build the series with have_test=True"):
        series.length("test")


def test_exactly_one_source_is_needed():
    with pytest.raises(ValueError, match="either data_path or data, got neither"):
        SimulationTimeSeries()
    with pytest.raises(ValueError, match="either data_path or data, got both"):
        SimulationTimeSeries("a.npy", waves())


@pytest.mark.parametrize("name", ["time_step_df", "time_step_feature"])
def test_time_steps_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got 0.0"):
        SimulationTimeSeries(data=waves(), **{name: 0.0})


def test_a_record_is_checked_again():
    with pytest.raises(ValueError, match="expected 3 column names"):
        SimulationTimeSeries(data=SensorRecord(waves(), ["a"]))


def test_data_frames_keep_names_and_times():
    pandas = pytest.importorskip("pandas", reason="data frames need pandas")
    index = pandas.date_range("2024-01-01", periods=100, freq="10min")
    frame = pandas.DataFrame(waves(100, 2), columns=["u", "v"], index=index)
    series = SimulationTimeSeries(data=frame, calendar=["day"])
    assert series.target_cols == ["u", "v"]
    assert (series.sampling_time, series.time_unit) == (600.0, "s")
    assert series.times[1] == np.datetime64("2024-01-01T00:10:00")
    with pytest.warns(DataWarning, match="left out the text column 'name'"):
        series = SimulationTimeSeries(data=frame.assign(name="x"))
    assert series.target_cols == ["u", "v"]
    with pytest.raises(ValueError, match=r"column 'name' must hold numbers, but data row 1 .*holds 'x'"):
        SimulationTimeSeries(data=frame.assign(name=["1", "x"] * 50))


def test_embedded_series_are_ready_to_train_on():
    assert embedded_names()
    for name in embedded_names():
        series = SimulationTimeSeries(name, target_columns=["u_*"], exogenous_columns=["v_*"])
        assert series.d_y_target == len(series.exo_cols)
        assert np.isfinite(series.values).all()
        assert series.frequencies[0] > 0


def test_targets_that_training_never_sees_are_told():
    values = np.random.default_rng(0).normal(size=(100, 8))
    values[:70, :6] = np.nan
    with pytest.warns(DataWarning, match="holds a value of 'Sensor_1', .*, 'Sensor_5' and 1 more: leave out"):
        SimulationTimeSeries(data=values)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        SimulationTimeSeries(data=values, target_columns=["Sensor_7"], exogenous_columns=["Sensor_1"])
