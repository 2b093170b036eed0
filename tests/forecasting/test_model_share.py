"""How much of what a model adds to its baseline is kept: alone, in forecasts, and in checkpoints."""

import pytest
import torch
from small_forecaster import CONTEXT_LEN, NAN, TARGET_LEN, TimeMap, cpu_trainer, fit_and_load, windows
from torch import Tensor

from favorcast.forecasting import DataModule, SimulationTimeSeries
from favorcast.forecasting.cli.run_folder import check_weights
from favorcast.forecasting.model_share import ModelShare

RIDGE = {"linear_window": 4, "linear_model": "shared", "linear_fit": "ridge"}


def fitted_share(change: Tensor, wanted: Tensor) -> Tensor:
    share = ModelShare()
    share.fit(zip(change.split(3), wanted.split(3), strict=True))
    return share.share


def test_each_step_keeps_what_lowers_the_squared_error_most():
    generator = torch.Generator().manual_seed(0)
    change, noise = (torch.randn(50, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted = torch.tensor([0.3, -0.5, 1.7, 1.0])[:, None] * change + 0.1 * noise
    wanted[::7, :, 0] = NAN
    share = fitted_share(change, wanted)
    errors = torch.stack([(s * change - wanted).square().nansum(dim=(0, 2)) for s in torch.linspace(0, 1, 1001)])
    torch.testing.assert_close(share.double(), errors.argmin(dim=0).double() / 1000, rtol=0, atol=6e-4)
    assert share[1] == 0
    assert share[2] == 1
    assert 0.25 < share[0] < 0.35


def test_where_nothing_was_observed_or_changed_everything_is_kept():
    change, wanted = torch.ones(5, 2, 1), torch.full((5, 2, 1), NAN)
    change[:, 1], wanted[:, 1] = 0.0, 1.0
    torch.testing.assert_close(fitted_share(change, wanted), torch.ones(2))
    empty = ModelShare()
    empty.fit([])
    torch.testing.assert_close(empty(change), change)


def test_later_steps_have_the_share_of_the_last_one():
    share = ModelShare()
    share.share = torch.tensor([1.0, 0.5])
    torch.testing.assert_close(share(torch.ones(1, 4, 1)).flatten(), torch.tensor([1.0, 0.5, 0.5, 0.5]))
    torch.testing.assert_close(share(torch.ones(1, 1, 1)).flatten(), torch.tensor([1.0]))


def data() -> DataModule:
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(200.0)[:, None]
    values = torch.sin(0.5 * time + torch.arange(3)) + 0.1 * torch.randn(200, 3, generator=generator)
    values[60:64, 1] = NAN
    series = SimulationTimeSeries(data=values * torch.tensor([1.0, 50.0, 0.1]) + 3, exogenous_columns=["Sensor_3"])
    return DataModule(series, CONTEXT_LEN, TARGET_LEN, batch_size=16)


def loss(model: TimeMap, module: DataModule) -> float:
    """Return the mean squared error on validation windows, in units of the loss."""
    errors = [
        (model.predict(*window[:3]) - window[3]).div(model.target_scale).square() for window in module.val_dataloader()
    ]
    return float(torch.cat(errors).nanmean())


@pytest.mark.parametrize("norm", [{}, {"use_global_norm": True}, {"use_revin": True}], ids=["none", "global", "revin"])
@pytest.mark.parametrize("baseline", [RIDGE | {"linear_window": 1}, {"from_last_value": True}], ids=["ridge", "last"])
def test_a_model_that_overshoots_is_kept_as_far_as_it_helps(norm: dict, baseline: dict):
    """No scale of the shares around those found forecasts the held-out windows better."""
    module, model = data(), TimeMap(dropout=0.1, learning_rate=0.03, **baseline, **norm)
    cpu_trainer(max_epochs=4, num_sanity_val_steps=0).fit(model, module)
    for parameter in (*model.time_map.parameters(), *model.covariates.parameters()):
        parameter.data *= 4
    model.train()
    before = loss(model, module)
    model.fit_model_share(module.val_dataloader())
    assert model.training
    found, best = model.model_share.share.clone(), loss(model, module)
    assert best < 0.9 * before
    assert 0 < found.max() < 1
    for factor in (0.0, 0.9, 1.1):
        model.model_share.share = factor * found
        assert loss(model, module) >= best


def test_without_a_baseline_nothing_is_shared_out():
    module, model = data(), TimeMap(use_global_norm=True)
    cpu_trainer(max_epochs=0, num_sanity_val_steps=0).fit(model, module)
    model.fit_model_share(module.val_dataloader())
    assert model.model_share.share.numel() == 0


def test_checkpoints_keep_shares_and_training_forgets_them(tmp_path):
    module, model = data(), TimeMap(**RIDGE, use_global_norm=True)
    trainer = cpu_trainer(max_epochs=1)
    trainer.fit(model, module)
    model.fit_model_share(module.val_dataloader())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = TimeMap.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    inputs = windows()[:3]
    assert loaded.model_share.share.numel() == TARGET_LEN
    torch.testing.assert_close(loaded.predict(*inputs), model.predict(*inputs), rtol=0, atol=0)
    cpu_trainer(max_epochs=2).fit(loaded, data(), ckpt_path=tmp_path / "model.ckpt")
    assert loaded.model_share.share.numel() == 0


def test_checkpoints_from_before_there_were_shares_load_and_keep_everything(tmp_path):
    model = TimeMap(**RIDGE, use_global_norm=True)
    fit_and_load(model, data(), tmp_path / "model.ckpt")
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    del content["state_dict"]["model_share.share"]
    torch.save(content, tmp_path / "old.ckpt")
    check_weights(TimeMap(**RIDGE, use_global_norm=True), tmp_path / "old.ckpt")
    loaded = TimeMap.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    torch.testing.assert_close(loaded.predict(*windows()[:3]), model.predict(*windows()[:3]), rtol=0, atol=0)
