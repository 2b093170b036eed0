import zipfile

import pytest
import torch
from small_run import config_file, refused, series_file

from favorcast.forecasting.cli.config_files import bundled_folder
from favorcast.forecasting.cli.main import complete_arguments, main, option_value


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors")
    return config_file(folder, series_file(folder))


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
def test_a_mistake_ends_in_one_message_before_any_folder_is_made(config, tmp_path, capsys, options, message):
    text = refused(capsys, "fit", "--config", config, "--runs", tmp_path / "runs", *options)
    assert message in text
    assert text.count("\n") <= 3
    assert not (tmp_path / "runs").exists()


def test_runs_that_cannot_be_written_are_refused(config, tmp_path, capsys):
    (tmp_path / "runs").write_text("")
    assert "cannot create the run folder" in refused(capsys, "fit", "--config", config, "--runs", tmp_path / "runs")


def test_an_option_that_no_configuration_knows_is_refused(config, tmp_path, capsys):
    misspelt = config_file(tmp_path, config.parent / "waves.npz", modle=3)
    assert "modle" in refused(capsys, "fit", "--config", misspelt, "--runs", tmp_path)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_commands_that_need_weights_say_so(config, capsys, command):
    expected = f"favorcast: error: {command} needs trained weights"
    assert refused(capsys, command).startswith(expected)
    assert refused(capsys, command, "--config", config).startswith(expected)


def test_a_defect_keeps_its_traceback(config, tmp_path, monkeypatch):
    monkeypatch.setattr("favorcast.forecasting.cli.forecast_cli.ForecastCLI.fit", lambda self, **options: float("x y"))
    with pytest.raises(ValueError, match="x y"):
        main(["fit", "--config", str(config), "--runs", str(tmp_path)])


def test_fit_without_a_configuration_runs_the_pinball():
    expected = ["fit", "--config", str(bundled_folder() / "fluidic_pinball.yaml"), "--data.batch_size", "8"]
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


def test_an_archive_that_is_no_checkpoint_is_refused(config, tmp_path, capsys):
    torch.save({"a": 1}, tmp_path / "foreign.ckpt")
    with zipfile.ZipFile(tmp_path / "plain.ckpt", "w") as archive:
        archive.writestr("a.txt", "a")
    for name in ("foreign.ckpt", "plain.ckpt"):
        text = refused(capsys, "test", "--config", config, "--ckpt_path", tmp_path / name)
        assert "is no checkpoint: expected a .ckpt file written by fit" in text


def test_weights_for_other_data_are_refused(config, tmp_path, capsys):
    main(["fit", "--config", str(config), "--runs", str(tmp_path / "first"), "--trainer.max_steps", "1"])
    checkpoint = next((tmp_path / "first").rglob("last.ckpt"))
    options = ["--config", config, "--runs", tmp_path / "second", "--ckpt_path", checkpoint]
    text = refused(capsys, "test", *options, f"{SERIES}target_columns", "[u_0]")
    assert "do not fit the configured model and data" in text
    assert not (tmp_path / "second").exists()
