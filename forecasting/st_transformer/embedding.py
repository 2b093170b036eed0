"""Token embedding: one token for every patch of a sensor, with patch_len = 1 for every (time step, sensor) pair.

Dimension key: b batch, t time steps, p patch_len, s = t / p patches, N sensors, d model width, d_x time covariates.
Tokens are time-major: (b, s, N, d), flat index = patch * N + sensor.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from .patches import to_patches
from .performer_config import PerformerConfig
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
        config: widths, patches, dropout (that of the sum: it drops no data), and which terms there are; with
            time_embedding off x is ignored, and without decoder_reads_linear there is no C.
        position: module mapping (start, length) to (s, d).
    """

    def __init__(self, config: PerformerConfig, position: nn.Module) -> None:
        super().__init__()
        self.patch_len = patch_len = config.patch_len
        d_model = config.d_model
        self.observation = nn.Linear((2 if config.indicator_embedding else 1) * patch_len, d_model)
        self.variable = nn.Parameter(torch.empty(config.d_y_context, d_model).normal_(std=TABLE_STD))
        self.position = position
        self.indicator_embedding = config.indicator_embedding
        self.time: nn.Sequential | None = None
        if config.time_embedding:
            width = config.time_emb_dim * config.d_x
            # The observation map already has a bias.
            self.time = nn.Sequential(Time2Vec(config.d_x, width), nn.Linear(width * patch_len, d_model, bias=False))
        self.linear: nn.Linear | None = None
        if config.decoder_reads_linear:
            self.linear = nn.Linear(patch_len, d_model, bias=False)
            with torch.no_grad():
                self.linear.weight.copy_(self.observation.weight[:, :patch_len])
        self.dropout = nn.Dropout(config.data_dropout_embedding)

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
            covariates = rearrange(self.time[0](x), "b (s p) k -> b s (p k)", p=self.patch_len)
            step = step + self.time[1](covariates)  # (b, s, d)
        tokens = self.observation(observation) + self.variable[: y.shape[2]] + step.unsqueeze(-2)
        if self.linear is not None and linear is not None:
            tokens = tokens + self.linear(to_patches(linear, self.patch_len))
        return self.dropout(tokens)
