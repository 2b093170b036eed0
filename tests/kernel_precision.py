"""How far the GPU kernels are from float64, beside plain torch on the same inputs: what the error budget compares.

    TRITON_INTERPRET=1 python tests/kernel_precision.py > bench/results/interpreter-errors.md

Plain torch is `impl="reference"`: the same dtype in and out, sums in float32. Errors are relative Frobenius distances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from favor_textbook import qkv
from torch import Tensor

from favorcast.kernels import RandomFeatures, draw_features, favor_attention, series_decomposition, stream_attention

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BUDGET = 2.25
"""Error of the kernels allowed for one of plain torch."""

EPS = 2 * torch.finfo(torch.float32).eps
"""Where plain torch is exact, as the decomposition that sums in float64, results still round in float32."""

Result = tuple[Tensor, ...]


def attention(**options: Any) -> Callable[..., Result]:
    def attend(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, impl: str) -> Result:
        return (favor_attention(query, key, value, features, impl=impl, **options),)

    return attend


def streamed(query: Tensor, key: Tensor, value: Tensor, features: RandomFeatures, impl: str) -> Result:
    """Attend in three stretches, the last of a single token; gradients reach the first through the states."""
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
}


def differentiated(run: Callable[..., Result], inputs: list[Tensor], dtype: torch.dtype, *arguments: Any) -> Result:
    """Return the results of a function and the gradients of its inputs, computed in `dtype`."""
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in inputs]
    results = run(*leaves, *arguments)
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(x.shape, generator=generator).to(inputs[0].dtype).to(x) for x in results]
    return *(x.detach() for x in results), *torch.autograd.grad(results, leaves, upstream)


def relative_errors(results: Result, exact: Result) -> list[float]:
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(results, exact, strict=True)]


def errors(case: str, dtype: torch.dtype, norms: float = 1.0) -> tuple[list[float], list[float]]:
    """Return the errors of the kernels and of plain torch: of the outputs, then of the gradients of all inputs."""
    if case in DECOMPOSITIONS:
        run, inputs, arguments = DECOMPOSITIONS[case], [torch.randn(2, 300, 20).to(dtype)], ((), ())
    else:
        run, shape, num_features = ATTENTION[case]
        inputs = list(qkv(**shape, dtype=dtype))
        inputs[:2] = [x * norms for x in inputs[:2]]
        generator = torch.Generator().manual_seed(1)
        drawn = draw_features(num_features, shape["d"], generator=generator, device=DEVICE, dtype=torch.float32)
        arguments = (drawn,), (drawn._replace(projection=drawn.projection.double()),)
    exact = differentiated(run, inputs, torch.float64, *arguments[1], "reference")
    return tuple(
        relative_errors(differentiated(run, inputs, dtype, *arguments[0], impl), exact)
        for impl in ("triton", "reference")
    )


def main() -> None:
    """Print the table: the worst output and the worst gradient of each case, kernels beside plain torch."""
    print("# Errors of the kernels in Triton's interpreter, beside plain torch\n")
    print(f"Relative Frobenius distance to float64; made by `tests/kernel_precision.py`, torch {torch.__version__}.")
    print("Ratio: the largest of any output or gradient, of errors above 2.4e-7; the budget is 2.25.\n")
    print("| case | dtype | output | torch | gradients | torch | ratio |\n| --- | --- | --- | --- | --- | --- | --- |")
    for case in (*ATTENTION, *DECOMPOSITIONS):
        for label, norms in NORMS.items() if case in ATTENTION else [("", 1.0)]:
            for name, dtype in DTYPES.items():
                torch.manual_seed(0)
                kernels, plain = errors(case, dtype, norms)
                inputs = 3 if case in ATTENTION else 1
                cells = [max(x) for row in (kernels, plain) for x in (row[:-inputs], row[-inputs:])]
                ratio = max(x / max(y, EPS) for x, y in zip(kernels, plain, strict=True))
                row = [f"{cells[i]:.1e}" for i in (0, 2, 1, 3)]
                print(f"| {case}{label} | {name} | {' | '.join(row)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
