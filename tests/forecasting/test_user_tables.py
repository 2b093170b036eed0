"""Tables as users have them are read, or refused with what to do; never misread."""

import numpy as np
import pandas as pd
import pytest
from user_tables import DATED, LONG, R_STYLE, ROWS, STAMPS, VALUES, insert_after_header, numbered, rows, table

from favorcast.forecasting.data import TableFormat, read_series
from favorcast.forecasting.data.frame_record import record_from_frame


def write(folder, text, encoding="utf-8", name="a.csv"):
    path = folder / name
    path.write_text(text, encoding=encoding, newline="")
    return path


def read(folder, text, encoding="utf-8", **options):
    given = TableFormat(**options) if options else None
    return read_series(write(folder, text, encoding), table=given)


@pytest.mark.parametrize("kind", DATED)
def test_hourly_temperature_and_pressure_are_read(tmp_path, kind):
    record = read(tmp_path, *DATED[kind])
    assert record.columns == ["temp", "pres"]
    np.testing.assert_array_equal(record.values, VALUES)
    np.testing.assert_array_equal(record.timestamps, STAMPS.to_numpy().astype("datetime64[ns]"))
    assert (record.sampling_time, record.time_unit) == (3600.0, "s")
    in_utc = kind.startswith("epoch") or kind in ("units below the header", "called Date (UTC)")
    assert record.time_zone == ("UTC" if in_utc else None)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("comment lines", "left out 2 comment lines"),
        ("header in a comment", "took the last comment line for the header"),
        ("index column", "left out the column '', which counts rows"),
        ("units below the header", "took the row below the header for units"),
        ("year, month, day and hour", "took the columns 'year', 'month', 'day', 'hour' together for the time"),
        ("date and clock", "took 'Date' and 'Time' together for the time"),
        ("date and hour", "took 'date' and 'hour' together for the time"),
        ("American dates", "time column 'date': dates read as mdy"),
        ("epoch milliseconds", "time column 'timestamp': counts ms since 1970-01-01 UTC"),
        ("trailing comma", "left out a column without name and values"),
        ("ISO", None),
    ],
)
def test_what_was_taken_for_something_is_said(tmp_path, kind, note):
    notes = read(tmp_path, *DATED[kind]).notes
    assert note in notes if note is not None else not notes


@pytest.mark.parametrize(
    ("header", "delimiter", "time_unit"),
    [
        ("t,temp,pres", ",", None),
        ("Time [s],temp,pres", ",", "s"),
        ("Time (s),temp,pres", ",", "s"),
        ("t temp pres", " ", None),
    ],
)
def test_numbers_may_be_the_time(tmp_path, header, delimiter, time_unit):
    record = read(tmp_path, numbered([f"{0.01 * i:.2f}" for i in range(ROWS)], header, delimiter=delimiter))
    assert record.columns == ["temp", "pres"]
    np.testing.assert_allclose(record.timestamps, 0.01 * np.arange(ROWS))
    assert (record.sampling_time, record.time_unit) == (pytest.approx(0.01), time_unit)


@pytest.mark.parametrize(
    ("header", "unit"), [("time_ms,u", "ms"), ("t,u", None), ("flow_time,u", None), ("Time [s],u", "s"), (",u", None)]
)
def test_names_say_what_holds_the_time(tmp_path, header, unit):
    record = read(tmp_path, header + "\n" + "".join(f"{0.5 * i},{i % 3}\n" for i in range(6)))
    assert (record.columns, record.time_unit) == (["u"], unit)
    np.testing.assert_array_equal(record.timestamps, 0.5 * np.arange(6))
    assert any("which grows from row to row" in note for note in record.notes) == (
        header in ("t,u", "flow_time,u", ",u")
    )


def test_the_id_of_the_only_station_is_no_sensor(tmp_path):
    record = read(tmp_path, "time,station_id,u\n0,17,1\n1,17,2\n2,17,4\n")
    assert record.columns == ["u"]
    assert record.notes == ("left out the column 'station_id', which is the same in every row",)


