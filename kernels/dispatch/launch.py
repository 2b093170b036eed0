"""Launching kernels: what Triton compiled for one launch serves all of its kind.

Triton's own launch looks anew at every argument and option of every call, 20 us; a launch of a known kind takes 10. Its
kind is what Triton compiles for: of pointers the dtype and whether 16 divides them, of numbers which are 1, which 16
divides and which need 64 bits, and the compile-time values. Lengths are not, so that calls may vary in them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor
from triton.runtime import JITFunction, driver

_ALIGNMENT = 16
"""Of pointers, in bytes, and of numbers: what Triton looks at."""

_COMPILED_WITH = {"enable_fp_fusion": True}
"""A product and its sum become one instruction, whatever a version of Triton takes for its default."""

_binaries: dict[Any, Any] = {}


def launch_kernel(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel over a grid of one dimension, on the current device and stream.

    Args:
        kernel: a function of `triton.jit`.
        programs: size of the grid.
        arguments: of the kernel, in order: tensors, numbers, None, and tuples of these; in a tuple that ends in a
            number, such as `Rows`, all are numbers but for the first.
        constants: compile-time values, and options of Triton's launcher.
    """
    if not isinstance(kernel, JITFunction):  # TRITON_INTERPRET=1: nothing is compiled
        kernel[(programs,)](*arguments, **constants)
        return
    active: Any = driver.active
    device = active.get_current_device()
    kind = (kernel.fn, device, *map(_kind, arguments), *constants, *map(_identity, constants.values()))
    if (known := _binaries.get(kind)) is not None:
        binary, values = known
        binary[(programs, 1, 1)](*arguments, *values, stream=active.get_current_stream(device))
        return
    compiled = kernel[(programs,)](*arguments, **constants, **_COMPILED_WITH)
    if compiled is not None:  # where it is launched, not just compiled (bench/without_gpu/offline_compile.py)
        _binaries[kind] = compiled, [constants[name] for name in kernel.arg_names[len(arguments) :]]


def _identity(constant: Any) -> Any:
    """Return what tells a compile-time value from others: of a tuple its address, since its parts are slow to compare.

    `_binaries` keeps the tuple alive, so that no other can take its address.
    """
    return id(constant) if isinstance(constant, tuple) else constant


def _kind(x: Any) -> Any:
    """Return what Triton compiles for of an argument."""
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % _ALIGNMENT
    if isinstance(x, tuple):
        return (_kind(x[0]), _kinds_of_numbers(x[1:])) if isinstance(x[-1], int) else tuple(map(_kind, x))
    if isinstance(x, int):
        return _kind_of_number(x)
    return type(x)


def _kind_of_number(x: int) -> Any:
    return x == 1, x % _ALIGNMENT == 0, x.bit_length() > 31


@lru_cache(maxsize=4096)
def _kinds_of_numbers(numbers: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(map(_kind_of_number, numbers))
