"""Backtests over rolling origins: which rows are seen, what is scored, from Python and from the command line."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_run import TARGET_LEN, config_file, refused, run, series_file

from favorcast.forecasting import Persistence, RidgeRegression, backtest, load_forecaster


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder, the forecaster that was trained there, and the values of its targets and exogenous column."""
    folder = tmp_path_factory.mktemp("backtest")
    config = config_file(folder, series_file(folder, 300))
    from favorcast.forecasting.cli.main import main

    main(["fit", "--config", str(config), "--runs", str(folder / "runs"), "--name", "small"])
    (run_folder,) = (folder / "runs" / "small").iterdir()
    forecaster = load_forecaster(run_folder / "checkpoints" / "best.ckpt")
    return folder, run_folder, forecaster, np.load(folder / "waves.npz")["dataset"]


class Watching(Persistence):
    """Keep the rows of every fit."""

    name = "watching"

    def __init__(self):
        self.seen = []

    def fit(self, values, **sizes):
        self.seen.append((torch.as_tensor(values), sizes))
        return super().fit(values, **sizes)


def test_origins_roll_over_the_test_rows_and_yardsticks_see_what_is_before_them(fitted):
    folder, _, forecaster, values = fitted
    watching = Watching()
    found = backtest(forecaster, str(folder / "waves.npz"), baselines=[watching, RidgeRegression()])
    first = 240  # of the test rows
    assert len(watching.seen) == len(range(first, 300 - TARGET_LEN + 1, TARGET_LEN))
    for origin, (rows, sizes) in zip(range(first, 300, TARGET_LEN), watching.seen, strict=False):
        np.testing.assert_array_equal(rows, values[:origin])
        assert sizes["validation_rows"] == 30
    scores = found.scores
    assert list(scores.columns) == ["origin", "cutoff", "forecaster", "mse", "mae", "skill"]
    assert set(scores["forecaster"]) == {type(forecaster).__name__, "persistence", "watching", "ridge"}
    last = scores[scores["forecaster"] == "persistence"].iloc[1]
    error = values[243, :2] - values[244:248, :2]
    assert last["mse"] == pytest.approx(np.square(error).mean(), rel=1e-5)
    assert last["cutoff"] == "60.75"  # row 243 of a row every 0.25 s


def test_the_latest_origins_at_a_step_and_without_refitting(fitted):
    folder, _, forecaster, _ = fitted
    watching = Watching()
    options = {"n_windows": 3, "step_size": 2, "refit": False, "baselines": [watching]}
    found = backtest(forecaster, str(folder / "waves.npz"), **options)
    ((rows, _),) = watching.seen
    assert len(rows) == 300 - TARGET_LEN - 4
    assert found.scores["cutoff"].nunique() == 3
    with pytest.raises(ValueError, match="n_windows must be at least 1, got 0"):
        backtest(forecaster, str(folder / "waves.npz"), n_windows=0)


def test_a_yardstick_that_cannot_be_fitted_is_left_out(fitted, monkeypatch):
    folder, _, forecaster, _ = fitted
    monkeypatch.setattr("favorcast.forecasting.evaluation.baseline.MOST_BYTES", 0)
    found = backtest(forecaster, str(folder / "waves.npz"), n_windows=2, baselines=[RidgeRegression()])
    assert set(found.scores["forecaster"]) == {type(forecaster).__name__, "persistence"}
    assert "ridge would decompose" in found.left_out["ridge"]


def test_the_command_prints_means_and_writes_each_origin(fitted, capsys, tmp_path):
    _, run_folder, _, _ = fitted
    options = ("--n_windows", 4, "--no-refit", "--runs", tmp_path)
    written, printed = run(capsys, "backtest", "--ckpt_path", run_folder, *options)
    assert "Backtest: 4 origins" in printed
    scores = pd.read_csv(written / "backtest.csv")
    assert scores["cutoff"].nunique() == 4
    assert {"persistence", "ridge", "vector ridge", "dmd", "analogs"} < set(scores["forecaster"])
    assert "at least 1, got -1" in refused(capsys, "backtest", "--ckpt_path", run_folder, "--step_size", -1)
