"""How much of what a model adds to its baseline is kept, at each step, as far as held-out windows support it.

b batch, n target_len, d d_y_target
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .missing_values import fill_missing


class ModelShare(nn.Module):
    """Keep a share of what a model adds to its baseline, step by step: all of it until `fit`, or a checkpoint.

        forecast_t = baseline_t + share_t change_t,        0 <= share <= 1

    Steps beyond those fitted have the share of the last one.
    """

    share: Tensor  # (n,), (0,) until there is one

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.empty(0))

    def forward(self, change: Tensor) -> Tensor:
        """Return what is kept of a change (b, n, d)."""
        if self.share.numel() == 0:
            return change
        steps = torch.arange(change.shape[1], device=change.device).clamp(max=len(self.share) - 1)
        return change * self.share[steps, None]

    @torch.no_grad()
    def fit(self, windows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take at each step the share with the least squared error on held-out windows.

            share_t = sum change_t wanted_t / sum change_t^2,  limited to [0, 1];  1 where nothing was observed

        Args:
            windows: yields (change, wanted), both (b, n, d): what the model adds to its baseline and what is missing
                from it, NaN where that was not observed.
        """
        product = square = torch.zeros(())
        for change, wanted in windows:
            change = torch.where(wanted.isnan(), 0.0, change).to("cpu", torch.float64)
            product = product + (change * fill_missing(wanted).to("cpu", torch.float64)).sum(dim=(0, 2))
            square = square + change.square().sum(dim=(0, 2))
        share = torch.where(square > 0, product / square.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
        self.share = share.clamp(0, 1).to(self.share) if share.ndim else self.share.new_empty(0)

    def reset(self) -> None:
        """Keep everything again."""
        self.share = self.share.new_empty(0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        saved = state_dict.setdefault(f"{prefix}share", self.share.new_empty(0))  # earlier checkpoints keep everything
        self.share = self.share.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
