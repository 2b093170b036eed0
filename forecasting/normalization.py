"""Normalisation of sensor values: into model units on the way in, back to original units on the way out.

b batch, l context_len, t any number of time steps, c d_y_context, d <= c columns
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .missing_values import fill_missing


class Statistics(NamedTuple):
    """Location and scale of each column; shapes broadcast against (b, t, c)."""

    mean: Tensor
    std: Tensor


class Normalization(nn.Module, ABC):
    """Hold the training statistics of all columns and map values to model units and back.

    Values in float64 are centred in float64; model units have the dtype of the weights, original units that of
    the values.

        normalize:    z = (y - mean) / std * exp(log_weight) + bias
        denormalize:  y = (z - bias) * exp(-log_weight) * std + mean

    The exponential keeps the learned weight away from zero, where the inverse would not exist. Nothing is kept between
    calls: `statistics` returns what `normalize` and `denormalize` take.

    Args:
        d_y_context: number of columns c.
        affine: learn log_weight and bias per column (both start at 0).
    """

    mean: Tensor
    mean_rest: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, d_y_context: int, affine: bool = True) -> None:
        super().__init__()
        self.d_y_context = d_y_context
        self.register_buffer("mean", torch.zeros(d_y_context))
        self.register_buffer("mean_rest", torch.zeros(d_y_context))  # what float32 loses; some devices lack float64
        self.register_buffer("std", torch.ones(d_y_context))
        self.register_buffer("fitted", torch.tensor(False))
        self.is_fitted = False  # the buffer's value, readable without waiting for the device
        self.log_weight = nn.Parameter(torch.zeros(d_y_context)) if affine else None
        self.bias = nn.Parameter(torch.zeros(d_y_context)) if affine else None

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take the statistics of the training data.

        A column that is constant or has no observation at all gets scale 1. Without observations its mean is 0.

        Args:
            mean: (c,), original units; NaN for a column without observations.
            std: (c,), original units, >= 0; NaN for a column without observations.

        Raises:
            ValueError: for other shapes, infinite values or a negative std.
        """
        mean, std = (torch.as_tensor(value).detach().cpu() for value in (mean, std))
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.d_y_context,):
                raise ValueError(
                    f"{name} must hold one value for each context column: expected shape ({self.d_y_context},), "
                    f"got {tuple(value.shape)}"
                )
        if mean.isinf().any() or std.isinf().any() or (std < 0).any():
            raise ValueError("training statistics must be finite with std >= 0: check the training data for infinities")
        mean = fill_missing(mean)
        # below it, std is the rounding error of a constant
        rounding = 4 * torch.finfo(torch.promote_types(mean.dtype, torch.float32)).eps * mean.abs()
        self.mean.copy_(mean)
        self.mean_rest.copy_(mean - self.mean.cpu().to(mean.dtype))
        self.std.copy_(torch.where(std > rounding, std, 1.0))
        self.fitted.fill_(True)
        self.is_fitted = True

    @property
    def model_scale(self) -> Tensor:
        """Training standard deviation of each column in model units, (c,)."""
        return torch.ones_like(self.std)

    @abstractmethod
    def statistics(self, context_y: Tensor, observed: Tensor) -> Statistics:
        """Return the location and scale that apply to each window.

        Args:
            context_y: (b, l, c), original units.
            observed: (b, l, c) bool, False where context_y is missing (its value is then never read).
        """

    def normalize(self, y: Tensor, statistics: Statistics) -> Tensor:
        """Map y (b, t, d), the first d columns in original units, to model units; NaN stays NaN."""
        columns = y.shape[-1]
        mean, std = (value[..., :columns] for value in statistics)
        z = ((fill_missing(y, mean) - mean) / std).to(self.mean.dtype)  # NaN would reach the gradients of log_weight
        if self.log_weight is not None and self.bias is not None:
            z = z * self.log_weight[:columns].exp() + self.bias[:columns]
        return torch.where(y.isnan(), torch.nan, z)

    def denormalize(self, z: Tensor, statistics: Statistics) -> Tensor:
        """Map z (b, t, d), the first d columns in model units, to original units."""
        columns = z.shape[-1]
        mean, std = (value[..., :columns] for value in statistics)
        if self.log_weight is not None and self.bias is not None:
            z = (z - self.bias[:columns]) * (-self.log_weight[:columns]).exp()
        return z * std + mean

    def training_mean(self, dtype: torch.dtype) -> Tensor:
        """Return the training mean in all digits that `dtype` holds, (c,)."""
        return self.mean.to(dtype) + self.mean_rest.to(dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(f"{prefix}mean_rest", torch.zeros_like(self.mean_rest))  # checkpoints of 0.1.0 lack it
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.is_fitted = bool(self.fitted)


class NoNorm(Normalization):
    """Leave values in original units."""

    def __init__(self, d_y_context: int) -> None:
        super().__init__(d_y_context, affine=False)

    @property
    def model_scale(self) -> Tensor:
        """Training standard deviation of each column, which is also that in model units."""
        return self.std

    def statistics(self, context_y: Tensor, observed: Tensor) -> Statistics:
        """Return location 0 and scale 1."""
        return Statistics(context_y.new_zeros(self.d_y_context), context_y.new_ones(self.d_y_context))

    def normalize(self, y: Tensor, statistics: Statistics) -> Tensor:
        """Return y in the dtype of the weights."""
        return y.to(self.mean.dtype)

    def denormalize(self, z: Tensor, statistics: Statistics) -> Tensor:
        """Return z."""
        return z


class GlobalNorm(Normalization):
    """Normalise with the mean and standard deviation of the training data, the same for every window."""

    def statistics(self, context_y: Tensor, observed: Tensor) -> Statistics:
        """Return the fitted statistics.

        Raises:
            ValueError: before `fit` or the loading of a fitted checkpoint.
        """
        if not self.is_fitted:
            raise ValueError(
                "GlobalNorm has no statistics yet: fit with a datamodule that offers training_statistics(), "
                "pass global_mean and global_std, call fit_statistics(mean, std), or load a trained checkpoint"
            )
        return Statistics(self.training_mean(torch.promote_types(context_y.dtype, self.mean.dtype)), self.std)


class RevIN(Normalization):
    """Normalise each window by its own mean and standard deviation (reversible instance normalisation).

        std = sqrt(variance of the window's observed values + eps training_std^2)

    Kim et al. 2022 (Reversible Instance Normalization), eqs. (1)-(3), over observed entries; training_std is 1, and the
    formula theirs, until `fit` is called. Statistics carry no gradient. A column without any observation in the window
    takes the training statistics.

    Args:
        d_y_context: number of columns c.
        affine: learn log_weight and bias per column.
        eps: variance of a constant window relative to the training variance, > 0.
    """

    def __init__(self, d_y_context: int, affine: bool = True, *, eps: float = 1e-5) -> None:
        super().__init__(d_y_context, affine)
        if not eps > 0:
            raise ValueError(f"eps must be positive: got {eps}")
        self.eps = eps

    def statistics(self, context_y: Tensor, observed: Tensor) -> Statistics:
        """Return mean and std of the observed values of each window and column, both (b, 1, c)."""
        count = observed.sum(dim=1, keepdim=True)
        values = torch.where(observed, context_y.detach(), 0.0)
        mean = values.sum(dim=1, keepdim=True) / count.clamp(min=1)
        deviation = torch.where(observed, values - mean, 0.0) / self.std  # of order one, whatever the unit
        variance = deviation.square().sum(dim=1, keepdim=True) / count.clamp(min=1)
        std = torch.where(count > 0, self.std * (variance + self.eps).sqrt(), self.std)
        return Statistics(torch.where(count > 0, mean, self.training_mean(mean.dtype)), std)
