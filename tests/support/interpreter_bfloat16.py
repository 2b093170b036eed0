"""bfloat16 in Triton's interpreter, which keeps it as uint16: conversions round as on a GPU, products are of numbers.

As it is, the interpreter (3.6 to 3.9) truncates float32 to bfloat16 and multiplies, adds and compares bit patterns.
Here casts and dots are right, and everything else on bfloat16 is refused: on a GPU it would round where sums are meant
to be float32, so that a kernel that needs it is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

ARITHMETIC = ("binary_op", "unary_op", "create_clampf", "create_fma", "create_idiv", "create_fabs", "create_atomic_rmw")
"""What an operation of a kernel ends in, unless it only moves values."""


def mend_bfloat16() -> None:
    """Replace what the interpreter gets wrong in bfloat16, for this process. A second call changes nothing."""
    if InterpreterBuilder.create_dot.__module__ == __name__:
        return
    InterpreterBuilder.cast_impl = _cast(InterpreterBuilder.cast_impl)
    InterpreterBuilder.create_fp_to_fp = _convert(InterpreterBuilder.create_fp_to_fp)
    InterpreterBuilder.create_dot = _dot(InterpreterBuilder.create_dot)
    InterpreterBuilder.get_bf16 = lambda self, value: _round(self.get_fp32(value))  # Triton 3.9 has it
    for name in ARITHMETIC:
        setattr(InterpreterBuilder, name, _refusing(name, getattr(InterpreterBuilder, name)))
    reductions = interpreter.ReduceScanOpInterface
    reductions.check_tensor = _refusing("a reduction or scan", reductions.check_tensor)


def _is_bfloat16(x: Any) -> bool:
    """Whether a handle or a `tl.tensor` holds bfloat16; pointers to it do not."""
    return isinstance(x, TensorHandle | tl.tensor) and x.dtype.scalar == tl.bfloat16


def _widen(x: TensorHandle) -> TensorHandle:
    """Convert bfloat16 to float32, exactly."""
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _round(x: TensorHandle) -> TensorHandle:
    """Convert float32 to bfloat16, to nearest, ties to even."""
    rounded = torch.from_numpy(np.array(x.data, np.float32, order="C")).bfloat16()
    return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)


def _cast(cast_impl: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """Cast through float32 from and to bfloat16; `create_fp_trunc` and the other casts call this one."""

    def cast(self: InterpreterBuilder, source: TensorHandle, target: tl.dtype) -> TensorHandle:
        if _is_bfloat16(source):
            source = _widen(source)
        if target.scalar == tl.bfloat16:
            return _round(cast_impl(self, source, tl.float32))
        return cast_impl(self, source, target)

    return cast


def _convert(create_fp_to_fp: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def convert(self: InterpreterBuilder, source: TensorHandle, target: tl.dtype, rounding: Any) -> TensorHandle:
        if not _is_bfloat16(source) and target.scalar != tl.bfloat16:
            return create_fp_to_fp(self, source, target, rounding)
        if rounding not in (None, interpreter._ir.ROUNDING_MODE.RTNE):
            raise NotImplementedError(f"bfloat16 is rounded to nearest even here: got {rounding}")
        return self.cast_impl(source, target)

    return convert


def _dot(create_dot: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """Multiply bfloat16 operands as float32, which holds their products exactly, and add in the accumulator's dtype."""

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return create_dot(self, *(_widen(x) if _is_bfloat16(x) else x for x in (a, b)), *rest)

    return dot


def _refusing(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(self: Any, *operands: Any) -> Any:
        handles = [x for operand in operands for x in (operand if isinstance(operand, tuple) else (operand,))]
        if any(map(_is_bfloat16, handles)):
            raise TypeError(f"{name} on bfloat16: convert to float32 first, only tl.dot takes it as it is")
        return operation(self, *operands)

    return refuse
