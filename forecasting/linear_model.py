"""Linear part of a forecaster: which one, and the autoregression that is trained by gradients.

b batch, l context_len, n target_len, w linear_window, d d_y_target
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .closed_form_linear import ClosedFormLinear
from .linear_rows import LinearKind
from .missing_values import carry_forward
from .stacked_linear import StackedLinear, StackKind

LinearChoice = Literal["none", "per_sensor", "shared", "vector", "stacked", "stacked_own"]
LinearFit = Literal["gradient", "ridge", "both"]
SolvedLinear = ClosedFormLinear | StackedLinear


@dataclass(frozen=True, kw_only=True)
class LinearPart:
    """Which linear part a forecaster has.

    Args:
        linear_model: "none", "per_sensor", "shared", "vector" (all sensors from all columns), "stacked" (a mixture of
            these, see StackedLinear) or "stacked_own" (of the first two); None: "none" without a linear_window, else
            "shared" or "per_sensor" as linear_shared_weights says.
        linear_window: past rows that the linear part reads; 0 for none.
        linear_fit: "gradient": an autoregression that starts as persistence and is trained with everything else;
            "ridge": a ClosedFormLinear or StackedLinear, solved on the training rows when the first fit starts, then
            frozen; "both": solved, then trained.
        linear_shared_weights: one autoregression for all sensors instead of one for each.

    Raises:
        ValueError: values that are unknown or contradict each other.
    """

    linear_model: LinearChoice | None = None
    linear_window: int = 0
    linear_fit: LinearFit = "gradient"
    linear_shared_weights: bool = False

    def __post_init__(self) -> None:
        if self.linear_window < 0:
            raise ValueError(f"linear_window must be at least 0: got {self.linear_window}")
        if self.linear_fit not in get_args(LinearFit):
            raise ValueError(f"linear_fit must be one of {', '.join(get_args(LinearFit))}: got {self.linear_fit!r}")
        if self.linear_model not in (None, *get_args(LinearChoice)):
            choices = ", ".join(get_args(LinearChoice))
            raise ValueError(f"linear_model must be one of {choices}, or None: got {self.linear_model!r}")
        if self.linear_model is not None and (self.linear_model == "none") != (self.linear_window == 0):
            raise ValueError(
                "linear_window must be at least 1 with a linear_model, and 0 with 'none': got "
                f"linear_model={self.linear_model!r} and linear_window={self.linear_window}"
            )
        if self.linear_shared_weights and self.linear_model not in (None, "shared"):
            raise ValueError(
                f"linear_shared_weights=True contradicts linear_model={self.linear_model!r}: leave one of them out"
            )
        if self.linear_model in ("vector", *get_args(StackKind)) and self.linear_fit == "gradient":
            raise ValueError(
                f"linear_model={self.linear_model!r} is solved in closed form: set linear_fit='ridge', or 'both' to "
                "train it on"
            )

    def build_linear_model(self, d_y_context: int, d_y_target: int) -> "LinearModel | SolvedLinear | None":
        """Build the module for these widths; None for no linear part."""
        if self.linear_window == 0:
            return None
        widths, is_trained = (self.linear_window, d_y_context, d_y_target), self.linear_fit == "both"
        if self.linear_model == "stacked" or self.linear_model == "stacked_own":
            return StackedLinear(self.linear_model, *widths, is_trained=is_trained)
        kind: LinearKind = "shared" if self.linear_shared_weights else "per_sensor"
        if self.linear_model not in (None, "none"):
            kind = self.linear_model
        if self.linear_fit == "gradient":
            return LinearModel(self.linear_window, d_y_target, kind == "shared")
        return ClosedFormLinear(kind, *widths, is_trained=is_trained)


class LinearModel(nn.Module):
    """Forecast each sensor from its own last values, step by step.

        y[t] = bias + sum_i weight[i] y[t - w + i]        i = 0 .. w - 1

    Forecasts take the place of truth as the window moves past the context. Weights start as persistence (the newest
    value 1, the others 0, bias 0), so that an untrained model repeats the last value over any horizon.

    Args:
        linear_window: number of past values read, >= 1.
        d_y_target: number of sensors forecast.
        shared_weights: one set of weights for all sensors instead of one for each.

    Raises:
        ValueError: for a linear_window or d_y_target below 1.
    """

    def __init__(self, linear_window: int, d_y_target: int, shared_weights: bool = False) -> None:
        super().__init__()
        if linear_window < 1 or d_y_target < 1:
            raise ValueError(
                "linear_window and d_y_target must be at least 1: "
                f"got linear_window={linear_window}, d_y_target={d_y_target}"
            )
        self.linear_window = linear_window
        self.d_y_target = d_y_target
        columns = 1 if shared_weights else d_y_target
        weight = torch.zeros(linear_window, columns)
        weight[-1] = 1.0
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(columns))

    def forward(self, context: Tensor, target_len: int) -> Tensor:
        """Return the forecast (b, n, d).

        Args:
            context: (b, l, at least d); its first d columns are forecast. NaN is replaced by the sensor's last observed
                value (`carry_forward`).
            target_len: n >= 1.

        Raises:
            ValueError: when the context is shorter than the window.
        """
        if context.shape[1] < self.linear_window:
            raise ValueError(
                f"the context must hold linear_window time steps: expected at least {self.linear_window}, "
                f"got {context.shape[1]}; lengthen context_len or shorten linear_window"
            )
        values = list(carry_forward(context[..., : self.d_y_target])[:, -self.linear_window :].unbind(dim=1))
        for _ in range(target_len):
            window = torch.stack(values[-self.linear_window :], dim=1)  # (b, w, d)
            values.append((window * self.weight).sum(dim=1) + self.bias)
        return torch.stack(values[self.linear_window :], dim=1)
