"""The abstract Forecaster: everything of training and forecasting that does not depend on the model.

b batch, l context_len, n target_len; d_x covariates, d_y_context and d_y_target sensors (targets are the first columns)
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from ..kernels import series_decomposition
from .conformal import ConformalIntervals, conformal_intervals
from .flat_arguments import FieldsSignature, takes_fields_of
from .linear_model import SolvedLinear
from .linear_rows import WindowBlocks
from .missing_values import carry_forward, fill_missing, mark_missing
from .model_share import ModelShare
from .normalization import GlobalNorm, Statistics
from .ridge import Shrinkage
from .rollout import roll_forward
from .signal_config import SignalConfig
from .training.training import ForecastTraining, Window
from .training.training_config import TrainingConfig
from .window_widths import WindowWidths

if TYPE_CHECKING:
    from .data import TableFormat
    from .labelled_forecast import Forecast


@dataclass(frozen=True, kw_only=True)
class ForecasterConfig(TrainingConfig, SignalConfig, WindowWidths):
    """Arguments of every forecaster.

    Args:
        learning_rate: AdamW's peak rate.
    """

    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for part in (TrainingConfig, SignalConfig, WindowWidths):
            part.__post_init__(self)


class ForecastParts(NamedTuple):
    """A forecast in model units, before the change is shared out: baseline and change (b, n, d_y_target)."""

    baseline: Tensor
    change: Tensor
    statistics: Statistics


class Forecaster(ForecastTraining):
    """Train and evaluate a forecasting model on batches (context_x, context_y, target_x, target_y).

    A subclass implements `forward_model_pass` and calls `self.save_hyperparameters()` in its constructor, so that its
    checkpoints load. One forecast is

        z = normalize(context_y)                      NaN and null_value are missing and stay NaN
        seasonal, trend = decompose(z)                seasonal = trend = z without use_seasonal_decomp
        forecast = denormalize(share * model(seasonal) + baseline(trend))

    where share is 1 until `fit_model_share`, and baseline is the linear model if linear_window > 0, else the last
    observed value of z if from_last_value, else the last trend value if use_seasonal_decomp, else 0.
    A missing value never reaches a weight or a statistic; a missing covariate (NaN in x) counts as 0. Before the first
    fit, the training statistics behind use_global_norm and `target_scale` come from
    `trainer.datamodule.training_statistics()`, and a linear part in closed form is solved on
    `trainer.datamodule.window_blocks("train")`, its penalties chosen on `window_blocks("val")`; both stay in the
    checkpoint. Training, losses and logged errors: see ForecastTraining.

    Its arguments are the fields of ForecasterConfig.

    Raises:
        ValueError: for an argument outside its range, naming it.
    """

    __signature__ = FieldsSignature()

    @takes_fields_of(ForecasterConfig)
    def __init__(self, *args: Any, **arguments: Any) -> None:
        config = ForecasterConfig(*args, **arguments)
        super().__init__(config, learning_rate=config.learning_rate, null_value=config.null_value)
        self.data_card: dict[str, Any] | None = None  # what the datamodule of the first fit tells of its data
        self.conformal: ConformalIntervals | None = None
        self.widths = WindowWidths(config.d_x, config.d_y_context, config.d_y_target)
        self.trend_kernel_size = config.decomposition_kernel_size if config.use_seasonal_decomp else None
        self.linear_model = config.build_linear_model(config.d_y_context, config.d_y_target)
        self.from_last_value = config.from_last_value and self.linear_model is None
        self.normalization = config.build_normalization(config.d_y_context)
        self.model_share = ModelShare()

    @abstractmethod
    def forward_model_pass(
        self, context_x: Tensor, context_y: Tensor, target_x: Tensor, target_y: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Forecast in model units, (b, n, d_y_target): normalised, and seasonal if decomposed.

        Args:
            context_x: (b, l, d_x), finite.
            context_y: (b, l, d_y_context) in model units, NaN where missing.
            target_x: (b, n, d_x), finite.
            target_y: (b, n, d_y_target), the truth that the returned forecast is compared with, in the same units (less
                the baseline), NaN where missing; given in training only.
            kwargs: for models that read them, both (b, n, d_y_target): linear_forecast, the baseline that is added to
                the returned forecast; signal_offset, which makes a forecast continue context_y (it is the baseline,
                unless a trend was split off).
        """

    def forward(self, context_x: Tensor, context_y: Tensor, target_x: Tensor, target_y: Tensor | None = None) -> Tensor:
        """Forecast in original units, (b, n, d_y_target).

        Args:
            context_x: (b, l, d_x).
            context_y: (b, l, d_y_context), original units; NaN and null_value are missing.
            target_x: (b, n, d_x).
            target_y: (b, n, d_y_target), the truth, for models that train on it.

        Raises:
            ValueError: for a shape other than these.
        """
        self.widths.check(context_x, context_y, target_x, target_y)
        context_y = mark_missing(context_y, self.null_value)
        parts = self._parts(context_x, context_y, target_x, target_y)
        kept = parts.baseline + self.model_share(parts.change)
        return self.normalization.denormalize(kept, parts.statistics)

    def _parts(self, context_x: Tensor, context_y: Tensor, target_x: Tensor, target_y: Tensor | None) -> ForecastParts:
        statistics = self.normalization.statistics(context_y, ~context_y.isnan())
        normalized = self.normalization.normalize(context_y, statistics)
        signal, trend = self._split_trend(normalized)
        baseline = self._baseline(normalized if self.from_last_value else trend, target_x.shape[1])
        if target_y is not None:
            truth = self.normalization.normalize(mark_missing(target_y, self.null_value), statistics)
            target_y = truth - baseline.detach()
        change = self.forward_model_pass(
            fill_missing(context_x),
            signal,
            fill_missing(target_x),
            target_y,
            signal_offset=baseline if self.trend_kernel_size is None else torch.zeros_like(baseline),
            linear_forecast=baseline,
        )
        return ForecastParts(baseline, change, statistics)

    def _split_trend(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the model and what the baseline read of a normalised context."""
        if self.trend_kernel_size is None:
            return signal, signal
        observed = ~signal.isnan()
        seasonal, trend = series_decomposition(signal, self.trend_kernel_size, mask=observed)
        return torch.where(observed, seasonal, torch.nan), trend

    def _baseline(self, values: Tensor, target_len: int) -> Tensor:
        """Return the baseline's forecast (b, n, d_y_target), in model units, of the trend or of all values."""
        if self.linear_model is not None:
            return self.linear_model(values, target_len)
        own = values[..., : self.widths.d_y_target]
        last = (carry_forward(own) if self.from_last_value else own)[:, -1:]
        is_zero = self.trend_kernel_size is None and not self.from_last_value
        return (torch.zeros_like(last) if is_zero else last).expand(-1, target_len, -1)

    @torch.no_grad()
    def predict(
        self, context_x: Tensor, context_y: Tensor, target_x: Tensor, *, block_len: int | None = None
    ) -> Tensor:
        """Forecast in original units in evaluation mode, (b, n, d_y_target), on context_y's device.

        Inputs may be of any dtype and on any device; a context_y in float64 is centred in float64, and its forecast is
        float64. Each submodule's training mode is restored.

            forecast = model.predict(context_x, context_y, target_x)                  # the horizon of training
            forecast = model.predict(context_x, context_y, long_x, block_len=40)      # any horizon

        Args:
            context_x: (b, l, d_x).
            context_y: (b, l, d_y_context), original units; NaN and null_value are missing.
            target_x: (b, n, d_x).
            block_len: forecast that many steps at a time, each block from a context that ends with the forecasts before
                (see `roll_forward`); None forecasts all n steps from context_y.

        Raises:
            ValueError: for a shape other than these.
        """
        like = self.normalization.mean
        inputs = [torch.as_tensor(value).to(like) for value in (context_x, context_y, target_x)]
        if torch.as_tensor(context_y).dtype == torch.float64:  # a large mean leaves few digits in float32
            inputs[1] = torch.as_tensor(context_y).to(like.device)
        with in_evaluation(self):
            forecast = self(*inputs) if block_len is None else roll_forward(self, *inputs, block_len=block_len)
        return forecast.to(torch.as_tensor(context_y).device)

    def fit_model_share(self, windows: Iterable[Window]) -> None:
        """Keep what the model adds to its baseline as far as held-out windows support it, at each step (ModelShare).

            forecaster.fit_model_share(data.val_dataloader())

        Shares are kept in checkpoints, and forgotten when training goes on. Without a linear part or from_last_value
        there is no baseline that forecasts by itself, and nothing is shared out.

        Args:
            windows: batches that training did not see; those of validation are the usual choice.
        """
        self.model_share.reset()
        if self.linear_model is None and not self.from_last_value:
            return
        with in_evaluation(self), torch.no_grad():
            self.model_share.fit(map(self._change_and_wanted, windows))

    def _change_and_wanted(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return what the model adds to the baseline, and what the truth does, in units of the loss."""
        like = self.normalization.mean
        context_x, context_y, target_x, target_y = (torch.as_tensor(value).to(like.device) for value in window)
        context_y, target_y = (mark_missing(y, self.null_value) for y in (context_y, target_y))
        parts = self._parts(context_x.to(like), context_y, target_x.to(like), None)
        plain, full = (
            self.normalization.denormalize(each, parts.statistics)
            for each in (parts.baseline, parts.baseline + parts.change)
        )
        return (full - plain) / self.target_scale, (target_y - plain) / self.target_scale

    def calibrate(self, windows: Iterable[Window]) -> None:
        """Fit prediction intervals on held-out windows, by split conformal prediction (see ConformalIntervals).

            forecaster.calibrate(data.val_dataloader())

        They are kept in checkpoints, and forgotten when training goes on.

        Args:
            windows: batches that training did not see; those of validation are the usual choice.

        Raises:
            ValueError: no window.
        """
        self.conformal = conformal_intervals(self, windows)

    def forecast(
        self,
        data: Any,
        horizon: int | None = None,
        covariates: Any = None,
        *,
        intervals: Sequence[float] = (),
        table: "TableFormat | None" = None,
        time_column: str | None = None,
    ) -> "Forecast":
        """Forecast the rows that follow the end of `data`, with times continued and names and units kept.

            forecast = model.forecast("sensors.csv", horizon=48)
            forecast.to_frame(); forecast.save("future.csv"); forecast.plot().savefig("future.png")

        Only the latest context is needed. Columns are matched by name (those of an array as they stand), and
        covariates go on by the clock of training. Where that had no times, rows are counted from the first one of
        `data` if these are as many as in training, and the phase of frequencies is read from the values if fewer.

        Args:
            data: a file, array, tensor, DataFrame, DataArray or Dataset (see SimulationTimeSeries), with all context
                columns of training.
            horizon: rows to forecast, at least 1; None is the horizon of training, beyond which the forecast rolls on
                block by block, each from a context that ends with the forecasts before.
            covariates: the known_columns of training at the times to forecast, in any of these forms.
            intervals: levels of prediction intervals, whole percents such as (0.8, 0.95). They hold for steps up to
                the horizon of training, and where validation had windows enough; elsewhere they are NaN, and said.
            table: what is to be stated about the table of `data`, such as TableFormat(date_order="dmy"); what is left
                open there is as in training, by default all of it.
            time_column: name of the column that holds the time; as in training by default.

        Raises:
            ValueError: other columns, another time step, too few rows, a break in the latest context, or a forecaster
                that was not fitted with a DataModule, or has no intervals (see `calibrate`).
        """
        from .future import Stated, forecast  # which knows data and models; models do not know data

        return forecast(self, data, horizon, covariates, intervals, stated=Stated(table, time_column))

    def predict_step(self, batch: Window, batch_idx: int) -> Tensor:
        """Forecast a batch in original units; its target_y is optional and unused."""
        return self.predict(*batch[:3])

    @property
    def target_scale(self) -> Tensor:
        """Training standard deviation of each target, (d_y_target,): the unit of the loss. Ones until fitted."""
        return self.normalization.std[: self.widths.d_y_target]

    def fit_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take the training statistics of all context columns, replacing earlier ones.

        Args:
            mean: (d_y_context,), original units.
            std: (d_y_context,), original units; constant columns get scale 1.
        """
        self.normalization.fit(mean, std)

    def fit_linear_part(self, train: WindowBlocks, held_out: WindowBlocks, *, noise: float = 0.0) -> list[Shrinkage]:
        """Solve a linear part in closed form, replacing earlier weights, and return the penalty of each target step.

        The training statistics must be there already. Errors count as in the loss, in units of `target_scale`: where a
        linear part keeps the scale of its context, a window that use_revin normalises counts by its own variance.

        Args:
            train: yields (context_y (b, l, d_y_context), target_y (b, n, d_y_target)), original units, anew each call.
            held_out: yields the windows that penalties are chosen on.
            noise: standard deviation, in training standard deviations, of the noise that training adds to contexts:
                the linear part must not amplify it.

        Raises:
            ValueError: for a forecaster without such a part.
        """
        if not isinstance(self.linear_model, SolvedLinear):
            raise ValueError("there is no linear part in closed form: build the forecaster with linear_fit='ridge'")
        scale = self.normalization.model_scale

        def pairs(windows: WindowBlocks) -> WindowBlocks:
            return lambda: map(self._linear_pair, windows())

        return self.linear_model.fit(pairs(train), pairs(held_out), scale=scale, noise=noise)

    @torch.no_grad()
    def _linear_pair(self, window: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the linear part reads and is to forecast, in model units, windows weighted as in the loss."""
        context_y, target_y = (mark_missing(y.to(self.normalization.mean.device), self.null_value) for y in window)
        statistics = self.normalization.statistics(context_y, ~context_y.isnan())
        _, trend = self._split_trend(self.normalization.normalize(context_y, statistics))
        target = self.normalization.normalize(target_y, statistics)
        if not getattr(self.linear_model, "keeps_scale", False):
            return trend, target
        weight = statistics.std * self.normalization.model_scale / self.normalization.std
        return trend * weight, target * weight[..., : target.shape[-1]]

    def setup(self, stage: str) -> None:
        """Take from the datamodule, before a fit, the training statistics and a linear part, unless they are there.

        Raises:
            ValueError: for use_global_norm without statistics, or a closed form without rows, from any side.
        """
        if stage != "fit":
            return
        self._meet_data()
        data = getattr(self.trainer, "datamodule", None)
        training_statistics = getattr(data, "training_statistics", None)
        if not self.normalization.is_fitted:
            if training_statistics is not None:
                self.fit_statistics(*training_statistics())
            elif isinstance(self.normalization, GlobalNorm):
                raise ValueError(
                    "use_global_norm needs training statistics: pass global_mean and global_std, or fit with a "
                    "datamodule that offers training_statistics()"
                )
        is_resumed = self.trainer.ckpt_path is not None  # what was solved then comes with the checkpoint
        if isinstance(self.linear_model, SolvedLinear) and not self.linear_model.is_fitted and not is_resumed:
            blocks = getattr(data, "window_blocks", None)
            if blocks is None:
                raise ValueError(
                    "a linear part in closed form needs training windows: fit with a datamodule that offers "
                    "window_blocks(split), or call fit_linear_part(train, held_out) first"
                )
            noise = getattr(getattr(data, "augmentation", None), "gaussian_noise_level", 0.0)
            self.fit_linear_part(lambda: blocks("train"), lambda: blocks("val"), noise=noise)

    def on_fit_start(self) -> None:
        """Let data go on as those of an earlier fit did, which a checkpoint may have told since `setup`."""
        super().on_fit_start()
        self.conformal = None
        self.model_share.reset()
        self._meet_data()

    def on_validation_start(self) -> None:
        """Let other data go on as those of training did."""
        self._meet_data()

    on_test_start = on_predict_start = on_validation_start

    def _meet_data(self) -> None:
        """Learn what the data are in the first fit; later, let the data take the columns' order and clock of then."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.data_card is not None and hasattr(data, "adopt"):
            data.adopt(self.data_card)
        if self.trainer.state.fn == TrainerFn.FITTING and hasattr(data, "data_card"):
            self.data_card = data.data_card()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what `forecast` must know beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["data_card"] = self.data_card
        checkpoint["conformal"] = None if self.conformal is None else self.conformal.to_dict()
        checkpoint["forecaster_class"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` kept."""
        super().on_load_checkpoint(checkpoint)
        self.data_card = checkpoint.get("data_card")
        self.conformal = ConformalIntervals.of_dict(checkpoint.get("conformal"))
        arguments = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if self.from_last_value and "from_last_value" not in arguments:  # trained before there was this argument
            self.from_last_value = False
            self.hparams["from_last_value"] = False


@contextmanager
def in_evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each submodule back into its own at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