def test_a_column_called_t_that_falls_is_a_sensor(tmp_path):
    record = read(tmp_path, "t,u\n20.5,1\n20.1,2\n20.7,3\n")
    assert (record.columns, record.timestamps) == (["t", "u"], None)


def test_solver_times_of_a_million_are_no_dates(tmp_path):
    record = read(tmp_path, numbered([f"{1e6 + 0.001 * i:.3f}" for i in range(ROWS)], "time,temp,pres"))
    assert record.timestamps.dtype == np.float64
    assert record.timestamps[1] == 1000000.001


@pytest.mark.parametrize(("header", "unit"), [("time,T [°C],p [hPa]", None), ("time,T [K],T2 [K]", "K")])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_units_stand_in_brackets_behind_names(tmp_path, header, unit, encoding):
    record = read(tmp_path, table(header=header), encoding)
    names = header.split(",")[1:]
    assert record.columns == names
    assert record.units == [name.partition("[")[2].rstrip("]") for name in names]
    assert record.unit == unit
    assert bool(record.notes) == (encoding == "latin-1" and "°" in header)


def test_a_row_of_units_gives_units_and_the_time_zone(tmp_path):
    record = read(tmp_path, insert_after_header("UTC,degC,hPa"))
    assert (record.units, record.time_zone) == (["degC", "hPa"], "UTC")


def test_text_columns_are_left_out_and_said(tmp_path):
    text = "time,temp,station\n" + "\n".join(f"{r.rsplit(',', 1)[0]},Dongsi" for r in rows(STAMPS))
    record = read(tmp_path, text)
    assert record.columns == ["temp"]
    assert record.notes == ("left out the text column 'station'",)


def test_long_tables_get_one_column_a_sensor(tmp_path):
    record = read(tmp_path, LONG)
    assert record.columns == ["s0", "s1", "s2"]
    np.testing.assert_allclose(record.values, VALUES[:, :1] + np.arange(3), atol=1e-9)
    assert "one column for each of 3 values of 'unique_id'" in record.notes[0]


def test_long_tables_may_name_sensors_by_numbers_and_hold_several_quantities(tmp_path):
    text = "time,sensor,u,v\n0,7,1,2\n0,8,3,4\n1,7,5,6\n1,8,7,8\n2,7,9,10\n"
    record = read(tmp_path, text)
    assert record.columns == ["u_7", "u_8", "v_7", "v_8"]
    np.testing.assert_array_equal(record.values, [[1, 3, 2, 4], [5, 7, 6, 8], [9, np.nan, 10, np.nan]])
    assert read(tmp_path, text.replace("sensor", "box"), id_column="box").columns == record.columns


def test_r_tables_whose_header_names_no_index_are_read(tmp_path):
    record = read(tmp_path, R_STYLE)
    assert record.columns == ["temp", "pres"]
    np.testing.assert_array_equal(record.values, VALUES)


def test_offsets_from_utc_are_kept(tmp_path):
    winter = pd.date_range("2024-01-25", periods=ROWS, freq="h", tz="Europe/Berlin")
    text = "\n".join(["time,temp,pres", *rows(stamp.isoformat() for stamp in winter)])
    record = read(tmp_path, text)
    assert record.time_zone == "+01:00"
    np.testing.assert_array_equal(record.timestamps, winter.tz_convert(None).to_numpy().astype("datetime64[ns]"))


def test_changing_offsets_become_utc_unless_the_zone_is_stated(tmp_path):
    spring = pd.date_range("2024-03-25", periods=ROWS, freq="h", tz="Europe/Berlin")
    text = "\n".join(["time,temp,pres", *rows(stamp.isoformat() for stamp in spring)])
    for options, zone in ({}, "UTC"), ({"time_zone": "Europe/Berlin"}, "Europe/Berlin"):
        record = read(tmp_path, text, **options)
        assert record.time_zone == zone
        assert any("state table.time_zone" in note for note in record.notes) == (not options)
        np.testing.assert_array_equal(record.timestamps, spring.tz_convert(None).to_numpy().astype("datetime64[ns]"))


