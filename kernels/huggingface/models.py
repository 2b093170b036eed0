"""Which models of transformers FAVOR attention can run in, and what their configurations remember of it.

A model runs FAVOR attention only if all its attention asks transformers' AttentionInterface for the function. One that
computes softmax itself ignores the name of the implementation, and would do so without the masks that transformers
leaves to the implementation. `watch` has every PreTrainedModel looked at when it is made and when its implementation
is set: transformers offers no hook for that, so three of its methods are wrapped, once, at the first registration; for
models that run another attention they do what they did.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..layers.own_attention import asks_interface, attends_by_itself
from .attention import LAYER, RECORD, FavorForTransformers


def watch() -> None:
    """Wrap what makes a model and what sets its attention; a second call does nothing."""
    from transformers import PreTrainedModel

    if getattr(PreTrainedModel.post_init, "watched_for_favor", False):
        return

    def wrap(name: str, around: Callable[..., Any]) -> None:
        original = getattr(PreTrainedModel, name)

        @functools.wraps(original)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            return around(original, self, *args, **kwargs)

        wrapped.watched_for_favor = True  # type: ignore[attr-defined]
        setattr(PreTrainedModel, name, wrapped)

    wrap("get_correct_attn_implementation", _around_choice)
    wrap("post_init", _around_construction)
    wrap("set_attn_implementation", _around_change)


def _around_choice(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> str:
    name = original(model, *args, **kwargs)
    if _registered(name) is not None:
        check_class(type(model), name)
    _remember(model.config, name)
    return name


def _around_construction(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> None:
    original(model, *args, **kwargs)
    _number_layers(model)
    _remember_parts(model)
    if _registered(model.config._attn_implementation) is not None:
        check_layers(model, model.config._attn_implementation)


def _around_change(
    original: Callable[..., Any], model: Any, attn_implementation: Any, *args: Any, **kwargs: Any
) -> Any:
    if isinstance(attn_implementation, str) and _registered(attn_implementation) is not None:
        for part in _models_in(model):  # transformers itself only warns, and leaves such parts as they are
            check_class(type(part), attn_implementation)
        check_layers(model, attn_implementation)
    original(model, attn_implementation, *args, **kwargs)
    for part in _models_in(model):  # each with a configuration of its own
        _number_layers(part)
        if _registered(part.config._attn_implementation) is not None:
            check_layers(part, part.config._attn_implementation)
    for part in _models_in(model):
        _remember_parts(part)


def _models_in(model: nn.Module) -> Iterator[Any]:
    from transformers import PreTrainedModel

    return (part for part in model.modules() if isinstance(part, PreTrainedModel))


def check_class(model_class: type, name: str) -> None:
    """Raise ValueError if a class of models is defined beside softmax attention and nothing asks the interface.

    So it is known before a layer is made, for models that come one a file: transformers' own and those of the hub.
    Others are known by their layers.

    Args:
        model_class: of models; every file that it inherits from is looked at.
        name: of the attn_implementation that was asked for.
    """
    from transformers import PreTrainedModel

    for base in model_class.__mro__:
        if base is PreTrainedModel or not issubclass(base, PreTrainedModel):
            continue
        layers, by_name = _layers_defined_beside(base)
        own = [layer for layer in layers if attends_by_itself(layer)]
        is_alone = base.__module__.startswith(("transformers.", "transformers_modules."))
        if by_name or (is_alone and own and not any(asks_interface(layer) for layer in layers)):
            _refuse(model_class, [*by_name, *own][0], name)


def check_layers(model: nn.Module, name: str) -> None:
    """Raise ValueError if a layer of a model computes softmax attention itself.

    `nn.MultiheadAttention` may stay, and is told: pooling heads of vision models are such layers, which
    attn_implementation never governed.
    """
    kept = []
    for path, module in model.named_modules():
        if attends_by_itself(type(module)):
            _refuse(type(model), type(module), name)
        if isinstance(module, nn.MultiheadAttention):
            kept.append(path)
    if kept:
        warnings.warn(
            f"{type(model).__name__}: softmax attention stays in {', '.join(kept)}, nn.MultiheadAttention that "
            "attn_implementation does not govern; favorcast.kernels.replace_attention(model) takes its place",
            stacklevel=4,
        )


def _refuse(model_class: type, layer: type, name: str) -> None:
    raise ValueError(
        f'{model_class.__name__} cannot run attn_implementation="{name}": expected every layer to take its attention '
        f"from transformers' AttentionInterface, got {layer.__qualname__}, which computes softmax attention itself and "
        'would lose its masks; use attn_implementation="eager" (or "sdpa") for this model, or build it with '
        "favorcast.kernels.FavorAttention"
    )


def _layers_defined_beside(model_class: type) -> tuple[list[type], list[type]]:
    """Return the layers in the file of a class of models, and those that it chooses by the implementation's name.

    So transformers did before the interface: a name that it does not know is a KeyError there.
    """
    found = list(vars(sys.modules[model_class.__module__]).values())
    layers = [x for x in found if _is_layer(x) and x.__module__ == model_class.__module__]
    choices = [x for x in found if isinstance(x, dict) and "eager" in x and all(map(_is_layer, x.values()))]
    return layers, [x["eager"] for x in choices]


def _is_layer(x: Any) -> bool:
    return isinstance(x, type) and issubclass(x, nn.Module)


def _number_layers(model: nn.Module) -> None:
    """Give every attention layer its number among those of this model, parts that are models aside."""
    from transformers import PreTrainedModel

    number, waiting = 0, [*reversed(list(model.children()))]
    while waiting:
        module = waiting.pop()
        if isinstance(module, PreTrainedModel):
            continue
        if asks_interface(type(module)):
            setattr(module, LAYER, number)
            number += 1
        waiting += reversed(list(module.children()))


def is_registered(name: Any) -> bool:
    """Whether the name of an attn_implementation is one of ours."""
    return _registered(name) is not None


def _registered(name: Any) -> FavorForTransformers | None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found = ALL_ATTENTION_FUNCTIONS.get(name) if isinstance(name, str) else None
    return found if isinstance(found, FavorForTransformers) else None


def _remember(config: Any, name: str) -> None:
    """Have a configuration, and so its config.json, say how FAVOR attention is run: what it said before holds.

    transformers saves no attn_implementation, but reads one: with the entry, a model comes back with its own attention,
    and does not load where the name is unknown.
    """
    ours, saved = _registered(name), getattr(config, RECORD, None)
    if ours is None:
        if saved is not None:
            vars(config).pop("attn_implementation", None)
        return
    config.attn_implementation = name
    if saved is None or saved.get("name") != name:
        setattr(config, RECORD, ours.record(name))
    elif FavorForTransformers.from_record(saved) != ours:
        warnings.warn(
            f"the model was saved with {saved}, and {name!r} is registered with {ours}: it runs as it was saved; "
            f"delete config.{RECORD} to run it as registered",
            stacklevel=6,
        )


def _remember_parts(model: Any) -> None:
    """Let layers with a configuration that no model of their own has looked at follow the model around them, and the
    configuration of a composite model say which part runs what."""
    record = getattr(model.config, RECORD, None)
    for module in model.modules():
        config = getattr(module, "config", None)
        if record is not None and asks_interface(type(module)) and getattr(config, RECORD, None) is None:
            setattr(config, RECORD, record)
    parts = _implementations(model.config)
    if isinstance(parts, dict):
        model.config.attn_implementation = parts


def _implementations(config: Any) -> Any:
    """Return the attn_implementation of a configuration, or a dict of those of its parts if one is ours."""
    own = config._attn_implementation
    parts = {key: getattr(config, key, None) for key in getattr(config, "sub_configs", {})}
    found = {key: _implementations(part) for key, part in parts.items() if part is not None}
    if all(x == own for x in found.values()) or not any(
        isinstance(x, dict) or _registered(x) for x in (own, *found.values())
    ):
        return own
    return {"": own, **found}
