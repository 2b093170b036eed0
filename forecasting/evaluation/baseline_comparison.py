"""Let the baselines forecast what the model is tested on.

b batch, l context_len, n target_len, c d_y_context columns of which the first d_y_target are forecast.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ..conformal import conformal_intervals
from ..data import DataModule, SimulationTimeSeries
from ..forecaster import Forecaster
from ..metrics.dynamics import DynamicsErrors
from ..metrics.forecast_errors import ForecastErrors
from ..missing_values import mark_missing
from .baseline import Baseline
from .baselines import Persistence, default_baselines
from .interval_scores import IntervalScores
from .report import Report, Score


class BaselineComparison(pl.Callback):
    """Score the baselines on the batches of `Trainer.test`, beside the model.

    When the test starts, the baselines are fitted on the training rows of the DataModule. Their errors are running
    sums with the masks of the model's own (`Forecaster.test_errors`), so that no forecast is kept. After the test
    `report` holds the result.

        comparison = BaselineComparison()
        pl.Trainer(callbacks=[comparison]).test(forecaster, datamodule=data)
        rich.print(score_table(comparison.report))

    A baseline that cannot be fitted, fails or forecasts no finite numbers is left out, and the report says why; what is
    known before anything is fitted `obstacles` tells.

    Args:
        baselines: the yardsticks; None for `default_baselines` with the `season` of the data. Persistence, the
            reference of skill, comes first when it is not among them.
        adaptive: whether adaptive conformal inference (AdaptiveConformal) is scored beside the intervals of the model;
            it forecasts the validation windows again.

    Raises:
        ValueError: in a test of another model than a Forecaster, or without a DataModule.
    """

    def __init__(self, baselines: Sequence[Baseline] | None = None, *, adaptive: bool = False) -> None:
        self.baselines = baselines
        self.adaptive = adaptive
        self.report: Report | None = None
        self._errors: list[tuple[Baseline, ForecastErrors, DynamicsErrors]] = []
        self._windows = 0
        self._left_out: dict[str, str] = {}
        self._intervals: IntervalScores | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit the baselines on the training rows."""
        model, data = _participants(trainer, pl_module)
        self.report, self._windows, self._left_out, self._errors = None, 0, {}, []
        self._intervals = None
        if model.conformal is not None and trainer.world_size == 1:  # windows in the order of time
            found = conformal_intervals(model, data.val_dataloader()) if self.adaptive else model.conformal
            self._intervals = IntervalScores(found, is_adaptive=self.adaptive)
        rows, sizes = rows_for_baselines(data, model.null_value)
        for each in yardsticks_of(data, self.baselines):
            with or_left_out(each, self._left_out):
                each.fit(rows, **sizes)
                self._errors.append((each, ForecastErrors().to(model.device), DynamicsErrors().to(model.device)))

    def obstacles(self, data: DataModule, null_value: float | None = None) -> dict[str, str]:
        """Return the baselines that cannot be fitted on these data, each with the reason, without fitting any."""
        rows, sizes = rows_for_baselines(data, null_value)
        found = {}
        for each in yardsticks_of(data, self.baselines):
            try:
                each.check(rows, **sizes)
            except ValueError as error:
                found[each.name] = str(error)
        return found

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the errors that the baselines make on one batch."""
        model, _ = _participants(trainer, pl_module)
        context_y, target_y = (mark_missing(y, model.null_value) for y in (batch[1], batch[3]))
        for baseline, errors, dynamics in self._errors:
            if baseline.name in self._left_out:
                continue
            with or_left_out(baseline, self._left_out):
                forecast = baseline.predict(context_y)
                if not forecast.isfinite().all():
                    raise ValueError("its forecasts are not finite")
                errors.update(forecast, target_y)
                dynamics.update(forecast, target_y, model.target_scale)
        if self._intervals is not None and isinstance(outputs, Tensor):
            self._intervals.update(outputs, target_y)
        self._windows += len(target_y)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the scores of the model and of the baselines in `report`."""
        model, data = _participants(trainer, pl_module)
        scores = {type(model).__name__: Score.of(model.test_errors, model.test_dynamics)}
        scores |= {
            baseline.name: Score.of(errors, dynamics)
            for baseline, errors, dynamics in self._errors
            if baseline.name not in self._left_out
        }
        self.report = Report(
            scores=scores,
            sensors=data.series.target_cols,
            windows=min(
                int(trainer.strategy.reduce(torch.tensor(self._windows), reduce_op="sum")), data.window_counts["test"]
            ),
            unit=data.series.unit,
            time_unit=data.series.time_unit,
            time_step=data.series.sampling_time * data.time_resolution,
            scales=data.training_statistics()[1][: data.d_y_target].numpy(),
            left_out=dict(self._left_out),
            intervals=None if self._intervals is None else self._intervals.report(),
        )


