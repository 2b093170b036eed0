"""Whether the GPU kernels can run here, on a CUDA device or in Triton's interpreter, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from favorcast.kernels import RandomFeatures, favor_attention


def _release(package: str) -> tuple[int, ...]:
    try:
        return tuple(int(x) for x in version(package).split(".")[:2])
    except PackageNotFoundError:
        return (0,)


INTERPRETER_IS_BROKEN = _release("triton") < (3, 7) and _release("numpy") >= (2, 4)
"""Triton 3.6's interpreter converts arrays of one element to integers, which numpy 2.4 refuses."""

RUNS_KERNELS = pytest.mark.skipif(
    find_spec("triton") is None or (not torch.cuda.is_available() and INTERPRETER_IS_BROKEN),
    reason="needs triton, and without a CUDA device an interpreter that works: triton >= 3.7 or numpy < 2.4",
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative Frobenius bounds of output and gradients: half inputs and results round, and so do bfloat16 weights; those of
# float16 are TF32. `test_kernel_precision.py` compares with what plain torch makes of the same inputs.
BOUNDS = {torch.float32: (5e-6, 2e-5), torch.float16: (2e-3, 3e-3), torch.bfloat16: (6e-3, 1.2e-2)}
DTYPE_IDS = ["fp32", "fp16", "bf16"]
RESULTS = ("output", "d_query", "d_key", "d_value")
"""Then come the gradients of learnt features, and of a key bias."""


def error(got: Tensor, want: Tensor) -> float:
    """Return the Frobenius distance relative to what is wanted, or to entries of 0.01 where less is wanted."""
    assert got.isfinite().all()
    want = want.detach().double()
    return float(
        (got.detach().double().cpu() - want).norm() / max(float(want.norm()), 0.01 * want.numel() ** 0.5, 1e-9)
    )


def both(
    inputs: tuple[Tensor, ...], features: RandomFeatures, attention: Callable[..., Tensor] = favor_attention, **options
) -> tuple[list[Tensor], list[Tensor]]:
    """Return (output, gradients of inputs, learnt features, key bias) of the kernels, and of the float64 reference."""
    results = []
    learnt = features.projection.requires_grad
    for impl, device, dtype in (("triton", DEVICE, None), ("reference", "cpu", torch.float64)):
        tensors = [x.detach().to(device, dtype).requires_grad_() for x in inputs]
        parameters = [x.detach().to(device, dtype).requires_grad_(learnt) for x in features[:2] if x is not None]
        drawn = RandomFeatures(*parameters, *[None] * (2 - len(parameters)), paired=features.paired)
        chosen = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
        bias = options.get("key_bias")
        biases = [] if bias is None else [bias.detach().to(device, dtype or torch.float32).requires_grad_()]
        chosen |= {"key_bias": biases[0]} if biases else {}
        output = attention(*tensors, drawn, impl=impl, **chosen)
        torch.manual_seed(5)
        upstream = torch.randn(output.shape, dtype=torch.float64).to(inputs[0].dtype).to(output)
        leaves = [*tensors, *(parameters if learnt else []), *biases]
        results.append([output, *torch.autograd.grad(output, leaves, upstream)])
    return results[0], results[1]


def assert_close(got: list[Tensor], want: list[Tensor], dtype: torch.dtype, factor: float = 1.0) -> None:
    for index, (one, other) in enumerate(zip(got, want, strict=True)):
        bound = BOUNDS[dtype][index > 0] * factor
        name = RESULTS[index] if index < len(RESULTS) else f"result {index} of {len(got)}"
        assert error(one, other) <= bound, f"{name}: {error(one, other):.2e} > {bound:.2e}"


def transposed(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def column_major(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def gapped(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


LAYOUTS = [transposed, column_major, gapped]
