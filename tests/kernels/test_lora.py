"""peft's LoRA on FavorAttention: as on nn.MultiheadAttention, with the same names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from favorcast.kernels import FavorAttention, register_with_peft, replace_attention

peft = pytest.importorskip("peft", reason="pip install peft")

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


def encoder(*, swapped: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 2)
    if swapped:
        replace_attention(model)
        register_with_peft()
    return model


def adapted(model: nn.Module, *, trained: bool = True, **options: Any) -> Any:
    options = {"target_modules": ["self_attn"], **options}
    return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=not trained, **options))


TARGETS = {"a layer": ["self_attn"], "its output": ["out_proj"], "linear layers": "all-linear"}


@pytest.mark.parametrize("target", TARGETS)
def test_adapters_change_the_output_learn_alone_and_merge(target):
    model, x = encoder(), torch.randn(2, 7, 16)
    before = model(x)
    weights = copy.deepcopy(model.state_dict())
    lora = adapted(model, target_modules=TARGETS[target])
    found = lora(x)
    assert not torch.allclose(found, before, atol=1e-2)
    with lora.disable_adapter():
        torch.testing.assert_close(lora(x), before)
    (found * torch.randn_like(found)).sum().backward()
    assert all((p.grad is not None) == ("lora" in name) for name, p in lora.named_parameters())
    assert all(p.grad.any() for name, p in lora.named_parameters() if "lora" in name)
    with torch.no_grad():
        torch.testing.assert_close(lora.eval()(x), found)  # PyTorch's fast path would leave the adapters out
    lora.merge_adapter()
    torch.testing.assert_close(lora(x), found, rtol=1e-4, atol=1e-5)
    lora.unmerge_adapter()
    torch.testing.assert_close(lora(x), found, rtol=1e-4, atol=1e-5)
    merged = lora.merge_and_unload()
    torch.testing.assert_close(merged(x), found, rtol=1e-4, atol=1e-5)
    assert isinstance(merged.layers[0].self_attn, FavorAttention)
    assert type(merged.layers[0].self_attn.out_proj) is nn.Linear
    assert list(merged.state_dict()) == list(weights)


def test_a_step_of_training_moves_the_adapters_only():
    lora, x, target = adapted(encoder(), trained=False), *torch.randn(2, 2, 7, 16)
    before = {name: p.detach().clone() for name, p in lora.named_parameters()}
    optimiser = torch.optim.SGD([p for p in lora.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (lora(x) - target).square().mean().backward()
        optimiser.step()
    moved = {name for name, p in lora.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora" in name}


def test_the_update_is_that_of_both_projections():
    model = encoder()
    layer = copy.deepcopy(model.layers[0].self_attn)
    wrapped = adapted(model).base_model.model.layers[0].self_attn
    with torch.no_grad():
        layer.in_proj_weight += wrapped.get_delta_weight("default")
        layer.out_proj.weight += wrapped.base_layer.out_proj.get_delta_weight("default")
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(wrapped(x, x, x)[0], layer(x, x, x)[0], rtol=1e-4, atol=1e-5)


def test_adapters_have_the_names_and_shapes_of_those_on_softmax_attention():
    ours, theirs = (peft.get_peft_model_state_dict(adapted(encoder(swapped=x))) for x in (True, False))
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}
    lora = adapted(encoder())
    peft.set_peft_model_state_dict(lora, theirs)
    assert torch.equal(
        lora.base_model.model.layers[0].self_attn.lora_A["default"].weight,
        theirs["base_model.model.layers.0.self_attn.lora_A.weight"],
    )


def test_layers_with_widths_of_their_own_are_refused():
    register_with_peft()
    with pytest.raises(ValueError, match="expected kdim = vdim = 16, got 8 and 8"):
        adapted(nn.ModuleDict({"self_attn": FavorAttention(16, 4, kdim=8, vdim=8)}))


def test_replacing_attention_lets_peft_know_where_it_is_there(monkeypatch):
    model = peft.tuners.lora.LoraModel
    monkeypatch.setattr(model, "_create_new_module", staticmethod(lambda *args, **options: None))
    replace_attention(nn.Sequential(nn.Linear(8, 8)))
    assert model._create_new_module.knows_favor