def test_local_times_through_the_change_of_clocks_need_their_zone(tmp_path):
    autumn = pd.date_range("2024-10-20", periods=ROWS, freq="h", tz="Europe/Berlin")
    text = "\n".join(["time,temp,pres", *rows(autumn.strftime("%Y-%m-%d %H:%M:%S"))])
    record = read(tmp_path, text, time_zone="Europe/Berlin")
    np.testing.assert_array_equal(record.timestamps, autumn.tz_convert(None).to_numpy().astype("datetime64[ns]"))
    with pytest.raises(ValueError, match=r"cannot take the times for those of table.time_zone='Mars'"):
        read(tmp_path, text, time_zone="Mars")


def test_more_marks_of_missing_values_can_be_stated(tmp_path):
    text = "time,u,v\n0,1,2\n1,?,3\n2,4,--\n"
    with pytest.raises(ValueError, match=r"'u' must hold numbers, but data row 1 .* holds '\?'.*table.missing"):
        read(tmp_path, text)
    record = read(tmp_path, text, missing=["?", "--"])
    np.testing.assert_array_equal(record.values, [[1, 2], [np.nan, 3], [4, np.nan]])


@pytest.mark.parametrize("marks", ["NA,NA", "nan,NaN", ",", "null,None", "N/A,n/a", " NA , nan "])
def test_usual_marks_of_missing_values_are_known(tmp_path, marks):
    np.testing.assert_array_equal(read(tmp_path, f"time,u,v\n0,1,2\n1,{marks}\n").values, [[1, 2], [np.nan, np.nan]])


