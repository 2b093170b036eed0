"""Predict the FAVOR kernels' speed from their machine code: which resource of a multiprocessor binds each of them.

    python bench/issue_model.py [--head-dim 64] [--num-features 256]

Compiles the default bfloat16 launches for sm_90 without a GPU (compile_report.py), counts the instructions of the main
loop, and puts beside each other the cycles that one multiprocessor needs for a logit (one token, one feature):

    issue    4 warp instructions a cycle                exp      16 exponentials a cycle
    tensor   4096 dense bfloat16 FLOP a cycle           L2, HBM  bytes over 5.5 and 4.3 TB/s, shared by all

The largest is the bound; nothing overlaps perfectly, so times will be above it. The roofline of the last column counts
what any implementation must do (bytes of HBM, tensor FLOP, exponentials), not instructions or second reads.
Left out are the kernels that only add up states, which move them once, and the one launch of short inputs, which
latency binds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from compile_report import Case, launch_favor
from offline_compile import compiled_launches, main_loop

PROCESSORS, GIGAHERTZ = 132, 1.755
"""H100 and H200 SXM: multiprocessors, and the clock they sustain under tensor load."""

ISSUE, EXPONENTIALS, TENSOR_FLOP = 128, 16, 4096
"""Per cycle and multiprocessor: thread instructions, exponentials, dense bfloat16 FLOP."""

HBM_BYTES, L2_BYTES = 4.3e12, 5.5e12
"""Per second: measured copy bandwidth of an H200; second-level cache reads."""


@dataclass(frozen=True)
class Work:
    """What a kernel does for one token and head; m features, of which half are projected when they are paired."""

    products: int
    projections: int
    token_vectors: int
    owner: str


WORK = {
    "_summarize_kernel": Work(products=1, projections=1, token_vectors=2, owner="features"),
    "_attend_kernel": Work(products=1, projections=1, token_vectors=2, owner="tokens"),
    "_token_gradient_kernel": Work(products=1, projections=2, token_vectors=4, owner="tokens"),
    "_landmark_gradient_kernel": Work(products=1, projections=1, token_vectors=2, owner="features"),
    "_token_gradient_kernel[keys]": Work(products=2, projections=2, token_vectors=4, owner="tokens"),
    "_projection_gradient_kernel": Work(products=1, projections=2, token_vectors=2, owner="features"),
    "_projection_gradient_kernel[keys]": Work(products=1, projections=2, token_vectors=2, owner="features"),
}
"""products: of width e a feature; projections: of width d, once a pair; token_vectors: rows read or written."""


def main() -> int:
    """Print one line a kernel, and the sums of forward and backward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--num-features", type=int, default=256)
    options = parser.parse_args()
    d, m = options.head_dim, options.num_features
    with compiled_launches(90) as launches:
        launch_favor(Case("favor", 90, "bfloat16", (d, m, "hyperbolic")))
        paired = len(launches)
        launch_favor(Case("favor", 90, "bfloat16", (d, m, "orthogonal")))  # learnt: the projection's gradient
    print(f"sm_90, bfloat16, d = e = {d}, m = {m}, hyperbolic: cycles a logit and multiprocessor, ps a token and head")
    print(f"{'kernel':34s} {'issue':>7s} {'exp':>7s} {'tensor':>7s} {'L2':>7s} {'HBM':>7s}  bound     ps  roofline ps")
    sums = {"forward": [0.0, 0.0], "backward": [0.0, 0.0]}
    for index, (function, compiled, arguments) in enumerate(launches):
        name = function.__name__ + ("[keys]" if arguments.get("KEYS") else "")
        is_projection = name.startswith("_projection")
        if name not in WORK or is_projection != (index >= paired):
            continue
        cycles = cycles_per_logit(WORK[name], compiled.asm["cubin"], arguments, d, m)
        bound = max(cycles, key=lambda x: cycles[x])
        necessary = max(cycles[x] for x in ("exp", "tensor", "HBM"))
        predicted, floor = (x * m / PROCESSORS / GIGAHERTZ * 1e3 for x in (cycles[bound], necessary))
        row = " ".join(f"{cycles[x]:7.4f}" for x in ("issue", "exp", "tensor", "L2", "HBM"))
        print(f"{name:34s} {row}  {bound:6s} {predicted:5.0f} {floor:8.0f}")
        if is_projection:
            continue
        total = sums["backward" if "gradient" in name else "forward"]
        total[0] += predicted
        total[1] += floor
    for name, (predicted, floor) in sums.items():
        print(f"{name}: {predicted:.0f} ps a token and head at best, {floor / predicted:.0%} of its roofline")
    return 0


def cycles_per_logit(work: Work, cubin: bytes, arguments: dict[str, Any], d: int, m: int) -> dict[str, float]:
    """Return the cycles one multiprocessor spends on a logit, by resource."""
    pairs = 2 if arguments.get("PAIRED") else 1
    landmarks = arguments["BLOCK_M"] * pairs
    tokens = next(arguments[x] for x in ("BLOCK_T", "BLOCK_S", "BLOCK_N") if x in arguments)
    threads = 32 * arguments["num_warps"]
    flop = 2 * d * (work.projections / pairs + work.products)
    hbm = 2 * d * work.token_vectors / m
    if work.owner == "tokens":
        l2 = 2 * (d / pairs + d) / tokens + hbm  # a token tile reads the projection and the landmark rows
    else:
        l2 = 2 * d * work.token_vectors / min(landmarks, m)  # a feature tile reads every token
    cycle = PROCESSORS * GIGAHERTZ * 1e9
    return {
        "issue": main_loop(cubin).instructions * threads / (landmarks * tokens) / ISSUE,
        "exp": 1 / EXPONENTIALS,
        "tensor": flop / TENSOR_FLOP,
        "L2": l2 / L2_BYTES * cycle,
        "HBM": hbm / HBM_BYTES * cycle,
    }


if __name__ == "__main__":
    sys.exit(main())
