"""Put FavorAttention in the place of softmax attention: one layer, every layer of a model, and weights back again.

A replaced layer holds the very parameters of the softmax layer, so optimisers, tied weights and state dicts go on as
they were. What it computes is another attention: see `FavorAttention` for what is given up, and train it further.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from .conversion import convert, obstacle
from .features import FeatureModule
from .lora import register_with_peft
from .multihead import FavorAttention
from .own_attention import attends_by_itself
from .self_attention import FavorSelfAttention, is_timm_attention, timm_obstacle, why_left


class AttentionLeft(NamedTuple):
    """A softmax attention that was not replaced, and why."""

    name: str
    reason: str


class AttentionReplacement(NamedTuple):
    """What `replace_attention` did, by the names of the modules in the model.

    Attributes:
        replaced: names of the layers that are FavorAttention, or FavorSelfAttention, now.
        left: the softmax attentions that are still there, of other classes too.
    """

    replaced: tuple[str, ...]
    left: tuple[AttentionLeft, ...]

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}: {', '.join(self.replaced) or 'none'}"]
        lines += [f"left {name}: {reason}" for name, reason in self.left]
        if self.replaced:
            lines.append("need_weights is False by default now: pass True where the weights are read")
        elif not self.left:
            lines.append("nothing found: no nn.MultiheadAttention, and no other layer that attends, is in the model")
        return "\n".join(lines)


def replace_attention(
    model: nn.Module, *, filter: Callable[[str, nn.Module], bool] | None = None, **favor: Any
) -> AttentionReplacement:
    """Replace every `nn.MultiheadAttention` in a model by a FavorAttention with its parameters, in place.

    timm's `Attention` (of its vision transformers: ViT, DeiT, and others that use it) likewise becomes a
    FavorSelfAttention, which has its modules.

    The parameters themselves move over: an optimiser made before goes on with them. A layer that stands in two places
    is replaced by one layer in both. Layer i gets the projection of seed + i. `nn.TransformerEncoder`s around replaced
    layers stop making nested tensors, which are for softmax attention only. Nothing is changed if anything raises.

        report = replace_attention(model, filter=lambda name, layer: "decoder" not in name, qk_norm=True)
        print(report)

    Args:
        model: changed in place. Layers of other classes that attend in their own way, such as the windows of a Swin
            transformer with their relative position bias, are left, and said.
        filter: takes a layer's name and the layer; False leaves it.
        favor: keywords of FavorAttention (num_features, features, qk_norm, seed, …) for all layers. `is_causal=True`
            makes cross-attention causal as well, where a filter does not leave it out.

    Returns:
        The names of what was replaced, and of what was left with the reason.

    Raises:
        ValueError: model is itself the layer, or options that do not fit.
    """
    if isinstance(model, nn.MultiheadAttention) or is_timm_attention(model):
        raise ValueError(
            f"the model is itself an attention ({type(model).__qualname__}), which cannot be replaced in place; use "
            "FavorAttention.from_multihead_attention, or replace_attention on a module that holds it"
        )
    converted: dict[nn.Module, FeatureModule] = {}
    replaced, left = [], []
    seed = favor.pop("seed", 0)
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.MultiheadAttention) and not is_timm_attention(module):
            if not isinstance(module, FeatureModule) and attends_by_itself(type(module)):
                left.append(AttentionLeft(name, why_left(module)))
            continue
        reason = obstacle(module) if isinstance(module, nn.MultiheadAttention) else timm_obstacle(module)
        if reason is None and filter is not None and not filter(name, module):
            reason = "the filter says no"
        if reason is not None:
            left.append(AttentionLeft(name, reason))
            continue
        if module not in converted:
            options = {"seed": seed + len(converted), **favor}
            is_multihead = isinstance(module, nn.MultiheadAttention)
            converted[module] = (
                convert(module, FavorAttention, options) if is_multihead else FavorSelfAttention(module, **options)
            )
        replaced.append((name, converted[module]))
    for name, layer in replaced:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(x, FavorAttention) for x in module.modules()):
            module.use_nested_tensor = False
    if "peft" in sys.modules:
        register_with_peft()
    return AttentionReplacement(tuple(name for name, _ in replaced), tuple(left))


def multihead_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict without what FAVOR attention adds, so that it loads strictly where softmax is used.

    A state dict of softmax attention loads into FavorAttention as it is. The way back needs this function, because
    `nn.MultiheadAttention` refuses any name it does not know, and the projection has to be in a checkpoint: it is
    redrawn, or learnt, and a draw is not promised to repeat in another version of torch.

        nn.MultiheadAttention(512, 8).load_state_dict(multihead_state_dict(layer))

    Args:
        model: a FavorAttention, or a model with some in it, or with layers taken over from timm.

    Returns:
        Name to tensor, sharing memory with the model.

    Raises:
        ValueError: a layer whose weights softmax attention cannot hold: qk_norm, gate, or head dims of its own.
    """
    state = model.state_dict()
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, (FavorAttention, FavorSelfAttention)):
            continue
        prefix = f"{name}." if name else ""
        softmax = "nn.MultiheadAttention" if isinstance(layer, FavorAttention) else "timm's Attention"
        if layer.log_temperature is not None:
            raise ValueError(
                f"{name or 'the layer'} has qk_norm=True, which {softmax} cannot hold: expected a layer "
                "without it; use state_dict() for a checkpoint of the same model"
            )
        if isinstance(layer, FavorAttention) and layer.gate_weight is not None:
            raise ValueError(
                f"{name or 'the layer'} has gate=True, which nn.MultiheadAttention cannot hold: expected a layer "
                "without it; use state_dict() for a checkpoint of the same model"
            )
        if isinstance(layer, FavorAttention) and {layer.head_dim, layer.value_head_dim} != {
            layer.embed_dim / layer.num_heads
        }:
            raise ValueError(
                f"{name or 'the layer'} has head dims {layer.head_dim} and {layer.value_head_dim}, which "
                f"nn.MultiheadAttention cannot hold: expected {layer.embed_dim / layer.num_heads:g}"
            )
        for own in ("projection", "log_weight"):
            state.pop(prefix + own, None)
    return state
