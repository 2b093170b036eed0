import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser

from favorcast.forecasting.data import DataModule, InputAugmentation, SimulationTimeSeries


def counting_series(rows=400, sensors=2, **options):
    """Sensor j holds row + 1000 j, so that a value tells where it came from."""
    data = np.arange(rows)[:, None] + 1000.0 * np.arange(sensors)
    return SimulationTimeSeries(data=data, use_cycles=False, **options)


def module(series=None, **options):
    return DataModule(counting_series() if series is None else series, context_len=20, target_len=5, **options)


def first_targets(loader):
    return torch.cat([target_y[:, 0, 0] for _, _, _, target_y in loader])


def test_batches_have_the_documented_shapes():
    batch = next(iter(module(counting_series(exogenous_columns=["Sensor_2"]), batch_size=8).train_dataloader()))
    assert [tuple(part.shape) for part in batch] == [(8, 20, 1), (8, 20, 2), (8, 5, 1), (8, 5, 1)]
    assert all(part.dtype == torch.float32 for part in batch)


def test_widths_and_window_counts_are_known_before_training():
    data = module(counting_series(exogenous_columns=["Sensor_2"]))
    assert (data.d_x, data.d_y_context, data.d_y_target) == (1, 2, 1)
    assert data.window_counts == {"train": 280 - 24, "val": 60 - 24, "test": 100 - 24}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_window_is_served_exactly_once(split):
    loader = getattr(module(batch_size=32), f"{split}_dataloader")()
    targets = first_targets(loader)
    assert targets.sort().values.tolist() == list(
        range(*{"train": (20, 276), "val": (280, 316), "test": (320, 396)}[split])
    )


def test_training_is_shuffled_anew_each_epoch_and_the_same_for_the_same_seed():
    loader = module(seed=1).train_dataloader()
    first, second = first_targets(loader), first_targets(loader)
    assert not torch.equal(first, first.sort().values)
    assert not torch.equal(first, second)
    torch.manual_seed(123)
    assert torch.equal(first_targets(module(seed=1).train_dataloader()), first)
    assert not torch.equal(first_targets(module(seed=2).train_dataloader()), first)


def test_validation_and_test_come_in_time_order():
    data = module()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        targets = first_targets(loader)
        assert torch.equal(targets, targets.sort().values)


def test_loading_does_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    data = module(augmentation=InputAugmentation(0.1, 0.1))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_stride_thins_training_only():
    data = module(stride=4)
    assert data.window_counts == {"train": 64, "val": 36, "test": 76}


def test_overfit_serves_the_training_windows_everywhere():
    data = module(counting_series(have_test=False), overfit=True)
    expected = first_targets(data.train_dataloader()).sort().values
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert torch.equal(first_targets(loader), expected)


def test_without_a_test_split_the_test_loader_is_an_error_not_empty():
    data = module(counting_series(have_test=False))
    assert set(data.window_counts) == {"train", "val"}
    for load in (data.test_dataloader, data.predict_dataloader):
        with pytest.raises(ValueError, match=r"got 'test'; build the series with have_test=True"):
            load()


def test_prediction_split_chooses_what_is_predicted():
    assert first_targets(module(prediction_split="val").predict_dataloader())[0] == 280
    with pytest.raises(ValueError, match="prediction_split must be 'train', 'val' or 'test', got 'all'"):
        module(prediction_split="all")


@pytest.mark.parametrize(("batch_size", "num_workers"), [(0, 0), (4, -1)])
def test_batch_size_and_workers_are_checked(batch_size, num_workers):
    with pytest.raises(ValueError, match=f"got {batch_size} and {num_workers}"):
        module(batch_size=batch_size, num_workers=num_workers)


def test_a_window_longer_than_a_split_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"the val split has 60 rows .* needs 61"):
        DataModule(counting_series(), context_len=20, target_len=41)


def test_augmentation_reaches_training_contexts_only():
    data, clean = module(augmentation=InputAugmentation(0.5)), module()
    perturbed, original = next(iter(data.train_dataloader())), next(iter(clean.train_dataloader()))
    assert not torch.equal(perturbed[1], original[1])
    assert torch.equal(perturbed[3], original[3])
    for split in ("val", "test"):
        loaders = (getattr(each, f"{split}_dataloader")() for each in (data, clean))
        for one, other in zip(*loaders, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_workers_draw_different_perturbations_and_repeat_them_for_the_same_seed():
    def contexts(seed):
        data = module(
            counting_series(sensors=1), batch_size=8, num_workers=2, seed=seed, augmentation=InputAugmentation(1.0)
        )
        loader = data.train_dataloader()
        return [[(context[:, :, 0], target) for _, context, _, target in loader] for _ in range(2)]

    first, again = contexts(0), contexts(0)
    for epoch, same_epoch in zip(first, again, strict=True):
        assert all(torch.equal(one[0], other[0]) for one, other in zip(epoch, same_epoch, strict=True))
    # contexts are ramps, alike but for an offset, so equal noise would leave equal differences between batches
    noise = [context - (target[:, :1, 0] - 20) - torch.arange(20) for epoch in first for context, target in epoch]
    assert not any(torch.allclose(noise[0], other, atol=1e-3) for other in noise[1:] if other.shape == noise[0].shape)


def test_training_statistics_are_those_of_the_series():
    mean, std = module().training_statistics()
    torch.testing.assert_close(mean, torch.tensor([139.5, 1139.5], dtype=torch.float64))
    assert std.shape == (2,)


@pytest.mark.parametrize("nested", [True, False], ids=["class_path", "plain"])
def test_yaml_configuration_builds_the_module(tmp_path, nested):
    np.save(tmp_path / "wake.npy", np.random.default_rng(0).normal(size=(400, 3)))
    series = {"data_path": str(tmp_path / "wake.npy"), "use_cycles": False, "fractions": [0.6, 0.2, 0.2]}
    augmentation = {"gaussian_noise_level": 0.1}
    if nested:
        package = "favorcast.forecasting.data"
        series = {"class_path": f"{package}.SimulationTimeSeries", "init_args": series}
        augmentation = {"class_path": f"{package}.InputAugmentation", "init_args": augmentation}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataModule, "data")
    options = {"series": series, "context_len": 20, "target_len": 4, "augmentation": augmentation}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # jsonargparse renames this method between versions
        built = parser.instantiate_classes(parser.parse_object({"data": options})).data
    assert built.window_counts == {"train": 217, "val": 77, "test": 77}
    assert built.augmentation == InputAugmentation(gaussian_noise_level=0.1)


class MeanModel(pl.LightningModule):
    """Count the windows of each stage."""

    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(()))
        self.orders = []

    def training_step(self, batch, _):
        self.orders.extend(batch[3][:, 0, 0].tolist())
        return (self.offset - batch[1].mean()).square()

    def validation_step(self, batch, _):
        pass

    def predict_step(self, batch, _):
        return batch[3]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


@pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning", "ignore::Warning:lightning_fabric")
def test_trainer_runs_all_windows_in_another_order_each_epoch():
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
    model = MeanModel()
    trainer.fit(model, datamodule=module())
    epochs = [tuple(model.orders[start : start + 256]) for start in (0, 256, 512)]
    assert all(sorted(epoch) == list(range(20, 276)) for epoch in epochs)
    assert len(set(epochs)) == 3
    predictions = torch.cat(trainer.predict(model, datamodule=module(prediction_split="val")))
    assert predictions[:, 0, 0].tolist() == list(range(280, 316))
