"""Inputs on a CUDA device for the tests of kernels there, and how their results are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from favorcast.kernels import RandomFeatures, draw_features


def features_of(m: int, d: int, **options) -> RandomFeatures:
    drawn = draw_features(m, d, generator=torch.Generator().manual_seed(1), **options)
    return RandomFeatures(*(None if x is None else x.cuda() for x in drawn[:2]), drawn.paired)


def random_inputs(b: int, h: int, t: int, d: int, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Return query, key, value and an upstream gradient as views of (b, t, h, d) memory, as a model makes them."""
    tensors = [torch.randn(b, t, h, d, device="cuda") * scale for _ in range(4)]
    return [x.to(dtype).transpose(1, 2) for x in tensors]


def run(attention: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return output and gradients of query, key and value."""
    *tensors, upstream = [x.to(dtype or x.dtype) for x in inputs]
    tensors = [x.detach().requires_grad_() for x in tensors]
    output = attention(*tensors)
    return [output.detach(), *torch.autograd.grad(output, tensors, upstream.to(output.dtype))]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())
