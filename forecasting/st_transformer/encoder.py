"""Encoder: context tokens to memory.

Dimension key: b batch, t time steps, N sensors, d model width, w windows.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from .attention import LocalAttention, joint, per_sensor
from .layer_config import LayerConfig
from .time_windows import TimeWindows


class EncoderLayer(nn.Module):
    """Update tokens by local attention, global attention and a feed-forward network, each pre-norm and residual.

        x <- x + local(norm(x));   x <- x + global(norm(x));   x <- x + ff(norm(x))

    Without local_attention the first update is left out.

    Args:
        config: widths, rates and kinds.
        seeds: one seed for the random features of each of the `num_attentions` attentions.
        windows: cuts the time axis for the global attention.
    """

    num_attentions = 2

    def __init__(self, config: LayerConfig, seeds: Iterable[int], *, windows: TimeWindows | None = None) -> None:
        super().__init__()
        local_seed, global_seed = seeds
        self.local_attention: LocalAttention | None = None
        if config.local_attention:
            self.local_norm = config.build_norm()
            self.local_attention = config.build_local_attention(local_seed)
        self.global_norm = config.build_norm()
        self.global_attention = config.build_global_attention(global_seed)
        self.feed_forward_norm = config.build_norm()
        self.feed_forward = config.build_feed_forward()
        self.windows = TimeWindows() if windows is None else windows

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Map tokens (b, t, N, d) to (b, t, N, d), ignoring the keys where padding (b, t, N) is True."""
        if self.local_attention is not None:
            local_padding = None if padding is None else per_sensor(padding)
            tokens = tokens + self.local_attention(self.local_norm(tokens), padding=local_padding)

        window_padding = None if padding is None else joint(self.windows.split(padding))
        windowed = self.windows.split(self.global_norm(tokens))  # (b * w, t / w, N, d)
        tokens = tokens + self.windows.merge(self.global_attention(windowed, padding=window_padding))

        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class Encoder(nn.Module):
    """Apply encoder layers, each followed by a convolution that halves time or by nothing, then the final norm.

    Args:
        layers: the encoder layers.
        convs: one module for each layer, applied after it: DownsampleConv or nn.Identity.
        final_norm: normalisation of the result, or nn.Identity.
    """

    def __init__(self, layers: Iterable[nn.Module], convs: Iterable[nn.Module], final_norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.convs = nn.ModuleList(convs)
        self.final_norm = final_norm

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Map tokens (b, t, N, d) to memory (b, s, N, d); padding (b, t, N) needs s = t."""
        for layer, conv in zip(self.layers, self.convs, strict=True):
            tokens = conv(layer(tokens, padding))
        return self.final_norm(tokens)
