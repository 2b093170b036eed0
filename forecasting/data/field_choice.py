"""Choose what is read of a simulation: fields, function objects, sensors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

SensorPoint = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FieldChoice:
    """Which part of a simulation is read; None reads all of it.

    Args:
        fields: names or shell patterns of the fields of an OpenFOAM case ("U", "p"), or of the variables of an xarray
            object, NetCDF, HDF5 or Zarr file.
        objects: names or patterns of the function objects of an OpenFOAM case ("probes1").
        sensors: of a field over time and space, how many sensors stand along each dimension of space (7: 7 x 7, or
            7 x 7 x 7), evenly over its cells; or points by the names of the dimensions, [{"x": 0.5, "y": 0.2}, ...],
            each read at the point of the grid nearest to it.
    """

    fields: list[str] | None = None
    objects: list[str] | None = None
    sensors: int | list[SensorPoint] | None = None

    def refuse(self, names: tuple[str, ...], source: str, kind: str) -> None:
        """Raise ValueError where one of some choices is stated of a source that does not have them."""
        stated = [name for name in names if getattr(self, name) is not None]
        if stated:
            raise ValueError(f"{source} is {kind}, which has no {stated[0]} to choose; leave out {stated[0]}=")

    def refuse_all(self, source: str, kind: str) -> None:
        """Raise ValueError where anything is stated of a source that holds no fields."""
        self.refuse(tuple(field.name for field in fields(FieldChoice)), source, kind)


def sensors_of_words(words: Sequence[str]) -> int | list[SensorPoint]:
    """Return the sensors that words of a command line choose: a number of them, or points by name of dimension.

        >>> sensors_of_words(["7"])
        7
        >>> sensors_of_words(["x=0.5,y=0.2", "x=1,y=0.2"])
        [{'x': 0.5, 'y': 0.2}, {'x': 1.0, 'y': 0.2}]

    Raises:
        ValueError: words of another form.
    """
    try:
        if len(words) == 1 and "=" not in words[0]:
            return int(words[0])
        pairs = [[part.split("=") for part in word.split(",")] for word in words]
        return [{name.strip(): float(value) for name, value in point} for point in pairs]
    except ValueError:
        raise ValueError(
            "sensors= must be a number, such as 7, or points by the names of dimensions, x=0.5,y=0.2 x=1,y=0.2: "
            f"got {' '.join(words)!r}"
        ) from None
