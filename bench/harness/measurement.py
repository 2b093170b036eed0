"""Measure one case: correctness gate, warm-up, interleaved latencies, memory, roofline; one row a provider and pass.

Nothing is dropped silently: a provider that is absent, is skipped, fails or computes something else has a row that
says so, and no number.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from harness.cases import DTYPE_NAMES, PASSES, BenchModule, Case, Expected, Passes, Provider
from harness.correctness_gate import Failure, gate, timed_call
from harness.results_file import Row
from harness.roofline import Peaks, limit_of
from harness.timing import Clock, Latency, capture, interleaved, peak_mib, rounds_for, warm_up
from torch import Tensor

STICKY = (
    "illegal memory access",
    "illegal instruction",
    "invalid program counter",
    "invalid address space",
    "misaligned address",
    "hardware stack error",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ECC",
)
"""Errors after which a CUDA context answers nothing but errors: the process has to end."""

SLOWEST_MS = 10_000.0
"""A provider whose call takes longer is not repeated: the row says how long it took."""

REFUSAL = "cannot be honoured"
"""How favorcast says that an `impl` does not exist for a case; that is no failure."""


class BrokenDeviceError(RuntimeError):
    """A provider has left the GPU unusable for this process."""


@dataclass
class Bench:
    """What all cases of a run share.

    Attributes:
        device, clock, peaks: see there.
        machine: columns that describe the machine.
        budget_ms: time for the rounds of one case and pass, eager and graph each.
        wanted: tells which providers to run.
        graphs: whether calls are also timed as CUDA graphs.
    """

    device: torch.device
    clock: Clock
    peaks: Peaks
    machine: dict[str, str]
    budget_ms: float = 600.0
    wanted: Callable[[Provider], bool] = lambda provider: True
    graphs: bool = True
    report: Callable[[Row], None] = field(default=lambda row: None)


class _Timed(NamedTuple):
    """A provider that has passed the gate."""

    provider: Provider
    call: Callable[[], Any]
    error: float
    estimate_ms: float
    peak: float | None


def measure(module: BenchModule, case: Case, bench: Bench) -> list[Row]:
    """Return the rows of one case: all passes, all wanted providers."""
    rows: list[Row] = []
    torch.compiler.reset()  # each case compiles for its own shape, and torch gives up after eight
    inputs = module.inputs(case, bench.device)
    exact: dict[str, Expected] = {}
    for passes in getattr(module, "PASSES", PASSES):
        ready: dict[str, _Timed] = {}
        for provider in module.providers(case, bench.device):
            if not bench.wanted(provider) or passes not in provider.passes:
                continue
            try:
                if provider.target not in exact and provider.skip is None:
                    exact[provider.target] = _expected(module, case, inputs, provider.target, bench)
                ready[provider.name] = _prepare(provider, case, passes, inputs, exact.get(provider.target), bench)
            except Failure as failure:
                rows.append(_row(case, passes, provider, bench, {"status": failure.status, "message": failure.message}))
                bench.report(rows[-1])
        rows += _timed_rows(module, case, passes, ready, bench)
        ready.clear()
        _free(bench.device)
    return rows


def _expected(module: BenchModule, case: Case, inputs: dict[str, Tensor], target: str, bench: Bench) -> Expected:
    """Return the exact result; where it cannot be had, in memory for one, only its own providers have no number."""
    try:
        return module.expected(case, inputs, target)
    except Exception as error:
        refuse_if_broken(error)
        _free(bench.device)
        raise Failure("failed", "the exact result: " + first_line(error)) from error


def _prepare(
    provider: Provider, case: Case, passes: Passes, inputs: dict[str, Tensor], exact: Expected | None, bench: Bench
) -> _Timed:
    """Prepare, gate and warm up one provider; every way in which it may fail becomes a `Failure`."""
    if provider.skip is not None or exact is None:
        raise Failure("skipped", provider.skip or "")
    try:
        prepared = provider.prepare(inputs)
        error = gate(provider, case, passes, prepared, exact)
        call = timed_call(prepared, passes, exact)
        first = bench.clock.read(bench.clock.start(call))
        if first > SLOWEST_MS:
            raise Failure("skipped", f"too slow to repeat: one call took {first * 1e-3:.1f} s")
        estimate = warm_up(call, bench.clock)
        error = max(error, gate(provider, case, passes, prepared, exact))  # the first calls may have gone another way
        return _Timed(provider, call, error, estimate, peak_mib(call, bench.device))
    except Failure:
        raise
    except ModuleNotFoundError as error:
        raise Failure("absent", first_line(error)) from error
    except Exception as error:  # whatever a peer raises is its result
        refuse_if_broken(error)
        _free(bench.device)
        refused = isinstance(error, ValueError) and REFUSAL in str(error)
        raise Failure("absent" if refused else "failed", first_line(error)) from error


def _timed_rows(module: BenchModule, case: Case, passes: Passes, ready: dict[str, _Timed], bench: Bench) -> list[Row]:
    if not ready:
        return []
    calls = {name: timed.call for name, timed in ready.items()}
    rounds = rounds_for({name: timed.estimate_ms for name, timed in ready.items()}, bench.budget_ms)
    eager = interleaved(calls, rounds, bench.clock)
    graphs, no_graph = _captured(ready, bench)
    replayed = interleaved(graphs, rounds, bench.clock)
    rows = []
    for name, timed in ready.items():
        values = {"status": "ok", "message": no_graph.get(name, ""), "error": f"{timed.error:.1e}"}
        values |= _latency_columns("", eager[name]) | _latency_columns("graph_", replayed.get(name))
        values["peak_mib"] = "" if timed.peak is None else f"{timed.peak:.4g}"
        values |= _rates(module, case, passes, timed.provider, replayed.get(name, eager[name]), bench)
        rows.append(_row(case, passes, timed.provider, bench, values))
        bench.report(rows[-1])
    return rows


def _captured(ready: dict[str, _Timed], bench: Bench) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Return the calls as graph replays, and why those that cannot be captured cannot."""
    graphs: dict[str, Callable[[], Any]] = {}
    failed: dict[str, str] = {}
    if not bench.graphs or bench.device.type != "cuda":
        return graphs, failed
    for name, timed in ready.items():
        if timed.provider.waits:
            failed[name] = "no CUDA graph: it waits for the device within a call"
            continue
        try:
            graphs[name] = capture(timed.call, bench.device).replay
            graphs[name]()
            torch.cuda.synchronize(bench.device)
        except Exception as error:  # whatever a peer raises is its result
            refuse_if_broken(error)
            graphs.pop(name, None)
            failed[name] = "no CUDA graph: " + first_line(error)
            _free(bench.device)
    return graphs, failed


