"""Events, actions and settings as plain JSON values, and back: exact, compact, and without executing anything.

A value becomes `[class name, field, field, …]` in the order of its fields. Only the classes of a closed table are made,
each by its own constructor, after the type of each field was checked. Floats survive bit for bit: Python writes the
shortest text that reads back as the same number (and `Infinity` and `NaN`, which strict JSON does not know).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from hashlib import sha256
from operator import attrgetter
from typing import Any, Literal

from sidecar.core.errors import SidecarError
from sidecar.core.events import Action, Event
from sidecar.core.settings import EngineSettings, SchedulerSettings

Plain = Any  # what JSON knows: lists, strings, numbers, booleans, None; objects only for mappings
Value = typing.TypeVar("Value")
FORMAT = 4  # of the files that hold them; 1 held pickled state, 2 and 3 the state by its former classes and fields
LINE_BYTES_MAX = 16 << 20  # of these files; the state of 100,000 requests has no line of 4 MiB
SHOWN_MAX = 80  # characters of a foreign value in an error


class RecordError(SidecarError):
    """The value was not written by this version of the scheduler, or is damaged; the message says where."""


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """How values of one type are written and read. `to_plain` is None where the value is plain already."""

    to_plain: Callable[[Any], Plain] | None
    from_plain: Callable[[Plain], Any]

    def plain(self, value: Any) -> Plain:
        """`value` in plain data."""
        return value if self.to_plain is None else self.to_plain(value)


def encode(value: Any) -> Plain:
    """`value`, a frozen dataclass, in plain data."""
    return codec_of(type(value)).plain(value)


def decode_event(plain: Plain) -> Event:
    """The event that `encode` was given. Raises RecordError."""
    found: Event = _decode(plain, _EVENTS, "event")
    return found


def decode_action(plain: Plain) -> Action:
    """The action that `encode` was given. Raises RecordError."""
    found: Action = _decode(plain, _ACTIONS, "action")
    return found


def decode_as(kind: type[Value], plain: Plain) -> Value:
    """The value of class `kind` that `encode` was given. Raises RecordError."""
    found: Value = codec_of(kind).from_plain(plain)
    return found


def _decode(plain: Plain, kinds: Mapping[str, type], what: str) -> Any:
    kind = kinds.get(plain[0]) if isinstance(plain, list) and plain and isinstance(plain[0], str) else None
    if kind is None:
        raise RecordError(f"no {what}: {shown(plain)}")
    return codec_of(kind).from_plain(plain)


def codec_of(hint: Any) -> Codec:
    """The codec of a type. Raises TypeError for a type that has no exact plain form."""
    found = _CODECS.get(hint)
    if found is None:
        found = _CODECS[hint] = _made(hint)
    return found


def fingerprint() -> str:
    """Equal for two versions of the scheduler only if they write every event, action and setting with equal fields."""
    kinds: dict[str, list[str]] = {}
    todo: list[Any] = [*_EVENTS.values(), *_ACTIONS.values(), SchedulerSettings, EngineSettings]
    for hint in todo:  # grows
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint.__name__ not in kinds:
            hints = typing.get_type_hints(hint)
            kinds[hint.__name__] = [f"{each.name}: {hints[each.name]}" for each in dataclasses.fields(hint)]
            todo += hints.values()
        elif isinstance(hint, type) and issubclass(hint, StrEnum):
            kinds[hint.__name__] = [each.value for each in hint]
        else:
            todo += typing.get_args(hint)
    return sha256(repr(sorted(kinds.items())).encode()).hexdigest()[:16]


def shown(plain: Plain) -> str:
    """A foreign value as an error may show it: short, on one line, without control characters."""
    text = ascii(plain)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"


def _made(hint: Any) -> Codec:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in _LEAVES:
        return _leaf(*_LEAVES[hint])
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _of_dataclass(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _of_enum(hint)
    if origin is Literal:
        return _of_literal(inner)
    if origin is tuple and inner and inner[-1] is Ellipsis:
        return _of_tuple(codec_of(inner[0]))
    if origin is tuple:
        return _of_row([codec_of(each) for each in inner])
    if origin in (dict, Mapping) and inner[0] is str:
        return _of_mapping(codec_of(inner[1]))
    if origin in (typing.Union, types.UnionType):
        return _of_union(inner)
    raise TypeError(f"{hint} has no exact plain form")


def _leaf(name: str, kinds: tuple[type, ...]) -> Codec:
    def from_plain(plain: Plain) -> Any:
        if type(plain) not in kinds:
            raise RecordError(f"{shown(plain)} is no {name}")
        return plain

    return Codec(None, from_plain)


def _of_enum(kind: type[StrEnum]) -> Codec:
    members = {each.value: each for each in kind}

    def from_plain(plain: Plain) -> Any:
        if not isinstance(plain, str) or plain not in members:
            raise RecordError(f"{shown(plain)} is no {kind.__name__}")
        return members[plain]

    return Codec(str, from_plain)


def _of_literal(values: tuple[Any, ...]) -> Codec:
    def from_plain(plain: Plain) -> Any:
        if not isinstance(plain, str) or plain not in values:
            raise RecordError(f"{shown(plain)} is none of {', '.join(map(repr, values))}")
        return plain

    return Codec(None, from_plain)


def _of_tuple(codec: Codec) -> Codec:
    one, back = codec.to_plain, codec.from_plain
    to_plain = list if one is None else lambda value: [one(each) for each in value]
    return Codec(to_plain, lambda plain: tuple([back(each) for each in _list(plain)]))


def _of_row(codecs: list[Codec]) -> Codec:
    def from_plain(plain: Plain) -> Any:
        if len(_list(plain)) != len(codecs):
            raise RecordError(f"{shown(plain)} has not {len(codecs)} values")
        return tuple([codec.from_plain(each) for codec, each in zip(codecs, plain, strict=True)])

    if all(codec.to_plain is None for codec in codecs):
        return Codec(list, from_plain)
    return Codec(lambda value: [codec.plain(x) for codec, x in zip(codecs, value, strict=True)], from_plain)


def _of_mapping(codec: Codec) -> Codec:
    def from_plain(plain: Plain) -> Any:
        if not isinstance(plain, dict):
            raise RecordError(f"{shown(plain)} is no mapping")
        return {key: codec.from_plain(each) for key, each in plain.items()}

    return Codec(lambda value: {key: codec.plain(each) for key, each in value.items()}, from_plain)


def _of_union(kinds: tuple[Any, ...]) -> Codec:
    """The first type of the union that takes the value. Raises TypeError if their plain forms may be the same."""
    codecs = [codec_of(each) for each in kinds]
    converting = [codec for codec in codecs if codec.to_plain is not None]
    by_class = {kind: codec for kind, codec in zip(kinds, codecs, strict=True) if codec.to_plain is not None}
    enums = [kind for kind in by_class if isinstance(kind, type) and issubclass(kind, StrEnum)]
    named = [kind for kind in by_class if dataclasses.is_dataclass(kind)]  # a plain form that begins with its class
    if len(converting) > 1 and (len(enums) > 1 or len(enums) + len(named) < len(kinds)):
        raise TypeError("a union of several types that are not plain has no exact plain form")

    def from_plain(plain: Plain) -> Any:
        errors = []
        for codec in codecs:
            try:
                return codec.from_plain(plain)
            except RecordError as error:
                errors.append(str(error))
        raise RecordError(" and ".join(errors))

    if not converting:
        return Codec(None, from_plain)
    if len(converting) > 1:
        return Codec(lambda value: by_class[type(value)].plain(value), from_plain)
    to_plain = converting[0].to_plain
    assert to_plain is not None
    return Codec(lambda value: None if value is None else to_plain(value), from_plain)


def _of_dataclass(kind: type) -> Codec:
    """Raises TypeError if a field has no exact plain form, or if the values can change: they would not stay exact."""
    if not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{kind.__name__} is not frozen")
    hints, name = typing.get_type_hints(kind), kind.__name__
    names = [each.name for each in dataclasses.fields(kind)]
    codecs = [codec_of(hints[each]) for each in names]
    convert = [(at, codec.to_plain) for at, codec in enumerate(codecs, 1) if codec.to_plain is not None]
    values = attrgetter(*names) if len(names) > 1 else None  # of one name it gives the value, not a tuple of it

    def to_plain(value: Any) -> Plain:
        plain = [name, *(values(value) if values else [getattr(value, each) for each in names])]
        for at, one in convert:
            plain[at] = one(plain[at])
        return plain

    def from_plain(plain: Plain) -> Any:
        if not isinstance(plain, list) or len(plain) != len(names) + 1 or plain[0] != name:
            raise RecordError(f"{name} has {len(names)} fields, not as in {shown(plain)}")
        found = {}
        for each, codec, one in zip(names, codecs, plain[1:], strict=True):
            try:
                found[each] = codec.from_plain(one)
            except RecordError as error:
                raise RecordError(f"{name}.{each}: {error}") from None
        try:
            return kind(**found)
        except (TypeError, ValueError, OverflowError, SidecarError) as error:
            raise RecordError(f"{name}: {error}") from None

    return Codec(to_plain, from_plain)


def _list(plain: Plain) -> list[Any]:
    if not isinstance(plain, list):
        raise RecordError(f"{shown(plain)} is no list")
    return plain


_LEAVES: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    bool: ("boolean", (bool,)),
    int: ("integer", (int,)),
    float: ("number", (float, int)),
    type(None): ("null", (type(None),)),
    None: ("null", (type(None),)),
}
_EVENTS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Event)}
_ACTIONS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Action)}
_CODECS: dict[Any, Codec] = {}
