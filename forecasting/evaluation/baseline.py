"""Define what a baseline is: fitted in closed form on training rows, it forecasts from contexts.

b batch, l context_len, n target_len, c d_y_context columns of which the first d_y_target are forecast.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 23  # float64 window entries held at once while sums are accumulated: 64 MiB


def carry_missing(y: Tensor) -> Tensor:
    """Replace each NaN of (..., time, column) by the last observed value before it, or else by the first one after."""
    steps = torch.arange(y.shape[-2], device=y.device)[:, None]
    observed = ~y.isnan()
    last = torch.where(observed, steps, -1).cummax(dim=-2).values
    first = torch.where(observed, steps, y.shape[-2] - 1).amin(dim=-2, keepdim=True)
    return y.gather(-2, torch.where(last < 0, first, last))


class Baseline(ABC):
    """Fit on training rows, predict from contexts.

    Everything is computed in float64 on z-scored columns (training statistics), so that no sensor counts more because
    of its unit. Missing values (NaN) are carried, in training rows and in contexts: a gap takes the last observed
    value, a gap at the start the first one, and a column that is never observed its training mean.

    Example:
        ridge = RidgeRegression().fit(values, context_len=336, target_len=96, d_y_target=7)
        forecast = ridge.predict(context_y)
    """

    name: str

    def fit(
        self,
        values: Tensor | np.ndarray,
        *,
        context_len: int,
        target_len: int,
        d_y_target: int,
        breaks: Sequence[int] = (),
    ) -> Self:
        """Fit on the training rows.

        Args:
            values: (rows, c) training rows in time order, targets first, missing entries NaN.
            context_len: l, rows of context in predict, at least 1.
            target_len: n, rows to forecast, at least 1.
            d_y_target: number of forecast columns, 1 to c.
            breaks: rows that do not follow the row before, such as the first of each run but the first: no window
                reaches across.

        Raises:
            ValueError: widths that do not fit, or fewer than context_len + target_len rows without a break.
        """
        rows = torch.as_tensor(values).detach().to("cpu", torch.float64)
        if rows.ndim != 2 or not 1 <= d_y_target <= rows.shape[1]:
            raise ValueError(
                f"values must be (rows, columns) with at least d_y_target={d_y_target} >= 1 columns, "
                f"got {tuple(rows.shape)}"
            )
        self._edges = sorted({0, *(int(row) for row in breaks), len(rows)})
        longest = max(stop - start for start, stop in pairwise(self._edges)) if len(rows) else 0
        if min(context_len, target_len) < 1 or longest < context_len + target_len:
            raise ValueError(
                f"{self.name} needs context_len and target_len of at least 1 and that many training rows together "
                f"without a break, got context_len={context_len}, target_len={target_len} and {longest} rows"
            )
        observed = ~rows.isnan()
        count = observed.sum(dim=0).clamp(min=1)
        self._mean = torch.where(observed, rows, 0.0).sum(dim=0) / count
        deviation = torch.where(observed, rows - self._mean, 0.0)
        std = deviation.square().sum(dim=0).div(count).sqrt()
        # a constant column deviates by rounding alone
        self._std = torch.where(std > 1e-9 * self._mean.abs(), std, 1.0)
        self._context_len, self._target_len, self._d_y_target = context_len, target_len, d_y_target
        self._fit(torch.cat([self._scale(run) for run in self._runs(rows)]))
        return self

    def predict(self, context_y: Tensor) -> Tensor:
        """Forecast (b, n, d_y_target) from contexts (b, l, c), in the units, dtype and device of the context.

        Raises:
            ValueError: called before fit, or a context of another shape.
        """
        if not hasattr(self, "_mean"):
            raise ValueError(f"{self.name} must be fitted before it predicts: call fit(values, ...) with training rows")
        expected = (self._context_len, len(self._mean))
        if context_y.ndim != 3 or tuple(context_y.shape[1:]) != expected:
            raise ValueError(
                f"context_y must be (b, context_len, d_y_context) = (b, {expected[0]}, {expected[1]}), "
                f"got {tuple(context_y.shape)}"
            )
        forecast = self._predict(self._scale(context_y.detach().to("cpu", torch.float64)))
        std, mean = self._std[: self._d_y_target], self._mean[: self._d_y_target]
        return (forecast * std + mean).to(context_y.device, context_y.dtype)

    def _scale(self, y: Tensor) -> Tensor:
        return carry_missing((y - self._mean) / self._std).nan_to_num(nan=0.0)

    def _windows(self, scaled: Tensor, context_len: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (context (b, l, c), target (b, n, d_y_target)) of all windows of scaled rows, many at a time."""
        length = self._context_len if context_len is None else context_len
        for chunk in self._chunks(scaled, length + self._target_len):
            yield chunk[:, :length], chunk[:, length:, : self._d_y_target]

    def _chunks(self, scaled: Tensor, length: int) -> Iterator[Tensor]:
        """Yield all windows (b, length, c) of rows without a break, many at a time, as views."""
        for run in self._runs(scaled):
            if len(run) >= length:
                yield from run.unfold(0, length, 1).mT.split(max(1, CHUNK_ELEMENTS // (length * run.shape[1])))

    def _runs(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield rows without a break."""
        return (rows[start:stop] for start, stop in pairwise(self._edges))

    @abstractmethod
    def _fit(self, scaled: Tensor) -> None:
        """Fit on (rows, c) z-scored rows without missing values."""

    @abstractmethod
    def _predict(self, scaled: Tensor) -> Tensor:
        """Forecast (b, n, d_y_target) from (b, l, c), both z-scored."""


class HeldOutChoice(Baseline):
    """Fit several baselines on four fifths of the training rows and keep the one that forecasts the last fifth best.

    The one with the least squared error on z-scored columns is fitted again on all training rows.

    Args:
        name: how reports call it.
        candidates: the baselines to choose from.
    """

    def __init__(self, name: str, candidates: Sequence[Baseline]):
        if not candidates:
            raise ValueError("candidates must hold at least one baseline, got none")
        self.name = name
        self.candidates = list(candidates)

    def _fit(self, scaled: Tensor) -> None:
        sizes = {"context_len": self._context_len, "target_len": self._target_len, "d_y_target": self._d_y_target}
        boundary = len(scaled) * 4 // 5
        breaks = self._edges[1:-1]
        span = self._context_len + self._target_len
        if boundary < span or len(scaled) - boundary < self._target_len:
            raise ValueError(
                f"{self.name} holds back a fifth of the training rows to choose a setting, but {len(scaled)} rows are "
                f"too few for that with context_len={self._context_len} and target_len={self._target_len}; give more "
                "rows, or fit one setting directly"
            )
        whole = [s for start, stop in pairwise(self._edges) for s in range(start, stop - span + 1)]
        if whole[-1] < boundary - self._context_len:  # short runs stand at the end: a fifth of the windows instead
            boundary = whole[len(whole) * 4 // 5] + self._context_len
        starts = [start for start in whole if start >= boundary - self._context_len]
        windows = scaled.unfold(0, span, 1).mT  # (windows, l + n, c), a view
        is_whole = len(starts) == len(windows) - starts[0]
        held_out = windows[starts[0] :] if is_whole else windows[starts]
        early = [row for row in breaks if row < boundary]
        errors = [_squared_error(x.fit(scaled[:boundary], breaks=early, **sizes), held_out) for x in self.candidates]
        self.chosen = self.candidates[errors.index(min(errors))].fit(scaled, breaks=breaks, **sizes)

    def _predict(self, scaled: Tensor) -> Tensor:
        return self.chosen.predict(scaled)


def _squared_error(baseline: Baseline, windows: Tensor) -> float:
    context_len, d_y_target = baseline._context_len, baseline._d_y_target
    return sum(
        (baseline.predict(chunk[:, :context_len]) - chunk[:, context_len:, :d_y_target]).square().sum().item()
        for chunk in windows.split(256)
    )
