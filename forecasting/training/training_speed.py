"""How many windows a second a fit trains on."""

import time
from typing import Any

import pytorch_lightning as pl

from .training import Window


class WindowsPerSecond(pl.Callback):
    """Log train/windows_per_s, also in the progress bar: training windows a second, of all processes together.

    The time is that from the start of a batch to its end, so that validation and loading do not count; the mean is
    over all batches since the start but the first, which may compile.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._seconds = 0.0
        self._windows = 0
        self._batches = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Window, index: int
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Window, index: int
    ) -> None:
        """Stop the clock."""
        self._batches += 1
        if self._batches == 1:
            return
        self._seconds += time.perf_counter() - self._began
        self._windows += len(batch[0]) * trainer.world_size
        pl_module.log("train/windows_per_s", self._windows / self._seconds, prog_bar=True)
