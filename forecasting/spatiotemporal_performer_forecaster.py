"""The SpatioTemporalPerformer as a Forecaster.

b batch, l context_len, n target_len; d_x covariates, d_y_context and d_y_target sensors (targets are the first columns)
"""

from typing import Any

import torch
from torch import Tensor

from ..kernels import FavorAttention
from .forecaster import Forecaster
from .losses import LossName
from .st_transformer import SpatioTemporalPerformer
from .st_transformer.feed_forward import Activation
from .st_transformer.layer_config import PerformerKernel
from .st_transformer.performer_config import PositionEmbedding
from .st_transformer.token_norm import NormalizationType


class SpatioTemporalPerformer_Forecaster(Forecaster):
    """Forecast sensors with a SpatioTemporalPerformer, all steps of the horizon at once.

    The decoder reads the last `start_len` context steps followed by n placeholders; no target value enters it.

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
    start_len                     context steps repeated at the start of the decoder's input
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
    linear_window,                autoregression over that many past values (0: none), shared by sensors
    linear_shared_weights
    Other
    autoregressive_training       build a step-causal decoder; forecasting with it is not implemented
    scheduled_sampling_k          speed of its scheduled sampling, see `inverse_sigmoid_ratio`
    seed                          source of the random features
    ============================  =======================================================================

    Raises:
        ValueError: for an argument outside its range, naming it.

    Example:
        >>> model = SpatioTemporalPerformer_Forecaster(d_y_context=49, d_y_target=49, d_x=1, d_model=32)
        >>> model.predict(torch.rand(2, 40, 1), torch.randn(2, 40, 49), torch.rand(2, 20, 1)).shape
        torch.Size([2, 20, 49])
    """

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
        linear_window: int = 0,
        linear_shared_weights: bool = False,
        autoregressive_training: bool = False,
        scheduled_sampling_k: float = 1000.0,
        seed: int = 0,
    ) -> None:
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
        )
        global_mean = global_mean.tolist() if isinstance(global_mean, Tensor) else global_mean
        global_std = global_std.tolist() if isinstance(global_std, Tensor) else global_std
        self.save_hyperparameters()
        if not scheduled_sampling_k > 0:
            raise ValueError(f"scheduled_sampling_k must be positive: got {scheduled_sampling_k}")
        if mask_missing and (downsample_convs_embedding or downsample_convs_block):
            raise ValueError(
                "mask_missing cannot be used with downsampling convolutions, which mix missing and other steps: "
                "set mask_missing=False, or downsample_convs_embedding=0 and downsample_convs_block=0"
            )
        self.mask_missing = mask_missing
        self.scheduled_sampling_k = scheduled_sampling_k
        self.redraw_interval = redraw_interval
        self.model = SpatioTemporalPerformer(
            d_y_context,
            d_y_target,
            d_x,
            d_model=d_model,
            d_ff=d_ff,
            n_heads=n_heads,
            d_q_k=d_q_k,
            d_v=d_v,
            n_encoder_layers=n_encoder_layers,
            n_decoder_layers=n_decoder_layers,
            start_len=start_len,
            max_seq_len=max_seq_len,
            time_emb_dim=time_emb_dim,
            time_embedding=time_embedding,
            indicator_embedding=indicator_embedding,
            position_embedding=position_embedding,
            downsample_convs_embedding=downsample_convs_embedding,
            downsample_convs_block=downsample_convs_block,
            performer_attention_kernel=performer_attention_kernel,
            num_features=num_features,
            features=features,
            qk_norm=qk_norm,
            redraw_interval=redraw_interval,
            windows=windows,
            use_shifted_time_window=use_shifted_time_window,
            activation=activation,
            normalization_type=normalization_type,
            final_norm=final_norm,
            data_dropout_embedding=data_dropout_embedding,
            dropout_attn=dropout_attn,
            dropout_qkv=dropout_qkv,
            dropout_ff=dropout_ff,
            autoregressive_training=autoregressive_training,
            seed=seed,
        )

    def forward_model_pass(
        self, context_x: Tensor, context_y: Tensor, target_x: Tensor, target_y: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Forecast in model units, (b, n, d_y_target); `target_y` is not used.

        Raises:
            ValueError: when the context is shorter than start_len or the window longer than max_seq_len.
            NotImplementedError: with autoregressive_training.
        """
        config = self.model.config
        if config.autoregressive_training:
            raise NotImplementedError(
                "forecasting with autoregressive_training=True is not implemented yet: build the model with "
                "autoregressive_training=False, which forecasts the whole horizon at once"
            )
        context_len, target_len = context_y.shape[1], target_x.shape[1]
        if context_len < config.start_len:
            raise ValueError(
                f"the context must hold start_len time steps: expected at least {config.start_len}, got {context_len}; "
                "lengthen context_len or shorten start_len"
            )
        start_y = context_y[:, context_len - config.start_len :, : config.d_y_target]
        start_x = context_x[:, context_len - config.start_len :]
        placeholders = start_y.new_full((len(start_y), target_len, config.d_y_target), torch.nan)
        return self.model(
            context_x,
            context_y,
            torch.cat((start_x, target_x), dim=1),
            torch.cat((start_y, placeholders), dim=1),
            context_padding_mask=context_y.isnan() if self.mask_missing else None,
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw new random features when `redraw_interval` optimiser steps have passed."""
        if self.redraw_interval is None:
            return
        for module in self.modules():
            if isinstance(module, FavorAttention):
                module.redraw_if_due(self.global_step)
