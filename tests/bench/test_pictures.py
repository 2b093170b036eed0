"""The pictures of the README are drawn from result files, and a run folder fills the one of the forecast."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
from matplotlib.image import imread
from small_run import config_file, run, series_file
from studies import pictures

from favorcast.forecasting import load_forecaster


def test_committed_results_are_enough(tmp_path, capsys):
    (tmp_path / pictures.FOLDER).mkdir()
    for name in ("cpu.csv", f"{pictures.FOLDER}/{pictures.FORECAST}.csv"):
        shutil.copy(pictures.RESULTS / name, tmp_path / name)
    pictures.main(["--results", str(tmp_path)])
    drawn = capsys.readouterr().out.split()
    assert len(drawn) == 2
    for path in drawn:
        assert imread(path).std() > 0
        assert (pictures.RESULTS / pictures.FOLDER / path.rpartition("/")[2]).is_file()


def test_the_lines_against_length_are_those_of_the_result_file():
    rows = pictures.latest(pictures.read(pictures.RESULTS / "cpu.csv"))
    full, causal = pictures.draw_lengths(rows).axes
    assert [line.get_label() for line in full.get_lines()[:3]] == list(pictures.LABELS.values())
    wanted = {"op": "favor full", "provider": "sdpa", "shape": "b1-h8-l1024-d64-m256", "pass": "forward+backward"}
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    lengths, times = full.get_lines()[1].get_data()
    assert times[list(lengths).index(1024)] == float(row["p50_ms"])
    assert {line.get_label() for line in causal.get_lines()} >= {"favorcast", "softmax (SDPA)"}


def test_a_run_is_drawn_as_its_model_forecasts(tmp_path, capsys):
    series = {"data_path": str(series_file(tmp_path)), "target_columns": ["u_*", "v_0"]}
    data = {"series": {"class_path": "SimulationTimeSeries", "init_args": series}}
    data |= {"context_len": 12, "target_len": 4, "batch_size": 8}
    folder, _ = run(capsys, "fit", "--config", config_file(tmp_path, tmp_path, data=data), "--runs", tmp_path / "runs")
    table = pictures.forecast_table(folder)
    assert sorted(table["sensor"].unique()) == ["u_0", "u_1", "v_0"]
    assert list(table["rank"].unique()) == list(pictures.RANKS)
    truth = np.load(tmp_path / "waves.npz")
    for sensor, rows in table.groupby("sensor"):
        start = round(rows["time"].iloc[0] / 0.25)
        column = list(truth["columns"]).index(sensor)
        np.testing.assert_allclose(rows["truth"], truth["dataset"][start : start + 16, column])
        assert rows["favorcast"].notna().tolist() == 12 * [False] + 4 * [True]
    model = load_forecaster(folder / "checkpoints" / "best.ckpt")
    shown = pictures.open_run(folder).data.windows("test")
    inputs = [part.unsqueeze(0) for part in shown[len(shown) // 2][:3]]
    forecast = pd.DataFrame(model.predict(*inputs)[0].numpy(), columns=["u_0", "u_1", "v_0"])
    for sensor, rows in table.groupby("sensor"):
        np.testing.assert_allclose(rows["favorcast"].dropna(), forecast[sensor], rtol=1e-5)
    assert len(pictures.draw_forecast(table).axes) == 3
