"""Compile every shipped GPU kernel for every supported architecture, without a GPU, and report what it costs.

    python bench/compile_report.py                       # the whole grid; a table, a JSON file and a verdict
    python bench/compile_report.py --head-dim 64 --num-features 256 --architecture 90 --dtype bfloat16

The launchers of favorcast run as they do on a device, on small CPU tensors, with Triton's driver replaced by one that
only knows its target: each launch is specialised and compiled exactly as it would be, and its binary is read with
`cuobjdump`. A launch fails the report if it spills registers (any stack), needs more shared memory than a program may
have, or runs its products without tensor cores. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from favorcast.kernels import draw_features
from favorcast.kernels.favor_attention_triton import full_attention_triton
from favorcast.kernels.favor_backward_triton import full_attention_backward_triton
from favorcast.kernels.random_features import FeatureSpace

ARCHITECTURES = (80, 90, 100, 120)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Shared memory of one program in bytes (CUDA C++ programming guide, technical specifications per capability)."""

TENSOR_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
HEAD_DIMS = (16, 32, 64, 96, 128)
NUM_FEATURES = (64, 128, 256, 512)
DTYPES = ("bfloat16", "float16", "float32")
WITHOUT_PRODUCTS = ("_merge_splits_kernel", "_reduce_gradient_kernel")
SHORT, LONG = 256, 4096
"""Tokens of the launches: a single one for both hops, and enough for the keys to be split."""

EXPLAINED = {
    ("_token_gradient_kernel[keys]", "float32", 128): "two accumulators and split TF32 operands of width 128: the "
    "smallest tile spills the least, 32 bytes",
}
"""Launches by (kernel, dtype, head dim) whose stack is known and still the best of all tiles tried."""


@dataclass(frozen=True)
class Launch:
    """One compiled launch and what its binary needs."""

    architecture: int
    dtype: str
    head_dim: int
    num_features: int
    features: str
    kernel: str
    tiles: dict[str, int]
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    shared: int
    tensor_instructions: dict[str, int]

    @property
    def explanation(self) -> str | None:
        """Say why a launch that spills is still the best one, if that is known."""
        return EXPLAINED.get((self.kernel, self.dtype, self.head_dim)) if self.stack else None

    @property
    def defects(self) -> list[str]:
        """Say what is wrong with it, if anything."""
        found = []
        if self.stack and (self.explanation is None or self.stack > 64):
            found.append(f"{self.stack} bytes of stack")
        if self.shared > SHARED_LIMIT[self.architecture]:
            found.append(f"{self.shared} bytes of shared memory, the limit is {SHARED_LIMIT[self.architecture]}")
        if not self.tensor_instructions and self.kernel not in WITHOUT_PRODUCTS:
            found.append("no tensor-core instruction")
        return found


class OfflineDriver:
    """A Triton driver without a device: it knows its target, which is all that compilation asks for."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


@contextmanager
def compiled_launches(architecture: int) -> Iterator[list[tuple[JITFunction, Any, dict[str, Any]]]]:
    """Compile launches instead of running them; yields the list they are appended to."""
    launches: list[tuple[JITFunction, Any, dict[str, Any]]] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        self.device_caches.clear()  # they belong to the previous target
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        launches.append((self, compiled, options))
        return compiled

    driver.set_active(OfflineDriver(architecture))
    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run


def resources(cubin: bytes) -> tuple[int, int]:
    """Return (registers, bytes of stack) of a binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage is not None, text
    return int(usage[1]), int(usage[2])


def favor_calls(dtype: str, head_dim: int, num_features: int, features: str) -> list[Callable[[], Any]]:
    """Return calls that together launch every FAVOR kernel, forward and backward, in its default configuration."""
    scalar = getattr(torch, dtype)
    short, long = (torch.zeros(1, 1, length, head_dim, dtype=scalar) for length in (SHORT, LONG))
    drawn = draw_features(num_features, head_dim, kind=features)
    space = FeatureSpace(drawn.projection, drawn.log_weight, head_dim**-0.5, "exponential", drawn.paired)
    results: list[Any] = []

    def forward_short() -> None:
        full_attention_triton(short, short, short, None, space, "triton")

    def forward() -> None:
        results.append(full_attention_triton(long, long, long, None, space, "triton"))

    def backward() -> None:
        learnt = not space.paired  # the projection's gradient has kernels of its own, which are not for pairs
        full_attention_backward_triton(long, long, long, long, None, space, "triton", results[-1], learnt)

    return [forward_short, forward, backward]


