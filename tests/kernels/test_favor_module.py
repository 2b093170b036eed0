"""FavorAttention in the place of nn.MultiheadAttention: layouts, masks, state dicts, layers, dtypes and redraws."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from favor_textbook import textbook_attention
from torch import nn
from torch.nn import functional as F

from favorcast.kernels import FavorAttention, RandomFeatures
from favorcast.kernels.favor.feature_maps import FEATURE_MAPS

pytestmark = pytest.mark.usefixtures("poisoned_allocations")

WIDTHS = {"fused": {}, "kdim-vdim": {"kdim": 6, "vdim": 10}, "no-bias": {"bias": False}, "qk-norm": {"qk_norm": True}}


def layer(**options) -> FavorAttention:
    torch.manual_seed(0)
    built = FavorAttention(8, 2, **{"batch_first": True, **options})
    for name, parameter in built.named_parameters():  # zero biases would hide a missing one
        if "bias" in name or "temperature" in name:
            nn.init.normal_(parameter)
    return built


def by_hand(attention: FavorAttention, query, key, value, **options):
    """Project with the parameters of nn.MultiheadAttention's names, attend by the textbook, project back."""
    state = attention.state_dict()
    if "in_proj_weight" in state:
        weights = state["in_proj_weight"].chunk(3)
    else:
        weights = [state[f"{name}_proj_weight"] for name in "qkv"]
    biases = state["in_proj_bias"].chunk(3) if "in_proj_bias" in state else (None,) * 3
    heads = [
        F.linear(x, w, c).unflatten(-1, (2, -1)).transpose(1, 2)
        for x, w, c in zip((query, key, value), weights, biases, strict=True)
    ]
    if "log_temperature" in state:  # |x|^2 = temperature after the scaling by d ** -0.25
        radius = (state["log_temperature"].exp() * heads[0].shape[-1] ** 0.5).sqrt().view(-1, 1, 1)
        heads[:2] = [F.normalize(x, dim=-1) * radius for x in heads[:2]]
    features = RandomFeatures(state["projection"], state.get("log_weight"))
    merged = textbook_attention(*heads, features, **options).transpose(1, 2).flatten(2)
    return F.linear(merged, state["out_proj.weight"], state.get("out_proj.bias"))


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_the_layer_is_projections_around_textbook_attention(widths, is_causal):
    attention = layer(**WIDTHS[widths])
    x = torch.randn(3, 5, 8)
    key, value = torch.randn(3, 7, attention.kdim), torch.randn(3, 7, attention.vdim)
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[1, 4:] = True
    output, weights = attention(x, key, value, mask, is_causal=is_causal)
    assert weights is None
    expected = by_hand(attention, x, key, value, key_padding_mask=mask, is_causal=is_causal)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_shared_inputs_give_what_copies_of_them_give():
    attention = layer()
    x, memory = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    for query, key in ((x, x), (x, memory)):
        separate = attention(query.clone(), key.clone(), key.clone())[0]
        torch.testing.assert_close(attention(query, key, key)[0], separate, rtol=1e-5, atol=1e-6)
    value = torch.randn(3, 5, 8)
    separate = attention(x, x.clone(), value)[0]
    torch.testing.assert_close(attention(x, x, value)[0], separate, rtol=1e-5, atol=1e-6)


