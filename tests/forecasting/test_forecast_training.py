"""Training of a Forecaster: steps, logged errors, statistics, learning rate, checkpoints."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from small_forecaster import D_TARGET, NAN, TimeMap, WindowData, cpu_trainer, outage, windows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

EVERYTHING = {"use_revin": True, "use_seasonal_decomp": True, "linear_window": 3, "decomposition_kernel_size": 5}


class Recorder(pl.Callback):
    """Note the learning rate that each optimiser step uses."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def rates(model: TimeMap, data: WindowData | None = None, **options) -> list[float]:
    recorder = Recorder()
    cpu_trainer(callbacks=[recorder], **options).fit(model, data or WindowData())
    return recorder.rates


def test_training_lowers_the_loss():
    model = TimeMap(learning_rate=0.02, **EVERYTHING)
    data = WindowData(48, batch_size=16)
    trainer = cpu_trainer(max_epochs=1)
    trainer.fit(model, data)
    first = trainer.callback_metrics["train/loss"].item()
    trainer = cpu_trainer(max_epochs=60)
    trainer.fit(model, data)
    assert trainer.callback_metrics["train/loss"].item() < 0.5 * first


def test_logged_errors_are_means_over_every_observed_entry():
    model = TimeMap(learning_rate=1e-9, loss="huber", huber_delta=0.5, **EVERYTHING)
    trainer = cpu_trainer()
    trainer.fit(model, WindowData())  # 7 validation windows in batches of 3, 40 % of the entries missing
    context_x, context_y, target_x, target = outage("scattered", count=7)
    error = (model.predict(context_x, context_y, target_x) - target)[~target.isnan()]
    scaled = ((model.predict(context_x, context_y, target_x) - target) / model.target_scale)[~target.isnan()]
    huber = torch.nn.functional.huber_loss(scaled, torch.zeros_like(scaled), delta=0.5)
    logged = trainer.callback_metrics
    torch.testing.assert_close(logged["val/mse"].float(), error.square().mean())
    torch.testing.assert_close(logged["val/mae"].float(), error.abs().mean())
    torch.testing.assert_close(logged["val/loss"].float(), huber)
    names = {f"{split}/{name}" for split in ("train", "val") for name in ("loss", "mae", "mse")}
    assert names | {"train/loss_step"} == set(logged)


def test_test_errors_have_names_of_their_own_and_stay_readable_by_horizon_and_sensor():
    model, data = TimeMap(), WindowData()
    trainer = cpu_trainer()
    (results,) = trainer.test(model, data, verbose=False)
    assert set(results) == {"test/loss", "test/mae", "test/mse"}
    context_x, context_y, target_x, target = outage("scattered", count=7)
    squared = (model.predict(context_x, context_y, target_x) - target).square().double()
    torch.testing.assert_close(model.test_errors.per_horizon()["mse"], squared.nanmean(dim=(0, 2)))
    torch.testing.assert_close(model.test_errors.per_sensor()["mse"], squared.nanmean(dim=(0, 1)))


def test_an_epoch_does_not_inherit_the_errors_of_the_last_one():
    model, trainer = TimeMap(), cpu_trainer()
    first = trainer.validate(model, WindowData(), verbose=False)
    assert trainer.validate(model, WindowData(), verbose=False) == first


def test_validation_and_test_never_show_the_truth_to_the_model():
    class Watcher(TimeMap):
        seen: list[str]

        def forward_model_pass(self, context_x, context_y, target_x, target_y=None, **kwargs) -> Tensor:
            self.seen.append(("train" if self.training else "eval") + ("" if target_y is None else " with truth"))
            return super().forward_model_pass(context_x, context_y, target_x, target_y)

    model = Watcher()
    model.seen = []
    trainer = cpu_trainer()
    trainer.fit(model, WindowData())
    trainer.test(model, WindowData(), verbose=False)
    assert set(model.seen) == {"train with truth", "eval"}


def test_the_training_step_never_waits_for_the_device():
    class NoHostCopies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    class Guarded(TimeMap):
        steps = 0

        def log(self, *args, **kwargs) -> None:
            """Leave out what the progress bar does with the value."""

        def training_step(self, batch, batch_idx):
            with NoHostCopies():
                self.steps += 1
                return super().training_step(batch, batch_idx)

    model = Guarded(null_value=-999.0, **EVERYTHING)
    cpu_trainer(limit_val_batches=0).fit(model, WindowData())
    assert model.steps == 3


