"""The whole state of a scheduler as plain JSON values, and back: exact, and without executing anything.

    captured = capture(scheduler)   # in the event loop: copies what can change, some ms for thousands of requests
    lines = captured.lines()        # wherever: one plain value per line
    scheduler = restore(lines)      # the same scheduler again: it answers the same events with the same actions

The state is a graph of nodes: objects of this package, lists, dicts, sets, deques and counters. Node 0 is the
scheduler; the others are numbered in the order in which they are found. One line is one of these:

    {"class": "slices.Slices", "fields": […]}   a shape: the nodes below may name it by its number (0, 1, …)
    [shape, value, …]                               an object of that shape
    ["list", value, …]      ["set", value, …]       ["deque", maxlen, value, …]       ["count", next]
    ["dict", key, value, …] ["Counter", key, value, …]

A value is a JSON scalar, `[0, number]` for a node, `[1, value, …]` for a tuple, or `[name, …]` for a member of an enum
or for a frozen dataclass (`record.py`). Only the classes of this package are made, and only their fields are set.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import chain, count
from operator import attrgetter
from typing import Any

from sidecar.core import (
    admission,
    arrivals,
    attribution,
    deadlines,
    dispatch_ends,
    dispatcher,
    engine,
    events,
    forecasts,
    iteration_model,
    jobs,
    lane_queue,
    ledger,
    pace,
    placement,
    preemption,
    prefill_pace,
    prefixes,
    price,
    request,
    request_table,
    reservation,
    scheduler,
    served_model,
    settings,
    slices,
    step,
    tenant_queue,
    tenants,
    timers,
    tracked_request,
    window,
)
from sidecar.core.record import Plain, RecordError, codec_of, shown
from sidecar.core.scheduler import Scheduler

MODULES: tuple[types.ModuleType, ...] = (
    *(
        admission,
        arrivals,
        deadlines,
        dispatch_ends,
        engine,
        events,
        forecasts,
        iteration_model,
        price,
        dispatcher,
        step,
        attribution,
        tracked_request,
        jobs,
        ledger,
        lane_queue,
        pace,
    ),
    *(
        prefill_pace,
        placement,
        served_model,
        preemption,
        prefixes,
        reservation,
        scheduler,
        settings,
        slices,
        tenants,
        timers,
        tenant_queue,
    ),
    *(window, request, request_table),
)
NODE, TUPLE = 0, 1  # how values begin that are neither scalars nor named
SCALARS = frozenset((int, float, str, bool, type(None)))
Values = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Captured:
    """The state at one moment. What it refers to may change afterwards; what it holds does not."""

    nodes: list[tuple[Any, Values]]  # a class, or a class and its fields; and the values
    numbers: dict[int, int]  # of the nodes, by their identity: the values keep them alive

    def lines(self) -> Iterator[Plain]:
        """One plain value per line."""
        shapes: dict[tuple[type, Values], int] = {}
        for kind, values in self.nodes:
            plain = [self._plain(each) for each in values]
            if isinstance(kind, tuple):
                if kind not in shapes:
                    shapes[kind] = len(shapes)
                    yield {"class": _NAMES[kind[0]], "fields": list(kind[1])}
                yield [shapes[kind], *plain]
            else:
                yield [kind.__name__, *plain]

    def _plain(self, value: Any) -> Plain:
        kind = type(value)
        if kind in SCALARS:
            return value
        if kind is tuple:
            return [TUPLE, *(self._plain(each) for each in value)]
        if kind in _ENUMS:
            return [_ENUMS[kind], value.value]
        if kind in _VALUES:
            return codec_of(kind).plain(value)
        return [NODE, self.numbers[id(value)]]


def capture(root: Scheduler) -> Captured:
    """The state of `root` now. Raises RecordError if something in it has no plain form."""
    numbers, found, nodes = {id(root): 0}, [root], []
    inline = SCALARS | _ENUMS.keys() | _VALUES

    def note(values: Values) -> None:
        for each in values:
            kind = type(each)
            if kind is tuple:
                note(each)
            elif kind not in inline and id(each) not in numbers:
                numbers[id(each)] = len(found)
                found.append(each)

    for each in found:  # grows
        kind, values = _taken_apart(each)
        note(values)
        nodes.append((kind, values))
    return Captured(nodes, numbers)


def _taken_apart(node: Any) -> tuple[Any, Values]:
    kind = type(node)
    if kind in (list, set):
        return kind, tuple(node)
    if kind in (dict, Counter):
        return kind, tuple(chain.from_iterable(node.items()))
    if kind is deque:
        return kind, (node.maxlen, *node)
    if kind is count:
        return kind, (int(repr(node)[6:-1]),)  # it has no other way to tell its next number without taking it
    if kind not in _NAMES:
        raise RecordError(f"{kind.__module__}.{kind.__qualname__} has no place in a recording")
    if kind in _FIELDS:
        fields, values = _FIELDS[kind]
        return (kind, fields), values(node)
    return (kind, tuple(vars(node))), tuple(vars(node).values())


# ---- back ------------------------------------------------------------------------------------------------------------


def restore(lines: Iterable[Plain], nodes_max: int) -> Scheduler:
    """The scheduler whose state the lines hold. Raises RecordError; nothing but `nodes_max` nodes is ever made."""
    shapes: list[tuple[type, list[str]]] = []
    kinds: list[Any] = []
    plains: list[list[Plain]] = []
    for line in lines:
        if isinstance(line, dict):
            shapes.append(_shape(line))
            continue
        if not isinstance(line, list) or not line:
            raise RecordError(f"no part of a state: {shown(line)}")
        if len(kinds) >= nodes_max:
            raise RecordError(f"the state has more than the {nodes_max} nodes that its header names")
        kind, *values = line
        if type(kind) is int and 0 <= kind < len(shapes):
            made, fields = shapes[kind]
            if len(values) != len(fields):
                raise RecordError(f"{made.__name__} has {len(fields)} fields, not as in {shown(line)}")
            kinds.append(shapes[kind])
        elif isinstance(kind, str) and kind in _CONTAINERS:
            kinds.append(kind)
        else:
            raise RecordError(f"no part of a state: {shown(line)}")
        plains.append(values)
    nodes = [_empty(kind, plain) for kind, plain in zip(kinds, plains, strict=True)]
    if not nodes or not isinstance(nodes[0], Scheduler):
        raise RecordError("the state does not begin with a scheduler")
    for node, kind, plain in zip(nodes, kinds, plains, strict=True):
        _fill(node, kind, plain, nodes)
    return _sound(nodes[0])


def _shape(line: dict[str, Plain]) -> tuple[type, list[str]]:
    name, fields = line.get("class"), line.get("fields")
    kind = _CLASSES.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(fields, list) or not all(isinstance(each, str) for each in fields):
        raise RecordError(f"no class of this version of the scheduler: {shown(line)}")
    known = _FIELDS.get(kind)
    if known is not None and list(known[0]) != fields:
        raise RecordError(f"{name} has other fields in this version of the scheduler")
    if known is None and any(hasattr(kind, each) or not each.isidentifier() for each in fields):
        raise RecordError(f"{name} has a field that is none: {shown(fields)}")
    return kind, fields


def _empty(kind: Any, plain: list[Plain]) -> Any:
    """The node, without its values unless they make it."""
    if isinstance(kind, tuple):
        return object.__new__(kind[0])
    if kind == "deque":
        maxlen = plain[0] if plain else ""
        if not (maxlen is None or (type(maxlen) is int and maxlen >= 0)):
            raise RecordError(f"no bound of a deque: {shown(maxlen)}")
        return deque(maxlen=maxlen)
    if kind == "count":
        if len(plain) != 1 or type(plain[0]) is not int:
            raise RecordError(f"no count: {shown(plain)}")
        return count(plain[0])
    return _CONTAINERS[kind]()


def _fill(node: Any, kind: Any, plain: list[Plain], nodes: list[Any]) -> None:
    if kind == "count":
        return
    values = [_value(each, nodes) for each in (plain[1:] if kind == "deque" else plain)]
    try:
        if isinstance(kind, tuple):
            for name, value in zip(kind[1], values, strict=True):
                object.__setattr__(node, name, value)
            _check_types(node)
        elif kind in ("list", "deque"):
            node.extend(values)
        elif kind == "set":
            node.update(values)
        else:
            node.update(dict(zip(values[::2], values[1::2], strict=True)))
    except (TypeError, ValueError) as error:
        raise RecordError(f"{kind if isinstance(kind, str) else kind[0].__name__}: {error}") from None


def _value(plain: Plain, nodes: list[Any]) -> Any:
    if type(plain) in SCALARS:
        return plain
    if not isinstance(plain, list) or not plain:
        raise RecordError(f"no value of a state: {shown(plain)}")
    head = plain[0]
    if isinstance(head, str):
        if (kind := _BY_NAME.get(head)) is None:
            raise RecordError(f"no value of this version of the scheduler: {shown(plain)}")
        return codec_of(kind).from_plain(plain[1] if issubclass(kind, StrEnum) and len(plain) == 2 else plain)
    if type(head) is int and head == TUPLE:
        return tuple([_value(each, nodes) for each in plain[1:]])
    if type(head) is int and head == NODE and len(plain) == 2 and type(plain[1]) is int and 0 <= plain[1] < len(nodes):
        return nodes[plain[1]]
    raise RecordError(f"no value of a state: {shown(plain)}")


def _check_types(node: Any) -> None:
    """The fields of a dataclass hold what they were declared to hold, as far as their own class goes."""
    for name, accepted in _ACCEPTED.get(type(node), ()):
        if not isinstance(value := getattr(node, name), accepted) or (type(value) is bool and bool not in accepted):
            raise RecordError(f"{type(node).__name__}.{name}: {type(value).__name__} is none of its types")


def _sound(found: Scheduler) -> Scheduler:
    """`found`, if the parts of its state fit together as far as a look at all of it tells."""
    try:
        found.snapshot()
        found.alive()
        found.next_deadline_s()
    except Exception as error:  # a state from a file may be wrong in any way, and none of them is ours
        raise RecordError(f"the parts of the state do not fit together: {type(error).__name__}: {error}") from None
    return found


# ---- the table -------------------------------------------------------------------------------------------------------


def _classes() -> dict[str, type]:
    """The classes of this package by `module.Class`."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": found
        for module in MODULES
        for name, found in vars(module).items()
        if isinstance(found, type) and found.__module__ == module.__name__ and not issubclass(found, Exception)
    }


