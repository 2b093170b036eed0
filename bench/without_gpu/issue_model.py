"""Predict the kernels' speed from their machine code: which resource of a multiprocessor binds each of them.

    python bench issue_model [--head-dim 64 128] [--num-features 256] [--window 25] [--markdown]

Compiles the default bfloat16 launches for sm_90 without a GPU (compile_report.py), counts the instructions of the main
loop and those outside of it, and puts beside each other how long an H200 takes at least for one token of one head:

    issue    4 warp instructions a cycle and multiprocessor      exp      16 exponentials
    tensor   4096 dense bfloat16 FLOP                            L2, HBM  bytes over 5.5 and 4.3 TB/s, shared by all

The largest bounds a kernel from below; nothing overlaps perfectly, so that times will be above it. The roofline of the
last column counts what any implementation must do (bytes of HBM, tensor FLOP, exponentials), not instructions or second
reads. Instructions outside of the main loop are counted once a program of kernels that own tokens, branches for unusual
inputs included; kernels that own features run them once a walk, which is left out, and so are the kernels that only add
up states, which move them once, and the one launch of short inputs, which latency binds.

The decomposition is issue against traffic: instructions that are in no loop, and those of the loop over the rows that
all windows of a thread share, times its trips; the loops of the ends of a series are left out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from without_gpu.compile_report import Case, launch_causal, launch_decomposition, launch_favor
from without_gpu.offline_compile import compiled_launches, disassembled, main_loop

PROCESSORS, GIGAHERTZ = 132, 1.755
"""H100 and H200 SXM: multiprocessors, and the clock they sustain under tensor load."""

ISSUE, EXPONENTIALS, TENSOR_FLOP = 128, 16, 4096
"""Per cycle and multiprocessor: thread instructions, exponentials, dense bfloat16 FLOP."""

SEGMENT = 128
"""Tokens of a causal segment."""

HBM_BYTES, L2_BYTES = 4.3e12, 5.5e12
"""Per second: measured copy bandwidth of an H200; second-level cache reads."""

FLASH_TFLOPS = {
    ("full", "forward", 64): {1024: 392, 4096: 476, 16384: 497},
    ("full", "forward", 128): {1024: 565, 4096: 638, 16384: 648},
    ("causal", "forward", 64): {1024: 265, 4096: 420, 16384: 473},
    ("causal", "forward", 128): {1024: 423, 4096: 579, 16384: 616},
    ("causal", "backward", 128): {1024: 182, 4096: 444},
}
"""FlashAttention-3 on an H100 SXM5 by (kind, pass, head dim) and length, in TFLOP/s: forward in float16 (figures of the
paper, Shah et al. 2024), backward in bfloat16 (facebookexperimental/triton pull request 3582; up to 8192 tokens)."""


@dataclass(frozen=True)
class Work:
    """What a kernel does for one token and head, of m features of which half are projected when they are paired.

    Attributes:
        projections: products of width d with the projection, once a pair.
        products: products of width e with every feature.
        pairs: products of a segment's width with every feature.
        pair_rows: products of a segment's width with rows of width e.
        exponentials: of every feature.
        vectors: rows of the token read or written.
        states: whether a state of every segment is read or written.
        owner: of a program.
    """

    projections: int
    products: int
    pairs: int = 0
    pair_rows: int = 0
    exponentials: int = 1
    vectors: int = 2
    states: bool = False
    owner: str = "tokens"


WORK = {
    "_summarize_kernel": Work(1, 1, owner="features"),
    "_attend_kernel": Work(1, 1),
    "_token_gradient_kernel": Work(2, 1, vectors=4),
    "_landmark_gradient_kernel": Work(1, 1, owner="features"),
    "_token_gradient_kernel[keys]": Work(2, 2, vectors=4),
    "_projection_gradient_kernel": Work(2, 1, owner="features"),
    "_projection_gradient_kernel[keys]": Work(2, 1, owner="features"),
    "_prefix_states_kernel": Work(1, 1, states=True, owner="features"),
    "_causal_attend_kernel": Work(2, 1, 1, 1, 2, 4, states=True),
    "_causal_query_gradient_kernel": Work(3, 1, 1, 1, 2, 6, states=True),
    "_received_walk_kernel": Work(1, 1, states=True, owner="features"),
    "_causal_key_gradient_kernel": Work(3, 2, 2, 2, 2, 6, states=True),
}

PASSES = {
    ("full", "forward"): ("_summarize_kernel", "_attend_kernel"),
    ("full", "backward"): ("_token_gradient_kernel", "_landmark_gradient_kernel", "_token_gradient_kernel[keys]"),
    ("causal", "forward"): ("_prefix_states_kernel", "_causal_attend_kernel"),
    ("causal", "backward"): (
        "_prefix_states_kernel",
        "_causal_query_gradient_kernel",
        "_received_walk_kernel",
        "_causal_key_gradient_kernel",
    ),
}
"""Kernels that see every token, by kind and pass."""

SERIES_TENSORS = {"_decompose_kernel": (1, 3), "_adjoint_kernel": (2, 3)}
"""Of a decomposition's kernels, tensors that the loop reads, and tensors read or written in all."""

