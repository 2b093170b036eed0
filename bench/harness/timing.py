"""Clocks: interleaved latencies of several calls, and the memory one call takes.

All calls of a case are timed in turn, again and again, so that whatever else the machine does meets all of them.
On a GPU each call starts with a cold L2 cache, and there are two latencies: of the eager call (host included, where it
is the slower side) and of the same call replayed as a CUDA graph (the device's side alone).
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch

Call = Callable[[], Any]
CACHE_BYTES = 256 << 20
"""Written before each timed call to evict L2 (50 MB on an H200)."""

WARM_UP_CALLS = 2
FEWEST_ROUNDS, MOST_ROUNDS = 5, 100


class Latency(NamedTuple):
    """Quantiles in milliseconds."""

    p20: float
    p50: float
    p80: float


class Clock(Protocol):
    """Times one call; `read` may wait for the device, `start` must not."""

    def start(self, call: Call) -> Any: ...
    def read(self, ticket: Any) -> float: ...


class HostClock:
    """Wall clock, for calls that have finished when they return."""

    def start(self, call: Call) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def read(self, ticket: float) -> float:
        """Return milliseconds."""
        return ticket * 1e3


class CudaClock:
    """CUDA events around a call, after the L2 cache has been overwritten."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)

    def start(self, call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cache.zero_()
        begin.record()
        call()
        end.record()
        return begin, end

    def read(self, ticket: tuple[torch.cuda.Event, torch.cuda.Event]) -> float:
        """Return milliseconds."""
        begin, end = ticket
        end.synchronize()
        return begin.elapsed_time(end)


def clock_of(device: torch.device) -> Clock:
    """Return the clock for calls on a device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


def warm_up(call: Call, clock: Clock) -> float:
    """Call until compiled and cached, and return the milliseconds of the last call."""
    for _ in range(WARM_UP_CALLS - 1):
        call()
    return clock.read(clock.start(call))


def rounds_for(estimates: dict[str, float], budget_ms: float) -> int:
    """Return how many rounds over all calls fit a budget: at least 5, at most 100."""
    return int(min(MOST_ROUNDS, max(FEWEST_ROUNDS, budget_ms / max(sum(estimates.values()), 1e-6))))


def interleaved(calls: dict[str, Call], rounds: int, clock: Clock) -> dict[str, Latency]:
    """Time all calls in turn, `rounds` times, and return the quantiles of each."""
    tickets: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            tickets[name].append(clock.start(call))
    return {name: latency([clock.read(ticket) for ticket in found]) for name, found in tickets.items()}


def latency(milliseconds: list[float]) -> Latency:
    """Return the quantiles of some timings."""
    if len(milliseconds) < 2:
        return Latency(*(3 * milliseconds))
    deciles = statistics.quantiles(milliseconds, n=10, method="inclusive")
    return Latency(deciles[1], deciles[4], deciles[7])


def capture(call: Call, device: torch.device) -> torch.cuda.CUDAGraph:
    """Record a warmed-up call as a CUDA graph; raises what torch raises if it cannot be recorded."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph):
            call()
    finally:
        torch.cuda.set_stream(stream)  # torch leaves the capture's own one current if the capture fails
    return graph


def peak_mib(call: Call, device: torch.device) -> float | None:
    """Return what one call allocates at its peak beyond what was there before (MiB), its results included."""
    if device.type != "cuda":
        return _host_peak_mib(call)
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _host_peak_mib(call: Call) -> float | None:
    """Follow torch's CPU allocator through the profiler; None where this version of torch does not tell."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    try:
        events = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
        steps = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]  # pyright: ignore[reportAttributeAccessIssue]
    except AttributeError:
        return None
    held = peak = 0
    for _, change in sorted(steps, key=lambda step: step[0]):
        held += change
        peak = max(peak, held)
    return peak / 2**20


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep the profiler's own log, written from C++, out of the output."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
