"""Compile the decomposition kernels for GPU architectures, on any machine.

    python tests/compiled_decomposition.py 80 90       a sample
    python tests/compiled_decomposition.py 90 --all    every tile, with and without mask and weights: minutes

prints a JSON line a kernel with what `cuobjdump` says of it: registers, stack (spills) and shared memory. It runs in
a process of its own, without TRITON_INTERPRET: launches become compilations, for a driver that has no device.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from favorcast.kernels.series_decomposition_triton import decompose_backward_triton, decompose_triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# One of each tile and way of summing; a mixture adds accumulators, a mask adds counts and the search.
SIZES = ([3], [25], [64], [128], [256], [512], [4097])
MIXTURES = ([3, 25], [7, 12, 24, 48], [25, 1025])


class NoDevice:
    """The part of a Triton driver that compilation asks for."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_instead_of_launching() -> None:
    """Print what every kernel that is launched from now on needs, and do not run it."""
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        self.device_caches.clear()  # the driver's architecture is not part of their key
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        name = {"kernel": self.fn.__name__, "architecture": kernel.metadata.target.arch}
        print(json.dumps(name | usage(kernel.asm["cubin"])), flush=True)
        return kernel

    JITFunction.run = compile_only


def usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", report)
    assert found, report
    return dict(zip(("registers", "stack", "shared"), map(int, found.groups()), strict=True))


def decompose(sizes: list[int], dtype: torch.dtype, masked: bool) -> None:
    x = torch.zeros(1, 4096, 64, dtype=dtype)
    mask = torch.ones(x.shape, dtype=torch.bool) if masked else None
    weights = torch.ones(*x.shape, len(sizes), dtype=dtype) if len(sizes) > 1 else None
    decompose_triton(x, mask, weights, sizes, False, False)
    decompose_backward_triton(x, x, None if weights is None else x, mask, weights, sizes, False)


def main(architectures: list[int], everything: bool) -> None:
    compile_instead_of_launching()
    for architecture in architectures:
        driver.set_active(NoDevice(architecture))
        if not everything:
            decompose([25], torch.bfloat16, False)
            decompose_triton(torch.zeros(1, 4096, 64, dtype=torch.bfloat16), None, None, [4097], False, False)
            continue
        for dtype in (torch.bfloat16, torch.float32):
            for masked in (False, True):
                for sizes in (*SIZES, *MIXTURES):
                    print(json.dumps({"dtype": str(dtype), "masked": masked, "sizes": sizes}), flush=True)
                    decompose(sizes, dtype, masked)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:] if argument.isdigit()], "--all" in sys.argv)
