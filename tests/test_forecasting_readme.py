"""forecasting/README.md: its commands, configuration and five lines run as written, each + of its table is a test."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from openfoam_cases import write_case
from small_run import without_bounds
from user_tables import STAMPS, table

from favorcast.forecasting import automatic_settings
from favorcast.forecasting.cli.main import main

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "forecasting" / "README.md").read_text(encoding="utf-8")
OWN_TABLE, LATER, SIMULATION, FOLLOWED, FIELD, CONFIGURED = (
    block.splitlines() for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
)
COMMANDS = [*OWN_TABLE, *LATER]
SNIPPET, OF_FIELDS, *_ = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(CONFIGURATION,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
LONG = {"--compile": ["--print_config"], "cylinder_wake.yaml": ["--trainer.fast_dev_run", "1"]}
"""What is added to a command that would take minutes."""

FEATURES = [line.strip("|").split("|") for line in TEXT.partition("| feature |")[2].splitlines()[2:]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(automatic_settings, "TRAINING_STEPS", 4)
    monkeypatch.setattr(automatic_settings, "STEPS_AN_EPOCH", 2)
    (tmp_path / "sensors.csv").write_text(table())
    return tmp_path


def future_of(path, steps):
    written = pd.read_csv(path)
    expected = pd.date_range(STAMPS[-1] + pd.Timedelta("1h"), periods=steps, freq="h")
    assert without_bounds(written) == ["time", "temp", "pres"]
    assert written["time"].tolist() == [stamp.isoformat() for stamp in expected]


def test_the_first_thing_shown_is_one_command_and_five_lines():
    assert COMMANDS[0] == "favorcast fit --data sensors.csv"
    assert len([line for line in SNIPPET.splitlines() if line]) == 5
    assert TEXT.index(COMMANDS[0]) < TEXT.index(SNIPPET) < 1000


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_five_lines_go_from_a_table_to_a_plot_of_its_future(folder):
    exec(compile(SNIPPET, "forecasting/README.md", "exec"), {})
    future_of(folder / "future.csv", 48)
    assert (folder / "future.png").read_bytes().startswith(b"\x89PNG")


def test_commands_run_as_written(folder, capsys):
    run = Path()
    for line in COMMANDS:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "favorcast"
        main([str(run) if argument == "RUN" else argument for argument in arguments])
        printed = capsys.readouterr().out.strip().splitlines()[-1]
        if arguments[0] == "fit":
            run = Path(printed)
            future_of(run / "future.csv", 20)
        elif "--horizon" in arguments:
            future_of(Path(printed) / "forecast.csv", 96)
        elif arguments[0] == "predict":
            future_of(folder / "future.csv", 20)
            assert (folder / "future.png").is_file()


def test_commands_for_a_simulation_run_as_written(folder, capsys):
    for name in ("case", "other_case"):
        write_case(folder / name, restart=(25.0, 20.0), name="wake")
    run = Path()
    for line in [*SIMULATION, *FOLLOWED]:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "favorcast"
        main([str(run) if argument == "RUN" else argument for argument in arguments])
        printed = Path(capsys.readouterr().out.strip().splitlines()[-1])
        if arguments[0] == "fit":
            run = printed
        elif arguments[0] == "predict":
            written = pd.read_csv(printed if printed.suffix else printed / "forecast.csv")
            assert len(written.filter(regex="^(U_[xyz]|p)_[012]$").columns) == 12


def test_fields_are_read_as_written(folder, capsys):
    pytest.importorskip("h5netcdf", reason='pip install "favorcast[data]"')
    names = {}
    exec(compile(OF_FIELDS, "forecasting/README.md", "exec"), names)
    assert names["series"].target_cols == ["u(y=0.487179, x=1.50943)", "u(y=-0.487179, x=3.97484)"]
    printed = []
    for line in FIELD:
        main(shlex.split(line, comments=True)[1:])
        printed.append(capsys.readouterr().out)
    written = pd.read_csv(Path(printed[0].strip().splitlines()[-1]) / "future.csv")
    assert len(without_bounds(written)) == 1 + 49
    assert "300 rows, 2 columns" in printed[1]


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_configuration_file_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("sensors.npy", np.sin(0.3 * np.arange(400)[:, None] + np.arange(3)).astype(np.float32))
    Path("my.yaml").write_text(CONFIGURATION)
    run = "no run yet"
    for line in CONFIGURED:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "favorcast"
        arguments = [argument.replace("RUN", run) for argument in arguments]
        arguments += [extra for word, extras in LONG.items() if word in arguments for extra in extras]
        if "--print_config" in arguments:
            with pytest.raises(SystemExit) as end:
                main(arguments)
            assert not end.value.code
            assert "d_model: 32" in capsys.readouterr().out
            continue
        main(arguments)
        printed = Path(capsys.readouterr().out.strip().splitlines()[-1])
        if arguments == ["fit", "--config", "my.yaml"]:
            run = str(printed)
            assert printed.parent.name == "my_run"
            assert (printed / "metrics.csv").is_file()
        elif arguments[0] == "predict":
            assert len(pd.read_csv(printed / "forecast.csv"))


def test_each_plus_of_the_table_is_a_test_and_nothing_else_claims_one():
    assert len(FEATURES) > 20
    for feature, ours, darts, neuralforecast, named in FEATURES:
        assert ours.strip() in ("+", "−"), feature
        assert {darts.strip(), neuralforecast.strip()} <= {"+", "~", "−"}, feature
        if ours.strip() == "−":
            assert not named.strip(), feature
            continue
        tests = re.findall(r"`(\w+\.py)::(\w+)`", named)
        assert tests, feature
        for file, name in tests:
            assert f"def {name}(" in next(TESTS.rglob(file)).read_text(encoding="utf-8"), feature
