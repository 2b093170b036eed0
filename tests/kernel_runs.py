"""Whether the GPU kernels can run here: on a CUDA device, or in Triton's interpreter."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest
import torch


def _release(package: str) -> tuple[int, ...]:
    try:
        return tuple(int(x) for x in version(package).split(".")[:2])
    except PackageNotFoundError:
        return (0,)


INTERPRETER_IS_BROKEN = _release("triton") < (3, 7) and _release("numpy") >= (2, 4)
"""Triton 3.6's interpreter converts arrays of one element to integers, which numpy 2.4 refuses."""

RUNS_KERNELS = pytest.mark.skipif(
    find_spec("triton") is None or (not torch.cuda.is_available() and INTERPRETER_IS_BROKEN),
    reason="needs triton, and without a CUDA device an interpreter that works: triton >= 3.7 or numpy < 2.4",
)
