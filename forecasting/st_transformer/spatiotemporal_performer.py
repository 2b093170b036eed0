"""SpatioTemporalPerformer: an encoder-decoder transformer over (time, sensor) tokens.

Dimension key: b batch, l context steps, n target steps, p patch_len, d_x time covariates, N sensors, d model width.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..flat_arguments import FieldsSignature, takes_fields_of
from .attention import Memory, TokenAttention, build_memory
from .decoder import Decoder, DecoderLayer, LayerMemory, LayerState
from .downsampling import DownsampleConv
from .embedding import TokenEmbedding
from .encoder import Encoder, EncoderLayer
from .patches import from_patches, pad_back, pad_front, patch_count, to_patches
from .performer_config import PerformerConfig
from .position import LearnedPosition, PeriodicPosition
from .time_windows import TimeWindows
from .window_shapes import check_context, check_target

HEAD_STD = 0.02


class SpatioTemporalPerformer(nn.Module):
    """Forecast sensors by attention over all (time, sensor) tokens.

    Every value of every sensor is one token (Grigsby et al. 2021, Spacetimeformer); with patch_len = p every p values
    in a row are (Nie et al. 2023, PatchTST), and what is said of steps below holds for patches. The encoder alternates
    local attention (along time, within a sensor) and global attention (all sensors, all steps) over the context. The
    decoder does the same over its own steps and attends to the encoder's output, again locally and globally. The
    attention is FAVOR+ (Choromanski et al. 2021), whose cost is linear in the number of tokens. Tokens are time-major:
    flat index = time * N + sensor.

    The first `start_len` decoder steps repeat the end of the context, the others are placeholders (value 0, not
    given): target values never enter. With `autoregressive_training` they do, and the decoder's self-attention hides
    later steps: the output of a step depends on the decoder's inputs up to and including that step, so a caller who
    trains with the truth shifts it by one step. What is learned then is the change: a forecast is the value read at its
    step (0 where missing) plus the output of the head, and an untrained model repeats the last value. Batch norm in
    training mode still mixes steps in its statistics.

    Its arguments are the fields of PerformerConfig.

    Raises:
        ValueError: see PerformerConfig.

    Example:
        >>> model = SpatioTemporalPerformer(d_y_context=49, d_y_target=49, d_x=1, d_model=32)
        >>> context_x, context_y = torch.rand(2, 40, 1), torch.randn(2, 40, 49)
        >>> target_x, target_y = torch.rand(2, 20, 1), torch.full((2, 20, 49), torch.nan)
        >>> model(context_x, context_y, target_x, target_y).shape
        torch.Size([2, 20, 49])
    """

    __signature__ = FieldsSignature()

    @takes_fields_of(PerformerConfig)
    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__()
        config = PerformerConfig(*args, **arguments)
        self.config = config
        seeds = attention_seeds(config.seed)
        self.embedding = build_embedding(config)
        self.downsampling = nn.Sequential(
            *(
                DownsampleConv(config.d_model, activation=config.activation)
                for _ in range(config.downsample_convs_embedding)
            )
        )
        self.encoder = build_encoder(config, seeds)
        self.decoder = build_decoder(config, seeds)
        if config.autoregressive_training:
            check_streaming(self.decoder)
        self.head = nn.Linear(config.d_model, config.patch_len)
        # Forecasts start near 0, the mean of normalised data, so that a linear model beside this one leads at first.
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        context_x: Tensor,
        context_y: Tensor,
        target_x: Tensor,
        target_y: Tensor,
        *,
        context_padding_mask: Tensor | None = None,
        linear_forecast: Tensor | None = None,
    ) -> Tensor:
        """Forecast the first d_y_target sensors, (b, n, d_y_target).

        NaN in `context_y` or `target_y` means not given.

        Args:
            context_x: (b, l, d_x) time covariates of the context.
            context_y: (b, l, d_y_context) sensor values.
            target_x: (b, s + n, d_x) time covariates of the last s context steps and the targets; s is start_len,
                rounded up to whole patches.
            target_y: (b, s + n, d_y_target) sensor values of the same steps; only the first s are read unless
                `autoregressive_training` is on.
            context_padding_mask: (b, l, d_y_context) bool, True = ignore: attention does not see a token all of whose
                values are ignored.
            linear_forecast: (b, n, d_y_target) for decoder_reads_linear: what the decoder is given for the targets.

        Raises:
            ValueError: shapes that do not fit together, or more steps than max_seq_len.
        """
        config = self.config
        check_context(config, context_x, context_y, context_padding_mask)
        check_target(config, len(context_y), target_x, target_y)
        start_len, patch_len = config.start_steps, config.patch_len
        if target_y.shape[1] <= start_len:
            raise ValueError(
                f"target_x and target_y must have start_len + n steps with n >= 1: got {target_y.shape[1]} steps, "
                f"start_len={start_len}"
            )
        if not config.autoregressive_training:
            placeholders = torch.full_like(target_y[:, start_len:], torch.nan)
            target_y = torch.cat((target_y[:, :start_len], placeholders), dim=1)
        if linear_forecast is not None:
            before = linear_forecast.new_zeros(len(linear_forecast), start_len, config.d_y_target)
            linear_forecast = pad_back(torch.cat((before, linear_forecast), dim=1), patch_len)
        memory = self.encode(context_x, context_y, context_padding_mask)
        # The decoder continues the encoder's count of positions, so start steps have their place in the context.
        start = patch_count(context_y.shape[1], patch_len) - start_len // patch_len
        forecast = self.decode(
            memory, pad_back(target_x, patch_len), pad_back(target_y, patch_len, torch.nan), start, linear_forecast
        )
        return forecast[:, start_len : target_y.shape[1]]

    def encode(self, context_x: Tensor, context_y: Tensor, context_padding_mask: Tensor | None = None) -> Memory:
        """Encode a context into what the decoder attends to; arguments as in forward, checked there."""
        patch_len = self.config.patch_len
        context_x, context_y = pad_front(context_x, patch_len), pad_front(context_y, patch_len, torch.nan)
        padding = None
        if context_padding_mask is not None:
            padding = to_patches(pad_front(context_padding_mask, patch_len, True), patch_len).all(dim=-1)
        tokens = self.encoder(self.downsampling(self.embedding(context_x, context_y)), padding)
        return build_memory(tokens, self.config.d_y_target, padding)

    def decode(self, memory: Memory, x: Tensor, y: Tensor, start: int, linear: Tensor | None = None) -> Tensor:
        """Decode t steps at once, (b, t, d_y_target).

        Args:
            memory: from `encode`.
            x: (b, t, d_x) time covariates of the steps, whole patches.
            y: (b, t, d_y_target) what the decoder reads at each step; NaN means not given.
            start: position of the first patch, counted from the start of the context.
            linear: (b, t, d_y_target) what the linear part forecasts for each step; None for 0.
        """
        return self._read_out(self.decoder(self.embedding(x, y, start, linear), memory), y)

    def summarize(self, memory: Memory) -> list[LayerMemory]:
        """Reduce the memory to what `stream` reads of it, once for each decoder layer."""
        return self.decoder.summarize(memory)

    def stream(
        self,
        memory: Sequence[LayerMemory],
        x: Tensor,
        y: Tensor,
        start: int,
        states: Sequence[LayerState] | None = None,
        linear: Tensor | None = None,
    ) -> tuple[Tensor, list[LayerState]]:
        """Decode the next t steps after those behind `states`, at a cost that does not depend on how many these are.

        Over all calls together this is `decode`, up to rounding; it needs autoregressive_training.

        Args:
            memory: from `summarize`.
            x, y, start, linear: as in `decode`, of these steps alone.
            states: from the call before; None at the start.

        Returns:
            (forecast (b, t, d_y_target), states after these steps).
        """
        tokens, states = self.decoder.stream(self.embedding(x, y, start, linear), memory, states)
        return self._read_out(tokens, y), states

    def _read_out(self, tokens: Tensor, y: Tensor) -> Tensor:
        output = self.head(tokens)  # (b, t / p, n, p)
        if self.config.autoregressive_training:
            last = to_patches(y, self.config.patch_len)[..., -1:]
            output = output + torch.where(last.isnan(), 0.0, last)
        return from_patches(output)


def attention_seeds(seed: int) -> Iterator[int]:
    """Derive an endless sequence of seeds from one."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield int(torch.randint(2**62, (), generator=generator))


