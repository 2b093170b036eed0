"""Measure what an eager call costs the host: microseconds until it returns, on inputs too small to keep a GPU busy.

    python bench/host_cost.py                # on a GPU: the target is 15 us for a forward call
    python bench/host_cost.py --output bench/results

On a GPU calls are launched back to back and the queue is drained between batches, so that only the host is timed. On a
CPU the call's own work is in the number, which is then an upper bound and no more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import description, file_stem
from results_file import Row, append
from torch.nn import functional as F

from favorcast.kernels import draw_features, favor_attention, series_decomposition, summarize

SHAPE = (1, 1, 16, 16)
"""b, h, l, d of the inputs; m = 32."""

BATCHES, CALLS = 15, 50
"""CALLS stay below the depth of a CUDA stream's queue (1024 launches), beyond which a launch waits for the device."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a call, and append them to the result file of the device if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls a batch (default %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the result files; default: print only")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    machine = description(device)
    rows = []
    for (op, passes, provider), call in calls(device).items():
        p20, p50, p80 = host_microseconds(call, device, options.calls)
        print(f"{op:28s} {passes:18s} {provider:20s} {p50:8.1f} us ({p20:.1f} - {p80:.1f})", flush=True)
        rows.append(_row(machine, op, passes, provider, (p20, p50, p80)))
    if options.output:
        append(options.output / f"{file_stem(device)}.csv", rows)
    return 0


def calls(device: torch.device) -> dict[tuple[str, str, str], Callable[[], Any]]:
    """Return (op, pass, provider) to call."""
    query, key, value = (torch.randn(SHAPE, device=device) for _ in range(3))
    features = draw_features(32, SHAPE[-1], device=device)
    series = torch.randn(1, 96, 16, device=device)
    learnt = [x.clone().requires_grad_() for x in (query, key, value)]
    upstream = torch.randn_like(query)

    def training(attention: Callable[..., torch.Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(attention(*learnt), learnt, upstream)

    def favor(q, k, v):
        return favor_attention(q, k, v, features)

    return {
        ("host cost favor_attention", "forward", "favorcast"): lambda: favor(query, key, value),
        ("host cost favor_attention", "forward, recorded", "favorcast"): lambda: favor(*learnt),
        ("host cost favor_attention", "forward+backward", "favorcast"): training(favor),
        ("host cost summarize", "forward", "favorcast"): lambda: summarize(key, value, features),
        ("host cost decomposition", "forward", "favorcast"): lambda: series_decomposition(series, 25),
        ("host cost sdpa", "forward", "sdpa"): lambda: F.scaled_dot_product_attention(query, key, value),
        ("host cost sdpa", "forward+backward", "sdpa"): training(F.scaled_dot_product_attention),
    }


def host_microseconds(call: Callable[[], Any], device: torch.device, count: int) -> tuple[float, float, float]:
    """Return the 20 %, 50 % and 80 % quantiles over batches of a call's mean host time."""
    for _ in range(3):
        call()
    means = []
    for _ in range(BATCHES):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        means.append((time.perf_counter() - start) / count * 1e6)
    deciles = statistics.quantiles(means, n=10, method="inclusive")
    return deciles[1], deciles[4], deciles[7]


def _row(machine: Row, op: str, passes: str, provider: str, microseconds: tuple[float, float, float]) -> Row:
    b, h, length, d = SHAPE
    times = dict(zip(("p20_ms", "p50_ms", "p80_ms"), (f"{x * 1e-3:.4g}" for x in microseconds), strict=True))
    names = {"op": op, "provider": provider, "shape": f"b{b}-h{h}-l{length}-d{d}-m32", "pass": passes}
    return {**machine, **names, **times, "dtype": "float32", "status": "ok", "message": "host time of an eager call"}


if __name__ == "__main__":
    sys.exit(main())
