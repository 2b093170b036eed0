"""Make a FavorAttention of a softmax layer, which shares its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

if TYPE_CHECKING:
    from .multihead import FavorAttention

Layer = TypeVar("Layer", bound="FavorAttention")

TAKEN_FROM_THE_LAYER = (
    *("embed_dim", "num_heads", "dropout", "bias", "add_bias_kv", "add_zero_attn", "kdim", "vdim", "batch_first"),
    *("head_dim", "value_head_dim", "device", "dtype"),
)
"""Arguments of FavorAttention that a conversion reads off the softmax layer."""

PARAMETERS = {
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"),
    *("out_proj.weight", "out_proj.bias", "bias_k", "bias_v"),
}
"""Parameters of a softmax layer that FavorAttention has as well."""


def convert(attention: nn.MultiheadAttention, layer_class: type[Layer], favor: dict[str, Any]) -> Layer:
    """Return a FavorAttention that shares the parameters of a softmax attention."""
    reason = obstacle(attention)
    if reason is not None:
        raise ValueError(f"this attention cannot be converted: {reason}")
    given = [name for name in TAKEN_FROM_THE_LAYER if name in favor]
    if given:
        raise ValueError(
            f"{', '.join(given)} come from the nn.MultiheadAttention: expected only keywords of random features and "
            "causality (num_features, features, qk_norm, is_causal, …); leave them out"
        )
    weight = attention.out_proj.weight
    layer = layer_class(
        attention.embed_dim,
        attention.num_heads,
        attention.dropout,
        attention.in_proj_bias is not None,
        attention.bias_k is not None,
        attention.add_zero_attn,
        attention.kdim,
        attention.vdim,
        attention.batch_first,
        device="meta",  # initialises nothing, so the global generator stays where it is
        dtype=weight.dtype,
        **favor,
    ).to_empty(device=weight.device)
    for name, parameter in attention.named_parameters(remove_duplicate=False):
        owner, _, own_name = name.rpartition(".")
        setattr(layer.get_submodule(owner), own_name, parameter)
    layer.reset_own_parameters()
    return layer.train(attention.training)


def obstacle(attention: nn.MultiheadAttention) -> str | None:
    """Say what FavorAttention could not keep of a softmax attention, or None."""
    if type(attention) is not nn.MultiheadAttention:
        return f"it is a subclass, {type(attention).__qualname__}, whose own behaviour would be lost"
    others = {name for name, _ in attention.named_parameters(remove_duplicate=False)} - PARAMETERS
    if others:
        return f"it is pruned or parametrised ({', '.join(sorted(others))}); make its weights plain parameters first"
    hooks = [name for name, found in vars(attention).items() if name.endswith("hooks") and found]
    return f"it has hooks, which would be lost ({', '.join(hooks)})" if hooks else None