def test_a_batch_without_observations_changes_no_weight():
    model = TimeMap(**EVERYTHING)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nothing = TensorDataset(*outage("nothing observed"))
    cpu_trainer(max_epochs=2).fit(model, DataLoader(nothing, batch_size=3))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("missing", [NAN, -999.0], ids=["nan", "null value"])
def test_training_on_outages_is_the_same_for_either_mark_of_a_missing_value(missing: float):
    weights = []
    for mark in (NAN, missing):
        model = TimeMap(null_value=-999.0, **EVERYTHING)
        data = TensorDataset(*outage("scattered", mark, count=9))
        cpu_trainer(max_epochs=3).fit(model, DataLoader(data, batch_size=4))
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    assert weights[0].isfinite().all()
    assert torch.equal(weights[0], weights[1])


# training statistics


def test_statistics_come_from_the_datamodule_when_the_first_fit_starts():
    model, data = TimeMap(use_global_norm=True), WindowData()
    cpu_trainer().fit(model, data)
    mean, std = data.training_statistics()
    torch.testing.assert_close(model.normalization.mean, mean)
    torch.testing.assert_close(model.target_scale, std[:D_TARGET])


def test_fine_tuning_keeps_the_statistics_until_asked():
    model, other = TimeMap(use_global_norm=True), WindowData(20, seed=5)
    cpu_trainer().fit(model, WindowData())
    kept = model.normalization.mean.clone()
    cpu_trainer().fit(model, other)
    assert torch.equal(model.normalization.mean, kept)
    model.fit_statistics(*other.training_statistics())
    torch.testing.assert_close(model.normalization.mean, other.training_statistics()[0])


def test_given_statistics_win_over_the_datamodule():
    model = TimeMap(global_mean=[1.0, 2.0, 3.0], global_std=[4.0, 5.0, 6.0])
    cpu_trainer().fit(model, WindowData())
    assert model.target_scale.tolist() == [4.0, 5.0]


def test_global_norm_without_any_source_of_statistics_fails_at_fit_start():
    with pytest.raises(ValueError, match="global_mean and global_std, or fit with a datamodule"):
        cpu_trainer().fit(TimeMap(use_global_norm=True), DataLoader(TensorDataset(*windows()), batch_size=3))


def test_without_statistics_the_loss_is_in_original_units():
    model = TimeMap()
    cpu_trainer().fit(model, DataLoader(TensorDataset(*windows()), batch_size=3))
    assert model.target_scale.tolist() == [1.0] * D_TARGET


# learning rate


def test_warm_up_counts_optimiser_steps():
    model = TimeMap(learning_rate=1.0, warmup_steps=4)
    assert rates(model, max_epochs=2) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_warm_up_counts_optimiser_steps_under_gradient_accumulation():
    model = TimeMap(learning_rate=1.0, warmup_steps=4)
    assert rates(model, max_epochs=2, accumulate_grad_batches=2) == [0.25, 0.5, 0.75, 1.0]


