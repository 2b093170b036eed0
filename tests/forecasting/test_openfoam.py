"""Probes of OpenFOAM become records: every kind of value, both headers, restarts, running and faulty cases."""

import numpy as np
import pytest
from openfoam_cases import NOT_FOUND, PLACES, header, rows, wave, write_case, write_probes

from favorcast.forecasting import SimulationTimeSeries
from favorcast.forecasting.data import read_series
from favorcast.forecasting.data.field_choice import FieldChoice
from favorcast.forecasting.data.probe_file import ProbeFile

TIMES = np.round(0.1 * np.arange(1, 61), 6)
KINDS = {
    "p": (1, ["p"]),
    "U": (3, ["U_x", "U_y", "U_z"]),
    "R": (6, ["R_xx", "R_xy", "R_xz", "R_yy", "R_yz", "R_zz"]),
    "gradU": (9, [f"gradU_{i}{j}" for i in "xyz" for j in "xyz"]),
}


@pytest.mark.parametrize("style", ["probes", "time", "axes"])
@pytest.mark.parametrize("field", KINDS)
def test_values_of_every_kind_are_read_under_headers_of_every_style(tmp_path, field, style):
    components, names = KINDS[field]
    values = wave(TIMES, components=components)
    write_probes(tmp_path, field, TIMES, values, style=style)
    record = read_series(tmp_path)
    assert record.columns == [f"{name}_{probe}" for name in names for probe in range(3)]
    expected = values.reshape(len(TIMES), 3, components).transpose(0, 2, 1).reshape(len(TIMES), -1)
    np.testing.assert_allclose(record.values, expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(record.timestamps, TIMES)
    np.testing.assert_array_equal(record.coordinates, np.tile(PLACES, (components, 1)))
    assert (record.sampling_time, record.time_unit, record.notes) == (pytest.approx(0.1), "s", ())


@pytest.mark.parametrize("part", ["", "postProcessing", "postProcessing/probes1", "postProcessing/probes1/0"])
def test_a_case_is_named_by_any_of_its_folders(tmp_path, part):
    write_case(tmp_path)
    assert read_series(tmp_path / part).values.shape == (400, 12)


def test_a_single_file_is_read_whatever_its_suffix(tmp_path):
    path = write_probes(tmp_path, "alpha.water", TIMES, wave(TIMES))
    write_probes(tmp_path, "p", TIMES, wave(TIMES))
    record = read_series(path)
    assert record.columns == ["alpha.water_0", "alpha.water_1", "alpha.water_2"]


def test_a_restart_takes_the_place_of_all_that_was_written_before_from_its_first_row_on(tmp_path):
    write_probes(tmp_path, "p", [9.8, 9.9, 10.0, 10.1, 10.2], np.zeros((5, 3)), start="0")
    write_probes(tmp_path, "p", [10.1, 10.2, 10.3], np.ones((3, 3)), start="10")
    record = read_series(tmp_path)
    assert record.timestamps.tolist() == [9.8, 9.9, 10.0, 10.1, 10.2, 10.3]
    assert record.values[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert not record.notes
    write_probes(tmp_path, "p", [9.85, 9.95], np.full((2, 3), 2.0), start="9.8")
    record = read_series(tmp_path)
    assert record.timestamps.tolist() == [9.8, 9.85, 9.95, 10.1, 10.2, 10.3]
    assert record.values[:, 0].tolist() == [0, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("is_written", [True, False], ids=["both-fields", "one-field-yet"])
def test_a_restart_that_has_not_caught_up_ends_the_record_and_is_said(tmp_path, is_written):
    """The fields of all objects end where the restart does, those too of which the new start has no row yet."""
    for field, name in (("p", "wake"), ("T", "wake"), ("p", "inlet")):
        write_probes(tmp_path, field, [1.0, 2.0, 3.0, 4.0], np.zeros((4, 3)), start="0", name=name)
        written = 2 if is_written or (field, name) == ("p", "wake") else 0
        write_probes(tmp_path, field, [2.0, 3.0][:written], np.ones((written, 3)), start="1", name=name)
    record = read_series(tmp_path)
    assert record.timestamps.tolist() == [1.0, 2.0, 3.0]
    assert np.nanmax(record.values[0]) == 0
    assert np.nanmin(record.values[1:]) == 1
    (note, *_) = record.notes
    assert note.startswith(
        "left out what earlier starts wrote up to 4 s: the restart at 1 s takes their place from 2 s"
    )
    assert note.endswith("reached 3 s; if it is the restart that was given up, move its folders elsewhere")


def test_an_object_that_a_later_start_does_not_have_keeps_its_rows(tmp_path):
    write_probes(tmp_path, "p", [1.0, 2.0, 3.0, 4.0], np.zeros((4, 3)), name="inlet")
    write_probes(tmp_path, "p", [2.0, 3.0, 4.0], np.ones((3, 3)), start="2", name="wake")
    record = read_series(tmp_path, choice=FieldChoice(objects=["inlet", "wake"]))
    assert record.values[:, 0].tolist() == [0, 0, 0, 0]


def test_start_times_are_sorted_as_numbers(tmp_path):
    for start, value in (("100", 3.0), ("9", 2.0), ("0", 1.0), ("1e3", 4.0)):
        write_probes(tmp_path, "p", [5000.0], [[value] * 3], start=start)
    write_probes(tmp_path, "p", [5000.0, 5001.0], [[5.0] * 3] * 2, start="2000")
    assert read_series(tmp_path).values[0, 0] == 5.0


def test_rows_of_a_start_that_was_given_up_do_not_lie_between_those_of_the_next(tmp_path):
    write_probes(tmp_path, "p", [1.0, 2.0, 3.0, 4.0], np.zeros((4, 3)), start="0")
    write_probes(tmp_path, "p", [2.5, 3.5, 4.5], np.ones((3, 3)), start="2")
    record = read_series(tmp_path)
    assert record.timestamps.tolist() == [1.0, 2.0, 2.5, 3.5, 4.5]


def test_objects_put_their_names_before_columns_that_clash(tmp_path):
    write_probes(tmp_path, "p", TIMES, wave(TIMES), name="wake")
    write_probes(tmp_path, "p", TIMES, wave(TIMES)[:, :2], places=PLACES[:2] + 1, name="inlet")
    write_probes(tmp_path, "T", TIMES, wave(TIMES), name="wall")
    record = read_series(tmp_path)
    expected = ["inlet.p_0", "inlet.p_1", "wake.p_0", "wake.p_1", "wake.p_2", "T_0", "T_1", "T_2"]
    assert record.columns == expected
    np.testing.assert_array_equal(record.coordinates[:2], PLACES[:2] + 1)
    chosen = read_series(tmp_path, choice=FieldChoice(objects=["w*"], fields=["p"]))
    assert chosen.columns == ["p_0", "p_1", "p_2"]


def test_a_region_stands_behind_its_object(tmp_path):
    write_probes(tmp_path, "T", TIMES, wave(TIMES), name="probes1/air")
    write_probes(tmp_path, "T", TIMES, wave(TIMES), name="probes1/solid")
    assert read_series(tmp_path).columns[::3] == ["probes1.air.T_0", "probes1.solid.T_0"]


@pytest.mark.parametrize("mark", [NOT_FOUND, -1.79769e307, -3.40282e37, -1e37, -1e15], ids=str)
def test_probes_outside_the_mesh_are_left_out_and_said(tmp_path, mark):
    values = wave(TIMES, components=3)
    values[:, 1] = mark
    write_probes(tmp_path, "U", TIMES, values, not_found=[1])
    record = read_series(tmp_path)
    assert record.columns == [f"U_{axis}_{probe}" for axis in "xyz" for probe in (0, 2)]
    assert record.notes == ("left out 'U_x_1', 'U_y_1', 'U_z_1', which never hold a value: probes outside the mesh",)
    np.testing.assert_array_equal(record.coordinates[:2], PLACES[[0, 2]])


@pytest.mark.parametrize("size", [0.0, 1e-18])
def test_the_component_across_a_plane_case_is_pointed_out(tmp_path, size):
    values = wave(TIMES, components=3)
    values[..., 2] *= size
    write_probes(tmp_path, "U", TIMES, values)
    write_probes(tmp_path, "p", TIMES, 0 * wave(TIMES))
    record = read_series(tmp_path)
    assert "U_z_0" in record.columns
    assert len(record.notes) == 1
    assert record.notes[0].startswith("'U_z' hold nothing but rounding beside the other components of 'U', and count")


def test_a_probe_that_leaves_a_moving_mesh_is_missing_there(tmp_path):
    values = wave(TIMES)
    values[10:20, 2] = NOT_FOUND
    write_probes(tmp_path, "p", TIMES, values)
    assert np.isnan(read_series(tmp_path).values).sum() == 10


def test_a_header_without_the_probes_that_were_not_found_keeps_their_numbers(tmp_path):
    path = write_probes(tmp_path, "p", TIMES, wave(TIMES)[:, :2])
    head = header(PLACES, not_found=[1]).splitlines()
    for numbers in (["#       Probe             0             2", "#        Time"], ["# Time        0             2"]):
        path.write_text("\n".join([head[0], head[2], *numbers]) + "\n" + rows(TIMES, wave(TIMES)[:, :2]))
        record = read_series(tmp_path)
        assert record.columns == ["p_0", "p_2"]
        np.testing.assert_array_equal(record.coordinates, PLACES[[0, 2]])


def test_a_half_written_last_row_is_left_for_later(tmp_path):
    path = write_probes(tmp_path, "p", TIMES, wave(TIMES))
    text = path.read_text()
    path.write_text(text[:-4])
    record = read_series(tmp_path)
    assert len(record.values) == len(TIMES) - 1
    assert record.notes == ("left out the last row of 'probes1/0/p', which is half written",)


def test_a_row_that_only_some_fields_have_yet_is_left_out(tmp_path):
    write_probes(tmp_path, "p", TIMES, wave(TIMES))
    write_probes(tmp_path, "T", TIMES[:-1], wave(TIMES)[:-1])
    record = read_series(tmp_path)
    assert (len(record.values), np.isnan(record.values).sum()) == (len(TIMES) - 1, 0)
    assert record.notes == ("left out the last row, which is not written for all fields yet",)


def test_fields_written_at_other_times_are_missing_between(tmp_path):
    write_probes(tmp_path, "p", TIMES, wave(TIMES))
    write_probes(tmp_path, "T", TIMES[1::2], wave(TIMES)[1::2], name="slow")
    record = read_series(tmp_path)
    assert record.values.shape == (len(TIMES), 6)
    assert np.isnan(record.values[::2, :3]).all() or np.isnan(record.values[::2, 3:]).all()
    assert record.notes == ("'slow/T' have no values at some times of other fields: missing there",)


def test_reading_goes_on_from_where_it_ended_whatever_was_written_then(tmp_path):
    """The file grows by a few bytes at a time, header and all."""
    whole = header(PLACES) + rows(TIMES, wave(TIMES, components=3))
    path = tmp_path / "U"
    path.write_text("")
    file, parts = ProbeFile(path), []
    for start in range(0, len(whole), 37):
        with path.open("a") as growing:
            growing.write(whole[start : start + 37])
        parts.append(file.read())
    times = np.concatenate([part.times for part in parts])
    np.testing.assert_array_equal(times, TIMES)
    values = np.concatenate([part.values for part in parts if len(part.times)])
    np.testing.assert_allclose(values, wave(TIMES, components=3), rtol=1e-5, atol=1e-9)


def test_blocks_give_what_the_whole_file_would(tmp_path, monkeypatch):
    path = write_probes(tmp_path, "U", TIMES, wave(TIMES, components=3))
    whole = ProbeFile(path).read()
    monkeypatch.setattr("favorcast.forecasting.data.probe_file.BLOCK_BYTES", 100)
    for ours, theirs in zip(ProbeFile(path).read(), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_empty_folder_of_a_solver_that_just_started_does_no_harm(tmp_path):
    write_case(tmp_path)
    path = tmp_path / "postProcessing/probes1/40/p"
    path.parent.mkdir()
    path.write_text("")
    record = read_series(tmp_path)
    assert len(record.values) == 400
    assert record.notes == ("left out 'probes1/40/p', which have neither a whole header nor a row yet",)
    path.write_text(header(PLACES))
    assert len(read_series(tmp_path).values) == 400


def test_a_field_without_a_row_is_said(tmp_path):
    write_case(tmp_path)
    (tmp_path / "postProcessing/probes1/0/p").write_text(header(PLACES))
    assert read_series(tmp_path).notes == ("left out 'probes1/p', which hold no row yet",)


def test_what_is_no_file_of_probes_is_left_out_and_said(tmp_path):
    write_case(tmp_path)
    folder = tmp_path / "postProcessing/probes1/0"
    for copy in ("U.orig", "p~", "p.bak"):
        (folder / copy).write_text((folder / copy[0]).read_text())
    (folder / ".U.swp").write_bytes(b"\0\1")
    (folder / "notes").write_text("# of the run\nall is well\n")
    record = read_series(tmp_path)
    assert record.values.shape == (400, 12)
    assert record.notes == (
        "left out 'probes1/0/U.orig', 'probes1/0/p.bak', 'probes1/0/p~', whose names are those of copies; rename what "
        "is no copy",
        "left out 'probes1/0/notes', which are no files of probes",
    )
    assert read_series(folder / "U.orig").columns[0] == "U.orig_x_0"


def test_adaptive_steps_are_reported_and_resampled(tmp_path):
    times = np.cumsum(np.random.default_rng(0).uniform(0.05, 0.1, 300)).round(5)
    write_probes(tmp_path, "p", times, wave(times))
    with pytest.warns(match=r"irregular times: .*gaps='resample' puts the rows on a regular grid"):
        SimulationTimeSeries(str(tmp_path))
    with pytest.warns(match="resampled to"):
        series = SimulationTimeSeries(str(tmp_path), gaps="resample")
    assert series.grid.is_regular


def test_a_series_keeps_the_places_of_its_sensors(tmp_path):
    write_case(tmp_path, restart=(25.0, 20.0))
    series = SimulationTimeSeries(str(tmp_path), fields=["U"], target_columns=["U_y_*"])
    assert series.target_cols == ["U_y_0", "U_y_1", "U_y_2"]
    np.testing.assert_array_equal(series.coordinates, PLACES)
    assert (series.time_unit, series.step, len(series.values)) == ("s", pytest.approx(0.1), 400)


@pytest.mark.parametrize("form", ["folder", "pattern", "list"])
def test_cases_in_a_folder_are_runs(tmp_path, form):
    for reynolds in (80, 90, 100, 120):
        write_case(tmp_path / f"re_{reynolds}.5", seed=reynolds)
    (tmp_path / "notes.md").write_text("no run")
    names = [str(tmp_path / f"re_{reynolds}.5") for reynolds in (80, 90, 100, 120)]
    given = {"folder": str(tmp_path), "pattern": str(tmp_path / "re_*"), "list": names}[form]
    series = SimulationTimeSeries(given, fields=["p"])
    assert list(series.rows_of_runs) == ["re_80.5", "re_90.5", "re_100.5", "re_120.5"]
    assert (series.d_y_target, len(series.values)) == (3, 1600)
    np.testing.assert_array_equal(series.coordinates, PLACES)


def other_probes(case):
    write_probes(case, "p", TIMES + 6, wave(TIMES)[:, :2], places=PLACES[:2], start="6")


def moved_probes(case):
    write_probes(case, "p", TIMES + 6, wave(TIMES), places=PLACES + 1, start="6")


def other_kind(case):
    write_probes(case, "p", TIMES + 6, wave(TIMES, components=3), start="6")


def damaged(case):
    path = case / "postProcessing/probes1/0/p"
    path.write_text(path.read_text().replace("\n", "\n 3.05 0.1\n", 20).replace("\n 3.05 0.1", "", 19))


def unordered(case):
    path = case / "postProcessing/probes1/0/p"
    path.write_text(path.read_text() + rows([1.0], wave([1.0])))


def words(case):
    path = case / "postProcessing/probes1/0/p"
    path.write_text(path.read_text() + "6.1 0.5 0.5 dead\n")


def no_places(case):
    path = case / "postProcessing/probes1/0/p"
    path.write_text(path.read_text().replace("# Probe 1 (1 0.25 0.01)\n", ""))


def pairs(case):
    path = case / "postProcessing/probes1/0/p"
    path.write_text(header(PLACES) + "0.1 (1 2) (1 2) (1 2)\n")


def outside(case):
    write_probes(case, "p", TIMES, np.full((len(TIMES), 3), NOT_FOUND))


def no_rows(case):
    (case / "postProcessing/probes1/0/p").write_text(header(PLACES))


def no_header(case):
    path = case / "postProcessing/probes1/0/p"
    write_probes(case, "T", TIMES, wave(TIMES))
    path.write_text("# Time p\n" + rows(TIMES, wave(TIMES)))


FAULTS = {
    no_header: r"probes1/0/p holds rows, but no header with the places of its probes; copy the lines that begin with #",
    other_probes: r"probes1/6/p has 2 probes, not 3 as .*probes1/0/p: the probes were changed at a restart; read the",
    moved_probes: r"probes1/6/p has other probes than .*probes1/0/p: the probes were changed",
    other_kind: r"probes1/6/p has 3 numbers a value, not 1 as .*probes1/0/p: these are different fields; move",
    damaged: r"probes1/0/p, line 21: expected a time and 3 values, got 2 numbers in '3.05 0.1'; remove the damaged",
    unordered: r"probes1/0/p, line 66: expected a time not before that of the row above, got 1.0; remove the rows",
    words: r"probes1/0/p, line 66: expected a time and 3 values, got something else in '6.1 0.5 0.5 dead'",
    no_places: r"probes1/0/p must open with the places of its probes, as '# Probe 0 \(x y z\)' for each or '# x …'",
    pairs: r"probes1/0/p: a value must be a number, or 3, 6 or 9 of them in brackets, got '\(1 2\)'",
    outside: r"every probe is outside the mesh; move them into the mesh",
    no_rows: r"no file of probes holds a row yet; wait until the solver has written some",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_told_with_its_file_and_a_remedy(tmp_path, fault):
    write_probes(tmp_path, "p", TIMES, wave(TIMES))
    read_series(tmp_path)
    fault(tmp_path)
    with pytest.raises(ValueError, match=FAULTS[fault]):
        read_series(tmp_path)


def test_a_case_without_probes_says_what_to_add(tmp_path):
    (tmp_path / "system").mkdir()
    (tmp_path / "constant").mkdir()
    with pytest.raises(ValueError, match=r"holds no probes: expected postProcessing/.*add a function object of type"):
        read_series(tmp_path)
    (tmp_path / "postProcessing/forces/0").mkdir(parents=True)
    (tmp_path / "postProcessing/forces/0/force.dat").write_text("# Force\n# Time total_x\n0.1 3\n")
    with pytest.raises(ValueError, match=r"postProcessing holds no probes"):
        read_series(tmp_path)
    write_probes(tmp_path, "p", TIMES, wave(TIMES))
    assert read_series(tmp_path).notes == ("left out 'forces' in postProcessing, which hold no probes",)


def test_choices_of_what_is_not_there_are_refused(tmp_path):
    write_case(tmp_path)
    with pytest.raises(ValueError, match=r"no field matches 'T'; close matches: \['U', 'p'\], of 2 fields"):
        SimulationTimeSeries(str(tmp_path), fields=["T"])
    with pytest.raises(ValueError, match=r"no object matches 'probe2'; close matches: \['probes1'\]"):
        SimulationTimeSeries(str(tmp_path), objects=["probe2"])
    with pytest.raises(ValueError, match=r"is an OpenFOAM case, which has no sensors to choose; leave out sensors="):
        SimulationTimeSeries(str(tmp_path), sensors=7)
    with pytest.raises(
        ValueError, match=r"is a table or plain array, which has no fields to choose; leave out fields="
    ):
        SimulationTimeSeries("cylinder_wake", fields=["u"])
