"""describe, fit and predict on fields, as a new user types them."""

import numpy as np
import pandas as pd
import pytest
from small_run import refused, run, without_bounds

from favorcast.forecasting.cli.main import main

xarray = pytest.importorskip("xarray", reason='pip install "favorcast[data]"')
pytest.importorskip("h5netcdf", reason='pip install "favorcast[data]"')

SHORT = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary")]
SHORT += ["--trainer.accelerator=cpu", "--trainer.max_steps=3", "--trainer.limit_val_batches=1"]
SHORT += ["--trainer.limit_test_batches=2"]


def write_field(path, *, rows=160, seed=0, time="time"):
    """Write waves u and w over (time, z, y, x)."""
    axes = {time: 0.25 * np.arange(rows), "z": np.arange(6) / 5, "y": np.arange(12) / 4, "x": np.arange(20) / 4}
    t, z, y, x = np.meshgrid(*axes.values(), indexing="ij", sparse=True)
    u = np.sin(2 * x - 3 * t) * (1 + z) + 0.1 * y + 0.02 * np.random.default_rng(seed).normal(size=(rows, 6, 12, 20))
    data = xarray.Dataset({"u": (list(axes), u, {"units": "m/s"}), "w": (list(axes), 0.1 * u)}, coords=axes)
    data.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    write_field(folder / "wake.nc")
    options = ["--sensors", "3", "--fields", "u", "--runs", str(folder / "runs"), *SHORT]
    main(["fit", "--data", str(folder / "wake.nc"), *options])
    (run_folder,) = (folder / "runs/wake").iterdir()
    return run_folder


def test_a_cube_of_sensors_is_trained_on_and_forecast(fitted):
    written = pd.read_csv(fitted / "future.csv")
    assert len(without_bounds(written)) == 1 + 27
    assert written.columns[1] == "u(z=0.0, y=0.25, x=0.75) [m/s]"
    assert written["time"].iloc[0] == pytest.approx(40.0)


def test_predict_takes_the_sensors_of_training_from_a_later_field(fitted, tmp_path, capsys):
    path = write_field(tmp_path / "later.nc", rows=150, seed=1)
    written, _ = run(capsys, "predict", "--ckpt_path", fitted, "--data", path, "--output", tmp_path / "a.nc")
    forecast = xarray.load_dataarray(written)
    assert forecast.sizes["sensor"] == 27
    assert forecast.attrs["units"] == "m/s"
    assert forecast["x"].values[:3].tolist() == [0.75, 2.25, 3.75]


def test_given_points_are_described(fitted, tmp_path, capsys):
    path = write_field(tmp_path / "a.nc", time="n")
    said = refused(capsys, "describe", path, "--sensors", "4")
    assert "got n (160), z (6), y (12), x (20); state it as --time_column 'n'" in said
    main(["describe", str(path), "--time_column", "n", "--sensors", "x=1,y=0.3,z=0", "x=3,y=2,z=1"])
    output = capsys.readouterr().out
    assert "160 rows, 4 columns" in output
    assert output.count("u(z=0.0, y=0.25") == output.count("w(z=1.0, y=2.0") == 1
    assert "to 39.75, a row every 0.25" in output


def test_a_folder_of_fields_is_trained_on_by_run(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    for run_number in range(4):
        write_field(tmp_path / f"runs/run_{run_number}.nc", seed=run_number)
    options = ["--sensors", 2, "--fields", "u", "--runs", tmp_path / "out", *SHORT]
    folder, output = run(capsys, "fit", "--data", tmp_path / "runs", *options)
    assert "the future is that of the last run, run_3" in output
    assert len(without_bounds(pd.read_csv(folder / "future.csv"))) == 1 + 8
