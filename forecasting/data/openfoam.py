"""Read the probes of an OpenFOAM case: postProcessing/<object>/<start time>/<field>.

A case that was restarted has a folder for each start. From the first row of a later start on, the rows of earlier ones
give way: they are of a run that was given up.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .column_choice import listed
from .field_choice import FieldChoice
from .place_axes import PlaceAxis
from .probe_file import ProbeFile, ProbeRows, Probes
from .probe_folders import ProbedField, find_fields, in_case
from .record import SensorRecord, sensor_record
from .table_format import TableFormat

AXES = tuple(PlaceAxis(name, {"units": "m"}) for name in "xyz")
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
    read = [_read(field) for field in found]
    torn = [in_case(part.path) for parts in read for part in parts if part.is_torn]
    given_up = _give_way(found, read)
    fields = [_joined(parts) for parts in read if any(map(_has_rows, parts))]
    if not fields:
        raise ValueError(f"{path}: no file of probes holds a row yet; wait until the solver has written some")
    without = [f"{x.object}/{x.field}" for x, parts in zip(found, read, strict=True) if not any(map(_has_rows, parts))]
    notes += [f"left out {listed(without)}, which hold no row yet"] if without else []
    notes += [f"left out the last row of {listed(torn)}, which is half written"] if torn else []
    notes += given_up
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
        axes=AXES,
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


class StartRows(NamedTuple):
    """What a file of one start of the solver holds."""

    start: float
    path: Path
    rows: ProbeRows
    header: FieldHeader | None
    is_torn: bool


def _read(field: ProbedField) -> list[StartRows]:
    """Read the files of a field, of each start."""
    parts: list[StartRows] = []
    first: ProbeFile | None = None
    for start, path in field.files:
        file, header = ProbeFile(path), None
        rows = file.read()
        if file.probes is not None and file.components is not None:
            check_alike(first := first or file, file)
            header = FieldHeader(field.object, field.field, file.probes, file.components)
        parts.append(StartRows(start, path, rows, header, file.is_torn))
    return parts


def _has_rows(part: StartRows) -> bool:
    return len(part.rows.times) > 0


def _give_way(found: list[ProbedField], read: list[list[StartRows]]) -> list[str]:
    """Take out, in place, the rows that later starts take the place of; say which times are lost by that.

    A later start begins with the first row that any field has of it. It counts for the objects that have its folder.
    """
    begins: dict[float, float] = {}
    starts: dict[str, set[float]] = {}
    for field, parts in zip(found, read, strict=True):
        starts.setdefault(field.object, set()).update(part.start for part in parts)
        for part in filter(_has_rows, parts):
            begins[part.start] = min(begins.get(part.start, np.inf), part.rows.times[0])
    kept, lost = [-np.inf], [(-np.inf, -np.inf)]
    for field, parts in zip(found, read, strict=True):
        for i, part in enumerate(parts):
            later = [(begins[x], x) for x in starts[field.object] if x > part.start and x in begins]
            until, restart = min(later, default=(np.inf, np.inf))
            known = part.rows.times < until
            kept.extend(part.rows.times[known][-1:])
            lost.extend((time, restart) for time in part.rows.times[~known][-1:])
            parts[i] = part._replace(rows=ProbeRows(part.rows.times[known], part.rows.values[known]))
    (last, restart), reached = max(lost), max(kept)
    if last <= reached:
        return []
    return [
        f"left out what earlier starts wrote up to {last:.15g} s: the restart at {restart:.15g} s takes their place "
        f"from {begins[restart]:.15g} s on, and has reached {reached:.15g} s; if it is the restart that was given up, "
        "move its folders elsewhere"
    ]


def _joined(parts: list[StartRows]) -> JoinedField:
    """Put the rows of all starts of a field in order of time."""
    header = next(part.header for part in parts if part.header is not None)
    times = np.concatenate([part.rows.times for part in parts if _has_rows(part)])
    order = np.argsort(times, kind="stable")
    values = np.concatenate([part.rows.values for part in parts if _has_rows(part)])[order]
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
    if len(times) > 1 and times[-2] == min(each.rows.times[-1] for each in fields):
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
