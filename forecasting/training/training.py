"""How a forecaster is trained and judged: steps, losses, logged errors, optimiser and learning rate.

b batch, l context_len, n target_len
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from ..metrics.dynamics import DynamicsErrors
from ..metrics.forecast_errors import ForecastErrors
from ..metrics.losses import LossName, masked_loss
from ..missing_values import mark_missing
from .schedules import WarmupPlateauLR
from .training_config import TrainingConfig

Window = Sequence[Tensor]  # (context_x, context_y, target_x, target_y)


class ForecastTraining(pl.LightningModule, ABC):
    """Train a module whose forward(context_x, context_y, target_x, target_y=None) forecasts in original units.

    The loss is the masked mean over the observed targets of a batch, on errors divided by `target_scale`. Logged are
    train/loss_step for each batch and {train,val,test}/{loss,mae,mse}, means over every observed entry of the epoch,
    mae and mse in original units. The same sums by horizon step and by sensor stay readable in `train_errors`,
    `val_errors` and `test_errors`, and the spectra and valid times of the test in `test_dynamics`.

    Before each batch of training the random generators are set from the seed of the run, the epoch, the batch and the
    process: what dropout and sampling draw does not depend on what was drawn before, so that a resumed run goes on as
    an uninterrupted one. The seed is that of torch's generator when the first fit starts, and stays in the checkpoint.

    Args:
        config: loss, weight decay and schedule.
        learning_rate: AdamW's peak rate.
        null_value: the data set's code for a missing value, beside NaN.
    """

    def __init__(self, config: TrainingConfig, *, learning_rate: float, null_value: float | None) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"the learning rate must be positive: got {learning_rate}")
        self.loss: LossName = config.loss
        self.huber_delta = config.huber_delta
        self.null_value = null_value
        self.learning_rate = learning_rate
        self.training_config = config
        self.training_seed: int | None = None
        self.train_errors = ForecastErrors(config.loss, huber_delta=config.huber_delta)
        self.val_errors = ForecastErrors(config.loss, huber_delta=config.huber_delta)
        self.test_errors = ForecastErrors(config.loss, huber_delta=config.huber_delta)
        self.test_dynamics = DynamicsErrors()

    @property
    @abstractmethod
    def target_scale(self) -> Tensor:
        """The unit in which the loss judges errors, (d_y_target,)."""

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        """Return the loss of a batch; the model may see the truth."""
        context_x, context_y, target_x, target_y = batch
        forecast = self(context_x, context_y, target_x, target_y)
        target = mark_missing(target_y, self.null_value)
        self.train_errors.update(forecast, target, self.target_scale)
        loss = masked_loss(forecast, target, self.loss, huber_delta=self.huber_delta, scale=self.target_scale)
        self.log("train/loss_step", loss, prog_bar=True, batch_size=len(target))
        return loss

    def validation_step(self, batch: Window, batch_idx: int) -> None:
        """Add the errors of a batch to val_errors; the model never sees the truth."""
        self._evaluate(batch, self.val_errors)

    def test_step(self, batch: Window, batch_idx: int) -> Tensor:
        """Add the errors of a batch to test_errors and test_dynamics; return the forecast, made without the truth."""
        return self._evaluate(batch, self.test_errors, self.test_dynamics)

    def _evaluate(self, batch: Window, *errors: ForecastErrors | DynamicsErrors) -> Tensor:
        context_x, context_y, target_x, target_y = batch
        forecast, target = self(context_x, context_y, target_x), mark_missing(target_y, self.null_value)
        for each in errors:
            each.update(forecast, target, self.target_scale)
        return forecast

    def on_fit_start(self) -> None:
        """Take the seed of the run, unless a checkpoint brought it."""
        if self.training_seed is None:
            self.training_seed = torch.initial_seed()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the run."""
        checkpoint["training_seed"] = self.training_seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed of the run."""
        self.training_seed = checkpoint.get("training_seed")

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> None:
        """Set the random generators for this batch."""
        assert self.training_seed is not None
        seed = self.training_seed
        for number in (self.current_epoch, batch_idx, self.global_rank):
            seed = (seed * 1_000_003 + number) % 2**63
        torch.manual_seed(seed)

    def on_train_epoch_start(self) -> None:
        """Begin a new mean; the errors of an epoch stay readable until the next one of their kind."""
        self.train_errors.reset()

    def on_validation_epoch_start(self) -> None:
        """Begin a new mean."""
        self.val_errors.reset()

    def on_test_epoch_start(self) -> None:
        """Begin a new mean."""
        self.test_errors.reset()
        self.test_dynamics.reset()

    def on_train_epoch_end(self) -> None:
        """Log train/loss, train/mae and train/mse; nothing in an epoch that a resumed run only closes."""
        if self.train_errors.has_data:
            self._log_errors("train", self.train_errors)

    def on_validation_epoch_end(self) -> None:
        """Log val/loss, val/mae and val/mse, and show the loss to the learning-rate schedule."""
        loss = self._log_errors("val", self.val_errors)
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return
        schedule = self.lr_schedulers()
        if isinstance(schedule, WarmupPlateauLR):
            schedule.observe(loss)

    def on_test_epoch_end(self) -> None:
        """Log test/loss, test/mae and test/mse."""
        self._log_errors("test", self.test_errors)

    def _log_errors(self, split: str, errors: ForecastErrors) -> Tensor:
        means = errors.compute()
        # the means are already those of all processes; sync_dist tells Lightning so
        self.log_dict(
            {f"{split}/{name}": mean for name, mean in means.items()}, prog_bar=split == "val", sync_dist=True
        )
        return means["loss"]

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW and its schedule, stepped by Lightning after each optimiser step."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.training_config.l2_regul_factor},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.learning_rate)
        scheduler = WarmupPlateauLR(optimizer, self.training_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
