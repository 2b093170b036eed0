"""Fields over time and space, in memory and on disk, become sensors: all points, a grid of them, or given ones."""

import subprocess
import sys
import textwrap
from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from favorcast.forecasting import SimulationTimeSeries
from favorcast.forecasting.data import extract_datapoints, read_series
from favorcast.forecasting.data.field_choice import FieldChoice
from favorcast.forecasting.data.labelled_array import record_from_xarray
from favorcast.forecasting.data.place_axes import PlaceAxis

xarray = pytest.importorskip("xarray", reason='pip install "favorcast[data]"')
h5py = pytest.importorskip("h5py", reason='pip install "favorcast[data]"')

TIME = 0.5 * np.arange(40)
Z, Y, X = np.linspace(0, 1, 4), np.linspace(-1, 1, 9), np.linspace(0, 4, 16)


def field(*, levels=False, order=None):
    """Return u and v over (time, [z,] y, x), each value another one."""
    dims, axes = (("time", "z", "y", "x"), (TIME, Z, Y, X)) if levels else (("time", "y", "x"), (TIME, Y, X))
    shape = tuple(map(len, axes))
    u = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    data = xarray.Dataset(
        {"u": (dims, u, {"units": "m/s"}), "v": (dims, -u, {"units": "m/s"})}, coords=dict(zip(dims, axes, strict=True))
    )
    return data if order is None else data.transpose(*order)


def test_a_grid_of_sensors_is_that_of_extract_datapoints():
    record = record_from_xarray(field(), choice=FieldChoice(sensors=3))
    whole = np.stack([field()[name].transpose("time", "x", "y").to_numpy() for name in ("u", "v")], axis=-1)
    x, y = [2, 7, 12], [1, 4, 7]
    np.testing.assert_array_equal(record.values, np.concatenate(extract_datapoints(whole, x, y), axis=1))
    np.testing.assert_array_equal(record.coordinates[:9], [(Y[j], X[i]) for j in y for i in x])
    assert record.units == ["m/s"] * 18


@pytest.mark.parametrize("order", [("time", "z", "y", "x"), ("x", "time", "z", "y")], ids="-".join)
def test_three_dimensions_of_space_give_a_cube_of_sensors(order):
    record = record_from_xarray(field(levels=True, order=order), choice=FieldChoice(sensors=3, fields=["u"]))
    assert record.values.shape == (len(TIME), 27)
    assert [axis.name for axis in record.axes] == ["z", "y", "x"]
    for values, place in zip(record.values.T, record.coordinates, strict=True):
        np.testing.assert_array_equal(values, field(levels=True)["u"].sel(dict(zip("zyx", place, strict=True))))


@pytest.mark.parametrize(
    "chosen", [3, [{"x": 0.3, "y": 0.0}, {"x": 3.2, "y": 1.0}], None], ids=["grid", "points", "all"]
)
def test_the_order_of_dimensions_on_disk_changes_no_sensor(tmp_path, chosen):
    expected = record_from_xarray(field(), choice=FieldChoice(sensors=chosen))
    for order in permutations(("time", "y", "x")):
        record = read_series(write_netcdf(tmp_path, field(order=order)), choice=FieldChoice(sensors=chosen))
        assert record.columns == expected.columns
        np.testing.assert_array_equal(record.values, expected.values)
        np.testing.assert_array_equal(record.coordinates, expected.coordinates)


def test_axes_keep_their_names_and_attributes(tmp_path):
    data = field()
    data["x"].attrs = {"units": "m", "standard_name": "projection_x_coordinate", "valid_range": [0.0, 4.0]}
    record = read_series(write_netcdf(tmp_path, data), choice=FieldChoice(sensors=2))
    standard = {"units": "m", "standard_name": "projection_x_coordinate"}
    assert record.axes == (PlaceAxis("y"), PlaceAxis("x", standard))


def test_a_thin_dimension_is_taken_whole():
    record = record_from_xarray(field(levels=True), choice=FieldChoice(sensors=5, fields=["u"]))
    assert record.values.shape == (len(TIME), 4 * 5 * 5)


def test_points_are_read_at_the_nearest_point_of_the_grid():
    points = [{"x": 1.0, "y": 0.3}, {"y": -0.9, "x": 3.99}]
    record = record_from_xarray(field(), choice=FieldChoice(sensors=points))
    assert record.columns == ["u(y=0.25, x=1.06667)", "u(y=-1.0, x=4.0)", "v(y=0.25, x=1.06667)", "v(y=-1.0, x=4.0)"]
    for i, point in enumerate(points):
        np.testing.assert_array_equal(record.values[:, i], field()["u"].sel(point, method="nearest"))
    np.testing.assert_allclose(record.coordinates[:2], [[0.25, X[4]], [-1, 4]])


