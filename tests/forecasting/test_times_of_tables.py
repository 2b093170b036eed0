"""A column that says time is time, or refused as all times are; what tells the time beside it is no sensor."""

import numpy as np
import pandas as pd
import pytest

from favorcast.forecasting import SimulationTimeSeries
from favorcast.forecasting.data import TableFormat, read_series
from favorcast.forecasting.data.frame_record import record_from_frame

CERTAIN, OPEN = ("time", "Time [s]"), ("t", "ts", "flow_time", "Flow-Time", "simTime", "elapsed_s", "seconds", "step")
TENTHS = [f"{0.1 * i:.1f}" for i in range(12)]


def read(folder, header, times, **options):
    path = folder / "a.csv"
    path.write_text(header + ",u\n" + "".join(f"{time},{i % 5}\n" for i, time in enumerate(times)))
    return read_series(path, table=TableFormat(**options) if options else None)


@pytest.mark.parametrize("name", CERTAIN + OPEN)
def test_times_that_repeat_are_reported_whatever_the_name(tmp_path, name):
    times = [*TENTHS[:5], TENTHS[4], *TENTHS[5:]]
    record = read(tmp_path, name, times)
    assert record.columns == ["u"]
    np.testing.assert_array_equal(record.timestamps, [float(time) for time in times])
    assert any("which mostly grows from row to row" in note for note in record.notes) == (name in OPEN)


@pytest.mark.parametrize("gaps", ["split", "refuse"])
@pytest.mark.parametrize("name", ["time", "t", "step"])
def test_the_options_for_irregular_times_count_for_every_name(name, gaps):
    times = np.delete(np.r_[np.arange(60), np.arange(59, 100)], 30)
    frame = pd.DataFrame({name: times, "u": np.sin(np.arange(100))})
    if gaps == "refuse":
        with pytest.raises(ValueError, match=r"irregular times: 1 gap \(of 2 steps\), 1 duplicate time"):
            SimulationTimeSeries(data=frame, gaps=gaps)
    else:
        with pytest.warns(UserWarning, match="1 duplicate time"):
            series = SimulationTimeSeries(data=frame, gaps=gaps)
        assert (series.target_cols, len(series.breaks)) == (["u"], 2)


@pytest.mark.parametrize("name", CERTAIN + OPEN)
def test_a_restart_that_goes_back_is_refused_whatever_the_name(tmp_path, name):
    with pytest.raises(ValueError, match=r"row 6 \(0.3\) lies before row 5 \(0.5\).*restart.*rename the column"):
        read(tmp_path, name, [*TENTHS[:6], *TENTHS[3:]])


@pytest.mark.parametrize("name", CERTAIN + OPEN)
def test_a_row_without_time_is_refused_whatever_the_name(tmp_path, name):
    with pytest.raises(ValueError, match=r"row 4 has no time; give every row one"):
        read(tmp_path, name, [*TENTHS[:4], "", *TENTHS[5:]])


@pytest.mark.parametrize("name", ["t", "travel_time", "hour", "minute", "day", "step"])
def test_names_that_may_say_time_are_sensors_where_numbers_go_round_and_that_is_said(tmp_path, name):
    record = read(tmp_path, name, [i % 3 for i in range(12)])
    assert (record.columns, record.timestamps) == ([name, "u"], None)
    assert record.notes == (
        f"took {name!r}, which does not grow from row to row, for a sensor; pass time_col_name={name!r} if it holds "
        "the time",
    )


@pytest.mark.parametrize("name", ["s", "h", "min", "d"])
def test_symbols_are_times_only_where_they_grow(tmp_path, name):
    assert read(tmp_path, name, TENTHS).columns == ["u"]
    record = read(tmp_path, name, [*TENTHS[:6], *TENTHS[3:]])
    assert (record.columns, record.notes) == ([name, "u"], ())


@pytest.mark.parametrize(
    ("name", "unit"), [("seconds", "s"), ("ms", "ms"), ("hours", "h"), ("days", "days"), ("elapsed_min", "min")]
)
def test_names_of_durations_give_the_unit(tmp_path, name, unit):
    record = read(tmp_path, name, TENTHS)
    assert (record.columns, record.time_unit, record.sampling_time) == (["u"], unit, pytest.approx(0.1))


