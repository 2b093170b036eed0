"""A CUDA driver that does nothing: with it Triton compiles, loads and launches kernels on CPU tensors as on a GPU.

What the host does for a call can so be timed (`host_cost.py --stub`), and looked at, without a GPU. It needs the C
compiler that Triton needs anyway. Results are never written: they hold what was in memory.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils
from triton.runtime import driver

from favorcast.kernels.dispatch.implementation import LAUNCHES_ON

SOURCE = Path(__file__).with_name("stub_cuda.c")


class StubDriver(CudaDriver):
    """Triton's driver for NVIDIA GPUs, with one device of the given architecture that is not there."""

    def __init__(self, architecture: int, launcher: type[CudaLauncher] = CudaLauncher) -> None:
        library = load_stub()
        self.utils: Any = CudaUtils()  # compiled against the stub
        self.launcher_cls: Any = launcher
        self.target = GPUTarget("cuda", architecture, 32)
        self.launches: Callable[[], int] = library.stub_launches
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device=0: 0
        self.get_device_capability = lambda device=0: divmod(architecture, 10)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@cache
def load_stub() -> ctypes.CDLL:
    """Compile the stub, and let it be the libcuda.so.1 of this process.

    Raises:
        RuntimeError: a CUDA driver is there, or the C compiler is not.
    """
    if torch.cuda.is_available():
        raise RuntimeError("a CUDA device is there: the stub driver stands in for one that is not")
    folder = Path(tempfile.mkdtemp(prefix="favorcast-stub-"))
    path = folder / "libcuda.so.1"
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(path), str(SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise RuntimeError(f"the stub driver needs a C compiler, as Triton does; {compiler} said: {said}") from error
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)  # where Triton links its launchers to it
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # and finds it loaded


def install_stub(architecture: int = 90, launcher: type[CudaLauncher] = CudaLauncher) -> StubDriver:
    """Make `impl="triton"` launch on CPU tensors, on a device that is not there, for the rest of the process."""
    stub = StubDriver(architecture, launcher)
    driver.set_active(stub)
    LAUNCHES_ON.add("cpu")
    return stub
