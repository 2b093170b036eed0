"""Which masks of nn.MultiheadAttention are understood, and which are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from favorcast.kernels import FavorAttention, replace_attention
from favorcast.kernels.layers.masks import Visible, joined_masks, key_mask, recognise_attention_mask


def causal_mask(t: int, s: int, step: int = 1) -> torch.Tensor:
    """True = hidden."""
    return torch.arange(s)[None, :] // step > torch.arange(t)[:, None] // step


def as_float(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, -torch.inf)


def as_finite(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(mask, torch.finfo(torch.float32).min)


def as_large(mask: torch.Tensor) -> torch.Tensor:
    return -1e9 * mask.float()


FORMS = {"bool": lambda m: m, "-inf": as_float, "lowest": as_finite, "-1e9": as_large}


def shown(visible: Visible, t: int, s: int, step: int = 1) -> torch.Tensor:
    """Write out what is hidden, (b or 1, t, s)."""
    hidden = causal_mask(t, s, step)[None] if visible.is_causal else torch.zeros(1, t, s, dtype=torch.bool)
    return hidden if visible.padding is None else hidden | visible.padding[:, None]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("t", "s", "step"), [(5, 5, 1), (1, 1, 1), (3, 7, 1), (7, 3, 1), (8, 8, 2), (7, 7, 3)])
def test_a_causal_mask_is_recognised(form, t, s, step):
    mask = causal_mask(t, s, step)
    visible = recognise_attention_mask(FORMS[form](mask), (2, t, s), 2, step)
    assert torch.equal(shown(visible, t, s, step)[0], mask)
    assert visible.is_causal or t == 1


def test_pytorchs_own_causal_mask_is_recognised():
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    assert recognise_attention_mask(mask, (2, 6, 6), 2, 1) == (None, True)


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_that_hides_nothing_is_full_attention(form):
    mask = FORMS[form](torch.zeros(4, 4, dtype=torch.bool))
    assert recognise_attention_mask(mask, (2, 4, 4), 2, 1) == (None, False)


@pytest.mark.parametrize("causal", [False, True], ids=["padding", "causal and padding"])
@pytest.mark.parametrize("form", FORMS)
def test_padding_of_each_sample_is_found_in_a_mask_of_every_head(form, causal):
    padding = torch.arange(6) >= torch.tensor([[6], [4], [0]])
    mask = padding[:, None, :].expand(3, 6, 6)
    mask = (mask | causal_mask(6, 6)) if causal else mask
    visible = recognise_attention_mask(FORMS[form](mask.repeat_interleave(4, 0)), (12, 6, 6), 4, 1)
    assert visible.is_causal == causal
    assert torch.equal(shown(visible, 6, 6), mask)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_bias_of_each_key_is_found_in_a_mask_of_every_head(causal, padded):
    bias = torch.tensor([[0.0, 0.5, -2.0, 3.0, 1.0], [1.0, 0.0, 0.0, -7.0, 2.0]])
    bias = bias.masked_fill(torch.tensor([[False] * 5, [False] * 4 + [padded]]), -torch.inf)
    mask = bias[:, None, :].expand(2, 5, 5)
    mask = mask.masked_fill(causal_mask(5, 5), -1e9) if causal else mask
    visible = recognise_attention_mask(mask.repeat_interleave(2, 0), (4, 5, 5), 2, 1)
    assert visible.is_causal == causal
    assert torch.equal(visible.padding, bias)
    layer, x = FavorAttention(16, 2, batch_first=True), torch.randn(2, 5, 16)
    expected = layer(x, x, x, bias, is_causal=causal)[0]
    assert torch.equal(layer(x, x, x, attn_mask=mask.repeat_interleave(2, 0))[0], expected)


def test_masks_that_differ_between_heads_are_refused():
    mask = torch.zeros(4, 5, 5, dtype=torch.bool)
    mask[1, :, 2] = True
    with pytest.raises(ValueError, match="the same for all queries and heads"):
        recognise_attention_mask(mask, (4, 5, 5), 2, 1)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_graph_takes_a_mask_to_be_causal_and_says_so_if_it_is_not(backend):
    torch.compiler.reset()

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = FavorAttention(16, 4, batch_first=True)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    layer, x = Layer(), torch.randn(2, 6, 16)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with torch.no_grad():
        for mask in (nn.Transformer.generate_square_subsequent_mask(6), as_large(causal_mask(6, 6))):
            torch.testing.assert_close(compiled(x, mask), layer.attention(x, x, x, is_causal=True)[0])
        with pytest.raises(RuntimeError, match="in a graph an attn_mask is taken to be causal"):
            compiled(x, torch.zeros(6, 6))


def test_a_mask_that_is_said_to_be_causal_is_looked_at():
    """PyTorch takes is_causal for a hint, and applies the mask."""
    layer, x = FavorAttention(16, 2, batch_first=True), torch.randn(2, 6, 16)
    sequence = torch.arange(6) >= 3
    packed = causal_mask(6, 6) | (sequence[:, None] != sequence)
    for wrong in (packed, torch.zeros(6, 6), torch.zeros(6, 6, dtype=torch.bool)):
        with pytest.raises(ValueError, match="linear attention cannot apply any other mask"):
            layer(x, x, x, attn_mask=wrong, is_causal=True)
    padding = torch.arange(6) >= torch.tensor([[4], [6]])
    folded = (causal_mask(6, 6) | padding[:, None]).repeat_interleave(2, 0)
    expected = layer(x, x, x, padding, is_causal=True)[0]
    assert torch.equal(layer(x, x, x, attn_mask=folded, is_causal=True)[0], expected)
    everything = torch.ones(6, 6, dtype=torch.bool)
    assert not layer(x, x, x, attn_mask=everything, is_causal=True)[0].isnan().any()
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="in a graph an attn_mask is taken to be causal"):
        compiled(x, x, x, attn_mask=packed, is_causal=True)


def test_an_encoder_that_hints_at_a_causal_mask_has_it_checked():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), torch.randn(2, 6, 16)
    replace_attention(model)
    window = causal_mask(6, 6) | ~torch.ones(6, 6).triu(-2).bool()
    with pytest.raises(ValueError, match="linear attention cannot apply any other mask"):
        model(x, mask=as_float(window), is_causal=True)
    assert model(x, mask=as_float(causal_mask(6, 6)), is_causal=True).shape == x.shape


OTHER_MASKS = {
    "anti-causal": causal_mask(4, 4).T,
    "band": causal_mask(4, 4) | causal_mask(4, 4).T,
    "one extra entry": causal_mask(4, 4).index_put((torch.tensor(3), torch.tensor(0)), torch.tensor(True)),
    "hides the diagonal": ~torch.ones(4, 4).tril(-1).bool(),
    "bias of pairs": torch.arange(16.0).view(4, 4).masked_fill(causal_mask(4, 4), -torch.inf),
    "finite": torch.zeros(4, 4).masked_fill(causal_mask(4, 4), -1e3),
    "nan": torch.full((4, 4), float("nan")),
    "other shape": causal_mask(4, 5),
    "steps of 2": causal_mask(4, 4, 2),
}


@pytest.mark.parametrize("name", OTHER_MASKS)
def test_any_other_mask_is_refused(name):
    with pytest.raises(ValueError, match="linear attention cannot apply any other mask"):
        recognise_attention_mask(OTHER_MASKS[name], (2, 4, 4), 2, 1)


def test_integer_masks_are_refused():
    with pytest.raises(ValueError, match="attn_mask must be bool or floating point"):
        recognise_attention_mask(causal_mask(4, 4).int(), (2, 4, 4), 2, 1)
    with pytest.raises(ValueError, match="key_padding_mask must be bool or floating point"):
        key_mask(torch.zeros(2, 4, dtype=torch.uint8), 2, 4)


def test_masks_of_keys_are_padding_or_biases_with_a_batch_dimension():
    mask = torch.tensor([[False, True, True], [False, False, True]])
    assert key_mask(None, 2, 3) is None
    assert torch.equal(key_mask(mask, 2, 3), mask)
    for form in ("-inf", "lowest", "-1e9"):
        assert torch.equal(key_mask(FORMS[form](mask), 2, 3), as_float(mask))
    assert torch.equal(key_mask(mask[0], 1, 3), mask[:1])
    assert torch.equal(key_mask(torch.full((2, 3), -1.5), 2, 3), torch.full((2, 3), -1.5))
    with pytest.raises(ValueError, match=r"key_padding_mask must be \(2, 3\), got \(3, 2\)"):
        key_mask(torch.zeros(3, 2, dtype=torch.bool), 2, 3)


def test_masks_of_keys_join_whatever_they_are():
    padding, bias = torch.tensor([[False, True], [False, False]]), torch.tensor([[0.5, 1.0], [2.0, -torch.inf]])
    of_heads = torch.arange(12.0).view(2, 3, 2)
    assert joined_masks(None, padding) is padding
    assert joined_masks(bias, None) is bias
    assert torch.equal(joined_masks(padding, padding.flip(0)), torch.tensor([[False, True], [False, True]]))
    hidden = torch.tensor([[0.5, -torch.inf], [2.0, -torch.inf]])
    assert torch.equal(joined_masks(padding, bias), hidden)
    assert torch.equal(joined_masks(bias, padding), hidden)
    assert torch.equal(joined_masks(bias, of_heads), of_heads + bias[:, None])
    assert torch.equal(joined_masks(of_heads, padding), of_heads.masked_fill(padding[:, None], -torch.inf))


@pytest.mark.parametrize("form", ["bool", "-inf"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_causal_mask_compiles_at_every_length(form, dynamic):
    layer = FavorAttention(16, 2, num_features=16, batch_first=True).eval()
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for t in (30, 29, 8, 4):  # 4 = batch times heads
        x, mask = torch.randn(2, t, 16), FORMS[form](causal_mask(t, t))
        expected = layer(x, x, x, attn_mask=mask)[0]
        torch.testing.assert_close(compiled(x, x, x, attn_mask=mask)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["bool", "-inf"])
def test_a_causal_mask_is_exported_for_any_length(form):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = FavorAttention(16, 2, num_features=16, batch_first=True)

        def forward(self, x, mask):
            return self.layer(x, x, x, attn_mask=mask)[0]

    model, t = Model().eval(), torch.export.Dim("t", min=2, max=100)
    given = torch.randn(2, 10, 16), FORMS[form](causal_mask(10, 10))
    program = torch.export.export(model, given, dynamic_shapes=({1: t}, {0: t, 1: t})).module()
    for length in (30, 4, 2):
        x, mask = torch.randn(2, length, 16), FORMS[form](causal_mask(length, length))
        torch.testing.assert_close(program(x, mask), model(x, mask), rtol=1e-5, atol=1e-5)
