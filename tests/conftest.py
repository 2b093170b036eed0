"""Fixtures shared by the tests: fixed seeds, and uninitialised memory that is NaN.

Without a CUDA device the GPU kernels run in Triton's interpreter, which must be chosen before they are imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
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


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new, uninitialised tensors with NaN: an element nobody writes then shows.

    No call follows a launch plan, which would allocate by other ways, and not see what a test changes in a launcher.
    """
    monkeypatch.setattr("favorcast.kernels.launch_plans.PLANNED_DEVICES", set())

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_poisoned(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocate_poisoned

    names = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty"))
    for owner, name in names:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
