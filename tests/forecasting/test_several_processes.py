"""Data-parallel training: processes agree, their scores are those of one, and another number of them goes on."""

import json
import subprocess
import sys
from math import ceil

import pytest
import pytorch_lightning as pl
import several_processes
import torch
import yaml
from small_run import config_file, metrics, run, series_file

from favorcast.forecasting import load_forecaster
from favorcast.forecasting.data.windows import EvenlyFilled
from favorcast.forecasting.evaluation.baseline_comparison import BaselineComparison

TRAIN, TEST = 127, 37  # windows


def run_in(folder, processes, checkpoint=None):
    folder.mkdir(exist_ok=True)
    series_file(folder, rows=203)
    command = [sys.executable, several_processes.__file__, str(folder), str(processes)]
    given = [] if checkpoint is None else [str(checkpoint)]
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


def steps_in(processes):
    return ceil(ceil(TRAIN / processes) / several_processes.BATCH)


@pytest.fixture(scope="module", params=[2, 4])
def fitted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    return folder, request.param, run_in(folder, request.param)


def test_processes_end_with_the_same_weights_and_features(fitted):
    _, processes, found = fitted
    assert found["processes"] == processes
    assert found["same weights"]
    assert found["steps"] == steps_in(processes)


def test_scores_of_several_processes_are_those_of_one(fitted):
    folder, _, found = fitted
    model, data, comparison = (
        load_forecaster(folder / "end.ckpt"),
        several_processes.series_of(folder),
        BaselineComparison(),
    )
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    pl.Trainer(callbacks=[comparison], **quiet).test(model, datamodule=data, verbose=False)
    alone = several_processes.scores(comparison)
    assert alone["windows"] == found["scores"]["windows"] == [TEST]
    for name, errors in alone.items():
        assert found["scores"][name] == pytest.approx(errors, rel=1e-5), name


def test_another_number_of_processes_goes_on(fitted, tmp_path):
    folder, processes, found = fitted
    other = {2: 1, 4: 2}[processes]
    resumed = run_in(tmp_path / "resumed", other, folder / "end.ckpt")
    assert resumed["processes"] == other
    assert resumed["same weights"]
    assert resumed["steps"] == found["steps"] + steps_in(other)


def test_what_is_filled_in_counts_in_no_error(tmp_path):
    series_file(tmp_path, rows=203)
    windows = several_processes.series_of(tmp_path).windows("test")
    filled = EvenlyFilled(windows, 4)
    assert len(filled) == 40
    assert all(torch.equal(x, y) for x, y in zip(filled[36], windows[36], strict=True))
    assert filled[37][3].isnan().all()
    assert torch.equal(filled[37][1], windows[0][1])


def test_the_command_fits_in_two_processes_into_one_folder(tmp_path, capsys):
    config = config_file(tmp_path, series_file(tmp_path, rows=203))
    options = ["--trainer.strategy=ddp", "--trainer.devices=2", f"--runs={tmp_path / 'runs'}"]
    fit = "import sys; from favorcast.forecasting.cli.main import main; sys.exit(main())"
    script = tmp_path / "fit.py"  # which Lightning starts again for the other process
    script.write_text(fit)
    command = [sys.executable, str(script), "fit", "--config", str(config), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert done.stdout.strip().splitlines()[-1] == str(folder)
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (folder / "checkpoints").iterdir()}
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["devices"] == "2"
    again, _ = run(capsys, "test", "--ckpt_path", folder, "--config", config, "--runs", tmp_path / "again")
    together, alone = metrics(folder), metrics(again)
    errors = [key for key in together if key[1] == "overall" and key[3] in ("mse", "mae")]
    assert len(errors) >= 10
    for key in errors:
        assert together[key] == pytest.approx(alone[key], rel=1e-5), key
