"""Draw what a test found: errors over the horizon, and one forecast beside the truth.

l context_len, n target_len, d d_y_target. Figures are matplotlib Figures without pyplot: no window, no global state.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .report import Report, with_unit

# Okabe & Ito: distinct for every kind of colour vision. Line styles and markers say the same in grayscale.
MODEL_STYLE: dict[str, Any] = {"color": "#D55E00", "marker": "o", "linestyle": "-", "linewidth": 2.2, "markersize": 4.5}
BASELINE_STYLES: list[dict[str, Any]] = [
    {"color": "#000000", "marker": "x", "linestyle": "--"},
    {"color": "#0072B2", "marker": "s", "linestyle": ":"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": (0, (6, 1))},
    {"color": "#56B4E9", "marker": "v", "linestyle": (0, (1, 1))},
    {"color": "#E69F00", "marker": "P", "linestyle": (0, (4, 1, 1, 1, 1, 1))},
]
BASELINE_LINE = {"linewidth": 1.3, "markersize": 4.0, "markerfacecolor": "none"}
TRUTH_COLOR, CONTEXT_COLOR, ERROR_COLOR = "#000000", "#8C8C8C", "#0072B2"
DPI = 150


def plot_errors(report: Report) -> Figure:
    """Plot the mean squared error of each forecaster against the horizon step, on a logarithmic scale."""
    figure = Figure(figsize=(9, 4.8), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    steps = np.arange(1, report.target_len + 1)
    for row, (name, score) in enumerate(report.scores.items()):
        style = MODEL_STYLE if row == 0 else BASELINE_LINE | BASELINE_STYLES[(row - 1) % len(BASELINE_STYLES)]
        every = max(1, report.target_len // 20)
        axes.plot(steps, score.horizon["mse"], label=name, markevery=every, zorder=3 if row == 0 else 2, **style)
    axes.set_yscale("log")
    axes.set_xlabel("horizon step")
    axes.set_ylabel(with_unit("mean squared error", report.unit, power=2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=11, min_n_ticks=1))
    axes.grid(which="major", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    if report.time_unit is None:
        axes.spines["top"].set_visible(False)
    else:
        step = report.time_step
        functions: Any = (lambda steps: steps * step, lambda time: time / step)
        lead_time = axes.secondary_xaxis("top", functions=functions)
        lead_time.set_xlabel(with_unit("lead time", report.time_unit))
    axes.set_title(f"Test error, {report.windows} windows, {len(report.sensors)} sensors", pad=12)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


class ForecastWindow(NamedTuple):
    """A window of a few sensors with its forecast.

    Attributes:
        context: (l, d), original units, NaN where missing.
        truth: (n, d), original units, NaN where missing.
        forecast: (n, d), original units.
        times: (l + n,) numbers or dates, those of context and truth.
    """

    context: np.ndarray
    truth: np.ndarray
    forecast: np.ndarray
    times: np.ndarray


def plot_forecast(
    window: ForecastWindow, sensors: Sequence[str], title: str, *, unit: str | None = None, time_unit: str | None = None
) -> Figure:
    """Plot context, truth and forecast of a few sensors, each above the error of the forecast.

    Args:
        window: what to plot.
        sensors: d titles; each sensor takes 2.3 inches of height.
        title: title of the figure.
        unit: unit of the values, None where unknown.
        time_unit: unit of numeric times, None where unknown.
    """
    context, truth, forecast, times = window
    count, context_len = len(sensors), len(context)
    figure = Figure(figsize=(9, 1.0 + 2.3 * count), layout="constrained", dpi=DPI)
    rows = figure.subplots(2 * count, 1, sharex=True, squeeze=False, height_ratios=[3, 1.2] * count)[:, 0]
    past, future = times[:context_len], times[context_len:]
    for i, sensor in enumerate(sensors):
        values, error = rows[2 * i], rows[2 * i + 1]
        values.plot(past, context[:, i], color=CONTEXT_COLOR, linewidth=1.6, label="context")
        # one line through the last context point: the truth continues it
        joined = np.concatenate([context[-1:, i], truth[:, i]])
        values.plot(times[context_len - 1 :], joined, color=TRUTH_COLOR, linewidth=1.6, label="truth")
        style = MODEL_STYLE | {"linestyle": "none", "markerfacecolor": "none"}
        values.plot(future, forecast[:, i], label="forecast", **style)
        values.set_title(sensor, loc="left", fontsize="medium")
        values.set_ylabel(with_unit("value", unit))
        error.axhline(0, color=TRUTH_COLOR, linewidth=0.8)
        error.bar(future, forecast[:, i] - truth[:, i], width=_bar_width(times), color=ERROR_COLOR, label="error")
        error.set_ylabel(with_unit("error", unit))
        error.yaxis.set_major_locator(MaxNLocator(nbins=2, symmetric=True))
        for axes in (values, error):
            tidy(axes, start=times[context_len - 1])
    label_times(rows[-1], None if times.dtype.kind == "M" else time_unit, is_date=times.dtype.kind == "M")
    figure.align_ylabels()
    figure.suptitle(title)
    handles, labels = rows[0].get_legend_handles_labels()
    more_handles, more_labels = rows[1].get_legend_handles_labels()
    figure.legend(handles + more_handles, labels + more_labels, loc="outside right upper", frameon=False)
    return figure


def label_times(axes: Axes, unit: str | None, *, is_date: bool) -> None:
    """Label the axis of times, dates as briefly as they can be told apart."""
    if is_date:
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel(with_unit("time", unit))


def tidy(axes: Axes, start: Any) -> None:
    """Mark where the forecast starts, and leave out what tells nothing."""
    axes.axvline(start, color=CONTEXT_COLOR, linewidth=0.8, linestyle=":")
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bar_width(times: np.ndarray) -> Any:
    step = np.median(np.diff(times).astype(np.float64)) * 0.7
    return np.timedelta64(int(step), "ns") if times.dtype.kind == "M" else step
