"""Score prediction intervals on test windows: coverage, width, and the continuous ranked probability score.

b batch, n target_len, d d_y_target, q levels
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torchmetrics.regression import ContinuousRankedProbabilityScore

from ..conformal import AdaptiveConformal, ConformalIntervals

LEVELS = (0.8, 0.95)
MEMBER_LEVELS = tuple(percent / 100 for percent in range(5, 100, 10))  # forecast ± these radii: 20 equal quantiles
MEMBERS_AT_ONCE = 1 << 16  # targets whose members are compared with each other: 100 MiB
STEPS_SHOWN = 6


@dataclass(frozen=True)
class IntervalReport:
    """How often intervals held the truth.

    Attributes:
        levels: q levels.
        coverage: (q, n) share of observed test targets inside the interval of their step; NaN without an interval.
        width: (q, n) mean width, original units.
        adaptive_coverage: (q, n) of adaptive conformal inference; None where it was not computed.
        crps: continuous ranked probability score of 20 quantiles, original units; NaN where there are too few windows.
        windows: validation windows that the intervals come from.
    """

    levels: tuple[float, ...]
    coverage: np.ndarray
    width: np.ndarray
    adaptive_coverage: np.ndarray | None
    crps: float
    windows: int


class IntervalScores:
    """Accumulate the scores of intervals over batches of test windows in the order of time.

    Args:
        intervals: those of the forecaster.
        levels: to score.
        is_adaptive: whether AdaptiveConformal is scored too, from the errors of `intervals`, which must be there.
    """

    def __init__(
        self, intervals: ConformalIntervals, levels: Sequence[float] = LEVELS, *, is_adaptive: bool = False
    ) -> None:
        self.levels = tuple(levels)
        self.windows = int(intervals.counts.max())
        self.radii = intervals.radii(self.levels)  # (q, n, d)
        self.members = intervals.radii(MEMBER_LEVELS)
        self.adaptive = AdaptiveConformal(intervals.errors, self.levels) if is_adaptive else None
        self.covered = self.adapted = torch.zeros(self.radii.shape[:2], dtype=torch.float64)
        self.count = torch.zeros(self.radii.shape[1], dtype=torch.float64)
        self.crps = ContinuousRankedProbabilityScore()

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Add forecasts (b, n, d) and the truth, NaN where missing."""
        forecast, target = forecast.detach().cpu(), target.cpu()
        error = (forecast - target).abs().float()
        observed = ~error.isnan()
        self.covered = self.covered + (error <= self.radii.unsqueeze(1)).sum(dim=(1, 3))
        self.count = self.count + observed.sum(dim=(0, 2))
        if self.adaptive is not None:
            for each in error:
                self.adapted = self.adapted + self.adaptive.step(each)[0].sum(dim=2)
        if self.members.isfinite().all():
            ends = torch.cat((forecast - self.members.unsqueeze(1), forecast + self.members.unsqueeze(1)))
            members, truth = ends.movedim(0, -1)[observed], target[observed]
            for part, true in zip(members.split(MEMBERS_AT_ONCE), truth.split(MEMBERS_AT_ONCE), strict=True):
                self.crps.update(part.float(), true.float())

    def report(self) -> IntervalReport:
        """Return the scores so far."""
        none = self.radii.isnan().all(dim=2)
        coverage = torch.where(none, torch.nan, self.covered / self.count)
        has_crps = self.members.isfinite().all() and self.count.sum() > 0
        return IntervalReport(
            levels=self.levels,
            coverage=coverage.numpy(),
            width=(2 * self.radii.double().nanmean(dim=2)).numpy(),
            adaptive_coverage=None if self.adaptive is None else (self.adapted / self.count).numpy(),
            crps=float(self.crps.compute()) if has_crps else float("nan"),
            windows=self.windows,
        )


def interval_lines(report: IntervalReport) -> list[str]:
    """Say in a line for each level how often intervals held the truth, or that there are too few windows."""
    lines = []
    for i, level in enumerate(report.levels):
        if np.isnan(report.coverage[i]).any():
            lines.append(
                f"{level:.0%} intervals: none, validation has {report.windows} windows, too few for that level"
            )
            continue
        said = f"{level:.0%} intervals held {report.coverage[i].mean():.1%} of the test values"
        if report.adaptive_coverage is not None:
            said += f", adaptive ones {report.adaptive_coverage[i].mean():.1%}"
        lines.append(said)
    return lines


def steps_shown(target_len: int) -> list[int]:
    """Return the steps of a horizon that tables show: all of a short one, six of a long one with first and last."""
    return sorted({round(step) for step in np.linspace(1, target_len, STEPS_SHOWN)})


def coverage_table(report: IntervalReport) -> Table:
    """Lay out the coverage at each step, of long horizons at six steps."""
    table = Table(title="Coverage of the prediction intervals on test, by horizon step")
    table.add_column("intervals", no_wrap=True)
    steps = steps_shown(report.coverage.shape[1])
    for step in [*map(str, steps), "all"]:
        table.add_column(step, justify="right")
    rows = {"": report.coverage, ", adaptive": report.adaptive_coverage}
    for i, level in enumerate(report.levels):
        for kind, values in rows.items():
            if values is not None:
                shares = [values[i, step - 1] for step in steps] + [values[i].mean()]
                table.add_row(escape(f"{level:.0%}{kind}"), *("-" if np.isnan(x) else f"{x:.3f}" for x in shares))
    return table
