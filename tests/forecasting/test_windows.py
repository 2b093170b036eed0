import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from favorcast.forecasting.data import SimulationTimeSeries, SimulationTorchDataset


def counting_series(rows=400, sensors=3, **options):
    """Sensor j holds row + 1000 j, so that a value tells where it came from."""
    data = np.arange(rows)[:, None] + 1000.0 * np.arange(sensors)
    return SimulationTimeSeries(data=data, use_cycles=False, **options)


def test_windows_are_four_float32_views_in_the_documented_shapes():
    series = counting_series(exogenous_columns=["Sensor_2"])
    windows = SimulationTorchDataset(series, "train", 20, 5)
    context_x, context_y, target_x, target_y = windows[7]
    assert [tuple(part.shape) for part in windows[7]] == [(20, 1), (20, 3), (5, 1), (5, 2)]
    assert all(part.dtype == torch.float32 for part in windows[7])
    np.testing.assert_array_equal(context_y[:, 0], np.arange(7, 27))
    np.testing.assert_array_equal(target_y[:, 0], np.arange(27, 32))
    np.testing.assert_array_equal(target_y[:, 1], np.arange(27, 32) + 2000)
    np.testing.assert_array_equal(context_y[:, 2], np.arange(7, 27) + 1000)
    np.testing.assert_array_equal(torch.cat([context_x, target_x]), series.time_features[7:32])
    assert np.shares_memory(context_y.numpy(), series.values)
    assert np.shares_memory(target_y.numpy(), series.values)


def test_three_hundred_rows_give_217_windows_of_84():
    series = counting_series(idx_end_train=300, idx_end_val=350)
    assert len(SimulationTorchDataset(series, "train", 80, 4)) == 217


def test_published_etth1_protocol_gives_2785_test_windows():
    series = counting_series(17420, 1, idx_end_train=8640, idx_end_val=11520, idx_end_test=14400)
    counts = [len(SimulationTorchDataset(series, "test", 336, n)) for n in (96, 192, 336, 720)]
    assert counts == [2785, 2689, 2545, 2161]


def test_published_weather_protocol_gives_10444_test_windows():
    series = counting_series(52696, 1)
    assert len(SimulationTorchDataset(series, "test", 96, 96)) == 10444


@pytest.mark.parametrize("split", ["val", "test"])
def test_first_row_of_a_later_split_is_forecast_first(split):
    series = counting_series()
    windows = SimulationTorchDataset(series, split, 20, 5)
    assert windows[0][3][0, 0] == series.splits[split].start
    assert windows[len(windows) - 1][3][-1, 0] == series.splits[split].stop - 1


def test_windows_do_not_reach_back_when_told_not_to():
    series = counting_series()
    windows = SimulationTorchDataset(series, "val", 20, 5, reach_back=False)
    assert windows[0][1][0, 0] == series.splits["val"].start
    assert len(windows) == 40 - 25 + 1


def test_reaching_back_stops_at_the_start_of_training():
    series = counting_series(idx_start_train=10, idx_end_train=20, idx_end_val=100)
    windows = SimulationTorchDataset(series, "val", 50, 5)
    assert windows[0][1][0, 0] == 10


def test_time_resolution_takes_every_rth_row():
    windows = SimulationTorchDataset(counting_series(), "train", 4, 3, 5)
    _, context_y, _, target_y = windows[2]
    np.testing.assert_array_equal(context_y[:, 0], [2, 7, 12, 17])
    np.testing.assert_array_equal(target_y[:, 0], [22, 27, 32])


@settings(max_examples=60, deadline=None)
@given(
    split=st.sampled_from(["train", "val", "test"]),
    context_len=st.integers(1, 12),
    target_len=st.integers(1, 6),
    resolution=st.integers(1, 3),
    stride=st.integers(1, 5),
    reach_back=st.booleans(),
)
def test_windows_are_all_that_fit_and_no_target_leaves_its_split(
    split, context_len, target_len, resolution, stride, reach_back
):
    series = counting_series(300, 1)
    rows = series.splits[split]
    span = resolution * (context_len + target_len - 1) + 1
    reach = min(resolution * context_len, rows.start) if reach_back else 0
    assume(len(rows) + reach >= span)
    windows = SimulationTorchDataset(
        series, split, context_len, target_len, resolution, stride=stride, reach_back=reach_back
    )
    assert len(windows) == (len(rows) + reach - span) // stride + 1
    for index, start in enumerate(range(rows.start - reach, rows.stop - span + 1, stride)):
        expected = start + resolution * np.arange(context_len + target_len)
        _, context_y, _, target_y = windows[index]
        np.testing.assert_array_equal(torch.cat([context_y, target_y])[:, 0], expected)
        assert target_y.min() >= rows.start
        assert target_y.max() < rows.stop
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_a_split_of_exactly_one_window_is_enough():
    assert len(SimulationTorchDataset(counting_series(), "train", 270, 10)) == 1
    with pytest.raises(ValueError, match=r"train split has 280 rows .* needs 281; shorten the window"):
        SimulationTorchDataset(counting_series(), "train", 271, 10)


@pytest.mark.parametrize("name", ["context_len", "target_len", "time_resolution", "stride"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SimulationTorchDataset(counting_series(), **{name: 0})


def test_a_missing_test_split_is_an_error_not_an_empty_dataset():
    with pytest.raises(ValueError, match="have_test=True"):
        SimulationTorchDataset(counting_series(have_test=False), "test")