@pytest.mark.parametrize("name", ["step", "iter", "Iteration", "frame", "Time Step", "timestep", "cycle"])
@pytest.mark.parametrize("by", [1, 10])
def test_counts_of_steps_are_the_time_where_nothing_else_is(tmp_path, name, by):
    counts = [by * i for i in range(12)]
    record = read(tmp_path, name, counts)
    np.testing.assert_array_equal(record.timestamps, counts)
    assert record.notes == (f"took {name!r}, which grows from row to row, for the time",)
    beside = read(tmp_path, f"t,{name}", [f"{i**1.5:.4f},{count}" for i, count in enumerate(counts)])
    assert beside.columns == ["u"]
    assert f"left out the column {name!r}, which counts steps beside the time" in beside.notes


def test_a_second_form_of_the_time_is_no_sensor(tmp_path):
    days = pd.date_range("2024-01-20", periods=20)
    rows = [
        f"{day:%Y-%m-%d},{day.timestamp():.0f},{day.year},{day.month},{day.day},{i % 7}" for i, day in enumerate(days)
    ]
    record = read(tmp_path, "date,timestamp,year,month,day,weekday", rows)
    assert record.columns == ["weekday", "u"]
    said = {"timestamp": "which tells the time in another form"} | dict.fromkeys(
        ("year", "month", "day"), "which repeats a part of the time"
    )
    assert set(record.notes) == {f"left out the column {name!r}, {why}" for name, why in said.items()}


def test_two_columns_that_may_hold_different_times_are_refused(tmp_path):
    rows = [f"{i**1.5:.4f},{i**1.4:.4f}" for i in range(12)]
    with pytest.raises(ValueError, match="'flow_time' and 'cpu_time' may hold the time; choose one with time_col_name"):
        read(tmp_path, "flow_time,cpu_time", rows)
    assert read(tmp_path, "t,flow_time", [f"{time},{time}" for time in TENTHS]).columns == ["u"]


def test_dates_of_an_index_win_over_a_column_that_may_hold_the_time():
    index = pd.date_range("2024-01-01", periods=30, freq="h")
    record = record_from_frame(pd.DataFrame({"t": 20 + np.arange(30) ** 1.1, "u": np.arange(30) % 4}, index=index))
    assert record.columns == ["t", "u"]
    assert record.timestamps.dtype.kind == "M"


def test_long_tables_may_call_their_times_t_or_year(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{c},{1950 + 5 * i},{i * k + 3}" for k, c in enumerate("ABC", 2) for i in range(10)]
    path.write_text("\n".join(["country,year,pop", *rows]))
    record = read_series(path)
    assert record.columns == ["A", "B", "C"]
    assert record.timestamps[1] == np.datetime64("1955-01-01")


HOURS = pd.date_range("2024-01-20", periods=60, freq="h")


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("date,hour", "%Y-%m-%d,%H"),
        ("date,hour,minute", "%Y-%m-%d,%H,%M"),
        ("date,time", "%Y-%m-%d,%H%M"),
        ("date,time", "%Y%m%d,%H:%M"),
        ("Date,Time", "%m/%d/%Y,%I:%M %p"),
        ("year,doy,hour", "%Y,%j,%H"),
        ("YEAR,MONTH,DAY,HOUR", "%Y,%m,%d,%H"),
    ],
)
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_columns_that_tell_the_time_together_are_joined(tmp_path, header, form, zone):
    options = {} if zone is None else {"time_zone": zone}
    record = read(tmp_path, header, HOURS.strftime(form), **options)
    assert record.columns == ["u"]
    expected = HOURS if zone is None else HOURS.tz_localize(zone).tz_convert("UTC").tz_localize(None)
    np.testing.assert_array_equal(record.timestamps, expected.to_numpy().astype("datetime64[ns]"))
    assert "together for the time" in record.notes[0]


def test_hours_that_end_with_24_are_those_of_the_next_day(tmp_path):
    record = read(tmp_path, "date,hour", [f"2024-01-0{day},{hour}" for day in (1, 2) for hour in range(1, 25)])
    assert record.timestamps[23] == np.datetime64("2024-01-02T00:00")
    assert record.sampling_time == 3600
    assert "24:00 of 'date' is 00:00 of the next day" in record.notes


