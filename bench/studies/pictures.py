"""Draw the two pictures of the README: a forecast beside the truth, and time against length.

    python bench pictures                                      # from bench/results/cpu.csv and pictures/forecast.csv

    favorcast fit
    python bench pictures --run runs/fluidic_pinball/...       # writes forecast.csv anew first

The forecast is that of the middle test window, as in the run's forecast.png, at the sensors of lowest, median and
highest test error; beside it that of the best yardstick, vector ridge.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from harness.result_families import OURS, crossover, family, length_of
from harness.results_file import Row, latest, milliseconds, read
from harness.saved_run import open_run
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from favorcast.forecasting import VectorRidge
from favorcast.forecasting.evaluation.plots import BASELINE_STYLES, CONTEXT_COLOR, MODEL_STYLE, TRUTH_COLOR
from favorcast.forecasting.evaluation.report import with_unit
from favorcast.forecasting.evaluation.result_files import METRICS_FILE, representative_sensors

RESULTS = Path(__file__).resolve().parents[1] / "results"
FOLDER = "pictures"
FORECAST, LENGTHS = "forecast", "time-against-length"
RANKS = ("lowest", "median", "highest")
SHAPE, DTYPE, PASSES = "b1-h8-d64-m256", "float32", "forward+backward"
OPS = {"favor full": "full attention", "favor causal": "causal attention"}
LABELS = {"favorcast reference": "favorcast", "sdpa": "softmax (SDPA)", "performer-pytorch": "performer-pytorch"}
DPI = 110


def forecast_table(run: Path) -> pd.DataFrame:
    """Return what is drawn of a run: a row for each time and sensor, the forecasts missing in the context."""
    saved = open_run(run)
    model, data, card = saved
    ridge = saved.fitted(VectorRidge())
    scores = pd.read_csv(run / METRICS_FILE, index_col=["forecaster", "scope", "metric", "position"])[
        "value"
    ].sort_index()
    names = card.target_columns
    sensors = representative_sensors(scores[type(model).__name__, "sensor", "mse"].loc[names].to_numpy())
    windows = data.windows("test")
    index = len(windows) // 2
    context_x, context_y, target_x, target_y = (part.unsqueeze(0) for part in windows[index])
    forecasts = {"favorcast": model.predict(context_x, context_y, target_x), ridge.name: ridge.predict(context_y)}
    times = np.concatenate([data.series.times[part] for part in windows.window_slices(index)])
    unit, time_unit = data.series.unit, data.series.time_unit
    parts = []
    for rank, sensor in zip(RANKS, sensors, strict=True):
        past, future = context_y[0, :, sensor].numpy(), target_y[0, :, sensor].numpy()
        columns = {"sensor": names[sensor], "rank": rank, "unit": unit, "time_unit": time_unit, "time": times}
        columns["truth"] = np.r_[past, future]
        for name, forecast in forecasts.items():
            columns[name] = np.r_[np.full(len(past), np.nan), forecast[0, :, sensor].numpy(force=True)]
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts)


def draw_forecast(table: pd.DataFrame) -> Figure:
    """Draw context, truth and forecasts, a panel for each sensor."""
    sensors = list(table.groupby("sensor", sort=False))
    figure = Figure(figsize=(3.2 * len(sensors), 2.7), layout="constrained", dpi=DPI)
    panels = figure.subplots(1, len(sensors), squeeze=False)[0]
    drawn = [name for name in table.columns if name not in ("sensor", "rank", "unit", "time_unit", "time", "truth")]
    styles = {"favorcast": MODEL_STYLE | {"linestyle": "none", "markerfacecolor": "none", "markersize": 3}}
    for axes, (sensor, rows) in zip(panels, sensors, strict=True):
        future = rows[rows[drawn[0]].notna()]
        context = rows.iloc[: len(rows) - len(future)]
        start = context["time"].iloc[-1]
        axes.plot(context["time"] - start, context["truth"], color=CONTEXT_COLOR, linewidth=1.6, label="context")
        joined = rows.iloc[len(context) - 1 :]
        axes.plot(joined["time"] - start, joined["truth"], color=TRUTH_COLOR, linewidth=1.6, label="truth")
        for name in drawn:
            style = styles.get(name, BASELINE_STYLES[1] | {"marker": "", "linewidth": 1.8})
            axes.plot(future["time"] - start, future[name], label=name, **style)
        axes.axvline(0, color=CONTEXT_COLOR, linewidth=0.8, linestyle=":")
        axes.set_title(f"{sensor}: {rows['rank'].iloc[0]} test error", fontsize=9)
        axes.set_xlabel(with_unit("lead time", rows["time_unit"].iloc[0]))
        _tidy(axes)
    panels[0].set_ylabel(with_unit("value", table["unit"].iloc[0]))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def draw_lengths(rows: list[Row]) -> Figure:
    """Draw the time of a forward and backward pass of full and of causal attention, and where ours passes softmax's."""
    figure = Figure(figsize=(9.6, 3.0), layout="constrained", dpi=DPI)
    panels = figure.subplots(1, len(OPS), sharey=True)
    colours = {"favorcast reference": MODEL_STYLE, "sdpa": BASELINE_STYLES[0], "performer-pytorch": BASELINE_STYLES[1]}
    for axes, (op, title) in zip(panels, OPS.items(), strict=True):
        members = [row for row in rows if family(row) == (op, SHAPE, DTYPE, PASSES) and milliseconds(row) is not None]
        for provider, label in LABELS.items():
            line = sorted((length_of(row), milliseconds(row)) for row in members if row["provider"] == provider)
            if line:
                style = colours[provider] | {"markersize": 4, "label": label}
                axes.plot(*zip(*line, strict=True), **style)
        at = crossover([row for row in members if row["provider"] in (*OURS, "sdpa")])
        if at is not None and 0 < at < math.inf:
            axes.axvline(at, color=CONTEXT_COLOR, linewidth=0.8, linestyle=":")
            axes.annotate(f" {at:.0f} tokens", (at, 0.03), xycoords=("data", "axes fraction"), fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda length, _: f"{length:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("length [tokens]")
        _tidy(axes)
    panels[0].set_ylabel("forward + backward [ms]")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run folder of favorcast fit: take the forecast from there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with cpu.csv and pictures/")
    options = parser.parse_args(arguments)
    folder = options.results / FOLDER
    folder.mkdir(exist_ok=True)
    table = folder / f"{FORECAST}.csv"
    if options.run is not None:
        forecast_table(options.run).to_csv(table, index=False, float_format="%.6g", lineterminator="\n")
    rows = latest(read(options.results / "cpu.csv"))
    for name, figure in ((FORECAST, draw_forecast(pd.read_csv(table))), (LENGTHS, draw_lengths(rows))):
        figure.savefig(folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