def _rates(
    module: BenchModule, case: Case, passes: Passes, provider: Provider, latency: Latency, bench: Bench
) -> dict[str, str]:
    work = module.work(case, passes, provider.target)
    if work is None:
        return {}
    on_gpu = bench.device.type == "cuda"
    limit = limit_of(work, bench.peaks, case.dtype, tensor_cores=on_gpu)
    seconds = latency.p50 * 1e-3
    return {
        "gb_s": f"{work.bytes / seconds / 1e9:.4g}",
        "tflop_s": f"{work.flops / seconds / 1e12:.4g}",
        "roofline_percent": f"{100 * limit.milliseconds / latency.p50:.3g}",
        "bound": limit.resource,
    }


def _row(case: Case, passes: Passes, provider: Provider, bench: Bench, values: dict[str, str]) -> Row:
    return {
        "op": case.op,
        "provider": provider.name,
        "shape": str(case.shape),
        "dtype": DTYPE_NAMES[case.dtype],
        "pass": passes,
        **bench.machine,
        **values,
    }


def _latency_columns(prefix: str, latency: Latency | None) -> dict[str, str]:
    if latency is None:
        return {}
    return {f"{prefix}{name}_ms": f"{value:.4g}" for name, value in latency._asdict().items()}


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def refuse_if_broken(error: BaseException) -> None:
    """Raise BrokenDeviceError if an error leaves the CUDA context of this process unusable."""
    if any(sign in str(error) for sign in STICKY):
        raise BrokenDeviceError(first_line(error)) from error


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
