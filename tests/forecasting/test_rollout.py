"""Forecasts beyond the horizon of training."""

import gc

import pytest
import torch
from small_forecaster import D_TARGET, D_X, NO_DROPOUT, SMALL, TARGET_LEN, TimeMap, windows
from torch import Tensor

from favorcast.forecasting import SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.rollout import roll_forward

AUTOREGRESSIVE = SMALL | NO_DROPOUT | {"autoregressive_training": True, "position_embedding": "periodic"}


def test_each_block_continues_from_the_forecasts_before():
    model = TimeMap(use_revin=True, linear_window=3)
    context_x, context_y, target_x, _ = windows()
    long_x = torch.cat((target_x, target_x + 1, target_x + 2), dim=1)
    forecast = model.predict(context_x, context_y, long_x, block_len=TARGET_LEN)
    assert forecast.shape == (6, 3 * TARGET_LEN, D_TARGET)
    first = model.predict(context_x, context_y, target_x)
    assert torch.equal(forecast[:, :TARGET_LEN], first)
    unknown = torch.full((6, TARGET_LEN, 1), torch.nan)  # the exogenous column of the next context
    moved_y = torch.cat((context_y[:, TARGET_LEN:], torch.cat((first, unknown), dim=2)), dim=1)
    moved_x = torch.cat((context_x[:, TARGET_LEN:], target_x), dim=1)
    second = model.predict(moved_x, moved_y, target_x + 1)
    assert torch.equal(forecast[:, TARGET_LEN : 2 * TARGET_LEN], second)


def test_one_block_is_the_plain_forecast():
    model = TimeMap()
    batch = windows()[:3]
    assert torch.equal(model.predict(*batch, block_len=TARGET_LEN), model.predict(*batch))


def test_a_map_that_is_exact_stays_exact_over_any_horizon():
    def double(context_x: Tensor, context_y: Tensor, target_x: Tensor) -> Tensor:
        return context_y[:, -1:] * 2.0 ** torch.arange(1, 1 + target_x.shape[1]).view(1, -1, 1)

    context = torch.tensor([[[1.0], [2.0]]])
    forecast = roll_forward(double, torch.zeros(1, 2, 1), context, torch.zeros(1, 7, 1), 3)
    assert forecast.flatten().tolist() == [4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]


@pytest.mark.parametrize("block_len", [0, -1])
def test_a_block_without_steps_is_refused(block_len: int):
    with pytest.raises(ValueError, match=f"block_len must be at least 1: got {block_len}"):
        TimeMap().predict(*windows()[:3], block_len=block_len)


def test_a_step_causal_model_goes_on_beyond_its_horizon_without_starting_again():
    torch.manual_seed(0)
    model = SpatioTemporalPerformer_Forecaster(**AUTOREGRESSIVE)
    context_x, context_y, target_x, _ = windows(2)
    long_x = torch.cat((target_x, target_x.roll(1, 1), target_x), dim=1)
    calls = []
    model.model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    long = model.predict(context_x, context_y, long_x)
    assert calls == ["encoder"]
    torch.testing.assert_close(long[:, :TARGET_LEN], model.predict(context_x, context_y, target_x))


def test_a_learned_table_says_how_far_it_goes():
    model = SpatioTemporalPerformer_Forecaster(**(AUTOREGRESSIVE | {"position_embedding": "learned"}))
    context_x, context_y, _, _ = windows(2)
    with pytest.raises(ValueError, match="raise max_seq_len or use position_embedding='periodic'"):
        model.predict(context_x, context_y, torch.zeros(2, 5, D_X))
    assert model.predict(context_x, context_y, torch.zeros(2, 9, D_X), block_len=4).isfinite().all()


@pytest.mark.parametrize("block_len", [None, TARGET_LEN])
def test_1500_steps_keep_constant_memory(block_len: int | None):
    """Tensors alive in the second half of a rollout are those of the first, beside the forecasts themselves."""
    torch.manual_seed(0)
    model = SpatioTemporalPerformer_Forecaster(**AUTOREGRESSIVE, linear_window=0)
    context_x, context_y, _, _ = windows(1)
    alive: list[int] = []

    def count(*_) -> None:
        if len(counts) % 100 == 0:
            alive.append(live_elements())
        counts.append(1)

    counts: list[int] = []
    model.model.head.register_forward_hook(count)
    forecast = model.predict(context_x, context_y, torch.zeros(1, 1500, D_X), block_len=block_len)
    assert forecast.shape == (1, 1500, D_TARGET)
    assert forecast.isfinite().all()
    own = forecast.numel() * 3  # the list of forecasts and what is cut out of it
    assert max(alive) - min(alive[1:]) <= own


def live_elements() -> int:
    """Count the elements of all tensors that Python holds."""
    return sum(each.numel() for each in gc.get_objects() if type(each) is torch.Tensor)
