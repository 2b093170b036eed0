"""The moving-average decomposition against its AvgPool1d form: shapes, inputs, providers and a byte model.

    python bench/bench_series_decomposition.py            one row a shape, pass and provider
    python bench/bench_series_decomposition.py --quick    small shapes, to see that it runs

Dimension key: b batch, l time, c channel, k kernel size.

Least traffic in elements of the series: forward reads 1 and writes 2, forward and backward together read 3 and write 3
(2 upstream gradients, d_x). `of copy` is that traffic over the time, as a share of the bandwidth of a copy of the same
series on the same device, measured in turn with the providers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from favorcast.kernels import series_decomposition

Provider = Callable[[Tensor], tuple[Tensor, Tensor]]

GATE = 1e-5
"""Largest allowed error against float64 in units of the largest value; times 1000 for half precision."""

FORWARD_ELEMENTS = 3
TRAINING_ELEMENTS = 6


class Shape(NamedTuple):
    """A series (b, l, c) and its window."""

    b: int
    l: int  # noqa: E741 - the dimension key's letter
    c: int
    k: int

    def __str__(self) -> str:
        return f"b{self.b}-l{self.l}-c{self.c}-k{self.k}"


CPU_SHAPES = [Shape(32, 336, 49, 25), Shape(8, 4096, 64, 25), Shape(1, 65536, 32, 1025)]
CUDA_SHAPES = [Shape(32, 336, 49, 25), *(Shape(64, 8192, 256, k) for k in (3, 25, 51, 168, 1025, 4097))]
QUICK_SHAPES = [Shape(2, 100, 5, 24), Shape(1, 300, 3, 65)]


def inputs(shape: Shape, device: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return x (b, l, c), standard normal."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape.b, shape.l, shape.c, generator=generator, device=device, dtype=dtype)


def pooled(x: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Decompose as Autoformer and DLinear do, with BasicTS's ends for even sizes: pad, AvgPool1d, subtract."""
    before = (kernel_size - 1) // 2
    ends = [x[:, :1].repeat(1, before, 1), x, x[:, -1:].repeat(1, kernel_size - 1 - before, 1)]
    trend = F.avg_pool1d(torch.cat(ends, 1).transpose(1, 2), kernel_size, 1).transpose(1, 2)
    return x - trend, trend


def providers(shape: Shape, device: str) -> dict[str, Provider]:
    """Return the implementations to compare on one shape; compiled ones and the kernels on CUDA only."""
    k = shape.k
    found: dict[str, Provider] = {
        "favorcast": lambda x: series_decomposition(x, k),
        "avg-pool": lambda x: pooled(x, k),
    }
    if device == "cuda":
        found["favorcast-reference"] = lambda x: series_decomposition(x, k, impl="reference")
        found["avg-pool-compiled"] = torch.compile(lambda x: pooled(x, k))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench and print its rows; returns 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes and few repetitions")
    parser.add_argument("--repetitions", type=int, default=15, help="timed calls a provider (default %(default)s)")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shapes = QUICK_SHAPES if options.quick else CUDA_SHAPES if device == "cuda" else CPU_SHAPES
    for shape in shapes:
        if not _measure(shape, device, dtype, 2 if options.quick else options.repetitions):
            return 1
    return 0


def _measure(shape: Shape, device: str, dtype: torch.dtype, repetitions: int) -> bool:
    x = inputs(shape, device, dtype)
    found = providers(shape, device)
    error = _error(found["favorcast"], x, shape)
    gate = GATE * (1000 if dtype != torch.float32 else 1)
    if not error <= gate:
        print(f"{shape}: WRONG, error {error:.1e} above {gate:.0e}", file=sys.stderr)
        return False
    upstream = [inputs(shape, device, dtype, seed) for seed in (1, 2)]
    leaf = x.clone().requires_grad_()
    target = torch.empty_like(x)
    for name, elements in (("forward", FORWARD_ELEMENTS), ("forward+backward", TRAINING_ELEMENTS)):
        calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(x)}
        for provider, f in found.items():
            if name == "forward":
                calls[provider] = lambda f=f: f(x)
            else:
                calls[provider] = lambda f=f: torch.autograd.grad(f(leaf), leaf, upstream)
        times = _interleaved(calls, repetitions, device)
        copy_bandwidth = 2 * x.nbytes / times["copy"]
        for provider in found:
            share = elements * x.nbytes / times[provider] / copy_bandwidth
            against = times["avg-pool"] / times[provider]
            print(
                f"{name:17s} {shape!s:22s} {provider:20s} {times[provider] * 1e3:9.3f} ms "
                f"{share:6.1%} of copy {against:6.2f} x avg-pool",
                flush=True,
            )
    return True


def _error(provider: Provider, x: Tensor, shape: Shape) -> float:
    few = x[:1, :, :2]
    exact = pooled(few.double(), shape.k)[1]
    return ((provider(few)[1].double() - exact).abs().max() / few.abs().max()).item()


def _interleaved(calls: dict[str, Callable[[], object]], repetitions: int, device: str) -> dict[str, float]:
    """Return the median seconds of each call, all of them in turn."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(2, repetitions)):
        for name, call in calls.items():
            times[name].append(_seconds(call, device))
    return {name: statistics.median(samples) for name, samples in times.items()}


def _seconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


if __name__ == "__main__":
    sys.exit(main())
