import csv
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from favorcast.forecasting import SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.baselines import Persistence
from favorcast.forecasting.cli import complete_arguments, main, option_value
from favorcast.forecasting.config_files import bundled_configs, bundled_folder, resolve_config
from favorcast.forecasting.data import SimulationTimeSeries, SimulationTorchDataset

CONTEXT_LEN, TARGET_LEN = 12, 4
PNG_START = b"\x89PNG"


def series_file(folder, rows=200):
    rng = np.random.default_rng(0)
    data = np.sin(2 * np.pi * np.arange(rows)[:, None] / 9 + np.arange(3)) + 0.05 * rng.standard_normal((rows, 3))
    path = folder / "waves.npz"
    columns = ["u_0", "u_1", "v_0"]
    np.savez(path, dataset=data.astype(np.float32), columns=columns, sampling_time=0.25, time_unit="s", unit="m")
    return path


def config_file(folder, data_path, **changes):
    model = {"d_model": 8, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1, "max_seq_len": 16}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_epochs": 1, "limit_train_batches": 2, "log_every_n_steps": 1, "accelerator": "cpu"}
    series = {"data_path": str(data_path), "target_columns": ["u_*"], "exogenous_columns": ["v_0"]}
    config = {
        "data": {
            "series": {"class_path": "SimulationTimeSeries", "init_args": series},
            "context_len": CONTEXT_LEN,
            "target_len": TARGET_LEN,
            "batch_size": 8,
        },
        "model": {"class_path": "SpatioTemporalPerformer_Forecaster", "init_args": model},
        "trainer": limits | quiet,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path


def run(capsys, *args):
    """Run a command line and return its run folder, which it prints last, and everything it printed."""
    main([str(arg) for arg in args])
    output = capsys.readouterr()
    return Path(output.out.strip().splitlines()[-1]), output.out + output.err


def refused(capsys, *args):
    """Run a command line that must fail with exit code 2, and return its message."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("favorcast: error: ")) :])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fit once for all tests: the folder they may write to, its configuration, and the run folder."""
    folder = tmp_path_factory.mktemp("fit")
    config = config_file(folder, series_file(folder))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # Python shows these to nobody but developers
        main(["fit", "--config", str(config), "--runs", str(folder / "runs"), "--name", "small"])
    (run_folder,) = (folder / "runs" / "small").iterdir()
    return folder, config, run_folder, [str(warning.message) for warning in caught]


def metrics(run_folder):
    with (run_folder / "metrics.csv").open(newline="") as file:
        return {(row[0], row[1], row[2], row[3]): float(row[4]) for row in list(csv.reader(file))[1:]}


def test_fit_leaves_results_weights_log_and_configuration(fitted):
    _, _, run_folder, _ = fitted
    files = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    assert files == {
        "metrics.csv",
        "forecast.png",
        "errors.png",
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "log/metrics.csv",
        "log/hparams.yaml",
    }
    assert all((run_folder / plot).read_bytes().startswith(PNG_START) for plot in ("forecast.png", "errors.png"))
    with (run_folder / "log" / "metrics.csv").open() as file:
        assert {"train/loss", "val/loss", "test/mse"} < set(next(csv.reader(file)))


def test_fit_says_nothing_that_a_user_could_not_act_on(fitted):
    assert fitted[-1] == []


def test_metrics_equal_a_computation_without_the_command_line(fitted):
    folder, _, run_folder, _ = fitted
    series = SimulationTimeSeries(str(folder / "waves.npz"), target_columns=["u_*"], exogenous_columns=["v_0"])
    windows = SimulationTorchDataset(series, "test", CONTEXT_LEN, TARGET_LEN)
    context_x, context_y, target_x, target_y = (torch.stack(part) for part in zip(*windows, strict=True))
    checkpoint = run_folder / "checkpoints" / "best.ckpt"
    model = SpatioTemporalPerformer_Forecaster.load_from_checkpoint(checkpoint, weights_only=True)
    train = series.values[: series.splits["train"].stop]
    sizes = {"context_len": CONTEXT_LEN, "target_len": TARGET_LEN, "d_y_target": 2}
    error = model.predict(context_x, context_y, target_x) - target_y
    reference = Persistence().fit(train, **sizes).predict(context_y) - target_y
    name, found = "SpatioTemporalPerformer_Forecaster", metrics(run_folder)
    assert found[name, "overall", "", "mse"] == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert found[name, "horizon", "3", "mae"] == pytest.approx(error[:, 2].abs().mean().item(), rel=1e-5)
    assert found[name, "sensor", "u_1", "mse"] == pytest.approx(error[..., 1].square().mean().item(), rel=1e-5)
    assert found["persistence", "overall", "", "mse"] == pytest.approx(reference.square().mean().item(), rel=1e-5)
    skill = 1 - (error.square().mean() / reference.square().mean()).item()
    assert found[name, "overall", "", "skill"] == pytest.approx(skill, rel=1e-5)
    assert {key[0] for key in found} >= {"persistence", "seasonal naive", "ridge", "vector ridge", "dmd"}


def test_test_repeats_the_scores_of_fit_from_the_checkpoint_alone(fitted, capsys):
    _, _, run_folder, _ = fitted
    tested, output = run(capsys, "test", "--ckpt_path", run_folder / "checkpoints" / "best.ckpt")
    assert tested.parent == run_folder.parent
    assert metrics(tested) == metrics(run_folder)
    assert re.search(r"forecaster\s+┃\s+skill ┃\s+MAE \[m\] ┃\s+MSE \[m²\]", output)
    assert re.search(r"SpatioTemporalPerformer_Forecaster\s+│.*\n.*\n.*persistence\s+│ 0.00000", output)
    assert {path.name for path in tested.iterdir()} == {"metrics.csv", "forecast.png", "errors.png"}


def test_predict_labels_the_forecasts_of_every_window(fitted, capsys):
    folder, _, run_folder, _ = fitted
    predicted, _ = run(capsys, "predict", "--ckpt_path", run_folder)
    with (predicted / "forecast.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["window", "step", "time", "u_0", "u_1"]
    series = SimulationTimeSeries(str(folder / "waves.npz"), target_columns=["u_*"], exogenous_columns=["v_0"])
    windows = SimulationTorchDataset(series, "test", CONTEXT_LEN, TARGET_LEN)
    assert len(rows) == len(windows) * TARGET_LEN
    model = SpatioTemporalPerformer_Forecaster.load_from_checkpoint(run_folder / "checkpoints" / "best.ckpt")
    inputs = [part.unsqueeze(0) for part in windows[5][:3]]
    written = np.array([[float(cell) for cell in row] for row in rows if row[0] == "5"])
    np.testing.assert_array_equal(written[:, 1], range(1, TARGET_LEN + 1))
    np.testing.assert_allclose(written[:, 2], 0.25 * (160 + 5 + np.arange(TARGET_LEN)))
    np.testing.assert_allclose(written[:, 3:], model.predict(*inputs)[0], rtol=1e-5, atol=1e-6)


def test_validate_writes_nothing(fitted, capsys):
    _, _, run_folder, _ = fitted
    before = set(run_folder.parent.rglob("*"))
    main(["validate", "--ckpt_path", str(run_folder)])
    assert "val/loss" in capsys.readouterr().out
    assert set(run_folder.parent.rglob("*")) == before


def test_fit_resumes_from_a_checkpoint_in_a_folder_of_its_own(fitted, capsys):
    _, _, run_folder, _ = fitted
    last = run_folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    resumed, _ = run(capsys, "fit", "--ckpt_path", last, "--trainer.max_epochs", 3)
    assert resumed != run_folder
    state = torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)
    assert (state["global_step"], state["epoch"]) == (6, 2)
    with (resumed / "log" / "metrics.csv").open(newline="") as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert epochs == [1, 2]
    assert last.read_bytes() == before


def test_two_runs_of_one_second_get_folders_of_their_own(fitted, tmp_path, capsys):
    _, config, _, _ = fitted
    options = ["--config", config, "--runs", tmp_path, "--trainer.fast_dev_run", "true"]
    first, _ = run(capsys, "fit", *options)
    second, _ = run(capsys, "fit", *options)
    assert first != second
    assert first.parent == second.parent == tmp_path / "waves"


def test_a_printed_configuration_gives_itself_when_read_back(fitted, tmp_path, capsys):
    _, config, _, _ = fitted
    printed = []
    for source in (config, tmp_path / "printed.yaml"):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "--config", str(source), "--data.batch_size", "5", "--print_config"])
        assert stop.value.code in (0, None)
        printed.append(capsys.readouterr().out)
        (tmp_path / "printed.yaml").write_text(printed[0])
    assert printed[0] == printed[1]
    assert yaml.safe_load(printed[0])["data"]["batch_size"] == 5


