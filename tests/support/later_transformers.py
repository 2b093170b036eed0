"""Let transformers before 5.24 be called by the names of later ones: `cache`, and activation checkpointing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import transformers
from transformers.utils import ModelOutput


def name_as_later_versions_do() -> None:
    """Rename keywords of models and of generate(), a field of what they return, and a method, where still needed."""
    model, generation = transformers.PreTrainedModel, transformers.GenerationMixin
    if not hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable = model.gradient_checkpointing_enable
    if "cache" in inspect.signature(transformers.LlamaModel.forward).parameters:
        return

    def renamed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if "cache" in kwargs:
                kwargs["past_key_values"] = kwargs.pop("cache")
            return function(*args, **kwargs)

        return call

    model.__call__ = renamed(model.__call__)
    generation.generate = renamed(generation.generate)
    ModelOutput.cache = property(lambda output: output.past_key_values)
