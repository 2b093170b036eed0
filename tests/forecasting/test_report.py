import csv
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from favorcast.forecasting.evaluation.report import (
    CSV_COLUMNS,
    Report,
    Score,
    metric_rows,
    score_table,
    verdict,
    with_unit,
    write_metrics,
)
from favorcast.forecasting.metrics.dynamics import DynamicsErrors
from favorcast.forecasting.metrics.forecast_errors import ForecastErrors

NAN = float("nan")


def score(forecast, target):
    errors = ForecastErrors()
    errors.update(torch.as_tensor(forecast), torch.as_tensor(target))
    return Score.of(errors)


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    target, model, persistence = torch.randn(3, 5, 4, 2, generator=generator).unbind()  # (b, n, d) each
    target[0, 1, 0] = NAN
    return target, model, persistence


@pytest.fixture
def report(parts):
    target, model, persistence = parts
    scores = {"Model": score(model, target), "persistence": score(persistence, target)}
    return Report(scores, sensors=["u_0", "u_1"], windows=5, unit="m", time_unit="D/U", time_step=0.25)


def test_every_number_equals_its_definition(report, parts):
    target, model, persistence = (part.double().numpy() for part in parts)
    rows = {row[:4]: row[4] for row in metric_rows(report)}
    error, reference = (model - target) ** 2, (persistence - target) ** 2
    assert rows["Model", "overall", "", "mse"] == pytest.approx(np.nanmean(error))
    assert rows["Model", "overall", "", "mae"] == pytest.approx(np.nanmean(np.abs(model - target)))
    assert rows["Model", "overall", "", "skill"] == pytest.approx(1 - np.nanmean(error) / np.nanmean(reference))
    assert rows["Model", "horizon", "2", "mse"] == pytest.approx(np.nanmean(error[:, 1]))
    assert rows["Model", "sensor", "u_1", "skill"] == pytest.approx(
        1 - np.nanmean(error[..., 1]) / np.nanmean(reference[..., 1])
    )


def test_rows_cover_each_forecaster_position_and_metric_once(report):
    keys = [row[:4] for row in metric_rows(report)]
    assert len(keys) == len(set(keys)) == 2 * (1 + 4 + 2) * 3


def test_rows_of_the_dynamics_are_in_the_units_of_the_report(parts):
    target, model, _ = parts
    errors, dynamics = ForecastErrors(), DynamicsErrors()
    errors.update(model, target)
    dynamics.update(model, target)
    both = Report({"persistence": Score.of(errors, dynamics)}, ["u_0", "u_1"], windows=5, time_step=0.25)
    rows = {row[3]: row[4] for row in metric_rows(both) if row[1] == "overall"}
    expected = {name: value.item() for name, value in dynamics.compute().items()}
    assert rows["valid_time"] == pytest.approx(0.25 * expected["valid_steps"])
    assert rows["spectral_error"] == pytest.approx(expected["spectral_error"])
    assert rows["frequency_error"] == pytest.approx(expected["frequency_error"], nan_ok=True)


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        (0.83**0.5, "squared error 17 % below the best yardstick, ridge; below all yardsticks at every step"),
        (1.1**0.5, "squared error 10 % above the best yardstick, ridge; below all yardsticks at no step"),
        (1.0, "squared error equal to that of the best yardstick, ridge; below all yardsticks at no step"),
        (3.0, "squared error 9 times that of the best yardstick, ridge; below all yardsticks at no step"),
    ],
)
def test_the_verdict_says_what_the_table_shows(factor: float, sentence: str):
    target = torch.zeros(6, 4, 2)
    error = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0))
    scores = {
        "Model": score(factor * error, target),
        "persistence": score(4 * error, target),
        "ridge": score(error, target),
        "dmd": score(2 * error, target),
    }
    report = Report(scores, ["u_0", "u_1"], windows=6)
    assert verdict(report) == f"Model: {sentence}"
    console = Console(width=120)
    with console.capture() as capture:
        console.print(score_table(report))
    assert " ".join(sentence.split()) in " ".join(capture.get().split())


def test_the_best_yardstick_may_change_from_step_to_step():
    ones = torch.ones(6, 4, 2)
    ramp = torch.arange(4.0)[:, None] * ones
    scores = {
        "Model": score(0.9 * ones, 0 * ones),
        "persistence": score(ones, 0 * ones),
        "ridge": score(ramp, 0 * ones),  # 0 at the first step, which the model does not beat
    }
    assert verdict(Report(scores, ["u_0", "u_1"], windows=6)).endswith(
        "19 % below the best yardstick, persistence; below all yardsticks at 3 of 4 steps"
    )


def test_a_yardstick_without_error_cannot_be_beaten():
    zeros = torch.zeros(6, 4, 2)
    report = Report({"Model": score(zeros + 1, zeros), "persistence": score(zeros, zeros)}, ["u", "v"], windows=6)
    assert verdict(report) == "Model: nothing to compare with the best yardstick, persistence"


def test_persistence_has_no_skill_over_itself(report):
    assert report.skill("persistence") == 0
    assert np.all(report.skill("persistence", "horizon") == 0)


def test_skill_is_undefined_where_persistence_makes_no_error():
    target = torch.zeros(3, 2, 1)
    exact = Report({"Model": score(target + 1, target), "persistence": score(target, target)}, ["u"], windows=3)
    assert math.isnan(exact.skill("Model"))
    assert np.isnan(exact.skill("Model", "horizon")).all()


