"""Write what a test found into a folder: numbers and plots.

l context_len, n target_len
"""

from pathlib import Path

import numpy as np

from ..data import DataModule
from ..forecaster import Forecaster
from ..missing_values import mark_missing
from .plots import ForecastWindow, plot_errors, plot_forecast
from .report import Report, write_metrics

METRICS_FILE, ERRORS_FILE, FORECAST_FILE = "metrics.csv", "errors.png", "forecast.png"


def write_results(folder: Path, report: Report, model: Forecaster, data: DataModule) -> None:
    """Write metrics.csv (see `metric_rows`), errors.png and forecast.png.

    The forecast drawn is that of the middle test window, for the sensors of lowest, median and highest test error.

    Args:
        folder: an existing folder; files of these names are replaced.
        report: the scores.
        model: the tested model.
        data: what it was tested on.
    """
    write_metrics(report, folder / METRICS_FILE)
    plot_errors(report).savefig(folder / ERRORS_FILE)

    windows = data.windows("test")
    index = len(windows) // 2
    context_x, context_y, target_x, target_y = (part.unsqueeze(0) for part in windows[index])
    forecast = model.predict(context_x, context_y, target_x)[0]
    context, truth = (mark_missing(y[0], model.null_value) for y in (context_y, target_y))
    model_name, score = next(iter(report.scores.items()))
    sensors = representative_sensors(score.sensor["mse"])
    times = data.series.times
    figure = plot_forecast(
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
    figure.savefig(folder / FORECAST_FILE)


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
