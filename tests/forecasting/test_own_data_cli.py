"""describe FILE, fit --data FILE and predict --data FILE, as a new user types them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from small_run import metrics, refused, run
from user_tables import DATED, ROWS, STAMPS, table

from favorcast.forecasting import SimulationTimeSeries, TableFormat
from favorcast.forecasting.automatic_settings import choose_settings
from favorcast.forecasting.cli.main import main

QUIET = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary")]
SHORT = [
    *QUIET,
    "--trainer.accelerator=cpu",
    "--trainer.max_steps",
    "3",
    "--trainer.limit_val_batches",
    "1",
    "--trainer.limit_test_batches",
    "2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "weather.csv").write_text(DATED["semicolons and decimal comma"][0])
    return folder


@pytest.fixture(scope="module")
def fitted(folder):
    main(["fit", "--data", str(folder / "weather.csv"), "--runs", str(folder / "runs"), *SHORT])
    (run_folder,) = (folder / "runs" / "weather").iterdir()
    return run_folder


def test_fit_takes_settings_from_the_file_alone(folder, fitted):
    config = yaml.safe_load((fitted / "config.yaml").read_text())
    assert config["data"]["series"]["init_args"]["data_path"] == str(folder / "weather.csv")
    assert config["data"]["series"]["init_args"]["target_columns"] is None
    assert (config["data"]["context_len"], config["data"]["target_len"]) == (80, 20)
    assert config["trainer"]["max_time"] is None
    assert config["name"] == "weather"
    assert (fitted / "metrics.csv").is_file()


def test_fit_ends_with_the_future_of_the_file(fitted):
    written = pd.read_csv(fitted / "future.csv")
    assert written["time"].iloc[0] == (STAMPS[-1] + pd.Timedelta("1h")).isoformat()
    assert len(written) == 20
    assert (fitted / "future.png").read_bytes().startswith(b"\x89PNG")


def test_a_future_that_cannot_be_forecast_is_told(capsys, tmp_path):
    lines = DATED["ISO"][0].splitlines()
    (tmp_path / "a.csv").write_text("\n".join([*lines[:-30], *lines[-20:]]))
    found, output = run(capsys, "fit", "--data", tmp_path / "a.csv", "--runs", tmp_path / "runs", *SHORT)
    assert "note: no forecast of the future: the last" in output
    assert (found / "metrics.csv").is_file()
    assert not (found / "future.csv").exists()


def test_fit_says_what_it_chose(folder, capsys, tmp_path):
    _, output = run(capsys, "fit", "--data", folder / "weather.csv", "--runs", tmp_path, *SHORT)
    assert "forecast: 20 rows (20 h)" in output
    assert "from 80 rows (3.333 d)" in output
    assert "covariates: Sin_Day, Cos_Day" in output


def test_options_still_change_what_was_chosen(folder, capsys, tmp_path):
    options = ["--data.context_len", 30, "--data.target_len", 10, "--target_columns", "temp"]
    found, _ = run(capsys, "fit", f"--data={folder / 'weather.csv'}", "--runs", tmp_path, *options, *SHORT)
    config = yaml.safe_load((found / "config.yaml").read_text())
    assert (config["data"]["context_len"], config["data"]["target_len"]) == (30, 10)
    assert config["data"]["series"]["init_args"]["target_columns"] == ["temp"]


def test_what_is_stated_about_a_table_is_kept_in_the_run(capsys, tmp_path):
    (tmp_path / "a.csv").write_text(table("%d/%m/%Y %H:%M", stamps=STAMPS - pd.Timedelta("58D")))
    options = ["--date_order", "dmy", "--gaps", "resample", "--time_zone", "Europe/Berlin"]
    found, _ = run(capsys, "fit", "--data", tmp_path / "a.csv", "--runs", tmp_path / "runs", *options, *SHORT)
    init_args = yaml.safe_load((found / "config.yaml").read_text())["data"]["series"]["init_args"]
    assert (init_args["table"]["date_order"], init_args["gaps"]) == ("dmy", "resample")
    predicted, _ = run(
        capsys, "predict", "--ckpt_path", found, "--data", tmp_path / "a.csv", "--runs", tmp_path / "runs"
    )
    assert pd.read_csv(predicted / "forecast.csv")["time"].iloc[0].endswith("+01:00")


def test_predict_writes_the_future_and_a_picture(folder, fitted, capsys, tmp_path):
    options = ["--data", folder / "weather.csv", "--horizon", 30, "--runs", tmp_path]
    predicted, _ = run(capsys, "predict", "--ckpt_path", fitted, *options)
    written = pd.read_csv(predicted / "forecast.csv")
    bounds = [f"{name}-{end}-{level}" for name in ("temp", "pres") for level in (80, 95) for end in ("lo", "hi")]
    assert list(written.columns) == ["time", "temp", "pres", *bounds]
    expected = pd.date_range(STAMPS[-1] + pd.Timedelta("1h"), periods=30, freq="h")
    assert written["time"].tolist() == [stamp.isoformat() for stamp in expected]
    assert written["temp"].between(0, 40).all()
    assert (predicted / "forecast.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".nc"])
def test_predict_writes_where_it_is_told(folder, fitted, capsys, tmp_path, suffix):
    if suffix != ".csv":
        pytest.importorskip("pyarrow" if suffix == ".parquet" else "h5netcdf", reason='pip install "favorcast[data]"')
    output = tmp_path / f"future{suffix}"
    path, _ = run(capsys, "predict", "--ckpt_path", fitted, "--data", folder / "weather.csv", "--output", output)
    assert path == output
    assert {each.name for each in tmp_path.iterdir()} == {output.name, "future.png"}


def test_a_context_and_a_lone_checkpoint_are_enough(folder, fitted, capsys, tmp_path):
    (tmp_path / "copied.ckpt").write_bytes((fitted / "checkpoints" / "last.ckpt").read_bytes())
    lines = (folder / "weather.csv").read_text().splitlines()
    (tmp_path / "latest.csv").write_text("\n".join([lines[0], *lines[-80:]]))
    forecasts = []
    sources = {
        fitted / "checkpoints" / "last.ckpt": folder / "weather.csv",
        tmp_path / "copied.ckpt": tmp_path / "latest.csv",
    }
    for checkpoint, data in sources.items():
        output = tmp_path / f"{data.stem}_future.csv"
        run(capsys, "predict", "--ckpt_path", checkpoint, "--data", data, "--output", output)
        forecasts.append(pd.read_csv(output))
    pd.testing.assert_frame_equal(*forecasts, rtol=1e-5)


def test_predict_without_a_file_still_forecasts_the_test_windows(fitted, capsys):
    predicted, _ = run(capsys, "predict", "--ckpt_path", fitted, "--trainer.limit_predict_batches", 1)
    assert "window" in (predicted / "forecast.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--data", "nowhere.csv"], "no series at 'nowhere.csv'"),
        (["fit", "--data", "FILE", "--config", "cylinder_wake"], "leave out --config and --ckpt_path"),
        (["predict", "--data", "FILE"], "--ckpt_path"),
        (["predict", "--data", "FILE", "--ckpt_path", "RUN", "--horizon", "0"], "horizon must be at least 1"),
        (["predict", "--data", "FILE", "--ckpt_path", "RUN", "--horizont", "3"], "unrecognized arguments: --horizont"),
        (["predict", "--data", "FILE", "--ckpt_path", "RUN", "--output", "a.xlsx"], "must end in .csv, .parquet, .nc"),
        (["describe"], "the following arguments are required: file"),
        (["describe", "nowhere.csv"], "no series at 'nowhere.csv'"),
    ],
)
def test_mistakes_end_in_one_message(folder, fitted, capsys, args, message):
    places = {"FILE": folder / "weather.csv", "RUN": fitted}
    assert message in refused(capsys, *(places.get(arg, arg) for arg in args))


def test_describe_lists_rows_columns_times_spectrum_and_windows(tmp_path, capsys):
    lines = DATED["ISO"][0].splitlines()
    kept = [*lines[:101], *lines[149:200], lines[199], *lines[200:]]
    kept[10] = kept[10].rsplit(",", 1)[0] + ","
    (tmp_path / "a.csv").write_text("\n".join(kept))
    main(["describe", str(tmp_path / "a.csv")])
    output = capsys.readouterr().out
    assert f"{ROWS - 48} rows, 2 columns, 0.14% of the values missing" in output
    assert "times: 2024-03-01T00:00:00 to 2024-03-17T15:00:00, a row every 1 h" in output
    assert "irregular: 1 gap (of 49 steps)" in output
    assert "note: left out 1 row that repeats the row before" in output
    assert "strongest periods: 2" in output
    assert "windows: " in output
    assert "0.28%" in output


@pytest.mark.parametrize("rows", [5, 40, 120, 400, 3000])
@pytest.mark.parametrize("columns", [1, 7, 207])
def test_settings_fit_every_size_of_data(rows, columns):
    values = np.sin(2 * np.pi * np.arange(rows)[:, None] / 24 + np.arange(columns))
    series = SimulationTimeSeries(data=values + 0.1 * np.random.default_rng(0).normal(size=values.shape))
    if rows < 30:
        with pytest.raises(ValueError, match="5 rows are too few"):
            choose_settings(series)
        return
    settings = choose_settings(series)
    assert all(count >= 1 for count in settings.counts.values())
    assert (settings.context_len + settings.target_len) * columns <= max(5000, 6 * columns)
    assert rows < 3000 or columns > 7 or (settings.target_len, settings.context_len) == (24, 96)
    assert settings.epochs * settings.steps_an_epoch <= 700


@pytest.mark.parametrize("coupled", [False, True])
def test_the_linear_part_is_the_one_that_forecasts_the_validation_rows_best(coupled):
    """Each column follows itself, with a decay of its own, or follows the column before it."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(600, 4))
    decay = np.array([0.95, 0.5, -0.5, -0.95])
    for i in range(1, len(values)):
        values[i] = 0.9 * np.roll(values[i - 1], 1) if coupled else decay * values[i - 1]
        values[i] += 0.1 * rng.normal(size=4)
    settings = choose_settings(SimulationTimeSeries(data=values))
    assert settings.linear_model == ("vector" if coupled else "per_sensor")
    assert settings.config()["model"]["init_args"]["use_global_norm"] is coupled


