"""Forecasts beyond the horizon a model was trained for: block by block, each from the forecasts before.

b batch, l context_len, n target_len of all blocks; d_x covariates, d_y_context and d_y_target sensors
"""

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def roll_forward(predict: Predict, context_x: Tensor, context_y: Tensor, target_x: Tensor, block_len: int) -> Tensor:
    """Forecast n steps, (b, n, d_y_target), `block_len` at a time, at constant cost and memory for each block.

    After a block the context moves on by as many steps: it drops its oldest ones and takes the forecasts for measured.
    Context columns that are not forecast are missing (NaN) from there on.

    Args:
        predict: maps (context_x, context_y, target_x) to the forecast of a block.
        context_x: (b, l, d_x).
        context_y: (b, l, d_y_context).
        target_x: (b, n, d_x).
        block_len: steps a block, at least 1; the last one may be shorter.

    Raises:
        ValueError: for a block_len below 1.
    """
    if block_len < 1:
        raise ValueError(f"block_len must be at least 1: got {block_len}; the horizon of training is the usual choice")
    context_len = context_y.shape[1]
    blocks = []
    for block_x in target_x.split(block_len, dim=1):
        block = predict(context_x, context_y, block_x)
        blocks.append(block)
        unknown = block.new_full((*block.shape[:2], context_y.shape[2] - block.shape[2]), torch.nan)
        measured = torch.cat((block, unknown), dim=2)
        context_y = torch.cat((context_y, measured), dim=1)[:, -context_len:]
        context_x = torch.cat((context_x, block_x), dim=1)[:, -context_len:]
    return torch.cat(blocks, dim=1)
