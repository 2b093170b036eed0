"""The table of pinball forecasts scores every model at the same rows, and counts its errors right."""

from __future__ import annotations

import pytest
import torch
from small_run import config_file
from studies import pinball_forecasts
from studies.pinball_forecasts import Rows, Run

from favorcast.forecasting import default_baselines
from favorcast.forecasting.cli.main import main as favorcast


def ramp(rows: int = 300) -> Rows:
    """Sensors that count rows, so that a forecast tells which rows it was made from and for."""
    values = torch.arange(rows).float()[:, None] * torch.tensor([1.0, 10.0])
    splits = {"train": range(200), "val": range(200, 240), "test": range(240, rows)}
    return Rows(values, torch.zeros(rows, 1), splits, torch.tensor([2.0, 20.0]))


class Copy(torch.nn.Module):
    """Forecast the row after the context for the first step, the one after next for the second: a ramp."""

    def predict(self, context_x, context_y, target_x, *, block_len):
        assert context_x.shape[1] == context_y.shape[1] == 3
        step = context_y[:, -1:] - context_y[:, -2:-1]
        return context_y[:, -1:] + step * torch.arange(1, target_x.shape[1] + 1)[:, None]


@pytest.mark.parametrize("every", [1, 4])
def test_a_run_is_scored_at_its_own_rows(every):
    run = Run.__new__(Run)
    run.context_len, run.target_len, run.every, run.model = 3, 40, every, Copy()
    run.is_stepwise = True
    rows = ramp()
    origins = rows.origins("test", 8)
    assert origins[0] == 239
    assert len(origins) == 60 - 8 + 1
    forecast = run(rows, origins, 8)
    assert rows.error(forecast, origins, 8, every).tolist() == [0.0] * (8 // every)
    assert rows.error(forecast + 2, origins, 8, every)[0] == pytest.approx((1 + 0.01) / 2)


def test_persistence_on_a_ramp_errs_by_the_horizon():
    rows = ramp()
    origins = rows.origins("test", 4)
    persistence = pinball_forecasts.by_baseline(default_baselines()[0])
    torch.testing.assert_close(
        rows.error(persistence(rows, origins, 4), origins, 4, 1), torch.tensor([1.0, 4.0, 9.0, 16.0]) / 4
    )


def test_the_network_learns():
    time = torch.arange(400).float()[:, None]
    splits = {"train": range(300), "val": range(300, 350), "test": range(350, 400)}
    rows = Rows(torch.sin(0.4 * time + torch.arange(2)), time, splits, torch.full((2,), 0.5**0.5))
    origins = rows.origins("test", 6)
    forecast = pinball_forecasts.by_network(rows, origins, 6, epochs=5)
    assert rows.error(forecast, origins, 6, 1).mean() < 0.05


def test_the_table_has_a_row_for_every_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pinball_forecasts, "HORIZONS", (4, 8))
    monkeypatch.setattr(pinball_forecasts, "default_baselines", lambda: default_baselines()[:1])
    series = {"class_path": "SimulationTimeSeries"}
    series["init_args"] = {"data_path": "fluidic_pinball", "target_columns": ["u_0", "u_1"]}
    data = {"series": series, "context_len": 12, "target_len": 4, "batch_size": 8}
    config = config_file(tmp_path, "fluidic_pinball", data=data)
    monkeypatch.setattr(pinball_forecasts, "COLUMNS", ["u_0", "u_1"])
    options = [
        "--trainer.limit_val_batches",
        "1",
        "--trainer.limit_test_batches",
        "1",
        "--runs",
        str(tmp_path / "runs"),
    ]
    favorcast(["fit", "--config", str(config), *options])
    run = capsys.readouterr().out.strip().splitlines()[-1]
    pinball_forecasts.main([run, "--epochs", "1", "--split", "val"])
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert table[0][0] == " val rows "
    assert [row[0].split()[-1] for row in table[2:]] == ["(1)", "network", "persistence"]
    assert all(0 < float(cell) < 10 for row in table[2:] for cell in row[1:])
    with pytest.raises(SystemExit):
        pinball_forecasts.main([run, "--every", "3"])
