"""Time2Vec, a learned representation of scalar time covariates.

Dimension key: i input scalars, k components per scalar.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Time2Vec(nn.Module):
    """Map each input scalar to one linear and several periodic components.

        out[i, 0] = w[i, 0] x[i] + b[i, 0]          out[i, j] = sin(w[i, j] x[i] + b[i, j])  for j >= 1

    (Kazemi et al. 2019, eq. (1); their tau is x.) Frequencies w and phases b are learned, drawn from N(0, 1).

    Args:
        input_dim: number of input scalars i.
        embed_dim: output width; a multiple of `input_dim`, each scalar gets embed_dim / input_dim components.
        activation: the periodic function.

    Raises:
        ValueError: `embed_dim` is not a positive multiple of `input_dim`.

    Example:
        >>> Time2Vec(input_dim=2, embed_dim=16)(torch.rand(4, 40, 2)).shape
        torch.Size([4, 40, 16])
    """

    def __init__(self, input_dim: int, embed_dim: int, activation: Callable[[Tensor], Tensor] = torch.sin) -> None:
        super().__init__()
        if input_dim < 1 or embed_dim < input_dim or embed_dim % input_dim != 0:
            raise ValueError(
                f"embed_dim must be a positive multiple of input_dim, got {embed_dim} for input_dim={input_dim}; "
                f"choose embed_dim = components per input x input_dim"
            )
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(input_dim, embed_dim // input_dim))
        self.bias = nn.Parameter(torch.randn(input_dim, embed_dim // input_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Embed x (..., i) as (..., i * k)."""
        angle = x.unsqueeze(-1) * self.weight + self.bias  # (..., i, k)
        return torch.cat((angle[..., :1], self.activation(angle[..., 1:])), dim=-1).flatten(-2)