RESOURCES = ("issue", "exp", "tensor", "L2", "HBM")


def main() -> int:
    """Print one line a kernel, the sums of each pass, and with --markdown those beside FlashAttention-3."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64])
    parser.add_argument("--num-features", type=int, default=256)
    parser.add_argument("--window", type=int, default=25, help="of the decomposition, from 16 to 63 steps")
    parser.add_argument("--markdown", action="store_true", help="print the table of kernels/README.md instead")
    options = parser.parse_args()
    bounds = {}
    for d in options.head_dim:
        times = picoseconds(d, options.num_features)
        if not options.markdown:
            print_kernels(times, d, options.num_features)
        for (kind, passes), kernels in PASSES.items():
            bounds[kind, passes, d] = sum(max(times[x].values()) for x in kernels)
            floor = sum(max(times[x][y] for y in ("exp", "tensor", "HBM")) for x in kernels)
            if not options.markdown:
                share = floor / bounds[kind, passes, d]
                print(f"{kind} {passes}: {bounds[kind, passes, d]:.0f} ps at best, {share:.0%} of its roofline")
    if options.markdown:
        print(markdown(bounds))
    else:
        print_decomposition(options.window)
    return 0


def picoseconds(d: int, m: int) -> dict[str, dict[str, float]]:
    """Return the time that each kernel takes at least for a token and head, by resource."""
    found: dict[str, dict[str, float]] = {}
    walks = 0
    with compiled_launches(90) as launches:
        launch_favor(Case("favor", 90, "bfloat16", (d, m, "hyperbolic")))
        launch_causal(Case("causal", 90, "bfloat16", (d, m, "hyperbolic")))
        launch_favor(Case("favor", 90, "bfloat16", (d, m, "orthogonal")))  # learnt: the projection's gradient
    for function, compiled, arguments in launches:
        name = function.__name__ + ("[keys]" if arguments.get("KEYS") else "")
        if name not in WORK or (name.startswith("_causal") and not arguments["S"].WITHIN):
            continue
        if name == "_prefix_states_kernel":
            walks += 1
            if walks != 2:  # the first one sums the splits, the next one walks over short steps
                continue
        if name not in found:
            found[name] = cost(WORK[name], compiled.asm["cubin"], arguments, d, m)
    return found


def cost(work: Work, cubin: bytes, arguments: dict[str, Any], d: int, m: int) -> dict[str, float]:
    """Return picoseconds a token and head by resource."""
    spec = arguments["S"]
    pairs = 2 if spec.ANTITHETIC else 1
    landmarks = spec.BLOCK_M.value * pairs
    tokens = next(arguments[x] for x in ("BLOCK_T", "BLOCK_S", "BLOCK_N", "BLOCK_C") if x in arguments)
    segment = arguments.get("BLOCK_C", SEGMENT)
    loop, warps = main_loop(cubin), arguments["num_warps"]
    instructions = loop.instructions * (m / landmarks)
    if work.owner == "tokens":
        instructions += loop.outside
    flop = 2 * m * (d * (work.projections / pairs + work.products) + segment * work.pairs) + 2 * segment * d * (
        work.pair_rows
    )
    hbm = 2 * d * work.vectors + (2 * m * d + 8 * m) / segment * work.states
    l2 = hbm
    if work.owner == "tokens":
        l2 += m * (2 * d / pairs + 2 * d * (not work.states)) / tokens  # the projection, and one state for all tokens
    else:
        l2 += 2 * d * work.vectors * (m / min(landmarks, m) - 1)  # every feature tile reads every token
    cycle = 1e12 / (PROCESSORS * GIGAHERTZ * 1e9)
    return {
        "issue": instructions * warps * 32 / tokens / ISSUE * cycle,
        "exp": work.exponentials * m / EXPONENTIALS * cycle,
        "tensor": flop / TENSOR_FLOP * cycle,
        "L2": l2 / L2_BYTES * 1e12,
        "HBM": hbm / HBM_BYTES * 1e12,
    }


def print_kernels(times: dict[str, dict[str, float]], d: int, m: int) -> None:
    print(f"sm_90, bfloat16, d = e = {d}, m = {m}, hyperbolic: ps a token and head")
    print(f"{'kernel':34s} {' '.join(f'{x:>7s}' for x in RESOURCES)}  bound  roofline")
    for name, by_resource in times.items():
        bound = max(by_resource, key=lambda x: by_resource[x])
        floor = max(by_resource[x] for x in ("exp", "tensor", "HBM"))
        row = " ".join(f"{by_resource[x]:7.0f}" for x in RESOURCES)
        print(f"{name:34s} {row}  {bound:6s} {floor:7.0f}")


def print_decomposition(window: int) -> None:
    """Print what issue and traffic take for one value of a series of 64 channels, by dtype and kernel."""
    print(f"\nsm_90, decomposition in windows of {window}: fs a value")
    print(f"{'kernel':34s} {'dtype':9s} instructions   issue     HBM  of copy bandwidth, at most")
    for dtype, itemsize in (("bfloat16", 2), ("float32", 4)):
        with compiled_launches(90) as launches:
            launch_decomposition(Case("decomposition", 90, dtype, ((window,), False)))
        for function, compiled, arguments in launches:
            read, moved = SERIES_TENSORS[function.__name__]
            values = arguments["GROUPS"] * arguments["GROUP"] * arguments["BLOCK_C"] / (32 * arguments["num_warps"])
            code = disassembled(compiled.asm["cubin"])
            shared = next(x.body for x in code.loops if "LDG" in x.body)
            unrolled = sum(x == "LDG" for x in shared) / read
            instructions = (code.straight + (window - arguments["GROUP"]) * len(shared) / unrolled) / values
            issue = instructions / ISSUE * 1e6 / (PROCESSORS * GIGAHERTZ)
            traffic = moved * itemsize / HBM_BYTES * 1e15
            print(
                f"{function.__name__:34s} {dtype:9s} {instructions:12.1f} {issue:7.0f} {traffic:7.0f} "
                f"{traffic / max(issue, traffic):6.0%}"
            )


def markdown(bounds: dict[tuple[str, str, int], float]) -> str:
    """Render the bounds beside FlashAttention-3's published times, in ps a token and head."""
    lines = [
        "| attention, pass, d | favorcast, at least | FlashAttention-3 at 1k | 4k | 16k |",
        "| --- |" + " --- |" * 4,
    ]
    for (kind, passes, d), bound in bounds.items():
        published = FLASH_TFLOPS.get((kind, passes, d), {})
        cells = []
        for length in (1024, 4096, 16384):
            flop = (4 if passes == "forward" else 10) * length * d / (2 if kind == "causal" else 1)
            cells.append(f"{flop / published[length]:.0f}" if length in published else "-")
        lines.append(f"| {kind}, {passes}, {d} | {bound:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
