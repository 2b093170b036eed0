"""Launching kernels, with what Triton has compiled for arguments of a kind at hand.

Triton's own launch looks anew at every argument and option of every call: 25 us. Which binary it takes depends on little
of that: dtypes, whether pointers and numbers are multiples of 16, which numbers are 1, and the compile-time values. A
launch that agrees with an earlier one in these goes straight to that binary's launcher.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_ALIGNMENT = 16
"""Of pointers, in bytes, and of numbers: what Triton compiles for."""

LAUNCHES_ON = {"cuda"}
"""Types of devices whose tensors kernels take, but for Triton's interpreter, which takes those of a CPU."""

_binaries: dict[Any, Any] = {}


def launch_kernel(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel over a grid of one dimension, on the current device and stream.

    Args:
        kernel: a function of `triton.jit`.
        programs: size of the grid.
        arguments: of the kernel, in order: tensors, numbers, None, and tuples of these.
        constants: compile-time values, and options of Triton's launcher.
    """
    kind = (kernel, _current_device(), *map(_kind, arguments), *constants.values())
    binary = _binaries.get(kind)
    if binary is not None:
        run, names = binary
        run[(programs, 1, 1)](*arguments, *(constants[name] for name in names))
        return
    compiled = kernel[(programs,)](*arguments, **constants)
    if compiled is not None:  # Triton's interpreter compiles nothing
        _binaries[kind] = compiled, kernel.arg_names[len(arguments) :]


def _kind(x: Any) -> Any:
    """Return what Triton compiles for of an argument."""
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % _ALIGNMENT == 0
    if isinstance(x, tuple):
        return tuple(map(_kind, x))
    if isinstance(x, int):
        return x if x == 1 else (x % _ALIGNMENT == 0, x.bit_length() > 31)
    return type(x)


def _current_device() -> int:
    from triton.runtime import driver  # here, as without triton there are no launches

    return driver.active.get_current_device()
