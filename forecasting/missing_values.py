"""Missing values: NaN marks an entry that was not measured.

b batch, t time, c columns
"""

import torch
from torch import Tensor


def mark_missing(y: Tensor, null_value: float | None) -> Tensor:
    """Replace the data set's own code for "no measurement" by NaN; NaN entries stay NaN.

    Args:
        y: any shape, original units.
        null_value: the code, for example 0 or -999; None when NaN is the only one.
    """
    if null_value is None:
        return y
    return torch.where(y == null_value, torch.nan, y)


def fill_missing(y: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """Replace NaN by `value`; the gradient of a replaced entry is zero."""
    return torch.where(y.isnan(), value, y)


def carry_forward(y: Tensor) -> Tensor:
    """Replace each NaN by the last observed value of its column.

    Entries before the first observation take the first observed value; a column without any becomes zero.

    Args:
        y: (b, t, c).
    """
    observed = ~y.isnan()
    first = observed.int().argmax(dim=1, keepdim=True)
    time = torch.arange(y.shape[1], device=y.device).view(1, -1, 1)
    source = torch.where(observed, time, first).cummax(dim=1).values
    return fill_missing(y.gather(1, source))
