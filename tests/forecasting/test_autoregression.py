"""Forecasting step by step, and the strategies that train it."""

import pytest
import torch
from small_forecaster import (
    CONTEXT_LEN,
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from favorcast.forecasting import SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.autoregression import decoder_input, forecast_given, forecast_step_by_step
from favorcast.forecasting.training.scheduled_sampling import draw_given, inverse_sigmoid_ratio

SAMPLINGS = ("none", "parallel", "sequential")
SOFTMAX = "favorcast.forecasting.st_transformer.SoftmaxAttention"
VARIANTS = {
    "plain": {},
    "start": {"start_len": 2, "n_decoder_layers": 2},
    "all start": {"start_len": CONTEXT_LEN},
    "linear": {"linear_window": 3},
    "decomposed": {"use_seasonal_decomp": True, "decomposition_kernel_size": 5, "linear_window": 3, "start_len": 2},
    "masked": {"mask_missing": True},
    "batchnorm": {"normalization_type": "batchnorm", "scheduled_sampling": "parallel"},
    "relu": {"performer_attention_kernel": "relu", "features": "iid"},
    "softmax": {"attention_class": SOFTMAX},
    "global only": {"local_attention": False},
    "patches": {"patch_len": 3, "start_len": 4},
    "reads linear": {"linear_window": 3, "decoder_reads_linear": True, "start_len": 2},
    "patches read linear": {
        "patch_len": 2,
        "linear_window": 3,
        "decoder_reads_linear": True,
        "use_seasonal_decomp": True,
    },
}


def build(**options) -> SpatioTemporalPerformer_Forecaster:
    torch.manual_seed(0)
    defaults = SMALL | NO_DROPOUT | {"max_seq_len": 40, "autoregressive_training": True}
    model = SpatioTemporalPerformer_Forecaster(**(defaults | options))
    torch.nn.init.normal_(model.model.head.weight)  # forecasts of order 1, so that a change is a visible change
    return model


def decoder_reads(model: SpatioTemporalPerformer_Forecaster, *batch: Tensor) -> Tensor:
    """Return what the decoder is given in one call, the steps of all its calls joined."""
    seen = []
    hook = model.model.embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].detach()))
    model(*batch)
    hook.remove()
    return torch.cat(seen[1:], dim=1)  # the first call embeds the context


# forecasting


