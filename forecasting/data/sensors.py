"""Take point measurements out of a velocity field.

Dimension key: n samples, X, Y cells along and across the field, K = number of x indices times number of y indices.
"""

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np


@overload
def extract_datapoints(
    dataset: np.ndarray, x_indices: Sequence[int], y_indices: Sequence[int], separate_channels: Literal[True] = True
) -> tuple[np.ndarray, np.ndarray]: ...


@overload
def extract_datapoints(
    dataset: np.ndarray, x_indices: Sequence[int], y_indices: Sequence[int], separate_channels: Literal[False]
) -> np.ndarray: ...


def extract_datapoints(
    dataset: np.ndarray, x_indices: Sequence[int], y_indices: Sequence[int], separate_channels: bool = True
) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
    """Read both velocity components at every crossing of the given columns and rows.

    Sensor s stands at x_indices[s % len(x_indices)] and y_indices[s // len(x_indices)]: all x for the first y, then
    all x for the second, and so on.

    Args:
        dataset: (n, X, Y, 2).
        x_indices: cells along X, each in [0, X); need not be sorted.
        y_indices: cells along Y, each in [0, Y); the two lists may differ in length.
        separate_channels: True for the two components one by one, False for one array whose columns alternate.

    Returns:
        True: the tuple (u, v), (n, K) each. False: (n, 2K), columns u_0, v_0, u_1, v_1, ...
        A copy in either case.

    Raises:
        ValueError: dataset has another shape, or an index is missing, no integer, or outside the field.

    Example:
        >>> u, v = extract_datapoints(np.zeros((100, 60, 40, 2)), x_indices=[10, 20, 30], y_indices=[5, 15])
        >>> u.shape
        (100, 6)
    """
    dataset = np.asarray(dataset)
    if dataset.ndim != 4 or dataset.shape[-1] != 2:
        raise ValueError(
            f"dataset must be (samples, X, Y, 2), got {dataset.shape}: stack both components in the last axis"
        )
    x = _checked_indices(x_indices, dataset.shape[1], "x_indices")
    y = _checked_indices(y_indices, dataset.shape[2], "y_indices")
    points = dataset[:, np.tile(x, len(y)), np.repeat(y, len(x))]  # (n, K, 2)
    if separate_channels:
        return np.ascontiguousarray(points[..., 0]), np.ascontiguousarray(points[..., 1])
    return np.ascontiguousarray(points).reshape(len(points), -1)


def nearest_cells(positions: Sequence[float] | np.ndarray, num_cells: int, *, name: str = "positions") -> list[int]:
    """Return, for positions in cells, the cells that hold them: cell i covers [i, i + 1), its centre is i + 1/2.

    Raises:
        ValueError: a position is outside [0, num_cells), or two positions fall into one cell.
    """
    in_cells = np.asarray(positions, dtype=np.float64)
    outside = ~((in_cells >= 0) & (in_cells < num_cells))
    if outside.any():
        raise ValueError(
            f"{name} must lie in [0, {num_cells}), got {in_cells[outside].tolist()}: move the sensors into the field"
        )
    cells = np.floor(in_cells).astype(int).tolist()
    if len(set(cells)) < len(cells):
        raise ValueError(
            f"{name} must fall into different cells, got cells {cells}: space the sensors out or refine the grid"
        )
    return cells


def _checked_indices(indices: Sequence[int], size: int, name: str) -> np.ndarray:
    values = np.asarray(indices)
    if values.ndim != 1 or len(values) == 0 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} must be a non-empty list of integers, got {indices!r}")
    outside = values[(values < 0) | (values >= size)]
    if len(outside):
        raise ValueError(
            f"{name} must lie in [0, {size}), got {outside.tolist()}: the field has {size} cells on this axis"
        )
    return values
