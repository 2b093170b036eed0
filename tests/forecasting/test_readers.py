import numpy as np
import pytest
import torch

from favorcast.forecasting.data import embedded_names, embedded_path, read_series, sensor_record


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("given", "kept"),
    [("f8", "f8"), ("f4", "f4"), ("f2", "f4"), ("i8", "f8"), ("i4", "f8"), ("u2", "f4"), ("?", "f4")],
)
def test_values_keep_every_digit_of_the_source(given, kept):
    values = np.array([[0, 1], [1, 0]], given)
    assert sensor_record(values).values.dtype == np.dtype(kept)
    if given == "i8":
        np.testing.assert_array_equal(sensor_record(values + 2**40).values, values + 2**40)


def test_npy_file_gives_named_sensors(tmp_path):
    np.save(tmp_path / "wake.npy", np.arange(6.0).reshape(3, 2))
    record = read_series(tmp_path / "wake.npy")
    np.testing.assert_array_equal(record.values, [[0, 1], [2, 3], [4, 5]])
    assert record.columns == ["Sensor_1", "Sensor_2"]
    assert record.timestamps is None
    assert record.sampling_time is None


def test_npz_sensor_file_gives_everything_it_holds(tmp_path):
    np.savez(
        tmp_path / "wake.npz",
        dataset=np.ones((4, 2), np.float32),
        columns=np.array(["u_0", "v_0"]),
        coordinates=np.array([[1.0, 0.0], [2.0, 0.5]], np.float32),
        sampling_time=0.2,
        time_unit="D/U",
        unit="U",
        reynolds=100.0,
    )
    record = read_series(tmp_path / "wake.npz")
    assert record.columns == ["u_0", "v_0"]
    assert record.sampling_time == pytest.approx(0.2)
    assert (record.time_unit, record.unit) == ("D/U", "U")
    np.testing.assert_array_equal(record.coordinates, [[1.0, 0.0], [2.0, 0.5]])


def test_npz_with_only_a_dataset_loads(tmp_path):
    np.savez(tmp_path / "a.npz", dataset=np.zeros((3, 1)))
    assert read_series(tmp_path / "a.npz").columns == ["Sensor_1"]


def test_npz_without_dataset_lists_its_keys(tmp_path):
    np.savez(tmp_path / "a.npz", velocity=np.zeros((3, 1)), pressure=np.zeros(3))
    with pytest.raises(ValueError, match=r"'dataset'.*velocity.*pressure"):
        read_series(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_objects_are_refused(tmp_path, suffix):
    values = np.array([[1.0, None]], dtype=object)
    path = tmp_path / f"a.{suffix}"
    np.save(path, values, allow_pickle=True) if suffix == "npy" else np.savez(path, dataset=values)
    with pytest.raises(ValueError, match="pickled objects"):
        read_series(path)


def test_a_damaged_archive_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", dataset=np.arange(2000.0).reshape(1000, 2))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[8000] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is damaged: Bad CRC"):
        read_series(tmp_path / "a.npz")


@pytest.mark.parametrize("sampling_time", ["abc", [1.0, 2.0]])
def test_a_sampling_time_is_one_number(tmp_path, sampling_time):
    np.savez(tmp_path / "a.npz", dataset=np.zeros((3, 1)), sampling_time=np.array(sampling_time))
    with pytest.raises(ValueError, match=r"a\.npz: sampling_time must be one number, got"):
        read_series(tmp_path / "a.npz")


def test_a_file_that_is_no_numpy_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npy must be a plain numeric NumPy file"):
        read_series(write(tmp_path / "a.npy", "hello"))
    np.save(tmp_path / "b.npy", np.zeros((2, 2)))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"single array; rename it to \.npy"):
        read_series(tmp_path / "b.npz")


def test_missing_file_lists_suffixes_and_embedded_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*\.npy, \.npz, \.csv, .*embedded names"):
        read_series(tmp_path / "nowhere.npz")


def test_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in one of .*, got '\.docx'"):
        read_series(write(tmp_path / "a.docx", "1"))


def test_csv_with_dates_gives_timestamps_and_sampling_time(tmp_path):
    text = "date,HUFL,OT\n2016-07-01 00:00:00,1.5,2\n2016-07-01 01:00:00,,3\n2016-07-01 02:00:00,NaN,4e0\n"
    record = read_series(write(tmp_path / "a.csv", text))
    assert record.columns == ["HUFL", "OT"]
    np.testing.assert_array_equal(record.values, np.array([[1.5, 2], [np.nan, 3], [np.nan, 4]], np.float32))
    assert record.timestamps[1] == np.datetime64("2016-07-01T01:00:00")
    assert (record.sampling_time, record.time_unit) == (3600.0, "s")


def test_csv_without_time_column_and_with_numeric_ids_loads(tmp_path):
    record = read_series(write(tmp_path / "a.csv", "773869,767541\n64.375,67.625\n62.0,68.0\n"))
    assert record.columns == ["773869", "767541"]
    assert record.timestamps is None


