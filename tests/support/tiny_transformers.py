"""Every architecture of the installed transformers in small, as far as shrinking the numbers of its configuration does.

A configuration is rebuilt with the small numbers below under the names it knows, its parts likewise.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor, nn

SIZES = {
    32: (
        "hidden_size d_model n_embd dim embed_dim emb_dim hidden_dim encoder_hidden_size decoder_hidden_size "
        "embedding_size word_embed_proj_dim conv_dim d_embed text_embed_dim cross_attention_hidden_size "
        "bottleneck_size model_dim output_dim vision_embed_dim embedding_dim encoder_embed_dim decoder_embed_dim "
        "fpn_hidden_size neck_hidden_size feature_size out_hidden_size hidden_size_per_layer_input"
    ),
    48: (
        "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner inner_dim d_inner "
        "moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size mlp_dim decoder_intermediate_size "
        "intermediate_size_mlp ffn_dim_decoder dim_feedforward"
    ),
    2: (
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth num_encoder_layers "
        "num_decoder_layers decoder_num_hidden_layers encoder_n_layers decoder_n_layers num_hidden_groups "
        "num_blocks num_local_layers decoder_depth encoder_num_hidden_layers num_key_value_heads "
        "num_experts_per_tok moe_topk top_k_experts multi_query_group_num encoder_num_key_value_heads "
        "decoder_num_key_value_heads num_experts_per_token"
    ),
    4: (
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "decoder_num_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts n_head_size "
        "encoder_num_attention_heads heads num_attention_heads_decoder qk_rope_head_dim rotary_dim"
    ),
    1: ("n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace temporal_patch_size"),
    8: (
        "head_dim v_head_dim qk_nope_head_dim d_kv attention_head_size patch_size linear_key_head_dim "
        "linear_value_head_dim kv_channels global_head_dim"
    ),
    16: ("kv_lora_rank q_lora_rank projection_dim num_mel_bins adapter_size image_size"),
    64: (
        "max_position_embeddings n_positions max_source_positions max_target_positions n_ctx max_seq_len block_size "
        "vocab_size"
    ),
}
NUMBERS = {name: size for size, names in SIZES.items() for name in names.split()}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
LENGTH = 9


def tiny_config(config_class: Any) -> Any:
    """Return a small configuration of a class."""
    default = config_class()
    is_known = dataclasses.is_dataclass(config_class)
    names = [field.name for field in dataclasses.fields(config_class)] if is_known else list(vars(default))
    small: dict[str, Any] = {}
    for name in names:
        value = getattr(default, name, None)
        if name in NUMBERS and isinstance(value, int) and not isinstance(value, bool):
            small[name] = min(value, NUMBERS[name]) if value > 0 else value
        elif name in TOKENS and isinstance(value, int):
            small[name] = TOKENS[name]
        elif name == "layer_types" and isinstance(value, list):
            small[name] = _two_kinds(value)
        elif name == "image_size" and isinstance(value, (list, tuple)):
            small[name] = [16] * len(value)
    for name in getattr(default, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            small[name] = tiny_config(type(part))
    return config_class(**small)


def _two_kinds(kinds: list[str]) -> list[str]:
    """Return the types of two layers, of as many kinds as there are."""
    found = list(dict.fromkeys(kinds))
    return (found * 2)[:2]


def tiny_inputs(model: nn.Module, config: Any) -> dict[str, Tensor]:
    """Return inputs for the forward of a model, padded where it takes an attention_mask of tokens."""
    names = set(inspect.signature(model.forward).parameters)
    torch.manual_seed(2)
    inputs: dict[str, Tensor] = {}
    if "input_ids" in names:
        inputs["input_ids"] = torch.randint(3, 50, (2, LENGTH))
        if "attention_mask" in names:
            inputs["attention_mask"] = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [6]])).long()
    if "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = torch.randint(3, 50, (2, 5))
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values" or ("pixel_values" in names and "input_ids" not in names):
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 32)
        size = size if isinstance(size, int) else size[0] if isinstance(size, (list, tuple)) else 32
        inputs["pixel_values"] = torch.randn(2, getattr(vision, "num_channels", 3) or 3, size, size)
    if main == "input_features":
        length = 2 * getattr(config, "max_source_positions", 32)
        inputs["input_features"] = torch.randn(2, getattr(config, "num_mel_bins", 16), length)
    if main == "input_values":
        inputs["input_values"] = torch.randn(2, 2000)
    if "bbox" in names:
        inputs["bbox"] = torch.zeros(2, LENGTH, 4, dtype=torch.long)
    return inputs
