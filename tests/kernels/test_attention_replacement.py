"""Softmax layers become FavorAttention and give their weights back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from favorcast.kernels import AttentionLeft, FavorAttention, multihead_state_dict, replace_attention


def softmax_layer(**options) -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(8, 2, **options)
    for name, parameter in layer.named_parameters():  # zero biases would hide a missing one
        if "bias" in name:
            nn.init.normal_(parameter)
    return layer


def assert_same_state(one: dict, other: dict) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")

LAYERS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "kdim and vdim": {"kdim": 6, "vdim": 10},
    "dropout": {"dropout": 0.25},
    "bias for key and value": {"add_bias_kv": True},
    "a zero key": {"add_zero_attn": True, "dropout": 1.0},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_made_from_softmax_attention_has_its_weights_and_options(name):
    softmax = softmax_layer(**LAYERS[name]).eval()
    favor = FavorAttention.from_multihead_attention(softmax, num_features=16, seed=3)
    assert_same_state(multihead_state_dict(favor), softmax.state_dict())
    assert (favor.batch_first, favor.dropout, favor.kdim, favor.vdim) == (
        softmax.batch_first,
        softmax.dropout,
        softmax.kdim,
        softmax.vdim,
    )
    assert not favor.training
    by_constructor = FavorAttention(8, 2, **LAYERS[name], num_features=16, seed=3).eval()
    by_constructor.load_state_dict(softmax.state_dict())
    query, key, value = (torch.randn(5, 5, width).to(favor.out_proj.weight) for width in (8, favor.kdim, favor.vdim))
    assert torch.equal(favor(query, key, value)[0], by_constructor(query, key, value)[0])


def test_weights_are_copied_and_the_global_generator_is_left_alone():
    softmax, state = softmax_layer(), torch.get_rng_state()
    favor = FavorAttention.from_multihead_attention(softmax, qk_norm=True)
    assert torch.equal(torch.get_rng_state(), state)
    nn.init.zeros_(favor.in_proj_weight)
    assert softmax.in_proj_weight.all()
    assert torch.equal(favor.log_temperature, torch.zeros(2))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 10}], ids=str)
@pytest.mark.parametrize("favor", [{}, {"features": "favor++"}, {"learnable_projection": True}], ids=str)
def test_state_dicts_load_strictly_both_ways(options, favor):
    softmax, layer = softmax_layer(**options), FavorAttention(8, 2, **options, **favor)
    projection = layer.projection.detach().clone()
    layer.load_state_dict(softmax.state_dict())
    assert torch.equal(layer.projection, projection)
    back = nn.MultiheadAttention(8, 2, **options)
    back.load_state_dict(multihead_state_dict(layer))
    assert_same_state(back.state_dict(), softmax.state_dict())


def test_softmax_weights_load_into_a_layer_with_qk_norm_but_do_not_go_back():
    layer = FavorAttention(8, 2, qk_norm=True)
    nn.init.ones_(layer.log_temperature)
    layer.load_state_dict(softmax_layer().state_dict())
    assert torch.equal(layer.log_temperature, torch.ones(2))
    with pytest.raises(ValueError, match=r"the layer has qk_norm=True, which nn\.MultiheadAttention cannot hold"):
        multihead_state_dict(layer)
    with pytest.raises(ValueError, match=r"0 has head dims 3 and 3.*expected 4"):
        multihead_state_dict(nn.Sequential(FavorAttention(8, 2, head_dim=3)))


def test_a_checkpoint_of_ours_must_be_complete():
    state = FavorAttention(8, 2, qk_norm=True).state_dict()
    del state["log_temperature"]
    with pytest.raises(RuntimeError, match=r"Missing key.*log_temperature"):
        FavorAttention(8, 2, qk_norm=True).load_state_dict(state)


def test_every_attention_of_a_transformer_is_replaced_and_keeps_its_parameters():
    model = nn.Transformer(8, 2, 2, 1, 16, batch_first=True)
    before = dict(model.named_parameters())
    state = copy.deepcopy(model.state_dict())
    report = replace_attention(model, num_features=16)
    assert report.replaced == (
        "encoder.layers.0.self_attn",
        "encoder.layers.1.self_attn",
        "decoder.layers.0.self_attn",
        "decoder.layers.0.multihead_attn",
    )
    assert report.left == ()
    assert not any(isinstance(x, nn.MultiheadAttention) for x in model.modules())
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    projections = [x.projection for x in model.modules() if isinstance(x, FavorAttention)]
    assert [x.shape for x in projections] == [(16, 4)] * 4
    assert not any(torch.equal(projections[0], x) for x in projections[1:])
    assert_same_state(multihead_state_dict(model), state)
    model.load_state_dict(state)
    nn.Transformer(8, 2, 2, 1, 16, batch_first=True).load_state_dict(multihead_state_dict(model))


class Spaced(nn.MultiheadAttention):
    """A subclass with a mind of its own."""


def test_what_cannot_be_kept_is_left_and_said():
    hooked = softmax_layer()
    hooked.register_forward_hook(lambda *_: None)
    model = nn.ModuleDict(
        {
            "plain": softmax_layer(),
            "no": softmax_layer(),
            "sub": Spaced(8, 2),
            "hooked": hooked,
        }
    )
    report = replace_attention(model, filter=lambda name, layer: name != "no")
    assert report.replaced == ("plain",)
    reasons = {left.name: left.reason for left in report.left}
    assert report.left[0] == AttentionLeft("no", "the filter says no")
    assert list(reasons) == ["no", "sub", "hooked"]
    for name, word in (("sub", "Spaced"), ("hooked", "forward_hook")):
        assert word in reasons[name]
        assert isinstance(model[name], nn.MultiheadAttention)
        with pytest.raises(ValueError, match=word):
            FavorAttention.from_multihead_attention(model[name])
    assert str(report).splitlines()[:2] == ["replaced 1: plain", "left no: the filter says no"]


def test_a_shared_layer_stays_shared():
    shared = softmax_layer()
    model = nn.Sequential(shared, nn.Sequential(shared))
    report = replace_attention(model)
    assert report.replaced == ("0", "1.0")
    assert isinstance(model[0], FavorAttention)
    assert model[0] is model[1][0]


def test_nothing_changes_when_the_options_do_not_fit():
    model = nn.Transformer(8, 2, 1, 1, 16)
    for options, message in (({"num_features": 7}, "even num_features"), ({"head_dim": 3}, "head_dim come from")):
        with pytest.raises(ValueError, match=message):
            replace_attention(model, **options)
    assert sum(isinstance(x, nn.MultiheadAttention) for x in model.modules()) == 3
    with pytest.raises(ValueError, match="from_multihead_attention"):
        replace_attention(softmax_layer())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_replaced_encoder_computes_the_same_in_evaluation_where_pytorch_would_nest_tensors():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    assert model.use_nested_tensor
    replace_attention(model)
    x, padding = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([[5], [3], [1]])
    trained = model(x, src_key_padding_mask=padding)
    with torch.inference_mode():
        assert torch.equal(model.eval()(x, src_key_padding_mask=padding), trained)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_replaced_transformer_agrees_in_training_and_evaluation(batch_first):
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=batch_first)
    softmax = copy.deepcopy(model)
    replace_attention(model)
    source, target = torch.randn(5, 5, 8), torch.randn(5, 5, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.zeros(5, 5).masked_fill(torch.arange(5) > 3, -torch.inf)
    options = {"tgt_mask": causal, "tgt_is_causal": True, "src_key_padding_mask": padding}
    options["memory_key_padding_mask"] = padding
    trained = model(source, target, **options)
    model.eval()
    with torch.inference_mode():
        evaluated = model(source, target, **options)
    assert torch.equal(trained, evaluated)
    assert not torch.allclose(softmax(source, target, **options), evaluated, atol=1e-4)
    changed = target.clone()
    changed.select(1 if batch_first else 0, -1).add_(1.0)
    first = (slice(None), slice(0, -1)) if batch_first else slice(0, -1)
    with torch.inference_mode():
        assert torch.equal(model(source, changed, **options)[first], evaluated[first])


def test_training_goes_on_with_the_optimiser_made_before():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), 1, enable_nested_tensor=False)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    replace_attention(model)
    layer = model.layers[0].self_attn
    before = layer.in_proj_weight.detach().clone()
    model(torch.randn(5, 2, 8))[0].square().mean().backward()
    optimiser.step()
    assert not torch.equal(layer.in_proj_weight, before)


def test_weights_tied_within_a_layer_stay_tied() -> None:
    attention = nn.MultiheadAttention(16, 2, kdim=8, vdim=8)
    attention.v_proj_weight = attention.k_proj_weight
    model = nn.ModuleDict({"attention": attention})
    replace_attention(model)
    layer = model["attention"]
    assert isinstance(layer, FavorAttention)
    assert layer.k_proj_weight is layer.v_proj_weight is attention.v_proj_weight


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer.out_proj, "weight", 0.5),
        lambda layer: parametrizations.weight_norm(layer.out_proj),
        lambda layer: prune.l1_unstructured(layer, "in_proj_weight", 0.5),
    ],
    ids=["pruned", "parametrised", "pruned-inputs"],
)
def test_pruned_and_parametrised_layers_are_left(change) -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)})
    change(model["attention"])
    report = replace_attention(model)
    assert not report.replaced
    assert "pruned or parametrised" in report.left[0].reason


class Foreign(nn.Module):
    """Attention as timm writes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.unflatten(-1, (3, -1)).permute(2, 0, 1, 3)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_the_report_says_what_else_attends_and_what_has_changed():
    model = nn.Sequential(nn.Linear(8, 24), Foreign())
    report = replace_attention(model)
    assert report.replaced == ()
    assert [left.name for left in report.left] == ["1"]
    assert "no nn.MultiheadAttention, but attends in its own way" in str(report)
    assert "nothing found" in str(replace_attention(nn.Sequential(nn.Linear(8, 8))))
    model = nn.TransformerEncoderLayer(8, 2)
    assert "need_weights is False by default now" in str(replace_attention(model))
    assert replace_attention(model) == ((), ())
