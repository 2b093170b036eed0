"""xarray objects become records whose time is the row, whatever their axes."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from favorcast.forecasting.data import SimulationTimeSeries, read_series
from favorcast.forecasting.data.labelled_array import record_from_xarray

xarray = pytest.importorskip("xarray", reason='pip install "favorcast[data]"')

HEIGHTS = [0.5, 1.0, 2.0]
STAMPS = pd.date_range("2024-01-01", periods=50, freq="s")
VALUES = np.random.default_rng(0).normal(size=(50, 3))


def array(dims=("time", "z"), **coordinates):
    values = VALUES if dims[0] == "time" else VALUES.T
    return xarray.DataArray(
        values, dims=dims, coords={"time": STAMPS, "z": HEIGHTS} | coordinates, name="T", attrs={"units": "K"}
    )


@pytest.mark.parametrize("dims", [("time", "z"), ("z", "time")])
def test_time_is_found_on_either_axis(dims):
    series = SimulationTimeSeries(data=array(dims))
    np.testing.assert_allclose(series.values, VALUES, rtol=1e-6)
    assert series.target_cols == ["T(z=0.5)", "T(z=1.0)", "T(z=2.0)"]
    assert (series.unit, series.units) == ("K", ["K"] * 3)
    np.testing.assert_array_equal(series.coordinates, np.array(HEIGHTS)[:, None])
    np.testing.assert_array_equal(series.times, STAMPS.to_numpy().astype("datetime64[ns]"))


def test_the_variables_of_a_dataset_are_read_and_others_left_out():
    dataset = xarray.Dataset(
        {"T": array(), "p": ("time", VALUES[:, 0], {"units": "Pa"}), "mast": "A", "height": ("z", HEIGHTS)}
    )
    record = record_from_xarray(dataset)
    assert record.columns == ["T(z=0.5)", "T(z=1.0)", "T(z=2.0)", "p"]
    assert record.units == ["K", "K", "K", "Pa"]
    assert record.coordinates is None
    assert record.notes == (
        "left out the variable 'mast', which is no number over 'time'",
        "left out the variable 'height', which is no number over 'time'",
    )


def test_a_grid_of_points_keeps_both_coordinates():
    field = xarray.DataArray(
        np.zeros((4, 2, 3)), dims=("t", "x", "y"), coords={"x": [0.0, 1.0], "y": [5, 6, 7]}, name="u"
    )
    record = record_from_xarray(field)
    assert record.columns[:2] == ["u(y=5, x=0.0)", "u(y=5, x=1.0)"]
    assert record.coordinates.tolist() == [[y, x] for y in (5, 6, 7) for x in (0, 1)]
    assert record.timestamps is None


def test_solver_times_and_durations_are_times():
    times = record_from_xarray(array(time=np.arange(50) * 0.25)).timestamps
    np.testing.assert_array_equal(times, np.arange(50) * 0.25)
    durations = record_from_xarray(array(time=pd.timedelta_range("0s", periods=50, freq="10ms")))
    np.testing.assert_allclose(durations.timestamps, np.arange(50) * 0.01)
    assert durations.time_unit == "s"


def test_an_array_without_a_dimension_of_time_is_refused():
    with pytest.raises(
        ValueError, match=r"one dimension of time, .* got a \(50\), b \(3\); state it as time_col_name='a'"
    ):
        record_from_xarray(xarray.DataArray(VALUES, dims=("a", "b")))


def test_netcdf_reads_as_the_array(tmp_path):
    pytest.importorskip("h5netcdf", reason='pip install "favorcast[data]"')
    array().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    record = read_series(tmp_path / "a.nc")
    np.testing.assert_array_equal(record.values, VALUES)
    assert record.units == ["K"] * 3


def test_netcdf_without_xarray_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    (tmp_path / "a.nc").write_bytes(b"")
    with pytest.raises(ImportError, match=r"favorcast\[data\]"):
        read_series(tmp_path / "a.nc")


def test_a_measured_sensor_column_has_one_sensor_for_each_height():
    path = Path(os.environ.get("FAVORCAST_DATA", "")) / "boundary_layer/boundary_layer.nc"
    if not path.is_file():
        pytest.skip("set FAVORCAST_DATA to a folder that holds boundary_layer/boundary_layer.nc")
    pytest.importorskip("h5netcdf", reason='pip install "favorcast[data]"')
    series = SimulationTimeSeries(data=xarray.open_dataset(path)["Tperturb"])
    assert series.values.shape == (3660, 80)
    assert (series.sampling_time, series.unit) == (1.0, "K")
    assert series.coordinates[0, 0] == pytest.approx(0.717256)
