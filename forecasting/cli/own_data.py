"""The commands for a user's own data: describe FILE, fit --data FILE, predict --data FILE."""

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from rich.console import Console

from ..automatic_settings import choose_settings
from ..data import DataWarning, SimulationTimeSeries, TableFormat
from ..data.data_card import DataCard
from ..data.field_choice import sensors_of_words
from ..data.runs import name_of
from ..data.time_grid import Gaps
from ..evaluation.interval_scores import LEVELS
from ..forecaster import Forecaster
from ..future import Stated
from ..future import forecast as forecast_future
from ..labelled_forecast import SUFFIXES, Forecast
from ..loading import load_forecaster
from .describe import describe, print_all, settings_lines
from .flags import with_flags
from .follow import Following, follow
from .run_folder import create_run_folder, is_file_of_run, new_run_folder, resolve_checkpoint

LIST_OPTIONS = ("column_names", "missing")
TABLE_HELP = {
    "delimiter": "delimiter of cells, a space for any white space",
    "decimal": "decimal mark, . or ,",
    "thousands": "mark between thousands in numbers",
    "encoding": "of the text, such as latin-1",
    "column_names": "names of the columns of a text without header",
    "missing": "more marks of missing values, words or numbers (write --missing=-1e30 with a sign and an exponent)",
    "date_order": "ymd, dmy or mdy",
    "epoch_unit": "s, ms, us or ns of times that count since 1970, excel for days of a spreadsheet",
    "time_zone": "zone of local times, such as Europe/Berlin",
    "id_column": "column that names the sensor in a long table",
}
FIELD_HELP = {
    "fields": "fields of a simulation, or variables of a NetCDF, HDF5 or Zarr file, by name or pattern",
    "objects": "function objects of an OpenFOAM case whose probes are read, by name or pattern",
    "sensors": "of fields, how many sensors a dimension (7), or points (x=0.5,y=0.2 x=1,y=0.2)",
}
FORECAST_FILE, PICTURE_FILE, FOLLOWED_FILE = "forecast.csv", "forecast.png", "forecasts.csv"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one message."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError for arguments that cannot be parsed."""
        raise ValueError(f"{message}; see {self.prog} --help")


def describe_command(options: Sequence[str]) -> None:
    """Print what is in a file, and what a training of it would do."""
    parser = _parser("favorcast describe", "Describe a file of sensor data: rows, columns, times, spectrum, windows.")
    parser.add_argument("file", help="table, array, field or OpenFOAM case, or the name of an embedded series")
    arguments = parser.parse_args(options)
    series = SimulationTimeSeries(arguments.file, **_reading(arguments))
    console = Console()
    print_all(console, [f"{arguments.file}:", *describe(series)])
    try:
        settings, why = choose_settings(series), ""
    except ValueError as error:
        settings, why = None, with_flags(str(error), own_data=True)
    print_all(console, list(settings_lines(series, settings, why)))


def own_data_config(file: str, options: Sequence[str]) -> tuple[Path, list[str]]:
    """Write a configuration for a file, say what it chose, and return it with the options that remain.

    Raises:
        ValueError: a file that cannot be read or trained on.
    """
    parser = _parser("favorcast fit --data FILE", "Train on a file with settings that follow from it.")
    windows = ("context_len", "target_len")
    for name in windows:
        parser.add_argument(f"--data.{name}", dest=name, type=int)
    arguments, rest = parser.parse_known_args(list(options))
    reading = _reading(arguments)
    series = SimulationTimeSeries(file, **reading)
    settings = choose_settings(series, **{name: getattr(arguments, name) for name in windows})
    print_all(Console(), [f"{file}: settings chosen for these data", *settings_lines(series, settings)])
    config = settings.config()
    table = reading.pop("table")
    init_args = reading | {"data_path": file}
    if table is not None:
        init_args["table"] = {field.name: getattr(table, field.name) for field in fields(table)}
    config["data"]["series"] = {"class_path": "SimulationTimeSeries", "init_args": init_args}
    config["name"] = name_of(file)
    path = Path(tempfile.mkdtemp(prefix="favorcast_")) / "own_data.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path, rest


