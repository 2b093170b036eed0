"""Find the files of probes in the folders of an OpenFOAM case: postProcessing/<object>/<start time>/<field>."""

from pathlib import Path
from typing import NamedTuple

from .column_choice import listed, match_names
from .field_choice import FieldChoice
from .probe_file import FirstLine, first_line, is_probe_file

RESULTS = "postProcessing"
BACKUPS = ("~", ".orig", ".bak", ".old", ".save", ".tmp")


class ProbedField(NamedTuple):
    """The files of one field of a function object, with the start times of their folders, ascending."""

    object: str
    field: str
    files: list[tuple[float, Path]]


def is_case(path: Path) -> bool:
    """Tell whether a folder is an OpenFOAM case."""
    return (path / RESULTS).is_dir() or ((path / "system").is_dir() and (path / "constant").is_dir())


def holds_probes(path: Path) -> bool:
    """Tell whether a path is a case, or a folder or a file of probes within one."""
    if path.is_dir():
        return is_case(path) or bool(_starts_by_object(path))
    return path.is_file() and is_probe_file(path)


def find_fields(path: Path, choice: FieldChoice) -> tuple[list[ProbedField], list[str]]:
    """Return the chosen fields of a case, and notes of what is left out.

    Raises:
        ValueError: none, a choice of what is not there, or a file of numbers that does not say where its probes are.
    """
    objects = {path.resolve().parent.parent.name: [path.parent]} if path.is_file() else _starts_by_object(path)
    if not objects:
        case = path / RESULTS if (path / RESULTS).is_dir() else path
        raise ValueError(
            f"{case} holds no probes: expected {RESULTS}/<object>/<start time>/<field>, which opens with the "
            "places of its probes, as '# Probe 0 (x y z)'; add a function object of type probes to system/controlDict, "
            "and run the case (or postProcess) again"
        )
    chosen = list(objects) if choice.objects is None else match_names(list(objects), choice.objects, kind="object")
    files: dict[tuple[str, str], list[tuple[float, Path]]] = {}
    others: list[Path] = []
    for name in chosen:
        for start in objects[name]:
            each_file = [path] if path.is_file() else [each for each in _children(start) if each.is_file()]
            others += [file for file in each_file if not _is_read(file) and file != path]
            for file in [file for file in each_file if _is_read(file) or file == path]:
                files.setdefault((name, file.name), []).append((_start_of(start) or 0.0, file))
    notes = _notes_of_others(others)
    names = list(dict.fromkeys(field for _, field in files))
    fields = names if choice.fields is None else match_names(names, choice.fields, kind="field")
    found = [ProbedField(*key, paths) for key, paths in files.items() if key[1] in fields]
    return found, notes + (_left_out(path, objects) if choice.objects is None else [])


def in_case(file: Path) -> str:
    """Return a file by its object, start and name."""
    return "/".join(file.parts[-3:])


def _is_read(file: Path) -> bool:
    return not file.name.endswith(BACKUPS) and is_probe_file(file)


def _notes_of_others(files: list[Path]) -> list[str]:
    """Say which files beside probes are left out; refuse rows of numbers under no header."""
    copies = [in_case(file) for file in files if file.name.endswith(BACKUPS)]
    rest = [file for file in files if not file.name.endswith(BACKUPS)]
    kinds = [first_line(file) for file in rest]
    empty = [in_case(file) for file, kind in zip(rest, kinds, strict=True) if kind is FirstLine.NONE]
    alien = [in_case(file) for file, kind in zip(rest, kinds, strict=True) if kind is FirstLine.WORDS]
    rows = [file for file, kind in zip(rest, kinds, strict=True) if kind is FirstLine.NUMBERS]
    if rows:
        raise ValueError(
            f"{rows[0]} holds rows, but no header with the places of its probes; copy the lines that begin with # from "
            "another field of its object to its top, or move it elsewhere"
        )
    said = (
        (copies, "whose names are those of copies; rename what is no copy"),
        (empty, "which have neither a whole header nor a row yet"),
        (alien, "which are no files of probes"),
    )
    return [f"left out {listed(names)}, {why}" for names, why in said if names]


def _starts_by_object(path: Path) -> dict[str, list[Path]]:
    """Return the folders of start times of each object with probes, ascending, below a folder of a case."""
    if (path / RESULTS).is_dir():
        path = path / RESULTS
    elif any(_is_read(file) for file in _children(path) if file.is_file()):
        return {path.resolve().parent.name: [path]}
    elif not is_case(path) and (starts := _probed_starts(path)):
        return {path.resolve().name: starts}
    found = {}
    for folder in (each for each in _children(path) if _start_of(each) is None and not is_case(each)):
        if starts := _probed_starts(folder):
            found[folder.name] = starts
        for region in (each for each in _children(folder) if _start_of(each) is None and not is_case(each)):
            if starts := _probed_starts(region):  # <object>/<region>/<start time>
                found[f"{folder.name}.{region.name}"] = starts
    return found


def _probed_starts(folder: Path) -> list[Path]:
    """Return the start times of an object; nothing where neither the first nor the last one holds probes."""
    starts = sorted(
        (each for each in _children(folder) if _start_of(each) is not None), key=lambda x: _start_of(x) or 0
    )
    ends = {starts[0], starts[-1]} if starts else set()
    return starts if any(_is_read(file) for start in ends for file in _children(start)) else []


def _children(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.name[0] != ".") if folder.is_dir() else []


def _start_of(folder: Path) -> float | None:
    try:
        return float(folder.name) if folder.is_dir() else None
    except ValueError:
        return None


def _left_out(path: Path, objects: dict[str, list[Path]]) -> list[str]:
    results = path / RESULTS
    with_probes = {name.partition(".")[0] for name in objects}
    others = [each.name for each in _children(results) if each.is_dir() and each.name not in with_probes]
    return [f"left out {listed(others)} in {RESULTS}, which hold no probes"] if others else []