def test_batch_first_length_first_and_unbatched_agree():
    first, second = layer(), layer(batch_first=False)
    x, memory = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    padding = torch.rand(3, 7) > 0.5
    output, weights = first(x, memory, memory, padding, need_weights=True)
    transposed, same = second(x.transpose(0, 1), *[memory.transpose(0, 1)] * 2, padding, need_weights=True)
    torch.testing.assert_close(transposed.transpose(0, 1), output)
    torch.testing.assert_close(same, weights)
    for attention in (first, second):
        single, weights_of_one = attention(x[0], memory[0], memory[0], padding[0], need_weights=True)
        assert single.shape == (5, 8)
        assert weights_of_one.shape == (5, 7)
        torch.testing.assert_close(single, output[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_weights_sum_to_one_and_reproduce_the_output(is_causal):
    attention, x = layer(bias=False), torch.randn(3, 6, 8)
    output, weights = attention(x, x, x, need_weights=True, average_attn_weights=False, is_causal=is_causal)
    assert weights.shape == (3, 2, 6, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 6))
    assert not is_causal or not weights.triu(1).any()
    value = (x @ attention.in_proj_weight[16:].T).unflatten(-1, (2, -1)).transpose(1, 2)
    rebuilt = (weights @ value).transpose(1, 2).flatten(2) @ attention.out_proj.weight.T
    torch.testing.assert_close(rebuilt, output, rtol=1e-5, atol=1e-6)
    averaged = attention(x, x, x, need_weights=True, is_causal=is_causal)[1]
    torch.testing.assert_close(averaged, weights.mean(1))


def test_weights_of_long_inputs_are_refused():
    attention, x = layer(), torch.randn(1, 2100, 8)
    with pytest.raises(ValueError, match="need_weights=True would form 2100 x 2100"):
        attention(x, x, x, need_weights=True)


def test_masks_mean_what_they_mean_in_multihead_attention():
    attention, x = layer(), torch.randn(3, 6, 8)
    causal = attention(x, x, x, is_causal=True)[0]
    hidden = torch.ones(6, 6).triu(1).bool()
    for mask in (hidden, nn.Transformer.generate_square_subsequent_mask(6)):
        assert torch.equal(attention(x, x, x, attn_mask=mask)[0], causal)
        assert torch.equal(attention(x, x, x, attn_mask=mask, is_causal=True)[0], causal)
    assert torch.equal(attention(x, x, x, attn_mask=torch.zeros(6, 6))[0], attention(x, x, x)[0])
    with pytest.raises(ValueError, match="linear attention cannot apply"):
        attention(x, x, x, attn_mask=hidden.T)
    padding = torch.rand(3, 6) > 0.5
    as_float = torch.zeros(3, 6).masked_fill(padding, -torch.inf)
    assert torch.equal(attention(x, x, x, padding)[0], attention(x, x, x, as_float)[0])


def test_a_step_causal_layer_knows_its_steps():
    attention, x = layer(is_causal=True, tokens_per_step=2), torch.randn(1, 6, 8)
    expected = by_hand(attention, x, x, x, is_causal=True, tokens_per_step=2)
    torch.testing.assert_close(attention(x, x, x)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_loaded_projection_is_paired_only_if_it_is():
    """Kernels compute the second half of paired rows from the first."""
    source, target = FavorAttention(8, 2), FavorAttention(8, 2)
    assert target._drawn.paired
    source.projection[-1] += 1
    target.load_state_dict(source.state_dict())
    assert not target._drawn.paired
    target.redraw(0)
    assert target._drawn.paired
    assert not FavorAttention(8, 2, features="orthogonal")._drawn.paired


@pytest.mark.parametrize("redrawn", [False, True])
def test_the_layer_draws_on_the_bfloat16_grid_and_loads_what_lies_off_it(redrawn):
    attention = layer(dtype=torch.float64)
    if redrawn:
        attention.redraw(3)
    assert torch.equal(attention.projection, attention.projection.bfloat16().double())
    saved = attention.state_dict()
    saved["projection"] = saved["projection"] * 1.001
    loaded = layer(dtype=torch.float64)
    loaded.load_state_dict(saved)
    assert torch.equal(loaded.projection, saved["projection"])
    assert loaded._drawn.paired


def test_a_wrong_state_dict_is_still_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer().load_state_dict(FavorAttention(8, 2, num_features=4).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        layer().load_state_dict({})


@pytest.mark.parametrize("batch_first", [False, True])
def test_transformer_layers_run_the_same_attention_in_train_and_eval(batch_first):
    x, memory = torch.randn(4, 4, 8), torch.randn(4, 4, 8)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
    encoder.self_attn = layer(batch_first=batch_first)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
    decoder.self_attn, decoder.multihead_attn = layer(batch_first=batch_first), layer(batch_first=batch_first)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    stack = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)
    calls = {
        "bare": (encoder, lambda: encoder(x)),
        "masked": (encoder, lambda: encoder(x, src_mask=mask, src_key_padding_mask=torch.zeros(4, 4))),
        "decoder": (decoder, lambda: decoder(x, memory, tgt_mask=mask, tgt_is_causal=True)),
        "stack": (stack, lambda: stack(x, mask=mask, is_causal=True)),
    }
    for name, (module, call) in calls.items():
        trained = call().detach()
        module.eval()
        with torch.inference_mode():  # without gradients PyTorch looks for its softmax fast path
            assert torch.equal(call(), trained), name
        module.train()


def test_dropout_acts_in_training_only():
    attention, x = layer(dropout=0.5), torch.randn(3, 6, 8)
    assert not torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])
    attention.eval()
    assert torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])


