"""What PyTorch promises of nn.MultiheadAttention, held by both layers: every test runs against each of them.

The promises are those of torch's documentation and of its own tests of the layer (test/nn/test_multihead_attention.py):
shapes of outputs and weights in every layout, what masks hide, what is refused, what training mode means.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle

import pytest
import torch
from favor_textbook import textbook_weights
from torch import nn

from favorcast.kernels import FavorAttention

Layer = nn.MultiheadAttention | FavorAttention


@pytest.fixture(params=[nn.MultiheadAttention, FavorAttention], ids=["softmax", "favor"])
def layer_class(request):
    return request.param


def built(layer_class, *sizes: int, **options) -> Layer:
    torch.manual_seed(0)
    return layer_class(*(sizes or (12, 3)), **options)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("widths", [{}, {"kdim": 7, "vdim": 5}], ids=["one width", "three widths"])
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_of_output_and_weights(layer_class, average, batch_first, widths, bias):
    layer = built(layer_class, batch_first=batch_first, bias=bias, **widths)
    query, key, value = (torch.randn(2, n, w) for n, w in ((4, 12), (6, layer.kdim), (6, layer.vdim)))
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    output, weights = layer(query, key, value, need_weights=True, average_attn_weights=average)
    assert output.shape == query.shape
    assert weights.shape == ((2, 4, 6) if average else (2, 3, 4, 6))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert layer(query, key, value, need_weights=False)[1] is None


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_inputs(layer_class, average, batch_first):
    layer = built(layer_class, batch_first=batch_first)
    query, key = torch.randn(4, 12), torch.randn(6, 12)
    padding = torch.arange(6) > 3
    output, weights = layer(query, key, key, padding, need_weights=True, average_attn_weights=average)
    assert output.shape == (4, 12)
    assert weights.shape == ((4, 6) if average else (3, 4, 6))
    assert not weights[..., 4:].any()
    causal = torch.ones(4, 4).triu(1).bool()
    assert layer(query, query, query, attn_mask=causal, need_weights=False)[0].shape == (4, 12)


@pytest.mark.parametrize("form", ["bool", "float"])
def test_padded_keys_change_nothing_and_get_no_weight(layer_class, form):
    layer = built(layer_class, batch_first=True)
    x, other = torch.randn(2, 6, 12), torch.randn(2, 6, 12)
    padding = torch.arange(6) >= torch.tensor([[6], [4]])
    mask = padding if form == "bool" else torch.zeros(2, 6).masked_fill(padding, -torch.inf)
    changed = torch.where(padding.unsqueeze(-1), other, x)
    output, weights = layer(x, x, x, mask, need_weights=True)
    torch.testing.assert_close(layer(x, changed, changed, mask)[0], output, rtol=1e-5, atol=1e-6)
    assert not weights[1, :, 4:].any()


@pytest.mark.parametrize(
    ("form", "hint"),
    [
        *[(form, hint) for form in ("bool", "float") for hint in (True, False)],
        *[(f"{form} of every head", False) for form in ("bool", "float")],
    ],
)
def test_a_causal_mask_hides_the_future(layer_class, form, hint):
    layer = built(layer_class, batch_first=True)
    mask = torch.ones(5, 5).triu(1).bool()
    mask = mask if form.startswith("bool") else torch.zeros(5, 5).masked_fill(mask, -torch.inf)
    mask = mask.expand(6, 5, 5) if "head" in form else mask
    x = torch.randn(2, 5, 12)
    output = layer(x, x, x, attn_mask=mask, is_causal=hint, need_weights=False)[0]
    changed = torch.cat([x[:, :3], torch.randn(2, 2, 12)], 1)
    hidden = layer(changed, changed, changed, attn_mask=mask, is_causal=hint, need_weights=False)[0]
    torch.testing.assert_close(hidden[:, :3], output[:, :3], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(hidden[:, 3:], output[:, 3:], atol=1e-3)
    weights = layer(x, x, x, attn_mask=mask, need_weights=True)[1]
    assert not weights.triu(1).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_masks_hide_together(layer_class):
    layer = built(layer_class, batch_first=True)
    x, causal = torch.randn(2, 5, 12), torch.ones(5, 5).triu(1).bool()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[:, 1] = True
    weights = layer(x, x, x, padding, attn_mask=causal, need_weights=True)[1]
    assert not weights[:, :, 1].any()
    assert not weights.triu(1).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


REFUSED = {
    "ranks that differ": lambda layer, x: layer(x, x[0], x[0]),
    "four dimensions": lambda layer, x: layer(*[x.unsqueeze(0)] * 3),
    "another width": lambda layer, x: layer(x[..., :7], x, x),
    "key and value of two lengths": lambda layer, x: layer(x, x, x[:, :4]),
    "a padding mask of another length": lambda layer, x: layer(x, x, x, torch.zeros(2, 7, dtype=torch.bool)),
    "an integer padding mask": lambda layer, x: layer(x, x, x, torch.zeros(2, 5, dtype=torch.int32)),
    "a mask of another shape": lambda layer, x: layer(x, x, x, attn_mask=torch.zeros(5, 4)),
    "masks of too few heads": lambda layer, x: layer(x, x, x, attn_mask=torch.zeros(4, 5, 5)),
    "an integer mask": lambda layer, x: layer(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.int32)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(layer_class, name):
    layer = built(layer_class, batch_first=True)
    with pytest.raises((ValueError, RuntimeError, AssertionError)) as raised:
        REFUSED[name](layer, torch.randn(2, 5, 12))
    assert layer_class is nn.MultiheadAttention or raised.type is ValueError


@pytest.mark.parametrize("sizes", [(10, 3), (0, 3), (12, 0)], ids=str)
def test_sizes_that_do_not_fit_are_refused(layer_class, sizes):
    with pytest.raises((ValueError, AssertionError)):
        layer_class(*sizes)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 7, "vdim": 5}], ids=str)
def test_parameters_have_the_names_and_shapes_of_the_softmax_layer(layer_class, options):
    layer, softmax = built(layer_class, **options), nn.MultiheadAttention(12, 3, **options)
    found = {name: (x.shape, x.dtype) for name, x in layer.named_parameters()}
    assert found == {name: (x.shape, x.dtype) for name, x in softmax.named_parameters()}
    for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
        assert (getattr(layer, name) is None) == (getattr(softmax, name) is None)
    if layer.in_proj_bias is not None:
        assert not layer.in_proj_bias.any()
        assert not layer.out_proj.bias.any()


def test_factory_arguments_reach_every_parameter(layer_class):
    assert {x.dtype for x in built(layer_class, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {x.device.type for x in built(layer_class, device="meta").parameters()} == {"meta"}
    x = torch.randn(2, 5, 12, dtype=torch.bfloat16)
    assert built(layer_class, dtype=torch.bfloat16)(x, x, x, need_weights=False)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(0, 5, 12), (2, 0, 12)], ids=["no samples", "no tokens"])
def test_empty_inputs_give_empty_outputs(layer_class, shape):
    x = torch.randn(shape)
    assert built(layer_class, batch_first=True)(x, x, x, need_weights=False)[0].shape == shape


def test_dropout_acts_in_training_only(layer_class):
    layer, x = built(layer_class, dropout=0.5), torch.randn(4, 2, 12)
    assert not torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.eval()
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])


def test_copies_and_pickles_compute_the_same(layer_class):
    layer, x = built(layer_class), torch.randn(4, 2, 12)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x, x, x)[0], layer(x, x, x)[0])


def test_the_order_of_keys_does_not_matter_and_that_of_queries_is_kept(layer_class):
    layer, x, memory = built(layer_class, batch_first=True), torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    output, order, keys = layer(x, memory, memory)[0], torch.randperm(5), torch.randperm(7)
    shuffled = layer(x[:, order], memory[:, keys], memory[:, keys])[0]
    torch.testing.assert_close(shuffled, output[:, order], rtol=1e-5, atol=1e-6)


KEYS_HIDDEN = torch.tensor([False, False, True])
MODULE_INPUTS = list(
    itertools.product(
        *[(True, False)] * 4,  # bias, add_bias_kv, add_zero_attn, batch_first
        (None, KEYS_HIDDEN),  # key_padding_mask
        (None, KEYS_HIDDEN.expand(3, 3, 3)),  # attn_mask
        (True, False),  # training
    )
)
"""What PyTorch's own tests make and call the layer with: its ModuleInfo of nn.MultiheadAttention."""


