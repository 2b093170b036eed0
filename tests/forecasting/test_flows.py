"""Check the flow generator on a small grid, and the files that ship with the package."""

from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from favorcast.forecasting import SimulationTimeSeries
from favorcast.forecasting.flows.boundary_links import Cylinder
from favorcast.forecasting.flows.channel_flow import ChannelFlow
from favorcast.forecasting.flows.records import (
    CYLINDER_WAKE,
    FLOWS,
    FLUIDIC_PINBALL,
    Damage,
    FlowConfiguration,
    main,
    sensor_file,
    simulate_samples,
    strouhal_number,
)

SMALL = FlowConfiguration(
    name="small",
    channel=ChannelFlow(64, 40, (Cylinder(20.0, 20.0, 8.0),), reynolds=100.0, velocity=0.1),
    origin=(20.0, 20.0),
    origin_name="cylinder centre",
    sensors_x=(1.0, 2.0, 3.0),
    sensors_y=(-1.0, 1.0),
    steps_per_sample=5,
    discarded_samples=2,
    num_samples=20,
)

SENSOR_FILE_KEYS = {
    *("dataset", "columns", "coordinates", "origin", "sampling_time", "time_unit", "unit", "reynolds", "grid"),
    *("diameter_cells", "velocity_lattice", "relaxation_time", "steps_per_sample", "discarded_samples", "strouhal"),
    *("blockage", "solver_version", "command"),
}


@pytest.fixture(scope="module")
def embedded() -> dict[str, dict[str, np.ndarray]]:
    folder = resources.files("favorcast.forecasting.flows.embedded")
    contents = {}
    for name in FLOWS:
        with resources.as_file(folder / f"{name}.npz") as path, np.load(path, allow_pickle=False) as file:
            contents[name] = dict(file)
    return contents


def test_samples_are_the_solvers_velocity_at_the_sensors():
    samples = np.stack(list(simulate_samples(SMALL)))
    assert samples.shape == (20, 12)
    assert samples.dtype == np.float32
    solver = SMALL.channel.start()
    solver.advance(3 * SMALL.steps_per_sample)
    cells_x, cells_y = SMALL.sensor_cells
    velocity = solver.velocity().numpy() / SMALL.channel.velocity
    expected = [velocity[x, y, component] for component in (0, 1) for y in cells_y for x in cells_x]
    np.testing.assert_allclose(samples[0], expected, rtol=1e-6)


