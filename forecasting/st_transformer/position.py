"""Position embeddings: one vector for each patch (a time step where patch_len is 1), shared by all sensors.

Dimension key: t patches, d model width.
Positions count patches from the start of the context; the decoder continues the count.
"""

import math

import torch
from torch import Tensor, nn

from .time2vec import Time2Vec

TABLE_STD = 0.5
"""Initial size of the learned tables: that of the other terms of a token. Much smaller ones learn much more slowly."""


class LearnedPosition(nn.Module):
    """Look positions up in a learned table of `max_seq_len` rows.

    Raises:
        ValueError: in forward, when a position is not in the table.
    """

    def __init__(self, d_model: int, max_seq_len: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_seq_len, d_model).normal_(std=TABLE_STD))

    def forward(self, start: int, length: int) -> Tensor:
        """Return the embeddings (t, d) of positions start, ..., start + length - 1."""
        max_seq_len = self.table.shape[0]
        if start + length > max_seq_len:
            raise ValueError(
                f"max_seq_len must cover context and target steps: expected at least {start + length}, "
                f"got {max_seq_len}; raise max_seq_len or use position_embedding='periodic'"
            )
        return self.table[start : start + length]


class PeriodicPosition(nn.Module):
    """Embed positions as Time2Vec of the step index, followed by a linear map; any length is accepted.

    The initial periods are spaced geometrically from 2 steps to `max_seq_len` steps and learned from there; the
    linear component starts as position / max_seq_len.
    """

    def __init__(self, d_model: int, max_seq_len: int) -> None:
        super().__init__()
        self.time2vec = Time2Vec(1, d_model)
        self.projection = nn.Linear(d_model, d_model)
        with torch.no_grad():
            periods = torch.logspace(math.log10(2), math.log10(max(max_seq_len, 2)), d_model - 1)
            self.time2vec.weight[0, 0] = 1.0 / max_seq_len
            self.time2vec.weight[0, 1:] = 2.0 * math.pi / periods

    def forward(self, start: int, length: int) -> Tensor:
        """Return the embeddings (t, d) of positions start, ..., start + length - 1."""
        weight = self.time2vec.weight
        positions = torch.arange(start, start + length, device=weight.device, dtype=weight.dtype)
        return self.projection(self.time2vec(positions.unsqueeze(-1)))
