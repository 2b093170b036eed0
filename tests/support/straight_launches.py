"""Compare launches that go straight to a binary with those that Triton looks at, on a CUDA driver that is a stub.

Run by test_launch.py, in a process whose kernels are compiled: it prints a line of JSON for each case, [name, launches,
launches of a second call on other tensors, and of a third for which nothing was known]. A launch is [kernel, its
binary, grid, arguments]. Addresses are written as the input they point into, with the offset, and others by the order
they appear in. Then come ["looks", of a call, of a call of another length], the launches Triton looked at, and a line
["binaries, LAYOUT", {kernel: [binaries of one length, of five lengths]}] for each layout. ["fusions", ...] tells
whether products and sums were fused in what was compiled.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import JITFunction
from without_gpu.stub_driver import install_stub

from favorcast.kernels import (
    attend,
    draw_features,
    favor_attention,
    moving_average,
    series_decomposition,
    stream_attention,
    summarize,
)
from favorcast.kernels.dispatch import launch as launch_module

launches: list[tuple[str, int, tuple[int, ...], list[Any]]] = []
fusions: set[bool] = set()
FEATURES = draw_features(32, 16)
LEARNT = draw_features(32, 16, kind="orthogonal").projection.requires_grad_()


class RecordingLauncher(CudaLauncher):
    """Triton's launcher, which also takes down what it is given."""

    def __init__(self, src: Any, metadata: Any) -> None:
        super().__init__(src, metadata)
        self.name = metadata.name
        fusions.add(metadata.enable_fp_fusion)

    def __call__(self, grid_x: int, grid_y: int, grid_z: int, stream: int, function: int, *arguments: Any) -> None:
        super().__call__(grid_x, grid_y, grid_z, stream, function, *arguments)
        launches.append((self.name, function, (grid_x, grid_y, grid_z), list(arguments[4:])))


def tokens(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, dtype=dtype).requires_grad_()


