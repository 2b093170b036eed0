"""Rows that a baseline is fitted on, and rows that its settings are chosen on.

b batch, l context_len, n target_len, c columns of which the first d_y_target are forecast.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

CHUNK_ELEMENTS = 1 << 23  # float64 window entries held at once while sums are accumulated: 64 MiB


@dataclass(frozen=True)
class TrainingRows:
    """Rows in time order: those to fit on, and behind them those that settings are chosen on.

    Attributes:
        values: (rows, c), z-scored, without missing values.
        edges: 0, the first row after each break, and the number of rows: no window reaches across.
        boundary: the first row that is not fitted to; len(values) where there is none.
        context_len, target_len, d_y_target: of the windows.
        is_borrowed: whether the rows behind the boundary belong to the training rows.
    """

    values: Tensor
    edges: tuple[int, ...]
    boundary: int
    context_len: int
    target_len: int
    d_y_target: int
    is_borrowed: bool = False

    @property
    def columns(self) -> int:
        """Number of columns c."""
        return self.values.shape[1]

    @property
    def span(self) -> int:
        """Rows of a window, l + n."""
        return self.context_len + self.target_len

    def count(self, length: int) -> int:
        """Count the windows of `length` rows to fit on."""
        return sum(max(0, len(run) - length + 1) for run in self._runs(self.boundary))

    def windows(self, context_len: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (context (b, l, c), target (b, n, d_y_target)) of all windows to fit on, many at a time."""
        length = self.context_len if context_len is None else context_len
        for chunk in self.chunks(length + self.target_len):
            yield chunk[:, :length], chunk[:, length:, : self.d_y_target]

    def chunks(self, length: int) -> Iterator[Tensor]:
        """Yield all windows (b, length, c) to fit on, many at a time, as views."""
        for run in self._runs(self.boundary):
            yield from self._cut(run, length)

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (context, target) of the windows whose targets lie behind the boundary; contexts may reach back."""
        for start, stop in pairwise(self.edges):
            first = max(start, self.boundary - self.context_len)
            for chunk in self._cut(range(first, stop), self.span):
                yield chunk[:, : self.context_len], chunk[:, self.context_len :, : self.d_y_target]

    def starts(self, length: int) -> list[int]:
        """List the first rows of all windows of `length` rows to fit on."""
        return [row for run in self._runs(self.boundary) for row in range(run.start, run.stop - length + 1)]

    def runs(self) -> list[Tensor]:
        """List the rows between breaks."""
        return [self.values[start:stop] for start, stop in pairwise(self.edges)]

    def choosing(self, name: str) -> "TrainingRows":
        """Return these rows, with a fifth of the training rows to choose on where there are no others.

        Raises:
            ValueError: too few rows for that.
        """
        if self.boundary < len(self.values):
            return self
        boundary = len(self.values) * 4 // 5
        if boundary < self.span or len(self.values) - boundary < self.target_len:
            raise ValueError(
                f"{name} holds back a fifth of the training rows to choose a setting, but {len(self.values)} rows are "
                f"too few for that with context_len={self.context_len} and target_len={self.target_len}; give more "
                "rows, or fit one setting directly"
            )
        starts = self.starts(self.span)
        if starts[-1] < boundary - self.context_len:  # short runs stand at the end: a fifth of the windows instead
            boundary = starts[len(starts) * 4 // 5] + self.context_len
        return replace(self, boundary=boundary, is_borrowed=True)

    def whole(self) -> "TrainingRows":
        """Return these rows, all of them to fit on, where those to choose on were borrowed."""
        return replace(self, boundary=len(self.values), is_borrowed=False) if self.is_borrowed else self

    def _runs(self, stop: int) -> Iterator[range]:
        return (range(first, min(last, stop)) for first, last in pairwise(self.edges) if first < stop)

    def _cut(self, rows: range, length: int) -> Iterator[Tensor]:
        if len(rows) >= length:
            windows = self.values[rows.start : rows.stop].unfold(0, length, 1).mT
            yield from windows.split(max(1, CHUNK_ELEMENTS // (length * self.columns)))
