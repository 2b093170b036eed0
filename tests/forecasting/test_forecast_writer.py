import csv

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from favorcast.forecasting.data import DataModule, SensorRecord, SimulationTimeSeries
from favorcast.forecasting.evaluation.forecast_writer import ForecastWriter

CONTEXT_LEN, TARGET_LEN = 6, 3


class LastValue(pl.LightningModule):
    """Forecast the last value."""

    def predict_step(self, batch, batch_idx):
        _, context_y, target_x, _ = batch
        return context_y[:, -1:, :2].expand(-1, target_x.shape[1], -1)


def data_module(timestamps=None, **options):
    values = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    record = SensorRecord(values, ["u", "v, above", "p"], timestamps)
    series = SimulationTimeSeries(data=record, use_cycles=False, exogenous_columns=["p"])
    return DataModule(series, CONTEXT_LEN, TARGET_LEN, batch_size=4, **options)


def written(path, data, **trainer):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    pl.Trainer(accelerator="cpu", callbacks=[ForecastWriter(path)], **quiet, **trainer).predict(LastValue(), data)
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_each_row_is_one_forecast_step_with_its_time(tmp_path):
    data = data_module()
    header, *rows = written(tmp_path / "forecast.csv", data)
    assert header == ["window", "step", "time", "u", "v, above"]
    windows = data.windows("test")
    assert [(int(row[0]), int(row[1])) for row in rows] == [(w, s) for w in range(len(windows)) for s in (1, 2, 3)]
    numbers = np.array(rows, dtype=float)
    np.testing.assert_array_equal(numbers[:, 2], 48 + numbers[:, 0] + numbers[:, 1] - 1)
    last = torch.stack([windows[i][1][-1, :2] for i in range(len(windows))])
    np.testing.assert_allclose(numbers[:, 3:], last.repeat_interleave(3, dim=0), rtol=1e-6)


def test_dates_are_written_as_dates(tmp_path):
    hours = np.datetime64("2020-01-01T00", "ns") + np.arange(60) * np.timedelta64(1, "h")
    rows = written(tmp_path / "forecast.csv", data_module(hours))
    assert [row[2] for row in rows[1:3]] == ["2020-01-03T00:00:00", "2020-01-03T01:00:00"]


def test_the_windows_are_those_of_the_predicted_split(tmp_path):
    data = data_module(prediction_split="val", time_resolution=2)
    _, *rows = written(tmp_path / "forecast.csv", data)
    assert len(rows) == 3 * len(data.windows("val"))
    assert [float(row[2]) for row in rows[:3]] == [42, 44, 46]


def test_an_earlier_file_is_replaced(tmp_path):
    (tmp_path / "forecast.csv").write_text("old\n")
    assert written(tmp_path / "forecast.csv", data_module(), limit_predict_batches=1)[0][0] == "window"


def test_a_prediction_without_a_data_module_is_refused(tmp_path):
    with pytest.raises(ValueError, match="labelled by a DataModule"):
        written(tmp_path / "forecast.csv", data_module().predict_dataloader())
