"""Every strategy with every normalisation, decomposition, loss and kind of outage: it trains, and it forecasts."""

import itertools

import pytest
import torch
from small_forecaster import NAN, NO_DROPOUT, OUTAGES, SMALL, outage, windows
from torch import Tensor

from favorcast.forecasting import SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.metrics.losses import masked_loss

STRATEGIES = {
    "one-shot": {},
    "teacher": {"autoregressive_training": True, "scheduled_sampling": "none"},
    "sequential": {"autoregressive_training": True, "scheduled_sampling": "sequential"},
    "parallel": {"autoregressive_training": True, "scheduled_sampling": "parallel"},
}
NORMS = {"none": {"use_revin": False}, "revin": {}, "global": {"use_revin": False, "use_global_norm": True}}
TRENDS = {
    "whole": {"linear_window": 3},
    "decomposed": {"use_seasonal_decomp": True, "decomposition_kernel_size": 4, "start_len": 1},
}
UNFELT = {
    "whole": set(),
    "decomposed": {"normalization.bias"},  # a constant goes into the trend, whose forecast brings it back
}
LOSSES = ("mse", "mae", "huber")
STEPS = 2


def build(**options) -> SpatioTemporalPerformer_Forecaster:
    torch.manual_seed(0)
    model = SpatioTemporalPerformer_Forecaster(
        **(SMALL | NO_DROPOUT | {"d_model": 8, "initial_lr": 3e-5, "warmup_steps": 0} | options)
    )
    torch.nn.init.normal_(model.model.head.weight, std=0.3)  # so that what is behind it has a gradient to speak of
    model.fit_statistics(torch.tensor([0.0, 50.0, -3.0]), torch.tensor([0.7, 3.5, 0.14]))
    return model


def loss_of(model: SpatioTemporalPerformer_Forecaster, batch: tuple[Tensor, ...]) -> Tensor:
    torch.manual_seed(1)  # the same draws of scheduled sampling in every step: the loss is one function
    return masked_loss(model(*batch), batch[3], model.loss, scale=model.target_scale)


CASES = list(itertools.product(STRATEGIES, NORMS, TRENDS, LOSSES))


@pytest.mark.parametrize(("strategy", "norm", "trend", "loss"), CASES, ids=["-".join(case) for case in CASES])
def test_it_trains_and_forecasts_with_every_kind_of_outage(strategy: str, norm: str, trend: str, loss: str):
    model = build(loss=loss, **STRATEGIES[strategy], **NORMS[norm], **TRENDS[trend])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in OUTAGES:
        model.load_state_dict(start)
        model.teacher_forcing_ratio.fill_(0.5)
        batch = outage(kind)
        batch[3][0, 0, 1] = NAN  # an odd number of errors: under mae, whose gradients are signs, they cannot cancel
        optimizer = model.configure_optimizers()["optimizer"]
        losses, idle = [], {name for name, _ in model.named_parameters()}
        for _ in range(STEPS):
            optimizer.zero_grad()
            value = loss_of(model, batch)
            value.backward()
            losses.append(value.item())
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            assert all(gradient.isfinite().all() for gradient in gradients.values()), kind
            idle -= {name for name, gradient in gradients.items() if (gradient != 0).any()}
            optimizer.step()
        if kind == "nothing observed":
            assert losses == [0.0] * STEPS
        else:
            assert idle - UNFELT[trend] == set(), kind
            assert losses[-1] < losses[0], kind
        assert model.predict(*batch[:3]).isfinite().all(), kind


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_for_longer_fits_the_windows(strategy: str):
    model, batch = build(initial_lr=0.02, **STRATEGIES[strategy]), windows()
    optimizer = model.configure_optimizers()["optimizer"]
    first = loss_of(model, batch).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert loss_of(model, batch).item() < 0.3 * first
