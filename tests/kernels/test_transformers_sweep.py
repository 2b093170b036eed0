"""Every architecture of the installed transformers: it runs FAVOR attention as the textbook has it, or it is refused.

Nothing third: no other attention under the name, no mask lost, no KeyError, no error about None. The counts in
kernels/README.md: `PYTHONPATH=tests/support python tests/kernels/test_transformers_sweep.py`.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import favorcast.kernels
from favorcast.kernels import register_with_transformers

transformers = pytest.importorskip("transformers", reason='pip install "favorcast[transformers]"')

from tiny_transformers import tiny_config, tiny_inputs  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_MAPPING  # noqa: E402
from transformers_textbook import register_textbook  # noqa: E402

NAMES = sorted(CONFIG_MAPPING.keys())
KERNELS = Path(favorcast.kernels.__file__).parent
PARTS = 8
BIGGEST = 20_000_000
"""Parameters of a model that is still run; a few do not shrink."""


SECONDS = 8
"""That transformers itself may take for building and running one."""


class NotRun(Exception):  # noqa: N818
    """A model that transformers itself does not build or run from the tiny configuration."""


def built(name: str, implementation: str) -> tuple[Any, Any]:
    """Return a model with random weights large enough to tell attentions apart, and its configuration."""
    torch.manual_seed(0)
    config_class = CONFIG_MAPPING[name]
    config = copy.deepcopy(tiny_config(config_class))
    model_class = MODEL_MAPPING[config_class]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    with torch.device("meta"):
        on_paper = model_class._from_config(copy.deepcopy(config), attn_implementation="eager")
    size = sum(p.numel() for p in on_paper.parameters())
    if size > BIGGEST:
        raise NotRun(f"{size} parameters")
    model = model_class._from_config(config, attn_implementation=implementation).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.is_floating_point():
            nn.init.normal_(parameter, std=0.15)
    return model, config


def floats(output: Any) -> list[Tensor]:
    """Return all floating-point tensors of an output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, (list, tuple)) else ()
    return [x for part in parts for x in floats(part)]


@torch.no_grad()
def run(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    return floats(model(**inputs))


def is_ours(error: BaseException) -> bool:
    """Whether an error is one of favorcast's own sentences."""
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, ValueError) and KERNELS in where.parents


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise NotRun if the block takes longer."""

    def stop(*args: Any) -> None:
        raise NotRun(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(name: str) -> str:
    """Say how an architecture takes FAVOR attention, raising AssertionError where it takes it wrongly."""
    try:
        with time_limit(SECONDS):
            eager, config = built(name, "eager")
            inputs = tiny_inputs(eager, config)
            expected_shapes = [x.shape for x in run(eager, inputs)]
    except Exception as error:  # whatever keeps transformers itself from running it
        return f"not run: {type(error).__name__}"
    try:
        model, _ = built(name, "favor")
    except Exception as error:
        if not is_ours(error):
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        return "refused when made"
    textbook, _ = built(name, "textbook")
    textbook.load_state_dict(model.state_dict())
    try:
        found = run(model, inputs)
    except Exception as error:
        if not is_ours(error):
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        return "refused when called"
    try:
        expected = run(textbook, inputs)
    except Exception as error:
        raise AssertionError(f"{name}: the textbook: {type(error).__name__}: {error}") from error
    assert [x.shape for x in found] == expected_shapes, name
    for one, other in zip(found, expected, strict=True):
        keep = torch.isfinite(other)
        scale = other[keep].abs().max().clamp(min=1.0) if keep.any() else 1.0
        assert torch.equal(keep, torch.isfinite(one)), name
        assert (one - other)[keep].abs().max().item() < 1e-3 * scale if keep.any() else True, (
            f"{name}: {(one - other)[keep].abs().max().item()}"
        )
    eager_found = run(eager, inputs)
    differs = any(not torch.allclose(a, b, atol=1e-4, equal_nan=True) for a, b in zip(eager_found, found, strict=True))
    return "equal" if differs else "equal, without attention on the interface"


def prepare() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    register_with_transformers()
    register_textbook()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_architecture_runs_by_the_textbook_or_is_refused(part):
    prepare()
    wrong = []
    for name in NAMES[part::PARTS]:
        if CONFIG_MAPPING[name] not in MODEL_MAPPING:
            continue
        try:
            outcome(name)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    prepare()
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    for name in sys.argv[1:] or NAMES:
        if CONFIG_MAPPING[name] in MODEL_MAPPING:
            try:
                found = outcome(name)
            except AssertionError as error:
                found = f"WRONG {error}"
            counts[found.partition(":")[0]] += 1
            if found != "equal":
                print(name, found[:200].replace("\n", " "), flush=True)
    print(dict(counts))