def test_cells_of_an_unstructured_mesh_are_found_by_their_coordinates():
    rng = np.random.default_rng(0)
    places = rng.uniform(size=(50, 2))
    data = xarray.Dataset(
        {"p": (("time", "cell"), rng.normal(size=(40, 50))), "x": ("cell", places[:, 0]), "y": ("cell", places[:, 1])},
        coords={"time": TIME},
    )
    record = record_from_xarray(data)
    np.testing.assert_array_equal(record.coordinates, places)
    assert (record.columns[7], record.notes) == ("p(cell=7)", ())
    near = record_from_xarray(data, choice=FieldChoice(sensors=[{"x": places[9, 0] + 1e-6, "y": places[9, 1]}]))
    assert near.columns == ["p(cell=9)"]


def test_named_stations_keep_names_and_places():
    data = xarray.DataArray(
        np.zeros((40, 2)),
        dims=("time", "station"),
        coords={"time": TIME, "station": ["A", "B"], "lat": ("station", [50.0, 51.0]), "lon": ("station", [8.0, 9.0])},
        name="T",
    )
    record = record_from_xarray(data)
    assert record.columns == ["T(station=A)", "T(station=B)"]
    np.testing.assert_array_equal(record.coordinates, [[50, 8], [51, 9]])


def test_components_by_name_share_the_places_of_their_sensors():
    data = xarray.DataArray(
        np.random.default_rng(0).normal(size=(40, 2, 16)),
        dims=("time", "component", "x"),
        coords={"time": TIME, "component": ["u", "v"], "x": X},
        name="U",
    )
    record = record_from_xarray(data, choice=FieldChoice(sensors=[{"x": 0.0}, {"x": 4.0}]))
    assert record.columns == [f"U(component={c}, x={x})" for c in "uv" for x in (0.0, 4.0)]
    np.testing.assert_array_equal(record.coordinates[:, 0], [0, 4, 0, 4])
    np.testing.assert_array_equal(record.values[:, 3], data[:, 1, -1])


def write_netcdf(folder, data):
    data.to_netcdf(folder / "a.nc", engine="h5netcdf")
    return folder / "a.nc"


def write_netcdf3(folder, data):
    data.to_netcdf(folder / "a.nc", engine="scipy")
    return folder / "a.nc"


def write_hdf5(folder, data):
    """Write what h5py users write: arrays, with dimensions known by the lengths of those that hold coordinates."""
    with h5py.File(folder / "a.h5", "w") as file:
        for name, variable in data.variables.items():
            file[name] = variable.to_numpy()
    return folder / "a.h5"


def write_labels(folder, data):
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, variable in data.variables.items():
            file[name] = variable.to_numpy()
            for dimension, label in zip(file[name].dims, variable.dims, strict=True):
                dimension.label = label
    return folder / "a.hdf5"


def write_scales(folder, data):
    with h5py.File(folder / "a.h5", "w") as file:
        for name, variable in data.variables.items():
            file[name] = variable.to_numpy()
        for name in data.coords:
            file[name].make_scale(name)
        for name, variable in data.data_vars.items():
            for dimension, label in zip(file[name].dims, variable.dims, strict=True):
                dimension.attach_scale(file[label])
    return folder / "a.h5"


def write_zarr(folder, data):
    pytest.importorskip("zarr", reason='pip install "favorcast[zarr]"')
    data.to_zarr(folder / "a.zarr")
    return folder / "a.zarr"


WRITERS = [write_netcdf, write_netcdf3, write_hdf5, write_labels, write_scales, write_zarr]


@pytest.mark.parametrize(
    "chosen", [3, [{"x": 0.3, "y": 0.0}, {"x": 3.2, "y": 1.0}], None], ids=["grid", "points", "all"]
)
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_files_of_every_kind_give_what_the_dataset_would(tmp_path, monkeypatch, write, chosen):
    monkeypatch.setattr("favorcast.forecasting.data.field_values.BLOCK_BYTES", 1000)
    choice = FieldChoice(sensors=chosen)
    expected, record = record_from_xarray(field(), choice=choice), read_series(write(tmp_path, field()), choice=choice)
    np.testing.assert_array_equal(record.values, expected.values)
    np.testing.assert_array_equal(record.timestamps, TIME)
    np.testing.assert_array_equal(record.coordinates, expected.coordinates)
    assert record.columns == expected.columns


