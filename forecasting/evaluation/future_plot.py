"""Draw a forecast of the future behind the context that it starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from ..data.time_grid import local_index
from .plots import CONTEXT_COLOR, DPI, MODEL_STYLE, label_times, tidy
from .report import with_unit

if TYPE_CHECKING:
    from ..labelled_forecast import Forecast

SENSORS_DRAWN = 4


def plot_future(forecast: Forecast, sensors: list[str] | None = None) -> Figure:
    """Plot context and forecast of a few sensors, one below the other.

    Args:
        forecast: what to draw.
        sensors: names; None takes the first four.

    Raises:
        ValueError: an unknown name.
    """
    chosen = forecast.columns[:SENSORS_DRAWN] if sensors is None else list(sensors)
    unknown = [name for name in chosen if name not in forecast.columns]
    if unknown or not chosen:
        raise ValueError(f"sensors must be among {forecast.columns}, got {unknown or chosen}")
    is_date = forecast.times.dtype.kind == "M"
    past, future = forecast.context_times, forecast.times
    if is_date and forecast.time_zone is not None:
        past, future = (local_index(times, forecast.time_zone).tz_localize(None).to_numpy() for times in (past, future))
    figure = Figure(figsize=(9, 1.0 + 2.0 * len(chosen)), layout="constrained", dpi=DPI)
    rows = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(rows, chosen, strict=True):
        i = forecast.columns.index(name)
        axes.plot(past, forecast.context[:, i], color=CONTEXT_COLOR, linewidth=1.6, label="context")
        for level, (lower, upper) in sorted(forecast.intervals.items(), reverse=True):
            label = f"{level:.0%} interval"
            color = MODEL_STYLE["color"]
            axes.fill_between(future, lower[:, i], upper[:, i], color=color, alpha=0.2, linewidth=0, label=label)
        joined = np.r_[forecast.context[-1:, i], forecast.values[:, i]]
        every = max(1, len(future) // 40)
        axes.plot(np.r_[past[-1:], future], joined, label="forecast", markevery=every, **MODEL_STYLE)
        tidy(axes, start=past[-1])
        axes.set_title(name, loc="left", fontsize="medium")
        axes.set_ylabel(with_unit("value", forecast.units[i]))
    label_times(rows[-1], forecast.time_zone if is_date else forecast.time_unit, is_date=is_date)
    figure.align_ylabels()
    shown = "" if len(chosen) == len(forecast.columns) else f", {len(chosen)} of {len(forecast.columns)} sensors"
    figure.suptitle(f"Forecast of {len(future)} steps{shown}")
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure
