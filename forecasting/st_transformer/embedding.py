"""Token embedding: one token for every (time step, sensor) pair.

Dimension key: b batch, t time steps, N sensors, d model width, d_x time covariates.
Tokens are time-major: (b, t, N, d), flat index = time * N + sensor.
"""

import torch
from torch import Tensor, nn

from .position import TABLE_STD
from .time2vec import Time2Vec


class TokenEmbedding(nn.Module):
    """Embed sensor values and time covariates.

        token[t, n] = A [y[t, n], given[t, n]] + B Time2Vec(x[t]) + position[t] + variable[n]

    given = 0 where y is NaN; the value is then taken as 0. A linear map of the concatenation [Time2Vec(x); y] is the
    sum of the first two terms; split this way, the time part is computed once per step instead of once per token.
    The two "given" embeddings of Spacetimeformer (Grigsby et al. 2021) are the bias of A, and that bias plus
    the column of A belonging to `given`.

    The encoder and the decoder share one embedding, so a sensor or a time step looks the same to both.

    Args:
        d_y: number of sensors N.
        d_x: number of time covariates; 0 is allowed when `time_emb_dim` is 0.
        d_model: token width d.
        position: module mapping (start, length) to (t, d).
        time_emb_dim: Time2Vec components for each covariate; 0 removes the time term, x is then ignored.
        indicator_embedding: whether tokens know if they are given; when off, a missing value looks like the value 0.
        dropout: dropout rate on the sum (called data_dropout_embedding in the model; it drops no data).
    """

    def __init__(
        self,
        d_y: int,
        d_x: int,
        d_model: int,
        position: nn.Module,
        *,
        time_emb_dim: int = 8,
        indicator_embedding: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.observation = nn.Linear(2 if indicator_embedding else 1, d_model)
        self.variable = nn.Parameter(torch.empty(d_y, d_model).normal_(std=TABLE_STD))
        self.position = position
        self.indicator_embedding = indicator_embedding
        self.time: nn.Module | None = None
        if time_emb_dim > 0:
            width = time_emb_dim * d_x
            # The observation map already has a bias.
            self.time = nn.Sequential(Time2Vec(d_x, width), nn.Linear(width, d_model, bias=False))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor, start: int = 0) -> Tensor:
        """Return the tokens (b, t, n, d) of the first n <= N sensors.

        Args:
            x: (b, t, d_x) time covariates.
            y: (b, t, n) sensor values; NaN means not given.
            start: position of the first step.
        """
        given = ~torch.isnan(y)
        observation = y.masked_fill(~given, 0.0).unsqueeze(-1)
        if self.indicator_embedding:
            observation = torch.cat((observation, given.unsqueeze(-1).to(y.dtype)), dim=-1)
        step = self.position(start, y.shape[1])
        if self.time is not None:
            step = step + self.time(x)  # (b, t, d)
        tokens = self.observation(observation) + self.variable[: y.shape[2]] + step.unsqueeze(-2)
        return self.dropout(tokens)