def test_the_same_seed_gives_the_same_samples_and_another_seed_others():
    first, again, other = (np.stack(list(simulate_samples(SMALL, seed=seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_more_samples_extend_a_run_without_changing_its_beginning():
    short = np.stack(list(simulate_samples(replace(SMALL, num_samples=5))))
    np.testing.assert_array_equal(short, np.stack(list(simulate_samples(SMALL)))[:5])


def test_coordinates_are_the_centres_of_the_sensors_cells_with_x_running_fastest():
    coordinates = SMALL.sensor_coordinates
    np.testing.assert_allclose(coordinates[:, 0] * 8 + 20, [28.5, 36.5, 44.5] * 2)
    np.testing.assert_allclose(coordinates[:, 1] * 8 + 20, [12.5] * 3 + [28.5] * 3)


def test_the_strouhal_number_of_a_sine_is_its_frequency():
    time = 0.25 * np.arange(400)
    values = np.stack((np.sin(2 * np.pi * 0.1837 * time), 3 + 2 * np.cos(2 * np.pi * 0.1837 * time)), axis=-1)
    assert strouhal_number(values, 0.25) == pytest.approx(0.1837, abs=5e-4)


def test_a_sensor_file_holds_every_promised_key():
    values = np.stack(list(simulate_samples(SMALL)))
    contents = sensor_file(SMALL, values, command="how")
    assert set(contents) == SENSOR_FILE_KEYS
    assert contents["columns"].tolist() == [f"{component}_{i}" for component in "uv" for i in range(6)]
    assert contents["coordinates"].shape == (12, 2)
    assert contents["sampling_time"] == pytest.approx(5 / 80)
    assert not any(value.dtype.hasobject for value in contents.values())


def test_runs_at_several_reynolds_numbers_come_with_damage_and_train(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(FLOWS, "cylinder_wake", SMALL)
    damage = ["--noise", "0.02", "--missing", "0.1", "--dead", "v_2"]
    main(["cylinder_wake", "--output", str(tmp_path), "--reynolds", "60", "80", "100", *damage])
    capsys.readouterr()
    series = SimulationTimeSeries(str(tmp_path), target_columns=["u_*"], exogenous_columns=["v_*"])
    assert list(series.rows_of_runs) == ["re_60", "re_80", "re_100"]
    assert np.isnan(series.values[:, series.d_y_target + 2]).all()
    others = np.delete(series.values, series.d_y_target + 2, axis=1)
    assert 0.05 < np.isnan(others).mean() < 0.15
    with np.load(tmp_path / "re_80.npz") as file:
        assert float(file["reynolds"]) == 80
        assert str(file["command"]).endswith("--noise 0.02 --missing 0.1 --reynolds 80 --dead v_2")
    clean = np.stack(list(simulate_samples(replace(SMALL, channel=replace(SMALL.channel, reynolds=80.0)))))
    rows = series.rows_of_runs["re_80"]
    difference = (series.values[rows.start : rows.stop] - clean) / clean.std(axis=0)
    assert 0.015 < np.nanstd(difference) < 0.025


def test_damage_that_cannot_be_done_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["cylinder_wake", "--output", str(tmp_path), "--missing", "1"])
    assert "0 <= missing < 1, got 0.0 and 1.0" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"dead columns must be among a .* b, got"):
        Damage(dead=("c",)).of(np.zeros((3, 2)), ["a", "b"], 0)


def test_the_command_writes_the_same_bytes_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(FLOWS, "cylinder_wake", replace(SMALL, name="cylinder_wake"))
    for run in ("first", "second"):
        main(["cylinder_wake", "--output", str(tmp_path / run), "--samples", "18", "--seed", "5"])
    first, second = (tmp_path / run / "cylinder_wake.npz" for run in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert str(second) in capsys.readouterr().out.replace("\n", "")
    with np.load(first, allow_pickle=False) as file:
        assert file["dataset"].shape == (18, 12)
        assert file["command"].item().endswith("--samples 18 --seed 5 --device cpu")


def test_an_unknown_flow_is_refused(tmp_path):
    with pytest.raises(SystemExit):
        main(["jet", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"num_samples": 0}, "num_samples must be at least 1", id="no-samples"),
        pytest.param({"steps_per_sample": 0}, "steps_per_sample must be at least 1", id="no-steps"),
        pytest.param({"discarded_samples": -1}, "discarded_samples must not be negative", id="negative-transient"),
        pytest.param({"sensors_x": (1.0, 9.0)}, r"sensors_x must lie in \[0, 64\)", id="sensor-outside"),
        pytest.param({"sensors_y": (0.0, 0.01)}, "sensors_y must fall into different cells", id="sensors-too-close"),
    ],
)
def test_impossible_configurations_raise(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_too_few_rows_for_a_spectrum_raise():
    with pytest.raises(ValueError, match="at least 16 rows"):
        strouhal_number(np.zeros((15, 2)), 1.0)


def test_constant_values_have_no_strouhal_number():
    with pytest.raises(ValueError, match="must vary"):
        strouhal_number(np.ones((20, 2)), 1.0)


@pytest.mark.parametrize("configuration", [CYLINDER_WAKE, FLUIDIC_PINBALL], ids=lambda c: c.name)
def test_shipped_files_are_what_their_configuration_says(embedded, configuration):
    contents = embedded[configuration.name]
    assert set(contents) == SENSOR_FILE_KEYS
    assert contents["dataset"].shape == (configuration.num_samples, 98)
    assert contents["dataset"].dtype == np.float32
    assert np.isfinite(contents["dataset"]).all()
    assert np.abs(contents["dataset"]).max() < 2.5
    assert (contents["dataset"].std(axis=0) > 0.01).all()
    rebuilt = sensor_file(configuration, contents["dataset"], command=contents["command"].item())
    for key, value in rebuilt.items():
        np.testing.assert_array_equal(contents[key], value, err_msg=key)


def test_the_shipped_cylinder_wake_is_periodic_at_its_strouhal_number(embedded):
    contents = embedded["cylinder_wake"]
    values, strouhal = contents["dataset"], contents["strouhal"].item()
    assert strouhal == pytest.approx(0.18, abs=0.003)
    cycles = 20
    shift = cycles / (strouhal * contents["sampling_time"].item())
    later = values[round(shift) : round(shift) + 1000]
    # a shift rounded to whole samples is off by up to half a sample: 0.14 rad of the fundamental
    assert np.std(later - values[:1000]) < 0.2 * np.std(values - values.mean(0))


def test_the_shipped_pinball_is_broadband(embedded):
    def share_of_ten_bins(name: str) -> float:
        values = embedded[name]["dataset"][:2000].astype(np.float64)
        centred = (values - values.mean(0)) * np.hanning(len(values))[:, None]
        power = np.sort((np.abs(np.fft.rfft(centred, axis=0)) ** 2).mean(1))
        return power[-10:].sum() / power.sum()

    assert share_of_ten_bins("cylinder_wake") > 0.95
    assert share_of_ten_bins("fluidic_pinball") < 0.75
