"""The moving-average decomposition against the form that forecasting models use: repeated ends and AvgPool1d.

Dimension key: b batch, l time, c channel, k kernel size, n kernel sizes.

Plain, with missing values, and as a mixture of kernel sizes with weights of its own at every step, as FEDformer's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from harness.cases import (
    Case,
    Expected,
    Impl,
    Passes,
    Prepared,
    Provider,
    Scale,
    Tolerance,
    Work,
    leaves,
    our_implementations,
)
from torch import Tensor
from torch.nn import functional as F

from favorcast.kernels import series_decomposition

LAST = (-1, slice(None), slice(-8, None))
"""Where the gate compares: the last series, its last channels."""

ROUNDING = {torch.float32: Tolerance(1e-5, 1e-5), torch.bfloat16: Tolerance(2e-2, 2e-2)}
"""Sums of k terms, rounded once to the dtype; AvgPool1d's form is held to the same."""


class SeriesShape(NamedTuple):
    """b series of l steps and c channels, averaged over k steps."""

    b: int
    l: int  # noqa: E741 - the dimension key's letter
    c: int
    k: int

    def __str__(self) -> str:
        return f"b{self.b}-l{self.l}-c{self.c}-k{self.k}"

    @property
    def length(self) -> int:
        return self.l


PLAIN, MASKED, MIXTURE = "decomposition", "decomposition masked", "decomposition mixture"
OBSERVED = 0.9
"""Share of the values that a mask leaves: at k = 24 and more no window is without."""

SHORTER = (7, 12)
"""Kernel sizes of a mixture beside the shape's."""

QUICK_SHAPES = [SeriesShape(4, length, 16, 24) for length in (96, 336, 1344)]
BATCH_SHAPES = [SeriesShape(32, length, 321, 25) for length in (96, 336, 720)]
"""A training batch of forecasting's largest table with 321 columns."""

CPU_SHAPES = [
    *BATCH_SHAPES,
    SeriesShape(32, 336, 49, 25),
    SeriesShape(8, 4096, 64, 25),
    SeriesShape(1, 65536, 32, 1025),
]
LARGE_SHAPES = [SeriesShape(64, 8192, 256, k) for k in (3, 25, 51, 168, 1025, 4097)]
"""268 MB in bfloat16: far beyond any cache."""


def cases(scale: Scale) -> list[Case]:
    """Return the cases: float32, and bfloat16 too on a GPU."""
    if scale != "gpu":
        shapes = QUICK_SHAPES if scale == "quick" else CPU_SHAPES
        found = [Case(PLAIN, shape, torch.float32) for shape in shapes]
        return found + [Case(op, shapes[0], torch.float32) for op in (MASKED, MIXTURE)]
    found = [Case(PLAIN, shape, torch.bfloat16) for shape in LARGE_SHAPES]
    shapes = [*BATCH_SHAPES, CPU_SHAPES[3], LARGE_SHAPES[1]]
    found += [Case(PLAIN, shape, torch.float32) for shape in shapes]
    return found + [Case(op, LARGE_SHAPES[1], torch.bfloat16) for op in (MASKED, MIXTURE)]


