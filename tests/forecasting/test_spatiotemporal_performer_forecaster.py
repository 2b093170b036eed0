"""SpatioTemporalPerformer_Forecaster: arguments, data flow, training, checkpoints."""

import dataclasses
import inspect

import jsonargparse
import pytest
import torch
from small_forecaster import (
    D_CONTEXT,
    D_TARGET,
    NAN,
    NO_DROPOUT,
    OUTAGES,
    SMALL,
    TARGET_LEN,
    WindowData,
    cpu_trainer,
    outage,
    windows,
)
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from favorcast.forecasting.data import DataModule, SimulationTimeSeries
from favorcast.forecasting.evaluation.baseline_comparison import BaselineComparison
from favorcast.forecasting.evaluation.baselines import Persistence
from favorcast.forecasting.metrics.losses import masked_loss
from favorcast.forecasting.missing_values import carry_forward
from favorcast.forecasting.spatiotemporal_performer_forecaster import SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.st_transformer import PerformerConfig

EVERYTHING = {"use_seasonal_decomp": True, "decomposition_kernel_size": 5, "linear_window": 3, "start_len": 2}


def build(**options) -> SpatioTemporalPerformer_Forecaster:
    torch.manual_seed(0)
    return SpatioTemporalPerformer_Forecaster(**(SMALL | NO_DROPOUT | options))


def gradients(
    model: SpatioTemporalPerformer_Forecaster, batch: tuple[Tensor, ...], missing: float = NAN
) -> list[Tensor]:
    model.zero_grad()
    target = torch.where(batch[3] == missing, NAN, batch[3])
    masked_loss(model(*batch), target, scale=model.target_scale).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def test_the_documented_example_trains():
    model = SpatioTemporalPerformer_Forecaster(
        d_y_context=49,
        d_y_target=49,
        d_x=1,
        d_model=128,
        use_seasonal_decomp=True,
        use_revin=True,
        use_global_norm=False,
        num_training_steps=30000,
        autoregressive_training=False,
    )
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(2, 6, 1), torch.randn(2, 6, 49), torch.rand(2, 2, 1), torch.randn(2, 2, 49))
    before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
    trainer = cpu_trainer(limit_val_batches=0)
    trainer.fit(model, DataLoader(data, batch_size=2))
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert not torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), before)


def test_training_fits_waves():
    data = WindowData(32, batch_size=16)
    model = build(initial_lr=5e-3, warmup_steps=0)
    (before,) = cpu_trainer().validate(model, DataLoader(TensorDataset(*data.batches), batch_size=16), verbose=False)
    cpu_trainer(max_epochs=30, limit_val_batches=0).fit(model, data)
    (after,) = cpu_trainer().validate(model, DataLoader(TensorDataset(*data.batches), batch_size=16), verbose=False)
    assert after["val/mse"] < 0.3 * before["val/mse"]


@pytest.mark.parametrize("kind", OUTAGES)
@pytest.mark.parametrize("options", [{}, EVERYTHING, {"use_revin": False, "mask_missing": True}], ids=str)
def test_missing_values_reach_no_gradient(options: dict, kind: str):
    model = build(null_value=-999.0, **options)
    expected = gradients(model, outage(kind))
    assert all(gradient.isfinite().all() for gradient in expected)
    for gradient, other in zip(expected, gradients(model, outage(kind, -999.0), -999.0), strict=True):
        assert torch.equal(gradient, other)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_every_parameter_of_the_model_is_trained(options: dict):
    model = build(**options)
    torch.nn.init.normal_(model.model.head.weight)
    names = [name for name, _ in model.named_parameters()]
    idle = [name for name, g in zip(names, gradients(model, windows()), strict=True) if not (g != 0).any()]
    assert idle == []


def test_no_target_value_enters_the_forecast():
    model = build(**EVERYTHING)
    context_x, context_y, target_x, target_y = windows()
    assert torch.equal(
        model(context_x, context_y, target_x, target_y), model(context_x, context_y, target_x, -3 * target_y)
    )


def test_the_decoder_starts_with_the_end_of_the_context():
    model = build(start_len=3, use_revin=False)
    seen = []
    model.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    context_x, context_y, target_x, _ = windows()
    model(context_x, context_y, target_x)
    _, _, decoder_x, decoder_y = seen[0]
    assert torch.equal(decoder_x, torch.cat((context_x[:, -3:], target_x), dim=1))
    assert torch.equal(decoder_y[:, :3], context_y[:, -3:, :D_TARGET])
    assert decoder_y[:, 3:].isnan().all()


def test_a_context_shorter_than_start_len_is_refused():
    with pytest.raises(ValueError, match="expected at least 9, got 8"):
        build(start_len=9)(*windows())