def test_copies_and_pickles_compute_the_same():
    attention, x = layer(qk_norm=True), torch.randn(3, 6, 8)
    expected = attention(x, x, x)[0]
    for twin in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert torch.equal(twin(x, x, x)[0], expected)


@pytest.mark.parametrize("features", ["hyperbolic", "favor++"])
def test_casting_the_module_keeps_the_projection_out_of_half_precision(features):
    attention = layer(features=features)
    exact = attention.projection.clone()
    for dtype in (torch.float16, torch.bfloat16):
        cast = copy.deepcopy(attention).to(dtype)
        x = torch.randn(3, 6, 8).to(dtype)
        assert torch.equal(cast.projection, exact)
        assert cast(x, x, x)[0].dtype == dtype
        assert torch.equal(cast.float().projection, exact)
        assert FavorAttention(8, 2, dtype=dtype, features=features).projection.dtype == torch.float32
    x = torch.randn(3, 6, 8).double()
    for wide in (copy.deepcopy(attention).double(), FavorAttention(8, 2, dtype=torch.float64, features=features)):
        assert wide.projection.dtype == torch.float64
        assert wide(x, x, x)[0].dtype == torch.float64


def test_redraws_follow_from_the_seed_and_the_step_alone():
    one, other = layer(redraw_interval=10, seed=3), layer(redraw_interval=10, seed=3)
    first = one.projection.clone()
    assert [step for step in range(25) if one.redraw_if_due(step)] == [10, 20]
    assert not torch.equal(one.projection, first)
    assert other.redraw_if_due(20)  # a run resumed at step 20 needs no history
    assert torch.equal(one.projection, other.projection)
    one.redraw(0)
    assert torch.equal(one.projection, first)
    assert not torch.equal(layer(seed=4).projection, first)
    assert not layer().redraw_if_due(10)


