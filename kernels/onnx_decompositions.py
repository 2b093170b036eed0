"""The operators in terms of aten's, which is all that torch.onnx.export(dynamo=True) knows.

Attention is written out by its definition: a causal graph holds (b, h, t, s, m) numbers, a full one (b, h, s, m).
Gradients are not exported, and neither are masks of the decomposition. Nothing else sees this: torch.compile and
torch.export keep the operators, and a table of torch's own would change what fake tensors compute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .decomposition.operators import decompose_op, moving_average_op
from .decomposition.reference import (
    window_reach,
)
from .favor.definition import attend_definition, causal_definition, joined_definition, summarize_definition
from .favor.operators import OPTION_COUNT, attend_op, causal_op, full_op, summarize_op
from .favor.types import FeatureSpace


@summarize_op.write_out_for_onnx
def _summarize(key, value, mask, *options):
    log_normalizer, state_value = summarize_definition(key, value, mask, _space(options))
    return log_normalizer, state_value, *_auxiliary(2, like=log_normalizer)


@attend_op.write_out_for_onnx
def _attend(query, log_normalizer, state_value, *options):
    output = attend_definition(query, log_normalizer, state_value, _space(options))
    return output.to(query.dtype), *_auxiliary(1, like=log_normalizer)


@full_op.write_out_for_onnx
def _full(query, key, value, mask, *options):
    space = _space(options)
    output = attend_definition(query, *summarize_definition(key, value, mask, space), space)
    return output.to(query.dtype), *_auxiliary(4, like=output)


@causal_op.write_out_for_onnx
def _causal(query, key, value, mask, log_normalizer, state_value, *options):
    space, tokens_per_step = _space(options), options[OPTION_COUNT]
    initial = None if log_normalizer is None else (log_normalizer, state_value)
    output = causal_definition(query, key, value, mask, initial, space, tokens_per_step)
    state = summarize_definition(key, value, mask, space)
    if initial is not None:
        state = joined_definition(initial, state)
    return output.to(query.dtype), *state, *_auxiliary(1, like=output)


@moving_average_op.write_out_for_onnx
def _moving_average(x, mask, kernel_size, causal, impl):
    return _average(x, mask, kernel_size, causal)


@decompose_op.write_out_for_onnx
def _decompose(x, mask, weights, kernel_sizes, causal, trend_only, impl):
    trends = torch.stack([_average(x, mask, size, causal) for size in kernel_sizes], -1)
    trend = trends.mean(-1) if weights is None else (trends * weights).sum(-1)
    return x - trend, trend


def _average(x: Tensor, mask: Tensor | None, kernel_size: int, causal: bool) -> Tensor:
    if mask is not None:
        raise NotImplementedError("moving averages of masked series are not exported: pass mask=None")
    padded = F.pad(x.transpose(1, 2), window_reach(kernel_size, causal), mode="replicate")
    return F.avg_pool1d(padded, kernel_size, stride=1).transpose(1, 2)


def _space(options: tuple[Any, ...]) -> FeatureSpace:
    return FeatureSpace(*options[: OPTION_COUNT - 1])


def _auxiliary(count: int, *, like: Tensor) -> list[Tensor]:
    """Return what only a gradient would read."""
    return [like.new_zeros(0) for _ in range(count)]
