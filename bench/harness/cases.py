"""What a bench declares: cases, inputs, providers, the exact result and a model of the work.

A module `suites/<op>.py` is picked up by `run.py` from its name and defines

    cases(scale) -> list[Case]                      scale is "quick", "cpu" or "gpu"
    inputs(case, device) -> dict[str, Tensor]       the same for all providers of a case
    providers(case, device) -> list[Provider]       the first one is the yardstick of the ratios
    expected(case, inputs, target) -> Expected      in float64, where the correctness gate compares
    work(case, passes, target) -> Work | None       what the computation needs at least, where there is a model

and optionally `PASSES`, the passes it knows ("forward", "forward+backward"). Everything else is done by `run.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Impl = Literal["triton", "reference"]
Scale = Literal["quick", "cpu", "gpu"]
Passes = Literal["forward", "forward+backward"]
PASSES: tuple[Passes, ...] = ("forward", "forward+backward")
DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Shape(Protocol):
    """Sizes of a case; `str` gives them as in the result files, with the length as `l<number>`."""

    @property
    def length(self) -> int:
        """The size that the plots have on their x axis, in tokens or steps."""
        ...


class Tolerance(NamedTuple):
    """Largest allowed Frobenius distance to float64, relative to the exact result."""

    output: float
    gradients: float


OUR_TOLERANCE = {
    torch.float32: Tolerance(5e-5, 1e-4),
    torch.float16: Tolerance(1e-2, 3e-2),
    torch.bfloat16: Tolerance(1e-2, 3e-2),
}
"""A few times what rounding of the operands alone costs (float32: three TF32 products count as float32)."""

PEER_TOLERANCE = Tolerance(5e-2, 1e-1)
"""Peers choose their own precision; the gate keeps out results of another function, and the error is in the table."""


@dataclass(frozen=True)
class Case:
    """One row group of a table: an operation on one shape in one dtype."""

    op: str
    shape: Shape
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.op} {self.shape} {DTYPE_NAMES[self.dtype]}"


class Prepared(NamedTuple):
    """A provider on given inputs: a call without arguments, and the tensors it is differentiated in, by name."""

    call: Callable[[], Tensor | tuple[Tensor, ...]]
    leaves: dict[str, Tensor]


@dataclass(frozen=True)
class Provider:
    """One implementation to compare.

    Attributes:
        name: as in the tables.
        prepare: takes the case's inputs; raises ModuleNotFoundError where the peer is not installed.
        target: which exact function it must equal; peers may compute another one (softmax attention).
        tolerance: of the gate; None is PEER_TOLERANCE.
        group: "core", or "peers" for those that take long to compile or may fail.
        passes: what it can do.
        skip: why it is not run on this case, if so: said in the table.
        waits: whether it waits for the device within a call, which no CUDA graph can hold: it is not captured then.
    """

    name: str
    prepare: Callable[[dict[str, Tensor]], Prepared]
    target: str = "favor"
    tolerance: Tolerance | None = None
    group: Literal["core", "peers"] = "core"
    passes: tuple[Passes, ...] = PASSES
    skip: str | None = None
    waits: bool = False


class Expected(NamedTuple):
    """The exact result where it is compared.

    Attributes:
        upstream: gradients of the outputs, full size and zero outside the compared part, in the case's dtype.
        outputs: (index, exact value in float64) for each output.
        gradients: name of a leaf to (index, exact value in float64).
    """

    upstream: tuple[Tensor, ...]
    outputs: list[tuple[tuple, Tensor]]
    gradients: dict[str, tuple[tuple, Tensor]]


class Work(NamedTuple):
    """The least that a computation needs, whoever does it: memory traffic, floating point operations, exponentials."""

    bytes: float
    flops: float
    exps: float

    def __add__(self, other: Work) -> Work:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: float) -> Work:
        """Return the work of `count` such computations."""
        return Work(*(count * x for x in self))


class BenchModule(Protocol):
    """What `run.py` asks of a module `suites/<op>.py`."""

    def cases(self, scale: Scale) -> list[Case]: ...
    def inputs(self, case: Case, device: torch.device) -> dict[str, Tensor]: ...
    def providers(self, case: Case, device: torch.device) -> list[Provider]: ...
    def expected(self, case: Case, inputs: dict[str, Tensor], target: str) -> Expected: ...
    def work(self, case: Case, passes: Passes, target: str) -> Work | None: ...


def leaves(inputs: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Return the named inputs as leaves that require gradients, without copying them."""
    return {name: inputs[name].detach().requires_grad_() for name in names}


def our_implementations(device: torch.device) -> dict[str, Impl]:
    """Return provider name to `impl`: on a GPU the kernels first; on a CPU they join where Triton interprets them."""
    if device.type == "cuda":
        return {"favorcast triton": "triton", "favorcast reference": "reference"}
    found: dict[str, Impl] = {"favorcast reference": "reference"}
    try:
        from triton import knobs
    except ImportError:
        return found
    if knobs.runtime.interpret:
        found["favorcast triton (interpreted)"] = "triton"
    return found
