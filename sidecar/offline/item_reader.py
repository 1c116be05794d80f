"""Bytes become a line of a known form (`item_format.py`), or an error that names the field, its range and what to do.

JSON is read more strictly than Python does by itself: no NaN, no key twice, no half of a surrogate pair. A prompt never
stands in an error; numbers and the names of fields do.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item_fields import Must, NotServed, Rule, shown
from sidecar.offline.item_format import (
    CHAT,
    COMPLETIONS,
    ChatBody,
    ChatLine,
    CompletionLine,
    ItemParameters,
    Line,
    ShortItem,
)

BOM = b"\xef\xbb\xbf"
REGISTRY_MAGIC = 0  # a schema registry's framing: this byte, four bytes of schema id, then the payload
FAULTS_SHOWN_MAX = 5  # of one item
FAULTS_READ_MAX = 50  # of one item; looking for a near name takes 0.1 ms
NAMES_MAX = 1000  # in one object; only a wrong item has more, and pydantic would explain each of them
NAME_SHOWN_MAX = 64  # characters of an unknown field's name
NEAR = 0.75  # how alike a name must be to be meant, in difflib's measure: `temprature` is, `temp` is not
_PROMPTS = {"prompt", "input_ids", "messages"}
_FORMS: dict[str, type[CompletionLine | ChatLine]] = {COMPLETIONS: CompletionLine, CHAT: ChatLine}


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong with one field. `code` is the word of the OpenAI API for it; "": the field is empty."""

    param: str
    message: str
    code: str


def read_line(value: bytes | None, bytes_max: int) -> Line:
    """The line in `value`. Raises DeadItemError."""
    parsed = read_object(value, bytes_max)
    form = _form(parsed)
    try:
        line = form.model_validate(parsed)
    except ValidationError as error:
        raise _refused(form, parsed, error) from None
    _check_together(parameters(line))
    return line


def parameters(line: Line) -> ItemParameters:
    """Return what the line asks for, without what names it."""
    return line if isinstance(line, ShortItem) else line.body


def _form(parsed: dict[str, Any]) -> type[Line]:
    if parsed.keys().isdisjoint(("body", "url", "method")):
        return ShortItem
    url = parsed.get("url")
    if isinstance(url, str) and url not in _FORMS:
        message = f"url {url!r:.{NAME_SHOWN_MAX}} is not served; {COMPLETIONS} and {CHAT} are"
        raise DeadItemError(DeadReason.UNSUPPORTED_URL, message, param="url")
    return _FORMS[url] if isinstance(url, str) else CompletionLine


def _check_together(asked: ItemParameters) -> None:
    """What no field can say alone."""
    names = ("messages",) if isinstance(asked, ChatBody) else ("prompt",)
    names = (*(("prompt", "messages") if isinstance(asked, ShortItem) else names), "input_ids")
    given_prompts = [name for name in names if getattr(asked, name) is not None]
    if len(given_prompts) > 1:
        first, *_, last = given_prompts
        raise _invalid(last, f"{first} and {last} are both stated; one item is one prompt")
    if not given_prompts:
        first = names[0]
        raise DeadItemError(DeadReason.MISSING_PROMPT, f"neither {first} nor input_ids is stated", param=first)
    if None not in (given := (asked.max_tokens, asked.max_completion_tokens)) and given[0] != given[1]:
        message = f"max_tokens {given[0]} and max_completion_tokens {given[1]} differ; state one of them"
        raise _invalid("max_completion_tokens", message)


# -- JSON


