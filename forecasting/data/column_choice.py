"""Choose target, exogenous and known columns by name or shell pattern."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase


def match_names(names: Sequence[str], patterns: Sequence[str], *, kind: str = "column") -> list[str]:
    """Return the names of columns or runs that names or shell patterns choose, in the order of the patterns, each once.

    Raises:
        ValueError: a pattern that matches nothing; the message lists names close to it.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns:
        # an exact name wins: "p [mbar]" is a name first and a pattern second
        matches = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            by_folded = {name.casefold(): name for name in names}
            folded = get_close_matches(pattern.casefold(), by_folded, n=5, cutoff=0.4)
            close = [by_folded[name] for name in folded] or list(names[:5])
            raise ValueError(f"no {kind} matches {pattern!r}; close matches: {close}, of {len(names)} {kind}s")
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return some names in words, the first ones of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


@dataclass(frozen=True, kw_only=True)
class ColumnChoice:
    """Which columns of a record are forecast, which are context alone, and which are known ahead.

    Args:
        target_columns: names or shell patterns ("u_*") of the forecast sensors, in this order; None: all that are not
            chosen below. Every other column is dropped.
        exogenous_columns: names or patterns of sensors that are only ever context.
        known_columns: names or patterns of columns whose future is known, such as a plan or a forecast from elsewhere:
            they become covariates, scaled by their training mean and std.
    """

    target_columns: list[str] | None = None
    exogenous_columns: list[str] | None = None
    known_columns: list[str] | None = None

    def choose(self, columns: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
        """Return the names of the target, exogenous and known columns.

        Raises:
            ValueError: an unknown name, a column chosen twice, no target at all.
        """
        exogenous = match_names(columns, self.exogenous_columns or [])
        known = match_names(columns, self.known_columns or [])
        if self.target_columns is None:
            targets = [name for name in columns if name not in exogenous and name not in known]
        else:
            targets = match_names(columns, self.target_columns)
        if not targets:
            raise ValueError(
                f"at least one of the {len(columns)} columns must be a target, got "
                f"target_columns={self.target_columns}, exogenous_columns={self.exogenous_columns}"
            )
        both = [name for name in targets if name in exogenous or name in known] + [
            name for name in known if name in exogenous
        ]
        if both:
            raise ValueError(f"a column is either a target, exogenous or known, got both for {both[:5]}")
        return targets, exogenous, known
