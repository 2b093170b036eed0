"""Draw where, at which frequencies, and beyond which intervals forecasts err.

n target_len, d d_y_target, f frequencies, q levels
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..data.place_axes import PlaceAxis, storage_free_order
from .interval_scores import IntervalReport
from .plots import BASELINE_STYLES, DPI, MODEL_STYLE, TRUTH_COLOR
from .report import Report, with_unit

MOST_BARS = 40
SAME_PLACE = 1e-6  # of the extent of the sensors
FEWEST_STEPS = 4  # that a spectrum needs
LEAST_SHARE = 1e-7  # of the largest power that is drawn: the rest is rounding


def plot_error_map(report: Report, coordinates: np.ndarray | None, axes: Sequence[PlaceAxis] = ()) -> Figure:
    """Plot the test error of the model at each sensor, on the layout of the sensors where it is known.

    Errors are root mean squares, in training standard deviations where these are known; columns at one position are
    averaged. x points to the right and y upwards, whatever their order; an axis along which all sensors stand at one
    place is left out. Without coordinates sensors stand side by side.

    Args:
        report: scores, the model first.
        coordinates: (d, 1 to 3) positions, None where unknown.
        axes: of the positions, none where unknown: then the first points to the right.
    """
    mse, label = next(iter(report.scores.values())).sensor["mse"], with_unit("RMSE", report.unit)
    if report.scales is not None:
        mse, label = mse / np.square(report.scales), "RMSE [training std]"
    figure = Figure(figsize=(9, 4.2), layout="constrained", dpi=DPI)
    if coordinates is None:
        _bars(figure, report.sensors, np.sqrt(mse), label)
        return figure
    layout = _layout(np.asarray(coordinates, dtype=np.float64), axes)
    places, which = np.unique(layout.places, axis=0, return_inverse=True)
    which = which.ravel()
    observed = ~np.isnan(mse)
    count = np.bincount(which[observed], minlength=len(places))
    total = np.bincount(which[observed], weights=mse[observed], minlength=len(places))
    error = np.sqrt(np.divide(total, count, out=np.full(len(places), np.nan), where=count > 0))
    if places.shape[1] == 1:
        drawn = figure.add_subplot()
        drawn.plot(error, places[:, 0], **MODEL_STYLE)
        drawn.set_xlabel(label)
        drawn.set_ylabel(layout.labels[0])
    else:
        drawn: Any = figure.add_subplot(projection="3d" if places.shape[1] >= 3 else None)
        points = drawn.scatter(*places[:, :3].T, c=error, s=90, cmap="viridis", edgecolors="#444444", linewidths=0.4)
        figure.colorbar(points, ax=drawn, label=label)
        if places.shape[1] == 2:
            drawn.set_aspect("equal", adjustable="datalim")
        for direction, name in zip("xyz", layout.labels, strict=False):
            getattr(drawn, f"set_{direction}label")(name)
    figure.suptitle(", ".join(["Test error on the sensor layout", *layout.fixed]))
    return figure


class _Layout(NamedTuple):
    """Places (d, axes drawn), the labels of their axes, and where sensors stand along those that are left out."""

    places: np.ndarray
    labels: list[str]
    fixed: list[str]


def _layout(places: np.ndarray, axes: Sequence[PlaceAxis]) -> _Layout:
    """Choose the axes along which sensors differ, x first, then y and z, then others."""
    order = list(range(places.shape[1]))
    labels = ["position"] if len(order) == 1 else [f"{nth} coordinate" for nth in ("first", "second", "third")]
    if axes:
        ordered = storage_free_order(axis.name for axis in axes)[::-1]
        order.sort(key=lambda i: ordered.index(axes[i].name))
        labels = [axis.label for axis in axes]
    width = np.ptp(places, axis=0)
    spread = [i for i in order if width[i] > SAME_PLACE * width.max()] or order[:1]
    fixed = [f"{axes[i].label} = {places[0, i]:.4g}" for i in order if axes and i not in spread]
    return _Layout(places[:, spread], [labels[i] for i in spread], fixed)


def _bars(figure: Figure, names: list[str], error: np.ndarray, label: str) -> None:
    axes = figure.add_subplot()
    shown = np.sort(np.argsort(-np.nan_to_num(error))[:MOST_BARS])
    axes.bar([names[i] for i in shown], error[shown], color=MODEL_STYLE["color"])
    axes.tick_params(axis="x", labelrotation=90, labelsize="small")
    axes.set_ylabel(label)
    title = "Test error by sensor (positions unknown)"
    figure.suptitle(title if len(shown) == len(names) else f"{title}, the {MOST_BARS} largest of {len(names)}")


def plot_spectrum(
    true_power: np.ndarray, forecast_power: np.ndarray, time_step: float, time_unit: str | None
) -> Figure | None:
    """Plot the power spectra over the horizon of truth and forecast, each sensor relative to its true power.

    Args:
        true_power: (f, d), as DynamicsErrors sums it.
        forecast_power: (f, d).
        time_step: between horizon steps.
        time_unit: its unit, None where unknown.

    Returns:
        The figure; None where the horizon has fewer than four steps or nothing was observed.
    """
    total = true_power.sum(axis=0)
    if len(true_power) < FEWEST_STEPS // 2 + 1 or not (total > 0).any():
        return None
    steps = 2 * (len(true_power) - 1)
    frequency = np.arange(len(true_power)) / (steps * time_step)
    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    lines = {"truth": (true_power, {"color": TRUTH_COLOR}), "forecast": (forecast_power, MODEL_STYLE)}
    for name, (power, style) in lines.items():
        relative = (power[:, total > 0] / total[total > 0]).mean(axis=1)
        axes.plot(frequency[1:], relative[1:], label=name, **style)
    axes.set_yscale("log")
    highest = axes.get_ylim()[1]
    axes.set_ylim(max(axes.get_ylim()[0], LEAST_SHARE * highest), highest)
    axes.set_xlabel(with_unit("frequency", None if time_unit is None else f"1/{time_unit}"))
    axes.set_ylabel("share of the true power")
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle("Spectrum over the horizon, mean over sensors")
    return figure


def plot_coverage(report: IntervalReport) -> Figure:
    """Plot the share of test values inside the prediction intervals, by horizon step."""
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=DPI)
    axes = figure.add_subplot()
    steps = np.arange(1, report.coverage.shape[1] + 1)
    for i, level in enumerate(report.levels):
        style = BASELINE_STYLES[(i + 1) % len(BASELINE_STYLES)]
        axes.axhline(level, color=style["color"], linewidth=0.8, linestyle=":")
        if not np.isnan(report.coverage[i]).all():
            axes.plot(steps, report.coverage[i], color=style["color"], marker="o", label=f"{level:.0%}")
        if report.adaptive_coverage is not None:
            adaptive = report.adaptive_coverage[i]
            axes.plot(steps, adaptive, color=style["color"], marker="x", linestyle="--", label=f"{level:.0%}, adaptive")
    axes.set_xlabel("horizon step")
    axes.set_ylabel("share inside")
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right")
    figure.suptitle("Coverage of the prediction intervals on test; dotted: what they promise")
    return figure
