"""describe, fit and predict on OpenFOAM cases, as a new user types them."""

import numpy as np
import pandas as pd
import pytest
import yaml
from openfoam_cases import PLACES, write_case
from small_run import refused, run, without_bounds

from favorcast.forecasting.cli.main import main

SHORT = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary")]
SHORT += ["--trainer.accelerator=cpu", "--trainer.max_steps=3", "--trainer.limit_val_batches=1"]
SHORT += ["--trainer.limit_test_batches=2"]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A case with a restart and three sets of probes."""
    folder = tmp_path_factory.mktemp("cases") / "cylinder"
    for name, offset in (("near", 0.0), ("wake", 1.0), ("far", 4.0)):
        write_case(folder, restart=(25.0, 20.0), name=name, places=PLACES + np.array([offset, 0, 0]))
    return folder


@pytest.fixture(scope="module")
def fitted(case, tmp_path_factory):
    runs = tmp_path_factory.mktemp("fitted")
    main(["fit", "--data", str(case), "--objects", "wake", "--fields", "U", "--runs", str(runs), *SHORT])
    (folder,) = (runs / "cylinder").iterdir()
    return folder


def test_describe_shows_all_sets_of_probes(case, capsys):
    main(["describe", str(case)])
    output = capsys.readouterr().out
    assert "400 rows, 36 columns, 0.00% of the values missing" in output
    assert "times: 0.1 to 40, a row every 0.1 s" in output
    assert "irregular: nothing" in output
    assert all(f"{name}.p_2 " in output for name in ("near", "wake", "far"))
    main(["describe", str(case), "--fields", "p", "--objects", "near", "w*"])
    assert "400 rows, 6 columns" in capsys.readouterr().out


def test_fit_forecasts_what_it_was_told_to_read(fitted, case):
    init_args = yaml.safe_load((fitted / "config.yaml").read_text())["data"]["series"]["init_args"]
    assert (init_args["data_path"], init_args["fields"], init_args["objects"]) == (str(case), ["U"], ["wake"])
    written = pd.read_csv(fitted / "future.csv")
    assert without_bounds(written) == ["time [s]", *(f"U_{axis}_{probe}" for axis in "xyz" for probe in range(3))]
    np.testing.assert_allclose(written["time [s]"], 40 + 0.1 * np.arange(1, len(written) + 1))


def test_backtest_reads_a_case_as_training_did(fitted, tmp_path, capsys):
    folder, _ = run(capsys, "backtest", "--ckpt_path", fitted, "--n_windows", 1, "--runs", tmp_path)
    assert np.isfinite(pd.read_csv(folder / "backtest.csv")["mse"]).all()


def test_predict_reads_a_case_as_training_did(fitted, case, tmp_path, capsys):
    write_case(tmp_path / "other", name="wake", places=PLACES + np.array([1.0, 0, 0]), stop=30.0)
    for data, end in ((case, 40.0), (tmp_path / "other", 30.0), (case / "postProcessing/wake", 40.0)):
        path, _ = run(capsys, "predict", "--ckpt_path", fitted, "--data", data, "--output", tmp_path / "a.csv")
        written = pd.read_csv(path)
        assert written["time [s]"].iloc[0] == pytest.approx(end + 0.1)
        assert np.isfinite(written.to_numpy()).all()
    said = refused(capsys, "predict", "--ckpt_path", fitted, "--data", case, "--objects", "near", "--fields", "p")
    assert "'U_x_0', 'U_x_1'" in said
    assert "are missing" in said


def test_a_run_is_tested_again_from_its_folder(fitted, tmp_path, capsys):
    tested, _ = run(capsys, "test", "--ckpt_path", fitted, "--runs", tmp_path, "--trainer.limit_test_batches=1")
    assert (tested / "metrics.csv").is_file()


def test_a_folder_of_cases_is_trained_on_by_run(tmp_path, capsys):
    for reynolds in range(80, 160, 10):
        write_case(tmp_path / f"cases/re_{reynolds}", stop=20.0, seed=reynolds)
    folder, output = run(
        capsys, "fit", "--data", tmp_path / "cases", "--fields", "p", "--runs", tmp_path / "runs", *SHORT
    )
    assert "the future is that of the last run, re_150" in output
    assert pd.read_csv(folder / "future.csv")["time [s]"].iloc[0] == pytest.approx(20.1)


def test_mistakes_name_flags(case, tmp_path, capsys):
    said = refused(capsys, "describe", case, "--sensors", "7")
    assert "is an OpenFOAM case, which has no sensors to choose; leave out --sensors" in said
    said = refused(capsys, "describe", case, "--sensors", "seven")
    assert "--sensors must be a number, such as 7, or points by the names of dimensions" in said
    (tmp_path / "system").mkdir()
    (tmp_path / "constant").mkdir()
    assert "add a function object of type probes" in refused(capsys, "describe", tmp_path)
