"""Build the boundary links of a lattice-Boltzmann grid: where a population comes from that no fluid cell sends.

Dimension key: X, Y cells, C cells of the grid with its halo, L links.

Let f* be the populations after the collision and x a fluid cell whose upstream cell x - c_i is not fluid. The table
says what is written to f_i(x - c_i), from where the next step pulls it to x; -i is the opposite of i, and i' is i
mirrored at the side.

    inlet                 f*_-i(x) + 6 w_i c_i.U                       half-way bounce-back off a moving plane
    free-slip side        f*_i'(x - tangential part of c_i)            mirror
    periodic side         f*_i(x - c_i, wrapped around)
    cylinder, q < 1/2     2 q f*_-i(x) + (1 - 2 q) f*_-i(x + c_i)      interpolated bounce-back (Bouzidi,
    cylinder, q >= 1/2    f*_-i(x) / (2 q) + (1 - 1/(2 q)) f*_i(x)     Firdaouss and Lallemand 2001)

where q in (0, 1] is the distance of the wall from x along -c_i, in units of |c_i|.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .lattice import OPPOSITES, VELOCITIES, WEIGHTS, Grid

Sides = Literal["free-slip", "periodic"]


@dataclass(frozen=True)
class Cylinder:
    """Place a circular cylinder by its centre (x, y) and its diameter, in cells.

    Cell (i, j) covers [i, i + 1) x [j, j + 1).
    """

    x: float
    y: float
    diameter: float


class BoundaryLinks(NamedTuple):
    """Set f[target] = first_weight f[first] + second_weight f[second] + constant; (L,) each, indices flat in (9, C)."""

    target: Tensor
    first: Tensor
    second: Tensor
    first_weight: Tensor
    second_weight: Tensor
    constant: Tensor

    def to(self, device: torch.device | str) -> "BoundaryLinks":
        """Return the same links on a device."""
        return BoundaryLinks(*(part.to(device) for part in self))


def fluid_cells(grid: Grid, cylinders: tuple[Cylinder, ...]) -> Tensor:
    """Return (X, Y) bool: True where the centre of the cell lies outside every cylinder."""
    x, y = _cell_centres(grid)
    fluid = np.ones(x.shape, dtype=bool)
    for cylinder in cylinders:
        fluid &= np.hypot(x - cylinder.x, y - cylinder.y) >= cylinder.diameter / 2
    return torch.from_numpy(fluid)


def periodic_links(grid: Grid) -> BoundaryLinks:
    """Wrap the grid around in both directions."""
    x, y = np.meshgrid(np.arange(-1, grid.cells_x + 1), np.arange(-1, grid.cells_y + 1), indexing="ij")
    halo = (x == -1) | (y == -1) | (x == grid.cells_x) | (y == grid.cells_y)
    target = grid.index(x[halo], y[halo])
    source = grid.index(x[halo] % grid.cells_x, y[halo] % grid.cells_y)
    directions = np.arange(len(VELOCITIES))[:, None] * grid.size
    return _links([_copy((directions + target).ravel(), (directions + source).ravel())])


def channel_links(grid: Grid, cylinders: tuple[Cylinder, ...], inlet_velocity: float, sides: Sides) -> BoundaryLinks:
    """Link the inlet at x = 0, both sides and the cylinders of a channel; the outlet is the solver's."""
    parts = [_inlet(grid, inlet_velocity)]
    parts += [_side(grid, direction, sides) for direction, (_, y) in enumerate(VELOCITIES) if y != 0]
    parts += [_cylinder(grid, cylinder) for cylinder in cylinders]
    return _links(parts)


_Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _links(parts: list[_Part]) -> BoundaryLinks:
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]
    return BoundaryLinks(*columns[:3], *(column.float() for column in columns[3:]))


def _copy(target: np.ndarray, source: np.ndarray, constant: float = 0.0) -> _Part:
    ones = np.ones(len(target))
    return target, source, source, ones, 0 * ones, constant * ones


def _cell_centres(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.arange(grid.cells_x) + 0.5, np.arange(grid.cells_y) + 0.5, indexing="ij")
    return x, y


def _inlet(grid: Grid, inlet_velocity: float) -> _Part:
    y = np.arange(grid.cells_y)
    incoming = [i for i, velocity in enumerate(VELOCITIES) if velocity[0] == 1]
    parts = [
        _copy(
            i * grid.size + grid.index(-1, y - VELOCITIES[i][1]),
            OPPOSITES[i] * grid.size + grid.index(0, y),
            6 * WEIGHTS[i] * inlet_velocity,
        )
        for i in incoming
    ]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def _side(grid: Grid, direction: int, sides: Sides) -> _Part:
    """Link a direction that enters through a side; where it enters through inlet or outlet as well, it is theirs."""
    velocity_x, velocity_y = VELOCITIES[direction]
    upstream = np.arange(grid.cells_x) - velocity_x
    upstream = upstream[(upstream >= 0) & (upstream < grid.cells_x)]
    near, far = (0, grid.cells_y - 1) if velocity_y == 1 else (grid.cells_y - 1, 0)
    target = direction * grid.size + grid.index(upstream, near - velocity_y)
    if sides == "periodic":
        return _copy(target, direction * grid.size + grid.index(upstream, far))
    mirrored = VELOCITIES.index((velocity_x, -velocity_y))
    return _copy(target, mirrored * grid.size + grid.index(upstream, near))


def _cylinder(grid: Grid, cylinder: Cylinder) -> _Part:
    fluid = fluid_cells(grid, (cylinder,)).numpy()
    parts = [_wall(grid, cylinder, fluid, outgoing) for outgoing in range(1, len(VELOCITIES))]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def _wall(grid: Grid, cylinder: Cylinder, fluid: np.ndarray, outgoing: int) -> _Part:
    """Link the cells from which the outgoing direction hits the cylinder."""
    velocity = np.array(VELOCITIES[outgoing])
    next_is_fluid = np.roll(fluid, tuple(-velocity), axis=(0, 1))
    x, y = np.nonzero(fluid & ~next_is_fluid)
    # |p + q c|^2 = R^2 with p from the centre to the cell: the smaller root is where the ray enters
    position = np.stack((x + 0.5 - cylinder.x, y + 0.5 - cylinder.y), axis=-1)
    along, speed_squared = position @ velocity, float(velocity @ velocity)
    excess = (position**2).sum(axis=-1) - (cylinder.diameter / 2) ** 2
    distance = np.clip((-along - np.sqrt(along**2 - speed_squared * excess)) / speed_squared, 1e-6, 1.0)

    leaving = outgoing * grid.size + grid.index(x, y)
    incoming = OPPOSITES[outgoing] * grid.size
    near = distance < 0.5
    second = np.where(
        near, outgoing * grid.size + grid.index(x - velocity[0], y - velocity[1]), incoming + grid.index(x, y)
    )
    first_weight = np.where(near, 2 * distance, 1 / (2 * distance))
    target = incoming + grid.index(x + velocity[0], y + velocity[1])
    return target, leaving, second, first_weight, 1 - first_weight, np.zeros(len(x))