def test_num_training_steps_is_where_the_decay_ends():
    model = TimeMap(learning_rate=1.0, warmup_steps=2, num_training_steps=6)
    assert rates(model, max_epochs=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


class Stuck(TimeMap):
    """Never improve: gradients are multiplied by zero."""

    def training_step(self, batch, batch_idx):
        return 0 * super().training_step(batch, batch_idx)


def test_a_plateau_cut_lasts():
    model = Stuck(learning_rate=1.0, warmup_steps=2, decay_factor=0.5, plateau_patience=0)
    assert rates(model, max_epochs=4) == [0.5, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_plateaus_are_counted_in_validations():
    options = {"learning_rate": 1.0, "decay_factor": 0.5, "plateau_patience": 0}
    assert rates(Stuck(**options), max_epochs=2, val_check_interval=1) == [1, 1, 0.5, 0.25, 0.125, 0.0625]
    assert rates(Stuck(**options), max_epochs=5, check_val_every_n_epoch=2) == [1] * 12 + [0.5] * 3


def test_sanity_checks_and_plain_validation_runs_are_not_counted():
    model = Stuck(learning_rate=1.0, decay_factor=0.5, plateau_patience=0)
    data, trainer = WindowData(), cpu_trainer(max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(model, data)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    trainer.validate(model, data, verbose=False)
    assert scheduler.bad_validations == 0
    assert scheduler.cuts == 0


def test_training_works_without_a_validation_loop():
    model = TimeMap(learning_rate=1.0, warmup_steps=2, decay_factor=0.5, plateau_patience=0)
    assert rates(model, WindowData(has_validation=False), max_epochs=3) == [0.5] + [1.0] * 8


def test_the_learning_rate_monitor_sees_the_schedule(tmp_path):
    monitor = LearningRateMonitor("step")
    model = TimeMap(learning_rate=1.0, warmup_steps=3)
    cpu_trainer(logger=CSVLogger(tmp_path), callbacks=[monitor]).fit(model, WindowData())
    assert monitor.lrs["lr-AdamW/pg1"] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_weight_decay_spares_vectors():
    model = TimeMap(l2_regul_factor=0.1, use_revin=True)
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert {group["weight_decay"]: {p.ndim for p in group["params"]} for group in groups} == {0.1: {2}, 0.0: {1}}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


# checkpoints


@pytest.mark.parametrize("norm", ["none", "revin", "global"])
def test_a_checkpoint_predicts_identically_without_data(tmp_path, norm: str):
    model = TimeMap(
        use_revin=norm == "revin", use_global_norm=norm == "global", use_seasonal_decomp=True, linear_window=2
    )
    trainer = cpu_trainer(max_epochs=2)
    trainer.fit(model, WindowData())
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    loaded = TimeMap.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    batch = windows(seed=9)[:3]
    assert torch.equal(loaded.predict(*batch), model.predict(*batch))
    assert torch.equal(loaded.target_scale, model.target_scale)
    assert loaded.hparams == model.hparams


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_a_checkpoint_with_given_statistics_loads_without_pickle(tmp_path, kind: type):
    model = TimeMap(use_global_norm=True, global_mean=kind([0.0, 50.0, -3.0]), global_std=kind([1.0, 5.0, 0.2]))
    trainer = cpu_trainer()
    trainer.fit(model, WindowData())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = TimeMap.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.normalization.std, model.normalization.std)


@pytest.mark.parametrize("epochs_before", [1, 2])
def test_resumed_training_equals_uninterrupted_training(tmp_path, epochs_before: int):
    options = {
        "learning_rate": 0.5,
        "warmup_steps": 5,
        "decay_factor": 0.5,
        "plateau_patience": 0,
        "num_training_steps": 14,
        **EVERYTHING,
    }
    whole, stopped, resumed = (TimeMap(**options) for _ in range(3))
    expected = rates(whole, max_epochs=4)
    recorder = Recorder()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, monitor="val/loss")
    trainer = cpu_trainer(max_epochs=epochs_before, enable_checkpointing=True, callbacks=[recorder, saver])
    trainer.fit(stopped, WindowData())
    checkpoint = tmp_path / f"epoch={epochs_before - 1}.ckpt"
    cpu_trainer(max_epochs=4, callbacks=[recorder]).fit(resumed, WindowData(), ckpt_path=checkpoint)
    assert recorder.rates == expected
    assert expected[-1] < 0.5 * expected[4]  # a cut happened
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_resuming_keeps_the_statistics_of_the_checkpoint(tmp_path):
    model = TimeMap(use_global_norm=True)
    trainer = cpu_trainer()
    trainer.fit(model, WindowData())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    resumed = TimeMap(use_global_norm=True)
    cpu_trainer(max_epochs=2).fit(resumed, WindowData(20, seed=5), ckpt_path=tmp_path / "model.ckpt")
    assert torch.equal(resumed.normalization.mean, model.normalization.mean)


def test_the_predict_loop_returns_original_units():
    model = TimeMap(**EVERYTHING)
    forecasts = cpu_trainer().predict(model, WindowData())
    torch.testing.assert_close(torch.cat(forecasts), model.predict(*windows(5)[:3]))