def test_a_file_without_header_can_be_given_names(tmp_path):
    text = "\n".join(rows(STAMPS))
    record = read(tmp_path, text, column_names=["time", "temp", "pres"])
    np.testing.assert_array_equal(record.values, VALUES)
    assert record.columns == ["temp", "pres"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(rows(STAMPS)), r"starts with data \('2024-03-01 00:00:00'\).*state table.column_names"),
        ("1,2\n3,4\n0,1\n", r"the first line may be data or names.*state table.column_names"),
        (table(header="time,temp,temp"), r"column names must differ, repeated: \['temp'\]"),
        ("", "is empty: expected a header line"),
        ("time,temp,pres\n", r"both at least 1, got \(0, 2\)"),
        ("date,u\n01/02/2024,1\n01/03/2024,2\n", r"'01/03/2024' can be read as dmy .*, mdy .*; state table.date_order"),
        ("date,u\n01/02/24,1\n01/03/24,2\n", r"can be read as .*; state table.date_order"),
        ("date,u\n13.14.2024,1\n13.15.2024,2\n", "fit no order of year, month and day"),
        ("date,u\n2024-03-01 25:00,1\n2024-03-01 26:00,2\n", "2024-03-01 25:00.*, which is no time of the calendar"),
        ("time;u\n0;1,234\n1;2,345\n", r"comma in '1,234' may mark decimals or thousands; state table.decimal"),
        ("time;u\n0;1,5\n1;2.5\n", r"decimal points \('2.5'\) and with commas \('1,5'\)"),
        ("start,end,u\n2024-01-01,2024-01-02,1\n2024-01-02,2024-01-03,2\n", r"'start' and 'end' may hold the time"),
        (
            "time,u\n2024-01-01T00:00+01:00,1\n2024-01-01T01:00,2\n",
            "some times have an offset from UTC and some have none",
        ),
        ("a,b\n1,2\n3,4,5\n", "data row 1 has 3 cells, the header has 2"),
        ("a,,c\n1.5,2,3\n4,5.5,6\n", "column 1 has no name in the header"),
        ("year,month,day,u\n2024,2,30,1\n2024,3,1,2\n", r"columns \['year', 'month', 'day'\] hold no valid dates"),
        ("time,u\n2024-01-01,1\n,2\n", "row 1 has no time"),
        ("time,u\n2024-01-02,1\n2024-01-01,2\n", "sort the file by time"),
        ("time,u\n2001-02-28,1\n2001-02-30,2\n", "which is no time of the calendar.*days since the start"),
        ("time,u\n2024-01-01 23:00,1\n2024-01-01 24:00,2\n", "24:00 is 00:00 of the next day"),
        ("time,u\n0,12%\n1,13\n", r"'u' holds numbers with a percent sign, and data row 0 .* holds '12%'"),
        ("time,u\n0,12%\n1,high\n", r"'u' holds numbers with a percent sign"),
        ("time,u\n0,1.#INF\n1,2\n", r"holds 1 infinite values .*at row 0, column 'u'"),
        ("time,site\n0,A\n1,B\n", r"holds no column of numbers beside the time"),
        ("t;u\n0;-973\n1;-15.038\n", r"point in '-15.038' may mark decimals or thousands"),
        ("t;u\n" + "0;7\n" * 3000 + "1;15.038\n", r"point in '15.038' may mark decimals or thousands"),
        ("t;u\n" + "0;7\n" * 3000 + "1;15.000\n", r"point in '15.000' may mark decimals or thousands"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_to_do(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("order", "last"), [("dmy", "2024-03-01"), ("mdy", "2024-01-03")], ids=["day first", "month first"]
)
def test_a_stated_order_decides(tmp_path, order, last):
    record = read(tmp_path, "date,u\n01/02/2024,1\n01/03/2024,2\n", date_order=order)
    assert record.timestamps[-1] == np.datetime64(last)


def test_a_stated_decimal_mark_and_delimiter_decide(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, "u;v\n1,234;0\n", decimal=",").values, [[1.234, 0]])
    np.testing.assert_array_equal(read(tmp_path, "u v;w\n1 2;3\n", delimiter=" ", missing=["2;3"]).values[0, 0], 1)


def test_only_the_order_in_which_time_runs_forward_is_taken(tmp_path):
    record = read(tmp_path, "date,u\n11/01/2024,1\n12/01/2024,2\n01/02/2024,3\n")
    assert record.timestamps[0] == np.datetime64("2024-01-11")


def test_an_epoch_unit_can_be_stated(tmp_path):
    record = read(tmp_path, "time,u\n10,1\n20,2\n", epoch_unit="s")
    assert record.timestamps[1] == np.datetime64("1970-01-01T00:00:20")


def test_large_counts_keep_every_nanosecond(tmp_path):
    text = "timestamp,u\n" + "".join(f"{1709251200000000001 + 7 * i},{i}\n" for i in range(5))
    assert np.diff(read(tmp_path, text).timestamps).astype(int).tolist() == [7] * 4


GROUPED = [1234.5, 973.25, 1234567.125, -20.5, 1000.0]


@pytest.mark.parametrize(
    ("thousands", "decimal"),
    [(".", ","), (",", "."), (" ", ","), ("'", "."), ("’", ","), ("\u00a0", ","), ("\u202f", ".")],
    ids=["German", "American", "French", "Swiss", "Swiss print", "no-break space", "thin space"],
)
@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
def test_marks_of_thousands_that_tell_themselves_are_read_and_said(tmp_path, thousands, decimal, delimiter):
    def cell(x):
        text = f"{x:,.3f}".translate({ord(","): thousands, ord("."): decimal})
        return f'"{text}"' if delimiter in text else text

    stamps = [f"0{day}.01.2024 00:00" for day in range(1, 6)]
    lines = [delimiter.join((stamp, cell(x), cell(-x))) for stamp, x in zip(stamps, GROUPED, strict=True)]
    record = read(tmp_path, "\n".join([delimiter.join(("Datum", "a", "b")), *lines]))
    assert record.columns == ["a", "b"]
    np.testing.assert_array_equal(record.values, np.stack([GROUPED, np.negative(GROUPED)], axis=1))
    assert record.timestamps[1] == np.datetime64("2024-01-02")
    assert any("for a mark of thousands" in note for note in record.notes)


