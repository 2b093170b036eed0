"""Ridge regression for many penalties at once, and the choice between them on held-out windows.

g matrices, f inputs, r directions, n target_len, e outputs of a step, p penalties
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .linear_rows import LinearRows
from .missing_values import fill_missing
from .principal_directions import PrincipalDirections, principal_directions

Rows = Callable[[], Iterable[LinearRows]]

# in units of the largest eigenvalue; the small ones are for smooth data without noise
RELATIVE_PENALTIES = (1e-12, 1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# contexts of forecasts have none, and a network may undo some: the pinball's test error is 3.40e-3 U^2, with 1 3.71e-3
NOISE_SHARE = 0.28
MISSING_PASSES = 8  # a fraction p of missing targets leaves an error of about p^8 of what they would add


class Shrinkage(NamedTuple):
    """One way to keep the weights small.

    Attributes:
        penalty: > 0, on the squares of the weights; infinity for no weights at all.
        from_last: whether the weights are those of the change from the last value, so that a large penalty leaves
            persistence; otherwise it leaves the mean.
    """

    penalty: float
    from_last: bool


class RidgeMap(NamedTuple):
    """Forecast rows: coefficients (g, r, n, e) of the directions, an intercept (g, 1, n, e), and the share of the last
    value at each step, (n, 1).
    """

    directions: PrincipalDirections
    coefficients: Tensor
    intercept: Tensor
    from_last: Tensor

    def __call__(self, rows: LinearRows) -> Tensor:
        """Return outputs (g, rows, n, e)."""
        change = self.directions.project(rows.inputs) @ self.coefficients.flatten(2)
        return change.unflatten(2, self.coefficients.shape[2:]) + self.intercept + self.from_last * rows.last


@dataclass
class RidgeSolutions:
    """The solutions W(penalty) of min sum |y - W x - b|^2 + penalty |W|^2 for every penalty.

        W(penalty) = basis (response / (spectrum + penalty)),   response = (x basis)^T y

    and likewise for y less the last value, whose response is that of y less that of the last value.

    Attributes:
        directions: of the inputs.
        response: (g, r, n, e).
        mean: (g, 1, n, e) of the outputs; zeros without a constant b.
        last_response: (g, r, 1, e); last_mean: (g, 1, 1, e).
        has_constant: whether there is a b, without penalty. Without one the outputs start from the last value always.
        has_missing: whether outputs were missing.
        count: rows.
    """

    directions: PrincipalDirections
    response: Tensor
    mean: Tensor
    last_response: Tensor
    last_mean: Tensor
    has_constant: bool
    has_missing: bool
    count: int

    def candidates(self, penalties: Sequence[float] | None, noise: float) -> list[Shrinkage]:
        """List what is chosen from: given penalties, or a grid that follows the largest eigenvalue and reaches
        persistence. None is below what `noise` on the inputs amounts to.
        """
        if penalties is not None:
            return [Shrinkage(penalty, not self.has_constant) for penalty in penalties]
        largest = float(self.directions.spectrum.max()) if self.directions.spectrum.numel() else 1.0
        # E |y - W (x + noise)|^2 = |y - W x|^2 + noise^2 |W|^2 for each row (Bishop 1995)
        least = self.count * (NOISE_SHARE * noise) ** 2
        grid = [*sorted({max(relative * largest, least) for relative in RELATIVE_PENALTIES}), torch.inf]
        return [Shrinkage(each, last) for each in grid for last in ((True, False) if self.has_constant else (True,))]

    def coefficients(self, chosen: Sequence[Shrinkage]) -> Tensor:
        """Return weights (g, r, n, e) of the directions, with one shrinkage for each step."""
        spectrum = self.directions.spectrum
        penalty = spectrum.new_tensor([each.penalty for each in chosen])
        from_last = spectrum.new_tensor([each.from_last and self.has_constant for each in chosen])
        response = self.response - from_last[:, None] * self.last_response
        return response / (spectrum[:, :, None, None] + penalty[:, None])

    def intercept(self, chosen: Sequence[Shrinkage]) -> Tensor:
        """Return what is added to the weighted directions, (g, 1, n, e); pure persistence has none."""
        from_last = self.mean.new_tensor([each.from_last for each in chosen])[:, None]
        is_pure = self.mean.new_tensor([each.from_last and each.penalty == torch.inf for each in chosen])[:, None]
        return (self.mean - from_last * self.last_mean) * (1 - is_pure)

    def map(self, chosen: Sequence[Shrinkage]) -> "RidgeMap":
        """Return the forecast with one shrinkage for each step."""
        from_last = self.mean.new_tensor([each.from_last for each in chosen])[:, None]
        return RidgeMap(self.directions, self.coefficients(chosen), self.intercept(chosen), from_last)

    def errors(self, held_out: Iterable[LinearRows], candidates: Sequence[Shrinkage]) -> Tensor:
        """Return the sum of squared errors of each candidate at each step, (p, n)."""
        errors = torch.zeros(len(candidates), self.response.shape[2], dtype=torch.float64)
        constants = [self.intercept([each]) for each in candidates]
        for rows in held_out:
            assert rows.outputs is not None
            inputs = self.directions.project(rows.inputs)
            products: dict[float, tuple[Tensor, Tensor]] = {}
            for i, (penalty, from_last) in enumerate(candidates):
                if penalty not in products:
                    products = {penalty: self._products(inputs, penalty)}
                change, of_last = products[penalty]
                forecast = change + constants[i]
                if from_last:
                    forecast = forecast - of_last + rows.last
                errors[i] += fill_missing(forecast - rows.outputs).square().sum(dim=(0, 1, 3))
        return errors

    def _products(self, inputs: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """Return the shrunk forecasts of the outputs and of the last value."""
        shrunk = inputs / (self.directions.spectrum.unsqueeze(1) + penalty)
        responses = (self.response, self.last_response)
        forecast, of_last = ((shrunk @ each.flatten(2)).unflatten(2, each.shape[2:]) for each in responses)
        return forecast, of_last


def solve_ridge(
    train: Rows, held_out: Rows, *, has_constant: bool, penalties: Sequence[float] | None = None, noise: float = 0.0
) -> tuple[RidgeSolutions, list[Shrinkage]]:
    """Solve for all penalties by one eigendecomposition, and choose one at each step.

    Missing outputs are filled, again and again, by what the chosen solution forecasts: filled in so they add nothing to
    the residual, and the fit is to the observed ones (expectation maximisation for least squares).

    Args:
        train: yields rows in float64, anew at each call.
        held_out: yields the rows that shrinkages are chosen on; not read when there is one candidate.
        has_constant: whether a constant is fitted beside the weights.
        penalties: to choose from, each > 0; None: from 1e-12 to 0.1 of the largest eigenvalue, and infinity, which is
            persistence.
        noise: standard deviation of what the inputs will have added to them beside those of `train`.

    Returns:
        The solutions, and the shrinkage chosen for each of the n steps.

    Raises:
        ValueError: no training rows, or a penalty that is not positive and finite.
    """
    for penalty in penalties or ():
        if not 0 < penalty < float("inf"):
            raise ValueError(f"penalty must be positive and finite, got {penalty}")
    directions = principal_directions((rows.inputs for rows in train()), is_centred=has_constant)
    if directions is None:
        raise ValueError("a linear fit needs at least one training window, got none")
    solutions = _respond(train(), directions, has_constant, lambda rows: rows.last)
    candidates = solutions.candidates(penalties, noise)
    chosen = [candidates[0]] * solutions.response.shape[2]
    if len(candidates) > 1:
        best = solutions.errors(held_out(), candidates).argmin(dim=0)
        chosen = [candidates[i] for i in best.tolist()]
    for _ in range(MISSING_PASSES if solutions.has_missing else 0):
        solutions = _respond(train(), directions, has_constant, solutions.map(chosen))
    return solutions, chosen


def _respond(
    train: Iterable[LinearRows],
    directions: PrincipalDirections,
    has_constant: bool,
    fill: Callable[[LinearRows], Tensor],
) -> RidgeSolutions:
    """Sum the products of directions and outputs, missing ones filled."""
    response = last_response = mean = last_mean = torch.zeros(())
    count, has_missing = 0, False
    for rows in train:
        assert rows.outputs is not None
        inputs, outputs = directions.project(rows.inputs), rows.outputs
        missing = outputs.isnan()
        if missing.any():
            has_missing = True
            outputs = torch.where(missing, fill(rows).expand_as(outputs), outputs)
        if has_constant:
            mean = mean + outputs.sum(dim=1, keepdim=True)
            last_mean = last_mean + rows.last.sum(dim=1, keepdim=True)
            last_response = last_response + (inputs.mT @ rows.last.flatten(2)).unflatten(2, rows.last.shape[2:])
        else:
            outputs = outputs - rows.last
        response = response + (inputs.mT @ outputs.flatten(2)).unflatten(2, outputs.shape[2:])
        count += outputs.shape[1]
    if not has_constant:
        groups, _, steps, width = response.shape  # there may be no direction: a window of one row
        mean, last_mean = response.new_zeros(groups, 1, steps, width), response.new_zeros(groups, 1, 1, width)
        last_response = torch.zeros_like(response[:, :, :1])
    means = mean / count, last_response, last_mean / count
    return RidgeSolutions(directions, response, *means, has_constant, has_missing, count)
