"""Write the forecasts of `Trainer.predict` to a CSV file, batch by batch.

b batch, n target_len, d d_y_target
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ..data import DataModule
from ..data.time_labels import time_texts as _texts


class ForecastWriter(pl.Callback):
    """Write one row for each forecast time step: window, step, time, and one column a sensor, in original units.

    Windows count from 0 within the predicted split, steps from 1. Times are those of the series, dates in
    ISO 8601, numbers with every digit that tells them apart.

    Args:
        path: the file, replaced if it exists.

    Raises:
        ValueError: without a DataModule, or with more than one process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.windows_written = 0
        self._times = np.empty(0, dtype=str)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the header."""
        if trainer.world_size > 1:
            raise ValueError(
                f"one process must see every window to write the forecasts: got {trainer.world_size} processes; "
                "predict with --trainer.devices 1"
            )
        self.windows_written = 0
        series = _data(trainer).series
        self._times = _texts(series.times, series.time_zone)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(["window", "step", "time", *series.target_cols])

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor,
        batch: Sequence[Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the forecasts (b, n, d) of one batch."""
        data = _data(trainer)
        windows = data.windows(data.prediction_split)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
            digits = 12 if outputs.dtype == torch.float64 else 7
            for forecast in outputs.numpy(force=True):
                _, target = windows.window_slices(self.windows_written)
                for step, (time, values) in enumerate(zip(self._times[target], forecast, strict=True), start=1):
                    writer.writerow([self.windows_written, step, time, *(f"{value:.{digits}g}" for value in values)])
                self.windows_written += 1


def _data(trainer: pl.Trainer) -> DataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, DataModule):
        raise ValueError(f"forecasts are labelled by a DataModule: pass datamodule=..., got {data!r}")
    return data
