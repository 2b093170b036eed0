"""Cut the rows of one split into windows of context and target.

l context_len, n target_len, d_x time covariates, d_y_context sensor columns, d_y_target forecast ones.
"""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .series import DataWarning, SimulationTimeSeries

Window = tuple[Tensor, Tensor, Tensor, Tensor]


class SimulationTorchDataset(Dataset[Window]):
    """Slide a window over one split; item i is (context_x, context_y, target_x, target_y), views of the series.

    They are float32; the sensors float64 where the series holds them so (see SimulationTimeSeries.values).

    With r = time_resolution, a window takes every r-th row and spans r * (context_len + target_len - 1) + 1 rows, so
    that a split of N rows gives

        floor((N + reach - r * (context_len + target_len - 1) - 1) / stride) + 1 windows,

    where reach = min(r * context_len, rows of the record between the start of training and the split) with reach_back,
    else 0. Reaching back gives the first row of a split a forecast, as the published protocols do (ETTh1, 2880 test
    rows, 336 -> 96: 2785 windows). Only contexts lie in the rows before the split, targets never do. Windows that would
    reach across a break in time (SimulationTimeSeries.breaks) are left out.

    Args:
        time_series: the series.
        split: "train", "val" or "test".
        context_len: l, rows of context, at least 1.
        target_len: n, rows to forecast, at least 1.
        time_resolution: rows from one row of a window to the next, at least 1.
        stride: rows from one window to the next, at least 1.
        reach_back: whether contexts may start before the split; None means for validation and test.

    Raises:
        ValueError: no such split, or a split too short for one window.
    """

    def __init__(
        self,
        time_series: SimulationTimeSeries,
        split: str = "train",
        context_len: int = 128,
        target_len: int = 32,
        time_resolution: int = 1,
        *,
        stride: int = 1,
        reach_back: bool | None = None,
    ):
        lengths = {"context_len": context_len, "target_len": target_len}
        for name, value in {**lengths, "time_resolution": time_resolution, "stride": stride}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        rows = time_series.split_range(split)
        if reach_back is None:
            reach_back = split != "train"
        first = rows.start
        if reach_back:
            first = max(time_series.splits["train"].start, rows.start - time_resolution * context_len)
        span = time_resolution * (context_len + target_len - 1) + 1
        available = rows.stop - first
        if available < span:
            raise ValueError(
                f"the {split} split has {available} rows for windows{' with those it may reach back to' * reach_back}, "
                f"but one window (context_len={context_len}, target_len={target_len}, "
                f"time_resolution={time_resolution}) needs {span}; shorten the window or give {split} more rows"
            )
        self.split = split
        self.context_len = context_len
        self.target_len = target_len
        self.time_resolution = time_resolution
        self.starts: Sequence[int] = range(first, rows.stop - span + 1, stride)
        if len(time_series.breaks):
            starts = np.asarray(self.starts)
            crossed = np.searchsorted(time_series.breaks, [starts, starts + span - 1], side="right")
            self.starts = starts[crossed[0] == crossed[1]].tolist()
            if not self.starts:
                raise ValueError(
                    f"no window of {span} rows of the {split} split lies between two of the {len(time_series.breaks)} "
                    "breaks in time; shorten the window, or set gaps to 'resample'"
                )
        if short := runs_without_windows(time_series, split, span):
            warnings.warn(short, DataWarning, stacklevel=2)
        self._time_features = torch.from_numpy(time_series.time_features)
        self._context = torch.from_numpy(time_series.values)
        self._targets = self._context[:, : time_series.d_y_target]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Window:
        context, target = self.window_slices(index)
        return self._time_features[context], self._context[context], self._time_features[target], self._targets[target]

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (context_y (b, l, d_y_context), target_y (b, n, d_y_target)) of all windows, `size` at a time."""
        reach = self.time_resolution * torch.arange(self.context_len + self.target_len)
        for starts in torch.tensor(self.starts).split(size):
            window = self._context[starts[:, None] + reach]
            yield window[:, : self.context_len], window[:, self.context_len :, : self._targets.shape[1]]

    def window_slices(self, index: int) -> tuple[slice, slice]:
        """Return the rows of the series that window `index` takes as context and as target."""
        start, step = self.starts[index], self.time_resolution
        middle = start + step * self.context_len
        return slice(start, middle, step), slice(middle, middle + step * self.target_len, step)


class EvenlyFilled(Dataset[Window]):
    """The windows of a split, filled up to a multiple of the processes that share them.

    What is filled in has no observed target, so that it counts in no error: the scores of several processes are those
    of one.
    """

    def __init__(self, windows: SimulationTorchDataset, processes: int) -> None:
        self.windows = windows
        self.length = -(-len(windows) // processes) * processes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Window:
        *inputs, target = self.windows[index % len(self.windows)]
        return *inputs, target if index < len(self.windows) else torch.full_like(target, torch.nan)  # pyright: ignore[reportReturnType]


def runs_without_windows(time_series: SimulationTimeSeries, split: str, span: int) -> str | None:
    """Say which runs of a split are shorter than a window of `span` rows; None if there are none."""
    short = [name for name, run in time_series.runs_of(split).items() if len(run) < span]
    if not short:
        return None
    return (
        f"{len(short)} runs of the {split} split are shorter than a window of {span} rows and give none: "
        f"{', '.join(short[:5])}; shorten the window to use them"
    )
