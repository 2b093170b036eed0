"""Compile Triton launches for GPUs that are not there, and read what their binaries need.

The launchers of favorcast run as they do on a device, on small CPU tensors, with Triton's driver replaced by one that
only knows its target: each launch is specialised and compiled exactly as it would be, and is not run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver


class CompiledLaunch(NamedTuple):
    """A kernel with the keyword arguments it was launched with, and Triton's compiled object."""

    function: JITFunction
    compiled: Any
    options: dict[str, Any]


class OfflineDriver:
    """A Triton driver without a device: it knows its target, which is all that compilation asks for."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


@contextmanager
def compiled_launches(architecture: int) -> Iterator[list[CompiledLaunch]]:
    """Compile launches instead of running them; yields the list they are appended to."""
    launches: list[CompiledLaunch] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        self.device_caches.clear()  # they belong to the previous target
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        launches.append(CompiledLaunch(self, compiled, options))
        return compiled

    driver.set_active(OfflineDriver(architecture))
    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run


def resources(cubin: bytes) -> tuple[int, int]:
    """Return (registers a thread, bytes of stack) of a binary; stack of a kernel that calls nothing is spills."""
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump(cubin, "--dump-resource-usage"))
    assert usage is not None
    return int(usage[1]), int(usage[2])


def loop_instructions(cubin: bytes) -> int:
    """Count the instructions of the longest loop of a binary, or all of them if it has none."""
    text = _cuobjdump(cubin, "-sass")
    code = [(int(x[1], 16), x[2]) for x in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text)]
    longest = 0
    for address, instruction in code:
        target = re.search(r"BRA\S*.*?0x([0-9a-f]+)", instruction)
        if target and int(target[1], 16) < address:
            longest = max(longest, sum(int(target[1], 16) <= x <= address for x, _ in code))
    return longest or len(code)


def _cuobjdump(cubin: bytes, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout
