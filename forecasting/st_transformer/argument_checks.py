"""Checks of constructor arguments: each raises a ValueError naming the argument, what is valid and what was given."""

from collections.abc import Iterable


def require_choice(name: str, value: str, valid: Iterable[str]) -> None:
    """Raise unless `value` is one of `valid`."""
    valid = tuple(valid)
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")


def require_at_least(minimum: int, **counts: int) -> None:
    """Raise unless each of the named integers is at least `minimum`."""
    for name, value in counts.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def require_probability(**probabilities: float) -> None:
    """Raise unless each of the named dropout rates is in [0, 1)."""
    for name, value in probabilities.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
