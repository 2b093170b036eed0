"""Define what a baseline is: fitted in closed form on training rows, it forecasts from contexts.

b batch, l context_len, n target_len, c d_y_context columns of which the first d_y_target are forecast.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from .training_rows import TrainingRows

Candidate = TypeVar("Candidate", bound=Hashable)

MOST_RANK = 4096  # of a Gram matrix, whose eigenvectors take half a minute on one core
MOST_BYTES = 2 << 30  # that a fit may hold


class Cost(NamedTuple):
    """What a fit takes: the size of the Gram matrix that it decomposes, and the bytes that it holds."""

    rank: int = 0
    memory: int = 0


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
        validation_rows: int = 0,
    ) -> Self:
        """Fit on the training rows.

        Args:
            values: (rows, c) training rows in time order, targets first, missing entries NaN.
            context_len: l, rows of context in predict, at least 1.
            target_len: n, rows to forecast, at least 1.
            d_y_target: number of forecast columns, 1 to c.
            breaks: rows that do not follow the row before, such as the first of each run but the first: no window
                reaches across.
            validation_rows: how many of the last rows are not fitted to, but settings chosen on; 0: settings are chosen
                on the last fifth of the training rows, and fitted again on all of them.

        Raises:
            ValueError: widths that do not fit, fewer than context_len + target_len rows without a break, or a fit that
                would take more than MOST_RANK or MOST_BYTES.
        """
        rows = self._training_rows(values, (context_len, target_len, d_y_target), breaks, validation_rows)
        self._check_cost(rows)
        self._take_statistics(rows.values[: rows.boundary])
        self._fit_rows(replace(rows, values=torch.cat([self._scale(run) for run in rows.runs()])))
        return self

    def check(
        self, values: Tensor | np.ndarray, *, breaks: Sequence[int] = (), validation_rows: int = 0, **sizes: int
    ) -> None:
        """Raise the ValueError that `fit` with these arguments would, for rows that are too few or a fit too costly."""
        rows = self._training_rows(
            values, (sizes["context_len"], sizes["target_len"], sizes["d_y_target"]), breaks, validation_rows
        )
        self._check_cost(rows)

    def _training_rows(
        self, values: Tensor | np.ndarray, sizes: tuple[int, int, int], breaks: Sequence[int], validation_rows: int
    ) -> TrainingRows:
        context_len, target_len, d_y_target = sizes
        given = torch.as_tensor(values).detach().to("cpu", torch.float64)
        if given.ndim != 2 or not 1 <= d_y_target <= given.shape[1]:
            raise ValueError(
                f"values must be (rows, columns) with at least d_y_target={d_y_target} >= 1 columns, "
                f"got {tuple(given.shape)}"
            )
        boundary = len(given) - validation_rows
        edges = sorted({0, *(int(row) for row in breaks), len(given)})
        longest = max((min(stop, boundary) - start for start, stop in pairwise(edges)), default=0)
        if min(context_len, target_len) < 1 or longest < context_len + target_len:
            raise ValueError(
                f"{self.name} needs context_len and target_len of at least 1 and that many training rows together "
                f"without a break, got context_len={context_len}, target_len={target_len} and {longest} rows"
            )
        return TrainingRows(given, tuple(edges), boundary, context_len, target_len, d_y_target)

    def _take_statistics(self, rows: Tensor) -> None:
        observed = ~rows.isnan()
        count = observed.sum(dim=0).clamp(min=1)
        self._mean = torch.where(observed, rows, 0.0).sum(dim=0) / count
        deviation = torch.where(observed, rows - self._mean, 0.0)
        std = deviation.square().sum(dim=0).div(count).sqrt()
        # a constant column deviates by rounding alone
        self._std = torch.where(std > 1e-9 * self._mean.abs(), std, 1.0)

    def _fit_rows(self, rows: TrainingRows) -> None:
        self._context_len, self._target_len, self._d_y_target = rows.context_len, rows.target_len, rows.d_y_target
        self._fit(rows)

    def _check_cost(self, rows: TrainingRows) -> None:
        cost = self._cost(rows)
        if not _is_affordable(cost):
            raise ValueError(
                f"{self.name} would decompose a matrix of {cost.rank} rows and hold {cost.memory / 2**30:.2g} GiB with "
                f"{rows.columns} columns and {rows.target_len} steps: at most {MOST_RANK} rows and "
                f"{MOST_BYTES / 2**30:.2g} GiB are taken"
            )

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

    def _cost(self, rows: TrainingRows) -> Cost:
        """Return what a fit on these rows takes."""
        return Cost()

    @abstractmethod
    def _fit(self, rows: TrainingRows) -> None:
        """Fit on z-scored rows without missing values."""

    @abstractmethod
    def _predict(self, scaled: Tensor) -> Tensor:
        """Forecast (b, n, d_y_target) from (b, l, c), both z-scored."""


class HeldOutChoice(Baseline):
    """Take at each step of the horizon the baseline that forecasts held-out rows best.

    Candidates are fitted on the training rows and compared on the validation rows; without these, fitted on four fifths
    of the training rows, compared on the last fifth, and the chosen ones fitted again on all of them. The one with the
    least squared error on z-scored columns is taken, those left out that take too much (Baseline.fit).

    Args:
        name: how reports call it.
        candidates: the baselines to choose from; with Persistence among them it does not fall far below persistence.
    """

    def __init__(self, name: str, candidates: Sequence[Baseline]):
        if not candidates:
            raise ValueError("candidates must hold at least one baseline, got none")
        self.name = name
        self.candidates = list(candidates)

    def _cost(self, rows: TrainingRows) -> Cost:
        costs = [cost for cost in (each._cost(rows) for each in self.candidates) if cost != Cost()] or [Cost()]
        return min(costs, key=lambda cost: (not _is_affordable(cost), cost))

    def _fit(self, rows: TrainingRows) -> None:
        choosing = rows.choosing(self.name)
        affordable = [each for each in self.candidates if _is_affordable(each._cost(rows))]
        for each in affordable:
            each._fit_rows(choosing)
        self.chosen = best_by_step(affordable, choosing, lambda each, context: each._predict(context))
        if choosing.is_borrowed:
            for each in set(self.chosen):
                each._fit_rows(choosing.whole())

    def _predict(self, scaled: Tensor) -> Tensor:
        return forecast_by_step(self.chosen, lambda each: each._predict(scaled))


def best_by_step(
    candidates: Sequence[Candidate], rows: TrainingRows, predict: Callable[[Candidate, Tensor], Tensor]
) -> list[Candidate]:
    """Return for each step of the horizon the candidate that forecasts the held-out windows best."""
    errors = torch.zeros(len(candidates), rows.target_len, dtype=torch.float64)
    for context, target in rows.held_out():
        for i, each in enumerate(candidates):
            errors[i] += (predict(each, context) - target).square().sum(dim=(0, 2))
    return [candidates[i] for i in errors.argmin(dim=0).tolist()]


def forecast_by_step(chosen: Sequence[Candidate], predict: Callable[[Candidate], Tensor]) -> Tensor:
    """Return the forecast (b, n, d) whose step i is that of chosen[i]; each of these forecasts once."""
    forecasts = {each: predict(each) for each in set(chosen)}
    return torch.stack([forecasts[each][:, step] for step, each in enumerate(chosen)], dim=1)


def _is_affordable(cost: Cost) -> bool:
    return cost.rank <= MOST_RANK and cost.memory <= MOST_BYTES
