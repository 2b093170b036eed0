"""Forecast without gradient descent: the yardsticks that a learned model has to beat.

b batch, l context_len, n target_len, c d_y_context columns of which the first d_y_target are forecast.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..linear_rows import LinearKind, LinearRows, lay_out, take_back
from ..ridge import RidgeSolutions, Shrinkage, solve_ridge
from .baseline import Baseline, Cost, HeldOutChoice
from .dynamic_modes import DynamicModeDecomposition
from .training_rows import TrainingRows

FLOAT = 8  # bytes of a number in float64
QUERIES = 64  # contexts that are compared with all training rows at once


def default_baselines(period: int | None = None) -> list[Baseline]:
    """List the baselines of a report, each with settings chosen on validation rows where it has any.

    Those with settings may fall back on persistence, step by step.

    Args:
        period: rows of a season for SeasonalNaive; None leaves it out.
    """
    analogs = [Analogs(lags, neighbours, last) for lags in (1, 5) for neighbours in (4, 16) for last in (False, True)]
    modes = [DynamicModeDecomposition(delays, energy=None) for delays in (1, 5)]
    return [
        Persistence(),
        *([] if period is None else [SeasonalNaive(period)]),
        RidgeRegression(),
        HeldOutChoice(VectorRidge.name, [VectorRidge(lags) for lags in (1, 3, 10)]),
        HeldOutChoice(DynamicModeDecomposition.name, [*modes, Persistence()]),
        HeldOutChoice(Analogs.name, [*analogs, Persistence()]),
    ]


class Persistence(Baseline):
    """Repeat the last value."""

    name = "persistence"

    def _fit(self, rows: TrainingRows) -> None:
        pass

    def _predict(self, scaled: Tensor) -> Tensor:
        return scaled[:, -1:, : self._d_y_target].expand(-1, self._target_len, -1)


class SeasonalNaive(Baseline):
    """Repeat the last period.

    Args:
        period: rows of a period, 1 to context_len.
    """

    name = "seasonal naive"

    def __init__(self, period: int):
        if period < 1:
            raise ValueError(f"period must be at least 1, got {period}")
        self.period = period

    def _fit(self, rows: TrainingRows) -> None:
        if self.period > self._context_len:
            raise ValueError(
                f"a context must hold one period: got period={self.period} and context_len={self._context_len}"
            )

    def _predict(self, scaled: Tensor) -> Tensor:
        steps = torch.arange(self._target_len) % self.period
        return scaled[:, -self.period :, : self._d_y_target][:, steps]


class ClosedFormRidge(Baseline):
    """Map the last rows of a context to all target rows by ridge regression (see `solve_ridge`)."""

    kind: LinearKind

    def __init__(self, penalty: float | None):
        self.penalty = None if penalty is None else _positive("penalty", penalty)

    def _rows_read(self, context_len: int) -> int:
        return context_len

    def _cost(self, rows: TrainingRows) -> Cost:
        read, columns, d_y_target = self._rows_read(rows.context_len), rows.columns, rows.d_y_target
        windows = rows.count(read + rows.target_len)
        inputs = read * columns if self.kind == "vector" else read
        outputs = rows.target_len * (d_y_target if self.kind == "vector" else 1)
        rank = min(inputs, windows * (1 if self.kind == "vector" else d_y_target))
        # the Gram matrix, its eigenvectors and their work space; the basis; responses and coefficients
        return Cost(rank, FLOAT * rank * (3 * rank + inputs + 2 * outputs))

    def _fit(self, rows: TrainingRows) -> None:
        penalties = None if self.penalty is None else (self.penalty,)
        rows = rows if penalties else rows.choosing(self.name)
        solutions, chosen = self._solve(rows, penalties)
        if rows.is_borrowed:
            largest = solutions.directions.spectrum.max()
            solutions, _ = self._solve(rows.whole(), (1.0,))
            grown = float(solutions.directions.spectrum.max() / largest)  # penalties follow the number of windows
            chosen = [each._replace(penalty=each.penalty * grown) for each in chosen]
        self._map = solutions.map(chosen)

    def _solve(self, rows: TrainingRows, penalties: tuple[float, ...] | None) -> tuple[RidgeSolutions, list[Shrinkage]]:
        read, kind = self._rows_read(rows.context_len), self.kind

        def laid_out(windows: Iterable[tuple[Tensor, Tensor]]) -> Iterator[LinearRows]:
            return (lay_out(kind, context[:, -read:], rows.d_y_target, target) for context, target in windows)

        return solve_ridge(
            lambda: laid_out(rows.windows(read)),
            lambda: laid_out(rows.held_out()),
            has_constant=kind == "vector",
            penalties=penalties,
        )

    def _predict(self, scaled: Tensor) -> Tensor:
        read = self._rows_read(self._context_len)
        return take_back(
            self.kind, self._map(lay_out(self.kind, scaled[:, -read:], self._d_y_target)), self._d_y_target
        )


class RidgeRegression(ClosedFormRidge):
    """Map context to target by one matrix that all target columns share, after subtracting the last value.

    y_hat = y_l + W (x - x_l),  W = argmin sum |(y - x_l) - W (x - x_l)|^2 + penalty |W|^2

    over all training windows and target columns: NLinear (Zeng et al. 2023, section 3) in closed form.

    Args:
        penalty: > 0, in units of z-scored columns; None chooses one for each step on validation rows, infinity, which
            is persistence, among them.
    """

    name = "ridge"
    kind = "shared"

    def __init__(self, penalty: float | None = None):
        super().__init__(penalty)


class VectorRidge(ClosedFormRidge):
    """Map the last `lags` rows of all columns to all target rows at once: a ridge vector autoregression.

    Args:
        lags: rows of context that are used; at most context_len of them.
        penalty: > 0, in units of z-scored columns; None chooses one for each step on validation rows, and whether
            weights are those of the change from the last value, persistence among them.
    """

    name = "vector ridge"
    kind = "vector"

    def __init__(self, lags: int = 10, penalty: float | None = None):
        super().__init__(penalty)
        if lags < 1:
            raise ValueError(f"lags must be at least 1, got {lags}")
        self.lags = lags

    def _rows_read(self, context_len: int) -> int:
        return min(self.lags, context_len)


class Analogs(Baseline):
    """Forecast what followed the most similar training windows (Lorenz 1969, Atmospheric predictability).

        y = sum_k a_k (future of neighbour k),   a_k proportional to 1 / |x - x_k|^2

    over the `neighbours` training windows whose last `lags` rows of all columns are nearest.

    Args:
        lags: rows of context that are compared; at most context_len of them.
        neighbours: windows averaged; at most those there are.
        from_last: average how the neighbours changed from their last row, and add that to the last row of the context.
    """

    name = "analogs"

    def __init__(self, lags: int = 5, neighbours: int = 16, from_last: bool = False):
        if min(lags, neighbours) < 1:
            raise ValueError(f"lags and neighbours must be at least 1, got {lags} and {neighbours}")
        self.lags = lags
        self.neighbours = neighbours
        self.from_last = from_last

    def _cost(self, rows: TrainingRows) -> Cost:
        return Cost(memory=FLOAT * rows.boundary * rows.columns)

    def _fit(self, rows: TrainingRows) -> None:
        self._lags = min(self.lags, self._context_len)
        self._rows = rows.values[: rows.boundary]
        self._square = self._rows.square().sum(dim=1)
        self._starts = torch.tensor(rows.starts(self._lags + self._target_len))

    def _predict(self, scaled: Tensor) -> Tensor:
        return torch.cat([self._of_nearest(chunk) for chunk in scaled.split(QUERIES)])

    def _of_nearest(self, scaled: Tensor) -> Tensor:
        distance = self._distances(scaled[:, -self._lags :])
        nearest = distance.topk(min(self.neighbours, len(self._starts)), largest=False)
        # below the rounding of the squares, one neighbour is as near as another
        nearness = 1 / nearest.values.clamp(min=1e-9 * self._lags * scaled.shape[2])
        weight = nearness / nearness.sum(dim=1, keepdim=True)
        last = self._starts[nearest.indices] + self._lags - 1  # (b, k)
        futures = last[..., None] + torch.arange(1, self._target_len + 1)
        targets = self._rows[:, : self._d_y_target]
        forecast = torch.einsum("bk,bknd->bnd", weight, targets[futures])
        if not self.from_last:
            return forecast
        return (
            forecast + (scaled[:, -1, : self._d_y_target] - torch.einsum("bk,bkd->bd", weight, targets[last]))[:, None]
        )

    def _distances(self, present: Tensor) -> Tensor:
        """Return |x - x_k|^2 of (b, lags, c) and all training windows k, (b, windows), without copies of these."""
        products = present @ self._rows.T  # (b, lags, rows)
        distance = present.square().sum(dim=(1, 2))[:, None].expand(-1, len(self._starts))
        for lag in range(self._lags):
            distance = distance + (self._square - 2 * products[:, lag])[:, self._starts + lag]
        return distance


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value