@pytest.mark.parametrize("kind", ["none", "scattered"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forecast_step_by_step_equals_all_steps_at_once_from_the_same_values(variant: str, kind: str):
    model = build(**VARIANTS[variant]).eval()
    context_x, context_y, target_x, _ = outage(kind)
    forecast = model.predict(context_x, context_y, target_x)
    # shown its own forecast as the truth, teacher forcing must find it again
    model.scheduled_sampling = "none"
    torch.testing.assert_close(model(context_x, context_y, target_x, forecast), forecast, rtol=1e-3, atol=1e-3)


def test_the_encoder_runs_once_and_each_layer_summarises_the_memory_once():
    model = build(n_decoder_layers=2, scheduled_sampling="sequential")
    calls = []
    model.model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    for layer in model.model.decoder.layers:
        for name in ("local_cross_attention", "global_cross_attention"):
            attention = getattr(layer, name).attention
            original = attention.summarize

            def counted(*inputs, original=original):
                calls.append("memory")
                return original(*inputs)

            attention.summarize = counted
    model(*windows())
    assert sorted(calls) == ["encoder"] + ["memory"] * 4


@pytest.mark.parametrize("step", [0, 5000, 10**9])
def test_a_forecast_does_not_depend_on_how_far_training_was(step: int, monkeypatch: pytest.MonkeyPatch):
    model, batch = build(scheduled_sampling_k=1e-6), windows()[:3]
    before = model.predict(*batch)
    monkeypatch.setattr(type(model), "global_step", step)
    assert torch.equal(model.predict(*batch), before)


@pytest.mark.parametrize("options", [{"use_revin": True}, {"use_revin": True, "linear_window": 3}], ids=str)
def test_what_is_fed_back_is_in_normalised_units(options: dict):
    model = build(**options)
    context_x, context_y, target_x, _ = windows()
    forecast = model.predict(context_x, context_y, target_x)
    torch.testing.assert_close(
        model.predict(context_x, 7 * context_y + 3, target_x), 7 * forecast + 3, rtol=1e-3, atol=2e-2
    )


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_decoder_reads_the_signal_that_continues_its_context(sampling: str):
    options = {"use_revin": False, "use_global_norm": True, "scheduled_sampling": sampling, "start_len": 2}
    model = build(linear_window=3, **options)
    model.fit_statistics(torch.tensor([0.0, 50.0, -3.0]), torch.tensor([0.7, 3.5, 0.14]))
    context_x, context_y, target_x, target_y = windows()
    y = torch.cat((context_y[..., :D_TARGET], target_y), dim=1)
    z = (y - model.normalization.mean[:D_TARGET]) / model.normalization.std[:D_TARGET]
    model.teacher_forcing_ratio.fill_(1.0)
    reads = decoder_reads(model, context_x, context_y, target_x, target_y)[:, -TARGET_LEN - 2 :]
    torch.testing.assert_close(reads, z[:, CONTEXT_LEN - 3 : -1])  # the step before each of two start and four targets
    model.teacher_forcing_ratio.fill_(0.0)
    own = decoder_reads(model, context_x, context_y, target_x, target_y)[:, -TARGET_LEN - 2 :]
    torch.testing.assert_close(own[:, :3], z[:, CONTEXT_LEN - 3 : CONTEXT_LEN])
    assert torch.allclose(own, reads) is (sampling == "none")
    if sampling == "sequential":  # then it reads what it would in a forecast
        forecast = model.predict(context_x, context_y, target_x)
        expected = (forecast - model.normalization.mean[:D_TARGET]) / model.normalization.std[:D_TARGET]
        torch.testing.assert_close(own[:, 3:], expected[:, :-1], rtol=1e-4, atol=1e-5)


def test_a_split_off_trend_is_taken_from_what_the_decoder_reads():
    model = build(use_seasonal_decomp=True, decomposition_kernel_size=1, use_revin=False, scheduled_sampling="none")
    context_x, context_y, target_x, target_y = windows()
    reads = decoder_reads(model, context_x, context_y, target_x, target_y)
    # kernel size 1: the trend is the signal, the seasonal part 0, and the trend's forecast the last value
    torch.testing.assert_close(reads[:, 0], torch.zeros(6, D_TARGET))
    torch.testing.assert_close(reads[:, 1:], (target_y - context_y[:, -1:, :D_TARGET])[:, :-1])


@pytest.mark.parametrize(
    "options", [{}, {"use_seasonal_decomp": True}, {"patch_len": 3}], ids=["plain", "decomposed", "patches"]
)
def test_a_decoder_that_changes_nothing_repeats_the_last_value(options: dict):
    model = build(**options)
    torch.nn.init.zeros_(model.model.head.weight)
    context_x, context_y, target_x, _ = windows()
    expected = context_y[:, -1:, :D_TARGET].expand(-1, TARGET_LEN, -1)
    torch.testing.assert_close(model.predict(context_x, context_y, target_x), expected)


@pytest.mark.parametrize(
    "options", [{}, {"use_seasonal_decomp": True}, {"patch_len": 3}], ids=["plain", "decomposed", "patches"]
)
@pytest.mark.parametrize("kind", ["none", "block outage"])
def test_a_decoder_that_changes_nothing_follows_the_linear_model(options: dict, kind: str):
    model = build(linear_window=3, **options)
    torch.nn.init.zeros_(model.model.head.weight)
    torch.nn.init.normal_(model.linear_model.weight, std=0.3)
    context_x, context_y, target_x, _ = outage(kind)
    forecast = model.predict(context_x, context_y, target_x)
    model.forward_model_pass = lambda *_, **__: torch.zeros(6, TARGET_LEN, D_TARGET)
    expected = model.predict(context_x, context_y, target_x)
    seasonal = forecast - expected  # with a decomposition, the last seasonal value stays
    assert torch.allclose(seasonal, seasonal[:, :1], atol=1e-4)
    if "use_seasonal_decomp" not in options:
        torch.testing.assert_close(forecast, expected)


# training


@pytest.mark.parametrize("variant", ["plain", "start", "linear", "decomposed", "patches", "patches read linear"])
def test_all_strategies_are_teacher_forcing_while_the_truth_is_always_shown(variant: str):
    forecasts = []
    for sampling in SAMPLINGS:
        model = build(**(VARIANTS[variant] | {"scheduled_sampling": sampling}))
        model.teacher_forcing_ratio.fill_(1.0)
        forecasts.append(model(*windows()))
    for forecast in forecasts[1:]:
        torch.testing.assert_close(forecast, forecasts[0], rtol=1e-4, atol=1e-4)


def test_sequential_sampling_without_truth_is_the_forecast():
    model = build(scheduled_sampling="sequential", linear_window=3)
    model.teacher_forcing_ratio.fill_(0.0)
    torch.testing.assert_close(model(*windows()), model.predict(*windows()[:3]))


def test_the_second_pass_reads_the_first():
    model = build(scheduled_sampling="parallel", use_revin=False)
    model.teacher_forcing_ratio.fill_(0.0)
    context_x, context_y, target_x, target_y = windows()
    memory = model.model.encode(context_x, context_y)
    known = decoder_input(context_x, context_y, target_x, start_len=0, d_y_target=D_TARGET)
    first = forecast_given(model.model, memory, known, target_y[:, :-1])
    second = forecast_given(model.model, memory, known, first[:, :-1])
    torch.testing.assert_close(model(context_x, context_y, target_x, target_y), second)
    assert not torch.allclose(second, first)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_training_reads_the_truth_of_earlier_steps_only(sampling: str):
    model = build(scheduled_sampling=sampling)
    model.teacher_forcing_ratio.fill_(1.0)
    context_x, context_y, target_x, target_y = windows()
    before = model(context_x, context_y, target_x, target_y)
    changed = target_y.clone()
    changed[:, 1:] += 10.0
    after = model(context_x, context_y, target_x, changed)
    assert torch.equal(after[:, :2], before[:, :2])
    assert (after[:, 2:] != before[:, 2:]).all()
    changed = target_y.clone()
    changed[:, -1] += 10.0
    assert torch.equal(model(context_x, context_y, target_x, changed), before)


@pytest.mark.parametrize("sampling", ["parallel", "sequential"])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_gradients_flow_through_the_models_own_forecasts(sampling: str, ratio: float):
    model = build(scheduled_sampling=sampling, linear_window=2).double()
    model.teacher_forcing_ratio.fill_(ratio)
    batch = [part.double() for part in windows()]

    def last_step() -> Tensor:
        torch.manual_seed(1)
        return model(*batch)[:, -1].square().sum()

    for parameter in (model.model.head.bias, model.linear_model.bias):
        # the derivative of everything the parameter does, of which a cut through the feedback would lose a part
        (gradient,) = torch.autograd.grad(last_step(), parameter)
        values = []
        for change in (1e-5, -2e-5, 1e-5):
            with torch.no_grad():
                parameter[0] += change
                values.append(last_step())
        torch.testing.assert_close(gradient[0], (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_gradients_reach_every_step_that_was_fed_back():
    model = build()
    context_x, context_y, target_x, _ = windows()
    memory = model.model.encode(context_x, context_y)
    known = decoder_input(context_x, context_y, target_x, start_len=0, d_y_target=D_TARGET)
    fed: list[Tensor] = []
    forecast = forecast_step_by_step(model.model, memory, known, lambda _, y: fed.append(y) or y)
    gradients = torch.autograd.grad(forecast[:, -1].sum(), fed)
    assert len(gradients) == TARGET_LEN - 1
    assert all((gradient != 0).all() for gradient in gradients)


def test_the_truth_is_drawn_for_all_sensors_of_a_step_and_missing_values_are_never_given():
    torch.manual_seed(0)
    truth = torch.zeros(200, 50, 3)
    truth[:, 7, 1] = NAN
    given = draw_given(truth, torch.tensor(0.3))
    assert not given[:, 7, 1].any()
    complete = torch.cat((given[:, :7], given[:, 8:]), dim=1)
    assert torch.equal(complete.all(-1), complete.any(-1))
    assert complete.float().mean().item() == pytest.approx(0.3, abs=0.02)  # 9800 draws: a standard error of 0.005
    assert draw_given(torch.zeros(2, 3, 1), 1.0).all()
    patches = draw_given(torch.zeros(200, 50, 3), 0.3, patch_len=5).unflatten(1, (10, 5)).flatten(2)
    assert torch.equal(patches.all(-1), patches.any(-1))
    assert patches.float().mean().item() == pytest.approx(0.3, abs=0.05)  # 2000 draws: 0.01
    assert not draw_given(torch.zeros(2, 3, 1), 0.0).any()


@pytest.mark.parametrize("sampling", ["parallel", "sequential"])
def test_where_the_truth_is_missing_the_decoder_reads_its_own_forecast(sampling: str):
    model = build(scheduled_sampling=sampling)
    model.teacher_forcing_ratio.fill_(1.0)
    reads = decoder_reads(model, *outage("block outage"))[:, -TARGET_LEN:]  # truth of steps 1 and 2 is lost
    assert not reads[0].isnan().any()
    model.scheduled_sampling = "none"
    reads = decoder_reads(model, *outage("block outage"))
    assert reads[0].isnan().any(-1).tolist() == [False, False, True, True]


@pytest.mark.parametrize("k", [2.0, 1e-6])
def test_the_truth_is_withdrawn_by_optimiser_steps(k: float):
    ratios = []

    class Noted(SpatioTemporalPerformer_Forecaster):
        def training_step(self, batch, batch_idx):
            ratios.append(self.teacher_forcing_ratio.item())
            return super().training_step(batch, batch_idx)

    model = Noted(**SMALL, autoregressive_training=True, scheduled_sampling="parallel", scheduled_sampling_k=k)
    trainer = cpu_trainer(max_epochs=2, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(model, WindowData())  # 3 batches an epoch, 2 optimiser steps
    expected = [inverse_sigmoid_ratio(step, k) for step in (0, 0, 1, 2, 2, 3)]
    assert ratios == pytest.approx(expected)
    assert trainer.callback_metrics["train/teacher_forcing_ratio"] == pytest.approx(expected[-1])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_no_truth_enters_validation_test_or_prediction(sampling: str):
    model = build(scheduled_sampling=sampling)
    forecasts: list[Tensor] = []
    model.register_forward_hook(lambda _, inputs, output: forecasts.append(output))
    runs = []
    for change in (0.0, 5.0):
        context_x, context_y, target_x, target_y = windows()
        loader = DataLoader(TensorDataset(context_x, context_y, target_x, target_y + change), batch_size=4)
        forecasts.clear()
        errors = [run(model, loader, verbose=False)[0] for run in (cpu_trainer().validate, cpu_trainer().test)]
        predictions = cpu_trainer().predict(model, loader)
        runs.append((torch.cat(forecasts), torch.cat(predictions), errors))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][2][0]["val/mse"] != runs[1][2][0]["val/mse"]
    assert runs[0][2][1]["test/mse"] != runs[1][2][1]["test/mse"]
    torch.testing.assert_close(runs[0][1], model.predict(*windows()[:3]))


@pytest.mark.parametrize("kind", OUTAGES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_missing_values_leave_forecasts_and_gradients_finite(sampling: str, kind: str):
    model = build(scheduled_sampling=sampling, **VARIANTS["decomposed"])
    model.teacher_forcing_ratio.fill_(0.5)
    context_x, context_y, target_x, target_y = outage(kind)
    model(context_x, context_y, target_x, target_y).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.predict(context_x, context_y, target_x).isfinite().all()


@pytest.mark.parametrize("sampling", ["sequential"])
def test_the_training_forward_compiles_to_one_graph(sampling: str):
    model = build(scheduled_sampling=sampling, n_decoder_layers=1)
    model.teacher_forcing_ratio.fill_(1.0)
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*windows()), model(*windows()))


class NoHostCopies(TorchDispatchMode):
    """Refuse operations that wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options", [{"autoregressive_training": False}, *({"scheduled_sampling": s} for s in SAMPLINGS)]
)
def test_the_training_step_never_waits_for_the_device(options: dict):
    class Guarded(SpatioTemporalPerformer_Forecaster):
        steps = 0

        def log(self, *args, **kwargs) -> None:
            """Leave out what the progress bar does with the value."""

        def training_step(self, batch, batch_idx):
            with NoHostCopies():
                self.steps += 1
                return super().training_step(batch, batch_idx)

    everything = VARIANTS["decomposed"] | {"mask_missing": True, "null_value": -999.0, "autoregressive_training": True}
    model = Guarded(**(SMALL | everything | options))
    cpu_trainer(limit_val_batches=0).fit(model, WindowData())
    assert model.steps == 3


# arguments


def test_an_unknown_sampling_is_refused():
    with pytest.raises(ValueError, match="scheduled_sampling must be one of none, parallel, sequential: got 'soft'"):
        build(scheduled_sampling="soft")


def test_batch_norm_is_refused_where_each_step_would_have_its_own_statistics():
    with pytest.raises(ValueError, match="expected 'layernorm', or scheduled_sampling='parallel'"):
        build(normalization_type="batchnorm")
    build(normalization_type="batchnorm", autoregressive_training=False)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("FavorAttention", "importable class"),
        ("favorcast.kernels.Attention", "importable class"),
        ("nowhere.to.be.Found", "importable class"),
        ("favorcast.kernels.favor.functions", "subclass of torch.nn.Module"),
    ],
)
def test_an_attention_class_that_does_not_exist_is_refused(path: str, message: str):
    with pytest.raises(ValueError, match=message):
        build(attention_class=path)


def test_a_checkpoint_with_another_attention_loads(tmp_path):
    model = build(attention_class=SOFTMAX)
    trainer = cpu_trainer()
    trainer.fit(model, WindowData())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SpatioTemporalPerformer_Forecaster.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(loaded.predict(*windows()[:3]), model.predict(*windows()[:3]))
