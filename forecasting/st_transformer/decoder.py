"""Decoder: target tokens and memory to forecast tokens, all steps at once or a few at a time.

Dimension key: b batch, t decoder steps, n target sensors, s memory steps, N context sensors, d model width.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .attention import LocalAttention, Memory
from .layer_config import LayerConfig


class LayerMemory(NamedTuple):
    """The memory as one layer's cross-attentions see it: states of a size that does not depend on its length."""

    local: Any
    joint: Any


class LayerState(NamedTuple):
    """What one layer's self-attentions have seen so far."""

    local: Any
    joint: Any


class DecoderLayer(nn.Module):
    """Update tokens by self-attention, attention to the memory and a feed-forward network, pre-norm and residual.

        x <- x + local_self(norm(x));            x <- x + global_self(norm(x));
        x <- x + local_cross(norm(x), memory);   x <- x + global_cross(norm(x), memory);   x <- x + ff(norm(x))

    Without local_attention the local updates are left out, and what stands for them in memories and states is None.

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
        self.local_self_attention: LocalAttention | None = None
        self.local_cross_attention: LocalAttention | None = None
        if config.local_attention:
            self.local_self_norm = config.build_norm()
            self.local_self_attention = config.build_local_attention(local_self_seed, is_causal=is_causal)
        self.global_self_norm = config.build_norm()
        self.global_self_attention = config.build_global_attention(
            global_self_seed, is_causal=is_causal, num_sensors=num_sensors
        )
        if config.local_attention:
            self.local_cross_norm = config.build_norm()
            self.local_cross_attention = config.build_local_attention(local_cross_seed)
        self.global_cross_norm = config.build_norm()
        self.global_cross_attention = config.build_global_attention(global_cross_seed)
        self.feed_forward_norm = config.build_norm()
        self.feed_forward = config.build_feed_forward()

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Map tokens (b, t, n, d) to (b, t, n, d)."""
        if self.local_self_attention is not None:
            tokens = tokens + self.local_self_attention(self.local_self_norm(tokens))
        tokens = tokens + self.global_self_attention(self.global_self_norm(tokens))
        if self.local_cross_attention is not None:
            tokens = tokens + self.local_cross_attention(
                self.local_cross_norm(tokens), memory.per_sensor, memory.per_sensor_padding
            )
        tokens = tokens + self.global_cross_attention(
            self.global_cross_norm(tokens), memory.joint, memory.joint_padding
        )
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))

    def summarize(self, memory: Memory) -> LayerMemory:
        """Reduce the memory to what `stream` reads of it."""
        local = self.local_cross_attention
        return LayerMemory(
            None if local is None else local.summarize(memory.per_sensor, memory.per_sensor_padding),
            self.global_cross_attention.summarize(memory.joint, memory.joint_padding),
        )

    def stream(self, tokens: Tensor, memory: LayerMemory, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Map the tokens (b, t, n, d) of the next t steps as forward maps all steps; causal layers only."""
        seen = (None, None) if state is None else state
        seen_local = None
        if self.local_self_attention is not None:
            local, seen_local = self.local_self_attention.stream(self.local_self_norm(tokens), seen[0])
            tokens = tokens + local
        joint, seen_joint = self.global_self_attention.stream(self.global_self_norm(tokens), seen[1])
        tokens = tokens + joint
        if self.local_cross_attention is not None:
            tokens = tokens + self.local_cross_attention.attend(self.local_cross_norm(tokens), memory.local)
        tokens = tokens + self.global_cross_attention.attend(self.global_cross_norm(tokens), memory.joint)
        return tokens + self.feed_forward(self.feed_forward_norm(tokens)), LayerState(seen_local, seen_joint)


class Decoder(nn.Module):
    """Apply decoder layers, then the final norm.

    A causal decoder gives the same output, up to rounding, for all steps at once and for a few steps at a time:

        decoder(tokens, memory) == cat(decoder.stream(first, summary), decoder.stream(rest, summary, states))

    Args:
        layers: the decoder layers.
        final_norm: normalisation of the result, or nn.Identity.
    """

    layers: Any  # nn.ModuleList of DecoderLayer

    def __init__(self, layers: Iterable[DecoderLayer], final_norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Map tokens (b, t, n, d) to (b, t, n, d)."""
        for layer in self.layers:
            tokens = layer(tokens, memory)
        return self.final_norm(tokens)

    def summarize(self, memory: Memory) -> list[LayerMemory]:
        """Reduce the memory to what `stream` reads of it, once for each layer."""
        return [layer.summarize(memory) for layer in self.layers]

    def stream(
        self, tokens: Tensor, memory: Sequence[LayerMemory], states: Sequence[LayerState] | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        """Map the tokens (b, t, n, d) of the next t steps to (b, t, n, d), at a cost independent of those before.

        Args:
            tokens: of whole time steps.
            memory: from `summarize`.
            states: from the call for the steps before; None at the start.
        """
        after = []
        for i, layer in enumerate(self.layers):
            tokens, state = layer.stream(tokens, memory[i], None if states is None else states[i])
            after.append(state)
        return self.final_norm(tokens), after
