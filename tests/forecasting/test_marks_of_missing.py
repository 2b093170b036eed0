"""Numbers that look like marks of missing values are pointed out, and missing where they are stated."""

import numpy as np
import pandas as pd
import pytest

from favorcast.forecasting.data import TableFormat, read_series
from favorcast.forecasting.data.marks_of_missing import suspected_marks
from favorcast.forecasting.data.record import sensor_record
from favorcast.forecasting.data.sources import record_of

ROWS = 200
CLEAN = 20 + 8 * np.sin(0.3 * np.arange(ROWS)[:, None] + np.arange(3))


def with_mark(mark, count, dtype=np.float64):
    values = CLEAN.astype(dtype)
    values[10 : 10 + count, 1] = mark
    return values


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        (-9999, "-9999"),
        (-99, "-99"),
        (-99.9, "-99.9"),
        (999.25, "999.25"),
        (1e20, "1e+20"),
        (9.969209968386869e36, "9.969209968386869e+36"),
        (-32768, "-32768"),
    ],
)
@pytest.mark.parametrize("count", [1, 5])
def test_usual_marks_are_pointed_out_with_what_makes_them_missing(mark, text, count):
    values = with_mark(mark, count)
    record = sensor_record(values, ["a", "b", "c"])
    (note,) = record.notes
    times = "once" if count == 1 else f"{count} times"
    assert note.startswith(f"{text} stands {times} in 'b', far from all other values")
    assert f"table.missing ['{text}'] states that it marks missing values" in note
    np.testing.assert_array_equal(record.values, values)  # said, not done
    stated = record_of(values, table=TableFormat(missing=[text]))
    assert stated.notes == ()
    np.testing.assert_array_equal(stated.values, with_mark(np.nan, count))


def test_marks_of_single_precision_are_stated_as_they_are_written():
    values = with_mark(9.969209968386869e36, 5, np.float32)
    (note,) = sensor_record(values).notes
    text = note.partition("table.missing ['")[2].partition("'")[0]
    assert np.isnan(record_of(values, table=TableFormat(missing=[text])).values).sum() == 5


def test_numbers_that_repeat_far_away_are_pointed_out():
    assert "-431.5 stands 3 times" in suspected_marks(with_mark(-431.5, 3), ["a", "b", "c"])[0]


def test_several_marks_in_several_columns_are_one_note_each():
    values = np.concatenate([with_mark(-9999, 2)] * 2, axis=1)
    values[50, [1, 4]] = -8888
    values[60, 0] = 1e20
    first, second, third = suspected_marks(values, list("abcdef"))
    assert first.startswith("1e+20 stands once in 'a'")
    assert second.startswith("-9999 stands 4 times in 'b', 'e'")
    assert third.startswith("-8888 stands 2 times in 'b', 'e'")


@pytest.mark.parametrize(
    "column",
    [
        CLEAN[:, 0],
        np.where(np.arange(ROWS) % 3, 0.0, np.arange(ROWS) * 0.1),  # rain
        np.where(np.arange(ROWS) % 4, 0.0, 100.0),  # a switch
        np.linspace(0, 100, ROWS).round(),  # 99 among its neighbours
        np.r_[CLEAN[:-1, 0], 500.0],  # one peak, as sensors have them
        np.full(ROWS, -9999.0),
        np.full(ROWS, np.nan),
        101325 + 0.01 * CLEAN[:, 0],
    ],
    ids=["wave", "rain", "switch", "percent", "peak", "constant", "missing", "pressure"],
)
def test_what_sensors_measure_is_not_suspected(column):
    assert suspected_marks(column[:, None], ["u"]) == []


@pytest.mark.parametrize("kind", ["csv", "frame", "npy", "npz", "xarray", "record", "parquet"])
def test_stated_numbers_are_missing_in_every_kind_of_data(tmp_path, kind):
    values = with_mark(-9999, 4)
    frame = pd.DataFrame(values, columns=list("abc"))
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False, float_format="%.17g")
    elif kind == "parquet":
        pytest.importorskip("pyarrow", reason='pip install "favorcast[data]"')
        frame.to_parquet(path)
    elif kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez(path, dataset=values)
    elif kind == "xarray":
        xarray = pytest.importorskip("xarray", reason='pip install "favorcast[data]"')
    data = path
    if kind in ("frame", "record"):
        data = frame if kind == "frame" else sensor_record(values)
    if kind == "xarray":
        data = xarray.DataArray(values, dims=("time", "sensor"))
    given = TableFormat(missing=["-9999", "broken"])
    record = record_of(data, table=given)
    np.testing.assert_allclose(record.values, with_mark(np.nan, 4), rtol=1e-12)
    if kind != "record":
        assert any("-9999 stands 4 times" in note for note in record_of(data).notes)


def test_fill_values_beyond_single_precision_are_refused_until_they_are_stated(tmp_path):
    path = tmp_path / "probes.csv"
    rows = "".join(f"{0.1 * i:.1f},{i % 7},{-1e300 if i == 3 else 1.5}\n" for i in range(20))
    path.write_text(f"t,u,v\n{rows}")
    with pytest.raises(ValueError, match=r"infinite .*as table.missing \['-1e\+300'\]"):
        read_series(path)
    assert np.isnan(read_series(path, table=TableFormat(missing=["-1e+300"])).values[3, 1])


def test_words_are_no_numbers():
    assert TableFormat(missing=["?", "nan", "-9999", 999.25]).missing_numbers == [-9999, 999.25]
