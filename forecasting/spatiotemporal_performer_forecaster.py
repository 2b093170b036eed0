"""The SpatioTemporalPerformer as a Forecaster: one-shot, or step by step.

b batch, l context_len, n target_len; d_x covariates, d_y_context and d_y_target sensors (targets are the first columns)
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from .autoregression import TRAINING_FORECASTS, TeacherInputs, baseline_increments, decoder_input, forecast_step_by_step
from .closed_form_linear import ClosedFormLinear
from .forecaster import Forecaster
from .linear_model import LinearChoice, LinearFit
from .metrics.losses import LossName
from .st_transformer import PerformerConfig, SpatioTemporalPerformer
from .st_transformer.attention_class import attention_class_named
from .st_transformer.feed_forward import Activation
from .st_transformer.layer_config import PerformerKernel
from .st_transformer.patches import pad_back, pad_front
from .st_transformer.performer_config import PositionEmbedding
from .st_transformer.token_norm import NormalizationType
from .training.scheduled_sampling import ScheduledSampling, check_strategy, inverse_sigmoid_ratio
from .training.training import Window

MODEL_OPTIONS = [field.name for field in fields(PerformerConfig) if field.name != "attention_factory"]


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

    ============================  =======================================================================
    Data
    d_y_context, d_y_target, d_x  numbers of context columns, target columns and covariates
    null_value                    the data set's code for a missing value, beside NaN
    mask_missing                  attention ignores missing context values (False: they are tokens with
                                  value 0, told apart by the indicator embedding)
    Size
    d_model, d_ff                 width of a token, hidden width of the feed-forward nets (None: 4 d_model)
    n_heads, d_q_k, d_v           heads, width of queries and keys, of values (None: d_model / n_heads)
    n_encoder_layers,             layers
    n_decoder_layers
    Tokens
    patch_len                     steps of a sensor in one token (1: every value is a token); cost falls by as much
    start_len                     context steps repeated at the start of the decoder's input, in whole patches
    max_seq_len                   largest context_len + target_len
    time_emb_dim                  Time2Vec components per covariate
    time_embedding,               whether tokens carry covariates, and tell given values from missing ones
    indicator_embedding
    position_embedding            "learned" (a table) or "periodic" (any length)
    downsample_convs_embedding,   convolutions that halve the context before the encoder, between its layers
    downsample_convs_block
    Attention
    performer_attention_kernel    "softmax" (FAVOR+), "relu" or "elu"
    num_features, features        random features per head (None: FavorAttention's default), their kind
    qk_norm                       normalise queries and keys
    redraw_interval               optimiser steps between draws of the features (None: never)
    attention_class               import path of another attention with FavorAttention's interface, such as
                                  favorcast.forecasting.st_transformer.SoftmaxAttention
    local_attention               attend along time within each sensor too, not to all sensors alone; half the cost
    windows,                      time windows of the encoder's global attention, shifted by half a window
    use_shifted_time_window       in every second layer
    Layers
    activation                    "relu", "gelu" or "silu"
    normalization_type,           "layernorm" or "batchnorm", and whether encoder and decoder end with one
    final_norm
    data_dropout_embedding,       dropout on embeddings, on attention outputs, inside attention, in the
    dropout_attn, dropout_qkv,    feed-forward nets
    dropout_ff
    Training
    initial_lr                    AdamW's peak learning rate
    l2_regul_factor               AdamW's weight decay of matrices
    warmup_steps                  optimiser steps of linear warm-up
    num_training_steps            optimiser step at which a linear decay reaches 0 (None: no decay)
    decay_factor,                 after more than plateau_patience validations without a better val/loss,
    plateau_patience              multiply the rate by decay_factor
    loss, huber_delta             "mse", "mae" or "huber"; huber turns linear at huber_delta training stds
    Normalisation and linear part
    use_revin, use_global_norm    by each window's statistics (default) or by those of the training data
    global_mean, global_std       training mean and std when no datamodule offers them
    use_seasonal_decomp,          split off a moving-average trend of that many time steps
    decomposition_kernel_size
    linear_model,                 "none", "per_sensor", "shared" or "vector" (all sensors from all columns),
    linear_window                 reading that many past rows; None: by linear_window (0: none) and
                                  linear_shared_weights
    linear_fit                    "gradient": an autoregression, trained; "ridge": solved in closed form on the
                                  training rows, then frozen; "both": solved, then trained
    linear_shared_weights         one autoregression for all sensors instead of one for each
    decoder_reads_linear          give the decoder, for each step that it forecasts, what the linear part does
                                  (None: when that is solved in closed form)
    Strategy
    autoregressive_training       forecast step by step (see above) instead of all steps at once
    scheduled_sampling,           what the decoder reads in autoregressive training, and how slowly the truth
    scheduled_sampling_k          is withdrawn: half of it is left after k log k optimiser steps
    seed                          source of the random features
    ============================  =======================================================================

    Raises:
        ValueError: for an argument outside its range, naming it.

    Example:
        >>> model = SpatioTemporalPerformer_Forecaster(d_y_context=49, d_y_target=49, d_x=1, d_model=32)
        >>> model.predict(torch.rand(2, 40, 1), torch.randn(2, 40, 49), torch.rand(2, 20, 1)).shape
        torch.Size([2, 20, 49])
    """

    teacher_forcing_ratio: Tensor

    def __init__(
        self,
        d_y_context: int = 49,
        d_y_target: int = 49,
        d_x: int = 1,
        d_model: int = 128,
        *,
        null_value: float | None = None,
        mask_missing: bool = False,
        d_ff: int | None = None,
        n_heads: int = 4,
        d_q_k: int | None = None,
        d_v: int | None = None,
        n_encoder_layers: int = 2,
        n_decoder_layers: int = 2,
        patch_len: int = 1,
        start_len: int = 0,
        max_seq_len: int = 512,
        time_emb_dim: int = 8,
        time_embedding: bool = True,
        indicator_embedding: bool = True,
        position_embedding: PositionEmbedding = "learned",
        downsample_convs_embedding: int = 0,
        downsample_convs_block: int = 0,
        performer_attention_kernel: PerformerKernel = "softmax",
        num_features: int | None = None,
        features: str = "hyperbolic",
        qk_norm: bool = True,
        redraw_interval: int | None = None,
        local_attention: bool = True,
        windows: int = 1,
        use_shifted_time_window: bool = True,
        activation: Activation = "gelu",
        normalization_type: NormalizationType = "layernorm",
        final_norm: bool = True,
        data_dropout_embedding: float = 0.1,
        dropout_attn: float = 0.0,
        dropout_qkv: float = 0.0,
        dropout_ff: float = 0.2,
        initial_lr: float = 1e-3,
        l2_regul_factor: float = 1e-5,
        warmup_steps: int = 1000,
        num_training_steps: int | None = None,
        decay_factor: float = 0.8,
        plateau_patience: int = 2,
        loss: LossName = "mse",
        huber_delta: float = 1.0,
        use_revin: bool = True,
        use_global_norm: bool = False,
        global_mean: list[float] | Tensor | None = None,
        global_std: list[float] | Tensor | None = None,
        use_seasonal_decomp: bool = False,
        decomposition_kernel_size: int = 25,
        linear_model: LinearChoice | None = None,
        linear_window: int = 0,
        linear_fit: LinearFit = "gradient",
        linear_shared_weights: bool = False,
        decoder_reads_linear: bool | None = None,
        autoregressive_training: bool = False,
        scheduled_sampling: ScheduledSampling = "sequential",
        scheduled_sampling_k: float = 1000.0,
        attention_class: str = "favorcast.kernels.FavorAttention",
        seed: int = 0,
    ) -> None:
        arguments = dict(locals())
        super().__init__(
            d_x=d_x,
            d_y_context=d_y_context,
            d_y_target=d_y_target,
            learning_rate=initial_lr,
            l2_regul_factor=l2_regul_factor,
            loss=loss,
            linear_window=linear_window,
            linear_shared_weights=linear_shared_weights,
            use_seasonal_decomp=use_seasonal_decomp,
            use_revin=use_revin,
            num_training_steps=num_training_steps,
            use_global_norm=use_global_norm,
            global_mean=global_mean,
            global_std=global_std,
            null_value=null_value,
            huber_delta=huber_delta,
            decomposition_kernel_size=decomposition_kernel_size,
            warmup_steps=warmup_steps,
            decay_factor=decay_factor,
            plateau_patience=plateau_patience,
            linear_model=linear_model,
            linear_fit=linear_fit,
        )
        global_mean = global_mean.tolist() if isinstance(global_mean, Tensor) else global_mean
        global_std = global_std.tolist() if isinstance(global_std, Tensor) else global_std
        self.save_hyperparameters()
        check_strategy(autoregressive_training, scheduled_sampling, scheduled_sampling_k, normalization_type)
        if mask_missing and (downsample_convs_embedding or downsample_convs_block):
            raise ValueError(
                "mask_missing cannot be used with downsampling convolutions, which mix missing and other steps: "
                "set mask_missing=False, or downsample_convs_embedding=0 and downsample_convs_block=0"
            )
        if decoder_reads_linear and self.linear_model is None:
            raise ValueError("decoder_reads_linear=True needs a linear part: set linear_window, or leave it out")
        if decoder_reads_linear is None:
            arguments["decoder_reads_linear"] = isinstance(self.linear_model, ClosedFormLinear)
        self.mask_missing = mask_missing
        self.scheduled_sampling: ScheduledSampling = scheduled_sampling
        self.scheduled_sampling_k = scheduled_sampling_k
        self.redraw_interval = redraw_interval
        self.register_buffer(
            "teacher_forcing_ratio", torch.tensor(inverse_sigmoid_ratio(0, scheduled_sampling_k)), persistent=False
        )
        self.model = SpatioTemporalPerformer(
            attention_factory=attention_class_named(attention_class),
            **{name: arguments[name] for name in MODEL_OPTIONS},
        )
        if isinstance(self.linear_model, ClosedFormLinear):
            torch.nn.init.zeros_(self.model.head.weight)  # training starts at the linear forecast itself

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
        drift, before = baseline_increments(signal_offset, known.y[:, -1] if has_baseline else None, patch_len)
        if target_y is None:
            drifts = drift.split(patch_len, dim=1)
            signal = forecast_step_by_step(self.model, memory, known, lambda i, value: value + drifts[i])
        else:
            truth = pad_back(target_y, patch_len, torch.nan) + signal_offset.detach()
            given = TeacherInputs(truth, drift, self.teacher_forcing_ratio)
            signal = TRAINING_FORECASTS[self.scheduled_sampling](self.model, memory, known, given)
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
        """Set the random generators, the random features and the share of truth for this optimiser step.

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
