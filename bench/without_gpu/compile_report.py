"""Compile every shipped GPU kernel for every supported architecture, without a GPU, and report what it costs.

    python bench compile_report                       # the whole grid; a table, a JSON file and a verdict
    python bench compile_report --op favor --head-dim 64 --num-features 256 --architecture 90 --dtype bfloat16

A launch fails the report if it spills more registers than is known to pay, needs more shared memory than a program may
have, runs its products without tensor cores, or has ptxas serialise them. Exit code 1 then; 3 if --budget-seconds is
spent first: run again with --resume.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from harness.machine import ROOT, commit
from without_gpu.offline_compile import CompiledLaunch, compiled_launches, main_loop, resources, serialised_products

from favorcast.kernels import draw_features
from favorcast.kernels.decomposition.triton.launches import decompose_backward_triton, decompose_triton
from favorcast.kernels.favor.triton.causal import causal_triton
from favorcast.kernels.favor.triton.causal_backward import causal_backward_triton
from favorcast.kernels.favor.triton.full import full_triton
from favorcast.kernels.favor.triton.full_backward import full_backward_triton
from favorcast.kernels.favor.types import CausalInputs, CausalUpstream, FavorState, FeatureSpace, FullInputs

ARCHITECTURES = (80, 90, 100, 120)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Shared memory of one program in bytes (CUDA C++ programming guide, technical specifications per capability)."""

OPS = ("favor", "causal", "decomposition")
HEAD_DIMS = (16, 32, 64, 96, 128)
NUM_FEATURES = (64, 128, 256, 512)
KINDS = ("hyperbolic", "orthogonal")
DTYPES = ("bfloat16", "float16", "float32")
WINDOWS = ((3,), (25,), (64,), (128,), (256,), (512,), (4097,), (3, 25), (7, 12, 24, 48), (25, 1025))
WITHOUT_PRODUCTS = ("_merge_splits_kernel", "_reduce_gradient_kernel")
DEFECTIVE, UNFINISHED = 1, 3
IN_PLACE = ("_causal_attend_kernel", "_causal_query_gradient_kernel", "_causal_key_gradient_kernel")
"""Kernels that overwrite what they have read: without a barrier, one warp may overtake another."""
SHORT, LONG = 256, 4096
"""Tokens of the launches: a single launch for both hops, and enough for the keys to be split."""

SPILL_SHARE = {"_causal_": 0.3, "_prefix_states": 0.3, "_received_walk": 0.3, "": 0.1}
"""Of the instructions in a kernel's main loop, those that may move spilled registers, by the start of its name. Tiles
were chosen by time: a segment's pairs, beside its gradients, take more registers than there are, and smaller segments
cost more traffic than the spills."""

TILES_CHOSEN_WITH = "3.7."
"""The release of Triton whose compiler the tiles were chosen with; others allocate registers a little differently, and
may spill half as much again."""


class Case(NamedTuple):
    """What is launched: FAVOR attention of (head dim, features, kind), or a decomposition of (windows, masked)."""

    op: str
    architecture: int
    dtype: str
    problem: tuple

    def __str__(self) -> str:
        if self.op != "decomposition":
            return "d{} m{} {}".format(*self.problem)
        windows, masked = self.problem
        return f"k{','.join(map(str, windows))}{' masked' if masked else ''}"


@dataclass(frozen=True)
class Launch:
    """One compiled launch and what its binary needs."""

    case: Case
    kernel: str
    tiles: dict[str, int]
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    spill_share: float
    serialised: list[str]
    shared: int
    barriers: int
    tensor_instructions: dict[str, int]

    @property
    def explanation(self) -> str | None:
        """Say why a launch that spills is still the best one, if that is known."""
        allowed = next(share for name, share in SPILL_SHARE.items() if self.kernel.startswith(name))
        if not triton.__version__.startswith(TILES_CHOSEN_WITH):
            allowed *= 1.5
        if self.stack and self.spill_share <= allowed:
            return f"{self.spill_share:.0%} of the main loop are spills"
        return None

    @property
    def defects(self) -> list[str]:
        """Say what is wrong with it, if anything."""
        found = []
        limit = SHARED_LIMIT[self.case.architecture]
        if self.stack and self.explanation is None:
            found.append(f"{self.stack} bytes of stack, {self.spill_share:.0%} of the main loop")
        if self.serialised:
            found.append(f"products one after the other ({', '.join(self.serialised)})")
        if self.shared > limit:
            found.append(f"{self.shared} bytes of shared memory, the limit is {limit}")
        if self.kernel in IN_PLACE and not self.barriers:
            found.append("no barrier between its loads and its stores")
        if self.case.op != "decomposition" and not self.tensor_instructions and self.kernel not in WITHOUT_PRODUCTS:
            found.append("no tensor-core instruction")
        return found


