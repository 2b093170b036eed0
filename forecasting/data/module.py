"""Serve a series as training, validation, test and prediction batches.

b batch, l context_len, n target_len: each batch is (context_x (b, l, d_x), context_y (b, l, d_y_context),
target_x (b, n, d_x), target_y (b, n, d_y_target)), float32 (sensors float64 where the series holds them so), missing
sensor values NaN.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from ..flat_arguments import FieldsSignature, check_names, takes_fields_of
from .augmentation import AugmentedWindows, InputAugmentation
from .data_card import DataCard, adopt, card_of
from .series import SimulationTimeSeries
from .sources import has_fields
from .training_order import EpochOrder, TrainingLoader, visits_made
from .windows import EvenlyFilled, SimulationTorchDataset, Window, runs_without_windows

BLOCK_ELEMENTS = 1 << 22  # entries of the windows that window_blocks gathers at once: 16 MiB


@dataclass(frozen=True)
class WindowLoading:
    """Arguments of a DataModule: the windows of a series, and how they are loaded.

    Args:
        series: the series, split by time.
        context_len: l, rows of context.
        target_len: n, rows to forecast.
        batch_size: windows a batch, at least 1; the last batch of an epoch may be smaller.
        num_workers: loader processes, >= 0.
        stride: rows from one training window to the next; validation and test always take every window.
        time_resolution: rows from one row of a window to the next.
        overfit: serve the training windows as every split, to see whether a model can learn at all.
        prediction_split: the split of predict_dataloader.
        augmentation: perturbation of the training contexts, drawn afresh for every item.
        seed: seed of the training order and of the perturbations.

    Raises:
        ValueError: for a value outside its range.
    """

    series: SimulationTimeSeries
    context_len: int = 128
    target_len: int = 32
    batch_size: int = 32
    num_workers: int = 0
    _: KW_ONLY
    stride: int = 1
    time_resolution: int = 1
    overfit: bool = False
    prediction_split: Literal["train", "val", "test"] = "test"
    augmentation: InputAugmentation | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"batch_size must be at least 1 and num_workers at least 0, got {self.batch_size} and "
                f"{self.num_workers}"
            )
        if self.prediction_split not in ("train", "val", "test"):
            raise ValueError(f"prediction_split must be 'train', 'val' or 'test', got {self.prediction_split!r}")

    def windows(self, split: str) -> SimulationTorchDataset:
        """Cut the windows of a split.

        Raises:
            ValueError: the split is too short for one window.
        """
        stride = self.stride if split == "train" else 1
        return SimulationTorchDataset(
            self.series, split, self.context_len, self.target_len, self.time_resolution, stride=stride
        )


class DataModule(pl.LightningDataModule):
    """Cut a series into windows and load them: training shuffled, everything else in order, no batch dropped.

    Its arguments are the fields of WindowLoading.

    Raises:
        ValueError: a split that is too short for one window, before anything is loaded.
    """

    __signature__ = FieldsSignature()

    @takes_fields_of(WindowLoading)
    def __init__(self, *args: Any, **arguments: Any) -> None:
        check_names("DataModule", arguments, WindowLoading)
        config = WindowLoading(*args, **arguments)
        super().__init__()
        self.series = config.series
        self.context_len = config.context_len
        self.target_len = config.target_len
        self.time_resolution = config.time_resolution
        self.batch_size = config.batch_size
        self.num_workers = config.num_workers
        self.overfit = config.overfit
        self.prediction_split = config.prediction_split
        self.augmentation = config.augmentation
        self.seed = config.seed
        self._windows = {split: config.windows(split) for split in config.series.splits}

    @property
    def d_x(self) -> int:
        """Number of time covariates."""
        return self.series.d_x

    @property
    def d_y_context(self) -> int:
        """Number of sensor columns in a context."""
        return self.series.d_y_context

    @property
    def d_y_target(self) -> int:
        """Number of forecast sensor columns."""
        return self.series.d_y_target

    @property
    def window_counts(self) -> dict[str, int]:
        """Number of windows in each split of the series."""
        return {split: len(windows) for split, windows in self._windows.items()}

    def windows(self, split: str) -> SimulationTorchDataset:
        """Return the windows that a split serves, unperturbed (with overfit: those of training).

        Raises:
            ValueError: the series has no such split.
        """
        if self.overfit:
            return self._windows["train"]
        self.series.split_range(split)
        return self._windows[split]

    @property
    def notes(self) -> list[str]:
        """What became of the series, and which of its runs are too short for a window."""
        span = self.time_resolution * (self.context_len + self.target_len - 1) + 1
        short = (runs_without_windows(self.series, split, span) for split in self.series.splits)
        return [*self.series.notes, *(note for note in short if note)]

    def window_blocks(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (context_y, target_y) of all windows of a split in order, unperturbed, many at a time."""
        width = (self.context_len + self.target_len) * self.d_y_context
        return self.windows(split).blocks(max(1, BLOCK_ELEMENTS // width))

    def data_card(self) -> dict[str, Any]:
        """Return what a forecaster must know of these data, in plain values (see DataCard)."""
        sizes = {"context_len": self.context_len, "target_len": self.target_len}
        return card_of(self.series, **sizes, time_resolution=self.time_resolution).to_dict()

    def adopt(self, card: dict[str, Any]) -> None:
        """Go on as the data of `data_card` did: columns in their order, covariates by their clock.

        Raises:
            ValueError: other columns, another time step or other kinds of times.
        """
        adopt(self.series, DataCard.of_dict(card))

    @classmethod
    def of_card(cls, card: DataCard, data: Any) -> "DataModule":
        """Read data as those of a card were read, with their windows and their clock.

        Args:
            card: of a forecaster.
            data: a file, or whatever else SimulationTimeSeries takes.
        """
        source = {"data_path" if isinstance(data, str | Path) else "data": data}
        series = SimulationTimeSeries(
            **source,
            target_columns=card.target_columns,
            exogenous_columns=card.exogenous_columns,
            known_columns=card.known_columns,
            time_col_name=card.time_column,
            null_value=card.null_value,
            table=card.table,
            gaps=card.gaps,
            **(vars(card.choice) if has_fields(data) else {}),
        )
        module = cls(series, card.context_len, card.target_len, time_resolution=card.time_resolution)
        module.adopt(card.to_dict())
        return module

    def training_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each column over the training rows: two (d_y_context,)."""
        return self.series.training_statistics()

    def train_dataloader(self) -> DataLoader[Window]:
        """Load the training windows in a new random order each epoch, the same for the same seed (see EpochOrder)."""
        trainer = self.trainer
        windows = AugmentedWindows(self._windows["train"], self.augmentation, self.seed)
        replicas, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        batches = ceil(ceil(len(windows) / replicas) / self.batch_size)
        skip = visits_made(trainer, self.batch_size, batches)
        order = EpochOrder(windows, self.seed, num_replicas=replicas, rank=rank, skip=skip)
        return TrainingLoader(windows, sampler=order, **self._loading())

    def val_dataloader(self) -> DataLoader[Window]:
        """Load the validation windows in order."""
        return self._loader(self.windows("val"))

    def test_dataloader(self) -> DataLoader[Window]:
        """Load the test windows in order; a series without a test split raises ValueError."""
        return self._loader(self.windows("test"))

    def predict_dataloader(self) -> DataLoader[Window]:
        """Load the windows of prediction_split in order."""
        return self._loader(self.windows(self.prediction_split))

    def _loader(self, windows: SimulationTorchDataset) -> DataLoader[Window]:
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return DataLoader(windows, **self._loading())
        filled = EvenlyFilled(windows, trainer.world_size)
        order = DistributedSampler(filled, trainer.world_size, trainer.global_rank, shuffle=False)
        return DataLoader(filled, sampler=order, **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator(),  # of workers' seeds: the global generator stays untouched
        }
