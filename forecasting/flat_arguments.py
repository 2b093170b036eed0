"""Constructors whose arguments are the fields of a dataclass: type, default, check and sentence stand there, once."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Concatenate, ParamSpec, TypeVar

Fields = ParamSpec("Fields")
Self = TypeVar("Self")


def takes_fields_of(
    config: Callable[Fields, Any],
) -> Callable[[Callable[Concatenate[Self, ...], None]], Callable[Concatenate[Self, Fields], None]]:
    """Declare that a constructor takes what the dataclass `config` takes.

        @takes_fields_of(Config)
        def __init__(self, *args: Any, **arguments: Any) -> None:
            config = Config(*args, **arguments)

    The function stays as it is, so that Lightning finds its local variables in its frame. Type checkers and editors see
    the fields in the type returned here, jsonargparse in the call of Config, and `inspect.signature` in a
    FieldsSignature.
    """

    kind: Any = config

    def declare(build: Any) -> Any:
        build.config = kind
        build.__doc__ = f"Build from the fields of {kind.__name__}.\n\nArgs:\n" + "\n".join(_sentences(kind))
        kind.__init__.__doc__ = build.__doc__  # where every version of jsonargparse looks
        return build

    return declare


class FieldsSignature:
    """The `__signature__` of a class whose constructor `takes_fields_of` a dataclass; other subclasses have none."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        config = getattr(owner.__init__, "config", None)
        if instance is not None or config is None:
            raise AttributeError("__signature__")
        return inspect.signature(config)


def arguments_of(config: Any, kind: Any = None) -> dict[str, Any]:
    """Return the arguments that build a dataclass again, or build the dataclass `kind` with the same values."""
    return {field.name: getattr(config, field.name) for field in fields(kind or config) if field.init}


def check_names(
    called: str, arguments: Mapping[str, Any], config: Any, elsewhere: Mapping[str, Collection[str]] | None = None
) -> None:
    """Raise TypeError for an argument by keyword that the dataclass `config` lacks, and say where it belongs.

    Args:
        called: name of what the arguments were given to.
        arguments: by name.
        config: the dataclass whose fields they should be.
        elsewhere: names of arguments that belong elsewhere, by how they are given there, with {name} and {value}.
    """
    known = [field.name for field in fields(config) if field.init]
    for name, value in arguments.items():
        if name in known:
            continue
        homes = [home for home, names in (elsewhere or {}).items() if name in names]
        close = get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else f"; it takes {', '.join(known)}"
        if homes:
            hint = "; give it as " + homes[0].format(name=name, value=repr(value))
        raise TypeError(f"{called} has no argument {name!r}{hint}")


def _sentences(config: Any) -> Iterator[str]:
    """Yield the lines of the Args sections of a dataclass and its bases, in the order of the fields."""
    for each in reversed(config.__mro__):
        _, _, arguments = inspect.cleandoc(vars(each).get("__doc__") or "").partition("Args:\n")
        yield from arguments.partition("\n\n")[0].splitlines()
