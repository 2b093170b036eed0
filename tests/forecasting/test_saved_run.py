"""A run saved before files moved to their folders: its checkpoint and configuration load, test and forecast as then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_run import metrics, run

from favorcast.forecasting.cli.run_folder import load_checkpoint

SAVED = Path(__file__).with_name("saved_run")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SAVED, tmp_path / "saved_run")
    shutil.copy(SAVED / "waves.npz", tmp_path)  # where its configuration looks for it
    return tmp_path / "saved_run"


CHOOSING = ("ridge", "vector ridge", "dmd", "analogs")  # yardsticks whose settings later versions choose otherwise


def test_it_scores_as_it_did(capsys, saved):
    folder, _ = run(capsys, "test", "--ckpt_path", saved)
    then, now = metrics(saved), metrics(folder)
    assert then.keys() <= now.keys()  # later versions score more
    then = {key: value for key, value in then.items() if key[0] not in CHOOSING}
    errors = {key: value for key, value in then.items() if key[3] in ("mse", "mae")}
    assert len(errors) > 20
    assert {key: now[key] for key in then} == pytest.approx(then, rel=1e-4, abs=1e-6, nan_ok=True)


def test_it_trains_on(capsys, saved):
    options = ("--config", saved / "config.yaml", "--ckpt_path", saved, "--trainer.max_epochs", 2)
    folder, _ = run(capsys, "fit", *options)
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 4  # two of each epoch
