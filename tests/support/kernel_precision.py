"""How far the GPU kernels are from float64, beside plain torch on the same inputs: what the error budget compares.

    TRITON_INTERPRET=1 python tests/support/kernel_precision.py > bench/results/interpreter-errors.md

Plain torch is `impl="reference"`: the same dtype in and out, sums in float32. Errors are relative Frobenius distances.
Adversarial inputs (`adversarial_keys.py`) break stabilisers of linear attention. Some are so ill-conditioned that plain
torch is right only where equal roundings cancel: there the larger of its error and of what rounding the inputs once
changes is "torch".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from adversarial_keys import ADVERSARIAL, PROJECTION
from favor_textbook import qkv
from interpreter_bfloat16 import mend_bfloat16
from torch import Tensor

from favorcast.kernels import RandomFeatures, draw_features, favor_attention, series_decomposition, stream_attention

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BUDGET = 2.25
"""Error of the kernels allowed for one of plain torch."""

LEARNT_BUDGET = 2.75
"""For the gradient of learnt features, a sum over all tokens in which most cancels."""

EPS = 2 * torch.finfo(torch.float32).eps
"""Where plain torch is exact, as the decomposition that sums in float64, results still round in float32."""

RECOMPUTED = 3e-5
"""Likewise for adversarial inputs in float32: weights that a backward computes again from logits in the thousands, in
another order of summation, move by the rounding of those, even where they saturate and plain torch keeps a 1."""

IN_REACH = (
    "norms-x4",
    "keys-grow-100x",
    "keys-shrink-30x",
    "late-key-x50",
    "first-8-keys-x50",
    "key-on-landmark",
    "far-keys-then-landmarks",
    "mean-5-queries-opposite",
    "alternating-mean-6",
    "queries-x100",
    "equal-keys-of-norm-60",
    "near-keys-of-norm-200",
)
"""Adversarial inputs that float16 can hold."""

Result = tuple[Tensor, ...]


def attention(**options: Any) -> Callable[..., Result]:
    def attend(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, impl: str) -> Result:
        return (favor_attention(query, key, value, features, impl=impl, **options),)

    return attend


def streamed(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, impl: str) -> Result:
    """Attend in three chunks, the last of a single token; gradients reach the first through the states."""
    state, outputs = None, []
    for rows in (slice(0, 90), slice(90, -1), slice(-1, None)):
        output, state = stream_attention(*(x[:, :, rows] for x in (query, key, value)), state, features, impl=impl)
        outputs.append(output)
    return (torch.cat(outputs, 2),)


def padding(batch: int, length: int) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(3)).to(DEVICE) < 0.3


ATTENTION: dict[str, tuple[Callable[..., Result], dict[str, int], int]] = {
    "full, one launch": (attention(), {"t": 150, "d": 16}, 64),
    "full": (attention(), {"b": 1, "t": 400, "d": 64}, 128),
    "cross": (attention(), {"t": 60, "s": 300, "d": 32, "e": 48}, 128),
    "grouped queries": (attention(), {"query_heads": 4, "t": 100, "s": 300, "d": 16}, 64),
    "padded": (attention(key_padding_mask=padding(2, 300)), {"t": 100, "s": 300, "d": 32}, 64),
    "causal": (attention(is_causal=True), {"b": 1, "t": 400, "d": 64}, 128),
    "causal, padded": (
        attention(is_causal=True, key_padding_mask=padding(2, 300)),
        {"t": 300, "d": 32, "query_heads": 4},
        64,
    ),
    "steps of 7": (attention(is_causal=True, tokens_per_step=7), {"b": 1, "t": 300, "d": 16}, 64),
    "steps of 100": (attention(is_causal=True, tokens_per_step=100), {"b": 1, "t": 300, "d": 32}, 64),
    "streamed": (streamed, {"b": 1, "t": 260, "d": 32}, 64),
    "relu": (attention(feature_map="relu"), {"t": 150, "d": 32}, 64),
    "causal, elu": (attention(is_causal=True, feature_map="elu"), {"b": 1, "t": 300, "d": 32}, 64),
    "learnt features": (attention(), {"b": 1, "t": 300, "d": 32}, 64),
    "causal, learnt features": (attention(is_causal=True), {"b": 1, "t": 300, "d": 32}, 64),
}
HARD = {
    f"{kind}, {name}": (run, name)
    for name in IN_REACH
    for kind, run in (("full", attention()), ("causal", attention(is_causal=True)))
}
NORMS = {"": 1.0, ", norms x 2": 2.0}


def decompose(kernel_size: int | list[int], masked: bool = False, **options: Any) -> Callable[..., Result]:
    def run(x: Tensor, impl: str) -> Result:
        mask = None
        if masked:
            mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(4)).to(x.device) > 0.3
        return series_decomposition(x, kernel_size, mask=mask, impl=impl, **options)

    return run


DECOMPOSITIONS = {
    "decomposition": decompose(25),
    "decomposition, causal": decompose(12, causal=True),
    "decomposition, masked": decompose(25, masked=True),
    "decomposition, several sizes": decompose([3, 24, 70]),
    "decomposition, several sizes, masked": decompose([3, 24, 70], masked=True),
}
CASES = (*ATTENTION, *HARD, *DECOMPOSITIONS)


def differentiated(run: Callable[..., Result], inputs: list[Tensor], dtype: torch.dtype, *arguments: Any) -> Result:
    """Return the results of a function and the gradients of its inputs, computed in `dtype`."""
    leaves = [x.to(DEVICE, torch.promote_types(x.dtype, dtype)).requires_grad_() for x in inputs]
    results = run(*leaves, *arguments)
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(x.shape, generator=generator).to(inputs[0].dtype).to(x) for x in results]
    return *(x.detach() for x in results), *torch.autograd.grad(results, leaves, upstream)


def relative_errors(results: Result, exact: Result) -> list[float]:
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(results, exact, strict=True)]


def problem(case: str, dtype: torch.dtype, norms: float) -> tuple[Callable[..., Result], list[Tensor]]:
    """Return the function of a case, of the inputs and the implementation, and the inputs; learnt features are one."""
    if case in DECOMPOSITIONS:
        return DECOMPOSITIONS[case], [torch.randn(2, 300, 20).to(dtype)]
    if case in HARD:
        run, name = HARD[case]
        inputs, drawn = list(ADVERSARIAL[name]()), RandomFeatures(PROJECTION, paired=True)
    else:
        run, shape, num_features = ATTENTION[case]
        inputs = list(qkv(**shape, dtype=torch.float64))
        generator = torch.Generator().manual_seed(1)
        drawn = draw_features(num_features, shape["d"], generator=generator, dtype=torch.float32)
    inputs = [(x * scale).to(dtype) for x, scale in zip(inputs, (norms, norms, 1.0), strict=True)]
    if "learnt" in case:
        inputs.append(drawn.projection)

    def attend(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> Result:
        *learnt, impl = arguments
        wide = torch.promote_types(query.dtype, torch.float32)
        projection = learnt[0] if learnt else drawn.projection.to(DEVICE, wide)
        return run(query, key, value, drawn._replace(projection=projection), impl)

    return attend, inputs


def errors(case: str, dtype: torch.dtype, norms: float = 1.0) -> tuple[list[float], list[float]]:
    """Return the errors of the kernels and of plain torch: of the output, or of both parts, then of all gradients."""
    run, inputs = problem(case, dtype, norms)
    exact = differentiated(run, inputs, torch.float64, "reference")
    kernels, plain = (relative_errors(differentiated(run, inputs, dtype, x), exact) for x in ("triton", "reference"))
    if case in HARD:
        generator = torch.Generator().manual_seed(6)
        half_ulp = torch.finfo(dtype).eps / 2
        moved = [x.double() * (1 + half_ulp * (2 * torch.rand(x.shape, generator=generator) - 1)) for x in inputs]
        sensitivity = relative_errors(differentiated(run, moved, torch.float64, "reference"), exact)
        floor = RECOMPUTED if dtype == torch.float32 else 0.0
        plain = [max(floor, *pair) for pair in zip(plain, sensitivity, strict=True)]
    return kernels, plain


def worst_share(case: str, kernels: list[float], plain: list[float]) -> float:
    """Return the largest part of its budget that any result takes."""
    budgets = [BUDGET] * len(kernels)
    if "learnt" in case:
        budgets[-1] = LEARNT_BUDGET
    return max(x / (budget * max(y, EPS)) for x, y, budget in zip(kernels, plain, budgets, strict=True))


def main() -> None:
    """Print the table: the worst output and the worst gradient of each case, kernels beside plain torch."""
    print("# Errors of the kernels in Triton's interpreter, beside plain torch\n")
    print(f"Relative Frobenius distance to float64; made by `kernel_precision.py`, torch {torch.__version__}.")
    print(
        "Budget: what the worst result takes of 2.25 times plain torch's error (learnt features' gradient: 2.75 times),"
    )
    print("errors below 2.4e-7 counted as that, of the adversarial inputs in float32 those below 3e-5.")
    print('Of adversarial inputs, "torch" is the larger of its error and of what rounding the inputs once changes.\n')
    print("| case | dtype | output | torch | gradients | torch | budget |\n| --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        for label, norms in NORMS.items() if case in ATTENTION else [("", 1.0)]:
            for name, dtype in DTYPES.items():
                torch.manual_seed(0)
                kernels, plain = errors(case, dtype, norms)
                results = 2 if case in DECOMPOSITIONS else 1
                cells = [max(x) for row in (kernels, plain) for x in (row[:results], row[results:])]
                share = worst_share(case, kernels, plain)
                row = [f"{cells[i]:.1e}" for i in (0, 2, 1, 3)]
                print(f"| {case}{label} | {name} | {' | '.join(row)} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        mend_bfloat16()
    main()
