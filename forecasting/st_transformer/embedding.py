"""Token embedding: one token for every patch of a sensor, with patch_len = 1 for every (time step, sensor) pair.

Dimension key: b batch, t time steps, p patch_len, s = t / p patches, N sensors, d model width, d_x time covariates.
Tokens are time-major: (b, s, N, d), flat index = patch * N + sensor.
"""

import torch
from torch import Tensor, nn

from .patches import to_patches
from .position import TABLE_STD
from .time2vec import Time2Vec


class TokenEmbedding(nn.Module):
    """Embed sensor values and time covariates.

        token[s, n] = A [y[t, n], given[t, n]] + C linear[t, n] + B Time2Vec(x[t]) + position[s] + variable[n]

    where [ ] holds the p steps t of patch s. given = 0 where y is NaN; the value is then taken as 0. linear is what the
    linear part forecasts for these steps; C starts as the columns of A that belong to y. A linear map of the
    concatenation [Time2Vec(x); y] is the sum of the first and the third term; split this way, the time part is computed
    once per step instead of once per token. The two "given" embeddings of Spacetimeformer (Grigsby et al. 2021) are the
    bias of A, and that bias plus the column of A belonging to `given`.

    The encoder and the decoder share one embedding, so a sensor or a time step looks the same to both.

    Args:
        d_y: number of sensors N.
        d_x: number of time covariates; 0 is allowed when `time_emb_dim` is 0.
        d_model: token width d.
        position: module mapping (start, length) to (s, d).
        time_emb_dim: Time2Vec components for each covariate; 0 removes the time term, x is then ignored.
        indicator_embedding: whether tokens know if they are given; when off, a missing value looks like the value 0.
        dropout: dropout rate on the sum (called data_dropout_embedding in the model; it drops no data).
        patch_len: steps in a token.
        reads_linear: whether there is a C.
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
        patch_len: int = 1,
        reads_linear: bool = False,
    ) -> None:
        super().__init__()
        self.patch_len = patch_len
        self.observation = nn.Linear((2 if indicator_embedding else 1) * patch_len, d_model)
        self.variable = nn.Parameter(torch.empty(d_y, d_model).normal_(std=TABLE_STD))
        self.position = position
        self.indicator_embedding = indicator_embedding
        self.time: nn.Sequential | None = None
        if time_emb_dim > 0:
            width = time_emb_dim * d_x
            # The observation map already has a bias.
            self.time = nn.Sequential(Time2Vec(d_x, width), nn.Linear(width * patch_len, d_model, bias=False))
        self.linear: nn.Linear | None = None
        if reads_linear:
            self.linear = nn.Linear(patch_len, d_model, bias=False)
            with torch.no_grad():
                self.linear.weight.copy_(self.observation.weight[:, :patch_len])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor, start: int = 0, linear: Tensor | None = None) -> Tensor:
        """Return the tokens (b, s, n, d) of the first n <= N sensors.

        Args:
            x: (b, t, d_x) time covariates, t a multiple of patch_len.
            y: (b, t, n) sensor values; NaN means not given.
            start: position of the first patch.
            linear: (b, t, n) what the linear part forecasts; None for 0.
        """
        patches = to_patches(y, self.patch_len)
        given = ~torch.isnan(patches)
        observation = patches.masked_fill(~given, 0.0)
        if self.indicator_embedding:
            observation = torch.cat((observation, given.to(y.dtype)), dim=-1)
        step = self.position(start, patches.shape[1])
        if self.time is not None:
            covariates = self.time[0](x).unflatten(1, (-1, self.patch_len)).flatten(2)
            step = step + self.time[1](covariates)  # (b, s, d)
        tokens = self.observation(observation) + self.variable[: y.shape[2]] + step.unsqueeze(-2)
        if self.linear is not None and linear is not None:
            tokens = tokens + self.linear(to_patches(linear, self.patch_len))
        return self.dropout(tokens)
