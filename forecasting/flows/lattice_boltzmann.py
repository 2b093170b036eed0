"""Solve the weakly compressible Navier-Stokes equations in two dimensions with the lattice-Boltzmann method.

Dimension key: X, Y cells along and across the channel, C cells of the grid with its one-cell halo, L boundary links.

Populations f_i travel with the nine velocities c_i of the D2Q9 lattice (lengths in cells, times in steps) and carry

    rho = sum_i f_i,      rho u = sum_i c_i f_i,      p = c_s^2 rho,      c_s = 1/sqrt(3)

A step pulls each population from its upstream cell and collides. The collision relaxes the central moments

    k_ab = sum_i f_i (c_ix - u_x)^a (c_iy - u_y)^b

the two of shear, k_20 - k_02 and k_11, towards 0 at the rate 1/tau, all others to the value of the Maxwell
distribution at once (k_20 + k_02 = 2 c_s^2 rho, k_22 = c_s^4 rho, third order 0: Geier, Greiner and Korvink 2006; De
Rosis 2016). This gives the viscosity

    nu = (tau - 1/2) / 3

and damps the sound and the grid-scale modes that other collisions leave ringing when tau is close to 1/2: with two
relaxation times (magic parameter 3/16 or 1/4) the fluidic pinball at tau = 0.517 blows up within 700 steps. The state
is f_i - w_i, which saves the digits that float32 would spend on the constant part (Skordos 1993).

All boundaries but the outlet are links: a population that would come from outside the fluid is a weighted sum of two
that left it, plus a constant (see boundary_links.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .boundary_links import BoundaryLinks
from .lattice import SOUND_SPEED, VELOCITIES, WEIGHTS, Grid

OUTLET_DIRECTIONS = tuple(i for i, (x, _) in enumerate(VELOCITIES) if x == -1)


def moments(populations: list[Tensor] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return density - 1 and the two velocity components of nine populations f_i - w_i."""
    f0, f1, f2, f3, f4, f5, f6, f7, f8 = populations
    diagonal, other_diagonal = f5 - f6, f7 - f8
    excess = f0 + (f1 + f2) + (f3 + f4) + (f5 + f6) + (f7 + f8)
    per_density = 1 / (1 + excess)
    velocity_x = (f1 - f2 + diagonal + other_diagonal) * per_density
    velocity_y = (f3 - f4 + diagonal - other_diagonal) * per_density
    return excess, velocity_x, velocity_y


def equilibrium(direction: int, excess: Tensor, velocity_x: Tensor, velocity_y: Tensor) -> Tensor:
    """Return f_i^eq - w_i of one direction for density 1 + excess and the velocity."""
    along = VELOCITIES[direction][0] * velocity_x + VELOCITIES[direction][1] * velocity_y
    kinetic = 1.5 * (velocity_x * velocity_x + velocity_y * velocity_y)
    return WEIGHTS[direction] * (excess + (1 + excess) * (along * (3 + 4.5 * along) - kinetic))


def collide(populations: list[Tensor], kept: Tensor | float) -> list[Tensor]:
    """Relax the central moments of nine populations f_i - w_i: of shear, 1 - 1/tau is kept, of all others nothing."""
    _, f1, f2, f3, f4, f5, f6, f7, f8 = populations
    excess, u, v = moments(populations)
    density = 1 + excess
    u2, v2, uv = u * u, v * v, u * v

    # shear moments k_xx - k_yy and k_xy after the collision
    difference = kept * ((f1 + f2) - (f3 + f4) - density * (u2 - v2))
    k_xy = kept * ((f5 + f6) - (f7 + f8) - density * uv)
    k_xx = (density / 3) + 0.5 * difference
    k_yy = (density / 3) - 0.5 * difference

    # back to moments about rest, less those of the weights: <x>, <y>, <xx>, <yy>, <xy>, <xyy>, <xxy>, <xxyy>
    m_x, m_y = density * u, density * v
    m_xx = excess / 3 + 0.5 * difference + density * u2
    m_yy = excess / 3 - 0.5 * difference + density * v2
    m_xy = k_xy + density * uv
    m_xyy = u * k_yy + 2 * v * k_xy + m_x * v2
    m_xxy = v * k_xx + 2 * u * k_xy + m_y * u2
    m_xxyy = excess / 9 + v2 * k_xx + u2 * k_yy + 4 * uv * k_xy + density * u2 * v2

    along_x, along_y = m_xx - m_xxyy, m_yy - m_xxyy
    thrust_x, thrust_y = m_x - m_xyy, m_y - m_xxy
    equal, unequal, sum_odd, difference_odd = m_xxyy + m_xy, m_xxyy - m_xy, m_xyy + m_xxy, m_xyy - m_xxy
    return [
        excess - m_xx - along_y,
        0.5 * (along_x + thrust_x),
        0.5 * (along_x - thrust_x),
        0.5 * (along_y + thrust_y),
        0.5 * (along_y - thrust_y),
        0.25 * (equal + sum_odd),
        0.25 * (equal - sum_odd),
        0.25 * (unequal + difference_odd),
        0.25 * (unequal - difference_odd),
    ]