def _has_codec(kind: type) -> bool:
    try:
        codec_of(kind)
    except TypeError:
        return False
    return True


def _by_fields(kind: Any) -> tuple[tuple[str, ...], Callable[[Any], Values]]:
    """The fields of a slotted class, and what reads them all at once."""
    slots = vars(kind)["__slots__"]
    fields: tuple[str, ...] = (slots,) if isinstance(slots, str) else tuple(slots)
    if len(fields) > 1:
        return fields, attrgetter(*fields)
    return fields, lambda node: tuple(getattr(node, each) for each in fields)


def _accepted(kind: Any) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """The fields of a dataclass whose declared types are classes, and these classes."""
    hints, rows = typing.get_type_hints(kind), []
    for each in dataclasses.fields(kind):
        hint = hints[each.name]
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        accepted = [typing.get_origin(part) or part for part in (typing.get_args(hint) if union else (hint,))]
        if all(isinstance(one, type) for one in accepted):
            rows.append((each.name, (*accepted, *((int,) if float in accepted else ()))))
    return tuple(rows)


_CONTAINERS: dict[str, type] = {
    "list": list,
    "dict": dict,
    "set": set,
    "deque": deque,
    "Counter": Counter,
    "count": count,
}
_CLASSES = _classes()
_NAMES = {kind: name for name, kind in _CLASSES.items()}
_ENUMS = {kind: kind.__name__ for kind in _NAMES if issubclass(kind, StrEnum)}
_DATACLASSES = [kind for kind in _NAMES if dataclasses.is_dataclass(kind)]
_VALUES = frozenset(kind for kind in _DATACLASSES if _has_codec(kind))  # frozen, and all that is in them
_FIELDS = {kind: _by_fields(kind) for kind in _NAMES if "__slots__" in vars(kind)}
_ACCEPTED = {kind: _accepted(kind) for kind in _DATACLASSES if kind not in _VALUES}
_BY_NAME: dict[str, type] = {kind.__name__: kind for kind in (*_ENUMS, *_VALUES)}
