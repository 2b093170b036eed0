"""What `interpreter_bfloat16.py` mends: casts are those of torch, dots those of float64, and nothing else runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_runs import RUNS_KERNELS
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language", reason="triton is not installed")

pytestmark = [
    RUNS_KERNELS,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the device, not in the interpreter"),
]


@triton.jit
def _cast_kernel(source, target, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(target + at, tl.load(source + at).to(target.dtype.element_ty))


@triton.jit
def _rounding_kernel(source, target, MODE: tl.constexpr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(target + at, tl.load(source + at).to(tl.bfloat16, fp_downcast_rounding=MODE))


@triton.jit
def _dot_kernel(one, other, target, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tile = at[:, None] * SIZE + at[None, :]
    tl.store(target + tile, tl.dot(tl.load(one + tile), tl.load(other + tile), input_precision="ieee"))


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other)


@triton.jit
def _arithmetic_kernel(source, target, OPERATION: tl.constexpr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    x = tl.load(source + at)
    if OPERATION == "add":
        y = x + x
    elif OPERATION == "multiply":
        y = 2.0 * x
    elif OPERATION == "negate":
        y = -x
    elif OPERATION == "compare":
        y = x > x
    elif OPERATION == "absolute":
        y = tl.abs(x)
    elif OPERATION == "fma":
        y = tl.fma(x, x, x)
    elif OPERATION == "reduce":
        y = tl.reduce(x, 0, _larger)
    elif OPERATION == "scan":
        y = tl.associative_scan(x, 0, _larger)
    elif OPERATION == "select":
        y = tl.where(at % 2 == 0, x, 0.5)
    elif OPERATION == "max":
        y = tl.max(x, 0)
    else:
        y = x.to(tl.float32) * 2
    tl.store(target + at, y)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    target = torch.empty_like(x, dtype=dtype)
    _cast_kernel[(1,)](x, target, x.numel())
    return target


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    """Assert equality of every bit, signs of zeros too; of a NaN only that it is one."""
    assert torch.equal(got.isnan(), want.isnan())
    numbers = ~want.isnan()
    assert torch.equal(got[numbers].view(torch.int16), want[numbers].view(torch.int16))


def every_bfloat16() -> Tensor:
    return torch.arange(2**16).to(torch.int32).sub(2**15).to(torch.int16).view(torch.bfloat16)


def test_every_bfloat16_widens_exactly_and_comes_back():
    values = every_bfloat16()
    wide = cast(values, torch.float32)
    assert torch.equal(wide.view(torch.int32)[values.isfinite()], values.float().view(torch.int32)[values.isfinite()])
    assert_same_bits(cast(wide, torch.bfloat16), values)
    small = torch.where(values.abs() < 6e4, values, 0)
    assert_same_bits(cast(small, torch.float16), small.half())


@pytest.mark.parametrize("offset", [0x7FFF, 0x8000, 0x8001], ids=["below-tie", "tie", "above-tie"])
def test_float32_rounds_to_nearest_even_at_and_beside_every_tie(offset):
    """Infinities, NaN, denormals and what overflows by rounding are among the upper halves."""
    bits = (every_bfloat16().view(torch.int16).to(torch.int32) << 16) + offset
    values = bits.view(torch.float32)
    assert_same_bits(cast(values, torch.bfloat16), values.bfloat16())


def test_ties_go_to_the_even_neighbour():
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 2**-134])  # the last between zero and a denormal
    assert cast(ties, torch.bfloat16).tolist() == [1, 1 + 2**-6, -1, 0]


def test_integers_and_half_precision_reach_bfloat16_by_rounding():
    for values in (torch.arange(-512, 512, dtype=torch.int32), torch.linspace(-9, 9, 1024).half()):
        assert_same_bits(cast(values, torch.bfloat16), values.bfloat16())


def test_an_explicit_rounding_is_nearest_even_or_refused():
    values, target = torch.randn(64), torch.empty(64, dtype=torch.bfloat16)
    _rounding_kernel[(1,)](values, target, "rtne", 64)
    assert_same_bits(target, values.bfloat16())
    with pytest.raises(Exception, match="rounded to nearest even"):
        _rounding_kernel[(1,)](values, target, "rtz", 64)


def test_a_dot_is_that_of_the_rounded_operands():
    one, other = torch.randn(2, 64, 64).bfloat16()
    target = torch.empty(64, 64)
    _dot_kernel[(1,)](one, other, target, 64)
    exact = one.double() @ other.double()
    torch.testing.assert_close(target.double(), exact, rtol=0, atol=64 * 2**-24 * float(exact.abs().max()))


def run_arithmetic(operation: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(64).bfloat16()
    target = torch.empty(64)
    _arithmetic_kernel[(1,)](x, target, operation, 64)
    return x, target


@pytest.mark.parametrize("operation", ["add", "multiply", "negate", "compare", "absolute", "fma", "reduce", "scan"])
def test_arithmetic_in_bfloat16_is_refused(operation):
    with pytest.raises(Exception, match="on bfloat16: convert to float32 first"):
        run_arithmetic(operation)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("select", lambda x: torch.where(torch.arange(64) % 2 == 0, x.float(), 0.5)),
        ("max", lambda x: x.float().max().expand(64)),
        ("widened", lambda x: 2 * x.float()),
    ],
)
def test_what_moves_bfloat16_or_widens_it_first_is_allowed(operation: str, expected: Callable[[Tensor], Tensor]):
    x, target = run_arithmetic(operation)
    torch.testing.assert_close(target, expected(x), rtol=0, atol=1e-6)