def read_object(value: bytes | None, bytes_max: int) -> dict[str, Any]:
    """The JSON object in `value`, no name in it stated twice. Raises DeadItemError."""
    if not value:
        raise DeadItemError(DeadReason.MISSING_PROMPT, "the value is empty")
    if len(value) > bytes_max:
        raise DeadItemError(DeadReason.TOO_LARGE, f"{len(value)} bytes exceed item_bytes_max {bytes_max}")
    if value[0] == REGISTRY_MAGIC and len(value) >= 5:
        schema = int.from_bytes(value[1:5], "big")
        raise DeadItemError(DeadReason.FRAMED, f"framed for a schema registry (schema id {schema}); send plain JSON")
    try:
        parsed = _DECODER.decode(value.removeprefix(BOM).decode())
    except UnicodeDecodeError as error:
        raise DeadItemError(DeadReason.NOT_UTF8, f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:  # its own text counts lines, where there is one
        message = f"no JSON object: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise DeadItemError(DeadReason.NOT_JSON, message) from None
    except _ConstantError as error:
        raise DeadItemError(DeadReason.NOT_JSON, str(error)) from None
    except RecursionError:
        raise DeadItemError(DeadReason.NOT_JSON, "nested too deeply") from None
    except ValueError:  # Python's bound on the digits of an integer
        raise _invalid(None, "a number has too many digits") from None
    if not isinstance(parsed, dict):
        raise _invalid(None, f"the value must be a JSON object, not {shown(parsed)}")
    if b"\\ud" in value or b"\\uD" in value:
        _refuse_lone_surrogates(parsed)
    return parsed


class _ConstantError(ValueError):
    """Python would take NaN and Infinity."""


def _no_constant(name: str) -> None:
    raise _ConstantError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python, and most readers, would keep the last one: then a producer and the lane may read two different items."""
    found = dict(pairs)
    if len(pairs) > NAMES_MAX:
        raise _invalid(None, f"an object has {len(pairs)} names; at most {NAMES_MAX} are read")
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _invalid(_printable(twice), f"the field {_printable(twice)!r} is stated twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _refuse_lone_surrogates(parsed: dict[str, Any]) -> None:
    """JSON can write half of a pair, UTF-8 cannot: neither the engine nor the results topic could take it."""
    waiting: list[tuple[_Path, Any]] = [((), parsed)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            for name, each in value.items():
                if not _is_text(name):
                    param = _told(path) or None
                    raise _invalid(param, f"a name in {param or 'the item'} holds half of a surrogate pair")
                waiting.append(((path, name), each))
        elif isinstance(value, list):
            # Numbers hold no text; a path for each of a million of them would cost memory for nothing.
            waiting += (((path, at), each) for at, each in enumerate(value) if isinstance(each, str | list | dict))
        elif isinstance(value, str) and not _is_text(value):
            param = _told(path)
            raise _invalid(param, f"{param} holds half of a surrogate pair (a cut emoji?), which is no text")


_Path = tuple[()] | tuple["_Path", str | int]  # (path of what it lies in, name or index): all share their beginnings


def _told(path: _Path) -> str:
    """The path as an error names it, cut where it is too long to be read."""
    parts: list[str | int] = []
    while path:
        path, part = path
        parts.append(part)
    found = ""
    for part in reversed(parts):
        if len(found) > NAME_SHOWN_MAX + len("body."):
            break
        found += f"[{part}]" if isinstance(part, int) else f".{part[:NAME_SHOWN_MAX]}" if found else part
    return _printable(found.removeprefix("body."))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    """A producer's name for a field, short enough for a header and in valid Unicode."""
    return name[:NAME_SHOWN_MAX].encode(errors="backslashreplace").decode()


# -- fields


def _refused(form: type[Line], parsed: dict[str, Any], error: ValidationError) -> DeadItemError:
    """All faults of the item, as one error; one per field, although pydantic has one per kind that it tried."""
    told: dict[str, _Fault] = {}
    for each in error.errors(include_url=False, include_context=False)[:FAULTS_READ_MAX]:
        fault = _fault(form, parsed, each["type"], each["loc"])
        told.setdefault(fault.param, fault)
    faults = [*told.values()]
    messages = [fault.message for fault in faults[:FAULTS_SHOWN_MAX]]
    if len(faults) > FAULTS_SHOWN_MAX:
        messages.append("and more")
    empty = all(fault.code == "" for fault in faults)
    reason = DeadReason.MISSING_PROMPT if empty else DeadReason.INVALID
    return DeadItemError(reason, "; ".join(messages), param=faults[0].param, code=faults[0].code or None)


def _fault(form: type[BaseModel], value: Any, kind: str, place: tuple[int | str, ...]) -> _Fault:
    """What is wrong with the field at `place`, which is found by walking down the models and the value together."""
    at, path, rule = form, "", None
    for depth, part in enumerate(place):
        if isinstance(part, int):
            path, value = f"{path}[{part}]", value[part]
            continue
        path = f"{path}.{part}" if path and path != "body" else part
        if part not in at.model_fields:
            return _unknown(at, part, path, depth)
        if part not in value:
            return _Fault(path, f"{path} is missing", "missing_required_parameter")
        rule, value = _rule(at.model_fields[part]), value[part]
        if not (isinstance(rule, Must) and rule.inside):
            break
        at = _inner(at.model_fields[part].annotation)
    if isinstance(rule, NotServed):
        return _Fault(path, f"{path} is not served: {rule.advice}", "unsupported_parameter")
    if path in _PROMPTS and value in ("", []):
        return _Fault(path, f"{path} is empty", "")
    must = rule.text if isinstance(rule, Must) and not path.endswith("]") else "an object"
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    rest = "" if isinstance(value, list) and value else f", not {shown(value)}"
    return _Fault(path, f"{path} must be {must}{rest}", code)


def _unknown(at: type[BaseModel], name: str, path: str, depth: int) -> _Fault:
    path, name = _printable(path), _printable(name)
    near = difflib.get_close_matches(name, at.model_fields, 1, NEAR)
    if near:
        hint = f"; did you mean {near[0]!r}?"
    elif depth == 0 and name in ItemParameters.model_fields:
        hint = "; it belongs into body"
    else:
        hint = ""
    return _Fault(path, f"unknown field {path!r}{hint}", "unknown_parameter")


def _rule(field: FieldInfo) -> Rule | None:
    """The rule of a field: beside its annotation, or inside it where the field is optional."""
    inside = (each for part in _parts(field.annotation) for each in getattr(part, "__metadata__", ()))
    return next((each for each in (*field.metadata, *inside) if isinstance(each, Must | NotServed)), None)


def _inner(annotation: Any) -> type[BaseModel]:
    """The model inside the annotation of a field whose errors have paths of their own."""
    return next(each for each in _parts(annotation) if isinstance(each, type) and issubclass(each, BaseModel))


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for each in get_args(annotation):
        yield from _parts(each)


def _invalid(param: str | None, message: str) -> DeadItemError:
    return DeadItemError(DeadReason.INVALID, message, param=param)