def test_only_the_chosen_sensors_of_a_large_file_are_held_in_memory(tmp_path):
    """A compressed file of 1.6 GB of values, read whole along time at 49 and at 2 sensors, in another process."""
    pytest.importorskip("resource", reason="tells the memory of a process on Unix only")
    rows, height, width = 6000, 256, 256
    with h5py.File(tmp_path / "large.h5", "w") as file:
        u = file.create_dataset(
            "u", (rows, height, width), "f4", chunks=(64, 64, 64), compression="gzip", fillvalue=1.0
        )
        u[:, 100:101, 30:31] = np.arange(rows, dtype=np.float32)[:, None, None]
        for name, size in (("time", rows), ("y", height), ("x", width)):
            file[name] = np.arange(size, dtype=np.float64)
            file[name].make_scale(name)
        for dimension, name in zip(u.dims, ("time", "y", "x"), strict=True):
            dimension.attach_scale(file[name])
    program = f"""
        import resource, warnings
        import h5netcdf, xarray
        from favorcast.forecasting.data import read_series
        from favorcast.forecasting.data.field_choice import FieldChoice
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert read_series({str(tmp_path / "large.h5")!r}, choice=FieldChoice(sensors=7)).values.shape == ({rows}, 49)
        points = [dict(x=30.2, y=99.8), dict(x=250.0, y=3.0)]
        record = read_series({str(tmp_path / "large.h5")!r}, choice=FieldChoice(sensors=points))
        assert record.values[:, 0].tolist() == list(range({rows})) and (record.values[:, 1] == 1).all()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200 * 1024  # KiB


def test_a_header_that_promises_too_much_is_refused_before_anything_is_read(tmp_path):
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("u", (10**7, 10**6), "f4", chunks=(100, 100))
        file["u"].dims[0].label, file["u"].dims[1].label = "time", "x"
    with pytest.raises(ValueError, match=r"would give 1000000 sensors of 10000000 rows, 3.73e\+04 GiB; .*sensors=7"):
        read_series(tmp_path / "huge.h5")


def test_a_series_is_made_of_the_chosen_sensors(tmp_path):
    series = SimulationTimeSeries(str(write_netcdf(tmp_path, field())), sensors=4, fields=["u"])
    assert series.values.shape == (len(TIME), 16)
    assert (series.units, series.coordinates.shape) == (["m/s"] * 16, (16, 2))
    assert series.reading["choice"] == FieldChoice(sensors=4, fields=["u"])


@pytest.mark.parametrize("form", ["folder", "pattern", "list", "datasets"])
def test_fields_in_a_folder_are_runs(tmp_path, form):
    for reynolds in (80, 90, 100):
        (0.01 * reynolds + field()).to_netcdf(tmp_path / f"re_{reynolds}.nc", engine="h5netcdf")
    names = [tmp_path / f"re_{reynolds}.nc" for reynolds in (80, 90, 100)]
    if form == "datasets":
        series = SimulationTimeSeries(data=[xarray.load_dataset(name) for name in names], sensors=3)
    else:
        given = {"folder": str(tmp_path), "pattern": str(tmp_path / "*.nc"), "list": list(map(str, names))}[form]
        series = SimulationTimeSeries(given, sensors=3)
    assert series.values.shape == (3 * len(TIME), 18)
    assert series.coordinates.shape == (18, 2)


def test_a_stated_dimension_is_the_time(tmp_path):
    data = field().rename(time="n", y="time_of_flight")
    with pytest.raises(ValueError, match=r"one dimension of time, .* got n \(40\), .*; state it as time_col_name='n'"):
        read_series(write_netcdf(tmp_path, data.rename(time_of_flight="y")))
    record = read_series(write_netcdf(tmp_path, data), time_column="n", choice=FieldChoice(sensors=2))
    np.testing.assert_array_equal(record.timestamps, TIME)
    with pytest.raises(
        ValueError, match=r"no dimension of time 'm'; its dimensions are n \(40\), time_of_flight \(9\)"
    ):
        read_series(tmp_path / "a.nc", time_column="m")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"sensors": 0}, r"sensors= must be at least 1, got 0"),
        ({"sensors": [{"x": 1.0}]}, r"'u': each of sensors= must name the coordinates \['y', 'x'\] of the field, got"),
        ({"sensors": []}, r"must hold at least one point of \['y', 'x'\]"),
        ({"sensors": [{"x": 9.0, "y": 0.0}]}, r"x of each of sensors= must lie in \[0, 4\], got \[9.0\]; move"),
        ({"sensors": [{"x": np.nan, "y": 0.0}]}, r"x of each of sensors= must lie in \[0, 4\], got \[nan\]"),
        (
            {"sensors": [{"x": 1.0, "y": 0.0}, {"x": 1.01, "y": 0.01}]},
            r"are nearest to the same point of the field; space",
        ),
        ({"fields": ["w"]}, r"no field matches 'w'; close matches: \['u', 'v'\]"),
        ({"objects": ["probes1"]}, r"is a field, which has no objects to choose; leave out objects="),
    ],
)
def test_choices_that_a_field_cannot_fulfil_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        SimulationTimeSeries(data=field(), **choice)


@pytest.mark.parametrize("suffix", [".nc", ".h5"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=rf"a{suffix} cannot be read as {suffix}: .*copy it from its source"):
        read_series(path)


def test_arrays_in_groups_are_said(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["fields/u"] = np.zeros((40, 3))
    with pytest.raises(ValueError, match=r"its arrays are in the groups \['fields'\]; copy those of one group"):
        read_series(tmp_path / "a.h5")


def test_calendar_dates_on_disk_stay_dates(tmp_path):
    data = field().assign_coords(time=pd.date_range("2024-01-01", periods=len(TIME), freq="h"))
    record = read_series(write_netcdf(tmp_path, data), choice=FieldChoice(sensors=2))
    assert record.timestamps[1] == np.datetime64("2024-01-01T01")