@pytest.mark.parametrize("number", range(len(MODULE_INPUTS)))
def test_pytorchs_own_inputs_have_results_of_the_same_shapes(number):
    *flags, key_padding_mask, attn_mask, training = MODULE_INPUTS[number]
    made = dict(zip(("bias", "add_bias_kv", "add_zero_attn", "batch_first"), flags, strict=True))
    softmax, favor = (kind(3, 3, **made).train(training) for kind in (nn.MultiheadAttention, FavorAttention))
    favor.load_state_dict(softmax.state_dict())
    query, key, value = torch.randn(3, 3, 3)
    masks = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
    expected = softmax(query, key, value, **masks)
    found = favor(query, key, value, need_weights=True, **masks)
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert torch.equal(found[1] == 0, expected[1] == 0)
    torch.testing.assert_close(found[1].sum(-1), torch.ones(3))
    assert favor(query, key, value, **masks)[1] is None  # where PyTorch's default is to return the weights


def test_positional_arguments_are_in_pytorchs_order():
    assert len(MODULE_INPUTS) == 128
    names = [list(inspect.signature(kind).parameters)[:11] for kind in (nn.MultiheadAttention, FavorAttention)]
    assert names[0] == names[1]
    names = [list(inspect.signature(kind.forward).parameters) for kind in (nn.MultiheadAttention, FavorAttention)]
    assert names[0] == names[1]
    assert FavorAttention(16, 4, 0.0, True, False, False, None, None, True).batch_first
    with pytest.raises(ValueError, match="add_bias_kv must be True or False, got 8: the order of arguments"):
        FavorAttention(16, 4, 0.0, True, 8, 10)  # pyright: ignore[reportArgumentType]