def test_positions_without_observations_are_nan_in_the_rows():
    target = torch.zeros(3, 2, 2)
    target[..., 1] = NAN
    both = score(target.nan_to_num() + 1, target)
    rows = {row[:4]: row[4] for row in metric_rows(Report({"persistence": both}, ["u", "dead"], windows=3))}
    assert rows["persistence", "sensor", "u", "mse"] == 1
    assert math.isnan(rows["persistence", "sensor", "dead", "mse"])


def test_the_file_holds_the_rows_below_a_header(report, tmp_path):
    write_metrics(report, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == CSV_COLUMNS
    expected = list(metric_rows(report))
    assert [tuple(row[:4]) for row in rows] == [row[:4] for row in expected]
    np.testing.assert_array_equal([float(row[4]) for row in rows], [row[4] for row in expected])


def test_the_table_shows_the_model_first_and_its_numbers(report):
    console = Console(record=True, width=100)
    console.print(score_table(report))
    lines = [line for line in console.export_text(clear=False).splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["Model", "persistence"]
    overall = report.scores["Model"].overall
    cells = [cell.strip() for cell in lines[0].split("│")[2:5]]
    assert "MSE [m²]" in console.export_text(clear=False)
    assert cells == [f"{report.skill('Model'):.5f}", f"{overall['mae']:.3e}", f"{overall['mse']:.3e}"]


@pytest.mark.parametrize(
    ("unit", "power", "label"),
    [(None, 1, "MSE"), ("U", 1, "MSE [U]"), ("U", 2, "MSE [U²]"), ("m/s", 2, "MSE [(m/s)²]")],
)
def test_units_follow_the_label(unit, power, label):
    assert with_unit("MSE", unit, power) == label


@pytest.fixture
def mixed():
    """Two sensors of which one has a thousand times the other's unit, and is forecast better."""
    generator = torch.Generator().manual_seed(1)
    target, model, persistence, other = torch.randn(4, 6, 4, 2, generator=generator).unbind()
    model = target + torch.tensor([0.1, 1.5]) * model
    scales = torch.tensor([1000.0, 1.0])
    scores = {
        "Model": score(model * scales, target * scales),
        "persistence": score((target + persistence) * scales, target * scales),
        "ridge": score((target + 0.3 * other) * scales, target * scales),
    }
    labels = {"sensors": ["p", "u"], "windows": 6}
    return Report(scores, scales=scales.double().numpy(), **labels), (target, model, target + persistence), labels


def test_the_standardised_skill_is_that_of_sensors_in_their_standard_deviations(mixed):
    report, (target, model, persistence), _ = mixed
    rows = {row[:4]: row[4] for row in metric_rows(report)}
    error, reference = ((each - target).double().square().mean() for each in (model, persistence))
    assert rows["Model", "overall", "", "standardised_skill"] == pytest.approx(float(1 - error / reference), rel=1e-4)
    assert rows["Model", "overall", "", "skill"] > 0.9 > rows["Model", "overall", "", "standardised_skill"]


def test_a_sensor_whose_unit_decides_the_errors_is_named_beside_standardised_skills(mixed):
    report, _, labels = mixed
    console = Console(width=200, record=True)
    console.print(score_table(report))
    printed = " ".join(console.export_text().split())
    assert "100% of that error is of p, by their units" in printed
    assert f"{report.standardised_skill('Model'):.5f}" in printed
    assert "Model: squared error" in printed
    assert "below the best yardstick, ridge" in printed
    assert "standardised: squared error" in printed
    assert "times that of the best yardstick, ridge" in printed.partition("standardised: squared error")[2]
    console.print(score_table(Report(report.scores, **labels)))
    assert "standardised" not in console.export_text()


def test_sensors_that_count_alike_need_no_standardising(parts):
    target, model, persistence = parts
    scores = {"Model": score(model, target), "persistence": score(persistence, target)}
    alike = Report(scores, ["u_0", "u_1"], windows=5, scales=np.ones(2))
    assert alike.dominant is None
    assert Report(scores, ["u_0", "u_1"], windows=5, scales=np.array([1.0, 1.2])).dominant is None


def test_the_fewest_sensors_that_make_half_of_the_errors_are_named():
    target = torch.zeros(3, 4, 8)
    units = torch.tensor([10.0, 1, 10, 1, 1, 10, 10, 0])
    report = Report(
        {"persistence": score(units.expand(3, 4, 8), target)}, list("abcdefgh"), 3, scales=units.clip(min=1).numpy()
    )
    assert report.dominant is not None
    assert set(report.dominant[0]) <= set("acfg")
    assert len(report.dominant[0]) == 3
    assert report.dominant[1] == pytest.approx(300 / 403)


def test_sensors_that_were_never_observed_leave_the_standardised_skill(parts):
    target, model, persistence = (part.clone() for part in parts)
    target[..., 1] = NAN
    scores = {"Model": score(model, target), "persistence": score(persistence, target)}
    report = Report(scores, ["u", "dead"], windows=5, scales=np.ones(2))
    assert report.standardised_skill("Model") == pytest.approx(float(report.skill("Model", "sensor")[0]))