class LatticeBoltzmann:
    """Advance a flow on a grid: one call of `advance` is any number of time steps.

    Args:
        grid: X x Y cells.
        fluid: (X, Y) bool, False inside obstacles.
        links: the boundary links; they must cover every population that arrives in a fluid cell from outside the fluid,
            but for those of the outlet.
        relaxation_time: tau > 1/2, in steps.
        outlet_velocity: mean velocity that leaves through the last column; None for a grid without outlet.
        compile: run the step through torch.compile, which needs a C++ compiler on the CPU and some seconds at the
        first step. device: of all tensors.

    At the outlet the arriving populations are in equilibrium with the velocity of the last column and the density

        rho = 1 + (mean_y u_x - outlet_velocity) / c_s

    which is what a plane sound wave carries that leaves: it goes out without reflection, while vortices, which hardly
    change the mean over the section, meet a constant pressure. Where the last column flows backwards, u_x = 0 is
    taken instead.
    """

    def __init__(
        self,
        grid: Grid,
        fluid: Tensor,
        links: BoundaryLinks,
        relaxation_time: float,
        *,
        outlet_velocity: float | None = None,
        compile: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if not relaxation_time > 0.5:
            raise ValueError(f"relaxation_time must exceed 1/2 for a positive viscosity, got {relaxation_time}")
        if fluid.shape != (grid.cells_x, grid.cells_y):
            raise ValueError(
                f"fluid must have the grid's shape {(grid.cells_x, grid.cells_y)}, got {tuple(fluid.shape)}"
            )
        self.grid = grid
        self.fluid = fluid.to(device)
        self.links = links.to(device)
        self.relaxation_time = relaxation_time
        self.outlet_velocity = outlet_velocity
        self.steps_taken = 0
        self._populations = torch.zeros(len(VELOCITIES), grid.size, device=device)
        # tensors, not numbers: one compiled step serves all Reynolds numbers and speeds of a process
        self._kept = self._populations.new_tensor(1 - 1 / relaxation_time)
        self._outlet = None if outlet_velocity is None else self._populations.new_tensor(outlet_velocity)
        mask = torch.zeros(grid.size, dtype=torch.bool, device=device)
        grid.inner(mask).copy_(self.fluid)
        start, stop = grid.span
        self._mask = mask[start:stop]
        self._margins = (self._populations.new_zeros(start), self._populations.new_zeros(grid.size - stop))
        outlet_targets = self._outlet_targets().to(device)
        self._targets = self.links.target if outlet_velocity is None else torch.cat((self.links.target, outlet_targets))
        self._step: Callable[[Tensor], Tensor] = self._advance_one_step
        if compile:
            self._step = torch.compile(self._advance_one_step, fullgraph=True, dynamic=False)

    def set_velocity(self, velocity: Tensor) -> None:
        """Start from density 1 and the equilibrium of velocity (X, Y, 2), in cells a step."""
        if velocity.shape != (*self.fluid.shape, 2):
            raise ValueError(f"velocity must be {(*self.fluid.shape, 2)}, got {tuple(velocity.shape)}")
        velocity = velocity.to(self._populations) * self.fluid.unsqueeze(-1)
        excess = torch.zeros_like(velocity[..., 0])
        populations = torch.zeros_like(self._populations)
        for i, population in enumerate(populations):
            self.grid.inner(population).copy_(equilibrium(i, excess, velocity[..., 0], velocity[..., 1]))
        self._populations = self._close_boundaries(populations.view(-1))

    @torch.inference_mode()
    def advance(self, steps: int = 1) -> None:
        """Take time steps."""
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        for _ in range(steps):
            self._populations = self._step(self._populations)
        self.steps_taken += steps

    def velocity(self) -> Tensor:
        """Return the velocity (X, Y, 2) in cells a step; zero inside obstacles."""
        _, velocity_x, velocity_y = moments(self.grid.inner(self._populations))
        return torch.stack((velocity_x, velocity_y), dim=-1) * self.fluid.unsqueeze(-1)

    def density(self) -> Tensor:
        """Return the density (X, Y); one inside obstacles."""
        return 1 + moments(self.grid.inner(self._populations))[0] * self.fluid

    def _advance_one_step(self, populations: Tensor) -> Tensor:
        collided = [
            torch.where(self._mask, population, 0.0) for population in collide(self.grid.pull(populations), self._kept)
        ]
        # one concatenation, not nine slice assignments: torch.compile turns each of those into a copy of everything
        before, after = self._margins
        pieces = [piece for population in collided for piece in (before, population, after)]
        return self._close_boundaries(torch.cat(pieces))

    def _close_boundaries(self, flat: Tensor) -> Tensor:
        links = self.links
        values = links.first_weight * flat[links.first] + links.second_weight * flat[links.second] + links.constant
        if self._outlet is not None:
            values = torch.cat((values, *self._outlet_populations(flat, self._outlet)))
        flat[self._targets] = values
        return flat.view(len(VELOCITIES), -1)

    def _outlet_populations(self, flat: Tensor, outlet_velocity: Tensor) -> list[Tensor]:
        last = self.grid.index(self.grid.cells_x - 1, 0)
        _, velocity_x, velocity_y = moments(flat.view(len(VELOCITIES), -1)[:, last : last + self.grid.cells_y])
        excess = (velocity_x.mean() - outlet_velocity) / SOUND_SPEED
        return [equilibrium(i, excess, velocity_x.clamp(min=0.0), velocity_y) for i in OUTLET_DIRECTIONS]

    def _outlet_targets(self) -> Tensor:
        y = torch.arange(self.grid.cells_y)
        return torch.cat(
            [i * self.grid.size + self.grid.index(self.grid.cells_x, y - VELOCITIES[i][1]) for i in OUTLET_DIRECTIONS]
        )
