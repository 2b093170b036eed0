"""Backtest over rolling origins: the trained forecaster beside yardsticks that are fitted anew at each origin.

l context_len, n target_len, d d_y_target
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from ..data import DataModule
from ..data.data_card import DataCard
from ..data.time_labels import time_texts
from ..forecaster import Forecaster
from ..missing_values import mark_missing
from .baseline import Baseline
from .baseline_comparison import or_left_out, rows_at, yardsticks_of
from .baselines import Persistence

COLUMNS = ("origin", "cutoff", "forecaster", "mse", "mae", "skill")


@dataclass(frozen=True)
class Backtest:
    """Scores of all forecasters at each origin.

    Attributes:
        scores: a DataFrame with the columns origin (counted from 0), cutoff (the last time before it), forecaster, mse,
            mae (original units) and skill (share of persistence's squared error that is avoided there).
        left_out: yardsticks that could not be fitted at some origin, with the reason.
    """

    scores: pd.DataFrame
    left_out: dict[str, str]

    def table(self) -> Table:
        """Lay out the means over origins, and at how many each forecaster was the best."""
        by_origin = self.scores.pivot(index="origin", columns="forecaster", values="mse")
        names = list(dict.fromkeys(self.scores["forecaster"]))
        errors = {name: by_origin[name].to_numpy() for name in names}
        best = np.array(names)[np.argmin(np.stack(list(errors.values())), axis=0)]
        lines = [f"left out: {name} ({why})" for name, why in self.left_out.items()]
        table = Table(title=f"Backtest: {len(by_origin)} origins", caption=escape("\n".join(lines)) or None)
        table.add_column("forecaster")
        for heading in ("skill", "MAE", "MSE", "worst MSE", "best at"):
            table.add_column(heading, justify="right")
        reference = errors[Persistence.name].mean()
        absolute = self.scores.pivot(index="origin", columns="forecaster", values="mae")
        for name, mse in errors.items():
            skill = 1 - mse.mean() / reference if reference > 0 else np.nan
            numbers = f"{skill:.5f}", *(f"{x:.3e}" for x in (absolute[name].to_numpy().mean(), mse.mean(), mse.max()))
            table.add_row(name, *numbers, str((best == name).sum()))
        return table


def backtest(
    forecaster: Forecaster,
    data: Any,
    *,
    n_windows: int | None = None,
    step_size: int | None = None,
    refit: bool = True,
    baselines: Sequence[Baseline] | None = None,
) -> Backtest:
    """Forecast from origins that roll over the test rows, and score each forecast.

        result = backtest(forecaster, "sensors.csv")
        result.scores.to_csv("backtest.csv", index=False)

    The forecaster stays as it was trained. Yardsticks see all rows before an origin, as they would in use: they are
    fitted anew, on an expanding window whose latest rows (as many as there are validation rows) choose their settings.

    Args:
        forecaster: a trained one.
        data: a DataModule, or the data of training in any form that SimulationTimeSeries takes.
        n_windows: the number of origins, the latest ones; None takes all.
        step_size: rows of a window from one origin to the next; None is the horizon, so that forecasts do not overlap.
        refit: whether yardsticks are fitted at each origin, or only at the first.
        baselines: the yardsticks; None for `default_baselines`. Persistence is added where it is missing.

    Raises:
        ValueError: a number below 1, a forecaster that does not know its data, or data without a test split.
    """
    data = data if isinstance(data, DataModule) else _data_of(forecaster, data)
    for name, number in (("n_windows", n_windows), ("step_size", step_size)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    windows = data.windows("test")
    origins = range(0, len(windows), step_size or data.target_len)
    origins = origins[-n_windows:] if n_windows else origins
    yardsticks = yardsticks_of(data, baselines)
    times = time_texts(data.series.times, data.series.time_zone)
    rows, left_out = [], {}
    for number, index in enumerate(origins):
        context, target = windows.window_slices(index)
        context_x, context_y, target_x, target_y = (part.unsqueeze(0) for part in windows[index])
        truth = mark_missing(target_y, forecaster.null_value)
        forecasts = {type(forecaster).__name__: forecaster.predict(context_x, context_y, target_x)}
        if refit or index == origins[0]:
            _fit(yardsticks, data, target.start, forecaster.null_value, left_out)
        context_y = mark_missing(context_y, forecaster.null_value)
        forecasts |= {each.name: each.predict(context_y) for each in yardsticks if each.name not in left_out}
        errors = {name: (forecast - truth).double() for name, forecast in forecasts.items()}
        reference = float(errors[Persistence.name].square().nanmean())
        for name, error in errors.items():
            mse = float(error.square().nanmean())
            skill = 1 - mse / reference if reference > 0 else np.nan
            rows.append((number, times[context][-1], name, mse, float(error.abs().nanmean()), skill))
    kept = [row for row in rows if row[2] not in left_out]
    return Backtest(pd.DataFrame(kept, columns=list(COLUMNS)), left_out)


def _fit(
    yardsticks: Sequence[Baseline], data: DataModule, first: int, null_value: float | None, left_out: dict[str, str]
) -> None:
    """Fit yardsticks on the rows before `first`, the first row to forecast."""
    every, start = data.time_resolution, data.series.split_range("train").start
    order = np.arange(first - every * ((first - start) // every), first, every)
    values, breaks = rows_at(data.series, order, null_value)
    sizes: dict[str, Any] = {name: getattr(data, name) for name in ("context_len", "target_len", "d_y_target")}
    sizes |= {"breaks": breaks, "validation_rows": ceil(data.series.length("val") / every)}
    for each in yardsticks:
        if each.name in left_out:
            continue
        with or_left_out(each, left_out):
            each.fit(values, **sizes)


def _data_of(forecaster: Forecaster, data: Any) -> DataModule:
    if forecaster.data_card is None:
        raise ValueError(
            "this forecaster does not know its data: fit it with a DataModule, load a checkpoint that fit wrote, or "
            "give the DataModule"
        )
    return DataModule.of_card(DataCard.of_dict(forecaster.data_card), data)
