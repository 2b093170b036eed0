"""bench/studies/yardstick_costs.py measures every yardstick of a report."""

import pytest
from studies import yardstick_costs as bench

from favorcast.forecasting import default_baselines


def test_a_cost_is_that_of_a_fit_and_of_forecasts(monkeypatch):
    for index, _ in enumerate(default_baselines(bench.PERIOD)):
        cost = bench.cost(index, 300, 4)
        assert cost.message == ""
        assert cost.fit_s > 0
        assert cost.predict_s > 0
        assert cost.peak_mib >= 0
    monkeypatch.setattr("favorcast.forecasting.evaluation.baseline.MOST_RANK", 3)
    assert "at most 3 rows" in bench.cost(3, 300, 4).message


def test_the_record_is_waves_that_a_season_tells():
    values = bench.record(400, 5)
    assert values.shape == (400, 5)
    persistence = (values[1:] - values[:-1]).square().mean()
    assert (values[bench.PERIOD * 61 % 366 :]).shape[0] == 400 - bench.PERIOD * 61 % 366
    assert persistence.item() == pytest.approx((values[2:] - values[1:-1]).square().mean().item(), rel=0.01)
