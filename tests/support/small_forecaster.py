"""A forecaster small enough to train in tests, and windows with every kind of outage."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from favorcast.forecasting.forecaster import Forecaster
from favorcast.forecasting.missing_values import fill_missing

NAN = float("nan")
CONTEXT_LEN, TARGET_LEN, D_X, D_CONTEXT, D_TARGET = 8, 4, 2, 3, 2
Batch = tuple[Tensor, Tensor, Tensor, Tensor]

SMALL = {
    "d_y_context": D_CONTEXT,
    "d_y_target": D_TARGET,
    "d_x": D_X,
    "d_model": 16,
    "n_heads": 2,
    "n_encoder_layers": 1,
    "n_decoder_layers": 1,
    "d_ff": 16,
    "time_emb_dim": 2,
    "max_seq_len": 12,
}
NO_DROPOUT = {"data_dropout_embedding": 0.0, "dropout_ff": 0.0}


class TimeMap(Forecaster):
    """Forecast every sensor by one linear map over time, plus a map of the covariates."""

    def __init__(self, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(D_X, D_CONTEXT, D_TARGET, **options)
        self.save_hyperparameters()
        generator = torch.Generator().manual_seed(0)
        self.time_map = nn.Linear(CONTEXT_LEN, TARGET_LEN)
        self.covariates = nn.Linear(2 * D_X, 1)
        self.dropout = nn.Dropout(dropout)
        for parameter in (*self.time_map.parameters(), *self.covariates.parameters()):
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))

    def forward_model_pass(
        self, context_x: Tensor, context_y: Tensor, target_x: Tensor, target_y: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        past = context_x.mean(dim=1, keepdim=True).expand_as(target_x)
        sensors = self.time_map(fill_missing(context_y)[..., :D_TARGET].mT).mT
        return self.dropout(sensors) + self.covariates(torch.cat((past, target_x), dim=-1))


class Silent(TimeMap):
    """Forecast zero, so that the linear part is heard alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for parameter in (*self.time_map.parameters(), *self.covariates.parameters()):
            nn.init.zeros_(parameter)


class Echo(TimeMap):
    """Return the truth that training shows to the model."""

    def forward_model_pass(self, context_x, context_y, target_x, target_y=None, **kwargs) -> Tensor:
        assert target_y is not None
        return target_y


def windows(count: int = 6, *, seed: int = 0) -> Batch:
    """Draw complete windows: noisy waves of unequal level and size."""
    generator = torch.Generator().manual_seed(seed)
    total = CONTEXT_LEN + TARGET_LEN
    time = torch.arange(total).view(1, -1, 1) + 20 * torch.rand(count, 1, 1, generator=generator)
    size, level = torch.tensor([1.0, 5.0, 0.2]), torch.tensor([0.0, 50.0, -3.0])
    y = (
        level
        + size * torch.sin(0.6 * time + torch.arange(3))
        + 0.05 * torch.randn(count, total, 3, generator=generator)
    )
    x = torch.cat((torch.sin(0.6 * time), torch.cos(0.6 * time)), dim=-1)
    return x[:, :CONTEXT_LEN], y[:, :CONTEXT_LEN], x[:, CONTEXT_LEN:], y[:, CONTEXT_LEN:, :D_TARGET]


def outage(kind: str, missing: float = NAN, *, count: int = 6) -> Batch:
    """Draw windows in which the entries lost to an outage hold `missing`."""
    context_x, context_y, target_x, target_y = (part.clone() for part in windows(count))
    if kind == "dead sensor":
        context_y[..., 0] = missing
        target_y[..., 0] = missing
    elif kind == "block outage":
        context_y[:, 3:6] = missing
        context_y[1, -2:] = missing
        target_y[:, 1:3] = missing
    elif kind == "all-missing window":
        context_y[2] = missing
        target_y[2] = missing
    elif kind == "nothing observed":
        context_y[:] = missing
        target_y[:] = missing
    elif kind == "scattered":
        generator = torch.Generator().manual_seed(1)
        context_y[torch.rand(context_y.shape, generator=generator) < 0.4] = missing
        target_y[torch.rand(target_y.shape, generator=generator) < 0.4] = missing
    return context_x, context_y, target_x, target_y


OUTAGES = ("none", "dead sensor", "block outage", "all-missing window", "nothing observed", "scattered")


class WindowData(pl.LightningDataModule):
    """Serve fixed windows in a fixed order."""

    def __init__(self, count: int = 12, batch_size: int = 4, *, seed: int = 0, has_validation: bool = True) -> None:
        super().__init__()
        self.batches = windows(count, seed=seed)
        self.batch_size = batch_size
        if not has_validation:
            self.val_dataloader = None

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*self.batches), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*outage("scattered", count=7)), batch_size=3)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*windows(5)[:3]), batch_size=2)

    def training_statistics(self) -> tuple[Tensor, Tensor]:
        y = self.batches[1].flatten(0, 1)
        return y.mean(dim=0), y.std(dim=0)


def cpu_trainer(**options: Any) -> pl.Trainer:
    """Build a quiet trainer on the CPU."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return pl.Trainer(accelerator="cpu", devices=1, **(quiet | {"max_epochs": 1, "log_every_n_steps": 1} | options))


def fit_and_load(model: TimeMap, data: pl.LightningDataModule, path: Path) -> TimeMap:
    """Train a model for an epoch, save it, and return what the checkpoint holds."""
    trainer = cpu_trainer(max_epochs=1)
    trainer.fit(model, data)
    trainer.save_checkpoint(path)
    return type(model).load_from_checkpoint(path, weights_only=True)
