"""Write what a test found into a folder: numbers and plots.

l context_len, n target_len
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..data import DataModule
from ..forecaster import Forecaster
from ..missing_values import mark_missing
from .diagnostic_plots import plot_coverage, plot_error_map, plot_spectrum
from .html_report import REPORT_FILE, Section, write_html_report
from .interval_scores import interval_lines
from .model_card import CARD_FILE, write_model_card
from .plots import ForecastWindow, plot_errors, plot_forecast
from .report import Report, write_metrics

METRICS_FILE, ERRORS_FILE, FORECAST_FILE = "metrics.csv", "errors.png", "forecast.png"


def write_results(folder: Path, report: Report, model: Forecaster, data: DataModule) -> None:
    """Write metrics.csv (see `metric_rows`), errors.png, forecast.png, model_card.md and report.html.

    The forecast drawn is that of the middle test window, for the sensors of lowest, median and highest test error.
    report.html holds all of it and more pictures in one file: error map, spectrum, coverage.

    Args:
        folder: an existing folder; files of these names are replaced.
        report: the scores.
        model: the tested model, in the state that its test left.
        data: what it was tested on.
    """
    write_metrics(report, folder / METRICS_FILE)
    growth, forecast = plot_errors(report), forecast_figure(report, model, data)
    growth.savefig(folder / ERRORS_FILE)
    forecast.savefig(folder / FORECAST_FILE)
    write_model_card(folder, model, report)
    sections = [
        Section("Forecast", forecast),
        Section("Error growth over the horizon", growth),
        Section("Error map", plot_error_map(report, _target_coordinates(data), data.series.axes)),
        _spectrum_section(report, model),
        _coverage_section(report),
    ]
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    write_html_report(folder / REPORT_FILE, report, sections, card)


def _target_coordinates(data: DataModule) -> np.ndarray | None:
    coordinates = data.series.coordinates
    return None if coordinates is None else coordinates[: data.d_y_target]


def _spectrum_section(report: Report, model: Forecaster) -> Section:
    powers = [power.numpy(force=True) for power in (model.test_dynamics.true_power, model.test_dynamics.forecast_power)]
    figure = plot_spectrum(powers[0], powers[1], report.time_step, report.time_unit) if powers[0].ndim == 2 else None
    none = "No spectrum: it takes four steps of the horizon and a window without missing values."
    return Section("Spectrum", figure, () if figure is not None else (none,))


def _coverage_section(report: Report) -> Section:
    if report.intervals is None:
        return Section("Interval coverage", None, ("This forecaster has no prediction intervals; train it again.",))
    return Section("Interval coverage", plot_coverage(report.intervals), tuple(interval_lines(report.intervals)))


def forecast_figure(report: Report, model: Forecaster, data: DataModule) -> Figure:
    """Plot the forecast of the middle test window, for the sensors of lowest, median and highest test error."""
    windows = data.windows("test")
    index = len(windows) // 2
    context_x, context_y, target_x, target_y = (part.unsqueeze(0) for part in windows[index])
    forecast = model.predict(context_x, context_y, target_x)[0]
    context, truth = (mark_missing(y[0], model.null_value) for y in (context_y, target_y))
    model_name, score = next(iter(report.scores.items()))
    sensors = representative_sensors(score.sensor["mse"])
    times = data.series.times
    return plot_forecast(
        ForecastWindow(
            context[:, sensors].numpy(),
            truth[:, sensors].numpy(),
            forecast[:, sensors].numpy(force=True),
            np.concatenate([times[part] for part in windows.window_slices(index)]),
        ),
        sensors=[
            f"{report.sensors[sensor]}: {rank} test error, MSE {score.sensor['mse'][sensor]:.2e}"
            for rank, sensor in zip(_ranks(len(sensors)), sensors, strict=True)
        ],
        title=f"{model_name}, test window {index + 1} of {len(windows)}",
        unit=data.series.unit,
        time_unit=data.series.time_unit,
    )


def representative_sensors(mse: np.ndarray) -> list[int]:
    """Return the sensors of lowest, median and highest error, all of them when there are fewer than three.

    Sensors without any observation (NaN) come last, and only when there is no other.

    Args:
        mse: (d,) error of each sensor.
    """
    ranked = np.argsort(mse)  # NaN last
    observed = max(int(np.isfinite(mse).sum()), 1)
    ranks = [0, observed // 2, observed - 1] if observed >= 3 else range(observed)
    return [int(ranked[rank]) for rank in ranks]


def _ranks(count: int) -> list[str]:
    return {1: ["only"], 2: ["lowest", "highest"], 3: ["lowest", "median", "highest"]}[count]