def test_the_saved_configuration_repeats_the_run(fitted, tmp_path, capsys):
    _, _, run_folder, _ = fitted
    repeated, _ = run(capsys, "fit", "--config", run_folder / "config.yaml", "--runs", tmp_path)
    assert metrics(repeated) == metrics(run_folder)


def test_logging_and_checkpoints_can_be_switched_off(fitted, tmp_path, capsys):
    _, config, _, _ = fitted
    switched_off = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    folder, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path, *switched_off)
    assert {path.name for path in folder.iterdir()} == {"metrics.csv", "forecast.png", "errors.png", "config.yaml"}


def test_data_without_a_test_split_are_trained_on_without_a_report(fitted, tmp_path, capsys):
    _, config, _, _ = fitted
    options = ["--data.series.init_args.have_test", "false"]
    folder, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path, *options)
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert not (folder / "metrics.csv").exists()


SERIES = "--data.series.init_args."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.contextlen", "3"], "unrecognized arguments: --data.contextlen 3"),
        (["--data.context_len", "long"], "data.context_len"),
        (["--model.d_modell", "3"], "'d_modell' is not accepted"),
        (["--model.d_model", "9"], "d_model must be divisible by n_heads"),
        ([f"{SERIES}data_path", "missing.csv"], "no series at 'missing.csv'"),
        ([f"{SERIES}target_columns", "[w_*]"], "no column matches 'w_*'; close matches: ['u_0'"),
        (["--data.context_len", "150"], "the train split has 140 rows"),
        (["--ckpt_path", "missing.ckpt"], "no checkpoint at 'missing.ckpt'"),
        (["--ckpt_path", __file__], "is no checkpoint"),
        (["--config", "missing"], "no configuration at 'missing'"),
        (["--trainer.devices", "5", "--trainer.accelerator", "cuda"], ""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_message_before_any_folder_is_made(fitted, tmp_path, capsys, options, message):
    _, config, _, _ = fitted
    text = refused(capsys, "fit", "--config", config, "--runs", tmp_path / "runs", *options)
    assert message in text
    assert text.count("\n") <= 3
    assert not (tmp_path / "runs").exists()


def test_runs_that_cannot_be_written_are_refused(fitted, tmp_path, capsys):
    _, config, _, _ = fitted
    (tmp_path / "runs").write_text("")
    assert "cannot create the run folder" in refused(capsys, "fit", "--config", config, "--runs", tmp_path / "runs")


def test_an_option_that_no_configuration_knows_is_refused(fitted, tmp_path, capsys):
    folder, _, _, _ = fitted
    config = config_file(tmp_path, folder / "waves.npz", modle=3)
    assert "modle" in refused(capsys, "fit", "--config", config, "--runs", tmp_path)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_commands_that_need_weights_say_so(fitted, capsys, command):
    _, config, _, _ = fitted
    expected = f"favorcast: error: {command} needs trained weights"
    assert refused(capsys, command).startswith(expected)
    assert refused(capsys, command, "--config", config).startswith(expected)


def test_a_defect_keeps_its_traceback(fitted, monkeypatch):
    def defect(self):
        return int("not a number")

    monkeypatch.setattr("favorcast.forecasting.forecast_cli.ForecastCLI.print_run_folder", defect)
    monkeypatch.setattr("favorcast.forecasting.forecast_cli.ForecastCLI.fit", lambda self, **options: float("x y"))
    with pytest.raises(ValueError, match="x y"):
        main(["fit", "--config", str(fitted[1]), "--runs", str(fitted[0] / "defect")])


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code in (0, None)
    assert re.fullmatch(r"favorcast \d+\.\d+.*\n", capsys.readouterr().out)


def test_help_says_where_the_bundled_configurations_are(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert str(bundled_folder()) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("name", ["cylinder_wake", "fluidic_pinball"])
def test_bundled_configurations_are_accepted_by_name(name, capsys):
    assert resolve_config(name) == resolve_config(f"{name}.yaml") == bundled_folder() / f"{name}.yaml"
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", name, "--print_config"])
    assert stop.value.code in (0, None)
    assert yaml.safe_load(capsys.readouterr().out)["name"] == name
    assert name in bundled_configs()


def test_a_file_wins_over_a_bundled_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cylinder_wake").write_text("")
    assert resolve_config("cylinder_wake") == Path("cylinder_wake")


def test_fit_without_a_configuration_runs_the_cylinder_wake():
    expected = ["fit", "--config", str(bundled_folder() / "cylinder_wake.yaml"), "--data.batch_size", "8"]
    assert complete_arguments(["fit", "--data.batch_size", "8"]) == expected


@pytest.mark.parametrize(
    "options", [["--config", "cylinder_wake"], ["-c", "cylinder_wake"], ["--config=cylinder_wake"]]
)
def test_names_are_replaced_in_every_spelling_of_the_option(options):
    completed = complete_arguments(["fit", *options])
    assert completed[-1].removeprefix("--config=") == str(bundled_folder() / "cylinder_wake.yaml")
    assert len(completed) == len(options) + 1


@pytest.mark.parametrize(
    ("options", "value"),
    [([], None), (["--a"], None), (["--a", "1"], "1"), (["--b", "--a=2"], "2"), (["--aa", "3"], None)],
)
def test_option_values_are_found(options, value):
    assert option_value(options, "--a") == value