def inputs(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Return the series (b, l, c), and what the op needs beside it: mask (b, l, c), weights (b, l, c, n)."""
    shape = _shape(case)
    generator = torch.Generator(device).manual_seed(0)
    found = {"series": torch.randn(shape[:3], generator=generator, device=device, dtype=case.dtype)}
    if case.op == MASKED:
        found["mask"] = torch.rand(shape[:3], generator=generator, device=device) < OBSERVED
    if case.op == MIXTURE:
        logits = torch.randn(*shape[:3], len(_sizes(case)), generator=generator, device=device, dtype=case.dtype)
        found["weights"] = logits.softmax(-1)
    return found


def providers(case: Case, device: torch.device) -> list[Provider]:
    """Return the implementations to compare; the first is the yardstick."""
    sizes, tolerance = _sizes(case), ROUNDING[case.dtype]
    kernel_size = sizes if case.op == MIXTURE else sizes[0]

    def prepare_with(decompose):
        def prepare(inputs: dict[str, Tensor]) -> Prepared:
            found = leaves(inputs, *(name for name in inputs if name != "mask"))
            options = {name: found.get(name, inputs.get(name)) for name in ("mask", "weights")}
            return Prepared(lambda: decompose(found["series"], **options), found)

        return prepare

    def ours(impl: Impl):
        return prepare_with(lambda x, **options: series_decomposition(x, kernel_size, impl=impl, **options))

    def pooled(x: Tensor, **options: Tensor | None) -> tuple[Tensor, Tensor]:
        return average_pooling(x, sizes, **options)

    def compiled(inputs: dict[str, Tensor]) -> Prepared:
        return prepare_with(torch.compile(pooled, dynamic=False))(inputs)

    found = [Provider(name, ours(impl), PLAIN, tolerance) for name, impl in our_implementations(device).items()]
    found.append(Provider("AvgPool1d", prepare_with(pooled), PLAIN, tolerance))
    if device.type == "cuda":
        found.append(Provider("AvgPool1d compiled", compiled, PLAIN, tolerance, group="peers"))
    return found


def average_pooling(
    series: Tensor, sizes: tuple[int, ...], *, mask: Tensor | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (seasonal, trend) as Autoformer and DLinear compute them, with BasicTS's longer end for even sizes.

    A mask divides pooled values by the pooled mask; several sizes are mixed as FEDformer does.
    """
    observed = series if mask is None else series.masked_fill(~mask, 0.0)
    trends = [_pool(observed, k) if mask is None else _pool(observed, k) / _pool(mask.to(series), k) for k in sizes]
    trend = trends[0] if weights is None else (torch.stack(trends, -1) * weights).sum(-1)
    seasonal = series - trend
    return (seasonal if mask is None else seasonal.masked_fill(~mask, 0.0)), trend


def _pool(series: Tensor, kernel_size: int) -> Tensor:
    before = (kernel_size - 1) // 2
    first, last = series[:, :1].expand(-1, before, -1), series[:, -1:].expand(-1, kernel_size - 1 - before, -1)
    padded = torch.cat([first, series, last], 1)
    return F.avg_pool1d(padded.transpose(1, 2), kernel_size, stride=1).transpose(1, 2)


def expected(case: Case, inputs: dict[str, Tensor], target: str) -> Expected:
    """Return the exact parts and gradients of the last series' last channels."""
    picked = {name: x[LAST][None].detach() for name, x in inputs.items()}
    exact = {name: x.double().requires_grad_() for name, x in picked.items() if name != "mask"}
    options = {name: exact.get(name, picked.get(name)) for name in ("mask", "weights")}
    parts = average_pooling(exact["series"], _sizes(case), **options)
    generator = torch.Generator().manual_seed(2)
    upstream, given = [], []
    for part in parts:
        given.append(torch.randn(part.shape[1:], generator=generator).to(inputs["series"]))
        upstream.append(torch.zeros_like(inputs["series"]))
        upstream[-1][LAST] = given[-1]
    gradients = torch.autograd.grad(parts, list(exact.values()), [x.double()[None] for x in given])
    found = {name: (LAST, gradient[0]) for name, gradient in zip(exact, gradients, strict=True)}
    return Expected(tuple(upstream), [(LAST, part[0].detach()) for part in parts], found)


def work(case: Case, passes: Passes, target: str) -> Work:
    """Return one read and two writes forward, two reads and one write backward, and an addition or two a value.

    A mask is read in either pass; weights are read in either, and backward their gradients are written and x is read.
    """
    shape, size = _shape(case), case.dtype.itemsize
    mask, weights = int(case.op == MASKED), len(_sizes(case)) if case.op == MIXTURE else 0
    forward = 3 * size + mask + weights * size
    backward = 3 * size + mask + (2 * weights + 1) * size * bool(weights)
    moved = forward if passes == "forward" else forward + backward
    return Work(moved * shape.b * shape.l * shape.c, 0, 0)


def _sizes(case: Case) -> tuple[int, ...]:
    k = _shape(case).k
    return (*SHORTER, k) if case.op == MIXTURE else (k,)


def _shape(case: Case) -> SeriesShape:
    assert isinstance(case.shape, SeriesShape)
    return case.shape
