"""Name the axes along which sensors stand, and put them in one order, whatever the order of dimensions on disk."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPACE = (("z",), ("y", "lat", "latitude"), ("x", "lon", "longitude"))  # from the slowest to the fastest


@dataclass(frozen=True)
class PlaceAxis:
    """An axis of the places of sensors.

    Args:
        name: such as "x".
        attributes: of the coordinate that was read, text and numbers alone: "units", "long_name", "standard_name", …
    """

    name: str
    attributes: dict[str, str | int | float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, attributes: Mapping[Any, Any]) -> "PlaceAxis":
        """Keep those attributes that files and checkpoints can hold."""
        plain = {str(key): x.item() if isinstance(x, np.generic) else x for key, x in attributes.items()}
        return cls(name, {key: x for key, x in plain.items() if isinstance(x, str | int | float)})

    @property
    def label(self) -> str:
        """The name, with its unit where that is known."""
        return f"{self.name} [{self.attributes['units']}]" if "units" in self.attributes else self.name


def storage_free_order(names: Iterable[str]) -> list[str]:
    """Return names of dimensions or axes in an order that follows from them alone: others by alphabet, then z, y, x."""
    return sorted(names, key=lambda name: (space_rank(name), name))


def space_rank(name: str) -> int:
    """Return 2 for x, 1 for y, 0 for z, and their names on a sphere; -1 for another name."""
    return next((rank for rank, names in enumerate(SPACE) if name.casefold() in names), -1)
