"""The Lightning command line of a Forecaster: each run in a folder of its own, compared with the baselines."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ProgressBar, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from rich.console import Console

from ..data import DataModule
from ..data.runs import name_of, sources_of
from ..evaluation.baseline_comparison import BaselineComparison
from ..evaluation.forecast_writer import ForecastWriter
from ..evaluation.interval_scores import LEVELS, coverage_table
from ..evaluation.model_card import write_model_card
from ..evaluation.report import score_table
from ..evaluation.result_files import write_results
from ..forecaster import Forecaster
from ..linear_model import SolvedLinear
from ..spatiotemporal_performer_forecaster import SpatioTemporalPerformer_Forecaster
from ..training.best_checkpoint import BestCheckpoint
from ..training.training_speed import WindowsPerSecond
from .flags import with_flags
from .option_suggestions import suggestion
from .run_folder import (
    BEST_CHECKPOINT,
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    LAST_CHECKPOINT,
    check_weights,
    copy_earlier_best,
    create_run_folder,
    load_checkpoint,
    new_run_folder,
    resolve_checkpoint,
)

Value = TypeVar("Value")
NEEDS_WEIGHTS = "{command} needs trained weights: give --ckpt_path a .ckpt file or a run folder"


class CommandParser(LightningArgumentParser):
    """A parser whose errors are one message, without the list of all options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ValueError for a command line or configuration that cannot be parsed; name what is close to it."""
        raise ValueError(message.strip() + suggestion(message, self)) from ex


class ForecastCLI(LightningCLI):
    """Run fit, validate, test or predict on a Forecaster and a DataModule.

    Beside the options of LightningCLI, --runs and --name place the run folder <runs>/<name>/<time>_<command>, and
    --checkpoint sets the BestCheckpoint, which keeps the weights of the lowest val/loss; those of step 0 are among them
    when the model starts from a linear part in closed form or from the last value. The model's widths come from the
    data. fit ends with a test of the best weights; fit and test write the files of `write_results`, predict writes
    forecast.csv (see ForecastWriter). What a run writes it writes into its folder, whose path is printed last.

    Args:
        args: the command line, without the program's name.
        future_of: a file whose future fit forecasts at its end, into future.csv and future.png.
        parser_options: see LightningArgumentParser.

    Raises:
        ValueError, FileNotFoundError: what the options ask for cannot be done.
    """

    model: Forecaster
    datamodule: DataModule

    def __init__(self, args: list[str], *, future_of: str | None = None, **parser_options: Any) -> None:
        self.future_of = future_of
        self.console = Console()
        self.comparison = BaselineComparison()
        self.checkpoint: BestCheckpoint | None = None
        super().__init__(
            Forecaster,
            DataModule,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs=parser_options,
            parser_class=CommandParser,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """List the commands, each with the Trainer's arguments that it does not offer."""
        commands = LightningCLI.subcommands()
        commands["test"].add("verbose")
        commands["predict"].add("return_predictions")
        return commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the checkpoint, and take the model's widths from the data."""
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--compile", type=bool, default=False, help="compile the model: minutes first, then faster")
        parser.add_argument(
            "--adaptive_intervals", type=bool, default=False, help="test adaptive conformal inference too"
        )
        parser.add_argument("--name", type=str | None, help="folder of this run in --runs; null: the data's name")
        parser.add_class_arguments(BestCheckpoint, "checkpoint", skip={"dirpath"})
        model = SpatioTemporalPerformer_Forecaster
        parser.set_defaults(
            {
                "model": {"class_path": f"{model.__module__}.{model.__name__}"},
                "checkpoint.filename": BEST_CHECKPOINT.removesuffix(BestCheckpoint.FILE_EXTENSION),
                "checkpoint.monitor": "val/loss",
                "checkpoint.save_last": True,
            }
        )
        for width in ("d_x", "d_y_context", "d_y_target"):
            parser.link_arguments(f"data.{width}", f"model.init_args.{width}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments and find the checkpoint; Lightning's version warns about the arguments of the process.

        Raises:
            ValueError: they cannot be parsed, or a command other than fit is given no checkpoint.
            FileNotFoundError: the checkpoint does not exist.
        """
        self.config = parser.parse_args(args)
        config = self.config[self.config.subcommand]
        if config.ckpt_path is not None:
            config.ckpt_path = str(resolve_checkpoint(config.ckpt_path))
        elif self.config.subcommand != "fit":
            raise ValueError(NEEDS_WEIGHTS.format(command=self.config.subcommand))

    @property
    def command(self) -> str:
        """The command that runs."""
        assert self.subcommand is not None
        return self.subcommand

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Name the run folder, and build the Trainer that writes to it."""
        config = self.config[self.command]
        name = config.name or name_of(config.data.series.init_args.get("data_path"))
        self.run_folder = new_run_folder(Path(config.runs), name, self.command)
        options = self._get(self.config_init, "trainer")
        if self.command != "fit":
            kwargs["logger"] = False
        elif options["logger"] in (None, True):
            kwargs["logger"] = default_loggers(self.run_folder)
        has_forecast = isinstance(self.model.linear_model, SolvedLinear) or self.model.from_last_value
        if self.command == "fit" and has_forecast and options["num_sanity_val_steps"] is None:
            kwargs["num_sanity_val_steps"] = -1  # step 0 is judged as every later validation is, see BestCheckpoint
        return super().instantiate_trainer(callbacks=self._callbacks(options), **kwargs)

    def _callbacks(self, options: Any) -> list[Callback]:
        callbacks: list[Callback] = list(options["callbacks"] or [])
        if options["enable_progress_bar"] is not False and not any(isinstance(each, ProgressBar) for each in callbacks):
            # errors may be far below the three decimals of Lightning's own bar
            callbacks.append(RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3g")))
        if self.command == "fit":
            callbacks.append(WindowsPerSecond())
            if options["logger"] is not False:
                callbacks.append(LearningRateMonitor())
        if self.command in ("fit", "test"):
            self.comparison.adaptive = self.config[self.command].adaptive_intervals
            callbacks.append(self.comparison)
        if self.command == "predict":
            callbacks.append(ForecastWriter(self.run_folder / "forecast.csv"))
        if options["enable_checkpointing"] is not False:
            self.checkpoint = checkpoint = self._get(self.config_init, "checkpoint")
            source = self.config[self.command].ckpt_path
            folder = self.run_folder / CHECKPOINT_FOLDER if self.command == "fit" else Path(source).resolve().parent
            checkpoint.dirpath = str(folder)  # commands other than fit write none: it only takes back its state
            callbacks.append(checkpoint)
        return callbacks

    def create_run_folder(self) -> None:
        """Create the run folder, once everything that can be checked has been.

        Raises:
            ValueError: the checkpoint does not fit the model, or the folder cannot be created.
        """
        checkpoint = self.config[self.command].ckpt_path
        if checkpoint is not None:
            check_weights(self.model, Path(checkpoint))
        if self.trainer.is_global_zero:
            data = self.datamodule  # of own data, short runs are said with the settings
            for note in data.notes if self.future_of is None else data.series.notes:
                said = with_flags(note, own_data=self.future_of is not None)
                self.console.print(f"note: {said}", markup=False, highlight=False, soft_wrap=True)
            create_run_folder(self.run_folder)

    before_fit = before_test = before_predict = create_run_folder

    def fit(self, **options: Any) -> None:
        """Train, compiled where --compile says so, then test the best weights; the last ones when none were kept."""
        counts = ", ".join(f"{count} for {split}" for split, count in self.datamodule.window_counts.items())
        if self.trainer.is_global_zero:
            self.console.print(f"{self.datamodule.d_y_context} sensors, {self.datamodule.d_x} covariates; {counts}")
            path = str(self.run_folder / CONFIG_FILE)
            self._parser("fit").save(self.config["fit"], path, skip_unset=False)
            if "test" in self.datamodule.series.splits:
                for why in self.comparison.obstacles(self.datamodule, self.model.null_value).values():
                    self.console.print(f"note: left out of the table: {why}", markup=False, soft_wrap=True)
        if self.config["fit"].compile:
            self.model.compile()
        self.trainer.fit(**options)
        self.run_folder = self._as_first_process_says(self.run_folder)
        self._complete_checkpoints()
        if bool(torch.as_tensor(self.trainer.callback_metrics.get("val/loss", 0.0)).isnan()):
            self.console.print(
                "note: no value of the validation targets was observed, so that no checkpoint was chosen by them and "
                "the learning rate was never cut; give the validation split rows with values",
                markup=False,
            )
        best = self.checkpoint.best_model_path if self.checkpoint else ""
        self._calibrate(best)
        if "test" in self.datamodule.series.splits:
            self.test(model=self.model, datamodule=self.datamodule, ckpt_path=best or None)
        elif self.trainer.is_global_zero:
            write_model_card(self.run_folder, self.model, None)
        if self.future_of is not None and self.trainer.is_global_zero:
            self._forecast_future(self.future_of)

    def _calibrate(self, best: str) -> None:
        """Fit model share and intervals of the best weights, or the last ones, and keep them in the best checkpoint."""
        if self.trainer.fast_dev_run or self.trainer.world_size > 1:  # pyright: ignore[reportAttributeAccessIssue]
            return
        content = load_checkpoint(Path(best)) if best else None
        if content is not None:
            self.model.load_state_dict(content["state_dict"])
        self.model.fit_model_share(self.datamodule.val_dataloader())
        self.model.calibrate(self.datamodule.val_dataloader())
        assert self.model.conformal is not None
        if content is not None:
            found = {"state_dict": self.model.state_dict(), "conformal": self.model.conformal.to_dict()}
            torch.save(content | found, best)

    def _forecast_future(self, file: str) -> None:
        runs = sources_of(file)
        if runs is not None:
            name, file = list(runs.items())[-1]
            self.console.print(f"the future is that of the last run, {name}", markup=False)
        try:
            forecast = self.model.forecast(file, intervals=() if self.model.conformal is None else LEVELS)
        except ValueError as error:  # the latest rows may be too few, or broken, where training was possible
            said = with_flags(str(error), own_data=True)
            self.console.print(f"note: no forecast of the future: {said}", markup=False, soft_wrap=True)
            return
        forecast.save(self.run_folder / "future.csv")
        forecast.plot().savefig(self.run_folder / "future.png")

    def _complete_checkpoints(self) -> None:
        """Write the last weights, whatever the interval of checkpoints, and keep the best ones of a resumed run."""
        checkpoint = self.checkpoint
        if checkpoint is None or self.trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        folder = self.run_folder / CHECKPOINT_FOLDER
        last = folder / LAST_CHECKPOINT
        has_last = last.is_file() and load_checkpoint(last)["global_step"] == self.trainer.global_step
        if checkpoint.save_last and not self._as_first_process_says(has_last):
            self.trainer.save_checkpoint(last)
        source = self.config["fit"].ckpt_path
        if source is not None and self.trainer.is_global_zero:
            score = checkpoint.best_model_score if (folder / BEST_CHECKPOINT).is_file() else None
            copied = copy_earlier_best(Path(source), folder, None if score is None else float(score), checkpoint.mode)
            if copied is not None:
                checkpoint.best_model_path = str(copied)
        checkpoint.best_model_path = self._as_first_process_says(checkpoint.best_model_path)

    def _as_first_process_says(self, value: Value) -> Value:
        """Return the value of the first process, in all of them: they name run folders each by its own clock."""
        return self.trainer.strategy.broadcast(value)

    def test(self, **options: Any) -> None:
        """Test beside the baselines, print the scores and write them down."""
        self.trainer.test(verbose=False, **options)
        report = self.comparison.report
        if self.trainer.is_global_zero and report is not None:
            self.console.print(score_table(report))
            if report.intervals is not None:
                self.console.print(coverage_table(report.intervals))
            write_results(self.run_folder, report, self.model, self.datamodule)

    def predict(self, **options: Any) -> None:
        """Write the forecasts of the checkpoint; they are not returned, which would hold them all."""
        self.trainer.predict(return_predictions=False, **options)
        write_model_card(self.run_folder, self.model, None)

    def print_run_folder(self) -> None:
        """Print where the results are."""
        if self.trainer.is_global_zero:
            print(self.run_folder)  # not by the console, which would break a long path over lines

    after_fit = after_test = after_predict = print_run_folder


def default_loggers(folder: Path) -> list[Logger]:
    """Log to <folder>/log/metrics.csv, and for TensorBoard to <folder>/tensorboard where that is installed."""
    loggers: list[Logger] = [CSVLogger(folder, name="", version="log")]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    return loggers
