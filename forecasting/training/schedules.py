"""Learning-rate schedule: linear warm-up, optional linear decay, and cuts on a plateau that last."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True, kw_only=True)
class WarmupPlateau:
    """Parameters of a WarmupPlateauLR.

    Args:
        warmup_steps: optimiser steps of linear warm-up; 0 for none.
        num_training_steps: optimiser step at which a linear decay reaches 0; None for no decay.
        decay_factor: what a cut multiplies the rate by, in (0, 1]; 1 leaves it.
        plateau_patience: validations in a row without a better val/loss that are tolerated before a cut, >= 0;
            without a validation loop nothing is cut.

    Raises:
        ValueError: for a number outside its range, or num_training_steps that do not exceed warmup_steps.
    """

    warmup_steps: int = 0
    num_training_steps: int | None = None
    decay_factor: float = 0.8
    plateau_patience: int = 2
    threshold: ClassVar[float] = 1e-4  # relative improvement of the loss that counts
    min_lr: ClassVar[float] = 1e-8  # cuts stop here

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "plateau_patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0: got {getattr(self, name)}")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor, the decay factor of cuts, must lie in (0, 1]: got {self.decay_factor}")
        if self.num_training_steps is not None and self.num_training_steps <= self.warmup_steps:
            raise ValueError(
                "num_training_steps must exceed warmup_steps, or be None for no decay: "
                f"expected more than {self.warmup_steps}, got {self.num_training_steps}"
            )


class WarmupPlateauLR(LRScheduler):
    """Multiply a linear warm-up per optimiser step by the cuts made on a plateau of the validation loss.

        lr(step) = max(base_lr decay_factor^cuts, min_lr) warmup(step) decay(step)
        warmup(step) = min(1, (step + 1) / warmup_steps)
        decay(step)  = (num_training_steps - step) / (num_training_steps - warmup_steps), limited to [0, 1]

    Call `step()` after each optimiser step and `observe(loss)` after each validation; `observe` makes a cut when more
    than `plateau_patience` validations in a row have not lowered the loss by the relative `threshold`. The rate is a
    formula of counters in the state dict, so a resumed schedule continues exactly.

    Args:
        optimizer: its learning rates are the base rates.
        schedule: the parameters.
    """

    def __init__(self, optimizer: Optimizer, schedule: WarmupPlateau) -> None:
        self.schedule = schedule
        self.best = math.inf
        self.bad_validations = 0
        self.cuts = 0
        super().__init__(optimizer)

    def observe(self, loss: float | Tensor) -> None:
        """Take the loss of one validation; a cut holds from the next optimiser step on."""
        loss = float(loss)
        if loss < self.best * (1 - self.schedule.threshold):
            self.best = loss
            self.bad_validations = 0
            return
        self.bad_validations += 1
        if self.bad_validations > self.schedule.plateau_patience:
            self.cuts += 1
            self.bad_validations = 0
            self._last_lr = self.get_lr()
            for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
                group["lr"] = rate

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each parameter group at the current step."""
        schedule, step = self.schedule, self.last_epoch
        shape = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
        if schedule.num_training_steps is not None:
            decay = (schedule.num_training_steps - step) / (schedule.num_training_steps - schedule.warmup_steps)
            shape *= min(1.0, max(0.0, decay))
        cut = schedule.decay_factor**self.cuts
        return [max(base * cut, min(schedule.min_lr, base)) * shape for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and base rates; the schedule itself belongs to the constructor."""
        return {name: value for name, value in super().state_dict().items() if name != "schedule"}