def compile_favor(case: tuple[int, str, int, int, str]) -> list[Launch]:
    """Compile all FAVOR kernels of one case (architecture, dtype, head dim, features, kind)."""
    architecture, dtype, head_dim, num_features, features = case
    report = []
    with compiled_launches(architecture) as launches:
        for call in favor_calls(dtype, head_dim, num_features, features):
            call()
    for function, compiled, options in launches:
        registers, stack = resources(compiled.asm["cubin"])
        text = compiled.asm["ptx"]
        counts = {name: text.count(name) for name in ("mma.sync", "wgmma.mma_async", "tcgen05.mma")}
        report.append(
            Launch(
                *case,
                kernel=function.__name__ + ("[keys]" if options.get("KEYS") else ""),
                tiles={k: v for k, v in options.items() if k in ("BLOCK_T", "BLOCK_S", "BLOCK_N", "BLOCK_M")},
                num_warps=options.get("num_warps", 4),
                num_stages=options.get("num_stages", 3),
                registers=registers,
                stack=stack,
                shared=compiled.metadata.shared,
                tensor_instructions={name: count for name, count in counts.items() if count},
            )
        )
    return report


def table(report: list[Launch]) -> str:
    """Render one line a launch."""
    lines = [
        f"{'arch':4s} {'dtype':9s} {'d':>3s} {'m':>4s}  {'features':11s} {'kernel':31s} {'tiles':16s} warps stages "
        f"registers stack {'shared':>9s}  tensor instructions"
    ]
    for x in report:
        tiles = " ".join(f"{name[-1]}{size}" for name, size in x.tiles.items())
        instructions = ", ".join(f"{count} {name}" for name, count in x.tensor_instructions.items())
        lines.append(
            f"{x.architecture:4d} {x.dtype:9s} {x.head_dim:3d} {x.num_features:4d}  {x.features:11s} {x.kernel:31s} "
            f"{tiles:16s} {x.num_warps:5d} {x.num_stages:6d} {x.registers:9d} {x.stack:5d} {x.shared / 1024:6.1f} KB"
            f"  {instructions}"
            + (f"  <- {'; '.join(x.defects)}" if x.defects else "")
            + (f"  ({x.explanation})" if x.explanation else "")
        )
    return "\n".join(lines)


def main() -> int:
    """Compile the grid and say whether every default configuration is fit to ship."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--head-dim", type=int, nargs="+", default=list(HEAD_DIMS))
    parser.add_argument("--num-features", type=int, nargs="+", default=list(NUM_FEATURES))
    parser.add_argument("--features", nargs="+", default=["hyperbolic", "orthogonal"])
    parser.add_argument("--json", type=Path, help="write the report here as well")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    cases = list(product(options.architecture, options.dtype, options.head_dim, options.num_features, options.features))
    with ProcessPoolExecutor(options.processes) as pool:
        report = [launch for launches in pool.map(compile_favor, cases) for launch in launches]
    print(table(report))
    if options.json:
        versions = {"torch": torch.__version__, "triton": triton.__version__}
        options.json.write_text(json.dumps({"versions": versions, "launches": [asdict(x) for x in report]}, indent=1))
    faulty = [x for x in report if x.defects]
    explained = sum(x.explanation is not None for x in report)
    stack = f"no stack but in {explained} explained launches" if explained else "no stack"
    verdict = f"{len(faulty)} DEFECTIVE" if faulty else f"{stack}, shared memory within limits, tensor cores everywhere"
    architectures = ", ".join(f"sm_{x}" for x in options.architecture)
    print(f"triton {triton.__version__}: {len(report)} launches compiled for {architectures}: {verdict}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
