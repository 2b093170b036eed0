import io

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import nn

from favorcast.forecasting import DataModule, SimulationTimeSeries
from favorcast.forecasting.evaluation.baseline_comparison import BaselineComparison, rows_for_baselines, season
from favorcast.forecasting.evaluation.baselines import Persistence, RidgeRegression
from favorcast.forecasting.evaluation.report import score_table
from favorcast.forecasting.forecaster import Forecaster

CONTEXT_LEN, TARGET_LEN = 12, 4


class Zero(Forecaster):
    """Forecast zero, in original units."""

    def __init__(self, d_x, d_y_context, d_y_target, null_value=None):
        super().__init__(d_x, d_y_context, d_y_target, null_value=null_value)
        self.unused = nn.Parameter(torch.zeros(()))

    def forward_model_pass(self, context_x, context_y, target_x, target_y=None, **kwargs):
        return torch.zeros(len(context_y), target_x.shape[1], self.widths.d_y_target)


def waves(rows=240, missing=None):
    rng = np.random.default_rng(0)
    data = np.sin(2 * np.pi * np.arange(rows)[:, None] / 8 + np.arange(3)) + 0.1 * rng.standard_normal((rows, 3))
    if missing is not None:
        data[rng.random(data.shape) < 0.1] = missing
    return data.astype(np.float32)


def data_module(values, *, time_resolution=1, **series):
    return DataModule(
        SimulationTimeSeries(data=values, **series),
        CONTEXT_LEN,
        TARGET_LEN,
        batch_size=7,
        time_resolution=time_resolution,
    )


def compare(data, *, null_value=None, baselines=None, **trainer):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    comparison = BaselineComparison(baselines)
    model = Zero(data.d_x, data.d_y_context, data.d_y_target, null_value)
    pl.Trainer(accelerator="cpu", callbacks=[comparison], **quiet, **trainer).test(model, data, verbose=False)
    assert comparison.report is not None
    return comparison.report


def test_scores_equal_a_computation_on_all_windows_at_once():
    values = waves(missing=np.nan)
    data = data_module(values, target_columns=["Sensor_1", "Sensor_2"], exogenous_columns=["Sensor_3"])
    report = compare(data, baselines=[Persistence(), RidgeRegression()])
    windows = [data.windows("test")[i] for i in range(len(data.windows("test")))]
    context, target = (torch.stack(part) for part in list(zip(*windows, strict=True))[1::2])
    train, validation = data.series.splits["train"], data.series.splits["val"]
    ridge = RidgeRegression().fit(
        values[: validation.stop],
        context_len=CONTEXT_LEN,
        target_len=TARGET_LEN,
        d_y_target=2,
        validation_rows=len(validation),
    )
    assert train.stop == validation.start
    for name, forecast in {
        "Zero": torch.zeros_like(target),
        "persistence": Persistence().fit(values, context_len=12, target_len=4, d_y_target=2).predict(context),
        "ridge": ridge.predict(context),
    }.items():
        error = (forecast - target).double()
        assert report.scores[name].overall["mse"] == pytest.approx(error.square().nanmean().item(), rel=1e-6)
        np.testing.assert_allclose(report.scores[name].horizon["mae"], error.abs().nanmean(dim=(0, 2)), rtol=1e-6)
        np.testing.assert_allclose(report.scores[name].sensor["mse"], error.square().nanmean(dim=(0, 1)), rtol=1e-6)
    assert report.windows == len(windows)
    assert report.sensors == ["Sensor_1", "Sensor_2"]


def test_a_null_value_of_the_model_is_missing_for_baselines_too():
    as_nan = compare(data_module(waves(missing=np.nan)))
    as_code = compare(data_module(waves(missing=-9.0)), null_value=-9.0)
    for name, score in as_nan.scores.items():
        assert as_code.scores[name].overall["mse"] == pytest.approx(float(score.overall["mse"]), rel=1e-5)


def test_rows_after_training_do_not_reach_the_weights_nor_those_after_validation_the_settings():
    values = waves()
    later = values.copy()
    data = data_module(values)
    test_rows = data.series.splits["test"]
    later[data.series.splits["val"].start : test_rows.start - CONTEXT_LEN] += 50
    fixed = [RidgeRegression(1.0)]
    expected = compare(data, baselines=fixed).scores["ridge"].overall["mse"]
    assert compare(data_module(later), baselines=fixed).scores["ridge"].overall["mse"] == expected
    rows, sizes = rows_for_baselines(data, None)
    np.testing.assert_array_equal(rows, values[: test_rows.start])
    assert sizes["validation_rows"] == len(data.series.splits["val"])