def differentiated(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return a function that calls another and differentiates it in all inputs that want it."""

    def call(*inputs: Tensor) -> tuple[Any, ...]:
        results = function(*inputs, **options, impl="triton")
        results = [results] if isinstance(results, Tensor) else list(results)
        wanted = [x for x in inputs if x.requires_grad]
        return *results, *torch.autograd.grad(results, wanted, [torch.ones_like(x) for x in results])

    return call


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    return favor_attention(query, key, value, FEATURES, key_padding_mask=mask, **options)


def biased(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, **options: Any) -> Tensor:
    return favor_attention(query, key, value, FEATURES, key_bias=bias, **options)


def learnt(query: Tensor, key: Tensor, value: Tensor, projection: Tensor, **options: Any) -> Tensor:
    return favor_attention(query, key, value, projection, **options)


def wide(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return favor_attention(query, key, value, draw_features(32, 20), **options)


def two_hops(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    return attend(query, summarize(key, value, FEATURES, **options), FEATURES, **options)


def streamed(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Two chunks: the second opens with the state of the first."""
    half = query.shape[2] // 2
    first, state = stream_attention(query[:, :, :half], key[:, :, :half], value[:, :, :half], None, FEATURES, **options)
    second, state = stream_attention(
        query[:, :, half:], key[:, :, half:], value[:, :, half:], state, FEATURES, **options
    )
    return first, second, *state


def mixture(x: Tensor, mask: Tensor, weights: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return series_decomposition(x, [3, 8], mask=mask, weights=weights, **options)


def masked_average(x: Tensor, mask: Tensor, **options: Any) -> Tensor:
    return moving_average(x, 5, mask=mask, **options)


def qkv(length: int, heads: int = 2, key_heads: int = 2, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [tokens(2, h, length, 16, dtype=dtype) for h in (heads, key_heads, key_heads)]


def series() -> list[Tensor]:
    return [tokens(2, 40, 3, dtype=torch.float32), torch.rand(2, 40, 3) > 0.3]


CASES: dict[str, tuple[Callable[..., Any], Callable[[], list[Tensor]]]] = {
    "one launch": (differentiated(attention), lambda: qkv(40)),
    "keys split": (differentiated(attention), lambda: qkv(700)),
    "padded, grouped queries": (
        differentiated(attention),
        lambda: [*qkv(300, heads=4, dtype=torch.float32), torch.rand(2, 300) > 0.5],
    ),
    "biased, grouped queries": (
        differentiated(biased),
        lambda: [*qkv(300, heads=4, dtype=torch.float32), tokens(2, 2, 300, dtype=torch.float32)],
    ),
    "transposed": (differentiated(attention), lambda: [tokens(2, 300, 2, 16).transpose(1, 2) for _ in range(3)]),
    "learnt features": (differentiated(learnt), lambda: [*qkv(300), LEARNT]),
    "two hops": (differentiated(two_hops), lambda: qkv(300)),
    "causal": (differentiated(attention, is_causal=True), lambda: qkv(700)),
    "causal, biased": (
        differentiated(biased, is_causal=True),
        lambda: [*qkv(300), tokens(2, 2, 300, dtype=torch.float32)],
    ),
    "causal, grouped queries": (differentiated(attention, is_causal=True), lambda: qkv(200, heads=4)),
    "steps": (differentiated(attention, is_causal=True, tokens_per_step=6), lambda: qkv(300)),
    "long steps": (differentiated(attention, is_causal=True, tokens_per_step=150), lambda: qkv(600)),
    "chunks": (differentiated(streamed), lambda: qkv(600)),
    "mixture of averages": (differentiated(mixture), lambda: [*series(), tokens(2, 40, 3, 2, dtype=torch.float32)]),
    "masked average": (differentiated(masked_average), series),
}


@contextmanager
def nothing_freed() -> Iterator[None]:
    """Keep what is allocated until the end: no two allocations then share an address."""
    kept = []

    def keeping(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kept_allocation(*arguments: Any, **options: Any) -> Tensor:
            kept.append(allocate(*arguments, **options))
            return kept[-1]

        return kept_allocation

    with (
        patch.object(torch, "empty", keeping(torch.empty)),
        patch.object(torch, "empty_like", keeping(torch.empty_like)),
        patch.object(torch, "empty_strided", keeping(torch.empty_strided)),
        patch.object(torch, "zeros", keeping(torch.zeros)),
        patch.object(Tensor, "new_empty", keeping(Tensor.new_empty)),
        patch.object(Tensor, "new_empty_strided", keeping(Tensor.new_empty_strided)),
    ):
        yield


def described(argument: Any, inputs: list[Tensor], seen: dict[int, int]) -> Any:
    """Return an argument of a launch without the addresses that differ from call to call."""
    if isinstance(argument, tuple):
        return [described(x, inputs, seen) for x in argument]
    address = argument.data_ptr() if isinstance(argument, Tensor) else argument
    if type(address) is not int or address < 1 << 32:  # no address: numbers stay as they are
        return address if isinstance(address, int | float | str | None) else str(address)
    for place, x in enumerate([*inputs, FEATURES.projection]):
        start = x.untyped_storage().data_ptr()
        if start <= address < start + x.untyped_storage().nbytes():
            return f"input {place} + {address - start}"
    return f"memory {seen.setdefault(address, len(seen))}"


LENGTHS = 1000, 1001, 1008, 1024, 1030
LAYOUTS: dict[str, Callable[[int], object]] = {
    "heads first": lambda n: differentiated(attention)(*qkv(n)),
    "tokens first": lambda n: differentiated(attention)(*(tokens(2, n, 2, 16).transpose(1, 2) for _ in range(3))),
    "padded": lambda n: differentiated(attention)(*qkv(n), torch.zeros(2, n, dtype=torch.bool)),
    "odd head dim": lambda n: differentiated(wide)(*(tokens(2, 2, n, 20) for _ in range(3))),
    "causal": lambda n: differentiated(attention, is_causal=True)(*qkv(n)),
    "decomposition": lambda n: differentiated(mixture)(
        tokens(2, n, 3, dtype=torch.float32), torch.zeros(2, n, 3) == 0, tokens(2, n, 3, 2, dtype=torch.float32)
    ),
}


def binaries(call: Callable[[int], object]) -> dict[str, list[int]]:
    """Return how many binaries of each kernel run at the first of the lengths, and at all of them."""
    counts: dict[str, list[int]] = {}
    launch_module._binaries.clear()
    for length in LENGTHS:
        call(length)
        known = {(signature[0].__name__, id(binary)) for signature, (binary, _) in launch_module._binaries.items()}
        for kernel, found in Counter(kernel for kernel, _ in known).items():
            counts[kernel] = [counts.get(kernel, [found])[0], found]
    return counts


def main() -> None:
    install_stub(90, RecordingLauncher)
    for name, (call, make_inputs) in CASES.items():
        calls = []
        for number in range(3):
            inputs = make_inputs()
            launches.clear()
            if number == 2:
                launch_module._binaries.clear()
            with nothing_freed():
                call(*inputs)
            seen: dict[int, int] = {}
            calls.append([[k, binary, grid, described(tuple(x), inputs, seen)] for k, binary, grid, x in launches])
        print(json.dumps([name, *calls]))
    print(json.dumps(["looks", *(looks(length) for length in (701, 733))]))
    for layout, call in LAYOUTS.items():
        print(json.dumps([f"binaries, {layout}", binaries(call)]))


def looks(length: int) -> int:
    """Return how many launches of attention, forward and backward, Triton looks at."""
    call = differentiated(attention)
    with patch.object(JITFunction, "run", autospec=True, side_effect=JITFunction.run) as run:
        call(*qkv(length, heads=8, key_heads=8))  # that many programs leave nothing to split
    return run.call_count


if __name__ == "__main__":
    main()
    print(json.dumps(["fusions", *fusions]))
