"""Prediction intervals by conformal prediction: how far forecasts of held-out windows were from the truth.

w held-out windows, b batch, n target_len, d d_y_target, q levels
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .missing_values import mark_missing

PERCENTS = 99  # radii are kept for 1 % to 99 %
MOST_ELEMENTS = 1 << 26  # errors kept at once: 256 MiB; of more, every second window
STEP_SIZE = 0.02  # of adaptive conformal inference
REFRESHES = 5  # of the errors that it looks at, over as many windows as there were held out


class Predictor(Protocol):
    """What forecasts windows in original units."""

    null_value: float | None

    def predict(self, context_x: Tensor, context_y: Tensor, target_x: Tensor) -> Tensor: ...


class ConformalIntervals(NamedTuple):
    """Half widths of prediction intervals, for each step and sensor, by split conformal prediction.

    With N absolute errors of held-out windows, forecast ± the ceil((N + 1) level)-th smallest of them covers a new
    truth with at least that probability, if that is exchangeable with them (Vovk et al. 2005; Lei et al. 2018, section
    2.2). Where the rank exceeds N no interval has that coverage, and the radius is NaN.

    Attributes:
        radius: (99, n, d) for levels of 1 % to 99 %, original units.
        counts: (n, d) number N of observed errors.
        errors: (w, n, d) the absolute errors themselves in the order of the windows, NaN where missing; they are not
            kept in checkpoints, where w is 0.
    """

    radius: Tensor
    counts: Tensor
    errors: Tensor

    @classmethod
    def of(cls, errors: Tensor) -> ConformalIntervals:
        """Take the quantiles of errors (w, n, d), NaN where missing."""
        errors = errors.abs()
        counts = (~errors.isnan()).sum(dim=0)
        ranked = errors.nan_to_num(nan=torch.inf, posinf=torch.inf).sort(dim=0).values
        percent = torch.arange(1, PERCENTS + 1).view(-1, 1, 1)
        rank = ((counts + 1) * percent + 99) // 100  # ceil, in whole numbers
        radius = ranked.gather(0, (rank - 1).clamp(max=max(len(errors) - 1, 0))) if len(errors) else rank * torch.nan
        return cls(torch.where(rank > counts, torch.nan, radius).float(), counts, errors)

    @classmethod
    def of_dict(cls, content: dict[str, Tensor] | None) -> ConformalIntervals | None:
        """Read what `to_dict` wrote; None for nothing."""
        if content is None:
            return None
        radius, counts = content["radius"], content["counts"]
        return cls(radius, counts, radius.new_zeros(0, *radius.shape[1:]))

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"radius": self.radius, "counts": self.counts}

    def radii(self, levels: Sequence[float]) -> Tensor:
        """Return the half widths (q, n, d), NaN where there were too few windows.

        Raises:
            ValueError: a level that is no whole percent between 1 % and 99 %.
        """
        return self.radius[[percent(level) - 1 for level in levels]]

    def needed(self, level: float) -> int:
        """Return how many held-out windows a level takes: N with ceil((N + 1) level) <= N."""
        return -(-percent(level) // (100 - percent(level)))


def percent(level: float) -> int:
    """Return a level in percent.

    Raises:
        ValueError: no whole percent between 1 % and 99 %.
    """
    if isinstance(level, bool) or not 0.005 < level < 0.995 or abs(level * 100 - round(level * 100)) > 1e-6:
        raise ValueError(f"levels of intervals must be whole percents from 0.01 to 0.99, such as 0.8: got {level}")
    return round(level * 100)


def conformal_intervals(model: Predictor, windows: Iterable[Sequence[Tensor]]) -> ConformalIntervals:
    """Forecast held-out windows and take the quantiles of the errors.

    Args:
        model: the forecaster.
        windows: batches (context_x, context_y, target_x, target_y) in original units.

    Raises:
        ValueError: no window.
    """
    kept: list[Tensor] = []
    every, seen = 1, 0
    for context_x, context_y, target_x, target_y in windows:
        truth = mark_missing(target_y, model.null_value)
        error = (model.predict(context_x, context_y, target_x) - truth).abs().float().cpu()
        kept.append(error[(-seen) % every :: every])
        seen += len(error)
        if sum(each.numel() for each in kept) > MOST_ELEMENTS:
            kept, every = [torch.cat(kept)[::2]], 2 * every
    if not seen:
        raise ValueError("prediction intervals need at least one held-out window, got none")
    return ConformalIntervals.of(torch.cat(kept))


class AdaptiveConformal:
    """Adaptive conformal inference (Gibbs & Candès 2021, eq. (2)) over windows in the order of time.

        alpha[t+1] = alpha[t] + step_size ((1 - level) - miss[t])

    for each level, step and sensor; the radius at t is the quantile 1 - alpha[t] of the latest errors: the held-out
    ones, which those of past windows replace. The truth of step h is known h windows later, and counts from then on. An
    alpha below 0 takes the largest of these errors times 1 - alpha in place of an unbounded interval.

    Args:
        errors: (w, n, d) absolute errors of the held-out windows, NaN where missing.
        levels: q levels.
        step_size: how fast it adapts; the paper's gamma.
    """

    def __init__(self, errors: Tensor, levels: Sequence[float], step_size: float = STEP_SIZE) -> None:
        self.step_size = step_size
        self.wanted = 1 - torch.tensor([percent(level) / 100 for level in levels]).view(-1, 1, 1)
        self.alpha = self.wanted.expand(-1, *errors.shape[1:]).clone()
        self.recent = errors.clone()
        self.table = self._table()
        steps = torch.arange(errors.shape[1])
        self.steps = steps  # h - 1
        self.errors = errors.new_zeros(len(steps), *errors.shape[1:])  # of the latest n windows
        self.missed = torch.zeros(len(self.wanted), *self.errors.shape, dtype=torch.bool)
        self.windows = 0

    def step(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """Take the absolute errors (n, d) of the next window, and return what covered it and its radii, (q, n, d)."""
        radius, slots = self._radius(), len(self.steps)
        covered = error <= radius
        self.errors[self.windows % slots], self.missed[:, self.windows % slots] = error, ~covered
        window = self.windows - self.steps  # whose step h is known once this window is over
        past, missed = (each[..., window % slots, self.steps, :] for each in (self.errors, self.missed))
        is_known = (window >= 0)[:, None] & ~past.isnan()
        self.alpha += torch.where(is_known, self.step_size * (self.wanted - missed.float()), 0.0)
        place = self.windows % len(self.recent)
        self.recent[place] = torch.where((window >= 0)[:, None], past, self.recent[place])
        self.windows += 1
        if self.windows % max(1, len(self.recent) // REFRESHES) == 0:
            self.table = self._table()
        return covered, radius

    def _table(self) -> Tensor:
        levels = torch.linspace(0, 1, PERCENTS + 2)  # step by step: nanquantile takes 2^24 numbers at most
        return torch.stack([torch.nanquantile(each, levels, dim=0) for each in self.recent.unbind(1)], dim=1)

    def _radius(self) -> Tensor:
        position = ((1 - self.alpha).clamp(0, 1) * (PERCENTS + 1)).nan_to_num()
        below = position.floor().long().clamp(max=PERCENTS)
        low, high = self.table.gather(0, below), self.table.gather(0, below + 1)
        return (low + (high - low) * (position - below)) * (1 - self.alpha.clamp(max=0))
