import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from favorcast.forecasting.st_transformer import DecoderLayer, EncoderLayer, SoftmaxAttention, SpatioTemporalPerformer
from favorcast.kernels import FavorAttention

D_Y_CONTEXT, D_Y_TARGET, D_X, CONTEXT_LEN, TARGET_LEN = 5, 3, 2, 8, 4
SMALL = {"d_model": 16, "n_heads": 2, "time_emb_dim": 3, "max_seq_len": CONTEXT_LEN + TARGET_LEN}
NO_DROPOUT = {"data_dropout_embedding": 0.0, "dropout_ff": 0.0}


def build(d_y_context=D_Y_CONTEXT, d_y_target=D_Y_TARGET, d_x=D_X, **options):
    torch.manual_seed(0)
    model = SpatioTemporalPerformer(d_y_context, d_y_target, d_x, **{**SMALL, **NO_DROPOUT, **options})
    nn.init.normal_(model.head.weight)  # outputs of order 1, so that a change is a visible change
    return model


def batch(start_len=0, context_len=CONTEXT_LEN, target_len=TARGET_LEN, b=2):
    generator = torch.Generator().manual_seed(1)
    time = torch.linspace(0.0, 1.0, context_len + target_len)
    x = torch.stack((time, (9 * time).sin()), dim=-1).expand(b, -1, -1).clone()
    y = torch.randn(b, context_len + target_len, D_Y_CONTEXT, generator=generator)
    start = context_len - start_len
    return x[:, :context_len], y[:, :context_len], x[:, start:], y[:, start:, :D_Y_TARGET].clone()


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("patch_len", [2, 3, 5, 20])
@pytest.mark.parametrize("start_len", [0, 3, 5])
def test_patches_need_not_divide_context_and_horizon(start_len, patch_len, autoregressive):
    model = build(start_len=start_len, patch_len=patch_len, autoregressive_training=autoregressive)
    steps = model.config.start_steps
    assert steps in range(start_len, start_len + patch_len)
    context_len = max(steps, CONTEXT_LEN)
    if context_len + TARGET_LEN <= SMALL["max_seq_len"]:
        assert model(*batch(steps, context_len)).shape == (2, TARGET_LEN, D_Y_TARGET)


def test_a_context_that_does_not_fill_its_first_patch_is_one_whose_first_steps_are_missing():
    model = build(patch_len=4)
    context_x, context_y, target_x, target_y = batch()
    context_x[:, :2], context_y[:, :2] = context_x[:, 2:3], torch.nan
    shorter = model(context_x[:, 2:], context_y[:, 2:], target_x, target_y)
    torch.testing.assert_close(model(context_x, context_y, target_x, target_y), shorter)


def test_forecasts_do_not_depend_on_how_far_the_last_patch_goes_beyond_the_horizon():
    model = build(patch_len=3)
    context_x, context_y, target_x, target_y = batch()
    longer_x = torch.cat((target_x, target_x[:, -1:].expand(-1, 2, -1)), dim=1)
    longer = model(context_x, context_y, longer_x, torch.full((2, 6, D_Y_TARGET), torch.nan))
    torch.testing.assert_close(model(context_x, context_y, target_x, target_y), longer[:, :TARGET_LEN])