EXTRA = {
    "bias": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True},
}


def by_hand(
    layer: FavorAttention, x: torch.Tensor, memory: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (b, h, t, s + n) and output of a layer with extra keys, every key written out; hidden (b, t, s)."""
    q, k, v = layer._project(x, memory, memory)
    rows = [(layer.bias_k, layer.bias_v)] * (layer.bias_k is not None) + [(None, None)] * layer.add_zero_attn
    for bias_k, bias_v in rows:
        heads = [x.new_zeros(1, 3, 1, 4) if y is None else y.view(1, 3, 1, 4) for y in (bias_k, bias_v)]
        k, v = (torch.cat([y, z.expand(2, -1, -1, -1)], 2) for y, z in zip((k, v), heads, strict=True))
    scores = textbook_weights(q, k, layer._drawn)
    hidden = torch.nn.functional.pad(hidden, (0, len(rows)), value=False)
    weights = scores.masked_fill(hidden[:, None], 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights, layer.out_proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("step", [0, 1, 2], ids=["full", "causal", "step-causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", EXTRA)
def test_extra_keys_are_seen_by_every_query(name, padded, step):
    layer = FavorAttention(12, 3, batch_first=True, dtype=torch.float64, tokens_per_step=max(step, 1), **EXTRA[name])
    torch.nn.init.normal_(layer.in_proj_bias)
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    padding = (torch.arange(6) >= torch.tensor([[6], [3]])) if padded else None
    hidden = torch.zeros(2, 6, 6, dtype=torch.bool) if padding is None else padding[:, None].expand(2, 6, 6)
    if step:
        hidden = hidden | (torch.arange(6)[None] // step > torch.arange(6)[:, None] // step)
    weights, expected = by_hand(layer, x, x, hidden)
    output, found = layer(x, x, x, padding, need_weights=True, average_attn_weights=False, is_causal=bool(step))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, weights)
    if step == 0:
        torch.testing.assert_close(layer.attend(x, layer.summarize(x, x, padding)), expected)
    elif padding is None:
        first, state = layer.stream(x[:, :2], x[:, :2], x[:, :2])
        rest, _ = layer.stream(x[:, 2:], x[:, 2:], x[:, 2:], state)
        torch.testing.assert_close(torch.cat([first, rest], 1), expected)


def test_learnt_extra_keys_learn():
    layer, x = FavorAttention(12, 3, batch_first=True, add_bias_kv=True, qk_norm=True), torch.randn(2, 5, 12)
    layer(x, x, x, is_causal=True)[0].square().sum().backward()
    assert layer.bias_k.grad.any()
    assert layer.bias_v.grad.any()
