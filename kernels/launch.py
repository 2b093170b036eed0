"""Launching kernels, with what Triton has compiled for arguments of a kind at hand.

Triton's own launch looks anew at every argument and option of every call, 25 us. Which binary it takes depends on
little of that: dtypes, what is a multiple of 16, which numbers are 1, and the compile-time values. A launch that agrees
with an earlier one in these goes straight to that binary's launcher.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

LAUNCHES_ON = {"cuda"}
"""Types of devices whose tensors kernels take, but for Triton's interpreter, which takes those of a CPU."""

_ALIGNMENT_BITS = 15
"""Of pointers and numbers: Triton compiles for multiples of 16."""

_UNUSUAL_BITS = _ALIGNMENT_BITS | -1 << 31
"""Of strides: not a multiple of 16, or not an int32."""

_binaries: dict[Any, Any] = {}


def launch_kernel(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel over a grid of one dimension, on the current device and stream.

    Args:
        kernel: a function of `triton.jit`.
        programs: size of the grid.
        arguments: of the kernel, in order: tensors, numbers, None, and tuples of these; the tuple of a tensor and its
            strides (`Rows`, `Vectors`) begins with the tensor.
        constants: compile-time values, and options of Triton's launcher.
    """
    if type(kernel).__name__ == "InterpretedFunction":  # TRITON_INTERPRET=1: nothing is compiled
        kernel[(programs,)](*arguments, **constants)
        return
    kind = (kernel, _current_device(), *map(_kind, arguments), *constants.values())
    if (known := _binaries.get(kind)) is not None:
        binary, names = known
        binary[(programs, 1, 1)](*arguments, *[constants[name] for name in names])
        return
    compiled = kernel[(programs,)](*arguments, **constants)
    if compiled is not None:  # which is what bench/offline_compile.py makes of a launch
        _binaries[kind] = compiled, kernel.arg_names[len(arguments) :]


def _kind(x: Any) -> Any:
    """Return what Triton compiles for of an argument."""
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() & _ALIGNMENT_BITS
    if isinstance(x, tuple):
        if type(x[-1]) is int and isinstance(x[0], Tensor):  # with its strides, the last one that of neighbours
            bits = 0
            for stride in x[1:-1]:
                bits |= stride
            strides = x[1:] if bits & _UNUSUAL_BITS or x[-1] != 1 else None
            return x[0].dtype, x[0].data_ptr() & _ALIGNMENT_BITS, strides
        return tuple(map(_kind, x))
    if type(x) is int:
        return x if x == 1 else (x & _ALIGNMENT_BITS == 0, x.bit_length() > 31)
    return type(x)


def _current_device() -> int:
    from triton.runtime import driver  # here, as without triton there are no launches

    active: Any = driver.active
    return active.get_current_device()