def test_marks_of_thousands_may_come_late_in_a_long_file(tmp_path):
    cells = ["973,5"] * 3000 + ["1.234,5"]
    record = read(tmp_path, "time;u;id\n" + "".join(f"{i};{cell};A\n" for i, cell in enumerate(cells)))
    assert record.columns == ["u"]
    assert record.values[-1, 0] == 1234.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time;u;v\n0;1.234,5;2.5\n1;2.345,5;2.5\n", r"'2.5' is no number with '.' between thousands"),
        ("time;u;v\n0;1.234,5;2\n1;2,345.5;3\n", r"use different marks; write them alike"),
        ("time;u;v\n0;973,5;1.256\n1;980,5;1.001\n", r"decimal points .* which of them marks thousands"),
        ('time,u,v\n0,"1,234",2\n1,"2,345",3\n', r"state table.decimal ',' for decimals, or table.thousands ','"),
    ],
)
def test_marks_of_thousands_that_disagree_or_leave_a_choice_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_stated_marks_of_thousands_decide(tmp_path):
    text = "time;u;v\n0;973,5;1.256\n1;980,5;1.001\n"
    np.testing.assert_array_equal(read(tmp_path, text, thousands=".").values, [[973.5, 1256], [980.5, 1001]])
    np.testing.assert_array_equal(read(tmp_path, "time;u\n0;973\n1;1.256\n", thousands=".").values[:, 0], [973, 1256])
    with pytest.raises(ValueError, match=r"table.thousands must be one of"):
        read(tmp_path, text, thousands=".", decimal=".")


def test_numbers_that_a_frame_holds_as_text_are_read_as_stated_or_refused():
    frame = pd.DataFrame({"u": ["1.234,5", "973,5"], "site": ["A", "B"]})
    with pytest.raises(ValueError, match=r"'u' holds text with the form of numbers.*table.decimal and table.thousands"):
        record_from_frame(frame)
    record = record_from_frame(frame, given=TableFormat(decimal=",", thousands="."))
    assert (record.columns, record.notes) == (["u"], ("left out the text column 'site'",))
    np.testing.assert_array_equal(record.values[:, 0], [1234.5, 973.5])


@pytest.mark.parametrize("name", ["RECORD", "Nr.", "lfd. Nr.", "n", "sample", "position", "Unnamed: 0"])
@pytest.mark.parametrize("start", [0, 1, 4711])
@pytest.mark.parametrize("place", ["before the time", "last"])
@pytest.mark.parametrize("spelled", ["{}", "{}.0"])
def test_columns_that_count_rows_are_left_out_and_said(tmp_path, name, start, place, spelled):
    counts = [name, *(spelled.format(start + i) for i in range(ROWS))]
    lines = table().splitlines()
    pairs = [(c, line) if place == "before the time" else (line, c) for c, line in zip(counts, lines, strict=True)]
    record = read(tmp_path, "\n".join(",".join(pair) for pair in pairs))
    assert record.columns == ["temp", "pres"]
    assert f"left out the column {name!r}, which counts rows" in record.notes


def test_counts_with_jumps_are_known_by_their_name(tmp_path):
    counts = [7, 8, 9, 12, 13, 13, 14, 15]  # rows were deleted, and one repeated
    text = "".join(f"{i},{count},{count},{i % 3}\n" for i, count in enumerate(counts))
    record = read(tmp_path, f"time,record,flow,u\n{text}")
    assert record.columns == ["flow", "u"]
    assert record.notes == ("left out the column 'record', which counts rows",)


