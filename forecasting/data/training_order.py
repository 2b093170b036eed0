"""The order in which training visits its windows: random, and a function of seed and epoch alone.

A run that is killed and resumed, in the middle of an epoch too, goes on as one that was not.
"""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from .windows import Window


class EpochOrder(DistributedSampler[int]):
    """Draw each epoch's order from (seed, epoch), shared among processes; yield epoch * count + window.

    The number tells AugmentedWindows which perturbation a visit gets. Lightning sets the epoch; without it, each
    iteration is the next one.

    Args:
        windows: the training windows.
        seed: of all orders.
        num_replicas, rank: number of processes and which of them this is.
        skip: visits left out of the first iteration, because a resumed run has made them already.
    """

    def __init__(
        self, windows: Dataset[Window], seed: int, *, num_replicas: int = 1, rank: int = 0, skip: int = 0
    ) -> None:
        super().__init__(windows, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.count = len(windows)  # pyright: ignore[reportArgumentType]
        self.skip = skip

    def __iter__(self) -> Iterator[int]:
        first, visits = self.epoch * self.count, list(super().__iter__())
        yield_from, self.skip = self.skip, 0
        self.epoch += 1
        return (first + visit for visit in visits[yield_from:])


class TrainingLoader(DataLoader[Window]):
    """A loader that Lightning may resume in the middle of an epoch.

    It keeps no state: where to go on follows from the progress of the trainer, see `visits_made`.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def visits_made(trainer: pl.Trainer | None, batch_size: int, batches: int) -> int:
    """Return how many windows of the current epoch a resumed run has trained on already; 0 in a new one."""
    if trainer is None or not trainer.fit_loop.restarting:
        return 0
    done = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # pyright: ignore[reportAttributeAccessIssue]
    return done * batch_size if done < batches else 0
