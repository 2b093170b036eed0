"""Define the D2Q9 lattice and a grid of cells with a halo.

Nine velocities c_i, their weights w_i and the sound speed c_s = 1/sqrt(3); lengths are in cells, times in steps.
Direction 0 rests, 1 to 8 are four pairs of opposites.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

SOUND_SPEED = 3**-0.5
VELOCITIES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))
WEIGHTS = (4 / 9,) + (1 / 9,) * 4 + (1 / 36,) * 4
OPPOSITES = (0, 2, 1, 4, 3, 6, 5, 8, 7)


@dataclass(frozen=True)
class Grid:
    """Number the cells of an X x Y grid and of a halo one cell wide with one flat index, y fastest.

    A neighbour is then a constant offset away, so that pulling a population from it is one contiguous slice.
    """

    cells_x: int
    cells_y: int

    @property
    def stride(self) -> int:
        return self.cells_y + 2

    @property
    def size(self) -> int:
        return (self.cells_x + 2) * self.stride

    @property
    def span(self) -> tuple[int, int]:
        """Return the flat range from the first to behind the last inner cell; it holds halo cells too."""
        return self.index(0, 0), self.index(self.cells_x - 1, self.cells_y - 1) + 1

    def index(self, x: Any, y: Any) -> Any:
        """Return the flat index of cell (x, y), integers or arrays of them; -1 and the number of cells are the halo."""
        return (x + 1) * self.stride + y + 1

    def pull(self, populations: Tensor) -> list[Tensor]:
        """Return views of the nine populations (9, C) that arrive in the cells of the span."""
        start, stop = self.span
        shifts = [x * self.stride + y for x, y in VELOCITIES]
        return [populations[i, start - shift : stop - shift] for i, shift in enumerate(shifts)]

    def inner(self, values: Tensor) -> Tensor:
        """Return a view of the inner cells (..., X, Y) of values (..., C)."""
        return values.unflatten(-1, (self.cells_x + 2, self.stride))[..., 1:-1, 1:-1]
