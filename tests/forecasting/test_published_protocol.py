"""Check readers, windows and baselines against published numbers, on files that users download themselves."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from favorcast.forecasting.data import DataWarning, SimulationTimeSeries, SimulationTorchDataset
from favorcast.forecasting.evaluation.baselines import Persistence, RidgeRegression


def real_data(relative):
    folder = os.environ.get("FAVORCAST_DATA")
    path = Path(folder or "") / relative
    if folder is None or not path.is_file():
        pytest.skip(f"set FAVORCAST_DATA to a folder that holds {relative}")
    return str(path)


def scaled_test_error(baseline, series, context_len, target_len):
    """Mean squared error over all test windows on columns z-scored by the training rows: the published protocol."""
    mean, std = series.training_statistics()
    scaled = (torch.from_numpy(series.values) - mean) / std
    train = series.splits["train"]
    baseline.fit(
        scaled[train.start : train.stop], context_len=context_len, target_len=target_len, d_y_target=series.d_y_target
    )
    starts = torch.tensor(SimulationTorchDataset(series, "test", context_len, target_len).starts)
    windows = scaled.unfold(0, context_len + target_len, 1).mT
    errors = [
        (baseline.predict(windows[chunk, :context_len]) - windows[chunk, context_len:])
        .square()
        .sum(dtype=torch.float64)
        for chunk in starts.split(256)
    ]
    return (sum(errors) / (len(starts) * target_len * series.d_y_target)).item()


def test_etth1_reproduces_the_published_protocol():
    series = SimulationTimeSeries(
        real_data("ett/ETTh1.csv"), idx_end_train=8640, idx_end_val=11520, idx_end_test=14400, use_cycles=False
    )
    assert len(SimulationTorchDataset(series, "test", 336, 96)) == 2785
    assert scaled_test_error(Persistence(), series, 336, 96) == pytest.approx(1.294, abs=1e-3)
    assert scaled_test_error(RidgeRegression(), series, 336, 96) == pytest.approx(0.370, abs=1e-3)


def test_traffic_week_gives_the_known_errors():
    series = SimulationTimeSeries(
        real_data("metr_la_week/los_speed.csv"), fractions=(0.7, 0.15, 0.15), use_cycles=False
    )
    assert series.d_y_target == 207
    assert scaled_test_error(Persistence(), series, 12, 3) == pytest.approx(0.648, abs=3e-3)
    assert scaled_test_error(RidgeRegression(), series, 12, 3) == pytest.approx(0.549, abs=3e-3)


def test_weather_sentinels_become_missing_values():
    path = real_data("weather/weather.csv")
    with pytest.warns(DataWarning, match=r"1 gap \(of 10 steps\), 1 duplicate time;.* as asked"):
        # the protocol counts rows, whatever their times
        series = SimulationTimeSeries(path, null_value=-9999.0, calendar=["day", "year"], gaps="ignore")
    assert series.values.shape == (52696, 21)
    assert np.isnan(series.values).sum() == 81
    assert series.sampling_time == 600.0
    assert len(SimulationTorchDataset(series, "test", 96, 96)) == 10444
