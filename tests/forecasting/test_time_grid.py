"""Gaps, duplicates and unequal steps: reported, and then split, resampled or refused."""

import numpy as np
import pandas as pd
import pytest
from user_tables import STAMPS, VALUES

from favorcast.forecasting.data import DataModule, DataWarning, SimulationTimeSeries, TableFormat, sensor_record
from favorcast.forecasting.data.time_grid import continue_times, on_grid, time_grid

KEEP = {
    "gap": np.r_[0:100, 148:400],
    "irregular": np.sort(np.random.default_rng(0).choice(400, 300, replace=False)),
    "duplicates": np.sort(np.r_[0:400, 7:400:50]),
}
FRAMES = {name: pd.DataFrame(VALUES, columns=["temp", "pres"], index=STAMPS).iloc[kept] for name, kept in KEEP.items()}
LOCAL = pd.date_range("2024-10-20", periods=400, freq="h", tz="Europe/Berlin")
FRAMES["change of clocks"] = pd.DataFrame(VALUES, columns=["temp", "pres"], index=LOCAL.tz_localize(None))


def series(name, **options):
    with pytest.warns(DataWarning) as caught:
        made = SimulationTimeSeries(data=FRAMES[name], **options)
    return made, str(caught[0].message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gap",
            r"1 gap \(of 49 steps\); the first at row 100 \(2024-03-07 04:00:00\); no window reaches "
            r"across",
        ),
        ("irregular", r"80 gaps \(the longest of 4 steps\)"),
        ("duplicates", "8 duplicate times; the first at row 8 .*; left out 8 rows that repeat the row before"),
        ("change of clocks", "1 duplicate time;.*if these are local clock times, state table.time_zone"),
    ],
)
def test_irregular_times_are_reported(name, message):
    made, said = series(name)
    assert pd.Series([said]).str.contains(message).all(), said
    assert made.notes
    assert made.sampling_time == 3600.0


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("resolution", [1, 2])
def test_no_window_reaches_across_a_break(name, resolution):
    made, _ = series(name)
    context_len, target_len = (24, 6) if name != "irregular" else (2, 1)
    data = DataModule(made, context_len=context_len, target_len=target_len, time_resolution=resolution)
    span = resolution * (context_len + target_len - 1) + 1
    for split in made.splits:
        windows = data.windows(split)
        covered = set()
        for index in range(len(windows)):
            context, target = windows.window_slices(index)
            steps = np.diff(np.r_[made.times[context], made.times[target]])
            assert set(steps.astype("timedelta64[s]").astype(int)) == {3600 * resolution}
            covered.add(context.start)
        rows = made.splits[split]
        first = rows.start if split == "train" else max(0, rows.start - resolution * context_len)
        hours = [made.times[start : start + span] for start in range(first, rows.stop - span + 1)]
        whole = [start for start, times in enumerate(hours, first) if (np.diff(times) == np.timedelta64(1, "h")).all()]
        assert covered == set(whole)  # and no other window is lost


def test_windows_that_only_breaks_allow_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"no window of 30 rows of the train split.*set gaps to 'resample'"):
        DataModule(series("irregular")[0], context_len=24, target_len=6)


@pytest.mark.parametrize("name", ["gap", "irregular", "duplicates"])
def test_resampling_puts_rows_at_their_time_and_nothing_between(name):
    made, said = series(name, gaps="resample")
    first, last = KEEP[name][[0, -1]]
    np.testing.assert_array_equal(made.times, STAMPS[first : last + 1].to_numpy().astype("datetime64[ns]"))
    observed = np.isin(np.arange(first, last + 1), KEEP[name])
    np.testing.assert_allclose(made.values[observed], VALUES[first : last + 1][observed], rtol=1e-6)
    assert np.isnan(made.values[~observed]).all()
    assert len(made.breaks) == 0
    assert name == "duplicates" or "resampled to" in said


def test_resampling_interpolates_between_rows_that_lie_beside_the_grid():
    times = np.array([0.0, 1.0, 2.3, 3.4, 4.0, 9.0])
    record, grid = on_grid(sensor_record(2 * times[:, None], timestamps=times), "resample", 1.0)
    np.testing.assert_allclose(record.values[:5, 0], [0, 2, 4, 6, 8])
    assert np.isnan(record.values[5:9]).all()
    assert record.values[9, 0] == 18
    assert grid.is_regular


def test_refusing_says_where():
    with pytest.raises(ValueError, match=r"irregular times: 1 gap .*row 100 .*set gaps to 'split' or 'resample'"):
        SimulationTimeSeries(data=FRAMES["gap"], gaps="refuse")
    SimulationTimeSeries(data=pd.DataFrame(VALUES, index=STAMPS), gaps="refuse")


def test_ignoring_counts_rows():
    made, said = series("gap", gaps="ignore")
    assert "each row counts as one step, as asked" in said
    assert len(DataModule(made, context_len=24, target_len=6).windows("train")) == 246 - 29


def test_contradicting_rows_of_one_time_stay_and_split():
    frame = pd.concat([FRAMES["duplicates"].iloc[:50], FRAMES["duplicates"].iloc[49:] + 1.0])
    with pytest.warns(DataWarning, match="duplicate"):
        made = SimulationTimeSeries(data=frame)
    assert len(made.breaks) > 0


def test_a_stated_time_zone_makes_local_hours_equal(tmp_path):
    path = tmp_path / "local.csv"
    FRAMES["change of clocks"].to_csv(path, index_label="time")
    made = SimulationTimeSeries(str(path), table=TableFormat(time_zone="Europe/Berlin"))
    assert made.notes == []
    assert len(made.breaks) == 0
    assert made.time_zone == "Europe/Berlin"


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="gaps must be one of"):
        SimulationTimeSeries(data=VALUES, gaps="fill")


@pytest.mark.parametrize(
    ("freq", "months"),
    [("h", None), ("D", None), ("7D", None), ("MS", 1), ("ME", 1), ("QS", 3), ("YS", 12)],
)
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_times_go_on_as_their_calendar_does(freq, months, zone):
    index = pd.date_range("2020-01-01", periods=40, freq=freq, tz=zone)
    stamps = (index if zone is None else index.tz_convert(None)).to_numpy().astype("datetime64[ns]")
    grid = time_grid(stamps[:30], zone=zone)
    assert grid.is_regular
    assert grid.months == months
    later = continue_times(stamps[:30], 10, grid.step, months=grid.months, zone=zone)
    np.testing.assert_array_equal(later, stamps[30:])


def test_numbers_go_on_by_their_step():
    times = np.round(0.1 * np.arange(30), 10)
    grid = time_grid(times)
    np.testing.assert_allclose(continue_times(times, 3, grid.step, months=None, zone=None), [3.0, 3.1, 3.2])


def test_a_missing_month_is_a_gap():
    stamps = pd.date_range("2020-01-01", periods=40, freq="MS").delete(20).to_numpy().astype("datetime64[ns]")
    grid = time_grid(stamps)
    assert (grid.gaps, grid.longest, grid.breaks.tolist()) == (1, 2.0, [20])
