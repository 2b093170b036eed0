"""What a SpatioTemporalPerformer is called with, checked: shapes that fit the configuration and each other.

Dimension key: b batch, l context steps, t decoder steps.
"""

import torch
from torch import Tensor

from .performer_config import PerformerConfig


def check_context(
    config: PerformerConfig, context_x: Tensor, context_y: Tensor, context_padding_mask: Tensor | None
) -> None:
    """Raise unless the context has shapes (b, l, d_x) and (b, l, d_y_context) and its mask can be honoured."""
    check_dimensions(context_x=context_x, context_y=context_y)
    batch, context_len, _ = context_y.shape
    check_shape("context_x", context_x, (batch, context_len, config.d_x))
    check_shape("context_y", context_y, (batch, context_len, config.d_y_context))
    if context_len < max(config.start_len, 1):
        raise ValueError(f"the context must have at least {max(config.start_len, 1)} steps, got {context_len}")
    if context_padding_mask is not None:
        check_padding(config, context_y, context_padding_mask)


def check_target(config: PerformerConfig, batch: int, target_x: Tensor, target_y: Tensor) -> None:
    """Raise unless the decoder's input has shapes (b, t, d_x) and (b, t, d_y_target)."""
    check_dimensions(target_x=target_x, target_y=target_y)
    decoder_len = target_y.shape[1]
    check_shape("target_x", target_x, (batch, decoder_len, config.d_x))
    check_shape("target_y", target_y, (batch, decoder_len, config.d_y_target))


def check_dimensions(**inputs: Tensor) -> None:
    """Raise unless every input has three dimensions."""
    for name, tensor in inputs.items():
        if tensor.dim() != 3:
            raise ValueError(f"{name} must have 3 dimensions (batch, time, column), got shape {tuple(tensor.shape)}")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, int, int]) -> None:
    """Raise unless the input called `name` has the expected shape."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")


def check_padding(config: PerformerConfig, context_y: Tensor, context_padding_mask: Tensor) -> None:
    """Raise unless the padding mask can be honoured."""
    if context_padding_mask.dtype != torch.bool or context_padding_mask.shape != context_y.shape:
        raise ValueError(
            f"context_padding_mask must be a bool tensor of context_y's shape {tuple(context_y.shape)}, got "
            f"{context_padding_mask.dtype} of shape {tuple(context_padding_mask.shape)}"
        )
    if config.downsample_convs_embedding or config.downsample_convs_block:
        raise ValueError(
            "context_padding_mask cannot be used with downsampling convolutions, which mix padded and other steps; "
            "set downsample_convs_embedding=0 and downsample_convs_block=0"
        )
