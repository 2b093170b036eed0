"""Find the benches: every module of `suites/`, and its cases."""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from harness.cases import Case, Scale

SUITES = Path(__file__).resolve().parent / "suites"


@cache
def modules() -> list[ModuleType]:
    """Import every `suites/<op>.py`, in the order of their names."""
    found = []
    for path in sorted(SUITES.glob("*.py")):
        try:
            found.append(importlib.import_module(f"suites.{path.stem}"))
        except ModuleNotFoundError as error:  # the kernels are measured where, say, Lightning is not installed
            print(f"{path.name} is not run: {error}", file=sys.stderr)
    return found


def selected(scale: Scale, pattern: str) -> list[tuple[ModuleType, Case]]:
    """Return the cases of a scale whose op, shape and dtype match a regular expression."""
    return [(m, case) for m in modules() for case in m.cases(scale) if re.search(pattern, str(case))]