def build_embedding(config: PerformerConfig) -> TokenEmbedding:
    """Build the embedding that encoder and decoder share."""
    position = LearnedPosition if config.position_embedding == "learned" else PeriodicPosition
    return TokenEmbedding(config, position(config.d_model, config.max_positions))


def build_encoder(config: PerformerConfig, seeds: Iterator[int]) -> Encoder:
    """Build the encoder, taking from `seeds` what its attentions need."""
    layers, convs = [], []
    for index in range(config.n_encoder_layers):
        is_shifted = config.use_shifted_time_window and config.windows > 1 and index % 2 == 1
        windows = TimeWindows(config.windows, is_shifted)
        layers.append(EncoderLayer(config, [next(seeds), next(seeds)], windows=windows))
        has_conv = index < config.downsample_convs_block
        convs.append(DownsampleConv(config.d_model, activation=config.activation) if has_conv else nn.Identity())
    return Encoder(layers, convs, config.build_norm() if config.final_norm else nn.Identity())


def build_decoder(config: PerformerConfig, seeds: Iterator[int]) -> Decoder:
    """Build the decoder, taking from `seeds` what its attentions need."""
    layers = [
        DecoderLayer(
            config,
            [next(seeds), next(seeds), next(seeds), next(seeds)],
            num_sensors=config.d_y_target,
            is_causal=config.autoregressive_training,
        )
        for _ in range(config.n_decoder_layers)
    ]
    return Decoder(layers, config.build_norm() if config.final_norm else nn.Identity())


def check_streaming(decoder: Decoder) -> None:
    """Raise unless every attention of the decoder can be continued step by step."""
    for module in decoder.modules():
        if not isinstance(module, TokenAttention):
            continue
        missing = [name for name in ("summarize", "attend", "stream") if not hasattr(module.attention, name)]
        if missing:
            raise ValueError(
                "autoregressive_training decodes step by step, with the attention's methods summarize, attend and "
                f"stream: {type(module.attention).__name__} has no {', '.join(missing)}; give it these methods (see "
                "FavorAttention), or build the model with autoregressive_training=False"
            )
