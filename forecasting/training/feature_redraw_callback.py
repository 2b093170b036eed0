"""A Lightning callback that redraws random features by optimiser steps."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from ...kernels import redraw_features


class RedrawFeatures(pl.Callback):
    """Redraw every FavorAttention of a LightningModule when its `redraw_interval` of optimiser steps is over.

        layer = FavorAttention(512, 8, redraw_interval=1000)
        pl.Trainer(callbacks=[RedrawFeatures()])

    Gradient accumulation counts as one step. Which projection is drawn follows from the seed and the step alone, so
    data parallel ranks agree, and a run resumed from a checkpoint, which holds the projection, goes on as one that
    never stopped. `SpatioTemporalPerformer_Forecaster` redraws by itself.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw between an optimiser step and the next forward pass."""
        redraw_features(pl_module, trainer.global_step)
