"""List the kernels of a forward and of a forward and backward call, with their times, from torch's profiler.

python bench kernel_profile                         # b8 h16 l4096 d64 m256, bfloat16, on the GPU
python bench kernel_profile --shape 4 8 3920 16 100 --causal
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness.cases import Case
from harness.favor_exact import AttentionShape
from suites import favor_attention as favor
from torch.profiler import ProfilerActivity, profile

from favorcast.kernels import favor_attention


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one table a pass, slowest kernel first, and the number of launches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=5, metavar=("B", "H", "L", "D", "M"), default=(8, 16, 4096, 64, 256))
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    op = favor.CAUSAL if options.causal else favor.FULL
    case = Case(op, AttentionShape(*options.shape), getattr(torch, options.dtype))
    inputs = [x.requires_grad_() for x in favor.inputs(case, device).values()]
    features = favor.features_of(case)
    features = features._replace(projection=features.projection.to(device))
    upstream = torch.randn_like(inputs[0])

    def forward() -> torch.Tensor:
        return favor_attention(*inputs, features, is_causal=options.causal)

    def training() -> None:
        torch.autograd.grad(forward(), inputs, upstream)

    for name, call in (("forward", forward), ("forward+backward", training)):
        launches, table = kernels_of(call, device)
        print(f"{case}, {name}: {launches} launches\n{table}\n", flush=True)
    return 0


def kernels_of(call: Callable[[], Any], device: torch.device) -> tuple[int, str]:
    """Return how many kernels a warmed-up call launches (operators on a CPU), and the profiler's table of them."""
    for _ in range(3):
        call()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    averages = profiler.key_averages()
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    launches = sum(event.count for event in averages if event.device_type == wanted)
    return launches, averages.table(
        sort_by=f"self_{'device' if on_gpu else 'cpu'}_time_total", row_limit=25, max_name_column_width=60
    )


if __name__ == "__main__":
    sys.exit(main())