def test_a_sensor_that_grows_by_one_is_kept_where_it_is_the_only_one(tmp_path):
    record = read(tmp_path, "time,u\n" + "".join(f"{0.5 * i},{i}\n" for i in range(20)))
    assert (record.columns, record.notes) == (["u"], ())


@pytest.mark.parametrize("values", [[0, 1, 2, 2] * 5, [0.5 + i for i in range(20)], [2 * i for i in range(20)]])
def test_sensors_that_do_not_count_rows_are_kept(tmp_path, values):
    record = read(tmp_path, "time,u,v\n" + "".join(f"{0.5 * i},{x},{i % 3}\n" for i, x in enumerate(values)))
    assert record.columns == ["u", "v"]


def test_a_new_file_may_hold_the_count_that_training_left_out(tmp_path):
    frame = pd.DataFrame({"u": np.sin(np.arange(60.0)), "v": np.cos(np.arange(60.0)), "n": np.arange(60)})
    assert record_from_frame(frame).columns == record_from_frame(frame.iloc[-24:]).columns == ["u", "v"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_points_that_may_all_mark_thousands_are_said_between_semicolons(tmp_path, delimiter):
    text = "n;u\n1;973.123\n2;15.038\n3;412.125\n".replace(";", delimiter)
    notes = [note for note in read(tmp_path, text).notes if "'973.123' for a decimal mark" in note]
    assert len(notes) == (delimiter == ";")
    assert not read(tmp_path, text, decimal=".").notes
    assert not any("decimal mark" in note for note in read(tmp_path, text.replace("412.125", "1412.125")).notes)
    np.testing.assert_array_equal(read(tmp_path, text, thousands=".").values[:, -1], [973123, 15038, 412125])


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (("1.0D+00", "-2.5d-01"), (1, -0.25)),
        (("1.0E-9", "1.5-101"), (1e-9, 1.5e-101)),
        (("nan(ind)", "3"), (np.nan, 3)),
        (("-nan(ind)", "-nan"), (np.nan, np.nan)),
        (("-1.#IND", "1.#QNAN00"), (np.nan, np.nan)),
        (("\u22121.5", "3.5e\u22122"), (-1.5, 0.035)),
        (("12%", "13.5 %"), (12, 13.5)),
        (("12,5%", "-13,1%"), (12.5, -13.1)),
        (("1.234,5%", "\u22121.000%"), (1234.5, -1000)),
    ],
)
@pytest.mark.parametrize("as_frame", [False, True])
def test_numbers_are_read_as_fortran_c_and_reports_spell_them(tmp_path, cells, numbers, as_frame):
    if as_frame:
        marks = {"decimal": ",", "thousands": "." if "." in cells[0] else None} if "," in cells[0] else {}
        frame = pd.DataFrame({"u": cells, "v": [1.0, 2.0]})
        record = record_from_frame(frame, given=TableFormat(**marks))
    else:
        record = read(tmp_path, f"time;u;v\n0;{cells[0]};1\n1;{cells[1]};2\n")
    np.testing.assert_allclose(record.values, np.stack([numbers, (1, 2)], axis=1), rtol=1e-12)
    assert record.units == ["%" if "%" in cells[0] else None, None]
    assert any("Fortran" in note for note in record.notes) == any(x in cells[1] for x in ("d-01", "-101"))


def test_codes_of_sites_are_no_exponents(tmp_path):
    assert read(tmp_path, "time,site,u\n0,1D1,1\n1,1D2,2\n").columns == ["u"]


@pytest.mark.parametrize("name", ["index", "obs", "No."])
def test_counts_by_equal_steps_are_known_by_their_name(tmp_path, name):
    record = read(tmp_path, f"{name},u\n" + "".join(f"{10 * i},{i % 3}\n" for i in range(8)))
    assert (record.columns, record.notes) == (["u"], (f"left out the column {name!r}, which counts rows",))