def test_tokens_are_fewer_by_the_length_of_a_patch():
    seen = []
    model = build(patch_len=4)
    for part in (model.encoder, model.decoder):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(*batch())
    assert [shape[1] for shape in seen] == [CONTEXT_LEN // 4, TARGET_LEN // 4]


def test_a_causal_decoder_of_patches_leaves_earlier_forecasts_bit_identical():
    model = build(patch_len=2, autoregressive_training=True).eval()
    context_x, context_y, target_x, target_y = batch()
    before = model(context_x, context_y, target_x, target_y)
    target_y[:, 2:] *= -5.0
    target_x[:, 2:] += 1.0
    after = model(context_x, context_y, target_x, target_y)
    assert torch.equal(after[:, :2], before[:, :2])
    assert (after[:, 2:] != before[:, 2:]).all()


def test_attention_ignores_a_patch_when_all_of_it_is_padding():
    model = build(patch_len=2)
    context_x, context_y, target_x, target_y = batch()
    padding = torch.zeros(2, CONTEXT_LEN, D_Y_CONTEXT, dtype=torch.bool)
    padding[:, 2:4, 1] = True  # a patch
    changed = context_y.clone()
    changed[:, 2:4, 1] += 9.0

    def forecast(y):
        return model(context_x, y, target_x, target_y, context_padding_mask=padding)

    torch.testing.assert_close(forecast(changed), forecast(context_y))
    padding[:, 3, 1] = False  # half of it
    assert not torch.allclose(forecast(changed), forecast(context_y))


@pytest.mark.parametrize("patch_len", [1, 3])
def test_the_decoder_reads_a_linear_forecast_as_it_reads_values_of_the_context(patch_len):
    model = build(decoder_reads_linear=True, patch_len=patch_len, indicator_embedding=False)
    inputs, linear = batch(), torch.randn(2, TARGET_LEN, D_Y_TARGET)
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(*inputs, linear_forecast=linear)
    patches = torch.nn.functional.pad(linear, (0, 0, 0, -TARGET_LEN % patch_len))
    patches[:, TARGET_LEN:] = linear[:, -1:]
    context = torch.zeros(2, patch_len * -(-CONTEXT_LEN // patch_len), D_X)
    target_x = torch.cat((inputs[2], inputs[2][:, -1:].expand(-1, -TARGET_LEN % patch_len, -1)), dim=1)
    torch.testing.assert_close(seen[0], model.embedding(target_x, patches, context.shape[1] // patch_len))
    assert not torch.equal(model(*inputs, linear_forecast=linear), model(*inputs))


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("start_len", [0, 3, CONTEXT_LEN])
def test_forecast_has_one_value_for_each_target_step_and_sensor(start_len, autoregressive):
    model = build(start_len=start_len, autoregressive_training=autoregressive)
    assert model(*batch(start_len)).shape == (2, TARGET_LEN, D_Y_TARGET)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_len": 3},
        {"d_q_k": 5, "d_v": 7, "d_ff": 11},
        {"performer_attention_kernel": "relu"},
        {"performer_attention_kernel": "elu"},
        {"normalization_type": "batchnorm", "activation": "relu"},
        {"final_norm": False, "activation": "silu"},
        {"position_embedding": "periodic"},
        {"time_embedding": False, "indicator_embedding": False},
        {"windows": 2, "n_encoder_layers": 3},
        {"windows": 2, "use_shifted_time_window": False},
        {"downsample_convs_embedding": 1, "downsample_convs_block": 1},
        {"autoregressive_training": True},
        {"qk_norm": False, "num_features": 8},
        {"dropout_attn": 0.1, "dropout_qkv": 0.1, "dropout_ff": 0.1, "data_dropout_embedding": 0.1},
        {"patch_len": 2},
        {"local_attention": False},
        {"patch_len": 4, "windows": 2, "downsample_convs_embedding": 0},
        {"patch_len": 2, "autoregressive_training": True, "position_embedding": "periodic"},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_every_parameter_of_every_variant_learns(options):
    model = build(**options)
    context_x, context_y, target_x, target_y = batch(options.get("start_len", 0))
    context_y[:, 2, 1] = torch.nan
    output = model(context_x, context_y, target_x, target_y)
    output.square().sum().backward()
    assert output.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("start_len", [0, 3])
def test_target_values_never_enter_a_one_shot_forecast(start_len):
    model = build(start_len=start_len)
    context_x, context_y, target_x, target_y = batch(start_len)
    before = model(context_x, context_y, target_x, target_y)
    target_y[:, start_len:] = torch.nan
    assert torch.equal(model(context_x, context_y, target_x, target_y), before)
    if start_len:
        target_y[:, 0] += 1.0
        assert not torch.equal(model(context_x, context_y, target_x, target_y), before)


@pytest.mark.parametrize("normalization_type", ["layernorm", "batchnorm"])
@pytest.mark.parametrize("start_len", [0, 3])
def test_step_causal_decoder_leaves_earlier_forecasts_bit_identical(start_len, normalization_type):
    model = build(start_len=start_len, autoregressive_training=True, normalization_type=normalization_type).eval()
    for step in range(1, TARGET_LEN):
        context_x, context_y, target_x, target_y = batch(start_len)
        before = model(context_x, context_y, target_x, target_y)
        target_y[:, start_len + step :] *= -5.0
        target_x[:, start_len + step :] += 1.0
        after = model(context_x, context_y, target_x, target_y)
        assert torch.equal(after[:, :step], before[:, :step])
        assert (after[:, step:] != before[:, step:]).all()


def test_step_causal_decoder_reads_given_target_values_of_earlier_steps():
    model = build(autoregressive_training=True)
    context_x, context_y, target_x, target_y = batch()
    before = model(context_x, context_y, target_x, target_y)
    target_y[:, 0, 0] += 1.0
    assert (model(context_x, context_y, target_x, target_y) != before).all()


def test_every_context_value_reaches_every_forecast():
    model = build()
    context_x, context_y, target_x, target_y = batch(context_len=CONTEXT_LEN)
    context_y.requires_grad_()
    forecast = model(context_x, context_y, target_x, target_y)
    for step in range(TARGET_LEN):
        for sensor in range(D_Y_TARGET):
            (gradient,) = torch.autograd.grad(forecast[0, step, sensor], context_y, retain_graph=True)
            assert (gradient[0] != 0).all()
            assert (gradient[1] == 0).all()


def test_missing_value_differs_from_zero_and_leaves_everything_finite():
    model = build()
    context_x, context_y, target_x, target_y = batch()
    zero, missing = context_y.clone(), context_y.clone()
    zero[0, 2, 1], missing[0, 2, 1] = 0.0, torch.nan
    missing.requires_grad_()
    forecast = model(context_x, missing, target_x, target_y)
    assert not torch.equal(forecast[0], model(context_x, zero, target_x, target_y)[0])
    forecast.sum().backward()
    assert forecast.isfinite().all()
    assert missing.grad is not None
    assert missing.grad.isfinite().all()
    assert missing.grad[0, 2, 1] == 0


@pytest.mark.parametrize("normalization_type", ["layernorm", "batchnorm"])
@pytest.mark.parametrize("autoregressive", [False, True])
def test_windows_without_any_value_give_finite_forecasts_and_gradients(autoregressive, normalization_type):
    options = {"autoregressive_training": autoregressive, "normalization_type": normalization_type}
    model = build(start_len=3, **options)
    context_x, context_y, target_x, target_y = batch(start_len=3)
    forecast = model(context_x, torch.full_like(context_y, torch.nan), target_x, torch.full_like(target_y, torch.nan))
    forecast.square().sum().backward()
    assert forecast.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_missing_start_value_equals_a_placeholder():
    model = build(start_len=3, autoregressive_training=True)
    context_x, context_y, target_x, target_y = batch(start_len=3)
    target_y[:, 3:] = torch.nan
    one_shot = build(start_len=3)
    one_shot.load_state_dict(model.state_dict())
    tokens = model.embedding(target_x, target_y, start=CONTEXT_LEN - 3)
    seen = []
    one_shot.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    one_shot(context_x, context_y, target_x, batch(start_len=3)[3])
    assert torch.equal(seen[0], tokens)


def test_time_covariates_are_ignored_without_the_time_embedding():
    for enabled in (True, False):
        model = build(time_embedding=enabled)
        context_x, context_y, target_x, target_y = batch()
        before = model(context_x, context_y, target_x, target_y)
        after = model(context_x + 1.0, context_y, target_x - 1.0, target_y)
        assert torch.equal(after, before) is not enabled


def test_missing_value_equals_zero_without_the_indicator_embedding():
    model = build(indicator_embedding=False)
    context_x, context_y, target_x, target_y = batch()
    zero, missing = context_y.clone(), context_y.clone()
    zero[0, 2, 1], missing[0, 2, 1] = 0.0, torch.nan
    assert torch.equal(model(context_x, zero, target_x, target_y), model(context_x, missing, target_x, target_y))


def test_padded_context_values_are_ignored():
    model = build(windows=2)
    context_x, context_y, target_x, target_y = batch()
    padding = torch.zeros(context_y.shape, dtype=torch.bool)
    padding[0, :3] = True
    padding[1, :, 4] = True
    before = model(context_x, context_y, target_x, target_y, context_padding_mask=padding)
    assert not torch.equal(before, model(context_x, context_y, target_x, target_y))
    context_y[padding] += 5.0
    assert torch.equal(model(context_x, context_y, target_x, target_y, context_padding_mask=padding), before)


def test_padding_that_cannot_be_honoured_is_refused():
    inputs = batch()
    with pytest.raises(ValueError, match="bool tensor of context_y's shape"):
        build()(*inputs, context_padding_mask=torch.zeros(2, CONTEXT_LEN, dtype=torch.bool))
    with pytest.raises(ValueError, match="cannot be used with downsampling"):
        build(downsample_convs_embedding=1)(*inputs, context_padding_mask=torch.zeros_like(inputs[1], dtype=torch.bool))


def test_learned_positions_must_cover_context_and_target():
    with pytest.raises(ValueError, match="max_seq_len must cover context and target steps: expected at least 12"):
        build(max_seq_len=11)(*batch())
    build(max_seq_len=11, position_embedding="periodic")(*batch())


def test_more_convolutions_than_the_context_can_bear_are_refused():
    build(downsample_convs_embedding=3)(*batch())
    with pytest.raises(ValueError, match="lower downsample_convs_embedding"):
        build(downsample_convs_embedding=4)(*batch())


def test_each_convolution_halves_what_the_decoder_attends_to():
    model = build(downsample_convs_embedding=1, downsample_convs_block=1)
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(*batch())
    assert seen[0].joint.shape[1] == CONTEXT_LEN // 4 * D_Y_CONTEXT
    assert seen[0].per_sensor.shape[1] == CONTEXT_LEN // 4


@pytest.mark.parametrize(
    ("options", "is_shifted"),
    [
        ({"windows": 2}, [False, True, False]),
        ({"windows": 2, "use_shifted_time_window": False}, [False, False, False]),
        ({"windows": 1}, [False, False, False]),
    ],
    ids=["shifted", "unshifted", "one-window"],
)
def test_every_second_encoder_layer_shifts_its_windows(options, is_shifted):
    model = build(n_encoder_layers=3, **options)
    windows = [module.windows for module in model.modules() if isinstance(module, EncoderLayer)]
    assert [window.is_shifted for window in windows] == is_shifted
    assert {window.count for window in windows} == {options["windows"]}


def test_final_norm_standardises_what_the_head_reads():
    for enabled in (True, False):
        model = build(final_norm=enabled)
        seen = []
        model.head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model(*batch())
        assert torch.allclose(seen[0].mean(dim=-1), torch.zeros(()), atol=1e-5) is enabled


def test_double_precision_agrees_with_single():
    model = build()
    single = model(*batch())
    double = model.double()(*(tensor.double() for tensor in batch()))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


def test_mixed_precision_stays_close():
    model = build()
    exact = model(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(*batch())
    # bfloat16 has 8 bits of mantissa: 2^-8 relative error for each of a few tens of roundings in a row.
    assert (mixed.float() - exact).norm() < 0.1 * exact.norm()


def test_windows_must_divide_the_context():
    with pytest.raises(ValueError, match="got windows=3 for 8 steps"):
        build(windows=3)(*batch())


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (2, 8, 3), r"context_x must have shape \(2, 8, 2\), got \(2, 8, 3\)"),
        (0, (2, 7, 2), r"context_x must have shape \(2, 8, 2\), got \(2, 7, 2\)"),
        (1, (2, 8, 3), r"context_y must have shape \(2, 8, 5\), got \(2, 8, 3\)"),
        (1, (2, 8), r"context_y must have 3 dimensions \(batch, time, column\), got shape \(2, 8\)"),
        (2, (2, 5, 2), r"target_x must have shape \(2, 4, 2\), got \(2, 5, 2\)"),
        (2, (1, 4, 2), r"target_x must have shape \(2, 4, 2\), got \(1, 4, 2\)"),
        (3, (2, 4, 5), r"target_y must have shape \(2, 4, 3\), got \(2, 4, 5\)"),
        (3, (2, 4), r"target_y must have 3 dimensions"),
    ],
)
def test_wrong_shape_is_refused_by_name(index, shape, message):
    inputs = list(batch())
    inputs[index] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        build()(*inputs)


def test_start_len_must_leave_targets_and_fit_the_context():
    with pytest.raises(ValueError, match="start_len \\+ n steps with n >= 1"):
        build(start_len=4)(*batch())
    with pytest.raises(ValueError, match="the context must have at least 9 steps, got 8"):
        build(start_len=9, max_seq_len=99)(*batch(start_len=0, target_len=12))


def test_each_attention_draws_from_its_own_seed():
    model = build(seed=3, n_encoder_layers=2, n_decoder_layers=2)
    attentions = [module for module in model.modules() if isinstance(module, FavorAttention)]
    projections = [attention.projection.flatten().tolist() for attention in attentions]
    assert len(attentions) == 2 * EncoderLayer.num_attentions + 2 * DecoderLayer.num_attentions
    assert len({tuple(projection) for projection in projections}) == len(attentions)


def test_seed_fixes_the_random_features_whatever_the_global_generator():
    def buffers(seed, global_seed):
        torch.manual_seed(global_seed)
        model = SpatioTemporalPerformer(2, 2, 1, d_model=8, n_heads=2, seed=seed)
        return torch.cat([m.projection.flatten() for m in model.modules() if isinstance(m, FavorAttention)])

    assert torch.equal(buffers(3, 0), buffers(3, 1))
    assert not torch.equal(buffers(3, 0), buffers(4, 0))


def test_any_module_with_the_interface_can_be_the_attention():
    seeds = []

    class Counted(SoftmaxAttention):
        def __init__(self, *, seed, **options):
            super().__init__(**options)
            seeds.append(seed)

    model = build(attention_factory=Counted, autoregressive_training=True)
    attentions = [module for module in model.modules() if isinstance(module, Counted)]
    assert len(attentions) == len(set(seeds)) == 12
    assert [a.tokens_per_step for a in attentions if a.is_causal] == [1, D_Y_TARGET] * 2
    assert not any(isinstance(module, FavorAttention) for module in model.modules())
    assert model(*batch()).isfinite().all()


def test_an_attention_that_cannot_be_continued_is_refused_for_a_step_causal_decoder():
    class Forward(nn.Module):
        def __init__(self, **options):
            super().__init__()

    build(attention_factory=Forward)
    with pytest.raises(ValueError, match="Forward has no summarize, attend, stream"):
        build(attention_factory=Forward, autoregressive_training=True)


@pytest.mark.parametrize("attention", [FavorAttention, SoftmaxAttention])
@pytest.mark.parametrize("padded", [False, True], ids=["complete", "padded"])
@pytest.mark.parametrize("sizes", [[6], [3, 1, 1, 1], [1, 2, 3]], ids=str)
def test_decoding_piece_by_piece_equals_decoding_all_steps_at_once(sizes, padded, attention):
    model = build(autoregressive_training=True, attention_factory=attention).eval()
    context_x, context_y, x, y = batch(start_len=2)
    y[0, 3, 1] = torch.nan
    padding = torch.zeros(context_y.shape, dtype=torch.bool)
    padding[0, :5] = padding[1, :, 4] = padded
    memory = model.encode(context_x, context_y, padding)
    states, forecasts, start = None, [], CONTEXT_LEN - 2
    summary = model.summarize(memory)
    for size in sizes:
        steps = slice(sum(f.shape[1] for f in forecasts), None)
        forecast, states = model.stream(summary, x[:, steps][:, :size], y[:, steps][:, :size], start, states)
        forecasts.append(forecast)
        start += size
    exact = model.decode(memory, x, y, CONTEXT_LEN - 2)
    torch.testing.assert_close(torch.cat(forecasts, 1), exact, rtol=1e-4, atol=1e-5)


def test_states_of_the_decoder_do_not_grow_with_the_steps():
    model = build(autoregressive_training=True, max_seq_len=100).eval()
    memory = model.summarize(model.encode(*batch()[:2]))
    _, states = model.stream(memory, torch.zeros(2, 1, D_X), torch.zeros(2, 1, D_Y_TARGET), CONTEXT_LEN)
    _, later = model.stream(memory, torch.zeros(2, 50, D_X), torch.zeros(2, 50, D_Y_TARGET), 9, states)
    sizes, later_sizes = ([t.shape for layer in each for part in layer for t in part] for each in (states, later))
    assert sizes == later_sizes


def test_calls_leave_nothing_behind():
    model = build().eval()
    first = model(*batch())
    model(*batch(b=1, context_len=6))
    assert torch.equal(model(*batch()), first)


def test_copies_pickles_and_state_dicts_forecast_the_same():
    model = build(normalization_type="batchnorm", downsample_convs_embedding=1)
    model(*batch())
    model.eval()
    expected = model(*batch())
    fresh = build(normalization_type="batchnorm", downsample_convs_embedding=1, seed=9).eval()
    assert not torch.equal(fresh(*batch()), expected)
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*batch()), expected)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_model_compiles_to_one_graph(autoregressive):
    model = build(start_len=2, autoregressive_training=autoregressive, windows=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batch(2)), model(*batch(2)))
    compiled(*batch(2)).sum().backward()


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="device"):
        build(device="cpu")


def test_model_learns_a_travelling_wave():
    torch.manual_seed(0)
    model = SpatioTemporalPerformer(
        4, 4, 1, d_model=16, n_heads=2, n_encoder_layers=1, n_decoder_layers=1, **NO_DROPOUT
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    time = torch.arange(16.0)
    losses = []
    for _ in range(150):
        phase = 2 * torch.pi * torch.rand(16, 1, 1)
        wave = (0.5 * time.view(1, -1, 1) + 0.8 * torch.arange(4.0) + phase).sin()
        x = (time / 16).view(1, -1, 1).expand(16, -1, -1)
        forecast = model(x[:, :12], wave[:, :12], x[:, 12:], wave[:, 12:])
        loss = F.mse_loss(forecast, wave[:, 12:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
