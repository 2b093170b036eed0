"""The SpatioTemporalPerformer as a Forecaster: one-shot, or step by step.

b batch, l context_len, n target_len; d_x covariates, d_y_context and d_y_target sensors (targets are the first columns)
"""

from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from .autoregression import TRAINING_FORECASTS, TeacherInputs, baseline_increments, decoder_input, forecast_step_by_step
from .flat_arguments import arguments_of, takes_fields_of
from .forecaster import Forecaster, ForecasterConfig
from .linear_model import SolvedLinear
from .signal_config import SignalConfig
from .st_transformer import PerformerConfig, SpatioTemporalPerformer
from .st_transformer.attention_class import attention_class_named
from .st_transformer.layer_config import AttentionFactory
from .st_transformer.patches import pad_back, pad_front
from .training.scheduled_sampling import ScheduledSampling, inverse_sigmoid_ratio
from .training.training import Window
from .training.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PerformerForecasterConfig(TrainingConfig, SignalConfig, PerformerConfig):
    """Arguments of a SpatioTemporalPerformer_Forecaster.

    Four defaults differ from those of other forecasters: l2_regul_factor, warmup_steps, use_revin and from_last_value.

    Args:
        attention_class: import path of another attention with FavorAttention's interface, such as
            favorcast.forecasting.st_transformer.SoftmaxAttention.
        mask_missing: attention ignores missing context values; without it they are tokens with value 0, told apart by
            the indicator embedding.
        initial_lr: AdamW's peak rate.
        scheduled_sampling: "none", "sequential" or "parallel", what the decoder reads in autoregressive training.
        scheduled_sampling_k: how slowly the truth is withdrawn there: half of it is left after k log k optimiser steps.
    """

    l2_regul_factor: float = 1e-5
    warmup_steps: int = 1000
    use_revin: bool = True
    from_last_value: bool = True
    attention_class: str = "favorcast.kernels.FavorAttention"
    attention_factory: AttentionFactory = field(init=False)  # that attention_class names
    mask_missing: bool = False
    initial_lr: float = 1e-3
    scheduled_sampling: ScheduledSampling = "sequential"
    scheduled_sampling_k: float = 1000.0

    def __post_init__(self) -> None:
        for part in (TrainingConfig, SignalConfig, PerformerConfig):
            part.__post_init__(self)
        object.__setattr__(self, "attention_factory", attention_class_named(self.attention_class))
        if self.scheduled_sampling not in get_args(ScheduledSampling):
            choices = ", ".join(get_args(ScheduledSampling))
            raise ValueError(f"scheduled_sampling must be one of {choices}: got {self.scheduled_sampling!r}")
        if not self.scheduled_sampling_k > 0:
            raise ValueError(f"scheduled_sampling_k must be positive: got {self.scheduled_sampling_k}")
        is_sequential = self.autoregressive_training and self.scheduled_sampling == "sequential"
        if is_sequential and self.normalization_type == "batchnorm":
            raise ValueError(
                "normalization_type='batchnorm' cannot be used with scheduled_sampling='sequential': each step would "
                "be normalised by its own statistics, and the running ones be those of the last steps; expected "
                "'layernorm', or scheduled_sampling='parallel' or 'none'"
            )
        if self.mask_missing and (self.downsample_convs_embedding or self.downsample_convs_block):
            raise ValueError(
                "mask_missing cannot be used with downsampling convolutions, which mix missing and other steps: "
                "set mask_missing=False, or downsample_convs_embedding=0 and downsample_convs_block=0"
            )
        if self.decoder_reads_linear and self.linear_window == 0:
            raise ValueError("decoder_reads_linear=True needs a linear part: set linear_window, or leave it out")

    @property
    def learning_rate(self) -> float:
        """What other forecasters call initial_lr."""
        return self.initial_lr


