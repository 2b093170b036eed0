"""The correctness gate, and the calls that are timed behind it: no number comes from a wrong result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from harness.cases import PEER_TOLERANCE, Case, Expected, Passes, Prepared, Provider
from torch import Tensor


class Failure(Exception):  # noqa: N818 - a result, not an error of ours
    """Why a provider has no number: its status and message."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def gate(provider: Provider, case: Case, passes: Passes, prepared: Prepared, exact: Expected) -> float:
    """Return the error against float64, or raise a `Failure` if it is beyond the tolerance or not a number."""
    tolerance = provider.tolerance or PEER_TOLERANCE
    with torch.set_grad_enabled(passes != "forward"):
        outputs = as_tuple(prepared.call())
    worst = _check("output", outputs, exact.outputs, tolerance.output)
    if passes == "forward":
        return worst
    gradients = torch.autograd.grad(outputs, list(prepared.leaves.values()), exact.upstream, allow_unused=True)
    found = dict(zip(prepared.leaves, gradients, strict=True))
    for name, wanted in exact.gradients.items():
        if name in found:
            got = found[name]
            if got is None:
                raise Failure("wrong", f"no gradient of {name}")
            worst = max(worst, _check(f"gradient of {name}", (got,), [wanted], tolerance.gradients))
    return worst


def timed_call(prepared: Prepared, passes: Passes, exact: Expected) -> Callable[[], Any]:
    """Return the call to time: without gradients, or with those of all leaves for a dense upstream gradient."""
    if passes == "forward":

        def forward() -> None:
            with torch.no_grad():
                prepared.call()

        return forward
    upstream = tuple(_noise_like(gradient) for gradient in exact.upstream)
    wanted = list(prepared.leaves.values())

    def training() -> None:
        torch.autograd.grad(as_tuple(prepared.call()), wanted, upstream)

    return training


def _noise_like(x: Tensor) -> Tensor:
    """Draw from a generator of its own: torch 2.11 cannot use the default one after a failed capture."""
    return torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(3), dtype=x.dtype, device=x.device)


def _check(what: str, got: tuple[Tensor, ...], wanted: Iterable[tuple[tuple, Tensor]], tolerance: float) -> float:
    worst = 0.0
    for tensor, (index, exact) in zip(got, wanted, strict=True):
        difference = tensor.detach()[index].double() - exact
        error = float(difference.norm() / exact.norm().clamp(min=1e-30))
        if not error <= tolerance:
            raise Failure("wrong", f"{what}: error {error:.1e} above {tolerance:.0e}")
        worst = max(worst, error)
    return worst


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return one output or several as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
