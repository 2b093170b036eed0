"""How a forecaster is trained."""

from dataclasses import dataclass

from ..metrics.losses import LossName, check_loss
from .schedules import WarmupPlateau


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(WarmupPlateau):
    """Loss, weight decay and learning-rate schedule.

    Args:
        loss: "mse", "mae" or "huber".
        huber_delta: where huber turns linear, in training standard deviations.
        l2_regul_factor: AdamW's weight decay of matrices; vectors (biases, norms) have none.

    Raises:
        ValueError: for a value outside its range, naming it.
    """

    loss: LossName = "mse"
    huber_delta: float = 1.0
    l2_regul_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss, self.huber_delta)
        if not self.l2_regul_factor >= 0:
            raise ValueError(f"l2_regul_factor, the weight decay, must be at least 0: got {self.l2_regul_factor}")
