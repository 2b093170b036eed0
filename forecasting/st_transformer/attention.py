"""Local and global attention over (time, sensor) tokens.

Dimension key: b batch, t query steps, s key steps, n query sensors, N key sensors, d model width.
Tokens are time-major, (b, t, n, d). The inner attention is any module with the interface of
`favorcast.kernels.FavorAttention`, batch first: forward(query, key, value, key_padding_mask=None) -> (output, None).
A padding mask is laid out like the keys; True = ignore this key.
"""

from typing import NamedTuple

from torch import Tensor, nn


def per_sensor(x: Tensor) -> Tensor:
    """Lay out x (b, t, n, ...) as one time series for each sensor, (b * n, t, ...); one copy when n > 1."""
    return x.transpose(1, 2).flatten(0, 1)


def joint(x: Tensor) -> Tensor:
    """Lay out x (b, t, n, ...) as one time-major sequence, (b, t * n, ...); no copy."""
    return x.flatten(1, 2)


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


class LocalAttention(nn.Module):
    """Attend along time within each sensor.

    Args:
        attention: the inner attention; causal with tokens_per_step=1 where steps must not see later ones.
        dropout: dropout rate on what queries, keys and values are projected from; in self-attention they share a mask.
    """

    def __init__(self, attention: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = attention
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, memory: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Map tokens (b, t, n, d) to (b, t, n, d).

        Args:
            tokens: the queries, and the keys and values when `memory` is None.
            memory: (b * n, s, d) keys and values of each query sensor.
            padding: (b * n, s) keys to ignore.
        """
        query = self.dropout(per_sensor(tokens))
        key = query if memory is None else self.dropout(memory)
        output, _ = self.attention(query, key, key, key_padding_mask=padding)
        return output.unflatten(0, (-1, tokens.shape[2])).transpose(1, 2)


class GlobalAttention(nn.Module):
    """Attend to all sensors at all time steps.

    Args:
        attention: the inner attention; causal with tokens_per_step=n where steps must not see later ones.
        dropout: dropout rate on what queries, keys and values are projected from; in self-attention they share a mask.
    """

    def __init__(self, attention: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = attention
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, memory: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Map tokens (b, t, n, d) to (b, t, n, d).

        Args:
            tokens: the queries, and the keys and values when `memory` is None.
            memory: (b, s * N, d) keys and values.
            padding: (b, s * N) keys to ignore.
        """
        query = self.dropout(joint(tokens))
        key = query if memory is None else self.dropout(memory)
        output, _ = self.attention(query, key, key, key_padding_mask=padding)
        return output.view(tokens.shape)
