"""Forecaster: data flow, missing values, prediction."""

import itertools

import pytest
import torch
from small_forecaster import (
    CONTEXT_LEN,
    D_CONTEXT,
    D_TARGET,
    D_X,
    NAN,
    OUTAGES,
    TARGET_LEN,
    Echo,
    TimeMap,
    WindowData,
    cpu_trainer,
    outage,
    windows,
)
from torch import Tensor

from favorcast.forecasting.forecaster import Forecaster
from favorcast.forecasting.metrics.losses import masked_loss

NORMS = {"none": {}, "revin": {"use_revin": True}, "global": {"use_global_norm": True}}
TRENDS = {"full": {}, "decomposed": {"use_seasonal_decomp": True, "decomposition_kernel_size": 4}}
LINEAR = {
    "no linear": {},
    "linear": {"linear_window": 3},
    "shared": {"linear_window": 3, "linear_shared_weights": True},
}
COMBINATIONS = [
    pytest.param({**NORMS[n], **TRENDS[t], **LINEAR[w]}, id=f"{n}-{t}-{w}")
    for n, t, w in itertools.product(NORMS, TRENDS, LINEAR)
]


def fitted(cls: type[TimeMap] = TimeMap, **options) -> TimeMap:
    model = cls(**options)
    model.fit_statistics(torch.tensor([0.0, 50.0, -3.0]), torch.tensor([0.7, 3.5, 0.14]))
    return model


def loss_and_gradients(model: TimeMap, batch: tuple[Tensor, ...], missing: float = NAN) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    target = torch.where(batch[3] == missing, NAN, batch[3])
    loss = masked_loss(model(*batch), target, scale=model.target_scale)
    loss.backward()
    return loss.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("options", COMBINATIONS)
@pytest.mark.parametrize("kind", OUTAGES)
def test_missing_values_leave_loss_and_gradients_finite(options: dict, kind: str):
    loss, gradients = loss_and_gradients(fitted(**options), outage(kind))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    if kind == "nothing observed":
        assert loss == 0
        assert all((gradient == 0).all() for gradient in gradients)
    else:
        assert any((gradient != 0).any() for gradient in gradients)


@pytest.mark.parametrize("options", COMBINATIONS)
@pytest.mark.parametrize("kind", OUTAGES[1:])
def test_what_a_missing_entry_holds_changes_no_gradient(options: dict, kind: str):
    model = fitted(null_value=-999.0, **options)
    loss, gradients = loss_and_gradients(model, outage(kind))
    other_loss, other_gradients = loss_and_gradients(model, outage(kind, -999.0), -999.0)
    assert torch.equal(loss, other_loss)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        assert torch.equal(gradient, other)


@pytest.mark.parametrize("options", COMBINATIONS)
def test_a_dead_sensor_does_not_move_the_forecast_of_the_others(options: dict):
    model = fitted(**options)
    context_x, context_y, target_x, _ = windows()
    dead = context_y.clone()
    dead[..., 0] = NAN
    torch.testing.assert_close(
        model.predict(context_x, dead, target_x)[..., 1], model.predict(context_x, context_y, target_x)[..., 1]
    )