def yardsticks_of(data: DataModule, baselines: Sequence[Baseline] | None) -> list[Baseline]:
    """Return baselines, None for the default ones of the data, with persistence among them."""
    chosen = default_baselines(season(data)) if baselines is None else list(baselines)
    if not any(baseline.name == Persistence.name for baseline in chosen):
        chosen.insert(0, Persistence())
    return chosen


@contextmanager
def or_left_out(baseline: Baseline, left_out: dict[str, str]) -> Iterator[None]:
    """Let scores be written whatever becomes of one yardstick: torch reports lack of memory as RuntimeError."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:
        if baseline.name == Persistence.name:
            raise
        left_out[baseline.name] = (str(error).splitlines() or [type(error).__name__])[0]


def rows_for_baselines(data: DataModule, null_value: float | None) -> tuple[Tensor, dict[str, Any]]:
    """Return the training rows and the validation rows behind them, with the sizes that Baseline.fit takes."""
    series, every = data.series, data.time_resolution
    train, validation = series.split_range("train"), series.split_range("val")
    fitted = range(train.start, train.stop, every)
    follows = validation.start == train.stop
    first = fitted.start + every * len(fitted) if follows else validation.start - every * data.context_len
    chosen_on = range(max(first, train.stop), validation.stop, every)
    order = np.r_[np.asarray(fitted), np.asarray(chosen_on)].astype(np.int64)
    rows, breaks = rows_at(series, order, null_value)
    if not follows:
        breaks = sorted({*breaks, len(fitted)})
    sizes: dict[str, Any] = {name: getattr(data, name) for name in ("context_len", "target_len", "d_y_target")}
    return rows, sizes | {"breaks": breaks, "validation_rows": len(chosen_on)}


def rows_at(series: SimulationTimeSeries, order: np.ndarray, null_value: float | None) -> tuple[Tensor, list[int]]:
    """Return rows of a series in an order of time, and which of them do not follow the one before."""
    broken = np.searchsorted(series.breaks, order, side="right")
    breaks = 1 + np.flatnonzero(np.diff(broken))
    return mark_missing(torch.from_numpy(series.values[order]), null_value), breaks.tolist()


def season(data: DataModule) -> int | None:
    """Return the period of the lowest of the series' dominant frequencies, in rows of a window.

    None when the series has no frequencies or a context holds no full period.
    """
    series: SimulationTimeSeries = data.series
    if len(series.frequencies) == 0:
        return None
    period = round(1 / (series.frequencies.min() * series.sampling_time * data.time_resolution))
    return period if 1 <= period <= data.context_len else None


def _participants(trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Forecaster, DataModule]:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(pl_module, Forecaster) or not isinstance(data, DataModule):
        raise ValueError(
            "a comparison with baselines needs trainer.test(forecaster, datamodule=DataModule(...)): got a "
            f"{type(pl_module).__name__} and the datamodule {data!r}"
        )
    return pl_module, data
