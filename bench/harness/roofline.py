"""The roofline: the time below which a device cannot do a given work.

    limit = max(bytes / copy bandwidth, flops / matrix-product rate, exponentials / exp2 rate)

Rates of GPUs that are known are in one table; others, and CPUs, are measured when the bench starts.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from harness.cases import Work


class Peaks(NamedTuple):
    """Rates of a device, per second; `flops` is dense bfloat16 with float32 sums (float32 on a CPU)."""

    bytes: float
    flops: float
    exps: float
    source: str


KNOWN = {
    "H200": Peaks(4.3e12, 790e12, 132 * 16 * 1.8e9, "copy and matrix product as measured on one, 16 exp2/clock/SM"),
    "H100": Peaks(3.0e12, 790e12, 132 * 16 * 1.8e9, "90 % of the SXM data sheet's bandwidth; rates of the H200's SMs"),
}
"""By a part of the device's name; not for the PCIe and NVL variants, which are measured."""

OTHER_VARIANTS = ("PCIE", "NVL", "GH200")
RATE_OF_DTYPE = {torch.bfloat16: 1.0, torch.float16: 1.0, torch.float32: 1 / 6}
"""Share of the bfloat16 rate: a float32 product is three TF32 products at half the rate each."""

EXPS_PER_CLOCK = 16
"""exp2 results of one streaming multiprocessor a clock, compute capability 7.0 to 9.0 (CUDA C++ programming guide)."""


class Limit(NamedTuple):
    """The roofline of a work: milliseconds, and which resource sets it."""

    milliseconds: float
    resource: str


def limit_of(work: Work, peaks: Peaks, dtype: torch.dtype, *, tensor_cores: bool = True) -> Limit:
    """Return the time (ms) that the work takes at least; on a device without tensor cores all dtypes are one rate."""
    share = RATE_OF_DTYPE[dtype] if tensor_cores else 1.0
    seconds = {
        "bytes": work.bytes / peaks.bytes,
        "products": work.flops / (peaks.flops * share),
        "exps": work.exps / peaks.exps,
    }
    resource = max(seconds, key=lambda name: seconds[name])
    return Limit(seconds[resource] * 1e3, resource)


def peaks_of(device: torch.device) -> Peaks:
    """Return the rates of a device, from the table or measured now (about a second)."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).upper()
        for part, peaks in KNOWN.items():
            if part in name and not any(variant in name for variant in OTHER_VARIANTS):
                return peaks
    return _measured(device)


def _measured(device: torch.device) -> Peaks:
    on_gpu = device.type == "cuda"
    source = torch.empty((1 << 28) if on_gpu else (1 << 24), dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    copy_seconds = _best_seconds(lambda: target.copy_(source), device)
    moved = 2 * source.numel() * source.element_size()
    size = 8192 if on_gpu else 1024
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    product_seconds = _best_seconds(lambda: matrix @ matrix, device)
    if on_gpu:
        properties = torch.cuda.get_device_properties(device)
        exps = properties.multi_processor_count * EXPS_PER_CLOCK * _clock_hertz(properties)
    else:
        cached = torch.randn(1 << 16)
        exps = cached.numel() / _best_seconds(cached.exp, device)
    return Peaks(moved / copy_seconds, 2 * size**3 / product_seconds, exps, "measured at the start of the bench")


def _clock_hertz(properties: object) -> float:
    """Return the clock of a GPU; 1.7 GHz where this version of torch does not tell."""
    return float(getattr(properties, "clock_rate", 1.7e6)) * 1e3


def _best_seconds(call, device: torch.device, repetitions: int = 5) -> float:
    best = float("inf")
    for _ in range(repetitions + 1):  # the first one warms up and is hardly ever the best
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
