"""The command `favorcast`."""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ..data import DataWarning
from .backtest_command import backtest_command
from .config_files import bundled_configs, bundled_folder, resolve_config
from .flags import with_flags
from .forecast_cli import NEEDS_WEIGHTS, ForecastCLI
from .own_data import describe_command, own_data_config, predict_command
from .run_folder import resolve_checkpoint, run_config

COMMANDS = tuple(ForecastCLI.subcommands())
DEFAULT_CONFIG = "fluidic_pinball"
DESCRIPTION = (
    "Train, test and run forecasters of sensor series. With your own data: describe FILE, fit --data FILE, "
    "predict --ckpt_path RUN --data FILE [--horizon N], backtest --ckpt_path RUN. "
    "A command without --config takes the configuration of the run "
    f"that wrote the checkpoint in --ckpt_path; fit without both takes {DEFAULT_CONFIG}. --config is a YAML file or "
    f"the name of one that ships with favorcast: {', '.join(bundled_configs())}, in {bundled_folder()}."
)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command line; None takes that of the process.

    Raises:
        SystemExit: when the command cannot be carried out, with a message that says why, or after --help and the like.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # --model my_module.MyForecaster is found; installed packages come first
    given = list(sys.argv[1:] if args is None else args)
    try:
        with lightning_advice_hidden():
            options, own_data = own_data_arguments(given)
            if options is None:
                return
            ForecastCLI(
                complete_arguments(options),
                future_of=own_data,
                prog="favorcast",
                description=DESCRIPTION,
                version=version("favorcast"),
            )
    except (ValueError, OSError, ImportError, NotImplementedError, MisconfigurationException) as error:
        message = explanation(error)
        if message is None:
            raise
        if isinstance(error, MisconfigurationException) and re.search(r"gpu|cuda|tpu|mps", message, re.IGNORECASE):
            message += (
                "; this machine lacks it: --trainer.accelerator auto takes what is there, whatever the configuration"
            )
        print(f"favorcast: error: {with_flags(message, own_data=is_for_own_data(given))}", file=sys.stderr)
        raise SystemExit(2) from error


def own_data_arguments(args: list[str]) -> tuple[list[str] | None, str | None]:
    """Return the arguments with a configuration in place of the data file of fit, and that file.

    describe FILE, backtest and predict --data FILE are carried out: None is left to do. A value of --data that is a
    YAML file is none of data.

    Raises:
        ValueError, FileNotFoundError: the command cannot be carried out.
    """
    if not is_for_own_data(args):
        return args, None
    command, options = args[0], args[1:]
    if command == "backtest":
        backtest_command(options)
        return None, None
    if command == "describe":
        describe_command(options)
        return None, None
    file = option_value(options, "--data")
    assert file is not None
    if command == "predict":
        predict_command(options)
        return None, None
    index = next(i for i, option in enumerate(options) if option.partition("=")[0] == "--data")
    rest = options[:index] + options[index + (1 if "=" in options[index] else 2) :]
    if option_value(rest, "--config") is not None or option_value(rest, "--ckpt_path") is not None:
        raise ValueError(
            "fit --data FILE chooses its own settings: leave out --config and --ckpt_path, or name the file in the "
            "configuration, as --data.series.init_args.data_path FILE"
        )
    config, rest = own_data_config(file, rest)
    return [command, "--config", str(config), *rest], file


def is_for_own_data(args: Sequence[str]) -> bool:
    """Tell whether a command line is describe FILE, backtest, fit --data FILE or predict --data FILE."""
    command, options = (args[0], args[1:]) if args else ("", [])
    file = option_value(options, "--data")
    is_file = file is not None and Path(file).suffix not in (".yaml", ".yml")
    return command in ("describe", "backtest") or (command in ("fit", "predict") and is_file)


def complete_arguments(args: list[str]) -> list[str]:
    """Return the arguments with bundled configurations as paths, and with the configuration that a command implies.

    Raises:
        FileNotFoundError: a configuration or a checkpoint does not exist.
        ValueError: nothing says which configuration to take.
    """
    if not args or args[0] not in COMMANDS:
        return args
    command, *options = args
    has_config = False
    for i, option in enumerate(options):
        name, equals, value = option.partition("=")
        if name in ("--config", "-c"):
            has_config = True
            if equals:
                options[i] = f"{name}={resolve_config(value)}"
            elif i + 1 < len(options):
                options[i + 1] = str(resolve_config(options[i + 1]))
    if has_config or {"-h", "--help"} & set(options):
        return [command, *options]
    checkpoint = option_value(options, "--ckpt_path")
    if checkpoint is not None:
        config = run_config(resolve_checkpoint(checkpoint))
        if config is None and not any(option.startswith("--data") for option in options):
            raise ValueError(
                f"{checkpoint} does not lie in the folder of a run, which holds its configuration: give --config"
            )
    elif command == "fit":
        config = resolve_config(DEFAULT_CONFIG)
    else:
        raise ValueError(NEEDS_WEIGHTS.format(command=command))
    return [command, *options] if config is None else [command, "--config", str(config), *options]


def option_value(options: Sequence[str], name: str) -> str | None:
    """Return the value given to an option, as `name value` or `name=value`; None when there is none."""
    for option, following in zip_longest(options, options[1:]):
        if option == name:
            return following
        if option.startswith(f"{name}="):
            return option.removeprefix(f"{name}=")
    return None


def explanation(error: BaseException) -> str | None:
    """Return the message to the user behind an error, None when there is none and the error is a defect.

    Messages come from the checks of this package and from Lightning's checks of its options. The innermost one counts:
    the parser wraps what the constructor of a model raises in a listing of everything that it tried.
    """
    message = None
    cause: BaseException | None = error
    while cause is not None:
        raised_in = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(cause.__traceback__)][-1:]
        is_ours = any(name.partition(".")[0] == __name__.partition(".")[0] for name in raised_in)
        if is_ours or isinstance(cause, MisconfigurationException):
            message = str(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return message


@contextmanager
def lightning_advice_hidden() -> Iterator[None]:
    """Hide what Lightning says that a user of this command can do nothing with.

    These are its advertisements; its advice to load data in more processes (windows are views of an array in memory,
    processes would only add copies); its note that a resumed run does not overwrite the checkpoints of the first; and
    its own use of a class that torch has deprecated.
    """
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    logger.addFilter(_is_no_advertisement)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            warnings.filterwarnings("ignore", message="The dirpath has changed from")
            warnings.filterwarnings("ignore", category=DataWarning)  # printed as notes
            # TODO(pytorch-lightning>2.6): drop when its utilities/_pytree.py no longer uses LeafSpec
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            yield
    finally:
        logger.removeFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("💡 Tip:")
