"""Errors of a forecast, aggregated over all observed entries of a whole split.

b batch, n target_len, d d_y_target
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from .losses import LossName, check_loss, observed_error, pointwise_loss


class ForecastErrors(Metric):
    """Accumulate squared error, absolute error and loss per horizon step and sensor.

    States are sums and counts, so a result is the mean over every observed entry, whatever the sizes of the batches,
    the masks and the number of processes:

        mse = sum observed (forecast - target)^2 / sum observed

    Sums are kept in float64 (float32 on devices without it). A mean over no observed entry is NaN.

    Args:
        loss: kind of the loss that `compute` reports beside mae and mse.
        huber_delta: see `pointwise_loss`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    squared_error: Tensor
    absolute_error: Tensor
    scaled_loss: Tensor
    count: Tensor

    def __init__(self, loss: LossName = "mse", *, huber_delta: float = 1.0) -> None:
        super().__init__()
        check_loss(loss, huber_delta)
        self.loss: LossName = loss
        self.huber_delta = huber_delta
        # a 0-d zero takes the shape (n, d) of the first batch by broadcasting
        for state in ("squared_error", "absolute_error", "scaled_loss", "count"):
            self.add_state(state, default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor, scale: Tensor | float = 1.0) -> None:
        """Add one batch.

        Args:
            forecast: (b, n, d), original units.
            target: (b, n, d), original units, NaN where missing.
            scale: (d,) or a number; errors are divided by it for the loss, not for mse and mae.
        """
        error, observed = observed_error(forecast.detach(), target)
        dtype = torch.float32 if error.device.type == "mps" else torch.float64
        loss = pointwise_loss(error / scale, self.loss, huber_delta=self.huber_delta)
        self.squared_error = self.squared_error + error.square().sum(dim=0, dtype=dtype)
        self.absolute_error = self.absolute_error + error.abs().sum(dim=0, dtype=dtype)
        self.scaled_loss = self.scaled_loss + loss.sum(dim=0, dtype=dtype)
        self.count = self.count + observed.sum(dim=0, dtype=dtype)

    @property
    def has_data(self) -> bool:
        """Whether there has been an update since the last reset."""
        return self.count.ndim > 0

    def compute(self) -> dict[str, Tensor]:
        """Return the means over every observed entry: {"loss", "mae", "mse"}."""
        return self._means(())

    def per_horizon(self) -> dict[str, Tensor]:
        """Return the means for each step of the horizon: {"loss", "mae", "mse"}, each (n,)."""
        with self.sync_context():
            return self._means((1,))

    def per_sensor(self) -> dict[str, Tensor]:
        """Return the means for each sensor: {"loss", "mae", "mse"}, each (d,)."""
        with self.sync_context():
            return self._means((0,))

    def _means(self, dims: tuple[int, ...]) -> dict[str, Tensor]:
        if not self.has_data:
            raise ValueError(
                "ForecastErrors has no data: expected at least one update before reading a result, got none"
            )
        count = self.count.sum(dim=dims)
        sums = {"loss": self.scaled_loss, "mae": self.absolute_error, "mse": self.squared_error}
        return {name: value.sum(dim=dims) / count for name, value in sums.items()}
