import csv
import re
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml
from small_run import CONTEXT_LEN, TARGET_LEN, config_file, metrics, refused, run, series_file

from favorcast.forecasting import SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.cli.config_files import bundled_folder
from favorcast.forecasting.cli.main import main
from favorcast.forecasting.data import SimulationTimeSeries, SimulationTorchDataset
from favorcast.forecasting.evaluation.baselines import Persistence

PNG_START = b"\x89PNG"


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


def test_fit_leaves_results_weights_log_and_configuration(fitted):
    _, _, run_folder, _ = fitted
    files = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    files = {name for name in files if not name.startswith("tensorboard/")}
    assert files == {
        "metrics.csv",
        "forecast.png",
        "errors.png",
        "config.yaml",
        "model_card.md",
        "report.html",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "log/metrics.csv",
        "log/hparams.yaml",
    }
    assert all((run_folder / plot).read_bytes().startswith(PNG_START) for plot in ("forecast.png", "errors.png"))
    with (run_folder / "log" / "metrics.csv").open() as file:
        log = list(csv.DictReader(file))
    assert {"train/loss", "val/loss", "test/mse"} < set(log[0])
    speeds = [float(row["train/windows_per_s"]) for row in log if row["train/windows_per_s"]]
    assert len(speeds) == 1  # the first of two batches is not counted
    assert 1 < speeds[0] < 1e6


def test_tensorboard_logs_stand_beside_where_it_is_installed(fitted):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = reading.EventAccumulator(str(fitted[2] / "tensorboard"))
    log.Reload()
    assert {"train/loss", "val/loss", "test/mse"} <= set(log.Tags()["scalars"])


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
    skill = 1 - (error.double().square().mean() / reference.double().square().mean()).item()
    assert found[name, "overall", "", "skill"] == pytest.approx(skill, rel=1e-5, abs=1e-7)
    assert {key[0] for key in found} >= {"persistence", "seasonal naive", "ridge", "vector ridge", "dmd"}


def test_test_repeats_the_scores_of_fit_from_the_checkpoint_alone(fitted, capsys):
    _, _, run_folder, _ = fitted
    tested, output = run(capsys, "test", "--ckpt_path", run_folder / "checkpoints" / "best.ckpt")
    assert tested.parent == run_folder.parent
    assert metrics(tested) == pytest.approx(metrics(run_folder), rel=0, abs=0, nan_ok=True)
    assert re.search(r"forecaster\s+┃\s+skill ┃\s+MAE \[m\] ┃\s+MSE \[m²\]", output)
    assert re.search(r"SpatioTemporalPerformer_Forecaster\s+│.*\n.*\n.*persistence\s+│\s+0.00000", output)
    assert {path.name for path in tested.iterdir()} == {
        "metrics.csv",
        "forecast.png",
        "errors.png",
        "model_card.md",
        "report.html",
    }


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


def test_a_linear_part_in_closed_form_is_tested_from_the_run_folder(tmp_path, capsys):
    config = config_file(tmp_path, series_file(tmp_path))
    ridge = {"linear_model": "vector", "linear_window": 4, "linear_fit": "ridge", "patch_len": 3}
    options = [word for name, value in ridge.items() for word in (f"--model.{name}", value)]
    wrecked = ["--model.initial_lr", 10.0, "--model.warmup_steps", 0]
    trained, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path / "runs", *options, *wrecked)
    assert torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 0
    tested, _ = run(capsys, "test", "--ckpt_path", trained)
    assert metrics(tested) == pytest.approx(metrics(trained), rel=0, abs=0, nan_ok=True)
    resumed, _ = run(capsys, "fit", "--ckpt_path", trained / "checkpoints" / "best.ckpt")
    assert torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_model_without_a_linear_part_may_end_as_the_persistence_that_it_starts_from(tmp_path, capsys):
    config = config_file(tmp_path, series_file(tmp_path))
    wrecked = ["--model.initial_lr", 10.0, "--model.warmup_steps", 0]
    trained, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path / "runs", *wrecked)
    assert torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 0
    found = metrics(trained)
    assert found["SpatioTemporalPerformer_Forecaster", "overall", "", "skill"] == pytest.approx(0, abs=1e-4)


def test_a_model_is_compiled_when_asked_to(tmp_path, capsys, monkeypatch):
    """The compiler is replaced: what counts is that it is handed the forward of training, and that results stay."""
    graphs = []

    def compiler(function, **options):
        graphs.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    config = config_file(tmp_path, series_file(tmp_path))
    plain, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path / "runs")
    assert not graphs
    compiled, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path / "runs", "--compile", "true")
    assert [each.__name__ for each in graphs] == ["_call_impl"]
    assert metrics(compiled) == pytest.approx(metrics(plain), rel=0, abs=0, nan_ok=True)


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
    assert metrics(repeated) == pytest.approx(metrics(run_folder), rel=0, abs=0, nan_ok=True)


def test_logging_and_checkpoints_can_be_switched_off(fitted, tmp_path, capsys):
    _, config, _, _ = fitted
    switched_off = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    folder, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path, *switched_off)
    assert {path.name for path in folder.iterdir()} == {
        *("metrics.csv", "forecast.png", "errors.png"),
        *("config.yaml", "model_card.md", "report.html"),
    }


def test_data_without_a_test_split_are_trained_on_without_a_report(fitted, tmp_path, capsys):
    _, config, _, _ = fitted
    options = ["--data.series.init_args.have_test", "false"]
    folder, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path, *options)
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert not (folder / "metrics.csv").exists()


def test_weights_outside_a_run_folder_need_a_configuration(fitted, tmp_path, capsys):
    _, config, run_folder, _ = fitted
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes((run_folder / "checkpoints" / "best.ckpt").read_bytes())
    assert "give --config" in refused(capsys, "test", "--ckpt_path", moved)
    tested, _ = run(capsys, "test", "--ckpt_path", moved, "--config", config, "--runs", tmp_path)
    assert metrics(tested) == pytest.approx(metrics(run_folder), rel=0, abs=0, nan_ok=True)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code in (0, None)
    assert re.fullmatch(r"favorcast \d+\.\d+.*\n", capsys.readouterr().out)


def test_help_says_where_the_bundled_configurations_are(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert str(bundled_folder()) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    "name",
    ["cylinder_wake", "fluidic_pinball", "fluidic_pinball_plain", "fluidic_pinball_stepwise", "unseen_reynolds"],
)
def test_bundled_configurations_are_accepted_by_name(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", name, "--print_config"])
    assert stop.value.code in (0, None)
    assert yaml.safe_load(capsys.readouterr().out)["name"] == name


def test_a_run_saved_at_the_last_batch_of_an_epoch_can_be_resumed(tmp_path, capsys):
    config = config_file(tmp_path, series_file(tmp_path))
    arguments = ["--config", config, "--runs", tmp_path / "runs", "--trainer.val_check_interval", 0.5]
    first, _ = run(capsys, "fit", *arguments)
    resumed, _ = run(capsys, "fit", "--ckpt_path", first / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 2)
    assert torch.load(resumed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_model_in_the_working_directory_is_found(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    (tmp_path / "own_model_of_a_user.py").write_text(
        "from favorcast.forecasting import SpatioTemporalPerformer_Forecaster\n\n\n"
        "class OwnForecaster(SpatioTemporalPerformer_Forecaster):\n    pass\n"
    )
    config = config_file(tmp_path, series_file(tmp_path))
    _, output = run(capsys, "fit", "--config", config, "--model", "own_model_of_a_user.OwnForecaster")
    assert "OwnForecaster" in output
