"""Forecasts and targets with holes, and what a process of two makes of its share; importable by the processes."""

from pathlib import Path

import torch
from torch import Tensor

from favorcast.forecasting.metrics.forecast_errors import ForecastErrors

NAN = float("nan")


def holey_batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    batches = []
    for size, missing in ((5, 0.1), (5, 0.9), (1, 0.5)):
        target = torch.randn(size, 3, 2)
        batches.append((torch.randn(size, 3, 2), target.masked_fill(torch.rand(size, 3, 2) < missing, NAN)))
    return batches


def errors_of_one_process(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    errors = ForecastErrors()
    for batch in holey_batches()[:1] if rank == 0 else holey_batches()[1:]:
        errors.update(*batch)
    torch.save((errors.compute(), errors.per_horizon(), errors.per_sensor()), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
