"""Keep the best weights of a fit, those before its first step among them."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint whose candidates begin at step 0: what training makes worse is not kept.

    A linear part in closed form forecasts before anything is trained. The validation of step 0 is Lightning's sanity
    check over all validation batches, `Trainer(num_sanity_val_steps=-1)`; a shorter check judges other windows than
    later validations, and is not counted.
    """

    @property
    def state_key(self) -> str:
        """Take back the state of a ModelCheckpoint, which earlier versions used."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave the progress of the sanity check out: a run resumed from step 0 starts at its beginning."""
        if trainer.sanity_checking:
            del checkpoint["loops"]

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights of step 0, when all validation windows were forecast."""
        if trainer.num_sanity_val_steps != float("inf") or trainer.fast_dev_run or trainer.global_step > 0:  # pyright: ignore[reportAttributeAccessIssue]
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor in candidates:
            self._save_topk_checkpoint(trainer, candidates)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the best weights, and with save_last those of this validation too."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the best weights, and with save_last those of this epoch too."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)

    def _keep_last(self, trainer: pl.Trainer) -> None:
        """Save the last weights where they are not among the best, which Lightning leaves out."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
