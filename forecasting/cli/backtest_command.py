"""The command backtest: forecasts from rolling origins over the test rows of a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..data.data_card import DataCard
from ..data.runs import name_of
from ..evaluation.backtesting import backtest
from ..loading import load_forecaster
from .own_data import Parser
from .run_folder import create_run_folder, new_run_folder, resolve_checkpoint

SCORES_FILE = "backtest.csv"


def backtest_command(options: Sequence[str]) -> None:
    """Backtest a run, print the means over origins, and write the scores of each; print the folder last.

    Raises:
        ValueError, FileNotFoundError: no such run, or data that it cannot be tested on.
    """
    parser = Parser("favorcast backtest", description="Forecast from rolling origins over the test rows.")
    parser.add_argument("--ckpt_path", required=True, help="a .ckpt file or a run folder")
    parser.add_argument("--data", help="the data file (default: where the run read it)")
    parser.add_argument("--n_windows", type=int, help="how many origins, the latest ones (default: all)")
    parser.add_argument("--step_size", type=int, help="rows from one origin to the next (default: the horizon)")
    refit = "fit yardsticks anew at each origin, or only at the first (default: at each)"
    parser.add_argument("--refit", action=argparse.BooleanOptionalAction, default=True, help=refit)
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument("--name", help="folder of this run in --runs (default: the data's name)")
    arguments = parser.parse_args(options)
    forecaster = load_forecaster(resolve_checkpoint(arguments.ckpt_path))
    file = arguments.data or DataCard.of_dict(forecaster.data_card or {}).source
    if file is None:
        raise ValueError("the run read its data in Python: give --data FILE")
    found = backtest(
        forecaster, file, n_windows=arguments.n_windows, step_size=arguments.step_size, refit=arguments.refit
    )
    Console().print(found.table())
    folder = new_run_folder(Path(arguments.runs), arguments.name or name_of(file), "backtest")
    create_run_folder(folder)
    found.scores.to_csv(folder / SCORES_FILE, index=False)
    print(folder)
