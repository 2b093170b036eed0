"""Attention of timm's vision transformers becomes FAVOR attention with its modules: timm's own, and a stand-in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from favorcast.kernels import favor_attention, multihead_state_dict, redraw_features, replace_attention
from favorcast.kernels.layers.self_attention import FavorSelfAttention


class Attention(nn.Module):
    """timm 1.0's timm.layers.Attention, as far as it computes."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False, gated: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = (nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity() for _ in range(2))
        self.attn_drop, self.norm = nn.Dropout(0.0), nn.LayerNorm(dim) if gated else nn.Identity()
        self.gate = nn.Linear(dim, dim) if gated else None
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(0.0)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        b, n, c = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = self.attend(self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)
        x = self.norm(x.transpose(1, 2).reshape(b, n, c))
        return self.proj_drop(self.proj(x if gate is None else x * gate))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)


Attention.__module__ = "timm.layers.attention"


class WindowAttention(nn.Module):
    """As Swin has it: a learnt bias for every distance within a window."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.relative_position_bias_table.sum())


def model(**options: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": Attention(16, 4, **options), "second": Attention(16, 4, **options)})


OPTIONS = {"plain": {}, "normed": {"qk_norm": True}, "gated": {"gated": True}}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_layer_computes_favor_attention_between_the_same_modules(name, monkeypatch):
    softmax, x = model(**OPTIONS[name]), torch.randn(2, 7, 16)
    swapped = copy.deepcopy(softmax)
    assert replace_attention(swapped, num_features=32, seed=3).replaced == ("first", "second")
    features = swapped["first"].projection
    monkeypatch.setattr(
        Attention,
        "attend",
        lambda self, q, k, v, mask, is_causal: favor_attention(q, k, v, features, is_causal=is_causal),
    )
    for is_causal in (False, True):
        found = swapped["first"](x, is_causal=is_causal)
        torch.testing.assert_close(found, softmax["first"](x, is_causal=is_causal))
    assert not torch.equal(features, swapped["second"].projection)


def test_parameters_their_names_and_state_dicts_stay():
    softmax = model(qk_norm=True)
    state, before = copy.deepcopy(softmax.state_dict()), dict(softmax.named_parameters())
    shared = nn.ModuleDict({"one": softmax["first"], "other": softmax["first"]})
    replace_attention(shared)
    assert shared["one"] is shared["other"]
    replace_attention(softmax, redraw_interval=2)
    assert all(p is before[name] for name, p in softmax.named_parameters())
    softmax.load_state_dict(state)
    back = multihead_state_dict(softmax)
    assert list(back) == list(state)
    model(qk_norm=True).load_state_dict(back)
    complete = softmax.state_dict()
    assert redraw_features(softmax, 2) == ("first", "second")
    softmax.load_state_dict(complete)
    assert torch.equal(softmax["first"].projection, complete["first.projection"])


def test_qk_norm_makes_the_output_independent_of_the_size_of_queries():
    swapped, x = model(), torch.randn(2, 7, 16)
    replace_attention(swapped, qk_norm=True)
    layer = swapped["first"]
    nn.init.zeros_(layer.qkv.bias)
    before = layer(x)
    layer.qkv.weight.data[:32] *= 3.0
    torch.testing.assert_close(layer(x), before, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="timm's Attention cannot hold"):
        multihead_state_dict(swapped)


def test_masks_are_those_of_scaled_dot_product_attention():
    swapped, x = model(), torch.randn(2, 7, 16)
    replace_attention(swapped)
    layer, causal = swapped["first"], torch.ones(7, 7, dtype=torch.bool).tril()
    keep = torch.arange(7) < torch.tensor([[7], [4]])
    for mask in (causal, torch.zeros(7, 7).masked_fill(~causal, -torch.inf), causal.expand(2, 4, 7, 7)):
        torch.testing.assert_close(layer(x, attn_mask=mask), layer(x, is_causal=True))
    for mask in (keep[:, None, None], keep[:, None, None].expand(2, 1, 7, 7)):
        found = layer(x, attn_mask=mask)
        torch.testing.assert_close(found[1:, :4], layer(x[1:, :4]))
        torch.testing.assert_close(found[:1], layer(x[:1]))
    for mask, message in (
        (torch.randn(7, 7), "linear attention cannot apply any other"),
        (torch.ones(7, 7, dtype=torch.bool).triu(), "linear attention cannot apply any other"),
        (torch.ones(3, 1, 7, 7, dtype=torch.bool), r"attn_mask must be \(7, 7\) or"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x, attn_mask=mask)


class Later(Attention):
    """The class of some later version, under the same name, with more in it."""

    def __init__(self) -> None:
        super().__init__(16, 4)
        self.sink = nn.Parameter(torch.zeros(4))


Later.__module__, Later.__qualname__ = Attention.__module__, Attention.__qualname__


class Own(Attention):
    """A subclass by a user."""


def test_what_is_left_is_said_with_its_reason():
    hooked = Attention(16, 4)
    hooked.register_forward_hook(lambda *_: None)
    layers = {"swin": WindowAttention(), "later": Later(), "own": Own(16, 4), "hooked": hooked}
    report = replace_attention(nn.ModuleDict(layers))
    assert report.replaced == ()
    reasons = {left.name: left.reason for left in report.left}
    assert "a bias on its logits (relative_position_bias_table)" in reasons["swin"]
    assert "it has what this version does not know (sink)" in reasons["later"]
    assert "attends in its own way" in reasons["own"]
    assert "it has hooks" in reasons["hooked"]
    with pytest.raises(ValueError, match="is itself an attention"):
        replace_attention(Attention(16, 4))


def test_options_that_do_not_fit_change_nothing():
    softmax = model()
    with pytest.raises(TypeError, match="head_dim"):
        replace_attention(softmax, head_dim=3)
    with pytest.raises(ValueError, match="even num_features"):
        replace_attention(softmax, num_features=7)
    assert type(softmax["first"]) is Attention


def timm_model(name: str, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="pip install timm")
    sizes = {"img_size": 32, "embed_dim": 32, "num_classes": 5}
    torch.manual_seed(0)
    if name == "swin":
        return timm.models.SwinTransformer(patch_size=2, window_size=4, depths=(1, 1), num_heads=(2, 4), **sizes).eval()
    return timm.models.VisionTransformer(patch_size=8, depth=2, num_heads=4, **sizes, **options).eval()


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "scale_attn_norm": True}], ids=str)
def test_vision_transformers_of_timm_are_replaced(options, monkeypatch):
    softmax = timm_model("vit", **options)
    swapped, images = copy.deepcopy(softmax), torch.randn(2, 3, 32, 32)
    assert replace_attention(swapped).replaced == ("blocks.0.attn", "blocks.1.attn")
    assert list(multihead_state_dict(swapped)) == list(softmax.state_dict())
    swapped.load_state_dict(softmax.state_dict())
    layers = iter([x for x in swapped.modules() if isinstance(x, FavorSelfAttention)])
    found = swapped(images)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **_: favor_attention(q, k, v, next(layers).projection)
    )
    torch.testing.assert_close(softmax(images), found)


def test_swin_of_timm_is_left_for_its_bias():
    report = replace_attention(timm_model("swin"))
    assert not report.replaced
    assert [left.name for left in report.left] == ["layers.0.blocks.0.attn", "layers.1.blocks.0.attn"]
    assert all("relative_position_bias_table" in left.reason for left in report.left)
