"""Position-wise feed-forward network and the activations it can use.

Dimension key: d model width, f hidden width.
"""

from typing import Literal, get_args

from torch import Tensor, nn

from .argument_checks import require_choice

Activation = Literal["relu", "gelu", "silu"]


def activation_module(activation: Activation) -> nn.Module:
    """Build the activation called `activation`."""
    require_choice("activation", activation, get_args(Activation))
    modules = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
    return modules[activation]()


class FeedForward(nn.Module):
    """Apply W2 act(W1 x + b1) + b2 to each token, with dropout after each of the two maps.

    Raises:
        ValueError: unknown `activation`.
    """

    def __init__(self, d_model: int, d_ff: int, *, activation: Activation = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d_model, d_ff),
            activation_module(activation),
            nn.Dropout(dropout),
            nn.Linear(d_ff, d_model),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., d) to (..., d)."""
        return self.layers(tokens)
