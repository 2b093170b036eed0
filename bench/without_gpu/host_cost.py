"""Measure what an eager call costs the host: microseconds until it returns, on inputs too small to keep a GPU busy.

    python bench host_cost                # on a GPU: the target is 40 us for a forward call, 80 where lengths vary
    python bench host_cost --output bench/results
    python bench host_cost --stub         # without a GPU: the kernels' calls, to a CUDA driver that does nothing

On a GPU calls are launched back to back and the queue is drained between batches, so that only the host is timed. The
stub leaves out what the driver takes for a launch (2 to 4 us), memory is that of the CPU's allocator, and time is that
of the process, whatever else the machine does. On a CPU the call's own work is in the number, which is then an upper
bound and no more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from harness.machine import description, file_stem
from harness.results_file import Row, append
from torch import Tensor
from torch.nn import functional as F

from favorcast.kernels import draw_features, favor_attention, series_decomposition, summarize

LENGTHS = {16: range(1, 257), 1024: range(1024, 2048)}
"""Of one head: both hops in one launch, and with the keys split over several programs in three. With those in whose
place they come in turn where lengths vary."""

HEAD_DIM = 16
"""Its dim; m = 32."""

BATCHES, CALLS = 15, 50
"""CALLS stay below the depth of a CUDA stream's queue (1024 launches), beyond which a launch waits for the device."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a call, and append them to the result file of the device if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stub", action="store_true", help="launch kernels to a driver that does nothing")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls a batch (default %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the result files; default: print only")
    options = parser.parse_args(arguments)
    if options.stub and options.output:
        parser.error("--stub measures no device: its times are printed, not added to result files")
    impl = "auto"
    if options.stub:
        from without_gpu.stub_driver import install_stub

        try:
            install_stub()
        except RuntimeError as error:
            parser.error(f"--stub: {error}")
        options.device, impl = "cpu", "triton"
    device, clock = torch.device(options.device), time.process_time if options.stub else time.perf_counter
    machine = description(device)
    rows = []
    for (op, length, passes, provider), call in calls(device, impl).items():
        p20, p50, p80 = host_microseconds(call, device, options.calls, clock)
        print(f"{op:28s} {length:5d} {passes:18s} {provider:10s} {p50:8.1f} us ({p20:.1f} - {p80:.1f})", flush=True)
        rows.append(_row(machine, op, length, passes, provider, (p20, p50, p80)))
    if options.output:
        append(options.output / f"{file_stem(device)}.csv", rows)
    return 0


def calls(device: torch.device, impl: str) -> dict[tuple[str, int, str, str], Callable[[], Any]]:
    """Return (op, length, pass, provider) to call."""
    features = draw_features(32, HEAD_DIM, device=device)
    attentions = {
        ("favor_attention", "favorcast"): lambda q, k, v: favor_attention(q, k, v, features, impl=impl),
        ("causal", "favorcast"): lambda q, k, v: favor_attention(q, k, v, features, is_causal=True, impl=impl),
    }
    if device.type == "cuda":  # elsewhere it would be its work that takes the time
        attentions["sdpa", "sdpa"] = F.scaled_dot_product_attention
    found: dict[tuple[str, int, str, str], Callable[[], Any]] = {}
    for length, others in LENGTHS.items():
        tensors = [torch.randn(1, 1, length, HEAD_DIM, device=device) for _ in range(3)]
        for (op, provider), attention in attentions.items():
            found |= {
                (f"host cost {op}", length, passes, provider): call for passes, call in _passes(attention, tensors)
            }
            varied = partial(_next_call, attention, _in_turn(others, device))
            found[f"host cost {op}", length, "forward, varying", provider] = varied
        state = partial(summarize, *tensors[1:], features, impl=impl)
        found["host cost summarize", length, "forward", "favorcast"] = state
        series = torch.randn(1, length, HEAD_DIM, device=device)
        split = partial(series_decomposition, impl=impl, kernel_size=9)
        found["host cost decomposition", length, "forward", "favorcast"] = partial(split, series)
    return found


def _passes(attention: Callable[..., Tensor], tensors: list[Tensor]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield a forward call, one whose gradients are recorded, and one with its backward."""
    learnt = [x.clone().requires_grad_() for x in tensors]
    upstream = torch.randn_like(tensors[0])
    yield "forward", lambda: attention(*tensors)
    yield "forward, recorded", lambda: attention(*learnt)
    yield "forward+backward", lambda: torch.autograd.grad(attention(*learnt), learnt, upstream)


def _in_turn(lengths: Sequence[int], device: torch.device) -> Iterator[list[Tensor]]:
    """Yield query, key and value of one length after the other, forever, in the same memory."""
    buffers = [torch.randn(max(lengths) * HEAD_DIM, device=device) for _ in range(3)]
    found = [[x[: length * HEAD_DIM].view(1, 1, length, HEAD_DIM) for x in buffers] for length in lengths]
    return cycle(found)


def _next_call(attention: Callable[..., Tensor], inputs: Iterator[list[Tensor]]) -> Tensor:
    return attention(*next(inputs))


def host_microseconds(
    call: Callable[[], Any], device: torch.device, count: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Return the 20 %, 50 % and 80 % quantiles over batches of a call's mean host time."""
    for _ in range(3):
        call()
    means = []
    for _ in range(BATCHES):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = clock()
        for _ in range(count):
            call()
        means.append((clock() - start) / count * 1e6)
    deciles = statistics.quantiles(means, n=10, method="inclusive")
    return deciles[1], deciles[4], deciles[7]


def _row(
    machine: Row, op: str, length: int, passes: str, provider: str, microseconds: tuple[float, float, float]
) -> Row:
    times = dict(zip(("p20_ms", "p50_ms", "p80_ms"), (f"{x * 1e-3:.4g}" for x in microseconds), strict=True))
    names = {"op": op, "provider": provider, "shape": f"b1-h1-l{length}-d{HEAD_DIM}-m32", "pass": passes}
    return {**machine, **names, **times, "dtype": "float32", "status": "ok", "message": "host time of an eager call"}


if __name__ == "__main__":
    sys.exit(main())
