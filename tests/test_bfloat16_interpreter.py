"""The patched interpreter on bfloat16: casts and products are those of torch, other arithmetic is refused."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language", reason="triton is not installed")

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)


@triton.jit
def _copy_kernel(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


@triton.jit
def _product_kernel(x, y, z, SIZE: tl.constexpr):
    rows = tl.arange(0, SIZE)
    at = rows[:, None] * SIZE + rows[None, :]
    tl.store(z + at, tl.dot(tl.load(x + at), tl.trans(tl.load(y + at))))


@triton.jit
def _arithmetic_kernel(x, y, KIND: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    if KIND == "sum":
        value = value + value
    elif KIND == "reduction":
        value = value * 0 + tl.max(value, 0)
    elif KIND == "comparison":
        value = tl.where(value > value, value, value)
    else:
        value = tl.where(at > 0, value, value)
    tl.store(y + at, value)


def copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    result = torch.empty(x.shape, dtype=dtype)
    _copy_kernel[(1,)](x, result, SIZE=x.numel())
    return result


def test_casts_round_to_nearest_even_as_torch_does():
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-45, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, 1e38, 2.0]
    x = torch.cat([torch.tensor(special), torch.randn(52) * 1e3])
    torch.testing.assert_close(copied(x, torch.bfloat16), x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(copied(x[:8], torch.bfloat16), copied(x[8:16], torch.bfloat16))
    half = torch.randn(64).bfloat16()
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(copied(half, dtype), half.to(dtype))


def test_products_are_those_of_the_values():
    x, y = torch.randn(2, 16, 16).bfloat16()
    result = torch.empty(16, 16)
    _product_kernel[(1,)](x, y, result, SIZE=16)
    torch.testing.assert_close(result.double(), x.double() @ y.double().T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["sum", "reduction", "comparison"])
def test_other_arithmetic_is_refused(kind):
    x = torch.randn(16).bfloat16()
    with pytest.raises(Exception, match="of bfloat16"):
        _arithmetic_kernel[(1,)](x, torch.empty_like(x), KIND=kind, SIZE=16)


def test_choosing_between_values_is_not_arithmetic():
    x = torch.randn(16).bfloat16()
    result = torch.empty_like(x)
    _arithmetic_kernel[(1,)](x, result, KIND="choice", SIZE=16)
    assert torch.equal(x, result)
