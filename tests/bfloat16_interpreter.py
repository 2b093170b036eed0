"""Make Triton's interpreter compute with bfloat16: by itself it truncates what it rounds, and multiplies bit patterns.

The interpreter keeps bfloat16 tensors as uint16. Here casts round to nearest even (through torch), products multiply
the values and sum them in float32, as tensor cores do, and any other arithmetic on bfloat16 is refused: of that, the
GPU's bfloat16 units would say something else than float32 does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder


def widened(data: np.ndarray, dtype: Any) -> np.ndarray:
    """Return the values of an interpreted tensor, those of bfloat16 as float32."""
    if dtype.scalar != tl.bfloat16:
        return data
    return (data.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """Return values as the bits of bfloat16, rounded to nearest even."""
    wide = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return wide.bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


def install() -> None:
    """Patch the interpreter of this process, once."""
    if getattr(Builder, "has_bfloat16", False):
        return
    Builder.has_bfloat16 = True
    _cast(Builder, "cast_impl")
    _cast(Builder, "create_fp_to_fp")
    dot = Builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        a, b = (interpreter.TensorHandle(widened(x.data, x.dtype), _float32_for(x.dtype)) for x in (a, b))
        return dot(self, a, b, d, *options)

    Builder.create_dot = create_dot
    for name in ("binary_op", "unary_op", "create_fma", "create_rsqrt", "create_fabs", "create_erf"):
        _refuse(Builder, name)
    _refuse(Builder, "ternary_op", allowed=np.where)
    _refuse(interpreter.ReduceOps, "apply_impl")
    _refuse(interpreter.ScanOps, "apply_impl")


def _float32_for(dtype: Any) -> Any:
    return tl.float32 if dtype.scalar == tl.bfloat16 else dtype.scalar


def _cast(owner: type, name: str) -> None:
    original = getattr(owner, name)

    def cast(self: Any, src: Any, dst_type: Any, *options: Any) -> Any:
        wanted = dst_type.scalar
        if tl.bfloat16 not in (src.dtype.scalar, wanted):
            return original(self, src, dst_type, *options)
        values = widened(src.data, src.dtype)
        if wanted == tl.bfloat16:
            return interpreter.TensorHandle(rounded(values), wanted)
        return interpreter.TensorHandle(values.astype(interpreter._get_np_dtype(wanted)), wanted)

    setattr(owner, name, cast)


def _refuse(owner: type, name: str, allowed: Callable[..., Any] | None = None) -> None:
    original = getattr(owner, name)

    def checked(self: Any, *arguments: Any) -> Any:
        if allowed is None or arguments[-1] is not allowed:
            for x in _flat(arguments):
                if getattr(getattr(x, "dtype", None), "scalar", None) == tl.bfloat16:
                    raise TypeError(f"{name} of bfloat16: kernels widen to float32 before anything but a product")
        return original(self, *arguments)

    setattr(owner, name, checked)


def _flat(arguments: tuple[Any, ...]) -> list[Any]:
    return [y for x in arguments for y in (x if isinstance(x, tuple | list) else (x,))]
