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

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights of step 0, when all validation windows were forecast."""
        if trainer.num_sanity_val_steps != float("inf") or trainer.fast_dev_run or trainer.global_step > 0:  # pyright: ignore[reportAttributeAccessIssue]
            return
        candidates: dict[str, Any] = self._monitor_candidates(trainer)
        if self.monitor in candidates:
            self._save_topk_checkpoint(trainer, candidates)
            self._last_global_step_saved = -1  # the first validation may be that of step 0 too
