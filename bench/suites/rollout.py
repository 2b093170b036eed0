"""One more step of an autoregressive forecast, after ever more steps: a model that continues from its states.

Dimension key: b batch, l steps forecast before, v sensors, w d_model.

Model and context are the same for every l. The states of FAVOR attention have one size however long the rollout, so
the cost of a step is flat; a softmax decoder reads a cache that grows with it, and a decoder without states (the
ancestor's) decodes every step again. All read the same values at the steps before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from harness.attention_swap import implementation
from harness.cases import Case, Expected, Impl, Passes, Prepared, Provider, Scale, Tolerance, Work, our_implementations
from torch import Tensor, nn

from favorcast.forecasting.st_transformer import SoftmaxAttention, SpatioTemporalPerformer
from favorcast.kernels import FavorAttention

PASSES = ("forward",)
CONTEXT_LEN = 80
PIECE = 20
ROUNDING = {torch.float32: Tolerance(2e-2, 1.0), torch.bfloat16: Tolerance(0.2, 1.0)}
"""Of the layers in sequence, with states that add up all the steps before."""

LONGEST_WITHOUT_STATES = 600
"""Decoding everything again takes seconds beyond it."""


class RolloutShape(NamedTuple):
    """A step after l others, for b windows of v sensors; width is d_model."""

    b: int
    l: int  # noqa: E741 - the dimension key's letter
    v: int
    width: int

    def __str__(self) -> str:
        return f"b{self.b}-l{self.l}-v{self.v}-w{self.width}"

    @property
    def length(self) -> int:
        return self.l


def cases(scale: Scale) -> list[Case]:
    """Return the cases: steps ever later in a rollout of 1 500."""
    if scale == "quick":
        return [Case("rollout step", RolloutShape(1, steps, 4, 16), torch.float32) for steps in (8, 32, 128)]
    batch, dtype = (1, torch.float32) if scale == "cpu" else (8, torch.bfloat16)
    return [Case("rollout step", RolloutShape(batch, steps, 49, 64), dtype) for steps in (1, 15, 150, 600, 1499)]


def inputs(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Return the context, and covariates x and read values y of l + 1 steps."""
    shape = _shape(case)
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(CONTEXT_LEN + shape.l + 1, dtype=torch.float32)
    waves = torch.sin(0.3 * steps[:, None] + torch.arange(shape.v))
    y = (waves + 0.1 * torch.randn(shape.b, len(steps), shape.v, generator=generator)).to(device)
    x = torch.sin(0.01 * steps).expand(shape.b, -1).unsqueeze(-1).to(device)
    return {
        "context_x": x[:, :CONTEXT_LEN],
        "context_y": y[:, :CONTEXT_LEN],
        "x": x[:, CONTEXT_LEN:],
        "y": y[:, CONTEXT_LEN:],
    }


def providers(case: Case, device: torch.device) -> list[Provider]:
    """Return what to compare; the first is the yardstick."""
    tolerance = ROUNDING[case.dtype]
    found = [
        Provider(name, _with_states(case, FavorAttention, impl), tolerance=tolerance, waits=impl == "reference")
        for name, impl in our_implementations(device).items()
    ]
    skip = "seconds a step" if case.shape.length > LONGEST_WITHOUT_STATES else None
    return [
        *found,
        Provider("softmax with a cache", _with_states(case, SoftmaxAttention), target="softmax", tolerance=tolerance),
        Provider("every step again", _without_states(case), tolerance=tolerance, skip=skip),
    ]


def model_of(case: Case, attention_class: type[nn.Module]) -> SpatioTemporalPerformer:
    """Return the model with its seeded weights, in evaluation mode on the CPU in float32."""
    shape = _shape(case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SpatioTemporalPerformer(
            shape.v,
            shape.v,
            1,
            d_model=shape.width,
            n_heads=4,
            n_encoder_layers=1,
            n_decoder_layers=2,
            d_ff=2 * shape.width,
            time_emb_dim=2,
            position_embedding="periodic",
            autoregressive_training=True,
            attention_factory=attention_class,
        )
        return model.eval()


def expected(case: Case, inputs: dict[str, Tensor], target: str) -> Expected:
    """Return the forecast of the step in float64, from the states of all steps before."""
    model = model_of(case, SoftmaxAttention if target == "softmax" else FavorAttention)
    model = model.to(inputs["y"].device).double()
    with torch.no_grad():
        forecast = _last_step(model, {name: value.double() for name, value in inputs.items()})()
    return Expected((torch.zeros_like(forecast),), [((Ellipsis,), forecast)], {})


def work(case: Case, passes: Passes, target: str) -> Work | None:
    """Return None: a model of a whole network would say little."""
    return None


def _last_step(model: SpatioTemporalPerformer, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """Return a call that makes the last step from the states of those before."""
    x, y = inputs["x"], inputs["y"]
    seen = x.shape[1] - 1
    summary = model.summarize(model.encode(inputs["context_x"], inputs["context_y"]))
    states = None
    for first in range(0, seen, PIECE):  # in pieces: softmax attention is quadratic in what it reads at once
        piece = slice(first, min(first + PIECE, seen))
        _, states = model.stream(summary, x[:, piece], y[:, piece], CONTEXT_LEN + first, states)
    return lambda: model.stream(summary, x[:, seen:], y[:, seen:], CONTEXT_LEN + seen, states)[0]


def _with_states(
    case: Case, attention_class: type[nn.Module], impl: Impl = "reference"
) -> Callable[[dict[str, Tensor]], Prepared]:
    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        device = inputs["y"].device
        model = model_of(case, attention_class).to(device)
        lowered = torch.autocast(device.type, torch.bfloat16, enabled=case.dtype == torch.bfloat16)
        with torch.no_grad(), lowered, implementation(impl):
            step = _last_step(model, inputs)

        def call() -> Tensor:
            with torch.no_grad(), lowered, implementation(impl):
                return step().float()

        return Prepared(call, {})

    return prepare


def _without_states(case: Case) -> Callable[[dict[str, Tensor]], Prepared]:
    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        device = inputs["y"].device
        model = model_of(case, FavorAttention).to(device)
        lowered = torch.autocast(device.type, torch.bfloat16, enabled=case.dtype == torch.bfloat16)
        with torch.no_grad(), lowered:
            memory = model.encode(inputs["context_x"], inputs["context_y"])

        def call() -> Tensor:
            with torch.no_grad(), lowered:
                return model.decode(memory, inputs["x"], inputs["y"], CONTEXT_LEN)[:, -1:].float()

        return Prepared(call, {})

    return prepare


def _shape(case: Case) -> RolloutShape:
    assert isinstance(case.shape, RolloutShape)
    return case.shape