def test_masked_missing_values_are_hidden_from_attention():
    model = build(mask_missing=True)
    seen = []
    model.model.register_forward_pre_hook(lambda module, inputs, named: seen.append(named), with_kwargs=True)
    batch = outage("scattered")
    model(*batch)
    assert torch.equal(seen[0]["context_padding_mask"], batch[1].isnan())
    torch.nn.init.normal_(model.model.head.weight)
    other = build()
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(model.predict(*batch[:3]), other.predict(*batch[:3]))


def test_masking_with_downsampling_is_refused():
    with pytest.raises(ValueError, match="mask_missing cannot be used with downsampling"):
        build(mask_missing=True, downsample_convs_embedding=1)


def test_a_checkpoint_predicts_identically_without_data(tmp_path):
    model = build(use_revin=False, use_global_norm=True, normalization_type="batchnorm", **EVERYTHING)
    trainer = cpu_trainer(max_epochs=2)
    trainer.fit(model, WindowData())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SpatioTemporalPerformer_Forecaster.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    batch = windows(seed=9)[:3]
    assert torch.equal(loaded.predict(*batch), model.predict(*batch))
    assert loaded.hparams == model.hparams


def test_hyper_parameters_are_the_constructor_arguments_in_plain_types():
    model = build(global_mean=torch.zeros(3), global_std=torch.ones(3))
    assert set(model.hparams) == set(inspect.signature(SpatioTemporalPerformer_Forecaster).parameters)
    assert {type(value) for value in model.hparams.values()} <= {int, float, str, bool, list, type(None)}


# arguments

ANCESTOR = """
d_y_context d_y_target d_x max_seq_len start_len d_model d_q_k d_v n_heads n_encoder_layers n_decoder_layers d_ff
time_emb_dim downsample_convs_embedding downsample_convs_block data_dropout_embedding dropout_attn dropout_qkv
dropout_ff redraw_interval time_embedding indicator_embedding performer_attention_kernel windows
use_shifted_time_window activation normalization_type final_norm initial_lr warmup_steps decay_factor loss
l2_regul_factor linear_shared_weights use_seasonal_decomp linear_window use_revin use_global_norm global_mean
global_std num_training_steps autoregressive_training scheduled_sampling_k
"""


def test_the_arguments_of_the_ancestor_keep_their_names():
    assert set(ANCESTOR.split()) <= set(inspect.signature(SpatioTemporalPerformer_Forecaster).parameters)


def test_every_option_of_the_model_is_an_argument_and_reaches_it():
    changed = {
        "d_q_k": 6, "d_v": 10, "n_encoder_layers": 2, "n_decoder_layers": 2, "start_len": 1, "max_seq_len": 40,
        "time_emb_dim": 3, "time_embedding": False, "indicator_embedding": False, "position_embedding": "periodic",
        "downsample_convs_embedding": 1, "downsample_convs_block": 1, "performer_attention_kernel": "relu",
        "num_features": 24, "features": "iid", "qk_norm": False, "redraw_interval": 7, "windows": 2,
        "use_shifted_time_window": False, "activation": "relu", "normalization_type": "batchnorm", "final_norm": False,
        "data_dropout_embedding": 0.3, "dropout_attn": 0.3, "dropout_qkv": 0.3, "dropout_ff": 0.3,
        "autoregressive_training": True, "seed": 5, "patch_len": 2, "decoder_reads_linear": True,
        "local_attention": False,
    }  # fmt: skip
    config = build(**changed, scheduled_sampling="parallel", linear_window=2).model.config
    assert {name: getattr(config, name) for name in changed} == changed
    given = {field.name for field in dataclasses.fields(PerformerConfig)} - {"attention_factory"}
    assert given == set(changed) | set(SMALL)


