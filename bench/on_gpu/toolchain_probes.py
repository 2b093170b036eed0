"""Small kernels with patterns that Triton or ptxas are known to compile wrongly for Hopper, tried on the device.

What they find says which toolchain to distrust, whatever our own kernels give:

    transposed   tl.dot(tl.trans(acc.to(bfloat16)), q), the transposed result of a product as operand of another: wrong
                 64 wide on Hopper with triton 3.4 to 3.7.0, right 32 and 128 wide (fla-org issue 640); the backward of
                 causal attention has it with 128 tokens
    straight     several products in a straight line, 32 wide in 4 warps: invalid reads of shared memory now and then
                 (triton issues 10486 and 11366, one kernel)

The second is why "no 32-wide tile in 4 warps" was once a rule here. It is none now: that kernel was seen in this one
configuration only; in the binaries of the probe for it (triton 3.6.0 and 3.7.1, either's two assemblers) every operand
of a product starts within the shared memory; and where faults of this kind were bisected, the 64-wide tile in 4 warps
was wrong and the 32-wide one right (fla-org issues 640 and 988). What they have in common is a transposed result.
Triton's remedy is another ptxas (triton pull requests 11781 and 11854), and so is ours.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDTH = 128
PROGRAMS, LAUNCHES = 1024, 5
"""Faults that come now and then want many programs."""


@triton.jit
def _transposed_kernel(
    q, k, v, do, h, dh, dq_out, dk_out, TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    rows, columns = tl.arange(0, TOKENS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    base = tl.program_id(0) * TOKENS * WIDTH
    acc = tl.zeros((TOKENS, TOKENS), tl.float32)
    for first in range(0, WIDTH, 64):
        part = base + rows[:, None] * WIDTH + first + tl.arange(0, 64)[None, :]
        acc += tl.dot(tl.load(do + part), tl.trans(tl.load(v + part)))
    acc = tl.where(rows[:, None] >= rows[None, :], acc * 0.125, 0.0).to(tl.bfloat16)
    at = base + rows[:, None] * WIDTH + columns[None, :]
    tl.store(dq_out + at, tl.dot(acc, tl.load(k + at)))
    tl.store(dk_out + at, tl.dot(tl.trans(acc), tl.load(q + at)))


def _transposed(q: Tensor, k: Tensor, v: Tensor, do: Tensor, h: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
    acc = (do @ v.mT * 0.125).tril().bfloat16().double()
    return acc @ k, acc.mT @ q


@triton.jit
def _straight_kernel(
    q, k, v, do, h, dh, dq_out, dk_out, TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    rows, columns = tl.arange(0, TOKENS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    base, inner = tl.program_id(0) * TOKENS * WIDTH, tl.arange(0, WIDTH)
    do_t = tl.load(do + base + rows[:, None] * WIDTH + inner[None, :])
    v_t = tl.load(v + base + rows[:, None] * WIDTH + inner[None, :])
    state = tl.program_id(0) * WIDTH * WIDTH + columns[:, None] * WIDTH + inner[None, :]
    acc = (tl.dot(do_t, tl.trans(v_t)) * 0.125).to(tl.bfloat16)
    dq = tl.dot(do_t, tl.trans(tl.load(h + state)))
    dk = tl.dot(v_t, tl.trans(tl.load(dh + state)))
    at = base + rows[:, None] * WIDTH + columns[None, :]
    k_t = tl.load(k + at)
    tl.store(dq_out + at, dq + tl.dot(acc, k_t))
    tl.store(dk_out + at, dk + tl.dot(tl.trans(acc), k_t))


def _straight(q: Tensor, k: Tensor, v: Tensor, do: Tensor, h: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
    acc = (do @ v.mT * 0.125).bfloat16().double()
    return do @ h.mT + acc @ k, v @ dh.mT + acc.mT @ k


PROBES = {
    f"probe: {name}, {tokens} x {block} in {warps} warps": (kernel, exact, tokens, block, warps)
    for name, kernel, exact in (
        ("transposed result", _transposed_kernel, _transposed),
        ("products in a straight line", _straight_kernel, _straight),
    )
    for tokens, block, warps in ((64, 32, 4), (64, 64, 4), (64, 128, 8), (128, 64, 8))
}
"""Name to the kernel, what it should give, and its tile."""


def probe_error(name: str, device: torch.device) -> float:
    """Return the largest relative error of a probe's results against float64, of several launches; NaN if one is."""
    kernel, exact, tokens, block, warps = PROBES[name]
    programs, launches = (PROGRAMS, LAUNCHES) if device.type == "cuda" else (1, 1)
    generator = torch.Generator().manual_seed(0)
    shapes = [(programs, tokens, WIDTH)] * 4 + [(programs, WIDTH, WIDTH)] * 2
    inputs = [torch.randn(shape, generator=generator).bfloat16().to(device) for shape in shapes]
    wanted = exact(*(x.double() for x in inputs))
    worst = torch.zeros(())
    for _ in range(launches):
        got = [torch.full(x.shape, torch.nan, device=device) for x in wanted]
        kernel[(programs, WIDTH // block)](*inputs, *got, tokens, WIDTH, block, num_warps=warps, num_stages=2)
        errors = [((x - y).norm() / y.norm()).cpu() for x, y in zip(got, wanted, strict=True)]
        worst = torch.stack([worst, *errors]).max()  # a NaN wins
    return float(worst)
