"""Read the probes of an OpenFOAM case: postProcessing/<object>/<start time>/<field>.

A case that was restarted has a folder for each start. From the first to the last time of a later start, rows of earlier
ones give way to its own.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .column_choice import listed
from .field_choice import FieldChoice
from .probe_file import ProbeFile, ProbeRows, Probes
from .probe_folders import ProbedField, find_fields
from .record import SensorRecord, sensor_record
from .table_format import TableFormat

ROUNDING = 1e-9  # of the largest component


def read_openfoam(path: Path, *, choice: FieldChoice | None = None, given: TableFormat | None = None) -> SensorRecord:
    """Read the probes of a case: a column for each component of each probe.

    p_0 is field p at probe 0, U_x_0 the first component of the vector U there, R_xy_0 one of a tensor. Objects of which
    two have columns of one name put their own before it: probes1.p_0. Times are in seconds. Rows are the times of all
    fields, values missing where one has none.

    Args:
        path: of a case, its postProcessing folder, the folder of an object or of a start time, or a file.
        choice: the fields and objects to read.
        given: further marks of missing values.

    Raises:
        ValueError: no probes, files that do not fit one another, or a damaged one.
    """
    choice, given = choice or FieldChoice(), given or TableFormat()
    choice.refuse(("sensors",), str(path), "an OpenFOAM case")
    found, notes = find_fields(path, choice)
    torn: list[Path] = []
    fields = [each for each in (_joined(field, torn) for field in found) if each is not None]
    if not fields:
        raise ValueError(f"{path}: no file of probes holds a row yet; wait until the solver has written some")
    if torn:
        notes.append(f"left out the last row of {listed([_in_case(file) for file in torn])}, which is half written")
    headers = [each.header for each in fields]
    names = column_names(headers)
    times, values, notes_of_times = _stacked(fields)
    places = np.concatenate([np.tile(each.probes.places, (len(each.components), 1)) for each in headers])
    dead = np.isnan(values).all(axis=0)
    labels = np.array([name for columns in names for name in columns])
    if dead.all():
        raise ValueError(f"{path}: every probe is outside the mesh; move them into the mesh and run the case again")
    if dead.any():
        notes.append(f"left out {listed(labels[dead].tolist())}, which never hold a value: probes outside the mesh")
    return sensor_record(
        values[:, ~dead],
        labels[~dead].tolist(),
        timestamps=times,
        time_unit="s",
        coordinates=places[~dead],
        missing=given.missing_numbers,
        source=str(path),
        notes=[*notes, *notes_of_times, *_notes_of_rounding(fields)],
    )


class FieldHeader(NamedTuple):
    """What names the columns of a field."""

    object: str
    field: str
    probes: Probes
    components: tuple[str, ...]


class JoinedField(NamedTuple):
    """A field over all starts."""

    header: FieldHeader
    rows: ProbeRows


def column_names(fields: list[FieldHeader]) -> list[list[str]]:
    """Return the names of the columns of each field: all probes of a component, then those of the next."""
    names = [
        [
            f"{field.field}_{component}_{number}" if component else f"{field.field}_{number}"
            for component in field.components
            for number in field.probes.numbers
        ]
        for field in fields
    ]
    owners: dict[str, set[str]] = {}
    for field, columns in zip(fields, names, strict=True):
        for column in columns:
            owners.setdefault(column, set()).add(field.object)
    shared = {owner for each in owners.values() if len(each) > 1 for owner in each}
    return [
        [f"{field.object}.{column}" if field.object in shared else column for column in columns]
        for field, columns in zip(fields, names, strict=True)
    ]


def _joined(field: ProbedField, torn: list[Path]) -> JoinedField | None:
    """Read the files of a field, and let later starts take the place of earlier ones; None where no row is there."""
    first: ProbeFile | None = None
    parts: list[ProbeRows] = []
    for path in field.files:
        file = ProbeFile(path)
        rows = file.read()
        if file.is_torn:
            torn.append(path)
        if len(rows.times):
            first = first or file
            check_alike(first, file)
            parts = [_outside(part, rows.times[0], rows.times[-1]) for part in parts] + [rows]
    if first is None or first.probes is None or first.components is None:
        return None
    times = np.concatenate([part.times for part in parts])
    order = np.argsort(times, kind="stable")
    values = np.concatenate([part.values for part in parts])[order]
    header = FieldHeader(field.object, field.field, first.probes, first.components)
    return JoinedField(header, ProbeRows(times[order], values))


def check_alike(first: ProbeFile, other: ProbeFile) -> None:
    """Raise ValueError where two files of a field differ in their probes or in the kind of their values."""
    assert first.probes is not None
    assert other.probes is not None
    ours, theirs = first.probes, other.probes
    if ours.numbers != theirs.numbers or not np.array_equal(ours.places, theirs.places):
        counts = [str(len(each.numbers)) for each in (theirs, ours)]
        has = f"has {counts[0]} probes, not {counts[1]} as" if counts[0] != counts[1] else "has other probes than"
        raise ValueError(
            f"{other.path} {has} {first.path}: the probes were changed at a restart; read the folder of one start "
            "time, or move the others elsewhere"
        )
    if first.components != other.components:
        ours, theirs = (len(each.components or ()) for each in (first, other))
        raise ValueError(
            f"{other.path} has {theirs} numbers a value, not {ours} as {first.path}: these are different fields; move "
            "the file of one of them elsewhere, or rename it"
        )


def _outside(rows: ProbeRows, first: float, last: float) -> ProbeRows:
    kept = (rows.times < first) | (rows.times > last)
    return ProbeRows(rows.times[kept], rows.values[kept])


def _notes_of_rounding(fields: list[JoinedField]) -> list[str]:
    """Name the components that are rounding beside the others, such as that across a two-dimensional case."""
    notes = []
    for (_, field, _, components), rows in fields:
        largest = np.nan_to_num(np.abs(rows.values)).max(axis=(0, 1))
        small = [
            f"{field}_{name}" for name, x in zip(components, largest, strict=True) if x <= ROUNDING * largest.max()
        ]
        if 0 < len(small) < len(components):
            notes.append(
                f"{listed(small)} hold nothing but rounding beside the other components of {field!r}, and count as "
                "sensors all the same; leave them out by naming the others as target_columns"
            )
    return list(dict.fromkeys(notes))


def _stacked(fields: list[JoinedField]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the times and values (rows, columns) of all fields, missing where one has none, and notes of that."""
    times = fields[0].rows.times
    blocks = [each.rows.values.transpose(0, 2, 1).reshape(len(each.rows.times), -1) for each in fields]
    if all(np.array_equal(times, each.rows.times) for each in fields):
        return times, np.concatenate(blocks, axis=1), []
    notes = []
    times = np.unique(np.concatenate([each.rows.times for each in fields]))
    if times[-2] == min(each.rows.times[-1] for each in fields):
        times = times[:-1]
        notes.append("left out the last row, which is not written for all fields yet")
    values = np.full((len(times), sum(block.shape[1] for block in blocks)), np.nan)
    first, sparse = 0, []
    for field, block in zip(fields, blocks, strict=True):
        rows = np.searchsorted(times, field.rows.times)
        known = rows < len(times)
        values[rows[known], first : first + block.shape[1]] = block[known]
        first += block.shape[1]
        if len(np.unique(rows[known])) < len(times):
            sparse.append(f"{field.header.object}/{field.header.field}")
    if sparse:
        notes.append(f"{listed(sparse)} have no values at some times of other fields: missing there")
    return times, values, notes


def _in_case(file: Path) -> str:
    return "/".join(file.parts[-3:])
