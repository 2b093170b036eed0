"""All hyper-parameters of a SpatioTemporalPerformer, checked once."""

from dataclasses import dataclass
from typing import Literal, get_args

from .argument_checks import require_at_least, require_choice, require_probability
from .layer_config import LayerConfig
from .patches import patch_count

PositionEmbedding = Literal["learned", "periodic"]


@dataclass(frozen=True)
class SensorWidths:
    """Numbers of columns, in the order in which the model and its forecaster take them by position.

    Args:
        d_y_context: context columns; the first `d_y_target` of them are the targets.
        d_y_target: columns to forecast.
        d_x: time covariates; 0 is allowed when `time_embedding` is off.
    """

    d_y_context: int = 49
    d_y_target: int = 49
    d_x: int = 1

    def __post_init__(self) -> None:
        require_at_least(1, d_y_target=self.d_y_target)
        require_at_least(0, d_x=self.d_x)
        if self.d_y_context < self.d_y_target:
            raise ValueError(
                f"d_y_context must be at least d_y_target, because the targets are the first context columns: "
                f"got d_y_context={self.d_y_context}, d_y_target={self.d_y_target}"
            )


@dataclass(frozen=True, kw_only=True)
class PerformerConfig(LayerConfig, SensorWidths):
    """Hyper-parameters of the model; those of its layers are inherited from LayerConfig.

    Args:
        n_encoder_layers: encoder layers.
        n_decoder_layers: decoder layers.
        patch_len: steps of a sensor in one token, which is then one step of positions, windows and causality; 1: every
            value is a token. Cost falls by as much.
        start_len: context steps repeated at the start of the decoder's input, rounded up to whole patches.
        max_seq_len: learned positions: the largest context_len + target_len; periodic positions: the longest initial
            period.
        time_emb_dim: Time2Vec components for each time covariate.
        time_embedding: whether tokens carry the time covariates; when off, x is ignored.
        indicator_embedding: whether tokens tell given values from missing ones.
        position_embedding: "learned" (a table) or "periodic" (Time2Vec of the step, any length).
        downsample_convs_embedding: convolutions that halve the context before the encoder.
        downsample_convs_block: convolutions that halve the context between encoder layers, after the first ones.
        windows: number of time windows within which the encoder's global attention stays.
        use_shifted_time_window: shift the windows of every second encoder layer by half a window.
        data_dropout_embedding: dropout rate on the embedding sums; plain dropout, despite its name.
        final_norm: whether encoder and decoder end with a normalisation.
        decoder_reads_linear: give the decoder, for each step that it forecasts, what the linear part does; None: when
            a forecaster's linear part is solved in closed form.
        autoregressive_training: forecast step by step, by a decoder that reads target values and is causal over time
            steps, instead of all steps at once.
        seed: source of the random features; each attention gets a seed of its own derived from it. Parameters are
            drawn from torch's global generator.

    Raises:
        ValueError: a value outside its range, an unknown name, or values that do not fit together.
    """

    n_encoder_layers: int = 2
    n_decoder_layers: int = 2
    patch_len: int = 1
    start_len: int = 0
    max_seq_len: int = 512
    time_emb_dim: int = 8
    time_embedding: bool = True
    indicator_embedding: bool = True
    position_embedding: PositionEmbedding = "learned"
    downsample_convs_embedding: int = 0
    downsample_convs_block: int = 0
    windows: int = 1
    use_shifted_time_window: bool = True
    data_dropout_embedding: float = 0.1
    final_norm: bool = True
    decoder_reads_linear: bool | None = None
    autoregressive_training: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for part in (LayerConfig, SensorWidths):
            part.__post_init__(self)
        for name in ("n_encoder_layers", "n_decoder_layers", "max_seq_len", "windows", "patch_len"):
            require_at_least(1, **{name: getattr(self, name)})
        for name in ("start_len", "downsample_convs_embedding", "downsample_convs_block"):
            require_at_least(0, **{name: getattr(self, name)})
        if self.time_embedding:
            require_at_least(1, d_x=self.d_x, time_emb_dim=self.time_emb_dim)
        if self.position_embedding == "periodic":
            require_at_least(2, d_model=self.d_model, max_seq_len=self.max_seq_len)
        require_choice("position_embedding", self.position_embedding, get_args(PositionEmbedding))
        require_probability(data_dropout_embedding=self.data_dropout_embedding)
        if self.downsample_convs_block >= self.n_encoder_layers:
            raise ValueError(
                f"downsample_convs_block must be smaller than n_encoder_layers, because its convolutions stand between "
                f"layers: got {self.downsample_convs_block} for {self.n_encoder_layers} encoder layers"
            )

    @property
    def start_steps(self) -> int:
        """Return start_len in whole patches, counted in steps."""
        return patch_count(self.start_len, self.patch_len) * self.patch_len

    @property
    def max_positions(self) -> int:
        """Return the tokens of a sensor in the longest window: the context and the horizon may each end in a part."""
        return self.max_seq_len if self.patch_len == 1 else patch_count(self.max_seq_len, self.patch_len) + 1
