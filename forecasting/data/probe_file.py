"""Read one file of probes as OpenFOAM writes it, on from where the last reading ended.

    # Probe 0 (0.1 0 0)              or, of older versions,    #  x   0.1   0.2
    # Probe 1 (0.2 0 0)  # Not Found                           #  y   0     0
    #  Probe   0            1                                  #  z   0     0
    #  Time                   (or both in one: # Time  0  1)   #  Time
    0.01       (1 0 0)      (-1e+300 -1e+300 -1e+300)

A scalar stands alone, a vector, symmetric tensor or tensor has its 3, 6 or 9 components in brackets.
"""

import re
import warnings
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np

COMPONENTS = {
    0: ("",),  # a scalar, without brackets
    1: ("ii",),  # a spherical tensor
    3: ("x", "y", "z"),
    6: ("xx", "xy", "xz", "yy", "yz", "zz"),
    9: ("xx", "xy", "xz", "yx", "yy", "yz", "zx", "zy", "zz"),
}
# what stands for a probe outside the mesh in double precision (-1e+300, -1.79769e+307), and in single precision
NOT_FOUND_BELOW, NOT_FOUND = -9e299, (-3.40282e37, -1e37, -1e15)
BLOCK_BYTES = 1 << 24
HEADS = re.compile(rb"\s*#\s*Probe\s+\d+\s*\(|\s*#\s*x\s.*\n\s*#\s*y\s.*\n\s*#\s*z\s.*\n\s*#\s*Time")
LONGEST_LINE = 1 << 20
PROBE = re.compile(r"#\s*Probe\s+(\d+)\s*\(([^()]*)\)")
AXIS = re.compile(r"#\s*([xyz])\s+(\S.*)")
NUMBERS = re.compile(r"#\s*(?:Probe|Time)((?:\s+\d+)+)\s*")
TIME = re.compile(r"#\s*Time\b")


class Probes(NamedTuple):
    """What a header says: numbers of the probes, in the order of their columns, and their places (probes, 3)."""

    numbers: list[int]
    places: np.ndarray


class ProbeRows(NamedTuple):
    """Times (rows,) and values (rows, probes, components), float64, NaN where a probe is outside the mesh."""

    times: np.ndarray
    values: np.ndarray


def is_probe_file(path: Path) -> bool:
    """Tell by its first lines whether a file holds probes, whatever its name."""
    try:
        with path.open("rb") as file:
            first = file.readline(LONGEST_LINE)
            lines = [first, *(file.readline(LONGEST_LINE) for _ in range(3 if first.startswith(b"#") else 0))]
            return HEADS.match(b"".join(lines)) is not None
    except OSError:
        return False


class FirstLine(Enum):
    """What the first line of a file that is no comment holds."""

    NONE = "nothing"
    NUMBERS = "a time and values"
    WORDS = "something else"


def first_line(path: Path) -> FirstLine:
    """Tell what stands in the first line that is no comment, as far as it is written."""
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(LONGEST_LINE), b""):
            if _is_row(line):
                numbers = _numbers(line.strip())
                return FirstLine.NUMBERS if numbers is not None and len(numbers) > 1 else FirstLine.WORDS
    return FirstLine.NONE


