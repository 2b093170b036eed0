"""Linear forecasts in closed form: alone, inside a forecaster, and in checkpoints."""

import pytest
import torch
from small_forecaster import (
    CONTEXT_LEN,
    D_CONTEXT,
    D_TARGET,
    NAN,
    TARGET_LEN,
    Silent,
    TimeMap,
    cpu_trainer,
    fit_and_load,
    windows,
)
from torch import Tensor

from favorcast.forecasting import (
    BestCheckpoint,
    ClosedFormLinear,
    DataModule,
    SimulationTimeSeries,
    SpatioTemporalPerformer_Forecaster,
    VectorRidge,
)
from favorcast.forecasting.cli.run_folder import check_weights
from favorcast.forecasting.data import InputAugmentation
from favorcast.forecasting.evaluation.baseline_comparison import rows_for_baselines
from favorcast.forecasting.linear_model import LinearModel, LinearPart
from favorcast.forecasting.principal_directions import principal_directions

KINDS = ("per_sensor", "shared", "vector")
LENGTH, HORIZON = 6, 5


def record(rows: int = 300, columns: int = 3, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(rows, dtype=torch.float64)[:, None]
    wave = torch.sin(0.5 * time + torch.arange(columns)) + 0.5 * torch.sin(1.3 * time * torch.arange(1, columns + 1))
    return wave + 0.1 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def blocks_of(values: Tensor, size: int = 40, d_y_target: int = 2):
    cut = values.unfold(0, LENGTH + HORIZON, 1).mT
    return lambda: [(each[:, :LENGTH], each[:, LENGTH:, :d_y_target]) for each in cut.split(size)]


def fitted(kind: str, values: Tensor, window: int = 4, **options) -> ClosedFormLinear:
    model = ClosedFormLinear(kind, window, values.shape[1], 2).double()
    model.fit(blocks_of(values), tuple, **({"penalties": (2.0,)} | options))
    return model


def rows_of(kind: str, context: Tensor, target: Tensor, column: int | None = None) -> tuple[Tensor, Tensor]:
    """Lay the regression out as one matrix equation, in the words of the docstring."""
    if kind == "vector":
        inputs = torch.cat((context.flatten(1), torch.ones(len(context), 1, dtype=context.dtype)), dim=1)
        return inputs, target.flatten(1)
    columns = range(target.shape[2]) if column is None else [column]
    last = [context[:, -1:, j] for j in columns]
    inputs = torch.cat([context[..., j] - x for j, x in zip(columns, last, strict=True)])
    return inputs, torch.cat([target[..., j] - x for j, x in zip(columns, last, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_solution_minimises_the_penalised_squares(kind: str):
    values = record()
    context, target = (torch.cat(part) for part in zip(*blocks_of(values)(), strict=True))
    context = context[:, -4:]
    model = fitted(kind, values)
    for group, weight in enumerate(model.weight.flatten(2)):
        inputs, outputs = rows_of(kind, context, target, group if kind == "per_sensor" else None)
        penalty = 2.0 * torch.eye(len(weight), dtype=torch.float64)
        if kind == "vector":
            penalty[-1] = 0  # the constant is free
        expected = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ outputs)
        torch.testing.assert_close(weight.data, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_forecast_is_what_the_weights_say(kind: str):
    model = fitted(kind, record())
    context = record(seed=1)[None, :LENGTH]
    x = context[0, -4:]
    forecast = model(context, HORIZON)[0]
    for t in range(HORIZON):
        for j in range(2):
            if kind == "vector":
                expected = (model.weight[0, :-1, t, j] * x.flatten()).sum() + model.weight[0, -1, t, j]
            else:
                own = model.weight[0 if kind == "shared" else j, :, t, 0]
                expected = x[-1, j] + (own * (x[:, j] - x[-1, j])).sum()
            torch.testing.assert_close(forecast[t, j], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_units_change_nothing(kind: str):
    values = record()
    context = record(seed=1)[None, :LENGTH]
    expected = fitted(kind, values)(context, HORIZON)
    model = ClosedFormLinear(kind, 4, 3, 2).double()
    unit = torch.tensor([1e3, 1e-2, 7.0], dtype=torch.float64)
    model.fit(blocks_of(values * unit, size=7), tuple, penalties=(2.0,), scale=unit)
    torch.testing.assert_close(model(context * unit, HORIZON), expected * unit[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_missing_targets_do_not_count(kind: str):
    values = record()
    generator = torch.Generator().manual_seed(3)
    lost = torch.rand(len(values) - LENGTH - HORIZON + 1, HORIZON, 2, generator=generator) < 0.2
    context, target = (torch.cat(part) for part in zip(*blocks_of(values)(), strict=True))
    with_holes = torch.where(lost, NAN, target)
    model = ClosedFormLinear(kind, 4, 3, 2).double()
    model.fit(lambda: [(context, with_holes)], tuple, penalties=(2.0,))
    other = torch.where(lost, 1e6, target)
    for j in range(2):
        inputs, outputs = rows_of(kind, context[:, -4:], other, None if kind == "vector" else j)
        seen = ~torch.where(outputs > 1e5, True, False)
        if kind == "shared":
            continue  # solved over both columns below
        for column in range(outputs.shape[1]):
            rows = seen[:, column]
            penalty = 2.0 * torch.eye(inputs.shape[1], dtype=torch.float64)
            if kind == "vector":
                penalty[-1] = 0
            here = inputs[rows]
            exact = torch.linalg.solve(here.T @ here + penalty, here.T @ outputs[rows, column])
            found = model.weight.flatten(2)[0 if kind == "vector" else j, :, column]
            torch.testing.assert_close(found, exact, rtol=0, atol=2e-4)  # 0.2^8 of what 0 in their place would change
    if kind == "shared":
        inputs, outputs = rows_of(kind, context[:, -4:], other)
        for column in range(HORIZON):
            rows = outputs[:, column] < 1e5
            here = inputs[rows]
            exact = torch.linalg.solve(
                here.T @ here + 2.0 * torch.eye(4, dtype=torch.float64), here.T @ outputs[rows, column]
            )
            torch.testing.assert_close(model.weight[0, :, column, 0], exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_with_the_least_held_out_error_is_chosen_at_each_step(kind: str):
    train, held_out = record(60), record(400, seed=5)
    penalties = (1e6, 30.0, 1e-6, 1.0, 1e3)
    errors = []
    for penalty in penalties:
        model = fitted(kind, train, penalties=(penalty,))
        errors.append(sum((model(x, HORIZON) - y).square().sum(dim=(0, 2)) for x, y in blocks_of(held_out)()))
    model = ClosedFormLinear(kind, 4, 3, 2).double()
    chosen = model.fit(blocks_of(train), blocks_of(held_out), penalties=penalties)
    best = torch.stack(errors).argmin(dim=0).tolist()
    assert [each.penalty for each in chosen] == [penalties[i] for i in best]
    assert torch.stack(errors).sum(dim=1).max() > 1.1 * torch.stack(errors).sum(dim=1).min()
    for step, each in enumerate(chosen):
        expected = fitted(kind, train, penalties=(each.penalty,)).weight
        torch.testing.assert_close(model.weight[:, :, step], expected[:, :, step])


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_windows_than_inputs_are_solved_in_the_dual_to_the_same_numbers(kind: str):
    """The oracle is the primal solution of the definition; 20 windows of 5 rows and 12 columns are 60 inputs."""
    values = record(20 + LENGTH + HORIZON - 1, 12)
    model = ClosedFormLinear(kind, 5, 12, 12).double()
    model.fit(blocks_of(values, size=7, d_y_target=12), tuple, penalties=(0.5,))
    context, target = (torch.cat(part) for part in zip(*blocks_of(values, d_y_target=12)(), strict=True))
    for group, weight in enumerate(model.weight.flatten(2)):
        inputs, outputs = rows_of(kind, context[:, -5:], target, group if kind == "per_sensor" else None)
        penalty = 0.5 * torch.eye(len(weight), dtype=torch.float64)
        if kind == "vector":
            penalty[-1] = 0
        expected = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ outputs)
        torch.testing.assert_close(weight.data, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("windows", [30, 90], ids=["dual", "primal"])
@pytest.mark.parametrize("is_centred", [False, True])
def test_both_forms_find_the_same_directions(windows: int, is_centred: bool):
    rows = torch.randn(1, windows, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e3
    found = principal_directions(rows.split(8, dim=1), is_centred=is_centred)
    assert found is not None
    centred = rows[0] - rows[0].mean(dim=0) * is_centred
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    rank = found.spectrum.shape[1]
    assert rank == min(windows - is_centred, 60)
    torch.testing.assert_close(found.spectrum[0], singular[:rank].square(), rtol=1e-8, atol=0)
    overlap = (found.basis[0] * directions[:rank].T).sum(dim=0).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_can_be_learned_persistence_itself_is_chosen(kind: str):
    """Training rows oscillate; held-out ones stand still on another level."""
    held_out = torch.full((40, 3), 7.0, dtype=torch.float64)
    model = ClosedFormLinear(kind, 4, 3, 2).double()
    chosen = model.fit(blocks_of(record(60)), blocks_of(held_out))
    context = record(seed=2)[None, :LENGTH]
    assert all(each.from_last and each.penalty > 0 for each in chosen)
    if kind == "vector":
        assert {each.penalty for each in chosen} == {torch.inf}
        torch.testing.assert_close(model(context, HORIZON), context[:, -1:, :2].expand(-1, HORIZON, -1))
    torch.testing.assert_close(model(held_out[None, :LENGTH], HORIZON), held_out[None, :HORIZON, :2])


def smooth_record() -> Tensor:
    """Waves without noise, which nearly no penalty forecasts best: differences of neighbours, magnified."""
    time = torch.arange(400, dtype=torch.float64)[:, None]
    return torch.sin(0.05 * time * torch.tensor([1.0, 1.1, 1.3])) + torch.cos(0.031 * time + torch.arange(3))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_that_training_adds_is_not_magnified(kind: str):
    values, noise = smooth_record(), 0.05
    noisy = values + noise * torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    contexts, targets = (torch.cat(each) for each in zip(*blocks_of(noisy)(), strict=True))
    truth = torch.cat([each for _, each in blocks_of(values)()])
    assert contexts.shape[:2] == (len(targets), LENGTH)
    errors = []
    for told in (0.0, noise):
        model = ClosedFormLinear(kind, 4, 3, 2).double()
        model.fit(blocks_of(values), blocks_of(values), noise=told)
        errors.append((model(contexts, HORIZON) - truth).square().mean().sqrt().item())
    assert errors[0] > 2 * errors[1]
    assert errors[1] < 4 * noise


def test_a_fit_tells_the_linear_part_of_the_noise_in_its_augmentation():
    series = SimulationTimeSeries(data=smooth_record().numpy(), use_cycles=False)
    shares = {}
    for level in (0.0, 0.05):
        data = DataModule(series, LENGTH, HORIZON, batch_size=64, augmentation=InputAugmentation(level))
        widths = {"d_x": data.d_x, "d_y_context": 3, "d_y_target": 3}
        part = {"linear_model": "vector", "linear_window": 4, "linear_fit": "ridge", "use_revin": False}
        model = SpatioTemporalPerformer_Forecaster(**widths, d_model=8, n_heads=2, use_global_norm=True, **part)
        cpu_trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=data)
        shares[level] = model.linear_model.weight[:, :-1].abs().max().item()
    assert shares[0.0] > 4 * shares[0.05]


@pytest.mark.parametrize("kind", ["per_sensor", "shared"])
def test_a_window_of_one_row_is_persistence(kind: str):
    """Its inputs are the change from the last value, of which there is none."""
    values = record()
    model = ClosedFormLinear(kind, 1, 3, 2).double()
    model.fit(blocks_of(values), blocks_of(values))
    context = torch.stack([values[:LENGTH], values[9 : 9 + LENGTH]])
    torch.testing.assert_close(model(context, HORIZON), context[:, -1:, :2].expand(-1, HORIZON, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_longer_horizons_are_rolled_on_and_shorter_ones_cut(kind: str):
    model = fitted(kind, record())
    context = record(seed=1)[None, :LENGTH]
    context[0, 2, 0] = NAN
    first = model(context, HORIZON)
    kept = context[:, -1:, 2:].expand(-1, HORIZON, -1)
    second = model(torch.cat((first, kept), dim=2), HORIZON)
    torch.testing.assert_close(model(context, HORIZON + 2), torch.cat((first, second[:, :2]), dim=1))
    torch.testing.assert_close(model(context, 3), first[:, :3])


def test_a_context_shorter_than_the_window_and_a_model_without_weights_are_refused():
    with pytest.raises(ValueError, match="expected at least 4, got 3"):
        fitted("shared", record())(torch.zeros(1, 3, 3, dtype=torch.float64), 2)
    with pytest.raises(ValueError, match="has no weights yet"):
        ClosedFormLinear("vector", 4, 3, 2)(torch.zeros(1, 6, 3), 2)
    with pytest.raises(ValueError, match="must be one of per_sensor, shared, vector: got 'all'"):
        ClosedFormLinear("all", 4, 3, 2)
    with pytest.raises(ValueError, match="at least one training window"):
        ClosedFormLinear("vector", 4, 3, 2).fit(tuple, tuple)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear_window": -1}, "linear_window must be at least 0"),
        ({"linear_model": "vector"}, "linear_window must be at least 1 with a linear_model"),
        ({"linear_model": "none", "linear_window": 2}, "and 0 with 'none'"),
        (
            {"linear_model": "all", "linear_window": 2},
            "must be one of none, per_sensor, shared, vector, stacked, stacked_own",
        ),
        ({"linear_model": "vector", "linear_window": 2}, "solved in closed form"),
        ({"linear_fit": "exact", "linear_window": 2}, "linear_fit must be one of gradient, ridge, both"),
        ({"linear_model": "vector", "linear_window": 2, "linear_shared_weights": True}, "contradicts"),
    ],
)
def test_contradictions_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TimeMap(**options)


def test_the_arguments_of_the_seed_still_mean_its_autoregression():
    for shared in (False, True):
        part = LinearPart(linear_window=3, linear_shared_weights=shared).build_linear_model(3, 2)
        assert isinstance(part, LinearModel)
        assert part.weight.shape == (3, 1 if shared else 2)
    assert LinearPart().build_linear_model(3, 2) is None
    both = LinearPart(linear_window=3, linear_model="vector", linear_fit="both").build_linear_model(3, 2)
    ridge = LinearPart(linear_window=3, linear_fit="ridge").build_linear_model(3, 2)
    assert isinstance(both, ClosedFormLinear)
    assert isinstance(ridge, ClosedFormLinear)
    assert (both.kind, both.weight.requires_grad) == ("vector", True)
    assert (ridge.kind, ridge.weight.requires_grad) == ("per_sensor", False)


def data(missing: float = 0.0) -> DataModule:
    values = record(200).float()
    generator = torch.Generator().manual_seed(1)
    values[torch.rand(values.shape, generator=generator) < missing] = NAN
    series = SimulationTimeSeries(data=values * torch.tensor([1.0, 50.0, 0.1]) + 3, exogenous_columns=["Sensor_3"])
    return DataModule(series, CONTEXT_LEN, TARGET_LEN, batch_size=16)


RIDGE = {"linear_window": 4, "linear_model": "vector", "linear_fit": "ridge"}


@pytest.mark.parametrize("norm", [{}, {"use_global_norm": True}, {"use_revin": True}], ids=["none", "global", "revin"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_a_forecaster_starts_where_ridge_ends(norm: dict, kind: str, missing: float):
    module, model = data(missing), Silent(**(RIDGE | {"linear_model": kind}), **norm)
    trainer = cpu_trainer(max_epochs=0, num_sanity_val_steps=0)
    trainer.fit(model, module)
    assert model.linear_model.is_fitted
    errors = {"ridge": 0.0, "persistence": 0.0}
    for context, target in module.window_blocks("train"):
        forecast = model.predict(torch.zeros(*context.shape[:2], 2), context, torch.zeros(*target.shape[:2], 2))
        last = context.clone()[:, -1:, :2].nan_to_num()
        errors["ridge"] += ((forecast - target) / model.target_scale).square().nansum().item()
        errors["persistence"] += ((last - target) / model.target_scale).square().nansum().item()
    assert errors["ridge"] < 0.95 * errors["persistence"]


def test_the_hybrid_and_the_yardstick_are_one_implementation():
    module, model = data(), Silent(**(RIDGE | {"linear_window": CONTEXT_LEN}), use_global_norm=True)
    cpu_trainer(max_epochs=0, num_sanity_val_steps=0).fit(model, module)
    context, target = next(iter(module.window_blocks("test")))
    covariates = torch.zeros(*context.shape[:2], 2), torch.zeros(*target.shape[:2], 2)
    forecast = model.predict(covariates[0], context, covariates[1])
    rows, sizes = rows_for_baselines(module, None)
    own = VectorRidge(CONTEXT_LEN).fit(rows, **sizes).predict(context)
    other = VectorRidge(CONTEXT_LEN, 10.0).fit(rows, **sizes).predict(context)
    torch.testing.assert_close(forecast, own, rtol=0, atol=1e-2)  # float32, of values around 100
    assert (forecast - other).abs().max() > 0.1


@pytest.mark.parametrize("linear_fit", ["ridge", "both"])
def test_a_frozen_part_stays_and_a_trained_one_moves(linear_fit: str):
    model = TimeMap(**(RIDGE | {"linear_fit": linear_fit}), use_global_norm=True, learning_rate=0.01)
    model.setup = lambda stage: None  # fitted below
    module = data()
    model.fit_statistics(*module.training_statistics())
    model.fit_linear_part(lambda: module.window_blocks("train"), lambda: module.window_blocks("val"))
    before = model.linear_model.weight.clone()
    cpu_trainer(max_epochs=2).fit(model, module)
    assert torch.equal(before, model.linear_model.weight) == (linear_fit == "ridge")


def test_the_solution_is_kept_in_the_checkpoint(tmp_path):
    model = TimeMap(**RIDGE, use_global_norm=True)
    loaded = fit_and_load(model, data(), tmp_path / "model.ckpt")
    context_x, context_y, target_x, _ = windows()
    torch.testing.assert_close(
        loaded.predict(context_x, context_y, target_x), model.predict(context_x, context_y, target_x), rtol=0, atol=0
    )
    check_weights(TimeMap(**RIDGE, use_global_norm=True), tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="do not fit"):
        check_weights(TimeMap(use_global_norm=True), tmp_path / "model.ckpt")
    resumed = TimeMap(**RIDGE, use_global_norm=True)
    cpu_trainer(max_epochs=1).fit(resumed, data(), ckpt_path=tmp_path / "model.ckpt")
    assert torch.equal(resumed.linear_model.weight, model.linear_model.weight)


@pytest.mark.parametrize("options", [{}, {"autoregressive_training": True}, {"patch_len": 3}], ids=str)
def test_an_untrained_transformer_forecasts_what_ridge_does(options: dict):
    torch.manual_seed(0)
    small = {"d_model": 16, "n_encoder_layers": 1, "n_decoder_layers": 1, "use_revin": False, "use_global_norm": True}
    hybrid = SpatioTemporalPerformer_Forecaster(D_CONTEXT, D_TARGET, 2, **(RIDGE | small | options))
    alone, module = Silent(**RIDGE, use_global_norm=True), data()
    for model in (hybrid, alone):
        cpu_trainer(max_epochs=0, num_sanity_val_steps=0).fit(model, module)
    context, target = next(iter(module.window_blocks("test")))
    covariates = torch.zeros(*context.shape[:2], 2), torch.zeros(*target.shape[:2], 2)
    expected = alone.predict(covariates[0], context, covariates[1])
    torch.testing.assert_close(hybrid.predict(covariates[0], context, covariates[1]), expected)
    assert hybrid.model.config.decoder_reads_linear


def test_a_datamodule_without_windows_is_refused():
    model = TimeMap(**RIDGE)
    train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*windows()), batch_size=2)
    with pytest.raises(ValueError, match="needs training windows"):
        cpu_trainer().fit(model, train)
    with pytest.raises(ValueError, match="linear_fit='ridge'"):
        TimeMap().fit_linear_part(tuple, tuple)
    with pytest.raises(ValueError, match="has no weights yet"):
        model.predict(*windows()[:3])
    assert model.linear_model.d_y_context == D_CONTEXT


@pytest.mark.parametrize(
    ("options", "is_kept"),
    [({**RIDGE, "learning_rate": 0.5}, True), ({"learning_rate": 0.01}, False)],
    ids=["training harms", "training helps"],
)
def test_the_best_checkpoint_may_be_that_of_step_0(tmp_path, options: dict, is_kept: bool):
    def best_step(checks: int) -> int:
        saver = BestCheckpoint(tmp_path / str(checks), filename="best", monitor="val/loss")
        trainer = cpu_trainer(max_epochs=2, num_sanity_val_steps=checks, enable_checkpointing=True, callbacks=[saver])
        trainer.fit(Silent(**options, use_global_norm=True), data())
        return torch.load(saver.best_model_path, weights_only=True)["global_step"]

    assert (best_step(-1) == 0) == is_kept
    assert best_step(1) > 0  # a check of one batch is no judge


def test_best_checkpoints_take_back_the_state_of_earlier_versions():
    from pytorch_lightning.callbacks import ModelCheckpoint

    options = {"monitor": "val/loss", "save_last": True}
    assert BestCheckpoint(**options).state_key == ModelCheckpoint(**options).state_key
