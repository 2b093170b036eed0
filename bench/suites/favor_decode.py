"""One step of autoregressive decoding: a new token enters the state, one query a head reads it.

Dimension key: b batch, h heads, l tokens seen so far, d head dim, m features.

FAVOR attention keeps a state of fixed size; softmax attention reads a cache of l keys and values.
"""

from __future__ import annotations

import torch
from harness.cases import (
    OUR_TOLERANCE,
    Case,
    Expected,
    Impl,
    Passes,
    Prepared,
    Provider,
    Scale,
    Work,
    leaves,
    our_implementations,
)
from harness.favor_exact import AttentionShape, Mask, expected_attention
from harness.favor_peers import NAMES, Prepare
from suites.favor_attention import features_of
from torch import Tensor
from torch.nn import functional as F

from favorcast.kernels import stream_attention, summarize

PASSES = ("forward",)
GPU_SHAPES = [AttentionShape(8, 16, length, 64, 256) for length in (1024, 4096, 16384, 65536)]
SMALL_SHAPES = [AttentionShape(1, 8, length, 64, 256) for length in (1024, 4096, 16384)]
QUICK_SHAPES = [AttentionShape(1, 2, length, 16, 64) for length in (128, 512, 2048)]


def cases(scale: Scale) -> list[Case]:
    """Return the cases: steps after ever more tokens."""
    shapes = {"quick": QUICK_SHAPES, "cpu": SMALL_SHAPES, "gpu": GPU_SHAPES}[scale]
    return [Case("favor decode", shape, torch.bfloat16 if scale == "gpu" else torch.float32) for shape in shapes]


def inputs(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Return one query (b, h, 1, d), the keys and values (b, h, l, d) of which the last one is new."""
    shape = case.shape
    assert isinstance(shape, AttentionShape)
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(shape.b, shape.h, length, shape.d, generator=generator, device=device, dtype=case.dtype)
        for length in (1, shape.l, shape.l)
    )
    return {"query": query * 0.5, "key": key * 0.5, "value": value}


def providers(case: Case, device: torch.device) -> list[Provider]:
    """Return the implementations to compare; the first is the yardstick."""
    found = [
        Provider(name, _ours(impl, case), tolerance=OUR_TOLERANCE[case.dtype], waits=impl == "reference")
        for name, impl in our_implementations(device).items()
    ]
    return [*found, Provider("sdpa with a cache", _softmax, target="softmax")]


def expected(case: Case, inputs: dict[str, Tensor], target: str) -> Expected:
    """Return the exact output of the query."""
    return expected_attention(inputs, target, Mask(False), features_of(case).projection)


def work(case: Case, passes: Passes, target: str) -> Work:
    """Return what a step needs: the state read and written, or the whole cache read."""
    shape, size = case.shape, case.dtype.itemsize
    assert isinstance(shape, AttentionShape)
    if target == "softmax":
        one_head = Work(size * (2 * shape.l + 2) * shape.d, 4 * shape.l * shape.d, shape.l)
    else:
        state = 4 * shape.m * (shape.d + 1)
        one_head = Work(2 * state + size * (4 + shape.m) * shape.d, 8 * shape.m * shape.d, 2 * shape.m)
    return one_head.times(shape.b * shape.h)


def _ours(impl: Impl, case: Case) -> Prepare:
    drawn = features_of(case)

    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        query, key, value = inputs.values()
        features = drawn._replace(projection=drawn.projection.to(query.device))
        past = summarize(key[:, :, :-1], value[:, :, :-1], features, impl=impl)

        def call() -> Tensor:
            return stream_attention(query, key[:, :, -1:], value[:, :, -1:], past, features, impl=impl).output

        return Prepared(call, {})

    return prepare


def _softmax(inputs: dict[str, Tensor]) -> Prepared:
    query, key, value = leaves(inputs, *NAMES).values()
    return Prepared(lambda: F.scaled_dot_product_attention(query, key, value), {})
