"""What becomes of sensor values before and beside the model: normalisation, decomposition, linear part."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .linear_model import LinearPart
from .normalization import GlobalNorm, NoNorm, Normalization, RevIN


@dataclass(frozen=True, kw_only=True)
class SignalConfig(LinearPart):
    """Normalisation, decomposition and linear part, whose fields are inherited from LinearPart.

    Args:
        null_value: the data set's code for a missing value, beside NaN.
        use_revin: normalise each window by its own mean and std.
        use_global_norm: normalise by the training mean and std.
        global_mean: training mean of each context column, (d_y_context,), when no datamodule offers it.
        global_std: training standard deviation of each context column, likewise.
        use_seasonal_decomp: split off a moving-average trend, which the linear part (or the last value) continues.
        decomposition_kernel_size: time steps of that moving average.
        from_last_value: without a linear part, the model forecasts the change from each sensor's last value.

    Raises:
        ValueError: for a value outside its range, or values that contradict each other.
    """

    null_value: float | None = None
    use_revin: bool = False
    use_global_norm: bool = False
    global_mean: list[float] | Tensor | None = None
    global_std: list[float] | Tensor | None = None
    use_seasonal_decomp: bool = False
    decomposition_kernel_size: int = 25
    from_last_value: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decomposition_kernel_size < 1:
            raise ValueError(f"decomposition_kernel_size must be at least 1: got {self.decomposition_kernel_size}")
        if self.use_revin and self.use_global_norm:
            raise ValueError("use_revin and use_global_norm exclude each other: set one of them to False")
        given = (self.global_mean, self.global_std)
        if (given[0] is None) != (given[1] is None):
            raise ValueError("global_mean and global_std go together: give both or neither")
        if not all(isinstance(each, list | Tensor | None) for each in given):
            raise ValueError(
                "global_mean and global_std must be lists or tensors, which checkpoints hold without pickled objects: "
                f"got {type(given[0]).__name__} and {type(given[1]).__name__}; use .tolist()"
            )

    def build_normalization(self, d_y_context: int) -> Normalization:
        """Build the normalisation of the context columns, fitted where the statistics are given."""
        norm = (RevIN if self.use_revin else GlobalNorm if self.use_global_norm else NoNorm)(d_y_context)
        if self.global_mean is not None and self.global_std is not None:
            norm.fit(torch.as_tensor(self.global_mean), torch.as_tensor(self.global_std))
        return norm
