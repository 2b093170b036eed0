"""Several runs as one series: divided by run, windows within runs, yardsticks that keep to them too."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from favorcast.forecasting import train_forecaster
from favorcast.forecasting.automatic_settings import choose_settings
from favorcast.forecasting.cli.main import main
from favorcast.forecasting.data import (
    DataModule,
    DataWarning,
    SimulationTimeSeries,
    SimulationTorchDataset,
    sensor_record,
)
from favorcast.forecasting.data.runs import name_of
from favorcast.forecasting.evaluation.baselines import (
    Analogs,
    DynamicModeDecomposition,
    RidgeRegression,
    VectorRidge,
    default_baselines,
)
from favorcast.forecasting.evaluation.training_rows import TrainingRows

LENGTHS = {"re_80": 60, "re_100": 50, "re_120": 40, "re_140": 45}


def wave(number: int, rows: int) -> np.ndarray:
    """A record whose level tells its run: 100 times its number."""
    phase = np.arange(rows)[:, None] * (0.2 + 0.02 * number) + np.arange(3)
    return np.sin(phase) + 100 * number


@pytest.fixture
def folder(tmp_path):
    for number, (name, rows) in enumerate(LENGTHS.items()):
        table = pd.DataFrame(wave(number, rows), columns=["u", "v", "w"])
        table.insert(0, "time", 0.5 * np.arange(rows))
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("form", ["folder", "pattern", "list"])
def test_runs_are_read_in_the_order_of_their_numbers_and_divided_by_run(folder, form):
    paths = {
        "folder": str(folder),
        "pattern": f"{folder}/re_*.csv",
        "list": [str(folder / f"{x}.csv") for x in LENGTHS],
    }
    series = SimulationTimeSeries(paths[form])
    assert series.rows_of_runs == {
        "re_80": range(60),
        "re_100": range(60, 110),
        "re_120": range(110, 150),
        "re_140": range(150, 195),
    }
    assert series.splits == {"train": range(110), "val": range(110, 150), "test": range(150, 195)}
    assert series.breaks.tolist() == [60, 110, 150]
    assert series.time_cols == ["Time_Index"]
    assert series.time_features[[0, 60, 110]].ravel().tolist() == [0, 0, 0]  # each run has its own start
    assert series.time_features[:110].max() == 1
    assert np.array_equal(series.times[60:110], 0.5 * np.arange(50))


def test_no_window_reaches_from_one_run_into_another(folder):
    series = SimulationTimeSeries(str(folder))
    for split, expected in {"train": 60 - 11 + 50 - 11, "val": 40 - 11, "test": 45 - 11}.items():
        windows = SimulationTorchDataset(series, split, context_len=8, target_len=4)
        assert len(windows) == expected
        for _, context, _, target in windows:
            levels = torch.cat([context, target]).div(100).round()
            assert (levels == levels[0, 0]).all()


def test_runs_in_python_are_named_and_chosen_by_name():
    runs = {name: wave(i, rows) for i, (name, rows) in enumerate(LENGTHS.items())}
    series = SimulationTimeSeries(data=runs, test_runs=["re_100"], val_runs=["re_8*"])
    assert list(series.rows_of_runs) == ["re_120", "re_140", "re_80", "re_100"]
    assert [len(rows) for rows in series.splits.values()] == [85, 60, 50]
    assert np.array_equal(series.values[series.rows_of_runs["re_100"].start], wave(1, 1)[0].astype(np.float32))
    unnamed = SimulationTimeSeries(data=[wave(i, 30) for i in range(3)], have_test=False, fractions=(0.7, 0.3, 0.0))
    assert list(unnamed.rows_of_runs) == ["run 1", "run 2", "run 3"]
    assert list(unnamed.splits) == ["train", "val"]


def test_columns_are_put_in_the_order_of_the_first_run():
    first = pd.DataFrame(wave(0, 30), columns=["u", "v", "w"])
    series = SimulationTimeSeries(data=[first, first[["w", "u", "v"]], first])
    assert np.array_equal(series.values[:30], series.values[30:60])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(x=table["v"]), "'b' also has 'x'; rename"),
        (lambda table: table.drop(columns="v"), "'b' lacks 'v'; rename"),
        (lambda table: table.rename(columns={"v": "vv"}), "'b' lacks 'v' and also has 'vv'; rename"),
        (lambda table: table.set_axis(2.0 * table.index), "'a' has 1, 'b' 2"),
        (lambda table: table.set_axis(pd.date_range("2024", periods=len(table), freq="s")), "'a' has numbers"),
    ],
)
def test_a_run_of_another_kind_is_refused(change, message):
    table = pd.DataFrame(wave(0, 30), columns=["u", "v", "w"]).set_axis(1.0 * np.arange(30))
    with pytest.raises(ValueError, match="all runs must have") as refusal:
        SimulationTimeSeries(data={"a": table, "b": change(table), "c": table})
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"idx_end_train": 40}, "indices count the rows of one record"),
        ({"test_runs": ["re_200"]}, "no run matches 're_200'"),
        ({"test_runs": ["re_80"], "val_runs": ["re_80"]}, "each run is of one split"),
        ({"test_runs": ["*"]}, "each run is of one split"),
        ({"val_runs": []}, "each split needs one"),
        ({"use_cycles": True}, "no common phase"),
    ],
)
def test_what_cannot_be_divided_is_said(folder, options, message):
    with pytest.raises(ValueError, match=message):
        SimulationTimeSeries(str(folder), **options)


def test_too_few_runs_and_runs_of_a_single_record_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected at least 3, one a split"):
        SimulationTimeSeries(data=[wave(0, 30), wave(1, 30)])
    with pytest.raises(ValueError, match="got a single record"):
        SimulationTimeSeries(data=wave(0, 30), test_runs=["a"])
    with pytest.raises(FileNotFoundError, match="no runs at"):
        SimulationTimeSeries(str(tmp_path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"time_unit": "h"}, "times in one unit: 'a' has s, 'b' h"),
        ({"coordinates": np.ones((3, 2))}, "sensors where the first has them: 'b'"),
    ],
)
def test_runs_of_other_units_or_places_are_refused(changed, message):
    labels = {"time_unit": "s", "coordinates": np.zeros((3, 2)), "sampling_time": 1.0}
    one, other = (sensor_record(wave(0, 30), **each) for each in (labels, labels | changed))
    with pytest.raises(ValueError, match=message):
        SimulationTimeSeries(data={"a": one, "b": other, "c": one})


def test_files_that_are_no_runs_are_named_or_passed_over(folder):
    (folder / ".re_hidden.csv").write_text("")
    assert len(SimulationTimeSeries(str(folder)).rows_of_runs) == 4
    (folder / "one.csv").write_text("time,u,v,w\n0,1,2,3\n")
    with pytest.raises(ValueError, match="run 'one' has a single row"):
        SimulationTimeSeries(str(folder))
    (folder / "one.csv").write_text("")
    with pytest.raises(ValueError, match=r"run 'one': .* a file that is no run is left out by a pattern"):
        SimulationTimeSeries(str(folder))


def test_a_run_is_given_once_by_path_or_text(folder):
    files = [folder / f"{name}.csv" for name in LENGTHS]
    assert list(SimulationTimeSeries(files).rows_of_runs) == list(LENGTHS)
    assert SimulationTimeSeries(files[0]).source == str(files[0])
    with pytest.raises(ValueError, match="each run must be given once"):
        SimulationTimeSeries([*files, folder / ".." / folder.name / "re_80.csv"])


def test_a_run_that_broke_off_does_not_shorten_the_windows():
    runs = {f"r{i}": wave(0, 400) for i in range(4)}
    whole = choose_settings(SimulationTimeSeries(data=runs))
    with pytest.warns(DataWarning, match="give none: broken"):
        broken = choose_settings(SimulationTimeSeries(data={"broken": wave(0, 5), **runs}))
    assert (broken.context_len, broken.target_len) == (whole.context_len, whole.target_len)


def test_runs_that_have_changed_their_split_are_refused():
    runs = {name: wave(i, rows) for i, (name, rows) in enumerate(LENGTHS.items())}
    trained = DataModule(SimulationTimeSeries(data=runs), context_len=8, target_len=4).data_card()
    fewer = {name: rows for name, rows in runs.items() if name != "re_140"}  # re_120, of validation, would be tested
    with pytest.raises(
        ValueError, match=r"2 runs .* 're_100', of train then, of val now.*val_runs=\['re_120'\] and test_runs=\[\]"
    ):
        DataModule(SimulationTimeSeries(data=fewer), context_len=8, target_len=4).adopt(trained)
    other = SimulationTimeSeries(data={"x": runs["re_80"], "re_120": runs["re_120"], "new": runs["re_140"]})
    DataModule(other, context_len=8, target_len=4).adopt(trained)


def test_results_are_named_after_the_folder_of_runs(tmp_path, monkeypatch):
    (tmp_path / "sims" / "v1.2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sims" / "v1.2")
    names = {"a/b.csv": "b", ".": "v1.2", "..": "sims", "../*/out.csv": "sims", "re_*.csv": "v1.2"}
    assert {path: name_of(path) for path in names} == names
    assert (name_of(None), name_of(["x/y/1.csv", "x/y/2.csv"])) == ("series", "y")


def test_dated_runs_have_the_cycles_that_one_run_holds():
    def run(day: int) -> pd.DataFrame:
        times = pd.date_range(f"2024-01-{day:02}", periods=360, freq="10s")
        return pd.DataFrame(wave(0, 360), columns=["u", "v", "w"], index=times)

    covariates = [
        SimulationTimeSeries(data=[run(day) for day in days]).time_cols for days in ((1, 3, 5, 7), (7, 5, 3, 1))
    ]
    assert covariates[0] == covariates[1]
    assert "Sin_Day" not in covariates[0]


def test_a_run_shorter_than_a_window_is_named():
    series = SimulationTimeSeries(data={"long": wave(0, 60), "brief": wave(0, 9), "v": wave(0, 30), "t": wave(0, 30)})
    with pytest.warns(DataWarning, match=r"1 runs of the train split .* 12 rows and give none: brief"):
        data = DataModule(series, context_len=8, target_len=4)
    assert data.window_counts["train"] == 60 - 11


@pytest.mark.parametrize(
    "baseline",
    [RidgeRegression(1.0), VectorRidge(3, 1.0), DynamicModeDecomposition(2), Analogs(3, 4)],
    ids=lambda x: x.name,
)
def test_yardsticks_learn_nothing_from_one_run_to_the_next(baseline):
    """Their forecasts do not depend on which run stands before which, as they do with windows across the jump."""
    one, other = torch.from_numpy(wave(0, 40)), torch.from_numpy(wave(1, 30))
    orders = (torch.cat([one, other]), [40]), (torch.cat([other, one]), [30])
    sizes = {"context_len": 8, "target_len": 4, "d_y_target": 3}
    within, across = (
        [
            baseline.fit(rows, breaks=breaks if is_known else (), **sizes).predict(one[None, -8:])
            for rows, breaks in orders
        ]
        for is_known in (True, False)
    )
    torch.testing.assert_close(*within)
    assert (across[0] - across[1]).abs().max() > 1e-3


@pytest.mark.parametrize("breaks", [[40], [40, 51, 62]], ids=["whole windows behind", "short runs last"])
def test_a_choice_held_out_keeps_to_runs(breaks):
    """Of the last fifth of short runs no window is whole: the last fifth of the windows takes its place."""
    marks = torch.arange(70.0, dtype=torch.float64)[:, None].expand(-1, 3)
    rows = TrainingRows(marks, (0, *breaks, 70), 70, context_len=8, target_len=4, d_y_target=3)
    parts = rows.choosing("vector ridge")
    found = [[torch.cat(pair, dim=1)[..., 0] for pair in cut] for cut in (parts.windows(), parts.held_out())]
    fitted, held_out = (torch.cat(windows).long() for windows in found)
    assert len(fitted)
    assert len(held_out)
    for windows in (fitted, held_out):
        assert (windows.diff(dim=1) == 1).all()
        for start in breaks:
            assert not ((windows[:, 0] < start) & (windows[:, -1] >= start)).any()
    assert fitted.max() < parts.boundary <= held_out[:, 8:].min()
    assert parts.whole().boundary == 70
    with pytest.raises(ValueError, match="without a break"):
        default_baselines()[2].fit(marks, context_len=8, target_len=4, d_y_target=3, breaks=list(range(0, 70, 11)))


def test_a_forecaster_trains_on_runs_and_forecasts_a_new_one(folder, capsys):
    options = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "limit_train_batches": 2}
    forecaster = train_forecaster(str(folder), trainer=options)
    forecast = forecaster.forecast(str(folder / "re_140.csv"), horizon=5)
    assert forecast.values.shape == (5, 3)
    pattern, results = f"{folder}/re_*.csv", folder / "results"
    main(["describe", pattern])
    printed = capsys.readouterr().out
    assert "train runs (rows): re_80 (60), re_100 (50)" in printed
    assert "test runs (rows): re_140 (45)" in printed
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
    main(["fit", "--data", pattern, "--runs", str(results), *quick])
    printed = capsys.readouterr().out
    assert "the future is that of the last run, re_140" in printed
    run_folder = Path(printed.strip().splitlines()[-1])
    assert run_folder.parent.name == folder.name
    assert pd.read_csv(run_folder / "future.csv")["time"].iloc[0] == 0.5 * 45
