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

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        self.device_caches.clear()  # they belong to the previous target
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        launches.append(CompiledLaunch(self, compiled, options))

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


class MainLoop(NamedTuple):
    """Instructions of a binary's main loop, how many of them move spilled registers, and instructions outside of it.

    The main loop is the one with most products among those that contain no other loop with products, and the longest
    where there are no products.
    """

    instructions: int
    spills: int
    outside: int


class Loop(NamedTuple):
    """A loop of a binary: its addresses, and the names of the instructions between them."""

    begin: int
    end: int
    body: list[str]

    @property
    def products(self) -> int:
        return sum(x.endswith("MMA") for x in self.body)


class Disassembly(NamedTuple):
    """A binary's instructions by address, and its loops in the order of their ends."""

    names: dict[int, str]
    loops: list[Loop]

    @property
    def straight(self) -> int:
        """How many instructions are in no loop."""
        return sum(not any(x.begin <= at <= x.end for x in self.loops) for at in self.names)


def disassembled(cubin: bytes) -> Disassembly:
    text = _cuobjdump(cubin, "-sass")
    code = {int(x[1], 16): x[2] for x in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text)}
    names = {at: opcode(x) for at, x in code.items()}
    loops = []
    for end, instruction in code.items():
        target = re.search(r"BRA\S*.*?0x([0-9a-f]+)", instruction)
        if target and (begin := int(target[1], 16)) < end:
            loops.append(Loop(begin, end, [x for at, x in names.items() if begin <= at <= end]))
    return Disassembly(names, loops)


def main_loop(cubin: bytes) -> MainLoop:
    """Find the main loop of a binary; without any loop, everything is outside of it."""
    names, loops = disassembled(cubin)
    innermost = [
        x for x in loops if not any(x.begin <= y.begin and y.end <= x.end and y.products and y is not x for y in loops)
    ]
    body = max(innermost, key=lambda x: (x.products, len(x.body))).body if innermost else []
    return MainLoop(len(body), sum(x in ("LDL", "STL") for x in body), len(names) - len(body))


def opcode(instruction: str) -> str:
    """Return the name of an instruction, without predicate and modifiers."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def serialised_products(ptx: str, architecture: int) -> list[str]:
    """Return the codes with which ptxas says that it serialises asynchronous products (wgmma), such as C7510."""
    if architecture != 90:
        return []
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [BINARIES / "ptxas", "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return sorted(set(re.findall(r"\((C751[0-5])\)", said)))


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [BINARIES / "cuobjdump", option, file.name], check=True, capture_output=True, text=True
        ).stdout
