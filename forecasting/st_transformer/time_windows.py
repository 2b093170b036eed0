"""Windows of the time axis, optionally shifted by half a window.

Dimension key: b batch, t time steps, N sensors, w windows.
"""

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class TimeWindows:
    """Cut the time axis into `count` windows of equal length, stacked into the batch.

    With `is_shifted` the cuts move by half a window (Liu et al. 2021, Swin, section 3.2, in one dimension), so that
    alternating layers connect neighbouring windows. The axis is then read as a ring: one window joins the last and
    the first steps.

    Raises:
        ValueError: in split, when `count` does not divide the number of steps.
    """

    count: int = 1
    is_shifted: bool = False

    def split(self, x: Tensor) -> Tensor:
        """Cut x (b, t, N, ...) into (b * w, t / w, N, ...)."""
        if x.shape[1] % self.count != 0:
            raise ValueError(
                f"windows must divide the number of time steps in every encoder layer: got windows={self.count} "
                f"for {x.shape[1]} steps"
            )
        return rearrange(self._roll(x, -1), "b (w t) ... -> (b w) t ...", w=self.count)

    def merge(self, x: Tensor) -> Tensor:
        """Undo split."""
        return self._roll(rearrange(x, "(b w) t ... -> b (w t) ...", w=self.count), 1)

    def _roll(self, x: Tensor, direction: int) -> Tensor:
        half_window = x.shape[1] // self.count // 2
        return x.roll(direction * half_window, dims=1) if self.is_shifted else x