def test_an_offset_far_above_the_variation_is_trained_on():
    values = np.random.default_rng(0).normal(size=(600, 2)) * 0.05 + [1e5, 0.0]
    assert choose_settings(SimulationTimeSeries(data=values)).counts["train"] > 0


def test_marks_of_thousands_are_refused(tmp_path):
    cells = ["973", "1.256", "980", "981", "1.001", "990", "995", "999", "1.000", "1.002"]
    rows = [f"2024-01-{day:02};{cell}\n" for day, cell in enumerate(cells, 1)]
    (tmp_path / "a.csv").write_text("".join(["time;a\n", *rows]))
    with pytest.raises(ValueError, match=r"'1\.256' may mark decimals or thousands"):
        SimulationTimeSeries(str(tmp_path / "a.csv"))
    series = SimulationTimeSeries(str(tmp_path / "a.csv"), table=TableFormat(decimal="."))
    assert series.values[:3, 0].tolist() == pytest.approx([973, 1.256, 980])


def test_a_forecast_never_replaces_what_it_is_made_from(folder, fitted, capsys, tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(before := (folder / "weather.csv").read_text())
    said = refused(capsys, "predict", "--ckpt_path", fitted, "--data", file, "--output", file)
    assert "is the file that --data reads; write to another one" in said
    assert file.read_text() == before
    checkpoint = tmp_path / "copy.csv"
    checkpoint.write_bytes(kept := next(Path(fitted).rglob("best.ckpt")).read_bytes())
    said = refused(capsys, "predict", "--ckpt_path", checkpoint, "--data", file, "--output", checkpoint)
    assert "is the file that --ckpt_path reads" in said
    assert checkpoint.read_bytes() == kept
    said = refused(capsys, "predict", "--ckpt_path", fitted, "--data", file, "--output", tmp_path / "none" / "a.csv")
    assert "there is no folder" in said


@pytest.mark.parametrize("name", ["metrics.csv", "future.csv", "errors.csv", "log/metrics.csv"])
def test_a_forecast_never_replaces_a_file_of_a_run(folder, fitted, capsys, name):
    """errors.csv would have its picture in errors.png."""
    before = {path: path.read_bytes() for path in Path(fitted).rglob("*") if path.is_file()}
    options = ["--ckpt_path", fitted, "--data", folder / "weather.csv"]
    said = refused(capsys, "predict", *options, "--output", Path(fitted) / name)
    assert "is a file of a run, which would be lost; write to another one" in said
    assert {path: path.read_bytes() for path in Path(fitted).rglob("*") if path.is_file()} == before
    for _ in range(2):  # what a forecast wrote there before may be replaced
        run(capsys, "predict", *options, "--output", Path(fitted) / "mine.csv")
    for written in ("mine.csv", "mine.png"):
        (Path(fitted) / written).unlink()


@pytest.mark.parametrize("rows", [30, 110])
def test_few_rows_end_with_a_table_and_what_is_left_out_is_said_before_training(rows, tmp_path, capsys, monkeypatch):
    """Of 110 rows a choice between yardsticks found too few to hold back: exit code 2 after training."""
    monkeypatch.setattr("favorcast.forecasting.evaluation.baseline.MOST_RANK", 2)
    time = np.arange(rows)
    values = np.sin(2 * np.pi * time[:, None] / 20 + np.arange(3)) + 0.1 * np.random.default_rng(0).normal(
        size=(rows, 3)
    )
    np.savetxt(tmp_path / "few.csv", np.c_[time, values], delimiter=",", header="t,a,b,c", comments="")
    quick = ["--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false"]
    folder, printed = run(capsys, "fit", "--data", tmp_path / "few.csv", "--runs", tmp_path / "runs", *quick)
    said = printed.index("note: left out of the table: vector ridge would decompose a matrix of")
    assert said < printed.index("Test: ")
    assert "left out: vector ridge (would" in printed[printed.index("Test: ") :]
    assert {"persistence", "SpatioTemporalPerformer_Forecaster"} <= {key[0] for key in metrics(folder)}
