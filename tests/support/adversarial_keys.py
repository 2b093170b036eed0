"""Inputs that break stabilisers of linear attention, and the error budget they are judged by.

Dimension key: b batch, h heads, t tokens, d head dim, m features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from favor_textbook import qkv
from torch import Tensor

from favorcast.kernels import draw_features
from favorcast.kernels.favor.definition import attend_definition, causal_definition, summarize_definition
from favorcast.kernels.favor.types import FeatureSpace

LENGTH, HEAD_DIM, NUM_FEATURES = 150, 16, 64
PROJECTION = draw_features(
    NUM_FEATURES, HEAD_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float32
).projection
ON_LANDMARKS = PROJECTION * HEAD_DIM**0.25
"""Keys that, scaled, are the landmarks themselves: the largest features there are."""

Qkv = tuple[Tensor, Tensor, Tensor]


class Gradients(NamedTuple):
    output: Tensor
    d_query: Tensor
    d_key: Tensor
    d_value: Tensor


def normal() -> Qkv:
    return qkv(b=1, t=LENGTH, d=HEAD_DIM, dtype=torch.float32, seed=3)


def _ramp(low: float, high: float) -> Tensor:
    return torch.logspace(math.log10(low), math.log10(high), LENGTH).unsqueeze(-1)


def _rows(at: slice, change: Callable[[Tensor], Tensor | float]) -> Qkv:
    q, k, v = normal()
    k[:, :, at] = change(k[:, :, at])
    return q, k, v


def _far_keys_then_landmarks() -> Qkv:
    q, k, v = normal()
    k[:, :, :75] *= 50
    k[:, :, 75:] = ON_LANDMARKS.repeat(2, 1)[:75]
    return q, k, v


def _scaled(query: float = 1.0, key: Tensor | float = 1.0, value: float = 1.0) -> Qkv:
    q, k, v = normal()
    return q * query, k * key, v * value


def _shifted(offset: Tensor | float, opposite: bool) -> Qkv:
    q, k, v = normal()
    return (-3 * q.abs() if opposite else q), k + offset, v


def _one_point(norm: float, spread: float) -> Qkv:
    q, k, v = normal()
    return q, norm * k[:, :, :1] + spread * k, v


ADVERSARIAL: dict[str, Callable[[], Qkv]] = {
    "normal": normal,
    "norms-x4": lambda: _scaled(4, 4),
    "keys-grow-100x": lambda: _scaled(key=_ramp(1, 100)),
    "keys-shrink-30x": lambda: _scaled(key=_ramp(30, 1)),
    "keys-shrink-100x": lambda: _scaled(key=_ramp(100, 1)),
    "late-key-x50": lambda: _rows(slice(100, 101), lambda k: 50 * k),
    "late-key-x1e6": lambda: _rows(slice(100, 101), lambda k: 1e6 * k),
    "late-key-x1e18": lambda: _rows(slice(100, 101), lambda k: 1e18 * k),
    "first-key-x50": lambda: _rows(slice(0, 1), lambda k: 50 * k),
    "first-key-x1e6": lambda: _rows(slice(0, 1), lambda k: 1e6 * k),
    "first-8-keys-x50": lambda: _rows(slice(0, 8), lambda k: 50 * k),
    "key-on-landmark": lambda: _rows(slice(100, 101), lambda k: ON_LANDMARKS[5].expand_as(k)),
    "far-keys-then-landmarks": _far_keys_then_landmarks,
    "mean-5-queries-opposite": lambda: _shifted(5.0, True),
    "alternating-mean-6": lambda: _shifted(6 * (-1.0) ** torch.arange(LENGTH).unsqueeze(-1), False),
    "queries-x100": lambda: _scaled(query=100),
    "constant": lambda: _one_point(1.0, 0.0),
    "equal-keys-of-norm-60": lambda: _one_point(15.0, 0.0),
    "near-keys-of-norm-200": lambda: _one_point(50.0, 0.02),
    "zero-keys": lambda: _scaled(0.0, 0.0),
    "all-x1e3": lambda: _scaled(1e3, 1e3),
    "all-x1e9": lambda: _scaled(1e9, 1e9),
    "all-x1e17": lambda: _scaled(1e17, 1e17),
    "denormal": lambda: _scaled(1e-40, 1e-40),
    "values-x1e15": lambda: _scaled(value=1e15),
}


def upstream() -> Tensor:
    return qkv(b=1, t=LENGTH, d=HEAD_DIM, dtype=torch.float32, seed=9)[0]


def definition_gradients(inputs: Qkv, dtype: torch.dtype, is_causal: bool, tokens_per_step: int) -> Gradients:
    """Return output and gradients of the plain torch definition, computed in `dtype`."""
    space = FeatureSpace(PROJECTION.to(dtype), None, HEAD_DIM**-0.5, "exponential")

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if is_causal:
            return causal_definition(q, k, v, None, None, space, tokens_per_step)
        return attend_definition(q, *summarize_definition(k, v, None, space), space)

    return differentiate(attention, inputs, dtype)


def differentiate(attention: Callable[..., Tensor], inputs: Qkv, dtype: torch.dtype) -> Gradients:
    tensors = [x.to(dtype).detach().requires_grad_() for x in inputs]
    output = attention(*tensors)
    return Gradients(output.detach(), *torch.autograd.grad(output, tensors, upstream().to(output.dtype)))


def natural_scales(inputs: Qkv) -> Gradients:
    """Return what rounding is relative to: the size of the terms that a result is a difference of.

    A saturated row has d_query = d_key = 0 as the difference of terms of size |do| |v| |w - k|, which no finite
    precision resolves; with a key of norm 1e6 the rounding of that difference is large, and only for that key.
    """
    _, k, v = (x.double() for x in inputs)
    reach = upstream().double().norm(dim=-1).max() * v.norm(dim=-1).max() * HEAD_DIM**-0.25
    radius = PROJECTION.double().norm(dim=-1).max()
    key_norm = k.norm(dim=-1, keepdim=True) * HEAD_DIM**-0.25
    size = v.abs().max()
    return Gradients(size, reach * radius, reach * (radius + key_norm), upstream().double().abs().max())


def assert_within_budget(result: Gradients, plain: Gradients, exact: Gradients, scales: Gradients) -> None:
    """Assert |result - exact| <= 2 max |plain float32 - exact| + 16 eps scale, elementwise."""
    eps = torch.finfo(torch.float32).eps
    for name, got, reference, want, scale in zip(Gradients._fields, result, plain, exact, scales, strict=True):
        assert got.isfinite().all(), f"{name} is not finite"
        error = (got.double() - want).abs()
        allowed = 2 * (reference.double() - want).abs().max() + 16 * eps * (scale + want.abs().max())
        assert bool((error <= allowed).all()), f"{name}: error {error.max():.2e}, allowed {allowed.max():.2e}"