class ProbeFile:
    """A file of probes, which may still grow.

    Attributes:
        path: of the file.
        probes: what its header says; None until that is complete.
        components: names of the components of a value; None until there is a row.
        is_torn: whether the last row lacked its end when it was last read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.probes: Probes | None = None
        self.components: tuple[str, ...] | None = None
        self.is_torn = False
        self._offset = 0
        self._line = 0

    def read(self) -> ProbeRows:
        """Return the rows that were completed since the last reading; only what is new is read from the file.

        A last row without an end of line is still being written, and is left for the next reading.

        Raises:
            ValueError: a header or a row that is none of probes; the message says where.
        """
        parts, rest = [], b""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while block := file.read(BLOCK_BYTES):
                complete, end, rest = (rest + block).rpartition(b"\n")
                if self.probes is None and _is_header_begun(complete):
                    rest = complete + end + rest
                    continue
                self._offset += len(complete) + len(end)
                if complete:
                    parts.append(self._rows(complete))
        self.is_torn = bool(rest.strip())
        parts = [part for part in parts if len(part.times)]
        if not parts:
            width = (0, 0) if self.probes is None or self.components is None else self._shape
            return ProbeRows(np.empty(0), np.empty((0, *width)))
        return ProbeRows(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    @property
    def _shape(self) -> tuple[int, int]:
        assert self.probes is not None
        assert self.components is not None
        return len(self.probes.numbers), len(self.components)

    def _rows(self, text: bytes) -> ProbeRows:
        """Parse whole lines."""
        lines = text.split(b"\n")
        rows = [(self._line + i, line) for i, line in enumerate(lines) if _is_row(line)]
        if self.probes is None:
            header = lines[: rows[0][0]] if rows else lines
            self.probes = _parsed_header([line.decode("utf-8", "replace") for line in header], self.path)
        self._line += len(lines)
        if not rows:
            return ProbeRows(np.empty(0), np.empty((0, 0, 0)))
        if self.components is None:
            self.components = self._components_of(rows[0][1])
        width = 1 + self._shape[0] * self._shape[1]
        numbers = _numbers(b"\n".join(line for _, line in rows))
        if numbers is None or len(numbers) != width * len(rows):
            raise ValueError(self._fault(rows, width))
        table = numbers.reshape(len(rows), width)
        if not (np.isfinite(table[:, 0]).all() and (np.diff(table[:, 0]) >= 0).all()):
            row = int(np.argmin(np.r_[True, np.diff(table[:, 0]) >= 0] & np.isfinite(table[:, 0])))
            raise ValueError(
                f"{self.path}, line {rows[row][0] + 1}: expected a time not before that of the row above, got "
                f"{table[row, 0]}; remove the rows that are out of order"
            )
        values = table[:, 1:]
        values = np.where((values < NOT_FOUND_BELOW) | np.isin(values, NOT_FOUND), np.nan, values)
        return ProbeRows(table[:, 0].copy(), values.reshape(len(rows), *self._shape))

    def _components_of(self, line: bytes) -> tuple[str, ...]:
        bracket = re.search(rb"\(([^()]*)\)", line)
        count = 0 if bracket is None else len(bracket.group(1).split())
        if count not in COMPONENTS:
            raise ValueError(
                f"{self.path}: a value must be a number, or 3, 6 or 9 of them in brackets, got "
                f"{bracket.group(0).decode() if bracket else ''!r}"
            )
        return COMPONENTS[count]

    def _fault(self, rows: list[tuple[int, bytes]], width: int) -> str:
        """Say which of some rows is not as it should be."""
        line, numbers, text = next(
            (line, numbers, text) for line, text in rows if (numbers := _numbers(text)) is None or len(numbers) != width
        )
        probes, components = self._shape
        each = f" of {components} numbers" if components > 1 else ""
        came = "something else" if numbers is None else f"{len(numbers)} numbers"
        return (
            f"{self.path}, line {line + 1}: expected a time and {probes} values{each}, got {came} in "
            f"{text.decode('utf-8', 'replace').strip()[:60]!r}; remove the damaged row"
        )


def _is_row(line: bytes) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith(b"#")


def _is_header_begun(text: bytes) -> bool:
    """Tell whether a text is the beginning of a header, to be read when it is complete."""
    lines = text.split(b"\n")
    return not any(_is_row(line) or TIME.match(line.decode("utf-8", "replace")) for line in lines)


def _numbers(text: bytes) -> np.ndarray | None:
    """Return all numbers of a text without its brackets, None where something else stands in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # what older versions of NumPy say of other content
        try:
            return np.fromstring(text.translate(None, b"()").decode("ascii"), sep=" ")
        except (ValueError, DeprecationWarning):
            return None


def _parsed_header(lines: list[str], path: Path) -> Probes:
    """Read the lines of a header, of either style."""
    found = {int(match.group(1)): match.group(2).split() for match in map(PROBE.search, lines) if match}
    axes = {match.group(1): match.group(2).split() for match in map(AXIS.match, lines) if match}
    if axes.keys() == {"x", "y", "z"} and len({len(each) for each in axes.values()}) == 1:
        found = dict(enumerate(zip(*(axes[axis] for axis in "xyz"), strict=True)))
    columns = next((match.group(1).split() for match in map(NUMBERS.fullmatch, lines) if match), None)
    numbers = list(found) if columns is None else [int(number) for number in columns]
    try:
        places = np.array([found[number] for number in numbers], dtype=np.float64)
    except (KeyError, ValueError):
        places = np.empty(0)
    if not numbers or places.shape != (len(numbers), 3) or not any(map(TIME.match, lines)):
        raise ValueError(
            f"{path} must open with the places of its probes, as '# Probe 0 (x y z)' for each or '# x …', '# y …', "
            f"'# z …', and a line '# Time', got {[line.strip() for line in lines[:4]]}"
        )
    return Probes(numbers, places)
