"""peft's LoRA on FavorAttention, as on nn.MultiheadAttention; peft is imported when it is asked for.

peft knows the layers that it adapts by their classes. `register_with_peft` adds ours.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from .multihead import FavorAttention


def register_with_peft() -> None:
    """Let peft's LoRA adapt a whole FavorAttention, as it does a whole nn.MultiheadAttention.

        replace_attention(model)
        register_with_peft()
        model = get_peft_model(model, LoraConfig(target_modules=["self_attn"]))

    A low-rank update of in_proj_weight and one of out_proj, under the names that peft gives those of
    nn.MultiheadAttention: adapters trained on the one load on the other. Without this call target_modules=["out_proj"]
    works, since out_proj is called as a module here, and peft refuses the layer as a whole. Layers taken over from timm
    need no call: their qkv and proj are linear layers.

    Only the forward pass is adapted: `summarize`, `attend` and `stream` are those of the layer inside. As with
    nn.MultiheadAttention, lora_dropout acts on out_proj alone, and DoRA is refused.

    One method of peft's LoraModel is wrapped, once: a second call does nothing, and other layers are dispatched as they
    were. `replace_attention` makes this call where peft has been imported before it.

    Raises:
        ImportError: peft is not installed. Later, in get_peft_model, a ValueError for layers with kdim or vdim of their
            own, as with nn.MultiheadAttention.
    """
    try:
        peft_lora: Any = import_module("peft.tuners.lora")
    except ImportError as error:
        raise ImportError("peft is needed to adapt layers with it: pip install peft") from error
    original = peft_lora.LoraModel._create_new_module
    if getattr(original, "knows_favor", False):
        return

    @functools.wraps(original)
    def wrapped(lora_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        if isinstance(target, FavorAttention) and kwargs.get("parameter_name") is None:
            rest = {name: x for name, x in kwargs.items() if name != "device_map"}
            return _lora_class()(target, adapter_name, config=lora_config, **rest)
        return original(lora_config, adapter_name, target, **kwargs)

    wrapped.knows_favor = True  # type: ignore[attr-defined]
    peft_lora.LoraModel._create_new_module = staticmethod(wrapped)


@functools.cache
def _lora_class() -> type[nn.Module]:
    """Return peft's layer for nn.MultiheadAttention, made for FavorAttention.

    peft's puts merged weights into the layer for the time of a call. Here out_proj is called with its own adapter, and
    in_proj_weight is handed to the call, so that nothing of the layer changes.
    """
    check_adapters_to_merge = import_module("peft.tuners.tuners_utils").check_adapters_to_merge
    multihead: Any = import_module("peft.tuners.lora.layer").MultiheadAttention

    class FavorLora(multihead):
        def __init__(self, base_layer: FavorAttention, adapter_name: str, config: Any, **kwargs: Any) -> None:
            if not base_layer._fused:
                raise ValueError(
                    "LoRA adapts attention whose query, key and value have one width: expected kdim = vdim = "
                    f"{base_layer.embed_dim}, got {base_layer.kdim} and {base_layer.vdim}"
                )
            base_layer._qkv_same_embed_dim = True  # for peft's check; in PyTorch's layers it means the softmax path
            try:
                super().__init__(base_layer, adapter_name, config=config, **kwargs)
            finally:
                base_layer._qkv_same_embed_dim = False

        def _get_in_out_features(self, module: FavorAttention) -> tuple[int, int]:
            rows, columns = module.in_proj_weight.shape
            return columns, rows

        def _get_base_layer_device_and_dtype(self, base_layer: Any) -> Any:
            return base_layer.in_proj_weight.device, base_layer.in_proj_weight.dtype

        def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
            """Add adapters to the weights."""
            names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
            base = self.get_base_layer()
            for name in names:
                merged = base.in_proj_weight.detach() + self._update(name)
                if safe_merge and not bool(merged.isfinite().all()):
                    raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
                base.out_proj.merge(safe_merge=safe_merge, adapter_names=[name])
                base.in_proj_weight.data.copy_(merged)
                self.merged_adapters.append(name)

        def unmerge(self) -> None:
            """Take merged adapters out of the weights."""
            base = self.get_base_layer()
            while self.merged_adapters:
                base.in_proj_weight.data -= self._update(self.merged_adapters.pop()).detach()
            base.out_proj.unmerge()

        def unload_and_optionally_merge_module(
            self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
        ) -> Any:
            """Return the FavorAttention, with the adapters in its weights if they are to be merged."""
            if merge:
                self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            base = self.get_base_layer()
            base.out_proj = base.out_proj.get_base_layer()
            return base

        def forward(self, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._check_forward_args(query, *args, **kwargs)
            base = self.get_base_layer()
            if self.disable_adapters and self.merged:
                self.unmerge()
            if self.disable_adapters or self.merged:
                return base(query, *args, **kwargs)
            weight = base.in_proj_weight
            for name in self.active_adapters:
                if name in self.lora_A:
                    weight = weight + self._update(name)
            return functional_call(base, {"in_proj_weight": weight}, (query, *args), kwargs)

        def _update(self, name: str) -> torch.Tensor:
            return self.get_delta_weight(name).to(self.get_base_layer().in_proj_weight.dtype)

        def _restore_weights(self) -> None:
            """Do nothing: no weight was taken out."""

    return FavorLora