def test_csv_time_column_by_name_may_hold_numbers(tmp_path):
    record = read_series(write(tmp_path / "a.csv", "t;u\n0.5;1\n1.0;2\n1.5;3\n"), time_column="t")
    assert record.columns == ["u"]
    np.testing.assert_array_equal(record.timestamps, [0.5, 1.0, 1.5])
    assert record.sampling_time == 0.5


def test_csv_stamps_with_offsets_become_utc(tmp_path):
    text = "time,u\n2020-01-01T01:00:00+02:00,1\n2020-01-01T00:00:00Z,2\n"
    record = read_series(write(tmp_path / "a.csv", text))
    np.testing.assert_array_equal(record.timestamps, np.array(["2019-12-31T23", "2020-01-01T00"], "datetime64[ns]"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,Berlin\n", r"column 'b' must hold numbers, but data row 1 .* holds 'Berlin'.*time_col_name='b'"),
        ("a,b\n1,2\n3\n", r"data row 1 has 1 cells, the header has 2"),
        ("", r"is empty: expected a header line"),
        ("0.25,1.5\n0.5,2.5\n", r"starts with data \('0\.25'\) where the header is expected"),
        ("a,a\n1,2\n", r"column names must differ, repeated: \['a'\]"),
        ("a,b\n1,inf\n", r"1 infinite values .* row 0, column 'b'"),
        ("a,b\n", r"must have shape \(rows, columns\), both at least 1, got \(0, 2\)"),
        ("time,a\n2020-01-01,1\nyesterday,2\n", r"data row 1 holds 'yesterday'; expected a number or a time"),
        ("time,a\n2020-01-02,1\n2020-01-01,2\n", r"row 1 \(2020-01-01.*lies before row 0"),
        ("time,a\n1,1\nnan,2\n", r"row 1 has no time"),
    ],
)
def test_faulty_csv_says_what_is_wrong_and_where(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_series(write(tmp_path / "a.csv", text))


def test_unknown_time_column_lists_close_names(tmp_path):
    path = write(tmp_path / "a.csv", "time_s,u\n0,1\n1,2\n")
    with pytest.raises(ValueError, match=r"no time column 'times'; close matches: \['time_s'\]"):
        read_series(path, time_column="times")


def test_parquet_table_reads_as_the_csv_would(tmp_path):
    pandas = pytest.importorskip("pandas", reason="parquet needs pandas")
    pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    frame = pandas.DataFrame({"date": pandas.date_range("2020-01-01", periods=3, freq="h"), "u": [1.0, None, 3.0]})
    frame.to_parquet(tmp_path / "a.parquet")
    record = read_series(tmp_path / "a.parquet")
    np.testing.assert_array_equal(record.values, np.array([[1], [np.nan], [3]], np.float32))
    assert record.sampling_time == 3600.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(5), r"got \(5,\); give one sensor as array\[:, None\]"),
        (np.zeros((5, 8, 8, 2)), r"got \(5, 8, 8, 2\); pick sensors from a field with extract_datapoints"),
        (np.zeros((0, 3)), r"both at least 1, got \(0, 3\)"),
        (np.zeros((2, 2), complex), "must hold real numbers, got dtype complex128"),
        (np.array([[1, "a"]], dtype=object), "must hold real numbers, got dtype object"),
        (np.array([[0.0, 1e39]]), r"1 infinite values \(or beyond float32\), the first at row 0, column 'Sensor_2'"),
    ],
)
def test_arrays_that_are_no_series_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        sensor_record(values)


def test_names_and_coordinates_must_fit_the_columns():
    with pytest.raises(ValueError, match="expected 2 column names, one a column, got 3"):
        sensor_record(np.zeros((3, 2)), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"coordinates must have shape \(2, dimensions\), got \(3, 2\)"):
        sensor_record(np.zeros((3, 2)), coordinates=np.zeros((3, 2)))


def test_tensors_and_missing_values_are_accepted():
    record = sensor_record(torch.tensor([[1.0, float("nan")], [2.0, 3.0]], requires_grad=True))
    assert np.isnan(record.values[0, 1])


def test_embedded_series_load_by_bare_name():
    assert set(embedded_names()) >= {"cylinder_wake", "fluidic_pinball"}
    for name in embedded_names():
        record = read_series(name)
        assert record.values.ndim == 2
        assert np.isfinite(record.values).all()
        assert record.columns[0] == "u_0"
        assert record.sampling_time > 0
        assert record.coordinates.shape == (len(record.columns), 2)


def test_unknown_embedded_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="no embedded series is called 'wake'; there are"):
        embedded_path("wake")


def test_a_folder_is_no_record_and_its_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is a folder and no OpenFOAM case; give a file"):
        read_series(tmp_path)
    for name in ("r1.csv", "r2.csv", "notes.md"):
        (tmp_path / name).write_text("time,u\n0,1\n1,2\n")
    with pytest.raises(FileNotFoundError, match=r"expected one record.* give one of its 2 files, such as .*r1\.csv"):
        read_series(tmp_path)
