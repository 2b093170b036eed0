"""The whole layer, projections included: FavorAttention, the same with performer-pytorch inside, and softmax attention.

Dimension key: b batch, h heads, l length, d head dim, m features; the embedding is h d wide.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from harness.attention_swap import attention, performer_attention, with_impl
from harness.cases import (
    Case,
    Expected,
    Passes,
    Prepared,
    Provider,
    Scale,
    Tolerance,
    Work,
    leaves,
    our_implementations,
)
from harness.favor_exact import AttentionShape, favor_work, softmax_work
from torch import Tensor, nn

from favorcast.kernels import FavorAttention

ROUNDING = {torch.float32: Tolerance(1e-3, 1e-3), torch.bfloat16: Tolerance(5e-2, 1e-1)}
"""Of a layer: three products after one another (float32 on a GPU: the projections' own precision is torch's)."""

PERFORMER_TOLERANCE = Tolerance(0.3, 0.5)
PICKED = 16
CPU_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Around the length from which FavorAttention is faster than softmax attention."""

SOFTMAX_LENGTH = {"cuda": 16384, "cpu": 4096}
"""Softmax attention in float64, to gate against, is quadratic."""


def cases(scale: Scale) -> list[Case]:
    """Return the cases: an embedding of 512 at lengths of forecasting and beyond."""
    if scale == "quick":
        return [Case("layer", AttentionShape(1, 2, length, 16, 64), torch.float32) for length in (128, 512, 2048)]
    if scale == "cpu":
        return [Case("layer", AttentionShape(1, 8, length, 64, 256), torch.float32) for length in CPU_LENGTHS]
    return [Case("layer", AttentionShape(8, 8, length, 64, 256), torch.bfloat16) for length in (336, 1024, 4096, 16384)]


def inputs(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Return x (b, l, h d), which projects to queries and keys of deviation 1/2, as in the attention bench."""
    shape = _shape(case)
    generator = torch.Generator(device).manual_seed(0)
    size = (shape.b, shape.l, shape.h * shape.d)
    return {"x": torch.randn(size, generator=generator, device=device, dtype=case.dtype) * 0.5**0.5}


def providers(case: Case, device: torch.device) -> list[Provider]:
    """Return the implementations to compare; the first is the yardstick."""
    found = [
        Provider(name, _favor(case, lambda impl=impl: with_impl(impl)), tolerance=ROUNDING[case.dtype])
        for name, impl in our_implementations(device).items()
    ]
    found.append(Provider("performer-pytorch", _favor(case, performer_attention), tolerance=PERFORMER_TOLERANCE))
    skip = "quadratic" if case.shape.length > SOFTMAX_LENGTH[device.type] else None
    found.append(Provider("nn.MultiheadAttention", _softmax(case), "softmax", ROUNDING[case.dtype], skip=skip))
    return found


def layer_of(case: Case, target: str) -> FavorAttention | nn.MultiheadAttention:
    """Return the layer with its seeded weights, on the CPU in float32."""
    shape = _shape(case)
    width = shape.h * shape.d
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if target == "softmax":
            return nn.MultiheadAttention(width, shape.h, batch_first=True)
        return FavorAttention(width, shape.h, batch_first=True, num_features=shape.m)


def expected(case: Case, inputs: dict[str, Tensor], target: str) -> Expected:
    """Return the exact output and gradient of x, for an upstream gradient at some steps of the last batch element."""
    x = inputs["x"]
    length = x.shape[1]
    rows = torch.linspace(0, length - 1, min(PICKED, length), device=x.device).round().long().unique()
    layer = layer_of(case, target).to(x.device).double()
    exact = x[-1:].detach().double().requires_grad_()
    output = layer(exact, exact, exact, need_weights=False)[0][0, rows]
    picked = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(x)
    (gradient,) = torch.autograd.grad(output, exact, picked.double())
    upstream = torch.zeros_like(x)
    upstream[-1, rows] = picked
    return Expected((upstream,), [((-1, rows), output.detach())], {"x": ((-1,), gradient[0])})


def work(case: Case, passes: Passes, target: str) -> Work:
    """Return the work of attention and of four projections; weights are read once a pass and written once."""
    shape, size = _shape(case), case.dtype.itemsize
    width, tokens = shape.h * shape.d, shape.b * shape.l
    forward = Work(size * (8 * tokens * width + 4 * width**2), 8 * tokens * width**2, 0)
    projections = forward if passes == "forward" else forward.times(3)
    if target == "softmax":
        return projections + softmax_work(shape, passes, False, size)
    return projections + favor_work(shape, passes, False, size, paired=True)


def _favor(case: Case, function: Callable[[], Any]):
    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        inside = function()
        run, found = _ready(case, "favor", inputs)

        def call() -> Tensor:
            with attention(inside):
                return run()

        return Prepared(call, found)

    return prepare


def _softmax(case: Case):
    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        return Prepared(*_ready(case, "softmax", inputs))

    return prepare


def _ready(case: Case, target: str, inputs: dict[str, Tensor]) -> tuple[Callable[[], Tensor], dict[str, Tensor]]:
    """Return the layer's call and what it is differentiated in: x and the parameters."""
    layer = copy.deepcopy(layer_of(case, target)).to(inputs["x"].device, case.dtype)
    found = leaves(inputs, "x")
    x = found["x"]
    found |= dict(layer.named_parameters())
    return lambda: layer(x, x, x, need_weights=False)[0], found


def _shape(case: Case) -> AttentionShape:
    assert isinstance(case.shape, AttentionShape)
    return case.shape
