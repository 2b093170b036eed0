"""Prediction intervals by conformal prediction: ranks, coverage, adaptation, checkpoints, files."""

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from small_run import config_file, metrics, run, series_file

from favorcast.forecasting import DataWarning, load_forecaster
from favorcast.forecasting.conformal import AdaptiveConformal, ConformalIntervals, conformal_intervals
from favorcast.forecasting.evaluation.interval_scores import IntervalScores, coverage_table, interval_lines

NAN = float("nan")


def errors(windows=200, steps=3, sensors=2, seed=0, scale=1.0):
    return scale * torch.randn(windows, steps, sensors, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("windows", [19, 20, 99, 100, 101])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.8, 0.95])
def test_the_radius_is_the_order_statistic_of_the_finite_sample(windows, level):
    given = errors(windows)
    found = ConformalIntervals.of(given).radii([level])[0]
    rank = int(np.ceil(round((windows + 1) * level, 9)))
    ranked = np.sort(given.abs().numpy(), axis=0)
    np.testing.assert_array_equal(found, ranked[rank - 1])


def test_too_few_windows_have_no_interval_and_say_how_many_it_takes():
    intervals = ConformalIntervals.of(errors(18))
    assert intervals.radii([0.95]).isnan().all()
    assert intervals.radii([0.8]).isfinite().all()
    assert intervals.needed(0.95) == 19
    assert intervals.needed(0.8) == 4
    assert ConformalIntervals.of(errors(19)).radii([0.95]).isfinite().all()


def test_missing_truths_do_not_count():
    given = errors(50)
    given[10:, 1, 0] = NAN
    intervals = ConformalIntervals.of(given)
    assert intervals.counts.tolist() == [[50, 50], [10, 50], [50, 50]]
    torch.testing.assert_close(
        intervals.radius[:, 1, 0], ConformalIntervals.of(given[:10]).radius[:, 1, 0], equal_nan=True
    )


@pytest.mark.parametrize("level", [0.0, 1.0, 0.955, 80, True])
def test_levels_that_are_no_whole_percents_are_refused(level):
    with pytest.raises(ValueError, match=r"must be whole percents from 0\.01 to 0\.99"):
        ConformalIntervals.of(errors()).radii([level])


def test_errors_like_those_held_out_are_covered_as_often_as_promised():
    scores = IntervalScores(ConformalIntervals.of(errors(2000)), is_adaptive=True)
    scores.update(torch.zeros(4000, 3, 2), errors(4000, seed=1))
    report = scores.report()
    np.testing.assert_allclose(report.coverage, [[0.8] * 3, [0.95] * 3], atol=0.02)
    np.testing.assert_allclose(report.adaptive_coverage, [[0.8] * 3, [0.95] * 3], atol=0.02)
    assert report.crps == pytest.approx(1 / np.sqrt(np.pi), rel=0.02)  # of a normal distribution
    assert report.width[1] == pytest.approx(2 * 1.96, rel=0.1)


def test_adaptive_inference_follows_errors_that_grow():
    """Test errors are twice the held-out ones: the plain intervals fall short, the adaptive ones do not."""
    scores = IntervalScores(ConformalIntervals.of(errors(500)), is_adaptive=True)
    scores.update(torch.zeros(3000, 3, 2), errors(3000, seed=1, scale=2.0))
    report = scores.report()
    assert (report.coverage[0] < 0.55).all()
    np.testing.assert_allclose(report.adaptive_coverage, [[0.8] * 3, [0.95] * 3], atol=0.03)


def test_adaptive_inference_sees_no_truth_before_its_time():
    """What covers a window does not change with truths that come after its first step."""
    held_out, test = errors(40, steps=4), errors(60, steps=4, seed=1)
    other = test.clone()
    for window in range(60):
        for step in range(4):
            if window + step >= 30:  # a row that is measured later than the window that begins at row 30
                other[window, step] = 100.0
    radii = []
    for given in (test, other):
        adaptive = AdaptiveConformal(held_out, (0.8,), step_size=0.1)
        radii.append(torch.stack([adaptive.step(error.abs())[1] for error in given[:31]]))
    torch.testing.assert_close(*radii, rtol=0, atol=0)
    later = [AdaptiveConformal(held_out, (0.8,), step_size=0.1) for _ in range(2)]
    ends = [
        torch.stack([each.step(error.abs())[1] for error in given])[-1]
        for each, given in zip(later, (test, other), strict=True)
    ]
    assert (ends[0] != ends[1]).any()


