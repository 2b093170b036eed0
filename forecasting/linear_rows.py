"""Lay windows out as rows of a linear regression, one for each kind of linear forecast.

b windows, w linear_window, n target_len, c d_y_context columns of which the first d are forecast;
g matrices (1, or d when each target column has its own), f inputs of a row, e outputs of a step (d, or 1)
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

LinearKind = Literal["per_sensor", "shared", "vector"]
WindowBlocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]


class LinearRows(NamedTuple):
    """What is mapped to what.

    Attributes:
        inputs: (g, rows, f): the values of all columns for "vector", else those of one column less its last one.
        last: (g, rows, 1, e), the value that the outputs start from.
        outputs: (g, rows, n, e), NaN where missing; None where they are to be forecast.
    """

    inputs: Tensor
    last: Tensor
    outputs: Tensor | None


def lay_out(kind: LinearKind, values: Tensor, d_y_target: int, target: Tensor | None = None) -> LinearRows:
    """Lay values (b, w, c) and target (b, n, d) out."""
    last = values[:, -1:, :d_y_target]
    if kind == "vector":
        return LinearRows(
            values.flatten(1).unsqueeze(0), last.unsqueeze(0), None if target is None else target.unsqueeze(0)
        )
    pattern = "b t d -> d b t" if kind == "per_sensor" else "b t d -> 1 (d b) t"
    own, origin = (rearrange(y, pattern) for y in (values[..., :d_y_target], last))
    outputs = None if target is None else rearrange(target, pattern).unsqueeze(3)
    return LinearRows(own - origin, origin.unsqueeze(3), outputs)


def take_back(kind: LinearKind, outputs: Tensor, d_y_target: int) -> Tensor:
    """Return outputs (g, rows, n, e) as a forecast (b, n, d)."""
    if kind == "vector":
        return outputs[0]
    return rearrange(outputs.squeeze(3), "g (d b) n -> b n (g d)", d=d_y_target // len(outputs))


def roll_on(forecast: Callable[[Tensor], Tensor], values: Tensor, target_len: int, d_y_target: int) -> Tensor:
    """Forecast (b, target_len, d) from complete values (b, l, c), from the forecasts themselves beyond one horizon.

    Columns that are not forecast are kept at their last value.

    Args:
        forecast: maps the latest l values (b, l, c) to a horizon of forecasts (b, n, d).
    """
    blocks = [forecast(values)]
    horizon = blocks[0].shape[1]
    for _ in range((target_len - 1) // horizon):
        kept = values[:, -1:, d_y_target:].expand(-1, horizon, -1)
        values = torch.cat((values, torch.cat((blocks[-1], kept), dim=2)), dim=1)[:, horizon:]
        blocks.append(forecast(values))
    return torch.cat(blocks, dim=1)[:, :target_len]
