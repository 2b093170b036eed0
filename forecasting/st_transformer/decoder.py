"""Decoder: target tokens and memory to forecast tokens.

Dimension key: b batch, t decoder steps, n target sensors, s memory steps, N context sensors, d model width.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from .attention import Memory
from .layer_config import LayerConfig


class DecoderLayer(nn.Module):
    """Update tokens by self-attention, attention to the memory and a feed-forward network, pre-norm and residual.

        x <- x + local_self(norm(x));            x <- x + global_self(norm(x));
        x <- x + local_cross(norm(x), memory);   x <- x + global_cross(norm(x), memory);   x <- x + ff(norm(x))

    Args:
        config: widths, rates and kinds.
        seeds: one seed for the random features of each of the `num_attentions` attentions.
        num_sensors: target sensors n.
        is_causal: whether self-attention hides later time steps; the sensors of one step always see each other.
    """

    num_attentions = 4

    def __init__(self, config: LayerConfig, seeds: Iterable[int], *, num_sensors: int, is_causal: bool = False) -> None:
        super().__init__()
        local_self_seed, global_self_seed, local_cross_seed, global_cross_seed = seeds
        self.local_self_norm = config.build_norm()
        self.local_self_attention = config.build_local_attention(local_self_seed, is_causal=is_causal)
        self.global_self_norm = config.build_norm()
        self.global_self_attention = config.build_global_attention(
            global_self_seed, is_causal=is_causal, num_sensors=num_sensors
        )
        self.local_cross_norm = config.build_norm()
        self.local_cross_attention = config.build_local_attention(local_cross_seed)
        self.global_cross_norm = config.build_norm()
        self.global_cross_attention = config.build_global_attention(global_cross_seed)
        self.feed_forward_norm = config.build_norm()
        self.feed_forward = config.build_feed_forward()

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Map tokens (b, t, n, d) to (b, t, n, d)."""
        tokens = tokens + self.local_self_attention(self.local_self_norm(tokens))
        tokens = tokens + self.global_self_attention(self.global_self_norm(tokens))
        tokens = tokens + self.local_cross_attention(
            self.local_cross_norm(tokens), memory.per_sensor, memory.per_sensor_padding
        )
        tokens = tokens + self.global_cross_attention(
            self.global_cross_norm(tokens), memory.joint, memory.joint_padding
        )
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class Decoder(nn.Module):
    """Apply decoder layers, then the final norm.

    Args:
        layers: the decoder layers.
        final_norm: normalisation of the result, or nn.Identity.
    """

    def __init__(self, layers: Iterable[nn.Module], final_norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Map tokens (b, t, n, d) to (b, t, n, d)."""
        for layer in self.layers:
            tokens = layer(tokens, memory)
        return self.final_norm(tokens)