def launch_favor(case: Case) -> None:
    """Launch every FAVOR kernel, forward and backward, in its default configuration, without and with a key bias."""
    head_dim, num_features, kind = case.problem
    dtype = getattr(torch, case.dtype)
    short, long = (torch.zeros(1, 1, length, head_dim, dtype=dtype) for length in (SHORT, LONG))
    drawn = draw_features(num_features, head_dim, kind=kind)
    space = FeatureSpace(drawn.projection, drawn.log_weight, head_dim**-0.5, "exponential", drawn.paired)
    learnt = not space.paired  # the projection's gradient has a kernel of its own, which is not for pairs
    for bias in (None, torch.zeros(1, 1, LONG)):
        full_triton(FullInputs(short, short, short, None if bias is None else bias[..., :SHORT], space, "triton"))
        inputs = FullInputs(long, long, long, bias, space, "triton")
        full_backward_triton(long, inputs, full_triton(inputs), learnt)


def launch_causal(case: Case) -> None:
    """Launch every kernel of causal attention: short steps with a state in and out, long steps, a step of decoding.

    Each without and with a key bias.
    """
    head_dim, num_features, kind = case.problem
    drawn = draw_features(num_features, head_dim, kind=kind)
    space = FeatureSpace(drawn.projection, drawn.log_weight, head_dim**-0.5, "exponential", drawn.paired)
    state = FavorState(torch.zeros(1, 1, num_features), torch.zeros(1, 1, num_features, head_dim))
    for (length, tokens_per_step), biased in product(((LONG, 1), (LONG, LONG // 8), (1, 1)), (False, True)):
        x = torch.zeros(1, 1, length, head_dim, dtype=getattr(torch, case.dtype))
        bias = torch.zeros(1, 1, length) if biased else None
        inputs = CausalInputs(x, x, x, bias, state, space, "triton", tokens_per_step)
        results = causal_triton(inputs)
        if length > 1:
            learnt = not space.paired
            causal_backward_triton(CausalUpstream(x, state), inputs, results, learnt)


def launch_decomposition(case: Case) -> None:
    """Launch the decomposition, forward and backward; several windows are mixed by weights."""
    windows, masked = case.problem
    x = torch.zeros(1, LONG, 64, dtype=getattr(torch, case.dtype))
    mask = torch.ones(x.shape, dtype=torch.bool) if masked else None
    weights = torch.ones(*x.shape, len(windows), dtype=x.dtype) if len(windows) > 1 else None
    decompose_triton(x, mask, weights, list(windows), False, False)
    decompose_backward_triton(x, x, None if weights is None else x, mask, weights, list(windows), False)


LAUNCHERS = {"favor": launch_favor, "causal": launch_causal, "decomposition": launch_decomposition}


def compile_case(case: Case) -> list[Launch]:
    """Compile all kernels of one case."""
    with compiled_launches(case.architecture) as launches:
        LAUNCHERS[case.op](case)
    return [describe(case, x) for x in launches]


def describe(case: Case, launch: CompiledLaunch) -> Launch:
    """Read what a compiled launch needs."""
    function, compiled, options = launch
    text = compiled.asm["ptx"]
    registers, stack = resources(compiled.asm["cubin"])
    loop = main_loop(compiled.asm["cubin"])
    counts = {name: text.count(name) for name in ("mma.sync", "wgmma.mma_async", "tcgen05.mma")}
    return Launch(
        case,
        kernel=function.__name__ + ("[keys]" if options.get("KEYS") else ""),
        tiles=tile_sizes(options),
        num_warps=options.get("num_warps", 4),
        num_stages=options.get("num_stages", 3),
        registers=registers,
        stack=stack,
        spill_share=loop.spills / max(1, loop.instructions),
        serialised=serialised_products(text, case.architecture),
        shared=compiled.metadata.shared,
        barriers=text.count("bar.sync"),
        tensor_instructions={name: count for name, count in counts.items() if count},
    )


def tile_sizes(options: dict[str, Any]) -> dict[str, int]:
    """Return the extents of a launch's tiles in tokens or steps, and in features."""
    sizes = {k.removeprefix("BLOCK_"): v for k, v in options.items() if k in {f"BLOCK_{x}" for x in "TSNC"}}
    return sizes | ({"M": options["S"].BLOCK_M.value} if "S" in options else {})


def table(report: list[Launch]) -> str:
    """Render one line a launch."""
    lines = [
        f"{'arch':4s} {'dtype':9s} {'problem':22s} {'kernel':31s} {'tiles':10s} warps stages registers stack "
        f"{'shared':>9s}  tensor instructions"
    ]
    for x in report:
        tiles = " ".join(f"{name}{size}" for name, size in x.tiles.items())
        instructions = ", ".join(f"{count} {name}" for name, count in x.tensor_instructions.items())
        remark = f"  <- {'; '.join(x.defects)}" if x.defects else f"  ({x.explanation})" if x.explanation else ""
        lines.append(
            f"{x.case.architecture:4d} {x.case.dtype:9s} {x.case!s:22s} {x.kernel:31s} {tiles:10s} {x.num_warps:5d} "
            f"{x.num_stages:6d} {x.registers:9d} {x.stack:5d} {x.shared / 1024:6.1f} KB  {instructions}{remark}"
        )
    return "\n".join(lines)


def main() -> int:
    """Compile the grid and say whether every default configuration is fit to ship."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--architecture", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--head-dim", type=int, nargs="+", default=list(HEAD_DIMS))
    parser.add_argument("--num-features", type=int, nargs="+", default=list(NUM_FEATURES))
    parser.add_argument("--features", nargs="+", default=list(KINDS))
    parser.add_argument("--window", type=int, nargs="+", help="single windows only; default: singles and mixtures")
    parser.add_argument("--json", type=Path, help="write the report here as well")
    parser.add_argument("--resume", action="store_true", help="take over what --json has of these sources and versions")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="start no case after this time")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    windows = WINDOWS if options.window is None else [(k,) for k in options.window]
    attention = list(product(options.head_dim, options.num_features, options.features))
    problems = {
        "favor": attention,
        "causal": attention,
        "decomposition": list(product(windows, (False, True))),
    }
    cases = [
        Case(op, architecture, dtype, problem)
        for op, architecture, dtype in product(options.op, options.architecture, options.dtype)
        for problem in problems[op]
    ]
    done = read_report(options.json) if options.resume and options.json else {}
    found = {case: done[case] for case in cases if case in done}
    compile_cases([case for case in cases if case not in done], found, options)
    report = [launch for case in cases for launch in found.get(case, [])]
    print(table(report))
    print(verdict(report, options.architecture))
    if any(x.defects for x in report):
        return DEFECTIVE
    if len(found) < len(cases):
        print(f"{len(cases) - len(found)} cases are left; run again with --resume")
        return UNFINISHED
    return 0


def compile_cases(cases: list[Case], found: dict[Case, list[Launch]], options: argparse.Namespace) -> None:
    """Compile cases in processes until the budget is spent, adding to what is found, and to the file after each."""
    begin = time.monotonic()
    waiting = iter(cases)
    with ProcessPoolExecutor(options.processes) as pool:
        running = {pool.submit(compile_case, case): case for case in islice(waiting, options.processes)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                found[running.pop(future)] = future.result()
                if time.monotonic() - begin < options.budget_seconds:
                    running |= {pool.submit(compile_case, case): case for case in islice(waiting, 1)}
            if options.json:
                write_report(options.json, found)


def write_report(path: Path, found: dict[Case, list[Launch]]) -> None:
    """Write the launches of all cases, and what they were compiled from."""
    launches = [asdict(launch) for launches in found.values() for launch in launches]
    partial = path.with_suffix(".partial")  # a run that is cut off leaves the old file whole
    partial.write_text(json.dumps({"versions": versions(), "launches": launches}, indent=1))
    partial.replace(path)


def read_report(path: Path) -> dict[Case, list[Launch]]:
    """Return the launches in a report by case; none if there is no report, or if it is of other sources or versions."""
    written = json.loads(path.read_text()) if path.exists() else {}
    found: dict[Case, list[Launch]] = {}
    if written.get("versions") == versions():
        for values in written["launches"]:
            op, architecture, dtype, problem = values.pop("case")
            case = Case(op, architecture, dtype, as_tuple(problem))
            found.setdefault(case, []).append(Launch(case, **values))
    return found


def versions() -> dict[str, str]:
    """Return what a binary depends on."""
    return {"torch": torch.__version__, "triton": triton.__version__, "favorcast": commit(ROOT)}


def as_tuple(value: Any) -> Any:
    """Return a list of lists as a tuple of tuples, which JSON does not tell apart."""
    return tuple(as_tuple(x) for x in value) if isinstance(value, list) else value


def verdict(report: list[Launch], architectures: list[int]) -> str:
    """Say in one line whether the report is clean."""
    faulty, explained = sum(bool(x.defects) for x in report), sum(x.explanation is not None for x in report)
    stack = f"no stack but in {explained} explained launches" if explained else "no stack"
    clean = f"{stack}, shared memory within limits, tensor cores for all products"
    names = ", ".join(f"sm_{x}" for x in architectures)
    return (
        f"triton {triton.__version__}: {len(report)} launches for {names}: {f'{faulty} DEFECTIVE' if faulty else clean}"
    )


if __name__ == "__main__":
    sys.exit(main())
