"""Find the commands that a text names, and say which of their programs, files and options do not exist."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

from favorcast.forecasting.cli.config_files import bundled_configs
from favorcast.forecasting.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PROGRAMS = ("favorcast", "python", "pip", "pytest", "bash", "ruff", "pyright", "pre-commit")
FOLDERS = ("kernels/", "forecasting/", "tests/", "bench/", ".ci/", ".github/")
OWN_FILES = {"my.yaml"}
"""Files that readers have, not we."""


def commands_in(text: str) -> list[str]:
    """Return the commands of a Markdown text: the lines of its bash blocks, and what stands between backticks."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]
    return [command for line in lines for command in commands_of(line)]


def commands_of(line: str) -> list[str]:
    """Return the commands of a line of shell that begin with one of our programs or files, without comments."""
    parts = (part.strip() for part in re.split(r"&&|\|\||;(?=\s)|\s\|\s", re.split(r"(?:^|\s)#", line)[0]))
    named = ((part, _words(part)) for part in parts)
    return [part for part, words in named if len(words) > 1 and (words[0] in PROGRAMS or words[0].startswith(FOLDERS))]


def missing(command: str) -> list[str]:
    """Say what a command names that is not there; empty where all of it is."""
    program, *arguments = _words(command)
    found = [word for word in (program, *arguments) if word.startswith(FOLDERS) and not exists(word)]
    if program == "python" and arguments[:2] != ["bench", "NAME"]:
        name, options = _bench_of(arguments)
        source = _benches()[name].read_text(encoding="utf-8") if name in _benches() else None
        found += [] if source or name is None else [name]
        found += [x for x in options if x.startswith("--") and source and f'"{x.partition("=")[0]}"' not in source]
    if program == "favorcast" and arguments[0] not in {*COMMANDS, "backtest", "describe", "--version"}:
        found.append(arguments[0])
    configs = {f"{name.removesuffix('.yaml')}.yaml" for name in bundled_configs()} | OWN_FILES
    found += [after for option, after in pairwise(arguments) if option == "--config" and after not in configs]
    if program == "pip":
        found += [x for group in re.findall(r"\[([a-z,]+)\]", command) for x in group.split(",") if x not in _extras()]
    return [f"{command}: there is no {x}" for x in found]


def exists(path: str) -> bool:
    """Whether a path of the repository exists; of test ids, braces and patterns, what stands before them."""
    plain = ROOT / re.sub(r"(::|\[|\{|\*).*", "", path)
    return plain.exists() or (plain.name != path.rpartition("/")[2] and any(plain.parent.glob(f"{plain.name}*")))


def _words(command: str) -> list[str]:
    """Split a command, without the variables that are set before it."""
    words = shlex.split(command)
    return [word for i, word in enumerate(words) if i or not re.match(r"[A-Z_]+=", word)] if words else []


def _bench_of(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the command of the benches that python runs, if it is one, and its arguments."""
    if arguments[:1] == ["bench"] and arguments[1:]:
        return arguments[1], arguments[2:]
    return ("run", arguments[1:]) if arguments[:1] == ["bench/run.py"] else (None, [])


@cache
def _benches() -> dict[str, Path]:
    return runpy.run_path(str(ROOT / "bench" / "__main__.py"), run_name="bench")["commands"]()


@cache
def _extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
