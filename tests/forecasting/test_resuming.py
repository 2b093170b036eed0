"""A run that is killed at any step and resumed ends with the weights of an uninterrupted one, bit for bit."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from small_forecaster import SMALL, cpu_trainer

from favorcast.forecasting import DataModule, SimulationTimeSeries, SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.data import InputAugmentation
from favorcast.forecasting.data.training_order import EpochOrder

EPOCHS, BATCHES = 3, 5
STRATEGIES = {
    "one-shot": {},
    "teacher forcing": {"autoregressive_training": True, "scheduled_sampling": "none"},
    "sequential": {"autoregressive_training": True, "scheduled_sampling_k": 2.0},
    "parallel": {"autoregressive_training": True, "scheduled_sampling": "parallel", "scheduled_sampling_k": 2.0},
}


def data() -> DataModule:
    time = torch.arange(60.0)[:, None]
    values = torch.sin(0.6 * time + torch.arange(3)) + 0.1 * torch.sin(1.7 * time)
    series = SimulationTimeSeries(data=values, exogenous_columns=["Sensor_3"], fractions=(0.5, 0.25, 0.25))
    return DataModule(series, 8, 4, batch_size=4, augmentation=InputAugmentation(0.1, 0.1))  # 19 windows, 5 batches


def model(**options) -> SpatioTemporalPerformer_Forecaster:
    torch.manual_seed(0)
    defaults = {
        "initial_lr": 0.02,
        "warmup_steps": 4,
        "num_training_steps": 40,
        "decay_factor": 0.5,
        "plateau_patience": 0,
        "redraw_interval": 3,
        "dropout_attn": 0.1,
        "dropout_qkv": 0.1,
        "linear_window": 2,
    }
    return SpatioTemporalPerformer_Forecaster(**(SMALL | defaults | options))


def train(
    options: dict, folder: Path | None = None, resume: Path | None = None, *, epochs: int = EPOCHS, **trainer_options
) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    built, callbacks = model(**options), []
    if folder is not None:
        every = {"dirpath": folder, "save_top_k": -1, "auto_insert_metric_name": False}
        callbacks = [
            ModelCheckpoint(**every, filename="batch-{step}", every_n_train_steps=1),
            ModelCheckpoint(**every, filename="validation-{step}", monitor="val/loss"),
            ModelCheckpoint(**every, filename="epoch-{step}", save_on_train_epoch_end=True, every_n_epochs=1),
        ]
    else:
        torch.manual_seed(99)  # another process, with another random state
    trainer = cpu_trainer(
        max_epochs=epochs, enable_checkpointing=bool(callbacks), callbacks=callbacks, **trainer_options
    )
    trainer.fit(built, data(), ckpt_path=resume)
    return {name: value.clone() for name, value in built.state_dict().items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_ends_as_an_uninterrupted_one_wherever_it_was_killed(tmp_path: Path, strategy: str):
    whole = train(STRATEGIES[strategy], tmp_path)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == EPOCHS * BATCHES + 2 * EPOCHS
    # Lightning leaves out the validation between the last batch of an epoch and its end when it resumes there
    unvalidated = {f"batch-{BATCHES * epoch}.ckpt" for epoch in range(1, EPOCHS + 1)}
    chosen = [each for each in checkpoints if each.name not in unvalidated]
    for checkpoint in chosen if strategy == "sequential" else chosen[::4]:
        resumed = train(STRATEGIES[strategy], resume=checkpoint)
        differing = [name for name, value in whole.items() if not torch.equal(resumed[name], value)]
        assert differing == [], checkpoint.name


@pytest.mark.parametrize("options", [{"val_check_interval": 2}, {"accumulate_grad_batches": 2}], ids=str)
def test_resuming_keeps_validations_and_accumulation_in_step(tmp_path: Path, options: dict):
    whole = train({}, tmp_path, epochs=2, **options)
    for checkpoint in sorted(tmp_path.glob("*.ckpt")):
        if "accumulate_grad_batches" in options and checkpoint.name.startswith("batch"):
            continue  # Lightning's checkpoints hold no gradients of half an accumulation
        resumed = train({}, resume=checkpoint, epochs=2, **options)
        assert all(torch.equal(resumed[name], value) for name, value in whole.items()), checkpoint.name


def test_runs_of_different_seeds_differ():
    def weights(seed: int) -> torch.Tensor:
        built = model()
        torch.manual_seed(seed)
        cpu_trainer(limit_val_batches=0).fit(built, data())
        return torch.nn.utils.parameters_to_vector(built.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_lightning_knows_that_the_loader_can_be_resumed(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    train({}, tmp_path, epochs=1)
    train({}, resume=tmp_path / "batch-2.ckpt", epochs=1)
    assert not [each for each in recwarn if "not resumable" in str(each.message)]


def test_each_epoch_has_an_order_of_its_own_and_processes_share_it():
    def order(rank: int, replicas: int, epoch: int) -> list[int]:
        sampler = EpochOrder(data().windows("train"), 3, num_replicas=replicas, rank=rank)
        sampler.set_epoch(epoch)
        return list(sampler)

    count = len(data().windows("train"))
    orders = [[visit % count for visit in order(0, 1, epoch)] for epoch in range(3)]
    assert all(sorted(each) == list(range(count)) for each in orders)
    assert len({tuple(each) for each in orders}) == 3
    assert set(order(0, 2, 1)) | set(order(1, 2, 1)) == set(order(0, 1, 1))
