"""Describe the flow past circular cylinders in a channel, and set it up for the lattice-Boltzmann solver.

Lengths are in cells, times in steps, the density is 1. Cell (i, j) has its centre at (i + 1/2, j + 1/2); the channel is
[0, cells_x] x [0, cells_y] and the flow runs along x.

- Inlet (x = 0): half-way bounce-back off a plane that moves with the velocity U: the mass flux U is met exactly.
- Outlet (x = cells_x): constant mean pressure, transparent to plane sound waves (see lattice_boltzmann.py).
- Sides: free-slip mirrors (default), which grow no boundary layer, so that blockage is their only effect; or
  periodic, an endless row of cylinders.
- Cylinders: interpolated bounce-back, which puts the wall on the circle, not on a staircase.

One cylinder at Re = 100 sheds at St = f D / U = 0.1805 with a blockage of 12.5 % (D = 12, inlet 5 D ahead), 0.1694
with 6.25 % and 0.1658 with 3.1 % (D = 12, inlet 12 D ahead); without sides it is 0.1643 (Williamson 1989).
"""

from dataclasses import dataclass

import numpy as np
import torch

from .boundary_links import Cylinder, Sides, channel_links, fluid_cells
from .lattice import SOUND_SPEED, Grid
from .lattice_boltzmann import LatticeBoltzmann

MAX_VELOCITY = 0.15  # Mach 0.26: the compressibility error grows as Mach^2
MIN_RELAXATION_TIME = 0.505  # in time steps
MIN_DIAMETER = 6.0  # in cells
MIN_GAP = 4.0  # in cells: interpolation reads two fluid cells beyond every wall


@dataclass(frozen=True)
class ChannelFlow:
    """Describe the flow past cylinders in a channel.

        Re = U D / nu,      tau = 1/2 + 3 nu,      Ma = U / c_s

    Args:
        cells_x: length of the channel, in cells.
        cells_y: width of the channel, in cells.
        cylinders: one or more; the first one's diameter is D.
        reynolds: U D / nu, above 0.
        velocity: U of the inlet, in cells a step, 0 < U <= 0.15.
        sides: "free-slip" or "periodic".

    Raises:
        ValueError: a cylinder leaves less than 4 cells to another or to the border or has less than 6 cells across;
            velocity above 0.15 or relaxation time below 0.505.
    """

    cells_x: int
    cells_y: int
    cylinders: tuple[Cylinder, ...]
    reynolds: float
    velocity: float = 0.1
    sides: Sides = "free-slip"

    def __post_init__(self) -> None:
        if not self.cylinders:
            raise ValueError("cylinders must hold at least one Cylinder, got none")
        if self.sides not in ("free-slip", "periodic"):
            raise ValueError(f'sides must be "free-slip" or "periodic", got {self.sides!r}')
        if not 0 < self.velocity <= MAX_VELOCITY:
            raise ValueError(
                f"velocity must lie in (0, {MAX_VELOCITY}] cells a step, got {self.velocity}: a faster flow is "
                "compressible; lower it and take more steps a sample"
            )
        if not self.reynolds > 0:
            raise ValueError(f"reynolds must be positive, got {self.reynolds}")
        if self.relaxation_time < MIN_RELAXATION_TIME:
            raise ValueError(
                f"relaxation_time = 1/2 + 3 U D / Re must be at least {MIN_RELAXATION_TIME}, "
                f"got {self.relaxation_time:.4f}: use more cells across the cylinder or a lower Reynolds number"
            )
        for cylinder in self.cylinders:
            self._check_place(cylinder)

    def _check_place(self, cylinder: Cylinder) -> None:
        if cylinder.diameter < MIN_DIAMETER:
            raise ValueError(
                f"a cylinder needs at least {MIN_DIAMETER:g} cells across, got {cylinder}: refine the grid"
            )
        margin = cylinder.diameter / 2 + MIN_GAP
        inside_x = margin <= cylinder.x <= self.cells_x - margin
        inside_y = margin <= cylinder.y <= self.cells_y - margin
        if not (inside_x and inside_y):
            raise ValueError(
                f"{cylinder} must keep {MIN_GAP:g} cells off the border of the {self.cells_x} x {self.cells_y} grid: "
                f"x in [{margin:g}, {self.cells_x - margin:g}] and y in [{margin:g}, {self.cells_y - margin:g}]"
            )
        for other in self.cylinders:
            distance = np.hypot(other.x - cylinder.x, other.y - cylinder.y)
            if other is not cylinder and distance - (other.diameter + cylinder.diameter) / 2 < MIN_GAP:
                raise ValueError(
                    f"{cylinder} and {other} must be {MIN_GAP:g} cells apart: move them or refine the grid"
                )

    @property
    def diameter(self) -> float:
        return self.cylinders[0].diameter

    @property
    def viscosity(self) -> float:
        return self.velocity * self.diameter / self.reynolds

    @property
    def relaxation_time(self) -> float:
        return 0.5 + 3 * self.viscosity

    @property
    def mach(self) -> float:
        return self.velocity / SOUND_SPEED

    @property
    def blockage(self) -> float:
        """Return the part of the channel's width that the cylinders cover, seen along the flow."""
        across = np.zeros(64 * self.cells_y, dtype=bool)
        y = (np.arange(len(across)) + 0.5) / 64
        for cylinder in self.cylinders:
            across |= np.abs(y - cylinder.y) < cylinder.diameter / 2
        return float(across.mean())

    @property
    def diameter_time(self) -> float:
        """Return D / U in steps."""
        return self.diameter / self.velocity

    def start(
        self, *, seed: int = 0, perturbation: float = 0.01, device: torch.device | str = "cpu", compile: bool = False
    ) -> LatticeBoltzmann:
        """Return a solver at time 0: uniform flow U plus noise across it, which breaks the symmetry.

        Args:
            seed: of the noise, drawn on the CPU so that it is the same on every device.
            perturbation: standard deviation of the noise in units of U; 0 keeps a symmetric flow symmetric.
            device: where the solver runs.
            compile: run the step through torch.compile.
        """
        grid = Grid(self.cells_x, self.cells_y)
        solver = LatticeBoltzmann(
            grid,
            fluid_cells(grid, self.cylinders),
            channel_links(grid, self.cylinders, self.velocity, self.sides),
            self.relaxation_time,
            outlet_velocity=self.velocity,
            compile=compile,
            device=device,
        )
        noise = torch.randn(self.cells_x, self.cells_y, generator=torch.Generator().manual_seed(seed))
        along = torch.full_like(noise, self.velocity)
        solver.set_velocity(torch.stack((along, perturbation * self.velocity * noise), dim=-1))
        return solver