def predict_command(options: Sequence[str]) -> None:
    """Forecast the future of a file, write it labelled, and draw it; print the folder last."""
    parser = Parser("favorcast predict", description="Forecast the rows that follow the end of a file.")
    parser.add_argument("--ckpt_path", required=True, help="a .ckpt file or a run folder")
    parser.add_argument("--data", required=True, help="file whose future is forecast; its latest context is enough")
    parser.add_argument("--horizon", type=int, help="rows to forecast (default: the horizon of training)")
    parser.add_argument("--intervals", type=float, nargs="*", help="levels of prediction intervals (default: 0.8 0.95)")
    parser.add_argument("--covariates", help="file with the known columns at the times to forecast")
    parser.add_argument("--output", help=f"file to write ({', '.join(SUFFIXES)}), with a picture beside it")
    parser.add_argument("--runs", default="runs", help="folder of all runs, for results without --output")
    parser.add_argument("--name", help="folder of this run in --runs (default: the data's name)")
    parser.add_argument("--follow", action="store_true", help="go on with each row that a running OpenFOAM case writes")
    parser.add_argument("--poll", type=float, default=1.0, help="with --follow: seconds from look to look at the files")
    parser.add_argument("--follow_for", type=float, help="with --follow: seconds after which to end (default: Ctrl-C)")
    _add_reading_options(parser, "as in training", every="as in training")
    arguments = parser.parse_args(options)
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--output must end in {', '.join(SUFFIXES)}, got {str(output)!r}")
    checkpoint = resolve_checkpoint(arguments.ckpt_path)
    if output is not None:
        _check_output(
            output, {"--data": arguments.data, "--covariates": arguments.covariates, "--ckpt_path": checkpoint}
        )
    forecaster = load_forecaster(checkpoint)
    if arguments.follow:
        _follow_command(arguments, forecaster, output)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        levels = arguments.intervals
        if levels is None:
            levels = () if forecaster.conformal is None else LEVELS
        table = TableFormat(**_table_options(arguments))
        stated = Stated(table, arguments.time_column, _field_options(arguments))
        forecast = forecast_future(
            forecaster, arguments.data, arguments.horizon, arguments.covariates, levels, stated=stated
        )
    said = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, DataWarning))
    print_all(Console(), [f"note: {with_flags(note, own_data=True)}" for note in said])
    if output is None:
        folder = new_run_folder(Path(arguments.runs), arguments.name or name_of(arguments.data), "predict")
        create_run_folder(folder)
        _write(forecast, folder / FORECAST_FILE, folder / PICTURE_FILE)
        print(folder)
    else:
        _write(forecast, output, output.with_suffix(".png"))
        print(output)


def _check_output(output: Path, read: dict[str, Any]) -> None:
    """Raise ValueError where nothing can be written, or what is read would be written over, picture included."""
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}; make it first")
    for written in (output, output.with_suffix(".png")):
        for option, path in read.items():
            if path is not None and written.exists() and Path(path).exists() and written.samefile(path):
                raise ValueError(f"--output {written} is the file that {option} reads; write to another one")
        if is_file_of_run(written):
            raise ValueError(f"--output {written} is a file of a run, which would be lost; write to another one")


def _follow_command(arguments: argparse.Namespace, forecaster: Forecaster, output: Path | None) -> None:
    """Append forecasts to a CSV while a case grows; print its path last."""
    following = Following(arguments.horizon, arguments.poll, arguments.follow_for)
    if output is not None and output.suffix.lower() != ".csv":
        raise ValueError(f"--follow appends to a .csv, got --output {output}")
    if arguments.covariates is not None:
        raise ValueError("--follow takes no --covariates, which would have to grow as well")
    if output is None:
        folder = new_run_folder(Path(arguments.runs), arguments.name or name_of(arguments.data), "follow")
        create_run_folder(folder)
        output = folder / FOLLOWED_FILE
    card = DataCard.of_dict(forecaster.data_card or {})
    choice = replace(card.choice, **_field_options(arguments))
    print(f"following {arguments.data}; forecasts are appended to {output}, Ctrl-C ends", flush=True)
    count = follow(forecaster, arguments.data, output, following, choice)
    print(f"{count} forecasts")
    print(output)


def _write(forecast: Forecast, file: Path, picture: Path) -> None:
    forecast.save(file)
    forecast.plot().savefig(picture)


def _parser(program: str, description: str) -> Parser:
    parser = Parser(program, description=description, allow_abbrev=False)
    _add_reading_options(parser, "found by name and content", every="all")
    parser.add_argument("--gaps", choices=get_args(Gaps), default="split", help="what to do where times are irregular")
    parser.add_argument("--null_value", type=float, help="number that marks missing values")
    parser.add_argument("--target_columns", nargs="+", help="names or patterns of the sensors to forecast")
    parser.add_argument("--exogenous_columns", nargs="+", help="sensors that are only ever context")
    parser.add_argument("--known_columns", nargs="+", help="columns whose future is known")
    return parser


def _add_reading_options(parser: Parser, default: str, *, every: str) -> None:
    parser.add_argument("--time_column", help=f"column that holds the time (default: {default})")
    for field in fields(TableFormat):
        options = "+" if field.name in LIST_OPTIONS else None
        parser.add_argument(f"--{field.name}", nargs=options, help=f"{TABLE_HELP[field.name]} (default: {default})")
    for name, said in FIELD_HELP.items():
        parser.add_argument(f"--{name}", nargs="+", help=f"{said} (default: {every})")


def _field_options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in FIELD_HELP}
    if given["sensors"] is not None:
        given["sensors"] = sensors_of_words(given["sensors"])
    return {name: value for name, value in given.items() if value is not None}


def _table_options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {field.name: getattr(arguments, field.name) for field in fields(TableFormat)}
    return {name: value for name, value in given.items() if value is not None}


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    given = _table_options(arguments)
    table = TableFormat(**given) if given else None
    names = ("gaps", "null_value", "target_columns", "exogenous_columns", "known_columns")
    stated = {name: getattr(arguments, name) for name in names} | _field_options(arguments)
    return stated | {"time_col_name": arguments.time_column, "table": table}