@pytest.mark.parametrize("clock", [HOURS.time, HOURS.strftime("%H:%M"), HOURS.hour], ids=["Python", "text", "numbers"])
@pytest.mark.parametrize("date", [HOURS.normalize(), HOURS.date], ids=["pandas", "Python"])
def test_frames_may_hold_date_and_clock_apart(date, clock):
    name = "hour" if clock is HOURS.hour else "time"
    record = record_from_frame(pd.DataFrame({"date": date, name: clock, "u": np.arange(60) % 5}))
    assert record.columns == ["u"]
    np.testing.assert_array_equal(record.timestamps, HOURS.to_numpy().astype("datetime64[ns]"))


def test_hours_beside_days_that_do_not_repeat_are_a_sensor(tmp_path):
    record = read(tmp_path, "date,hours", [f"2024-01-{i + 1:02},{i % 9}" for i in range(28)])  # of sunshine
    assert record.columns == ["hours", "u"]


@pytest.mark.parametrize("name", ["time", "clock"])
def test_a_clock_counts_on_beyond_midnight(tmp_path, name):
    record = read(tmp_path, name, ["23:50", "23:55", "00:00", "00:05", "23:55", "00:00"])
    np.testing.assert_array_equal(record.timestamps, [85800, 86100, 86400, 86700, 172500, 172800])
    assert f"time column {name!r}: the clock passes midnight 2 times" in record.notes[0]
    with pytest.raises(ValueError, match="rows must be in time order"):
        read(tmp_path, name, ["10:00", "09:00"])


def test_clocks_of_a_long_table_start_again_with_each_sensor(tmp_path):
    record = read(tmp_path, "time,station", [f"{hour:02}:00,{name}" for name in "ABC" for hour in range(24)])
    assert record.columns == ["A", "B", "C"]
    assert len(record.timestamps) == 24


@pytest.mark.parametrize(
    ("name", "times", "second"),
    [
        ("date", ["2024-01", "2024-02", "2024-03"], "2024-02-01"),
        ("month", ["2023/12", "2024/01", "2024/02"], "2024-01-01"),
        ("time", ["202311", "202312", "202401"], "2023-12-01"),
        ("year", ["1950", "1951", "1952"], "1951-01-01"),
        ("Jahr", ["1950", "1952", "1953"], "1952-01-01"),
        ("date", ["1950", "1951", "1952"], "1951-01-01"),
        ("date", ["20240101T0005", "20240101T0010", "20240101T0015"], "2024-01-01T00:10"),
        ("date", ["20240101T000500Z", "20240101T001000Z", "20240101T001500Z"], "2024-01-01T00:10"),
        ("when", ["2024-01-01T00", "2024-01-01T01", "2024-01-01T02"], "2024-01-01T01:00"),
        ("date", ["45292", "45292.5", "45293"], "2024-01-01T12:00"),
        ("datetime", ["45292.041666667", "45292.083333333", "45292.125"], "2024-01-01T02:00"),
    ],
)
def test_dates_of_months_years_digits_and_spreadsheets_are_read(tmp_path, name, times, second):
    record = read(tmp_path, name, times)
    assert record.columns == ["u"]
    assert record.timestamps[1] == np.datetime64(second)


def test_years_are_regular_though_leap_years_are_longer(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Year,u\n" + "".join(f"{1900 + i},{i % 7}\n" for i in range(60)))
    with pytest.warns(UserWarning, match="took 'Year', which grows from row to row"):
        series = SimulationTimeSeries(str(path))
    assert (series.grid.months, len(series.breaks)) == (12, 0)


def test_times_that_may_be_days_of_a_spreadsheet_are_said(tmp_path):
    days = [45292 + 0.25 * i for i in range(12)]
    (note,) = read(tmp_path, "time", days).notes
    assert "45292 may be a day of a spreadsheet" in note
    assert not read(tmp_path, "time [s]", days).notes
    assert not read(tmp_path, "time", [45292 + 60 * i for i in range(12)]).notes
    assert read(tmp_path, "time", days, epoch_unit="excel").timestamps[2] == np.datetime64("2024-01-01T12:00")
