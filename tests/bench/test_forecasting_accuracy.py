"""bench/studies/forecasting_accuracy.py scores all forecasters on the same windows, and measures nothing twice."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from harness import accuracy_peers, interval_coverage
from harness.accuracy_sets import SETS, AccuracySet
from small_run import CONTEXT_LEN, TARGET_LEN, config_file, metrics, series_file
from studies import forecasting_accuracy as bench

from favorcast.forecasting import DataModule, SimulationTimeSeries, SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.cli.config_files import bundled_configs

WINDOWS = 40 - TARGET_LEN + 1


class LastValue(torch.nn.Module):
    """Repeat the last value, shifted by what it learns: a peer without neuralforecast."""

    def __init__(self, name, data):
        super().__init__()
        self.sensors, self.length = data.d_y_target, data.target_len
        self.shift = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, context):
        return context[:, -1:, : self.sensors].expand(-1, self.length, -1) + self.shift


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy_peers, "Peer", LastValue)
    path = series_file(tmp_path)
    return AccuracySet(str(config_file(tmp_path, "elsewhere.npz")), path.name, WINDOWS), tmp_path


@pytest.fixture
def data(tmp_path):
    series = SimulationTimeSeries(str(series_file(tmp_path)), target_columns=["u_*"], exogenous_columns=["v_0"])
    return DataModule(series, CONTEXT_LEN, TARGET_LEN)


def test_a_set_is_measured_once_and_its_errors_are_those_of_the_report(small, monkeypatch):
    some, folder = small
    runs = []
    original = bench.errors_in
    monkeypatch.setattr(bench, "errors_in", lambda run, data: runs.append(metrics(run)) or original(run, data))
    coverage = folder / "coverage.csv"
    rows = list(bench.measure("waves", some, [folder], 3, ["NHITS"], {}, coverage))
    by_name = {row["forecaster"]: row for row in rows}
    assert {"favorcast", "persistence", "ridge", "vector ridge", "NHITS"} <= set(by_name)
    assert by_name["favorcast"]["seed"] == by_name["NHITS"]["seed"] == "3"
    assert by_name["ridge"]["seed"] == ""
    assert by_name["NHITS"]["cpu_s"] == by_name["favorcast"]["cpu_s"]
    std = np.load(folder / "waves.npz")["dataset"][:140, :2].std(axis=0)
    expected = np.mean([runs[0]["ridge", "sensor", name, "mse"] for name in ("u_0", "u_1")] / std**2)
    assert float(by_name["ridge"]["mse"]) == pytest.approx(expected, rel=1e-3)
    done = {tuple(row[field] for field in bench.KEY): row for row in rows}
    assert list(bench.measure("waves", some, [folder], 3, ["NHITS"], done, coverage)) == []
    del done["waves", "NHITS", "3"]
    again = bench.measure("waves", some, [folder], 3, ["NHITS"], done, coverage)
    assert [row["forecaster"] for row in again] == ["NHITS"]
    covered = {(row["level"], row["kind"], row["step"]): float(row["coverage"]) for row in bench.read(coverage)}
    assert len(covered) == len(bench.read(coverage)) == 3 * TARGET_LEN  # too few windows for plain ones of 95 %
    key = (SpatioTemporalPerformer_Forecaster.__name__, "horizon", "2", "adaptive_coverage_80")
    assert covered["80", "adaptive_coverage", "2"] == pytest.approx(runs[0][key], abs=1e-4)


def test_other_windows_than_the_protocol_says_are_refused(small):
    some, folder = small
    with pytest.raises(ValueError, match=f"should have 5 test windows: got {WINDOWS}"):
        list(bench.measure("waves", some._replace(windows=5), [folder], 0, [], {}, folder / "coverage.csv"))
    with pytest.raises(FileNotFoundError, match=r"no waves\.npz below"):
        list(bench.measure("waves", some, [folder / "nowhere"], 0, [], {}, folder / "coverage.csv"))


def test_a_failed_run_says_why(small):
    some, folder = small
    with pytest.raises(RuntimeError, match="d_modell"):
        bench.fit([*some.arguments([folder]), "--model.init_args.d_modell=8"], 0, folder)


def test_a_peer_learns_for_its_time_and_keeps_its_best_weights(data, monkeypatch):
    monkeypatch.setattr(accuracy_peers, "Peer", LastValue)
    monkeypatch.setattr(accuracy_peers, "LEARNING_RATE", 0.1)
    start = accuracy_peers.time.process_time()
    errors = accuracy_peers.train_peer("any", data, seed=0, seconds=1.0)
    assert accuracy_peers.time.process_time() - start < 4
    untrained = accuracy_peers.errors_of(LastValue("any", data), accuracy_peers.Scaled(data).in_order("test"))
    assert errors.windows == untrained.windows == WINDOWS
    assert errors.mse < untrained.mse / 3


@pytest.mark.parametrize("name", accuracy_peers.PEERS)
def test_a_network_of_neuralforecast_forecasts_each_window_alone(data, name):
    pytest.importorskip("neuralforecast")
    torch.manual_seed(0)
    peer = accuracy_peers.Peer(name, data).eval()
    context, _ = next(accuracy_peers.Scaled(data).in_order("test"))
    together = peer(context[:6])
    assert together.shape == (6, TARGET_LEN, 2)
    torch.testing.assert_close(peer(context[2:3]), together[2:3], rtol=1e-4, atol=1e-5)


def test_errors_are_of_observed_targets(data):
    def gaps():
        for context, target in accuracy_peers.Scaled(data).in_order("test"):
            target[:, 1:, 0] = torch.nan
            yield context, target

    errors = accuracy_peers.errors_of(lambda context: torch.zeros(len(context), TARGET_LEN, 2), gaps())
    targets = torch.cat([target for _, target in gaps()])
    assert errors.mse == pytest.approx(targets.square().nanmean(dim=(0, 1)).mean().item(), rel=1e-5)


def test_the_table_tells_the_best_of_each_set_its_seeds_and_what_others_publish(tmp_path):
    path = tmp_path / "results.csv"
    name = "ETTh1 336 → 96"
    for forecaster, seed, mse in (
        ("ridge", "", 0.37),
        ("NHITS", "0", 0.4),
        ("favorcast", "0", 0.36),
        ("favorcast", "1", 0.34),
    ):
        errors = accuracy_peers.Errors(mse, mse, SETS[name].windows)
        bench.append(path, [bench.row_of((name, forecaster, seed), errors, None if seed == "" else 90.0)])
    bench.main(["--report", "--results", str(path)])
    (line,) = [line for line in path.with_suffix(".md").read_text().splitlines() if line.startswith(f"| {name}")]
    assert line.startswith(f"| {name} | 0.3700 | 0.4000 | **0.3500** ± 0.0100 | 2 | 90 | PatchTST, 512 .370")


def test_the_table_of_coverage_has_the_mean_of_the_seeds_at_six_steps():
    rows = [
        {
            "set": "waves",
            "seed": seed,
            "level": "80",
            "kind": "adaptive_coverage",
            "step": str(step),
            "coverage": str(x),
        }
        for seed, x in (("0", 0.7), ("1", 0.9))
        for step in range(1, 12)
    ]
    rows[0]["coverage"] = "0.5"
    last = interval_coverage.coverage_table(rows).splitlines()[-1]
    assert last == "| waves, 80 %, adaptive | 1: 70.0 | 3: 80.0 | 5: 80.0 | 7: 80.0 | 9: 80.0 | 11: 80.0 | 79.1 |"


def test_committed_results_are_of_known_sets_and_their_table_is_current():
    if not bench.RESULTS.exists():
        pytest.skip("no results yet")
    rows = bench.read(bench.RESULTS)
    assert {row["set"] for row in rows} <= set(SETS)
    assert all(int(row["windows"]) == SETS[row["set"]].windows for row in rows)
    keys = [tuple(row[field] for field in bench.KEY) for row in rows]
    assert len(keys) == len(set(keys))
    assert bench.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == bench.report(rows)
    coverage = bench.RESULTS.with_name(bench.COVERAGE)
    table = interval_coverage.coverage_table(bench.read(coverage))
    assert coverage.with_suffix(".md").read_text(encoding="utf-8") == table
    with bench.RESULTS.open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == list(bench.FIELDS)


def test_every_set_has_its_configuration():
    assert {some.config for some in SETS.values()} <= set(bundled_configs())
