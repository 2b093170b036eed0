"""predict --follow on a case that is written meanwhile: forecasts from each row, at constant cost, across a restart."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
from openfoam_cases import PLACES, header, rows, wave, write_case
from small_run import refused, run

from favorcast.forecasting import SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.cli.follow import Following, ForecastFile, LatestRows, follow
from favorcast.forecasting.cli.main import main
from favorcast.forecasting.cli.run_folder import resolve_checkpoint
from favorcast.forecasting.data.data_card import DataCard
from favorcast.forecasting.data.field_choice import FieldChoice
from favorcast.forecasting.data.growing_probes import NewRows
from favorcast.forecasting.data.probe_file import ProbeFile
from favorcast.forecasting.loading import load_forecaster

SHORT = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary")]
SHORT += ["--trainer.accelerator=cpu", "--trainer.max_steps=3", "--trainer.limit_val_batches=1"]
SHORT += ["--trainer.limit_test_batches=2", "--data.context_len=12", "--data.target_len=4"]
STEP = 0.1


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("follow")
    write_case(folder / "case", stop=20.0)
    main(["fit", "--data", str(folder / "case"), "--runs", str(folder / "runs"), *SHORT])
    (run_folder,) = (folder / "runs/case").iterdir()
    return run_folder


class Solver:
    """Write p and U of a case, a row at a time, as a solver does: here and there half a row first."""

    def __init__(self, case, start="0", seed=0):
        self.folder, self.seed = case / "postProcessing/probes1" / start, seed
        self.folder.mkdir(parents=True)
        self.fields = {"p": 1, "U": 3}
        for field in self.fields:
            (self.folder / field).write_text(header(PLACES))

    def write(self, times, *, torn=False, pause=0.0):
        for i, instant in enumerate(times):
            for field, components in self.fields.items():
                text = rows([instant], wave([instant], components=components, seed=self.seed + i))
                with (self.folder / field).open("a") as file:
                    for part in (text[:20], text[20:]) if torn else (text,):
                        file.write(part)
                        file.flush()
                        if pause:
                            time.sleep(pause)


def times_between(first, last):
    return np.round(STEP * np.arange(round(first / STEP), round(last / STEP) + 1), 6)


def test_a_case_is_followed_for_200_steps_across_a_restart_while_it_is_written(fitted, tmp_path, capsys):
    case, output = tmp_path / "case", tmp_path / "forecasts.csv"
    solver = Solver(case)
    solver.write(times_between(0.1, 2.0))

    def simulate():
        while not output.exists():
            time.sleep(0.01)
        solver.write(times_between(2.1, 12.0), torn=True, pause=0.001)
        Solver(case, "10", seed=1).write(times_between(10.1, 20.0), torn=True, pause=0.001)
        deadline = time.monotonic() + 120  # the follower is told to end once it is through, as by Ctrl-C
        while time.monotonic() < deadline:
            text = output.read_text() if output.exists() else ""
            if "\n20,4," in text:
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    writer = threading.Thread(target=simulate)
    writer.start()
    options = ["--ckpt_path", fitted, "--data", case, "--output", output, "--poll", 0.01, "--follow_for", 300]
    path, printed = run(capsys, "predict", "--follow", *options)
    writer.join()
    assert path == output
    assert "interrupted" in printed
    written = pd.read_csv(output)
    assert list(written.columns[:3]) == ["origin [s]", "step", "time [s]"]
    assert not written.isna().any().any()
    origins = written["origin [s]"].to_numpy()[::4]
    expected = np.concatenate([times_between(2.0, 12.0), times_between(10.1, 20.0)])
    np.testing.assert_allclose(origins, expected)
    assert len(origins) == 201
    np.testing.assert_allclose(written["time [s]"] - written["origin [s]"], STEP * written["step"], atol=1e-9)
    assert written["step"].tolist() == [1, 2, 3, 4] * len(origins)
    # the last one is what a forecast of the finished case is
    whole = load_forecaster(resolve_checkpoint(str(fitted))).forecast(str(case))
    last = written.iloc[-4:].set_index("time [s]")[whole.labels]
    np.testing.assert_allclose(last, whole.values, rtol=1e-4, atol=1e-5)


def test_a_limit_ends_it_and_a_file_that_is_there_is_added_to(fitted, tmp_path, capsys):
    case, output = tmp_path / "case", tmp_path / "a.csv"
    write_case(case, stop=3.0)
    options = ["--ckpt_path", fitted, "--data", case, "--output", output, "--poll", 0.01, "--follow_for", 0.3]
    for count in (1, 2):
        _, printed = run(capsys, "predict", "--follow", "--horizon", 6, *options)
        assert "1 forecasts" in printed
        assert len(pd.read_csv(output)) == 6 * count
    output.write_bytes(output.read_bytes()[:-3])
    assert "holds something else than forecasts of these sensors; name another" in refused(
        capsys, "predict", "--follow", "--horizon", 6, *options
    )
    output.write_text("time,p\n1,2\n")
    assert "holds something else" in refused(capsys, "predict", "--follow", *options)


def test_a_solver_that_has_not_begun_is_waited_for(fitted, tmp_path, capsys):
    case = tmp_path / "case"
    solver = Solver(case)
    writer = threading.Timer(0.3, solver.write, [times_between(0.1, 1.5)])
    writer.start()
    options = ["--ckpt_path", fitted, "--data", case, "--runs", tmp_path, "--poll", 0.01, "--follow_for", 3]
    path, _ = run(capsys, "predict", "--follow", *options)
    assert path.parent.parent.name == "case"
    written = pd.read_csv(path)
    assert written["origin [s]"].iloc[-1] == pytest.approx(1.5)
    assert written["origin [s]"].min() >= 1.2 - 1e-9


def followed(monkeypatch, forecaster, case, output, instants, solver):
    """Follow a case whose solver writes one row between two looks at its files."""
    left = list(instants)

    def sleep(seconds):
        if not left:
            raise KeyboardInterrupt
        solver.write([left.pop(0)])

    monkeypatch.setattr("favorcast.forecasting.cli.follow.time.sleep", sleep)
    return follow(forecaster, str(case), output, Following(), FieldChoice())


def loaded(fitted):
    return load_forecaster(resolve_checkpoint(str(fitted)))


def test_a_gap_in_the_context_is_told_and_left_behind(fitted, tmp_path, monkeypatch, capsys):
    solver = Solver(tmp_path / "case")
    solver.write(np.r_[times_between(0.1, 2.0), times_between(2.5, 3.0)])
    output = tmp_path / "a.csv"
    assert followed(monkeypatch, loaded(fitted), tmp_path / "case", output, times_between(3.1, 3.8), solver) == 3
    printed = capsys.readouterr().out
    assert printed.count("note: from 3 s on: no forecast: the last 12 rows") == 1
    assert printed.count("note:") == 1
    assert pd.read_csv(output)["origin [s]"].unique().tolist() == pytest.approx([3.6, 3.7, 3.8])


def test_a_field_that_is_written_no_longer_is_named(fitted, tmp_path, monkeypatch, capsys):
    solver = Solver(tmp_path / "case")
    solver.write(times_between(0.1, 2.0))
    del solver.fields["U"]
    output = tmp_path / "a.csv"
    assert followed(monkeypatch, loaded(fitted), tmp_path / "case", output, times_between(2.1, 5.0), solver) == 1
    printed = capsys.readouterr().out
    assert printed.count("note: waiting for fields that others are ahead of: probes1/U ends at 2 s") == 1
    assert printed.count("note:") == 1


def test_a_start_before_one_that_is_there_is_told(fitted, tmp_path, monkeypatch, capsys):
    Solver(tmp_path / "case").write(times_between(0.1, 2.0))
    later = Solver(tmp_path / "case", "2")
    later.write(times_between(2.1, 3.0))
    earlier = Solver(tmp_path / "case", "1.5")
    earlier.folder.rename(tmp_path / "elsewhere")

    class Again:
        def write(self, times):
            (tmp_path / "elsewhere").rename(earlier.folder)
            earlier.write(times)

    output = tmp_path / "a.csv"
    assert followed(monkeypatch, loaded(fitted), tmp_path / "case", output, [1.6], Again()) == 1
    printed = capsys.readouterr().out
    assert printed.count("note: the start at 1.5 s is passed over, as a later one is there: follow again after") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_the_command_cleanly(fitted, tmp_path):
    case = tmp_path / "case"
    write_case(case, stop=3.0)
    command = [sys.executable, "-c", "from favorcast.forecasting.cli.main import main; main()", "predict", "--follow"]
    command += ["--ckpt_path", str(fitted), "--data", str(case), "--output", str(tmp_path / "a.csv"), "--poll", "0.05"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "a.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert out.strip().splitlines()[-2:] == ["1 forecasts", str(tmp_path / "a.csv")]
    assert len(pd.read_csv(tmp_path / "a.csv")) == 4


def test_the_cost_of_a_step_does_not_grow_with_what_was_written(fitted, tmp_path, monkeypatch):
    """Bytes read and rows handed to the model a step, early and late in a run."""
    lengths, read = [], []
    monkeypatch.setattr(
        "favorcast.forecasting.cli.follow.forecast_future",
        lambda model, record, horizon, predict: lengths.append(len(record.values)),
    )
    monkeypatch.setattr(ForecastFile, "append", lambda self, forecast: None)
    original = ProbeFile._rows
    monkeypatch.setattr(ProbeFile, "_rows", lambda self, text: read.append(len(text)) or original(self, text))
    solver = Solver(tmp_path / "case")
    solver.write(times_between(0.1, 2.0))
    followed(monkeypatch, loaded(fitted), tmp_path / "case", tmp_path / "a.csv", times_between(2.1, 30.0), solver)
    assert set(lengths) == {12}
    assert len(lengths) == 281
    assert max(read[-20:]) < 200 < max(read)


def test_a_forecaster_of_single_steps_goes_on_from_its_states(fitted, tmp_path, monkeypatch):
    trained = loaded(fitted)
    stepwise = {"autoregressive_training": True, "position_embedding": "periodic", "d_model": 8, "n_heads": 2}
    widths = {name: getattr(trained.widths, name) for name in ("d_x", "d_y_context", "d_y_target")}
    forecaster = SpatioTemporalPerformer_Forecaster(**widths, **stepwise, start_len=2, n_encoder_layers=1)
    forecaster.data_card = trained.data_card
    encoded = []
    original = forecaster.model.encode
    monkeypatch.setattr(forecaster.model, "encode", lambda *inputs: encoded.append(1) or original(*inputs))
    solver = Solver(tmp_path / "case")
    solver.write(times_between(0.1, 2.0))
    count = followed(monkeypatch, forecaster, tmp_path / "case", tmp_path / "a.csv", times_between(2.1, 4.4), solver)
    assert (count, len(encoded)) == (25, 5)  # anew every four rows after the one that was encoded
    assert not pd.read_csv(tmp_path / "a.csv").isna().any().any()


def test_a_restart_far_back_finds_the_rows_before_it(fitted):
    card = DataCard.of_dict(load_forecaster(resolve_checkpoint(str(fitted))).data_card)
    latest = LatestRows(card)
    times = times_between(0.1, 100.0)
    latest.add(NewRows(times, np.tile(times[:, None], (1, 12))))
    latest.add(NewRows(np.array([50.1]), np.full((1, 12), -1.0)))
    record = latest.context(len(latest.times) - 1)
    assert record.timestamps.tolist() == pytest.approx([*times_between(49.0, 50.0), 50.1])
    assert record.values[:, 0].tolist() == pytest.approx([*times_between(49.0, 50.0), -1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--poll", "0"], "--poll must be a positive number of seconds, got 0.0"),
        (["--follow_for", "-1"], "--follow_for must be a positive number of seconds, got -1.0"),
        (["--output", "a.nc"], "--follow appends to a .csv, got --output a.nc"),
        (["--covariates", "a.csv"], "--follow takes no --covariates"),
        (["--fields", "p"], "the columns do not match those of training: ['U_x_0'"),
        (["--data", "cylinder_wake"], "--follow needs an OpenFOAM case, whose probe files grow; got 'cylinder_wake'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_message(fitted, tmp_path, capsys, options, message):
    write_case(tmp_path / "case", stop=3.0)
    case = [] if "--data" in options else ["--data", tmp_path / "case"]
    said = refused(capsys, "predict", "--follow", "--ckpt_path", fitted, *case, "--runs", tmp_path, *options)
    assert message in said