@pytest.mark.parametrize("options", COMBINATIONS)
@pytest.mark.parametrize("kind", ["none", "scattered"])
def test_the_truth_shown_to_the_model_is_what_its_forecast_is_compared_with(options: dict, kind: str):
    model = fitted(Echo, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = outage(kind)
    torch.testing.assert_close(model(*batch), batch[3], equal_nan=True, rtol=1e-4, atol=1e-4)


def test_the_forecast_is_the_sum_of_model_and_baseline_in_original_units():
    model = fitted(use_global_norm=True, linear_window=2)
    context_x, context_y, target_x, _ = windows()
    mean, std = model.normalization.mean, model.normalization.std
    z = (context_y - mean) / std
    parts = model.linear_model(z, TARGET_LEN) + model.forward_model_pass(context_x, z, target_x)
    torch.testing.assert_close(model(context_x, context_y, target_x), parts * std[:D_TARGET] + mean[:D_TARGET])


def test_a_decomposed_trend_without_linear_model_is_carried_forward():
    model = TimeMap(use_seasonal_decomp=True, decomposition_kernel_size=1)  # kernel 1: the trend is the signal
    context_x, context_y, target_x, _ = windows()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    expected = context_y[:, -1:, :D_TARGET].expand(-1, TARGET_LEN, -1)
    torch.testing.assert_close(model(context_x, context_y, target_x), expected)


def test_missing_values_do_not_enter_the_decomposed_trend():
    model = TimeMap(use_seasonal_decomp=True, decomposition_kernel_size=3)
    context_x, context_y, target_x, _ = (part.clone() for part in windows())
    context_y[:, -1] = NAN  # the last window holds the step before and, repeated, the last: only the former is observed
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    expected = context_y[:, -2:-1, :D_TARGET].expand(-1, TARGET_LEN, -1)
    torch.testing.assert_close(model(context_x, context_y, target_x), expected)


def test_revin_makes_the_forecast_follow_level_and_scale_of_the_window():
    model = TimeMap(use_revin=True)
    context_x, context_y, target_x, _ = windows()
    forecast = model(context_x, context_y, target_x)
    torch.testing.assert_close(model(context_x, 7 * context_y + 3, target_x), 7 * forecast + 3, rtol=1e-3, atol=1e-2)


def test_a_missing_covariate_counts_as_zero():
    model = TimeMap()
    context_x, context_y, target_x, _ = (part.clone() for part in windows())
    target_x[0, 1], context_x[1, 2] = NAN, NAN
    expected = model(context_x.nan_to_num(), context_y, target_x.nan_to_num())
    torch.testing.assert_close(model(context_x, context_y, target_x), expected)


def test_two_forwards_may_precede_a_backward():
    model = fitted(use_revin=True, use_seasonal_decomp=True, linear_window=3)
    first, second = windows(seed=1), windows(seed=2)
    _, alone = loss_and_gradients(model, first)
    model.zero_grad()
    loss = masked_loss(model(*first), first[3], scale=model.target_scale)
    model(*second)
    loss.backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), alone, strict=True))


def test_predict_uses_evaluation_mode_and_restores_the_mode_of_each_submodule():
    model = TimeMap(dropout=0.5, use_revin=True)
    model.train()
    model.covariates.eval()
    modes = [module.training for module in model.modules()]
    batch = windows()
    forecast = model.predict(*batch[:3])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(forecast, model.predict(*batch[:3]))
    assert torch.equal(forecast, model.eval()(*batch[:3]))
    assert not forecast.requires_grad


def test_predict_restores_the_mode_after_an_error():
    model = TimeMap().train()
    with pytest.raises(ValueError):
        model.predict(*(part[0] for part in windows()[:3]))
    assert model.training
    assert model.time_map.training


def test_predict_takes_inputs_of_another_dtype():
    model = TimeMap(use_revin=True)
    batch = windows()[:3]
    forecast = model.predict(*(part.double() for part in batch))
    assert forecast.dtype == torch.float64
    torch.testing.assert_close(forecast.float(), model.predict(*batch))
    torch.testing.assert_close(TimeMap(use_revin=True).double().predict(*batch), forecast, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"use_revin": True}, {"use_global_norm": True}], ids=str)
@pytest.mark.parametrize("missing", ["none", "scattered", "dead sensor", "nothing observed"])
def test_a_large_mean_costs_a_forecast_no_digits(options, missing, tmp_path):
    offset = 1.2345678e8
    context_x, context_y, target_x, _ = (part.double() for part in outage(missing))
    forecasts = []
    for shift in (0.0, offset):
        model = TimeMap(**options)
        y = windows()[1].double().flatten(0, 1) + shift
        model.fit_statistics(y.mean(dim=0), y.std(dim=0))
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        model = TimeMap(**options)
        model.load_state_dict(torch.load(tmp_path / "weights.pt"))
        forecasts.append(model.predict(context_x, context_y + shift, target_x))
    torch.testing.assert_close(forecasts[1] - offset, forecasts[0], rtol=1e-6, atol=1e-6)