@pytest.mark.parametrize("every", [1, 2])
def test_rows_between_training_and_validation_are_neither_fitted_to_nor_forecast(every):
    values = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    split = {"idx_end_train": 150, "idx_start_val": 190, "idx_end_val": 240, "idx_end_test": 300}
    data = data_module(values, time_resolution=every, **split)
    rows, sizes = rows_for_baselines(data, None)
    assert sizes["breaks"] == [150 // every]
    fitted = len(rows) - sizes["validation_rows"]
    np.testing.assert_array_equal(rows[:fitted], values[:150:every])
    np.testing.assert_array_equal(rows[fitted + CONTEXT_LEN :], values[190:240:every])


def test_persistence_is_added_as_the_reference_of_skill():
    assert list(compare(data_module(waves()), baselines=[RidgeRegression()]).scores) == ["Zero", "persistence", "ridge"]


class Failing(Persistence):
    """Fail when fitted, when asked, or by forecasts that are no numbers."""

    def __init__(self, when):
        self.name = f"fails when {when}"
        self.when = when

    def _fit(self, rows):
        if self.when == "fitted":
            raise torch.linalg.LinAlgError("linalg.eigh: did not converge\nand more")

    def _predict(self, scaled):
        if self.when == "asked":
            raise MemoryError
        return torch.full((len(scaled), TARGET_LEN, self._d_y_target), torch.inf, dtype=torch.float64)


def test_a_yardstick_that_fails_is_left_out_with_a_word():
    failing = [Failing("fitted"), Failing("asked"), Failing("infinite")]
    report = compare(data_module(waves()), baselines=[*failing, RidgeRegression()])
    assert list(report.scores) == ["Zero", "persistence", "ridge"]
    assert report.left_out == {
        "fails when fitted": "linalg.eigh: did not converge",
        "fails when asked": "MemoryError",
        "fails when infinite": "its forecasts are not finite",
    }
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(score_table(report))
    assert "left out: fails when fitted (linalg.eigh: did not converge)" in " ".join(console.export_text().split())


def test_what_a_yardstick_would_take_is_known_before_it_is_fitted(monkeypatch):
    monkeypatch.setattr("favorcast.forecasting.evaluation.baseline.MOST_BYTES", 100)
    monkeypatch.setattr(RidgeRegression, "_fit", lambda *_: pytest.fail("fitted"))
    data = data_module(waves())
    obstacles = BaselineComparison().obstacles(data)
    assert set(obstacles) == {"ridge", "vector ridge", "dmd", "analogs"}
    assert obstacles["ridge"].startswith("ridge would decompose a matrix of 12 rows and hold")
    report = compare(data)
    assert report.left_out == obstacles
    assert list(report.scores) == ["Zero", "persistence", "seasonal naive"]


def test_only_the_tested_windows_count():
    assert compare(data_module(waves()), limit_test_batches=2).windows == 14


def test_the_season_is_the_period_in_rows_of_a_window():
    assert season(data_module(waves())) == 8
    assert season(data_module(waves(), time_resolution=2)) == 4
    assert season(data_module(waves(), use_cycles=False)) is None


def test_a_season_longer_than_the_context_is_left_out():
    values = np.sin(2 * np.pi * np.arange(400) / 40)[:, None].astype(np.float32)
    assert season(data_module(values, nperseg=200)) is None


def test_a_coarser_time_resolution_is_that_of_the_baselines():
    report = compare(data_module(waves(600), time_resolution=2))
    assert report.scores["ridge"].overall["mse"] < 0.1 * report.scores["persistence"].overall["mse"]
    assert report.time_step == 2


def test_a_test_without_a_data_module_is_refused():
    data = data_module(waves())
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(accelerator="cpu", callbacks=[BaselineComparison()], **quiet)
    with pytest.raises(ValueError, match="datamodule=DataModule"):
        trainer.test(Zero(2, 3, 3), data.test_dataloader(), verbose=False)
