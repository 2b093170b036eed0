"""Train the networks of neuralforecast on the windows of a DataModule, for a given CPU time.

b windows, l context_len, n target_len, c d_y_context columns of which the first d are forecast
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from favorcast.forecasting import DataModule, ForecastErrors
from favorcast.forecasting.data.windows import Window
from favorcast.forecasting.evaluation.baseline import carry_missing

BATCH, LEARNING_RATE = 32, 1e-3
CHECKS, CHECKED_WINDOWS = 12, 512

PEERS = ("PatchTST", "iTransformer", "TimeMixer", "NHITS")


class Errors(NamedTuple):
    """Mean squared and mean absolute error of z-scored sensors, and the windows they are of."""

    mse: float
    mae: float
    windows: int


class Peer(nn.Module):
    """A network of neuralforecast with its default sizes, called on z-scored windows.

    Those that forecast one series at a time see each sensor alone; the others see all columns.

    Args:
        name: of `PEERS`.
        data: windows and widths.

    Raises:
        ImportError: neuralforecast is not installed.
    """

    def __init__(self, name: str, data: DataModule) -> None:
        import neuralforecast.models as models

        super().__init__()
        kind = getattr(models, name)
        self.is_multivariate: bool = kind.MULTIVARIATE
        self.sensors = data.d_y_target
        series = {"n_series": data.d_y_context} if self.is_multivariate else {}
        self.network = kind(h=data.target_len, input_size=data.context_len, max_steps=1, **series)

    def forward(self, context: Tensor) -> Tensor:
        """Return the forecast (b, n, d) from z-scored contexts (b, l, c) without missing values."""
        if self.is_multivariate:
            return self._run(context)[..., : self.sensors]
        alone = context[..., : self.sensors].mT.flatten(0, 1).unsqueeze(-1)  # (b d, l, 1)
        return self._run(alone).flatten(1).unflatten(0, (-1, self.sensors)).mT

    def _run(self, series: Tensor) -> Tensor:
        others = dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))
        return self.network({"insample_y": series, "insample_mask": torch.ones_like(series), **others})


class Scaled:
    """The windows of a DataModule, z-scored by the training rows, gaps of contexts filled with the last value."""

    def __init__(self, data: DataModule) -> None:
        self._data = data
        self._mean, self._std = data.training_statistics()

    def _scale(self, y: Tensor) -> Tensor:
        width = y.shape[-1]
        return ((y - self._mean[:width]) / self._std[:width]).float()

    def _batch(self, windows: Dataset[Window], some: Tensor) -> tuple[Tensor, Tensor]:
        """Return contexts (b, l, c) without gaps and targets (b, n, d) of some windows."""
        parts = [windows[int(i)] for i in some]
        context, target = (self._scale(torch.stack([part[k] for part in parts])) for k in (1, 3))
        return carry_missing(context).nan_to_num(nan=0.0), target

    def random_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield training windows, without end."""
        windows = self._data.windows("train")
        while True:
            for some in torch.randperm(len(windows)).split(BATCH):
                yield self._batch(windows, some)

    def in_order(self, split: str, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every `every`-th window of a split."""
        windows = self._data.windows(split)
        for some in torch.arange(0, len(windows), every).split(256):
            yield self._batch(windows, some)


def squared_error(forecast: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over what was observed."""
    observed = ~target.isnan()
    return (forecast[observed] - target[observed]).square().mean()


@torch.no_grad()
def errors_of(model: Callable[[Tensor], Tensor], windows: Iterator[tuple[Tensor, Tensor]]) -> Errors:
    """Average over sensors, each over its observed values."""
    errors, count = ForecastErrors(), 0
    for context, target in windows:
        errors.update(model(context), target)
        count += len(target)
    by_sensor = errors.per_sensor()
    return Errors(*(float(by_sensor[metric].nanmean()) for metric in ("mse", "mae")), count)


def train_peer(name: str, data: DataModule, seed: int, seconds: float) -> Errors:
    """Train a peer for so many seconds of CPU time and return its test errors, with the best weights on validation.

    Adam on the squared error, batches of 32 windows, gradients clipped to norm 1, learning rate 1e-3 falling to zero
    along a cosine. The validation error is measured twelve times, on up to 512 windows.
    """
    torch.manual_seed(seed)
    peer, windows = Peer(name, data), Scaled(data)
    every = max(1, len(data.windows("val")) // CHECKED_WINDOWS)
    optimizer = torch.optim.Adam(peer.parameters(), lr=LEARNING_RATE)
    least, best, checks, start = math.inf, peer.state_dict(), 0, time.process_time()
    for context, target in windows.random_batches():
        share = (time.process_time() - start) / seconds
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * min(share, 1))) / 2
        if share * CHECKS >= checks + 1 or share >= 1:
            checks += 1
            error = errors_of(peer.eval(), windows.in_order("val", every)).mse
            if error < least:
                least, best = error, {key: value.clone() for key, value in peer.state_dict().items()}
        if share >= 1:
            break
        optimizer.zero_grad()
        squared_error(peer.train()(context), target).backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
    peer.load_state_dict(best)
    return errors_of(peer.eval(), windows.in_order("test"))
