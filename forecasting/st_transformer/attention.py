"""Local and global attention over (time, sensor) tokens.

Dimension key: b batch, t query steps, s key steps, n query sensors, N key sensors, d model width.
Tokens are time-major, (b, t, n, d). The inner attention is any module with the interface of
`favorcast.kernels.FavorAttention`, batch first: forward(query, key, value, key_padding_mask=None) -> (output, None);
for decoding step by step also summarize, attend and stream. What a state looks like is its own affair.
A padding mask is laid out like the keys; True = ignore this key.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from einops import rearrange
from torch import Tensor, nn


def per_sensor(x: Tensor) -> Tensor:
    """Lay out x (b, t, n, ...) as one time series for each sensor, (b * n, t, ...); one copy when n > 1."""
    return rearrange(x, "b t n ... -> (b n) t ...")


def joint(x: Tensor) -> Tensor:
    """Lay out x (b, t, n, ...) as one time-major sequence, (b, t * n, ...); no copy."""
    return rearrange(x, "b t n ... -> b (t n) ...")


class Memory(NamedTuple):
    """What the decoder attends to: the encoder's tokens, laid out once for all decoder layers."""

    per_sensor: Tensor  # (b * n, s, d): the sensors that the decoder forecasts
    joint: Tensor  # (b, s * N, d): all sensors
    per_sensor_padding: Tensor | None = None  # (b * n, s)
    joint_padding: Tensor | None = None  # (b, s * N)


def build_memory(tokens: Tensor, num_sensors: int, padding: Tensor | None = None) -> Memory:
    """Lay out tokens (b, s, N, d) and padding (b, s, N) of the encoder for a decoder of `num_sensors` = n <= N."""
    own = tokens[:, :, :num_sensors]
    if padding is None:
        return Memory(per_sensor(own), joint(tokens))
    return Memory(per_sensor(own), joint(tokens), per_sensor(padding[:, :, :num_sensors]), joint(padding))


class TokenAttention(nn.Module, ABC):
    """Attend over tokens laid out as sequences, in one call or continued step by step.

    Args:
        attention: the inner attention; causal where steps must not see later ones.
        dropout: dropout rate on what queries, keys and values are projected from; in self-attention they share a mask.
    """

    attention: Any

    def __init__(self, attention: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = attention
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def lay_out(self, tokens: Tensor) -> Tensor:
        """Lay out tokens (b, t, n, d) as sequences."""

    @abstractmethod
    def lay_back(self, sequences: Tensor, tokens: Tensor) -> Tensor:
        """Undo lay_out, to the shape of tokens."""

    def forward(self, tokens: Tensor, memory: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Map tokens (b, t, n, d) to (b, t, n, d).

        Args:
            tokens: the queries, and the keys and values when `memory` is None.
            memory: keys and values as sequences.
            padding: keys to ignore, (sequences, s).
        """
        query = self.dropout(self.lay_out(tokens))
        key = query if memory is None else self.dropout(memory)
        output, _ = self.attention(query, key, key, key_padding_mask=padding)
        return self.lay_back(output, tokens)

    def summarize(self, memory: Tensor, padding: Tensor | None = None) -> Any:
        """Reduce a memory to the state that `attend` reads."""
        key = self.dropout(memory)
        return self.attention.summarize(key, key, padding)

    def attend(self, tokens: Tensor, state: Any) -> Tensor:
        """Let tokens (b, t, n, d) read a summarised memory."""
        return self.lay_back(self.attention.attend(self.dropout(self.lay_out(tokens)), state), tokens)

    def stream(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Continue causal self-attention by the steps of tokens (b, t, n, d); return the output and the new state."""
        query = self.dropout(self.lay_out(tokens))
        output, state = self.attention.stream(query, query, query, state)
        return self.lay_back(output, tokens), state


class LocalAttention(TokenAttention):
    """Attend along time within each sensor; sequences are (b * n, t, d), causal ones with tokens_per_step=1."""

    def lay_out(self, tokens: Tensor) -> Tensor:
        """Lay out each sensor's tokens as one sequence."""
        return per_sensor(tokens)

    def lay_back(self, sequences: Tensor, tokens: Tensor) -> Tensor:
        """Undo lay_out."""
        return rearrange(sequences, "(b n) t d -> b t n d", n=tokens.shape[2])


class GlobalAttention(TokenAttention):
    """Attend to all sensors at all time steps; sequences are (b, t * n, d), causal ones with tokens_per_step=n."""

    def lay_out(self, tokens: Tensor) -> Tensor:
        """Lay out all tokens of a sample as one sequence."""
        return joint(tokens)

    def lay_back(self, sequences: Tensor, tokens: Tensor) -> Tensor:
        """Undo lay_out."""
        return rearrange(sequences, "b (t n) d -> b t n d", n=tokens.shape[2])
