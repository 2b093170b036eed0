"""Warm-up, decay and plateau cuts of the learning rate."""

import itertools

import pytest
import torch

from favorcast.forecasting.training.schedules import WarmupPlateau, WarmupPlateauLR


def scheduler(lr: float = 1.0, **options: float) -> WarmupPlateauLR:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return WarmupPlateauLR(optimizer, WarmupPlateau(**options))


def advance(schedule: WarmupPlateauLR, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return rates


def test_warm_up_rises_linearly_to_the_base_rate_and_stays():
    assert advance(scheduler(2.0, warmup_steps=4), 6) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert advance(scheduler(), 3) == [1.0, 1.0, 1.0]


def test_the_decay_reaches_zero_at_its_last_step():
    rates = advance(scheduler(warmup_steps=2, num_training_steps=6), 8)
    assert rates == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_a_cut_lasts_beyond_the_next_steps():
    schedule = scheduler(decay_factor=0.1, plateau_patience=0)
    schedule.observe(1.0)
    advance(schedule, 2)
    schedule.observe(1.0)
    assert advance(schedule, 5) == pytest.approx([0.1] * 5)


def test_a_cut_during_warm_up_scales_the_whole_ramp():
    schedule = scheduler(decay_factor=0.5, plateau_patience=0, warmup_steps=4)
    schedule.observe(1.0)
    advance(schedule, 1)
    schedule.observe(2.0)
    assert advance(schedule, 5) == pytest.approx([0.25, 0.375, 0.5, 0.5, 0.5])


def test_cuts_agree_with_torch_reduce_lr_on_plateau():
    losses = [5.0, 4.0, 4.0, 4.0, 3.99999, 4.0, 3.0, 3.1, 3.1, 3.1, 3.1, 3.1, 3.1, 2.0, float("nan"), 2.0, 2.0, 1.0]
    schedule = scheduler(decay_factor=0.5, plateau_patience=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, threshold=1e-4)
    for loss in losses:
        schedule.observe(loss)
        plateau.step(loss)
        assert schedule.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert schedule.cuts >= 3


def test_cuts_stop_at_the_smallest_rate(monkeypatch):
    monkeypatch.setattr(WarmupPlateau, "min_lr", 1e-5)
    schedule = scheduler(1e-3, decay_factor=0.1, plateau_patience=0)
    for _ in range(10):
        schedule.observe(1.0)
    assert advance(schedule, 1) == pytest.approx([1e-5])


def test_a_resumed_schedule_continues_exactly():
    options = {"warmup_steps": 5, "num_training_steps": 40, "decay_factor": 0.5, "plateau_patience": 1}
    losses = itertools.cycle([3.0, 2.0, 2.0, 2.0, 2.5])

    def run(schedule: WarmupPlateauLR, rounds: int) -> list[float]:
        rates = []
        for _ in range(rounds):
            rates += advance(schedule, 3)
            schedule.observe(next(losses))
        return rates

    whole = run(scheduler(**options), 10)
    losses = itertools.cycle([3.0, 2.0, 2.0, 2.0, 2.5])
    first = scheduler(**options)
    rates = run(first, 5)
    second = scheduler(**options)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates + run(second, 5) == whole


def test_the_state_holds_plain_values_only(tmp_path):
    schedule = scheduler(warmup_steps=3)
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == schedule.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"plateau_patience": -1}, "plateau_patience"),
        ({"decay_factor": 0.0}, "decay_factor"),
        ({"decay_factor": 1.5}, "decay_factor"),
        ({"warmup_steps": 10, "num_training_steps": 10}, "more than 10, got 10"),
    ],
)
def test_bad_parameters_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        WarmupPlateau(**options)