class SpatioTemporalPerformer_Forecaster(Forecaster):
    """Forecast sensors with a SpatioTemporalPerformer.

    autoregressive_training=False forecasts all steps at once: the decoder reads the last `start_len` context steps
    followed by n placeholders, and no target value enters it.

    autoregressive_training=True forecasts each step from the one before: the decoder is causal over time steps and
    reads values shifted by one step. Forecasts are made step by step from the model's own ones, at a cost per step that
    does not depend on the steps before; the truth is read in training only, as `scheduled_sampling` says:

    "none"          teacher forcing: at every step the truth of the step before; all steps in parallel
    "sequential"    step by step: the truth of the step before with probability eps = k / (k + exp(step / k)), else the
                    model's own forecast, through which gradients flow (k: scheduled_sampling_k; Bengio et al. 2015)
    "parallel"      the same in two parallel passes: the forecasts mixed in are those of a teacher-forced first pass,
                    through which gradients flow too (Mihaylova & Martins 2019)

    Values that the decoder reads are in model units, and continue the context it was shown.

    Its arguments are the fields of PerformerForecasterConfig: those of the model (PerformerConfig, LayerConfig), of its
    training (TrainingConfig, WarmupPlateau), and of what becomes of the values (SignalConfig, LinearPart).

    Raises:
        ValueError: for an argument outside its range, naming it.

    Example:
        >>> model = SpatioTemporalPerformer_Forecaster(d_y_context=49, d_y_target=49, d_x=1, d_model=32)
        >>> model.predict(torch.rand(2, 40, 1), torch.randn(2, 40, 49), torch.rand(2, 20, 1)).shape
        torch.Size([2, 20, 49])
    """

    teacher_forcing_ratio: Tensor

    @takes_fields_of(PerformerForecasterConfig)
    def __init__(self, *args: Any, **arguments: Any) -> None:
        config = PerformerForecasterConfig(*args, **arguments)
        super().__init__(**arguments_of(config, ForecasterConfig))
        # a local variable that Lightning saves: every argument in plain types, which checkpoints hold
        arguments = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in arguments_of(config).items()}
        self.save_hyperparameters()
        if config.autoregressive_training:
            self.from_last_value = False  # the decoder forecasts changes from step to step, see baseline_increments
        self.mask_missing = config.mask_missing
        self.scheduled_sampling: ScheduledSampling = config.scheduled_sampling
        self.scheduled_sampling_k = config.scheduled_sampling_k
        self.redraw_interval = config.redraw_interval
        self.register_buffer(
            "teacher_forcing_ratio",
            torch.tensor(inverse_sigmoid_ratio(0, config.scheduled_sampling_k)),
            persistent=False,
        )
        model = arguments_of(config, PerformerConfig)
        if config.decoder_reads_linear is None:
            model["decoder_reads_linear"] = isinstance(self.linear_model, SolvedLinear)
        self.model = SpatioTemporalPerformer(**model)
        if isinstance(self.linear_model, SolvedLinear) or self.from_last_value:
            torch.nn.init.zeros_(self.model.head.weight)  # training starts at the baseline itself

    def forward_model_pass(
        self,
        context_x: Tensor,
        context_y: Tensor,
        target_x: Tensor,
        target_y: Tensor | None = None,
        *,
        signal_offset: Tensor | None = None,
        linear_forecast: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Forecast in model units, (b, n, d_y_target); `target_y` is read in autoregressive training only.

        Raises:
            ValueError: when the context is shorter than start_len or the window longer than max_seq_len.
        """
        config = self.model.config
        if context_y.shape[1] < config.start_len:
            raise ValueError(
                f"the context must hold start_len time steps: expected at least {config.start_len}, got "
                f"{context_y.shape[1]}; lengthen context_len or shorten start_len"
            )
        target_len, patch_len = target_x.shape[1], config.patch_len
        context_x, context_y = pad_front(context_x, patch_len), pad_front(context_y, patch_len, torch.nan)
        target_x = pad_back(target_x, patch_len)
        padding = context_y.isnan() if self.mask_missing else None
        linear = None
        if config.decoder_reads_linear and linear_forecast is not None:
            linear = pad_back(linear_forecast.detach(), patch_len)
        if not config.autoregressive_training:
            return self._forecast_one_shot(context_x, context_y, target_x, padding, linear)[:, :target_len]
        if signal_offset is None:
            signal_offset = context_y.new_zeros(len(context_y), target_len, config.d_y_target)
        signal_offset = pad_back(signal_offset, patch_len)
        memory = self.model.encode(context_x, context_y, padding)
        known = decoder_input(
            context_x,
            context_y,
            target_x,
            start_len=config.start_steps,
            d_y_target=config.d_y_target,
            patch_len=patch_len,
            linear_forecast=linear,
        )
        has_baseline = self.linear_model is not None and self.trend_kernel_size is None
        increment, before = baseline_increments(signal_offset, known.y[:, -1] if has_baseline else None, patch_len)
        if target_y is None:
            increments = increment.split(patch_len, dim=1)
            signal = forecast_step_by_step(self.model, memory, known, lambda i, value: value + increments[i])
        else:
            truth = pad_back(target_y, patch_len, torch.nan) + signal_offset.detach()
            teacher = TeacherInputs(truth, increment, self.teacher_forcing_ratio)
            signal = TRAINING_FORECASTS[self.scheduled_sampling](self.model, memory, known, teacher)
        return (signal - before)[:, :target_len]

    def _forecast_one_shot(
        self,
        context_x: Tensor,
        context_y: Tensor,
        target_x: Tensor,
        padding: Tensor | None,
        linear_forecast: Tensor | None,
    ) -> Tensor:
        start_len, d_y_target = self.model.config.start_steps, self.model.config.d_y_target
        start = slice(context_y.shape[1] - start_len, None)
        placeholders = context_y.new_full((len(context_y), target_x.shape[1], d_y_target), torch.nan)
        return self.model(
            context_x,
            context_y,
            torch.cat((context_x[:, start], target_x), dim=1),
            torch.cat((context_y[:, start, :d_y_target], placeholders), dim=1),
            context_padding_mask=padding,
            linear_forecast=linear_forecast,
        )

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> None:
        """Set the random generators, the random features and the teacher forcing ratio for this optimiser step.

        Not at the end of a batch: a checkpoint that a callback writes there would miss the new features.
        """
        super().on_train_batch_start(batch, batch_idx)
        if self.redraw_interval is not None:
            for module in self.modules():
                redraw_if_due = getattr(module, "redraw_if_due", None)
                if redraw_if_due is not None:
                    redraw_if_due(self.global_step)
        if self.model.config.autoregressive_training and self.scheduled_sampling != "none":
            ratio = inverse_sigmoid_ratio(self.global_step, self.scheduled_sampling_k)
            self.teacher_forcing_ratio.fill_(ratio)
            self.log("train/teacher_forcing_ratio", ratio)
