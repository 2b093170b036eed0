"""Fixtures shared by the tests: fixed seeds, and uninitialised memory that is NaN.

Without a CUDA device the GPU kernels run in Triton's interpreter, which must be chosen before they are imported, and
whose bfloat16 `interpreter_bfloat16.py` mends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# `python -m pytest` puts the checkout on the path, where transformers would take kernels/ for Hugging Face's package.
CHECKOUT = Path(__file__).parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != CHECKOUT]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if find_spec("triton") is not None:
        from interpreter_bfloat16 import mend_bfloat16
        from quick_interpreter import patch_once_a_launch

        mend_bfloat16()
        patch_once_a_launch()

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # threads of several workers that share the cores would wait for each other
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # of the processes that tests start


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Let `pytest -n auto` use all cores, but on a CUDA machine one process, which has all memory of the device."""
    return 1 if torch.cuda.is_available() else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one process of `pytest -n auto`: what a file trains or compiles once is not done in each."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _kept_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test adds to the path: the command appends the working directory, which may be the checkout."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new, uninitialised tensors with NaN: an element nobody writes then shows."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_poisoned(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocate_poisoned

    names = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty"))
    for owner, name in names:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
