"""Tile sizes, warps and stages of the FAVOR kernels, by architecture, operands and head dim.

Each cell reads TOKENSxFEATURESwWARPSsSTAGES; of paired features, FEATURES counts the pairs. Rows "half" are for
bfloat16 operands, "wide" for float32 and float16 inputs, whose softmax weights are float32 (TF32 products). The three
kernels over causal segments share the TOKENS of causal_attend, the most that a segment holds.

How the cells were chosen, until a GPU has timed them: for sm_90, "half", among tiles without spilled registers one with
few instructions a logit in its main loop, provided that second-level cache reads do not bind (`python bench
issue_model`); for all others the largest tile of a short list that compiles without spills, within the shared memory
and with tensor-core instructions (`python bench compile_report`, triton 3.7.1). The column 256 serves dims above 128;
for "wide" it was not searched, and spills. A timed row comes with the command and the GPU that chose it.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple


class LaunchConfig(NamedTuple):
    """How one kernel is launched: its tile of tokens, its tile of features, warps a program and pipeline stages."""

    tokens: int
    features: int
    num_warps: int
    num_stages: int


DIMS = (16, 32, 64, 128, 256)

TABLE = """
arch operands  kernel                 16           32           64           128          256
80   half      summarize              64x64w4s2    64x64w4s2    64x64w4s2    32x32w4s2    32x16w4s2
80   half      attend                 128x64w8s2   128x64w4s2   128x32w4s2   64x16w8s2    64x16w4s2
80   half      short                  64x32w4s2    64x16w4s2    64x16w4s2    -            -
80   half      query_gradient         128x64w4s2   128x32w4s2   64x32w4s2    64x16w8s2    32x32w4s2
80   half      landmark_gradient      64x64w4s2    64x64w4s2    64x64w4s2    64x32w4s2    32x32w4s2
80   half      key_gradient           128x32w4s2   64x32w4s2    64x16w4s2    16x16w4s2    16x16w4s2
80   half      projection_gradient    64x64w4s2    32x32w4s2    64x32w4s2    64x32w4s2    32x16w4s2
80   half      prefix_states          64x64w4s2    64x64w4s2    64x64w4s2    32x32w4s2    32x16w4s2
80   half      causal_attend          64x32w4s1    64x32w4s1    64x16w4s1    32x32w4s1    32x16w8s1
80   half      causal_query_gradient  64x32w4s1    64x32w4s1    64x16w4s1    32x32w4s1    32x16w8s1
80   half      received_walk          64x64w4s2    64x64w4s2    64x64w4s2    32x32w4s2    32x16w4s2
80   half      causal_key_gradient    64x32w4s1    64x32w4s1    64x16w4s1    32x32w4s1    32x16w8s1
80   wide      summarize              32x64w4s2    32x64w4s2    32x32w4s2    32x16w4s2    16x16w8s1
80   wide      attend                 64x32w4s2    64x32w4s2    64x16w4s2    16x16w4s2    16x16w8s1
80   wide      short                  32x16w4s2    32x16w4s2    -            -            -
80   wide      query_gradient         64x32w4s2    64x32w4s2    32x16w4s2    16x16w8s2    16x16w8s1
80   wide      landmark_gradient      32x64w4s2    32x32w4s2    32x16w4s2    32x16w4s2    16x16w8s1
80   wide      key_gradient           64x32w4s2    64x16w4s2    16x16w4s2    16x16w8s2    16x16w8s1
80   wide      projection_gradient    32x64w4s2    32x64w4s2    32x32w4s2    16x16w8s2    16x16w8s1
80   wide      prefix_states          32x32w4s2    32x32w4s2    32x32w4s2    16x16w4s2    16x16w8s1
80   wide      causal_attend          32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
80   wide      causal_query_gradient  32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
80   wide      received_walk          32x32w4s2    32x32w4s2    32x32w4s2    16x16w4s2    16x16w8s1
80   wide      causal_key_gradient    32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
90   half      summarize              64x128w8s1   64x128w8s1   64x128w8s1   64x128w8s1   32x16w4s2
90   half      attend                 128x64w4s2   256x64w8s2   256x32w8s2   128x64w8s2   32x32w4s2
90   half      short                  64x64w4s2    64x32w4s2    64x32w4s2    -            -
90   half      query_gradient         128x32w4s2   256x32w8s2   256x32w8s2   128x32w8s2   32x32w4s2
90   half      landmark_gradient      64x64w4s2    64x64w4s2    64x128w8s2   32x64w4s2    32x32w4s2
90   half      key_gradient           128x32w4s2   128x32w8s2   128x32w8s2   128x32w8s2   16x16w4s2
90   half      projection_gradient    64x64w4s2    64x64w4s2    64x64w4s2    64x64w4s2    32x16w4s2
90   half      prefix_states          128x128w8s1  128x128w8s1  128x128w8s1  64x128w8s1   32x16w4s2
90   half      causal_attend          128x32w8s2   128x32w8s2   128x32w8s2   128x32w8s2   64x16w8s1
90   half      causal_query_gradient  128x32w8s2   128x32w8s2   128x32w8s2   128x32w8s2   64x16w8s1
90   half      received_walk          64x128w8s2   64x128w8s2   64x128w8s2   64x128w8s2   32x16w4s2
90   half      causal_key_gradient    128x16w8s1   128x16w8s1   128x16w8s1   128x16w8s1   64x16w8s1
90   wide      summarize              32x64w4s2    32x64w4s2    32x64w4s2    16x16w4s2    16x16w8s1
90   wide      attend                 64x32w4s2    64x32w4s2    64x32w4s2    16x16w4s2    16x16w8s1
90   wide      short                  32x16w4s2    32x16w4s2    -            -            -
90   wide      query_gradient         64x32w4s2    64x32w4s2    64x32w4s2    16x16w8s2    16x16w8s1
90   wide      landmark_gradient      32x64w4s2    32x64w4s2    32x64w4s2    32x16w4s2    16x16w8s1
90   wide      key_gradient           64x32w4s2    64x16w4s2    16x16w4s2    16x16w8s2    16x16w8s1
90   wide      projection_gradient    32x64w4s2    32x64w4s2    32x64w4s2    16x16w4s2    16x16w8s1
90   wide      prefix_states          64x64w4s1    64x64w4s1    64x64w4s1    32x32w4s2    16x16w8s1
90   wide      causal_attend          64x32w4s1    64x32w4s1    64x32w4s1    64x32w4s1    16x16w8s1
90   wide      causal_query_gradient  64x32w4s1    64x32w4s1    64x32w4s1    64x32w4s1    16x16w8s1
90   wide      received_walk          64x64w4s1    64x64w4s1    64x64w4s1    32x32w4s2    16x16w8s1
90   wide      causal_key_gradient    64x32w4s1    64x32w4s1    64x32w4s1    64x32w4s1    16x16w8s1
100  half      summarize              64x64w4s2    64x32w4s2    64x64w4s2    64x64w4s2    32x16w4s2
100  half      attend                 128x32w4s2   128x32w4s2   128x64w8s2   64x32w4s2    64x32w4s2
100  half      short                  64x32w4s2    64x32w4s2    64x32w4s2    -            -
100  half      query_gradient         128x32w4s2   64x64w4s2    64x64w8s2    64x32w4s2    64x32w4s2
100  half      landmark_gradient      64x64w4s2    64x64w4s2    64x64w4s2    64x32w4s2    32x32w4s2
100  half      key_gradient           64x16w4s2    64x32w4s2    64x32w4s2    64x16w4s2    16x16w4s2
100  half      projection_gradient    64x64w4s2    64x64w4s2    64x64w4s2    64x64w4s2    32x16w4s2
100  half      prefix_states          64x64w4s2    64x64w4s2    64x64w4s2    64x32w4s2    32x16w4s2
100  half      causal_attend          64x32w4s1    64x32w4s1    64x32w4s1    64x32w4s1    32x16w8s1
100  half      causal_query_gradient  64x32w4s1    64x32w4s1    64x32w4s1    64x32w4s1    32x16w8s1
100  half      received_walk          64x64w4s2    64x64w4s2    64x64w4s2    64x32w4s2    32x16w4s2
100  half      causal_key_gradient    64x32w4s1    64x32w4s1    64x32w4s1    64x32w4s1    32x16w8s1
100  wide      summarize              32x64w4s2    32x64w4s2    32x32w4s2    16x16w4s2    16x16w8s1
100  wide      attend                 64x32w4s2    64x32w4s2    32x16w4s2    16x16w4s2    16x16w8s1
100  wide      short                  32x16w4s2    32x16w4s2    -            -            -
100  wide      query_gradient         64x32w4s2    64x32w4s2    32x16w4s2    16x16w8s2    16x16w8s1
100  wide      landmark_gradient      32x64w4s2    32x64w4s2    32x32w4s2    32x16w4s2    16x16w8s1
100  wide      key_gradient           64x32w4s2    64x16w4s2    16x16w4s2    16x16w8s2    16x16w8s1
100  wide      projection_gradient    32x64w4s2    32x32w4s2    32x16w4s2    16x16w4s2    16x16w8s1
100  wide      prefix_states          32x32w4s2    32x32w4s2    32x32w4s2    16x16w4s2    16x16w8s1
100  wide      causal_attend          32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
100  wide      causal_query_gradient  32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
100  wide      received_walk          32x32w4s2    32x32w4s2    32x32w4s2    16x16w4s2    16x16w8s1
100  wide      causal_key_gradient    32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
120  half      summarize              64x64w4s2    64x64w4s2    64x64w4s2    64x32w4s2    32x16w4s2
120  half      attend                 128x64w4s2   128x32w4s2   128x32w4s2   64x32w8s2    64x16w4s2
120  half      short                  64x32w4s2    64x16w4s2    64x16w4s2    -            -
120  half      query_gradient         128x64w4s2   128x32w4s2   128x32w8s2   64x16w4s2    32x32w4s2
120  half      landmark_gradient      64x64w4s2    64x32w4s2    64x64w4s2    64x32w4s2    32x32w4s2
120  half      key_gradient           128x32w4s2   128x32w8s2   64x16w4s2    16x16w4s2    16x16w4s2
120  half      projection_gradient    64x64w4s2    64x64w4s2    64x32w4s2    64x32w4s2    16x16w4s2
120  half      prefix_states          64x64w4s2    64x64w4s2    64x64w4s2    32x32w4s2    32x16w4s2
120  half      causal_attend          64x32w4s1    64x32w4s1    64x16w4s1    32x32w4s1    32x16w8s1
120  half      causal_query_gradient  64x32w4s1    64x32w4s1    64x16w4s1    32x32w4s1    32x16w8s1
120  half      received_walk          64x64w4s2    64x64w4s2    64x64w4s2    32x32w4s2    32x16w4s2
120  half      causal_key_gradient    64x32w4s1    64x32w4s1    64x16w4s1    32x32w4s1    32x16w8s1
120  wide      summarize              32x64w4s2    32x64w4s2    32x32w4s2    32x16w4s2    16x16w8s1
120  wide      attend                 64x32w4s2    64x16w4s2    64x16w4s2    16x16w4s2    16x16w8s1
120  wide      short                  32x16w4s2    32x16w4s2    -            -            -
120  wide      query_gradient         64x32w4s2    64x16w4s2    32x16w4s2    16x16w8s2    16x16w8s1
120  wide      landmark_gradient      32x64w4s2    32x32w4s2    32x16w4s2    32x16w4s2    16x16w8s1
120  wide      key_gradient           64x16w4s2    64x16w4s2    16x16w4s2    16x16w8s2    16x16w8s1
120  wide      projection_gradient    32x64w4s2    32x64w4s2    32x32w4s2    16x16w8s2    16x16w8s1
120  wide      prefix_states          32x32w4s2    32x32w4s2    32x32w4s2    16x16w4s2    16x16w8s1
120  wide      causal_attend          32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
120  wide      causal_query_gradient  32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
120  wide      received_walk          32x32w4s2    32x32w4s2    32x32w4s2    16x16w4s2    16x16w8s1
120  wide      causal_key_gradient    32x16w4s1    32x16w4s1    32x16w4s1    16x16w8s1    16x16w8s1
"""


@lru_cache(maxsize=512)
def launch_config(kernel: str, dim: int, wide: bool, architecture: int) -> LaunchConfig:
    """Return the tabled configuration for the larger of the padded dims, on the nearest tabled architecture.

    Args:
        kernel: name in the table.
        dim: padded head or value dim, whichever is larger.
        wide: whether softmax weights are float32 in products, not bfloat16.
        architecture: compute capability, 90 for 9.0.
    """
    nearest = next((x for x in DIMS if x >= dim), DIMS[-1])
    return _rows()[_tabled(architecture), "wide" if wide else "half", kernel][nearest]


def _tabled(architecture: int) -> int:
    """Return the tabled architecture with the same tensor cores; the one with least shared memory for all others."""
    if architecture in (80, 87):
        return 80
    if 90 <= architecture < 120:
        return 90 if architecture < 100 else 100
    return 120  # sm_86, sm_89, sm_120: mma.sync, 99 KB of shared memory a program


@cache
def _rows() -> dict[tuple[int, str, str], dict[int, LaunchConfig]]:
    table = {}
    for line in TABLE.strip().splitlines()[1:]:
        architecture, operands, kernel, *cells = line.split()
        configs = [LaunchConfig(*map(int, re.split("[xws]", x))) for x in cells if x != "-"]
        table[int(architecture), operands, kernel] = dict(zip(DIMS, configs, strict=False))
    return table
