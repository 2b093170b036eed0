"""Convolution that halves the time axis of a token sequence.

Dimension key: b batch, t time steps, N sensors, d model width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from .feed_forward import Activation, activation_module


class DownsampleConv(nn.Module):
    """Halve time for each sensor: circular convolution over 3 steps, batch norm, activation, max pooling.

    t steps become ceil(t / 2) (Zhou et al. 2021, Informer, self-attention distilling; here for each sensor on its own).

    Raises:
        ValueError: in forward, when fewer than 2 steps are left to halve.
    """

    def __init__(self, d_model: int, *, activation: Activation = "gelu") -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(d_model, d_model, kernel_size=(3, 1)),
            nn.BatchNorm2d(d_model),
            activation_module(activation),
            nn.MaxPool2d(kernel_size=(3, 1), stride=(2, 1), padding=(1, 0)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (b, t, N, d) to (b, ceil(t / 2), N, d)."""
        if tokens.shape[1] < 2:
            raise ValueError(
                f"a downsampling convolution needs at least 2 time steps, got {tokens.shape[1]}; lower "
                f"downsample_convs_embedding or downsample_convs_block, or lengthen the context"
            )
        ring = torch.cat((tokens[:, -1:], tokens, tokens[:, :1]), dim=1)
        # Time-major tokens seen as (b, d, t, n) are in channels-last memory order: no copy on either side.
        return rearrange(self.layers(rearrange(ring, "b t n d -> b d t n")), "b d t n -> b t n d")
