"""Linear forecasting part: an autoregression rolled forward over the horizon.

b batch, l context_len, n target_len, w linear_window, d d_y_target
"""

import torch
from torch import Tensor, nn

from .missing_values import carry_forward


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
