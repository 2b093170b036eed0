"""Tell from the code of a layer whether it computes softmax attention itself."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

SOFTMAX = {"softmax", "Softmax"}
WHOLE_ATTENTIONS = {
    *("scaled_dot_product_attention", "flex_attention", "memory_efficient_attention", "multi_head_attention_forward"),
    *("flash_attn_func", "flash_attn_varlen_func", "_flash_attention_forward"),
}
PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}


@functools.cache
def attends_by_itself(layer: type) -> bool:
    """Whether the code of a class weighs values by a softmax of products, and does not ask the interface.

    Read off its bytecode, which is there where a source file is not.
    """
    if asks_interface(layer):
        return False
    names, products = _code_of(layer)
    if names & WHOLE_ATTENTIONS:
        return True
    looks_like = "attention" in layer.__name__.lower() or "attn" in layer.__name__.lower()
    return (
        bool(names & SOFTMAX)
        and products >= 2
        and (looks_like or bool(names & {"transpose", "permute", "mT", "einsum"}))
    )


@functools.cache
def asks_interface(layer: type) -> bool:
    """Whether the code of a class takes its attention from transformers' AttentionInterface."""
    return "get_interface" in _code_of(layer)[0] or "ALL_ATTENTION_FUNCTIONS" in _code_of(layer)[0]


@functools.cache
def _code_of(layer: type) -> tuple[frozenset[str], int]:
    """Return the names that the methods of a class use, with the functions of its file that they call, and the number
    of matrix products in them."""
    codes = list(_codes(layer))
    names = frozenset(name for code in codes for name in code.co_names)
    if not names & SOFTMAX:
        return names, 0
    instructions = (instruction for code in codes for instruction in dis.get_instructions(code))
    operators = ("@", "@=")
    return names, sum(
        instruction.argrepr in operators or (instruction.opname.startswith("LOAD") and instruction.argval in PRODUCTS)
        for instruction in instructions
    )


def _codes(layer: type) -> Iterator[CodeType]:
    seen: set[CodeType] = set()
    waiting: list[Any] = [x for base in layer.__mro__ if not _is_machinery(base) for x in vars(base).values()]
    while waiting:
        found = waiting.pop()
        if isinstance(found, (staticmethod, classmethod)):
            found = found.__func__
        if isinstance(found, FunctionType):
            function = inspect.unwrap(found)
            code = function.__code__
            here = function.__globals__.get("__name__")
            called = (function.__globals__.get(name) for name in code.co_names)
            waiting += [x for x in called if isinstance(x, FunctionType) and x.__module__ == here]
            found = code
        if isinstance(found, CodeType) and found not in seen:
            seen.add(found)
            waiting += [x for x in found.co_consts if isinstance(x, CodeType)]
            yield found


def _is_machinery(base: type) -> bool:
    """Whether a class is one that all models share, which attends to nothing."""
    return (
        base is object
        or base.__module__.partition(".")[0] == "torch"
        or (base.__module__.startswith("transformers.") and not base.__module__.startswith("transformers.models."))
    )
