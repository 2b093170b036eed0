"""Features of whole models are redrawn by optimiser steps, the same in every run and process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from favorcast.forecasting import RedrawFeatures
from favorcast.kernels import FavorAttention, redraw_features

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*pytree.*")


def model() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "often": FavorAttention(8, 2, batch_first=True, redraw_interval=2, seed=1),
            "seldom": FavorAttention(8, 2, batch_first=True, redraw_interval=3, seed=2),
            "never": FavorAttention(8, 2, batch_first=True),
        }
    )


def test_each_layer_is_redrawn_at_its_own_interval_and_named():
    layers = model()
    assert [redraw_features(layers, step) for step in range(1, 7)] == [
        (),
        ("often",),
        ("seldom",),
        ("often",),
        (),
        ("often", "seldom"),
    ]
    drawn = layers["often"].projection.clone()
    assert redraw_features(layers, 6) == ("often", "seldom")  # a second call for a step changes nothing
    assert torch.equal(layers["often"].projection, drawn)
    assert torch.equal(layers["never"].projection, FavorAttention(8, 2).projection)


class Regression(pl.LightningModule):
    """Fits a constant; what it attends with at each forward pass is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = model()
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(self.layers["often"].projection.clone())
        for layer in self.layers.values():
            batch = batch + layer(batch, batch, batch)[0]
        return (batch - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trained(folder: Path, steps: int, checkpoint: Path | None = None) -> tuple[Regression, pl.Trainer]:
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=steps,
        accumulate_grad_batches=2,
        callbacks=[RedrawFeatures()],
        accelerator="cpu",
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    module = Regression()
    data = torch.randn(2 * steps, 4, 8, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, DataLoader(list(data), batch_size=1), ckpt_path=checkpoint)
    return module, trainer


def test_the_callback_counts_optimiser_steps_and_resumes(tmp_path):
    whole, _ = trained(tmp_path, 5)
    numbers = [0, 0, 1, 1, 2]
    for step, number in enumerate(numbers):
        expected = FavorAttention(8, 2, seed=1)
        expected.redraw(number)
        for seen in whole.seen[2 * step : 2 * step + 2]:
            assert torch.equal(seen, expected.projection)
    _, trainer = trained(tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "after_3.ckpt")
    resumed, _ = trained(tmp_path, 5, tmp_path / "after_3.ckpt")
    assert torch.equal(resumed.seen[0], whole.seen[6])
    for name, tensor in resumed.layers.state_dict().items():
        if "projection" in name:
            assert torch.equal(tensor, whole.layers.state_dict()[name])
