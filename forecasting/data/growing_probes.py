"""Read the probes of a case while its solver writes them: rows as they are completed, across restarts."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .field_choice import FieldChoice
from .openfoam import FieldHeader, check_alike, column_names
from .probe_file import ProbeFile, ProbeRows
from .probe_folders import find_fields

FieldKey = tuple[str, str]  # object and field


class NewRows(NamedTuple):
    """Rows of one start of the solver: times (rows,) and values (rows, columns), NaN where missing."""

    times: np.ndarray
    values: np.ndarray


class GrowingProbes:
    """Columns of a case, of which each reading gives the rows that were completed since the one before.

    Only what is new is read from files. A row is complete once every field with one of the columns has been written at
    its time. A later start of the solver may begin at an earlier time: its rows take the place of all from there on, as
    read_openfoam has it.

    Args:
        path: of a case, its postProcessing folder or that of an object.
        columns: names as read_openfoam gives them.
        choice: the fields and objects to read.

    Attributes:
        missing: columns of which no file of the case has a row yet.
        passed_over: starts that came to the case after a greater one, whose rows count instead.
    """

    def __init__(self, path: Path, columns: list[str], choice: FieldChoice | None = None) -> None:
        self.path, self.columns, self.choice = path, columns, choice or FieldChoice()
        self.missing = list(columns)
        self.passed_over: list[float] = []
        self._seen: set[float] = set()
        self._first: dict[FieldKey, ProbeFile] = {}
        self._start = -np.inf
        self._fields: dict[FieldKey, _GrowingField] = {}
        self._places: dict[FieldKey, tuple[list[int], list[int]]] = {}

    def read(self) -> list[NewRows]:
        """Return what is new, in the order in which it was computed.

        Raises:
            ValueError: a damaged file, or one with other probes than those before; see read_openfoam.
        """
        starts = self._starts()
        self.passed_over += [] if not self._seen else sorted(x for x in starts.keys() - self._seen if x < self._start)
        self._seen |= starts.keys()
        parts = []
        for start in (each for each in starts if each >= self._start):
            if start != self._start:
                self._start, self._fields = start, {}
            for key, path in starts[start].items():
                self._read_field(key, path)
            if self._places or self._find_columns():
                rows = self._completed(is_running=start == max(starts))
                parts.extend([rows] if len(rows.times) else [])
        return parts

    def behind(self) -> dict[str, float]:
        """Return the fields whose rows others wait for, by object/field, and the times at which they end."""
        latest = {key: field.latest for key, field in self._fields.items() if key in self._places}
        latest |= {key: -np.inf for key in self._places if key not in latest}
        furthest = max(latest.values(), default=-np.inf)
        return {"/".join(key): time for key, time in latest.items() if time < furthest}

    def _starts(self) -> dict[float, dict[FieldKey, Path]]:
        """Return the files of each start, ascending."""
        starts: dict[float, dict[FieldKey, Path]] = {}
        for field in find_fields(self.path, self.choice)[0]:
            for start, path in field.files:
                starts.setdefault(start, {})[field.object, field.field] = path
        return dict(sorted(starts.items()))

    def _read_field(self, key: FieldKey, path: Path) -> None:
        if self._places and key not in self._places:
            return  # no column of it is wanted
        field = self._fields.setdefault(key, _GrowingField(path))
        field.read()
        if field.file.components is not None:
            check_alike(self._first.setdefault(key, field.file), field.file)

    def _find_columns(self) -> bool:
        """Find out which fields have the columns, once rows of all of them were seen."""
        headers = [
            FieldHeader(*key, file.probes, file.components)
            for key, file in self._first.items()
            if file.probes is not None and file.components is not None
        ]
        names = column_names(headers)
        self.missing = [each for each in self.columns if not any(each in columns for columns in names)]
        if self.missing:
            return False
        for header, columns in zip(headers, names, strict=True):
            pairs = [(columns.index(name), i) for i, name in enumerate(self.columns) if name in columns]
            if pairs:
                theirs, ours = zip(*pairs, strict=True)
                self._places[header.object, header.field] = list(theirs), list(ours)
        return True

    def _completed(self, *, is_running: bool) -> NewRows:
        """Take the rows that all fields have; of a start that has ended, all that it left."""
        present = {key: self._fields[key] for key in self._places if key in self._fields}
        latest = [present[key].latest if key in present else -np.inf for key in self._places]
        until = min(latest) if is_running else max(latest)
        times = [field.times[field.times <= until] for field in present.values()]
        joint = np.unique(np.concatenate([np.empty(0), *times]))
        values = np.full((len(joint), len(self.columns)), np.nan)
        for key, field in present.items() if len(joint) else ():
            theirs, ours = self._places[key]
            for rows in field.take(joint[-1]):
                block = rows.values.transpose(0, 2, 1).reshape(len(rows.times), -1)
                values[np.searchsorted(joint, rows.times)[:, None], ours] = block[:, theirs]
        return NewRows(joint, values)


class _GrowingField:
    """A field of one start, with the rows that other fields have not reached yet."""

    def __init__(self, path: Path) -> None:
        self.file = ProbeFile(path)
        self.latest = -np.inf
        self._parts: list[ProbeRows] = []

    @property
    def times(self) -> np.ndarray:
        """Times of the rows that were not taken yet."""
        return np.concatenate([np.empty(0), *(part.times for part in self._parts)])

    def read(self) -> None:
        """Read what was added to the file."""
        rows = self.file.read()
        if len(rows.times):
            self.latest = float(rows.times[-1])
            self._parts.append(rows)

    def take(self, until: float) -> list[ProbeRows]:
        """Return the rows up to a time, and forget them."""
        known = [part.times <= until for part in self._parts]
        taken = [ProbeRows(part.times[k], part.values[k]) for part, k in zip(self._parts, known, strict=True)]
        left = [ProbeRows(part.times[~k], part.values[~k]) for part, k in zip(self._parts, known, strict=True)]
        self._parts = [part for part in left if len(part.times)]
        return [part for part in taken if len(part.times)]
