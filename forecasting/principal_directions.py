"""Principal directions of many rows: one eigendecomposition, of whichever Gram matrix is smaller.

g groups, N rows, f inputs of a row, r directions
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from scipy.linalg import eigh
from torch import Tensor

FEWEST_TO_PICK = 512  # below, all eigenvectors cost no more than the leading ones


class PrincipalDirections(NamedTuple):
    """Eigenvectors and eigenvalues of sum_i (x_i - mean)(x_i - mean)^T, largest first, in float64.

    Attributes:
        basis: (g, f, r) orthonormal columns; zeros where a group has fewer directions than another.
        spectrum: (g, r) eigenvalues.
        mean: (g, 1, f); zeros where rows were not centred.
    """

    basis: Tensor
    spectrum: Tensor
    mean: Tensor

    def project(self, inputs: Tensor) -> Tensor:
        """Map inputs (g, rows, f) to coordinates (g, rows, r)."""
        return (inputs - self.mean) @ self.basis


def principal_directions(
    blocks: Iterable[Tensor], *, is_centred: bool, most: int | None = None
) -> PrincipalDirections | None:
    """Decompose the second moments of rows that come in blocks.

    With X the N rows less their mean, the primal form takes eigenvectors V of X^T X (f, f); the dual form, where there
    are no more rows than inputs, eigenvectors U of X X^T (N, N), and V = X^T U / sqrt(eigenvalue). Directions below the
    rounding of the Gram matrix are left out.

    Args:
        blocks: (g, rows, f) float64 each; N f numbers are held in the dual form, f^2 in the primal.
        is_centred: whether the mean is subtracted.
        most: the number of directions kept at most; None keeps all.

    Returns:
        The directions; None without any row.
    """
    moments = _Moments(is_centred)
    for block in blocks:
        moments.add(block)
    return moments.decompose(most) if moments.count else None


class _Moments:
    """Rows, as long as there are no more of them than inputs; their Gram matrix from then on."""

    def __init__(self, is_centred: bool) -> None:
        self.is_centred = is_centred
        self.count = 0
        self.rows: list[Tensor] = []
        self.gram: Tensor | None = None
        self.shift = self.total = torch.zeros(())

    def add(self, block: Tensor) -> None:
        if self.count == 0:
            self.shift = torch.zeros_like(block[:, :1])
            if self.is_centred:  # near the mean, so that a large one costs no digits
                self.shift = block.mean(dim=1, keepdim=True)
        rows = block - self.shift
        self.count += rows.shape[1]
        self.total = self.total + rows.sum(dim=1, keepdim=True)
        self.rows.append(rows)
        if self.gram is not None or self.count > rows.shape[2]:
            for each in self.rows:
                gram = each.mT @ each
                self.gram = gram if self.gram is None else self.gram.add_(gram)
            self.rows = []

    def decompose(self, most: int | None) -> PrincipalDirections:
        offset = self.total / self.count if self.is_centred else torch.zeros_like(self.total)
        if self.gram is not None:
            spectrum, basis = _leading(self.gram.sub_(self.count * offset.mT * offset), most)
            return PrincipalDirections(*_above_rounding(basis, spectrum), self.shift + offset)
        rows = torch.cat(self.rows, dim=1).sub_(offset)
        spectrum, left = _leading(rows @ rows.mT, most)
        kept = spectrum > _rounding(spectrum)
        length = torch.where(kept, spectrum, torch.inf).sqrt()
        return PrincipalDirections(
            *_above_rounding(rows.mT @ (left / length.unsqueeze(1)), spectrum), self.shift + offset
        )


def _leading(gram: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues (g, r), descending and not below zero, with their eigenvectors (g, size, r)."""
    size = gram.shape[-1]
    if most is not None and most < size // 2 and size >= FEWEST_TO_PICK:
        pairs = [eigh(each.numpy(), subset_by_index=[size - most, size - 1], check_finite=False) for each in gram]
        values, vectors = (torch.stack([torch.from_numpy(pair[i]) for pair in pairs]) for i in (0, 1))
    else:
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values[:, -most:] if most else values, vectors[..., -most:] if most else vectors
    return values.flip(-1).clamp(min=0), vectors.flip(-1)


def _rounding(spectrum: Tensor) -> Tensor:
    return spectrum[:, :1] * spectrum.shape[1] * torch.finfo(spectrum.dtype).eps


def _above_rounding(basis: Tensor, spectrum: Tensor) -> tuple[Tensor, Tensor]:
    kept = spectrum > _rounding(spectrum)
    rank = int(kept.sum(dim=1).max())
    basis, spectrum, kept = basis[..., :rank], spectrum[:, :rank], kept[:, :rank]
    return torch.where(kept.unsqueeze(1), basis, 0.0).contiguous(), torch.where(kept, spectrum, 0.0)
