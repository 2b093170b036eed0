"""The forecaster in the ancestor's own configuration: a one-shot forecast, and forward and backward of a training step.

Dimension key: b batch, l context steps, n target steps, v sensors.

All providers run the same model on the same weights; only the attention function differs. The optimiser's update, the
same for all, is left out. bfloat16 is autocast.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from harness.attention_swap import attention, performer_attention, with_impl
from harness.cases import Case, Expected, Passes, Prepared, Provider, Scale, Tolerance, Work, our_implementations
from torch import Tensor

from favorcast.forecasting import SpatioTemporalPerformer_Forecaster

ROUNDING = {torch.float32: Tolerance(2e-2, 1.0), torch.bfloat16: Tolerance(0.2, 1.0)}
"""Of eight layers in sequence. Gradients of parameters are not compared; attention's are, in its own bench."""

PERFORMER_TOLERANCE = Tolerance(0.5, 1.0)


class ForecastShape(NamedTuple):
    """b windows of l + n steps of v sensors; width is d_model."""

    b: int
    l: int  # noqa: E741 - the dimension key's letter
    n: int
    v: int
    width: int

    def __str__(self) -> str:
        return f"b{self.b}-l{self.l}-n{self.n}-v{self.v}-w{self.width}"

    @property
    def length(self) -> int:
        return self.l


SEED = ForecastShape(4, 80, 4, 49, 128)


def cases(scale: Scale) -> list[Case]:
    """Return the cases: the ancestor's configuration, and small ones to see that it runs."""
    if scale == "quick":
        return [Case("forecaster", ForecastShape(1, length, 4, 4, 16), torch.float32) for length in (32, 64, 128)]
    if scale == "cpu":
        return [Case("forecaster", SEED, torch.float32)]
    shapes = [SEED, SEED._replace(l=320, n=16)]
    return [Case("forecaster", shape, dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16)]


def inputs(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Return a batch of noisy waves: context_x, context_y, target_x."""
    shape = _shape(case)
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(shape.l + shape.n, dtype=torch.float32)
    waves = torch.sin(0.3 * steps[:, None] + torch.arange(shape.v))
    noise = 0.1 * torch.randn(shape.b, len(steps), shape.v, generator=generator)
    x = (steps / len(steps)).expand(shape.b, -1).unsqueeze(-1).to(device)
    return {
        "context_x": x[:, : shape.l],
        "context_y": (waves + noise)[:, : shape.l].to(device),
        "target_x": x[:, shape.l :],
    }


def providers(case: Case, device: torch.device) -> list[Provider]:
    """Return the attention functions to compare; the first is the yardstick."""
    tolerance = ROUNDING[case.dtype]
    found = [
        Provider(name, _model(case, lambda impl=impl: with_impl(impl)), tolerance=tolerance)
        for name, impl in our_implementations(device).items()
    ]
    return [*found, Provider("performer-pytorch", _model(case, performer_attention), tolerance=PERFORMER_TOLERANCE)]


def model_of(case: Case) -> SpatioTemporalPerformer_Forecaster:
    """Return the model with its seeded weights and without dropout, in training mode on the CPU in float32."""
    shape = _shape(case)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    is_seed = shape.width == SEED.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SpatioTemporalPerformer_Forecaster(
            shape.v,
            shape.v,
            1,
            shape.width,
            d_ff=2 * shape.width,
            n_heads=8 if is_seed else 2,
            n_encoder_layers=4 if is_seed else 1,
            n_decoder_layers=4 if is_seed else 1,
            num_features=100 if is_seed else 16,
            max_seq_len=shape.l + shape.n,
            time_emb_dim=2,
            activation="relu",
            normalization_type="batchnorm",
            use_seasonal_decomp=True,
            linear_window=20,
            linear_shared_weights=True,
            data_dropout_embedding=0.0,
            dropout_ff=0.0,
        ).train()


def expected(case: Case, inputs: dict[str, Tensor], target: str) -> Expected:
    """Return the forecast of the model in float64."""
    model = model_of(case).to(inputs["context_y"].device).double()
    with torch.no_grad(), attention(with_impl("reference")):
        forecast = model(*(x.double() for x in inputs.values()))
    upstream = torch.randn(forecast.shape, generator=torch.Generator().manual_seed(2)).to(inputs["context_y"])
    return Expected((upstream,), [((Ellipsis,), forecast)], {})


def work(case: Case, passes: Passes, target: str) -> Work | None:
    """Return None: a model of a whole network would say little."""
    return None


def _model(case: Case, function: Callable[[], Any]):
    def prepare(inputs: dict[str, Tensor]) -> Prepared:
        device = inputs["context_y"].device
        inside = function()
        model = copy.deepcopy(model_of(case)).to(device)

        def call() -> Tensor:
            lowered = torch.autocast(device.type, torch.bfloat16, enabled=case.dtype == torch.bfloat16)
            with attention(inside), lowered:
                return model(*inputs.values()).float()

        return Prepared(call, {name: p for name, p in model.named_parameters() if p.requires_grad})

    return prepare


def _shape(case: Case) -> ForecastShape:
    assert isinstance(case.shape, ForecastShape)
    return case.shape