def test_windows_beyond_what_is_kept_are_thinned_evenly(monkeypatch):
    class Zero:
        null_value = None

        def predict(self, context_x, context_y, target_x):
            return torch.zeros(len(context_y), 2, 1)

    batches = [
        (None, torch.zeros(7, 1, 1), None, torch.arange(7 * i, 7 * i + 7.0).view(7, 1, 1).expand(7, 2, 1))
        for i in range(9)
    ]
    monkeypatch.setattr("favorcast.forecasting.conformal.MOST_ELEMENTS", 40)
    kept = conformal_intervals(Zero(), batches).errors[:, 0, 0].tolist()
    assert len({b - a for a, b in pairwise(kept)}) == 1
    assert 10 <= len(kept) <= 20
    with pytest.raises(ValueError, match="at least one held-out window"):
        conformal_intervals(Zero(), [])


def test_the_report_says_where_there_are_too_few_windows():
    scores = IntervalScores(ConformalIntervals.of(errors(10)))
    scores.update(torch.zeros(5, 3, 2), errors(5, seed=1))
    report = scores.report()
    lines = interval_lines(report)
    assert lines[0].startswith("80% intervals held")
    assert lines[1] == "95% intervals: none, validation has 10 windows, too few for that level"
    assert np.isnan(report.crps)
    console = Console(record=True, file=io.StringIO())
    console.print(coverage_table(report))
    assert "95%" in console.export_text()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run whose test scored adaptive inference too; how it was printed is looked at below."""
    return tmp_path_factory.mktemp("intervals")


def test_fit_keeps_intervals_and_prints_their_coverage(fitted, capsys):
    config = config_file(fitted, series_file(fitted, 400))
    options = ["--runs", fitted / "runs", "--adaptive_intervals", "true"]
    folder, printed = run(capsys, "fit", "--config", config, *options)
    assert "Coverage of the prediction intervals on test, by horizon step" in " ".join(printed.split())
    assert "95%, adaptive" in printed
    found = metrics(folder)
    name = "SpatioTemporalPerformer_Forecaster"
    covered = [found[name, "horizon", str(step), "coverage_80"] for step in range(1, 5)]
    assert 0.5 < np.mean(covered) < 1
    assert found[name, "overall", "", "crps"] > 0
    assert (name, "horizon", "4", "adaptive_coverage_95") in found

    forecaster = load_forecaster(folder / "checkpoints" / "best.ckpt")
    assert forecaster.model_share.share.shape == (4,)  # of the best weights, before the errors were taken
    data = np.load(fitted / "waves.npz")["dataset"]
    forecast = forecaster.forecast(data, intervals=(0.8, 0.95))
    assert forecast.values.shape == (4, 2)
    for inner, outer in zip(forecast.intervals[0.8], forecast.intervals[0.95], strict=True):
        assert (np.abs(inner - forecast.values) < np.abs(outer - forecast.values)).all()
    radius = forecaster.conformal.radii([0.8])[0].numpy()
    np.testing.assert_allclose(forecast.intervals[0.8][1] - forecast.values, radius, rtol=1e-5)
    frame = forecast.to_frame()
    assert list(frame.columns[:4]) == ["u_0", "u_1", "u_0-lo-80", "u_0-hi-80"]
    forecast.save(fitted / "future.csv")
    assert {"u_0 [m]-lo-80", "u_1 [m]-hi-95"} <= set(pd.read_csv(fitted / "future.csv").columns)
    drawn = forecast.plot()
    assert [text.get_text() for text in drawn.legends[0].get_texts()][:2] == ["context", "95% interval"]
    with pytest.warns(DataWarning, match="intervals end at step 4, the horizon of training: 6 steps"):
        longer = forecaster.forecast(data, 6, intervals=(0.8,))
    assert np.isnan(longer.intervals[0.8][:, 4:]).all()
    assert np.isfinite(longer.intervals[0.8][:, :4]).all()
    forecaster.conformal = None
    with pytest.raises(ValueError, match="has no prediction intervals: train it with"):
        forecaster.forecast(data, intervals=(0.8,))
