"""Losses over the observed entries of a forecast.

b batch, n target_len, d d_y_target
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["mse", "mae", "huber"]


def check_loss(loss: str, huber_delta: float) -> None:
    """Raise ValueError unless `loss` is a LossName and `huber_delta` is positive."""
    if loss not in get_args(LossName):
        raise ValueError(f"loss must be one of {', '.join(get_args(LossName))}: got {loss!r}")
    if not huber_delta > 0:
        raise ValueError(f"huber_delta must be positive: got {huber_delta}")


def observed_error(forecast: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return forecast - target with zeros where the target is NaN, and the mask of observed targets.

    A missing target sends no gradient to the forecast.
    """
    observed = ~target.isnan()
    return torch.where(observed, forecast - target, 0.0), observed


def pointwise_loss(error: Tensor, loss: LossName = "mse", *, huber_delta: float = 1.0) -> Tensor:
    """Map each error e to its loss.

    mse: e^2     mae: |e|     huber: e^2 / 2 where |e| <= delta, delta (|e| - delta / 2) beyond
    """
    if loss == "mse":
        return error.square()
    if loss == "mae":
        return error.abs()
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=huber_delta)


def masked_loss(
    forecast: Tensor,
    target: Tensor,
    loss: LossName = "mse",
    *,
    huber_delta: float = 1.0,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """Average the loss of (forecast - target) / scale over the observed targets.

        sum_i observed_i loss(e_i) / max(1, sum_i observed_i)

    With nothing observed the loss is 0 and so is its gradient.

    Args:
        forecast: (b, n, d).
        target: (b, n, d), NaN where missing.
        loss: "mse", "mae" or "huber".
        huber_delta: where huber turns from quadratic to linear, in units of `scale`.
        scale: (d,) or a number; the unit in which errors are judged.
    """
    error, observed = observed_error(forecast, target)
    return pointwise_loss(error / scale, loss, huber_delta=huber_delta).sum() / observed.sum().clamp(min=1)