@pytest.mark.parametrize(
    "options",
    [
        {"performer_attention_kernel": "cosine"},
        {"activation": "tanh"},
        {"normalization_type": "groupnorm"},
        {"position_embedding": "rotary"},
        {"loss": "smape"},
        {"scheduled_sampling_k": 0.0},
        {"dropout_ff": 1.5},
        {"d_model": 15},
        {"warmup_steps": -1},
        {"use_revin": True, "use_global_norm": True},
        {"patch_len": 0},
        {"decoder_reads_linear": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_bad_arguments_are_refused_by_name(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        build(**options)


def test_an_unknown_kind_of_features_is_refused():
    with pytest.raises(ValueError, match=r"hyperbolic.*'sobol'"):
        build(features="sobol")


def parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SpatioTemporalPerformer_Forecaster, "model")
    return parser


def test_a_configuration_file_can_give_every_argument(tmp_path):
    given = {"model": SMALL | {"use_revin": False, "use_global_norm": True, "loss": "huber"}}
    given["model"] |= {"global_mean": [0.0, 1.0, 2.0], "global_std": [1.0, 1.0, 1.0]}
    path = tmp_path / "config.yaml"
    path.write_text(parser().dump(parser().parse_object(given)))
    model = SpatioTemporalPerformer_Forecaster(**parser().parse_path(path).model.as_dict())
    assert model.normalization.mean.tolist() == [0.0, 1.0, 2.0]
    assert model.loss == "huber"


@pytest.mark.parametrize("choice", ["loss", "activation", "normalization_type", "performer_attention_kernel"])
def test_a_configuration_file_with_a_wrong_choice_is_refused(choice: str):
    with pytest.raises(jsonargparse.ArgumentError, match=choice):
        parser().parse_object({"model": {choice: "wrong"}})


# redraw


def projections(model: SpatioTemporalPerformer_Forecaster) -> list[Tensor]:
    return [value.clone() for name, value in model.named_buffers() if "projection" in name]


@pytest.mark.parametrize(("accumulate", "epochs", "redraws"), [(1, 1, True), (3, 2, False), (3, 3, True)])
def test_features_are_redrawn_every_interval_of_optimiser_steps(accumulate: int, epochs: int, redraws: bool):
    model = build(redraw_interval=2)
    before = projections(model)
    assert before
    cpu_trainer(max_epochs=epochs, accumulate_grad_batches=accumulate).fit(model, WindowData())  # 3 batches an epoch
    for old, new in zip(before, projections(model), strict=True):
        assert torch.equal(old, new) is not redraws


def test_evaluation_never_redraws():
    model = build(redraw_interval=1)
    before = projections(model)
    cpu_trainer().validate(model, WindowData(), verbose=False)
    model.predict(*windows()[:3])
    assert all(torch.equal(old, new) for old, new in zip(before, projections(model), strict=True))


@pytest.mark.parametrize("d_y_context", [D_TARGET, D_CONTEXT])
def test_exogenous_columns_are_read_but_not_forecast(d_y_context: int):
    model = build(d_y_context=d_y_context)
    context_x, context_y, target_x, _ = windows()
    forecast = model.predict(context_x, context_y[..., :d_y_context], target_x)
    assert forecast.shape == (6, TARGET_LEN, D_TARGET)


def finely_sampled(rows: int = 1500) -> DataModule:
    """A wave sampled 500 times a period, in two groups of sensors with units of their own."""
    time = torch.arange(rows)[:, None]
    values = torch.sin(2 * torch.pi * time / 500 + torch.linspace(0, 2, 4)) + 1e-4 * time
    series = SimulationTimeSeries(data=values * torch.tensor([1, 1, 50, 50]) + torch.tensor([0, 0, 1e3, 1e3]))
    return DataModule(series, 24, 8, batch_size=32)


DEFAULTS = {"d_y_context": 4, "d_y_target": 4, "d_model": 16}


@pytest.mark.parametrize("options", [{}, {"use_seasonal_decomp": True}, {"use_revin": False}], ids=str)
def test_with_default_arguments_training_starts_at_persistence(options: dict):
    model = SpatioTemporalPerformer_Forecaster(d_x=1, **DEFAULTS, **options)
    context = torch.randn(3, 20, 4)
    context[1, -3:, 2] = torch.nan
    forecast = model.predict(torch.rand(3, 20, 1), context, torch.rand(3, 5, 1))
    expected = carry_forward(context)[:, -1:].expand(-1, 5, -1)
    torch.testing.assert_close(forecast, expected, rtol=0, atol=1e-5)


def test_finely_sampled_data_do_not_end_below_persistence_with_default_arguments():
    """Without the path from the last value this ends at a skill of -17."""
    data, skill = finely_sampled(), {}
    for from_last_value in (True, False):
        torch.manual_seed(0)
        model = SpatioTemporalPerformer_Forecaster(d_x=data.d_x, from_last_value=from_last_value, **DEFAULTS)
        cpu_trainer(max_epochs=-1, max_steps=40, limit_val_batches=0).fit(model, data)
        comparison = BaselineComparison([Persistence()])
        cpu_trainer(callbacks=[comparison]).test(model, data, verbose=False)
        skill[from_last_value] = comparison.report.standardised_skill(type(model).__name__)
    assert skill[True] > 0
    assert skill[False] < -5


def test_a_checkpoint_from_before_the_path_from_the_last_value_forecasts_as_it_did(tmp_path):
    data = finely_sampled()
    model = SpatioTemporalPerformer_Forecaster(d_x=data.d_x, from_last_value=False, **DEFAULTS)
    trainer = cpu_trainer(max_epochs=-1, max_steps=1, limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    del content["hyper_parameters"]["from_last_value"]
    torch.save(content, tmp_path / "old.ckpt")
    inputs = (torch.rand(2, 24, data.d_x), torch.randn(2, 24, 4), torch.rand(2, 8, data.d_x))
    loaded = SpatioTemporalPerformer_Forecaster.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    assert torch.equal(loaded.predict(*inputs), model.predict(*inputs))
    assert loaded.hparams["from_last_value"] is False
