"""What a run leaves in its folder, however it ended, and what mistakes around runs are told."""

import numpy as np
import pytest
import torch
from small_run import config_file, metrics, refused, run, series_file

from favorcast.forecasting.cli.run_folder import copy_earlier_best, resolve_checkpoint


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return config_file(folder, series_file(folder))


def saved_step(path):
    return torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    "options",
    [["--checkpoint.every_n_epochs", 100], ["--trainer.max_steps", 1], ["--trainer.limit_val_batches", 0]],
    ids=["rare checkpoints", "an end between checkpoints", "no validation"],
)
def test_the_last_weights_are_kept_whatever_the_interval(config, tmp_path, capsys, options):
    folder, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path, *options)
    steps = 1 if "--trainer.max_steps" in options else 2
    assert saved_step(folder / "checkpoints" / "last.ckpt") == steps
    tested, _ = run(capsys, "test", "--ckpt_path", folder, "--runs", tmp_path)
    assert metrics(tested)


def test_a_run_saved_after_its_end_can_be_resumed(config, tmp_path, capsys):
    folder, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path, "--checkpoint.every_n_epochs", 100)
    last = folder / "checkpoints" / "last.ckpt"
    resumed, _ = run(capsys, "fit", "--ckpt_path", last, "--runs", tmp_path, "--trainer.max_epochs", 2)
    assert saved_step(resumed / "checkpoints" / "last.ckpt") == 4


def test_a_resumed_run_that_finds_nothing_better_keeps_the_best_of_before(config, tmp_path, capsys):
    first, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path)
    best = first / "checkpoints" / "best.ckpt"
    nothing = ["--trainer.max_epochs", 2, "--model.initial_lr", 1e-30, "--trainer.limit_val_batches", 0]
    last = first / "checkpoints" / "last.ckpt"
    resumed, _ = run(capsys, "fit", "--ckpt_path", last, "--runs", tmp_path, *nothing)
    assert resumed != first
    assert (resumed / "checkpoints" / "best.ckpt").read_bytes() == best.read_bytes()
    tested, _ = run(capsys, "test", "--ckpt_path", resumed, "--runs", tmp_path)
    name = ("SpatioTemporalPerformer_Forecaster", "overall", "", "mse")
    assert metrics(tested)[name] == metrics(first)[name] == metrics(resumed)[name]


@pytest.mark.parametrize(
    ("score", "mode", "is_copied"),
    [(None, "min", True), (2.0, "min", True), (0.5, "min", False), (2.0, "max", False), (0.5, "max", True)],
)
def test_the_better_of_two_best_checkpoints_is_kept(tmp_path, score, mode, is_copied):
    best = tmp_path / "old.ckpt"
    best.write_bytes(b"weights")
    state = {"best_model_score": torch.tensor(1.0), "best_model_path": str(best)}
    content = {"pytorch-lightning_version": "2.6.6", "state_dict": {}, "callbacks": {"ModelCheckpoint{...}": state}}
    torch.save(content, tmp_path / "last.ckpt")
    copied = copy_earlier_best(tmp_path / "last.ckpt", tmp_path / "new", score, mode)
    assert (copied is not None) == is_copied == (tmp_path / "new" / "best.ckpt").is_file()
    best.unlink()
    assert copy_earlier_best(tmp_path / "last.ckpt", tmp_path / "newer", score, mode) is None


def test_a_run_without_a_best_checkpoint_stands_for_its_last(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": {}}, folder / "last.ckpt")
    assert resolve_checkpoint(str(tmp_path)) == folder / "last.ckpt"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_told_with_the_option_that_helps(config, tmp_path, capsys):
    text = refused(capsys, "fit", "--config", config, "--runs", tmp_path, "--trainer.accelerator", "gpu")
    assert "--trainer.accelerator auto" in text


def test_a_validation_without_any_value_is_told(tmp_path, capsys):
    path = series_file(tmp_path)
    with np.load(path) as archive:
        content = dict(archive)
    content["dataset"][140:160] = np.nan
    np.savez(path, **content)
    _, output = run(capsys, "fit", "--config", config_file(tmp_path, path), "--runs", tmp_path / "runs")
    assert "note: no value of the validation targets was observed" in output


@pytest.mark.parametrize(
    ("options", "suggestion"),
    [
        (["--data.contextlen", "3"], "did you mean --data.context_len?"),
        (["--model.d_modell", "9"], "did you mean d_model?"),
        (["--context", "24"], "did you mean --data.context_len?"),
        (["--horizon", "24"], "did you mean --data.target_len?"),
        (["--epochs", "2"], "did you mean --trainer.max_epochs?"),
        (["--d_modle", "9"], "did you mean --model.d_model?"),
        (["--trainer.max_epoxhs", "9"], "did you mean --trainer.max_epochs?"),
        (["--data.series.init_args.target_cols", "[u_0]"], "did you mean --data.series.init_args.target_columns?"),
        (["--colour", "3"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_unknown_option_brings_the_closest_one_to_mind(config, tmp_path, capsys, options, suggestion):
    text = refused(capsys, "fit", "--config", config, "--runs", tmp_path, *options)
    assert ("did you mean" in text) == (suggestion is not None)
    assert suggestion is None or suggestion in text


def test_a_model_card_holds_data_settings_scores_and_versions(config, tmp_path, capsys):
    folder, _ = run(capsys, "fit", "--config", config, "--runs", tmp_path)
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    score = metrics(folder)["persistence", "overall", "", "mse"]
    for expected in (
        "# SpatioTemporalPerformer_Forecaster",
        "rows: 140 for train, 20 for val, 40 for test; a row every 0.25",
        "forecast: 4 steps from 12",
        "- target columns: u_0, u_1",
        "- exogenous columns: v_0",
        "- d_model: 8",
        "2 optimiser steps in this run",
        f"{score:.3e}",
        f"torch {torch.__version__}",
    ):
        assert expected in card
