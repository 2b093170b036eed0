"""The moving-average decomposition against the form that forecasting models use: repeated ends and AvgPool1d.

Dimension key: b batch, l time, c channel, k kernel size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from cases import Case, Expected, Impl, Passes, Prepared, Provider, Scale, Tolerance, Work, leaves, our_implementations
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
        return [Case("decomposition", shape, torch.float32) for shape in shapes]
    found = [Case("decomposition", shape, torch.bfloat16) for shape in LARGE_SHAPES]
    shapes = [*BATCH_SHAPES, CPU_SHAPES[3], LARGE_SHAPES[1]]
    return found + [Case("decomposition", shape, torch.float32) for shape in shapes]


def inputs(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Return the series (b, l, c)."""
    shape = _shape(case)
    generator = torch.Generator(device).manual_seed(0)
    return {"series": torch.randn(shape[:3], generator=generator, device=device, dtype=case.dtype)}


def providers(case: Case, device: torch.device) -> list[Provider]:
    """Return the implementations to compare; the first is the yardstick."""
    k, tolerance = _shape(case).k, ROUNDING[case.dtype]

    def prepare_with(decompose):
        def prepare(inputs: dict[str, Tensor]) -> Prepared:
            found = leaves(inputs, "series")
            return Prepared(lambda: decompose(found["series"]), found)

        return prepare

    def ours(impl: Impl):
        return prepare_with(lambda x: series_decomposition(x, k, impl=impl))

    def compiled(inputs: dict[str, Tensor]) -> Prepared:
        return prepare_with(torch.compile(lambda x: average_pooling(x, k), dynamic=False))(inputs)

    found = [
        Provider(name, ours(impl), "decomposition", tolerance) for name, impl in our_implementations(device).items()
    ]
    found.append(Provider("AvgPool1d", prepare_with(lambda x: average_pooling(x, k)), "decomposition", tolerance))
    if device.type == "cuda":
        found.append(Provider("AvgPool1d compiled", compiled, "decomposition", tolerance, group="peers"))
    return found


def average_pooling(series: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Return (seasonal, trend) as Autoformer and DLinear compute them, with BasicTS's longer end for even sizes."""
    before = (kernel_size - 1) // 2
    first, last = series[:, :1].expand(-1, before, -1), series[:, -1:].expand(-1, kernel_size - 1 - before, -1)
    padded = torch.cat([first, series, last], 1)
    trend = F.avg_pool1d(padded.transpose(1, 2), kernel_size, stride=1).transpose(1, 2)
    return series - trend, trend


def expected(case: Case, inputs: dict[str, Tensor], target: str) -> Expected:
    """Return the exact parts and gradient of the last series' last channels."""
    series = inputs["series"][LAST].detach().double().requires_grad_()
    parts = [part[0] for part in average_pooling(series[None], _shape(case).k)]
    generator = torch.Generator().manual_seed(2)
    upstream, picked = [], []
    for part in parts:
        picked.append(torch.randn(part.shape, generator=generator).to(inputs["series"]))
        upstream.append(torch.zeros_like(inputs["series"]))
        upstream[-1][LAST] = picked[-1]
    (gradient,) = torch.autograd.grad(parts, series, [x.double() for x in picked])
    return Expected(tuple(upstream), [(LAST, part.detach()) for part in parts], {"series": (LAST, gradient)})


def work(case: Case, passes: Passes, target: str) -> Work:
    """Return one read and two writes forward, two reads and one write backward, and an addition or two a value."""
    shape = _shape(case)
    values = shape.b * shape.l * shape.c
    forward = Work(3 * case.dtype.itemsize * values, 0, 0)
    return forward if passes == "forward" else forward.times(2)


def _shape(case: Case) -> SeriesShape:
    assert isinstance(case.shape, SeriesShape)
    return case.shape
