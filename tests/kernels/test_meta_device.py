"""Layers from the meta device: features are those of the seed, however softmax weights and memory come to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from favorcast.kernels import FavorAttention, replace_attention

OPTIONS = {"qk_norm": True, "features": "favor++", "seed": 2, "gate": True}


def assert_as_begun(found: dict[str, Tensor], expected: FavorAttention) -> None:
    names = ["projection", "log_weight", "log_temperature", "gate_weight", "gate_bias"]
    assert {name for name in names if name in found} == set(names)
    for name in names:
        assert torch.equal(found[name], getattr(expected, name)), name


@pytest.mark.parametrize(
    ("is_empty", "assign"), [(False, True), (True, False), (True, True)], ids=["assigned", "copied", "both"]
)
@pytest.mark.usefixtures("poisoned_allocations")
def test_softmax_weights_load_into_a_layer_from_the_meta_device(is_empty, assign):
    layer, softmax = FavorAttention(8, 2, device="meta", **OPTIONS), nn.MultiheadAttention(8, 2)
    layer = layer.to_empty(device="cpu") if is_empty else layer
    layer.load_state_dict(softmax.state_dict(), strict=True, assign=assign)
    assert_as_begun(layer.state_dict(), FavorAttention(8, 2, **OPTIONS))
    assert torch.equal(layer.in_proj_weight, softmax.in_proj_weight)


@pytest.mark.usefixtures("poisoned_allocations")
def test_an_encoder_from_the_meta_device_computes_what_one_made_at_once_does():
    def encoder(device: str) -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, device=device)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

    softmax, lazily, x = encoder("cpu"), encoder("meta"), torch.randn(2, 5, 8)
    replace_attention(lazily)
    lazily.to_empty(device="cpu").load_state_dict(softmax.state_dict(), strict=True)
    replace_attention(softmax)
    assert torch.equal(lazily(x), softmax(x))


def test_features_put_in_the_place_of_others_are_looked_at():
    """Loaders assign tensors, and functional_call swaps them: what was paired before need not be."""
    layer, other = FavorAttention(8, 2), FavorAttention(8, 2, features="orthogonal")
    layer.projection = other.projection.clone()
    assert not layer._drawn.paired
    layer._buffers["projection"] = FavorAttention(8, 2, seed=3).projection
    assert layer._drawn.paired
    seen = []
    layer.register_forward_pre_hook(lambda module, _: seen.append(module._drawn.paired))
    x = torch.randn(3, 1, 8)
    torch.func.functional_call(layer, {"projection": other.projection}, (x, x, x))
    assert seen == [False]
    assert layer._drawn.paired


class TestTransformers:
    """Models of a user's own: from_pretrained makes them on the meta device."""

    @staticmethod
    def model_class() -> Any:
        transformers = pytest.importorskip("transformers", reason='pip install "favorcast[transformers]"')

        class Config(transformers.PretrainedConfig):
            model_type = "of_a_user"

        class Model(transformers.PreTrainedModel):
            config_class = Config
            made_with = nn.MultiheadAttention
            options: dict[str, Any] = {}  # noqa: RUF012

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.attention = self.made_with(8, 2, batch_first=True, **self.options)
                self.post_init()

            def forward(self, x: Tensor) -> Tensor:
                return self.attention(x, x, x, is_causal=True)[0]

        return Model

    def test_what_a_softmax_checkpoint_lacks_is_initialised(self, tmp_path):
        Model = self.model_class()  # noqa: N806
        softmax = Model(Model.config_class())
        nn.init.normal_(softmax.attention.out_proj.bias)
        softmax.save_pretrained(tmp_path)
        Model.made_with, Model.options = FavorAttention, OPTIONS
        model = Model.from_pretrained(tmp_path)
        assert_as_begun(model.attention.state_dict(), FavorAttention(8, 2, **OPTIONS))
        for name, value in softmax.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        assert model(torch.randn(2, 5, 8)).isfinite().all()

    def test_what_was_learnt_and_redrawn_comes_back(self, tmp_path):
        Model = self.model_class()  # noqa: N806
        Model.made_with, Model.options = FavorAttention, OPTIONS
        model = Model(Model.config_class())
        model.attention.redraw(3)
        nn.init.normal_(model.attention.log_temperature)
        model.save_pretrained(tmp_path)
        loaded = Model.from_pretrained(tmp_path)
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