def test_training_on_a_large_mean_ends_where_training_without_it_does():
    weights = []
    for shift in (0.0, 1.2345678e8):
        model, data = TimeMap(use_revin=True), WindowData(has_validation=False)
        context_x, context_y, target_x, target_y = data.batches
        data.batches = (context_x, context_y.double() + shift, target_x, target_y.double() + shift)
        cpu_trainer(max_epochs=3).fit(model, data)
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_without_the_rest_of_the_mean_loads():
    model = TimeMap(use_global_norm=True)
    model.fit_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3))
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("mean_rest")}
    loaded = TimeMap(use_global_norm=True)
    loaded.load_state_dict(state)
    torch.testing.assert_close(loaded.predict(*windows()[:3]), model.predict(*windows()[:3]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_predict_moves_inputs_to_the_model_and_the_forecast_back():
    model = TimeMap(use_revin=True, use_seasonal_decomp=True, linear_window=3)
    batch = windows()[:3]
    expected = model.predict(*batch)
    forecast = model.cuda().predict(*batch)
    assert forecast.device.type == "cpu"
    torch.testing.assert_close(forecast, expected, rtol=1e-4, atol=1e-4)


WRONG_SHAPES = {
    "unbatched": (
        (CONTEXT_LEN, D_X),
        (CONTEXT_LEN, D_CONTEXT),
        (TARGET_LEN, D_X),
        r"context_x.*d_x=2.*context_x\[None\]",
    ),
    "one sensor": ((3, 8, 2), (3, 8), (3, 4, 2), r"context_y.*d_y_context=3.*context_y\[\.\.\., None\]"),
    "sensor count": ((3, 8, 2), (3, 8, 5), (3, 4, 2), r"context_y must have d_y_context=3 columns: got \(3, 8, 5\)"),
    "covariates": ((3, 8, 2), (3, 8, 3), (3, 4, 1), "target_x must have d_x=2"),
    "batch": ((3, 8, 2), (2, 8, 3), (3, 4, 2), "same batch size.*context_y 2"),
    "time": ((3, 7, 2), (3, 8, 3), (3, 4, 2), "context_x and context_y must cover the same time steps.*7 and 8"),
    "no horizon": ((3, 8, 2), (3, 8, 3), (3, 0, 2), "target_x.*at least one"),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_wrong_shapes_are_refused_by_name(case: str):
    *shapes, message = WRONG_SHAPES[case]
    with pytest.raises(ValueError, match=message):
        TimeMap().predict(*(torch.zeros(shape) for shape in shapes))


def test_a_wrong_target_is_refused_by_name():
    context_x, context_y, target_x, target_y = windows()
    with pytest.raises(ValueError, match="target_y must have d_y_target=2"):
        TimeMap()(context_x, context_y, target_x, target_y[..., :1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "smape"}, "loss must be one of"),
        ({"huber_delta": -1.0}, "huber_delta"),
        ({"use_revin": True, "use_global_norm": True}, "exclude each other"),
        ({"global_mean": [0.0, 0.0, 0.0]}, "go together"),
        ({"global_mean": [0.0], "global_std": [1.0]}, "one value for each context column"),
        ({"linear_window": -1}, "linear_window"),
        ({"decomposition_kernel_size": 0}, "decomposition_kernel_size"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"decay_factor": 2.0}, "decay factor"),
        ({"warmup_steps": 10, "num_training_steps": 5}, "must exceed warmup_steps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TimeMap(**options)


def test_more_targets_than_context_columns_are_refused():
    class Wide(Echo):
        def __init__(self) -> None:
            Forecaster.__init__(self, 1, 2, 3)

    with pytest.raises(ValueError, match="d_y_target=3, d_y_context=2"):
        Wide()


def test_a_window_shorter_than_the_linear_window_is_refused():
    with pytest.raises(ValueError, match="expected at least 9, got 8"):
        TimeMap(linear_window=9)(*windows())


def test_global_norm_without_statistics_is_refused():
    with pytest.raises(ValueError, match="no statistics yet"):
        TimeMap(use_global_norm=True)(*windows())


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_given_statistics_apply_at_once(kind: type):
    model = TimeMap(use_global_norm=True, global_mean=kind([1.0, 2.0, 3.0]), global_std=kind([4.0, 5.0, 6.0]))
    assert model.normalization.mean.tolist() == [1.0, 2.0, 3.0]
    assert model.target_scale.tolist() == [4.0, 5.0]


def test_numpy_statistics_are_refused_because_checkpoints_could_not_be_loaded():
    with pytest.raises(ValueError, match=r"got ndarray and ndarray; use \.tolist\(\)"):
        TimeMap(global_mean=torch.zeros(3).numpy(), global_std=torch.ones(3).numpy())


@pytest.mark.parametrize("options", [COMBINATIONS[-1], COMBINATIONS[6]])
def test_the_forward_compiles_without_a_graph_break(options: dict):
    model = fitted(**options)
    batch = outage("scattered")
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batch), model(*batch))
