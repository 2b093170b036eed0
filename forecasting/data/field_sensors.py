"""Choose sensors among the points of a field over time and space: all, a regular grid of them, or given ones."""

from itertools import product
from typing import Any, NamedTuple

import numpy as np

from .field_choice import SensorPoint
from .place_axes import storage_free_order

SENSOR = "favorcast_sensor"  # dimension of points in the place of the dimensions that they choose from


class Axis(NamedTuple):
    """Sensors along one dimension of what is read.

    Attributes:
        dimension: its name.
        labels: of each sensor, "z=0.72".
        places: (sensors, coordinates), None for a dimension of names, which has no places.
        coordinates: names of the coordinates of a place.
    """

    dimension: str
    labels: list[str]
    places: np.ndarray | None
    coordinates: tuple[str, ...]


class FieldSensors(NamedTuple):
    """The sensors of a field.

    Attributes:
        indexers: what selects them, as DataArray.isel takes it.
        axes: their dimensions; each combination is a sensor, the last one varies fastest.
    """

    indexers: dict[str, Any]
    axes: list[Axis]

    @property
    def count(self) -> int:
        """Number of sensors."""
        return int(np.prod([len(axis.labels) for axis in self.axes], dtype=np.int64))

    @property
    def labels(self) -> list[str]:
        """What tells the sensors apart, "" for a field over time alone."""
        return [", ".join(parts) for parts in product(*(axis.labels for axis in self.axes))]

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the coordinates of a sensor."""
        return tuple(name for axis in self.axes for name in axis.coordinates)

    @property
    def places(self) -> np.ndarray:
        """Where the sensors are, (sensors, coordinates)."""
        parts = [np.empty((len(x.labels), 0)) if x.places is None else x.places for x in self.axes]
        rows = [np.concatenate(each) if each else np.empty(0) for each in product(*parts)]
        return np.stack(rows)


def sensors_of(array: Any, time: str, sensors: int | list[SensorPoint] | None, source: str) -> FieldSensors:
    """Return the sensors that are chosen of a DataArray over time and other dimensions, in whatever order these are.

    Raises:
        ValueError: a number below 1, or points that are not within the field, or not told apart by it.
    """
    others = storage_free_order(str(dimension) for dimension in array.dims if dimension != time)
    axes = [_axis(array, dimension) for dimension in others]
    if sensors is None or not axes:
        return FieldSensors({}, axes)
    if isinstance(sensors, int):
        if sensors < 1:
            raise ValueError(f"sensors= must be at least 1, got {sensors}")
        indexers = {x.dimension: _evenly(len(x.labels), sensors) for x in axes if x.places is not None}
        return FieldSensors(indexers, [_chosen(axis, indexers.get(axis.dimension, slice(None))) for axis in axes])
    return _at_points(axes, sensors, f"{source}, {array.name!r}")


def _evenly(size: int, count: int) -> slice:
    """Return `count` equally spaced cells in the middle of `size`, all of them where there are no more."""
    if size <= count:
        return slice(None)
    step = size // count
    first = (size - 1 - (count - 1) * step) // 2
    return slice(first, first + (count - 1) * step + 1, step)


def _chosen(axis: Axis, where: Any) -> Axis:
    labels = np.array(axis.labels, dtype=object)[where].tolist()
    return axis._replace(labels=labels, places=None if axis.places is None else axis.places[where])


def _axis(array: Any, dimension: str) -> Axis:
    """Return all points of a dimension: by its own coordinate, by others along it, or else by number."""
    size = array.sizes[dimension]
    along = {str(name): each.to_numpy() for name, each in array.coords.items() if each.dims == (dimension,)}
    numeric = {name: each for name, each in along.items() if each.dtype.kind in "fiu"}
    own = along.get(dimension)
    if own is not None and own.dtype.kind in "fiu":
        numeric = {dimension: own}
    elif own is None and not numeric:
        numeric = {dimension: np.arange(size)}
    named = own if own is not None else next(iter(numeric.values())) if len(numeric) == 1 else np.arange(size)
    name = next(iter(numeric)) if own is None and len(numeric) == 1 else dimension
    labels = [f"{name}={float(f'{x:.6g}') if isinstance(x, float) else x}" for x in named.tolist()]
    places = np.stack(list(numeric.values()), axis=1).astype(np.float64) if numeric else None
    return Axis(dimension, labels, places, tuple(numeric))


def _at_points(axes: list[Axis], points: list[SensorPoint], source: str) -> FieldSensors:
    """Return the points of a field nearest to some."""
    spatial = [axis for axis in axes if axis.places is not None]
    wanted = [name for axis in spatial for name in axis.coordinates]
    for point in points:
        if set(point) != set(wanted):
            raise ValueError(f"{source}: each of sensors= must name the coordinates {wanted} of the field, got {point}")
    if not points:
        raise ValueError(f"{source}: sensors= must hold at least one point of {wanted}, got none")
    chosen = [
        _nearest(axis, np.array([[p[name] for name in axis.coordinates] for p in points]), source) for axis in spatial
    ]
    cells = list(zip(*chosen, strict=True))
    repeated = next((i for i, cell in enumerate(cells) if cell in cells[:i]), None)
    if repeated is not None:
        first = cells.index(cells[repeated])
        raise ValueError(
            f"{source}: {points[first]} and {points[repeated]} are nearest to the same point of the field; space the "
            "sensors out"
        )
    parts = [_chosen(axis, where) for axis, where in zip(spatial, chosen, strict=True)]
    labels = [", ".join(each) for each in zip(*(part.labels for part in parts), strict=True)]
    places = np.concatenate([part.places for part in parts if part.places is not None], axis=1)
    indexers = {axis.dimension: ((SENSOR,), where) for axis, where in zip(spatial, chosen, strict=True)}
    named = [axis for axis in axes if axis.places is None]
    return FieldSensors(indexers, [*named, Axis(SENSOR, labels, places, tuple(wanted))])


def _nearest(axis: Axis, points: np.ndarray, source: str) -> np.ndarray:
    """Return the indices along a dimension nearest to points (points, coordinates)."""
    assert axis.places is not None
    for name, known, given in zip(axis.coordinates, axis.places.T, points.T, strict=True):
        margin = np.ptp(known) / max(len(known) - 1, 1)  # a cell reaches beyond its centre
        low, high = known.min() - margin, known.max() + margin
        if not ((given >= low) & (given <= high)).all():
            raise ValueError(
                f"{source}: {name} of each of sensors= must lie in [{known.min():.6g}, {known.max():.6g}], got "
                f"{given[~((given >= low) & (given <= high))].tolist()}; move the sensors into the field"
            )
    return np.array([np.square(axis.places - point).sum(axis=1).argmin() for point in points])
