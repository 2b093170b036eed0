"""Triton's interpreter without its largest cost: a device function looks through all of triton.language when called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    """Have `triton.language` patched once a launch, not in each call of a device function; once is enough."""
    if not isinstance(interpreter._patch_lang, PatchOnce):
        interpreter._patch_lang = PatchOnce(interpreter._patch_lang)


class PatchOnce:
    """In the place of the interpreter's `_patch_lang`, and of the scope that it returns (Triton 3.7 and later)."""

    def __init__(self, patch_lang: Callable[[Any], Any]) -> None:
        self.patch_lang = patch_lang
        self.patched: set[Any] = set()
        self.scopes: list[Any] = []
        self.languages: dict[Any, frozenset[Any]] = {}

    def __call__(self, fn: Any) -> PatchOnce:
        """Patch what a function sees of triton.language, unless this launch has."""
        languages = self.languages.get(fn)
        if languages is None:
            modules = filter(inspect.ismodule, fn.__globals__.values())
            languages = self.languages[fn] = frozenset(x for x in modules if x in (tl, tl.core))
        if not (languages and languages <= self.patched):
            self.scopes.append(self.patch_lang(fn))
            self.patched |= languages
        return self

    def restore(self) -> None:
        """Undo it, which ends a launch."""
        while self.scopes:
            self.scopes.pop().restore()
        self.patched.clear()
