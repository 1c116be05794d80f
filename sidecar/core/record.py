"""Events and actions as plain lists of JSON values, and back: exact, compact, and without executing anything.

A value becomes `[class name, field, field, …]` in the order of its fields. Floats survive: Python writes the shortest
text that reads back as the same number. An unknown class or a wrong number of fields is a RecordError.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from sidecar.core.errors import SidecarError
from sidecar.core.events import Action, Event

Plain = Any  # what JSON knows: lists, strings, numbers, booleans, None
Recorded = Event | Action
Codec = tuple[Callable[[Any], Plain], Callable[[Plain], Any]]


class RecordError(SidecarError):
    """The file was not written by this version of the scheduler, or is damaged; the message says where."""


def encode(value: Recorded) -> Plain:
    """`value` in plain data."""
    return _codec(type(value))[0](value)


def decode(plain: Plain) -> Any:
    """The value that `encode` was given. Raises RecordError."""
    try:
        kind = _KINDS[plain[0]]
    except (KeyError, IndexError, TypeError):
        raise RecordError(f"no event and no action: {str(plain)[:80]}") from None
    return _codec(kind)[1](plain)


def _codec(hint: Any) -> Codec:
    found = _CODECS.get(hint)
    if found is None:
        found = _CODECS[hint] = _made(hint)
    return found


def _made(hint: Any) -> Codec:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _of_dataclass(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return str, hint
    if origin is tuple and inner[-1] is Ellipsis:
        to_plain, from_plain = _codec(inner[0])
        return lambda each: [to_plain(x) for x in each], lambda each: tuple(from_plain(x) for x in each)
    if origin is tuple:
        codecs = [_codec(each) for each in inner]
        return (
            lambda each: [codec[0](x) for codec, x in zip(codecs, each, strict=True)],
            lambda each: tuple(codec[1](x) for codec, x in zip(codecs, each, strict=True)),
        )
    if origin in (typing.Union, types.UnionType):
        (some,) = (_codec(each) for each in inner if each is not type(None))
        return (
            lambda each: None if each is None else some[0](each),
            lambda each: None if each is None else some[1](each),
        )
    return _same, _same


def _of_dataclass(kind: type) -> Codec:
    hints = typing.get_type_hints(kind)
    fields = [(each.name, _codec(hints[each.name])) for each in dataclasses.fields(kind)]

    def to_plain(value: Any) -> Plain:
        return [kind.__name__, *(codec[0](getattr(value, name)) for name, codec in fields)]

    def from_plain(plain: Plain) -> Any:
        if not isinstance(plain, list) or len(plain) != len(fields) + 1 or plain[0] != kind.__name__:
            raise RecordError(f"{kind.__name__} has {len(fields)} fields, not as in {str(plain)[:80]}")
        try:
            values = {name: codec[1](each) for (name, codec), each in zip(fields, plain[1:], strict=True)}
            return kind(**values)
        except (TypeError, ValueError, SidecarError) as error:
            raise RecordError(f"{kind.__name__}: {error}") from None

    return to_plain, from_plain


def _same(value: Any) -> Any:
    return value


_KINDS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Recorded)}
_CODECS: dict[Any, Codec] = {}
