"""A case that is read while it is written gives what the finished case would, whatever was written when."""

import numpy as np
import pytest
from openfoam_cases import PLACES, header, rows, wave, write_case, write_probes

from favorcast.forecasting.data import read_series
from favorcast.forecasting.data.growing_probes import GrowingProbes

TIMES = np.round(0.1 * np.arange(1, 61), 6)
COLUMNS = ["p_0", "p_2", "U_y_1"]


def collected(parts):
    """Put parts together as their readers must: a row takes the place of all from its time on."""
    times, values = np.empty(0), np.empty((0, len(COLUMNS)))
    for part in parts:
        kept = times < part.times[0]
        times, values = np.append(times[kept], part.times), np.append(values[kept], part.values, axis=0)
    return times, values


@pytest.mark.parametrize("chunk", [7, 61, 100_000])
def test_rows_come_when_all_fields_are_written(tmp_path, chunk):
    texts = {
        "p": header(PLACES) + rows(TIMES, wave(TIMES)),
        "U": header(PLACES) + rows(TIMES, wave(TIMES, components=3)),
    }
    folder = tmp_path / "postProcessing/probes1/0"
    folder.mkdir(parents=True)
    growing, parts = GrowingProbes(tmp_path, COLUMNS), []
    for start in range(0, max(map(len, texts.values())), chunk):
        for name, text in texts.items():
            with (folder / name).open("a") as file:
                file.write(text[start : start + chunk])
            if start:
                parts.extend(growing.read())
    parts.extend(growing.read())
    whole = read_series(tmp_path)
    times, values = collected(parts)
    np.testing.assert_array_equal(times, TIMES)
    np.testing.assert_array_equal(values, whole.values[:, [whole.columns.index(name) for name in COLUMNS]])
    assert sum(len(part.times) for part in parts) == len(TIMES)
    assert not growing.missing


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    path = write_probes(tmp_path, "p", TIMES, wave(TIMES))
    growing = GrowingProbes(tmp_path, ["p_1"])
    growing.read()
    read = []
    whole = growing._fields["probes1", "p"].file
    original = whole._rows
    monkeypatch.setattr(whole, "_rows", lambda text: read.append(len(text)) or original(text))
    with path.open("a") as file:
        file.write(rows([6.1], wave([6.1])))
    (part,) = growing.read()
    assert part.times.tolist() == [6.1]
    assert read[0] < 60
    assert not growing.read()


def test_a_restart_takes_the_place_of_what_was_computed_after_it(tmp_path):
    write_case(tmp_path, stop=6.0)
    growing = GrowingProbes(tmp_path, COLUMNS)
    parts = growing.read()
    later = np.round(4 + 0.1 * np.arange(1, 31), 6)
    write_probes(tmp_path, "p", later[:2], wave(later, seed=1)[:2], start="4")
    assert not growing.read()  # U is not written yet
    u = wave(later, components=3, seed=1)
    write_probes(tmp_path, "U", later[:3], u[:3], start="4")
    parts += growing.read()
    assert parts[-1].times.tolist() == [4.1, 4.2]
    halfway = read_series(tmp_path)  # of a restart that has not caught up
    times, values = collected(parts)
    np.testing.assert_array_equal(times, halfway.timestamps)
    np.testing.assert_array_equal(values, halfway.values[:, [halfway.columns.index(name) for name in COLUMNS]])
    with (tmp_path / "postProcessing/probes1/4/p").open("a") as file:
        file.write(rows(later[2:], wave(later, seed=1)[2:]))
    with (tmp_path / "postProcessing/probes1/4/U").open("a") as file:
        file.write(rows(later[3:], u[3:]))
    parts += growing.read()
    whole = read_series(tmp_path)
    times, values = collected(parts)
    np.testing.assert_array_equal(times, whole.timestamps)
    np.testing.assert_array_equal(values, whole.values[:, [whole.columns.index(name) for name in COLUMNS]])


def test_a_case_of_two_starts_is_read_from_its_beginning(tmp_path):
    write_case(tmp_path, restart=(25.0, 20.0))
    times, values = collected(GrowingProbes(tmp_path, COLUMNS).read())
    whole = read_series(tmp_path)
    np.testing.assert_array_equal(times, whole.timestamps)
    np.testing.assert_array_equal(values, whole.values[:, [whole.columns.index(name) for name in COLUMNS]])


def test_a_start_that_ended_is_read_whole_whatever_its_fields_lack(tmp_path):
    write_case(tmp_path, stop=6.0)
    write_probes(tmp_path, "p", [5.0, 5.1, 5.2], wave([5.0, 5.1, 5.2]), start="4.9")
    write_probes(tmp_path, "U", [], np.empty((0, 3, 3)), start="4.9")
    for field, components in (("p", 1), ("U", 3)):
        write_probes(tmp_path, field, [5.2, 5.3], wave([5.2, 5.3], components=components), start="5.1")
    times, values = collected(GrowingProbes(tmp_path, COLUMNS).read())
    whole = read_series(tmp_path)
    np.testing.assert_array_equal(times, whole.timestamps)
    np.testing.assert_array_equal(values, whole.values[:, [whole.columns.index(name) for name in COLUMNS]])
    assert np.isnan(values[-3, 2])


def test_a_start_before_one_that_is_there_is_passed_over_and_told(tmp_path):
    write_case(tmp_path, restart=(25.0, 20.0))
    growing = GrowingProbes(tmp_path, COLUMNS)
    growing.read()
    write_probes(tmp_path, "p", [10.1], wave([10.1]), start="10")
    assert not growing.read()
    assert growing.passed_over == [10.0]


def test_columns_that_no_file_has_are_told(tmp_path):
    write_probes(tmp_path, "p", TIMES, wave(TIMES))
    growing = GrowingProbes(tmp_path, COLUMNS)
    assert not growing.read()
    assert growing.missing == ["U_y_1"]
    write_probes(tmp_path, "U", TIMES, wave(TIMES, components=3))
    assert len(growing.read()[0].times) == len(TIMES)


def test_other_probes_after_a_restart_are_refused(tmp_path):
    write_probes(tmp_path, "p", TIMES, wave(TIMES))
    growing = GrowingProbes(tmp_path, ["p_1"])
    growing.read()
    write_probes(tmp_path, "p", TIMES + 6, wave(TIMES)[:, :2], places=PLACES[:2], start="6")
    with pytest.raises(ValueError, match=r"probes1/6/p has 2 probes, not 3 as .*probes1/0/p: the probes were changed"):
        growing.read()