def test_drawing_leaves_the_global_generator_alone_and_forward_never_redraws():
    attention, x = layer(redraw_interval=1), torch.randn(1, 4, 8)
    state, before = torch.get_rng_state(), attention.projection.clone()
    attention.redraw(5)
    attention.redraw(0)
    attention(x, x, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(attention.projection, before)


def test_reset_parameters_makes_a_layer_from_the_meta_device_whole():
    options = {"qk_norm": True, "features": "favor++", "seed": 2}
    built = FavorAttention(8, 2, device="meta", **options).to_empty(device="cpu")
    for module in (built.out_proj, built):
        module.reset_parameters()
    assert all(x.isfinite().all() for x in built.state_dict().values())
    expected = FavorAttention(8, 2, **options)
    assert torch.equal(built.projection, expected.projection)
    assert torch.equal(built.log_weight, expected.log_weight)
    assert torch.equal(built.log_temperature, expected.log_temperature)


def test_every_parameter_gets_a_gradient_and_buffers_none():
    attention, x = layer(qk_norm=True), torch.randn(3, 6, 8)
    attention(x, x, x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in attention.parameters())
    assert not attention.projection.requires_grad


@pytest.mark.parametrize("features", ["hyperbolic", "favor++"])
def test_a_learnable_projection_learns_and_stays_out_of_half_precision(features):
    attention, x = layer(learnable_projection=True, features=features), torch.randn(3, 6, 8)
    assert torch.equal(attention.projection, layer(features=features).projection)
    assert not attention._drawn.paired  # its halves part company with the first step
    attention(x, x, x)[0].square().sum().backward()
    expected = torch.autograd.grad(by_hand_with_gradient(attention, x).square().sum(), attention.projection)[0]
    torch.testing.assert_close(attention.projection.grad, expected, rtol=1e-3, atol=1e-5)
    exact, gradient = attention.projection.detach().clone(), attention.projection.grad.clone()
    cast = attention.to(torch.bfloat16)
    assert isinstance(cast.projection, nn.Parameter)
    assert torch.equal(cast.projection, exact)
    assert cast.projection.grad.dtype == torch.float32
    torch.testing.assert_close(cast.projection.grad, gradient, rtol=1e-2, atol=1e-2)
    half = x.to(torch.bfloat16)
    cast(half, half, half)[0].sum().backward()
    twin = layer(learnable_projection=True, features=features)
    nn.init.zeros_(twin.projection)
    twin.load_state_dict(attention.float().state_dict())
    assert torch.equal(twin.projection, exact)
    assert not twin._drawn.paired


def by_hand_with_gradient(attention: FavorAttention, x):
    """The textbook, differentiable in the projection."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    heads = [F.linear(x, w, c).unflatten(-1, (2, -1)).transpose(1, 2) for w, c in zip(weights, biases, strict=True)]
    features = RandomFeatures(attention.projection, attention.log_weight)
    return attention.out_proj(textbook_attention(*heads, features).transpose(1, 2).flatten(2))


def test_zero_rows_pass_qk_norm_with_finite_gradients():
    attention = layer(qk_norm=True, bias=False)
    x = torch.zeros(1, 4, 8, requires_grad=True)
    attention(x, x, x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


BAD_SIZES = {
    "embed_dim 0": ((0, 2), {}, "at least 1"),
    "num_heads 0": ((8, 0), {}, "at least 1"),
    "not a multiple": ((9, 2), {}, "embed_dim must be a multiple of num_heads"),
    "dropout above 1": ((8, 2), {"dropout": 1.5}, "dropout"),
    "redraw_interval 0": ((8, 2), {"redraw_interval": 0}, "redraw_interval must be a whole number of at least 1"),
    "redraw_interval 1.5": ((8, 2), {"redraw_interval": 1.5}, "redraw_interval must be a whole number of at least 1"),
    "tokens_per_step 0": ((8, 2), {"tokens_per_step": 0}, "tokens_per_step must be a whole number of at least 1"),
    "value_head_dim 0": ((8, 2), {"value_head_dim": 0}, "value_head_dim must be a whole number of at least 1"),
    "kdim 0": ((8, 2), {"kdim": 0}, "kdim must be a whole number of at least 1"),
    "num_features 8.0": ((8, 2), {"num_features": 8.0}, "num_features must be a whole number of at least 1"),
    "unknown feature_map": ((8, 2), {"feature_map": "x"}, "unknown feature_map"),
    "learnt and redrawn": ((8, 2), {"redraw_interval": 5, "learnable_projection": True}, "cannot be redrawn"),
    "odd features": ((8, 2), {"num_features": 7}, "even num_features"),
    "unknown features": ((8, 2), {"features": "sobol"}, "unknown feature kind"),
}


@pytest.mark.parametrize("case", BAD_SIZES)
def test_sizes_that_do_not_fit_are_refused(case):
    arguments, options, message = BAD_SIZES[case]
    with pytest.raises(ValueError, match=message):
        FavorAttention(*arguments, **options)


def test_inputs_that_do_not_fit_are_refused():
    attention, x = layer(), torch.randn(3, 6, 8)
    with pytest.raises(ValueError, match="widths"):
        attention(x, torch.randn(3, 6, 7), x)
    with pytest.raises(ValueError, match="one length"):
        attention(x, x, torch.randn(3, 5, 8))
    with pytest.raises(ValueError, match="one batch size"):
        attention(x, *[torch.randn(2, 6, 8)] * 2)
    with pytest.raises(ValueError, match="three dimensions"):
        attention(x, x[0], x[0])
    with pytest.raises(ValueError, match="nested tensors are not supported"):
        attention(*[torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged)] * 3)


def test_head_dims_are_free_of_the_embedding():
    attention, x = layer(head_dim=3, value_head_dim=5), torch.randn(3, 6, 8)
    assert attention.num_features == 12
    assert attention(x, x, x)[0].shape == (3, 6, 8)


def test_a_causal_layer_still_refuses_a_mask_it_cannot_apply() -> None:
    layer = FavorAttention(8, 2, batch_first=True, is_causal=True)
    x = torch.randn(1, 5, 8)
    band = torch.ones(5, 5, dtype=torch.bool).triu(2)
    with pytest.raises(ValueError, match="attn_mask"):
        layer(x, x, x, attn_mask=band)
    everything = torch.zeros(5, 5, dtype=torch.bool)
    assert torch.equal(layer(x, x, x, attn_mask=everything)[0], layer(x, x, x)[0])


# states


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["length-first", "batch-first"])
def test_attending_to_a_summary_equals_forward(widths, batch_first):
    attention = layer(**WIDTHS[widths], batch_first=batch_first, features="favor++")
    query, key, value = torch.randn(3, 5, 8), torch.randn(3, 7, attention.kdim), torch.randn(3, 7, attention.vdim)
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[1, 4:] = True
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    state = attention.summarize(key, value, mask)
    assert state.value.shape == (3, 2, attention.num_features, attention.value_head_dim)
    torch.testing.assert_close(attention.attend(query, state), attention(query, key, value, mask)[0])


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
@pytest.mark.parametrize("sizes", [[6], [1, 2, 3], [1] * 6], ids=str)
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_streaming_in_pieces_equals_causal_forward(tokens_per_step, sizes, feature_map):
    attention = layer(is_causal=True, tokens_per_step=tokens_per_step, feature_map=feature_map, qk_norm=True)
    x = torch.randn(2, 6 * tokens_per_step, 8)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    mask[0, 1 : tokens_per_step + 1] = True
    state, outputs = None, []
    for piece, hidden in zip(*(part.split([n * tokens_per_step for n in sizes], 1) for part in (x, mask)), strict=True):
        output, state = attention.stream(piece, piece, piece, state, hidden)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), attention(x, x, x, mask)[0])


def test_streaming_sends_gradients_to_the_steps_before():
    attention = layer(is_causal=True)
    x = torch.randn(1, 2, 8, requires_grad=True)
    _, state = attention.stream(x[:, :1], x[:, :1], x[:, :1])
    output, _ = attention.stream(x[:, 1:], x[:, 1:], x[:, 1:], state)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    (expected,) = torch.autograd.grad(attention(x, x, x)[0][:, 1:].square().sum(), x)
    assert (gradient != 0).all()
    torch.testing.assert_close(gradient, expected)


def test_a_summary_and_a_stream_of_unbatched_inputs_count_as_a_batch_of_one():
    attention = layer(is_causal=True)
    x = torch.randn(5, 8)
    torch.testing.assert_close(attention.attend(x[-1:], attention.summarize(x, x)), attention(x, x, x)[0][-1:])
    torch.testing.assert_close(attention.stream(x, x, x)[0], attention(x, x, x)[0])


@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [(4, 4, "multiple of tokens_per_step = 3, got 4 tokens"), (3, 6, "got 3 queries and 6 keys")],
)
def test_a_stream_of_broken_steps_is_refused(queries, keys, message):
    attention = layer(is_causal=True, tokens_per_step=3)
    with pytest.raises(ValueError, match=message):
        attention.stream(torch.randn(1, queries, 8), torch.randn(1, keys, 8), torch.randn(1, keys, 8))


def test_a_stream_of_nothing_leaves_the_state_as_it_was():
    attention = layer(is_causal=True)
    x = torch.randn(1, 4, 8)
    _, state = attention.stream(x, x, x)
    output, after = attention.stream(x[:, :0], x[:, :0], x[:, :0], state)
    assert output.shape == (1, 0, 8)
    torch.testing.assert_close(after, state)


@pytest.mark.parametrize("container", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_a_mask_by_tokens_does_not_become_one_by_steps_in_a_container(container):
    """The containers recognise it and pass is_causal; a layer of larger steps would let the future in."""
    model = container(8, 2, batch_first=True)
    model.self_attn = FavorAttention(8, 2, batch_first=True, tokens_per_step=3)
    x, mask = torch.randn(1, 9, 8), nn.Transformer.generate_square_subsequent_mask(9)
    is_encoder = container is nn.TransformerEncoderLayer
    options = {"src_mask": mask, "is_causal": True} if is_encoder else {"tgt_mask": mask, "tgt_is_causal": True}
    with pytest.raises(ValueError, match="attn_mask must be a causal mask with 3 tokens a step"):
        model(*((x,) if is_encoder else (x, x)), **options)


def test_a_causal_mask_of_another_shape_is_refused():
    attention = layer()
    x = torch.randn(1, 9, 8)
    with pytest.raises(ValueError, match="attn_mask"):
        attention(x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool).triu(1), is_causal=True)
