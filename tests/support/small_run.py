"""Command lines small enough for tests: a series, a configuration, and how to run and to read them."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from favorcast.forecasting.cli.main import main

CONTEXT_LEN, TARGET_LEN = 12, 4


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


def without_bounds(table):
    """Return the columns of a table but those of prediction intervals."""
    return [name for name in table.columns if not re.search(r"-(lo|hi)-\d+$", name)]


def metrics(run_folder):
    with (run_folder / "metrics.csv").open(newline="") as file:
        return {(row[0], row[1], row[2], row[3]): float(row[4]) for row in list(csv.reader(file))[1:]}
