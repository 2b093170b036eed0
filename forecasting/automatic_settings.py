"""Choose settings for a user's data from the data alone: windows, model and training that fit its size and period."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any, get_args

from torch import Tensor

from .closed_form_linear import ClosedFormLinear
from .data import DataModule, SimulationTimeSeries
from .linear_rows import LinearKind

MOST_TOKENS = 5_000  # of a window: what two CPU cores train on in a few minutes
TOKENS_A_BATCH = 12_000
MOST_STEPS_AHEAD = 96
STEPS_AHEAD = 24  # where no period says otherwise
CONTEXTS_PER_TARGET = 4
TRAINING_STEPS, STEPS_AN_EPOCH, VALIDATION_BATCHES = 600, 100, 50
FEWEST_ROWS = 30
MOST_LINEAR_INPUTS = 1024  # of one matrix: its normal equations are solved in seconds


@dataclass(frozen=True)
class AutomaticSettings:
    """Windows and training length chosen for a series.

    Attributes:
        context_len, target_len, batch_size: of the DataModule.
        epochs, steps_an_epoch: of the Trainer.
        period: dominant period in rows that target_len follows, None where it follows none.
        linear_model, linear_window: of the linear part in closed form.
        counts: windows of each split.
    """

    context_len: int
    target_len: int
    batch_size: int
    epochs: int
    steps_an_epoch: int
    period: float | None
    linear_model: LinearKind
    linear_window: int
    counts: dict[str, int]

    def config(self) -> dict[str, Any]:
        """Return the configuration of `favorcast fit`, without the series."""
        steps = self.epochs * self.steps_an_epoch
        return {
            "data": {"context_len": self.context_len, "target_len": self.target_len, "batch_size": self.batch_size},
            "model": {
                "class_path": "SpatioTemporalPerformer_Forecaster",
                "init_args": {
                    "d_model": 32,
                    "d_ff": 64,
                    "n_heads": 4,
                    "n_encoder_layers": 1,
                    "n_decoder_layers": 1,
                    "num_features": 16,
                    "max_seq_len": self.context_len + self.target_len,
                    "linear_model": self.linear_model,
                    "linear_window": self.linear_window,
                    "linear_fit": "ridge",
                    "use_revin": self.linear_model != "vector",  # a vector's constants are those of the training rows
                    "use_global_norm": self.linear_model == "vector",
                    "initial_lr": 0.004,
                    "warmup_steps": max(1, steps // 30),
                    "num_training_steps": steps,
                    "data_dropout_embedding": 0.0,
                    "dropout_ff": 0.1,
                },
            },
            "trainer": {
                "max_epochs": self.epochs,
                "limit_train_batches": self.steps_an_epoch,
                "limit_val_batches": VALIDATION_BATCHES,
                "num_sanity_val_steps": -1,  # what the linear part alone forecasts is a candidate, see BestCheckpoint
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 10,
            },
        }


def choose_settings(
    series: SimulationTimeSeries, context_len: int | None = None, target_len: int | None = None
) -> AutomaticSettings:
    """Choose windows that follow the dominant period where all splits hold them, and a training of some minutes.

    target_len is the dominant period, up to 96 rows (24 without one) and a third of 5000 tokens (rows times sensors),
    context_len four times that, up to the rest of the tokens; both are halved until every split has windows. What is
    given stays as it is. The linear part is the one whose ridge forecasts the validation windows best.

    Raises:
        ValueError: a series too short for any window, or for those that are given.
    """
    rows = len(series.values)
    if rows < FEWEST_ROWS:
        raise ValueError(f"{rows} rows are too few to train on and to test with: give at least {FEWEST_ROWS}")
    period = 1 / (series.frequencies[0] * series.sampling_time) if len(series.frequencies) == 1 else None
    follows = period is not None and 4 <= period <= MOST_STEPS_AHEAD
    wanted = round(period) if follows and period else STEPS_AHEAD
    most_rows = max(6, MOST_TOKENS // series.d_y_context)
    run_rows = _usual_run_rows(series)  # each of which should hold several windows
    ahead = target_len or max(
        1, min(wanted, most_rows // 3, len(series.splits["val"]) // 2, *(n // 4 for n in run_rows))
    )
    while True:
        most_context = min(most_rows - ahead, len(series.splits["train"]) // 3, *(n // 2 - ahead for n in run_rows))
        back = context_len or max(2, min(CONTEXTS_PER_TARGET * ahead, most_context))
        try:
            data = DataModule(series, context_len=back, target_len=ahead)
            break
        except ValueError:
            if target_len or ahead == 1:
                raise
            ahead //= 2
    counts = data.window_counts
    tokens = (back + ahead) * series.d_y_context
    batch_size = max(4, min(32, TOKENS_A_BATCH // tokens, counts["train"]))
    steps_an_epoch = min(STEPS_AN_EPOCH, ceil(counts["train"] / batch_size))
    linear_model, linear_window = choose_linear_part(data)
    return AutomaticSettings(
        context_len=back,
        target_len=ahead,
        batch_size=batch_size,
        epochs=min(ceil(TRAINING_STEPS / steps_an_epoch), 60),
        steps_an_epoch=steps_an_epoch,
        period=period if follows and period and ahead == round(period) else None,
        linear_model=linear_model,
        linear_window=linear_window,
        counts=counts,
    )


def _usual_run_rows(series: SimulationTimeSeries) -> list[int]:
    """Return the median rows of a run in each split: one that broke off early does not shorten everybody's windows."""
    splits = series.splits if series.rows_of_runs else ()
    return [int(median(map(len, series.runs_of(split).values()))) for split in splits]


def choose_linear_part(data: DataModule) -> tuple[LinearKind, int]:
    """Return the kind and the window of the linear part whose ridge forecasts the validation windows best.

    Matrices for each sensor, one for all sensors, and one from all columns to all sensors; this one reads as many rows
    as 1024 inputs are. Errors are in units of each column's training standard deviation.
    """
    mean, scale = data.training_statistics()

    def centred(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x - mean, y - mean[: y.shape[-1]]) for x, y in data.window_blocks(split))

    errors = {}
    for kind in get_args(LinearKind):
        columns = data.d_y_context if kind == "vector" else 1
        window = min(data.context_len, MOST_LINEAR_INPUTS // columns)
        if window < 1:
            continue
        part = ClosedFormLinear(kind, window, data.d_y_context, data.d_y_target).double()
        part.fit(lambda: centred("train"), lambda: centred("val"), scale=scale)
        errors[kind, window] = part.squared_error(centred("val"), scale)
    return min(errors, key=lambda each: errors[each])
