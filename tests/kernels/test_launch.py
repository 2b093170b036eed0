"""Launches that go straight to a binary are those that Triton would have made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from favorcast.kernels.dispatch.launch import _kind
from favorcast.kernels.favor.triton.tiles import rows_of

CASES = [
    "one launch",
    "keys split",
    "padded, grouped queries",
    "biased, grouped queries",
    "transposed",
    "learnt features",
    "two hops",
    "causal",
    "causal, biased",
    "causal, grouped queries",
    "steps",
    "long steps",
    "chunks",
    "mixture of averages",
    "masked average",
]


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Any]]:
    """The launches of a few calls of each case, each on tensors of its own."""
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("the stub of the driver is for machines without a CUDA device")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_DEFAULT_FP_FUSION": "0"}
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "straight_launches.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {name: calls for name, *calls in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_a_launch_without_triton_is_the_one_that_it_makes(recorded: dict[str, list[Any]], case: str):
    first, straight, looked_at = recorded[case]
    assert len(first) > 1
    assert straight == looked_at


def test_another_length_is_no_other_kind(recorded: dict[str, list[Any]]):
    first, other = recorded["looks"]
    assert first > 1
    assert other == 0


def test_kernels_fuse_products_and_sums_whatever_triton_does_by_default(recorded: dict[str, list[Any]]):
    assert recorded["fusions"] == [True]


@pytest.mark.parametrize(
    ("layout", "most"),
    [("heads first", 1), ("tokens first", 1), ("padded", 2), ("causal", 1), ("odd head dim", 3), ("decomposition", 3)],
)
def test_lengths_share_the_binaries_of_a_kernel(recorded: dict[str, list[Any]], layout: str, most: int):
    """Nobody waits for a compilation at every new length: what counts is whether 16 divides the strides.

    Those of batches and heads are divided together or not at all, but for widths that 16 does not divide.
    """
    (counts,) = recorded[f"binaries, {layout}"]
    assert {kernel for kernel, (one, at_all) in counts.items() if at_all > most * one} == set(), counts


def test_arguments_that_triton_compiles_differently_for_are_of_different_kinds():
    x = torch.zeros(2, 3, 32, 64)
    same = [x, torch.ones(1, 5, 48, 64)]
    other = [x[..., 1:], x[..., ::2], x.bfloat16(), torch.zeros(2, 3, 33, 60), x.transpose(2, 3)]
    kinds = [_kind(rows_of(tensor)) for tensor in same + other]
    assert kinds[0] == kinds[1]
    assert len(set(kinds)) == 1 + len(other)
    assert len({_kind(number) for number in (1, 2, 16, 2**31, 2**35 + 1, 1.0, None)}) == 7
    assert _kind(17) == _kind(2)
    assert _kind((x, None, (x, x))) == _kind((same[1], None, (same[1], x)))
    assert _kind((x, None)) != _kind((x, x))
