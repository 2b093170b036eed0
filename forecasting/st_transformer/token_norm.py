"""Normalisation of tokens over their feature dimension.

Dimension key: d model width.
"""

from typing import Literal, get_args

from torch import Tensor, nn

from .argument_checks import require_choice

NormalizationType = Literal["layernorm", "batchnorm"]


class TokenBatchNorm(nn.Module):
    """Standardise each feature over all tokens of the batch, whatever their sample, step or sensor.

    In training mode the batch statistics see every step, later ones included; in eval mode tokens do not interact.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise tokens (..., d)."""
        return self.norm(tokens.flatten(0, -2)).view(tokens.shape)


def token_norm(normalization_type: NormalizationType, d_model: int) -> nn.Module:
    """Build the normalisation called `normalization_type` for tokens (..., d)."""
    require_choice("normalization_type", normalization_type, get_args(NormalizationType))
    return nn.LayerNorm(d_model) if normalization_type == "layernorm" else TokenBatchNorm(d_model)
