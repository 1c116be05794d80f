"""What a field of an item may hold. Each type here is both the reader's check and its part of the JSON Schema.

A field is served (`Must` says within which range), not served (`NotServed`: only a value that means the default is
taken, and the error says what to do instead) or without effect on the answer (`Harmless`: any value is taken).
The rules are compared by identity: `typing` keeps one annotation for all that are equal, and to Python 0 is False.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

INT32_MAX = (1 << 31) - 1  # the engine's tensors of token ids, and most of its parameters
UINT64_MAX = (1 << 64) - 1  # the engine's tensor `seed`
ID_CHARS_MAX = 512  # of custom_id: far longer than any path or URL in use, short enough for a log line
NAME_CHARS_MAX = 256  # of a model, a tenant, a job: they become labels of metrics
STOP_TEXTS_MAX = 16  # the OpenAI API takes 4
STOP_CHARS_MAX = 256  # of one stop text: so much of the output is looked through again at each token
SHOWN_CHARS_MAX = 40  # of a number in a message


@dataclass(frozen=True, eq=False)
class Must:
    """What a served field must be, as the rest of a sentence. `inside`: errors further in have a path of their own."""

    text: str
    inside: bool = False

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler(schema)
        return found if self.inside else {"description": self.text, **found}


@dataclass(frozen=True, eq=False)
class NotServed:
    """A field that the lane cannot honour: taken if it is null or one of `defaults`, which change nothing."""

    advice: str
    defaults: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        del schema, handler
        return {"description": f"not served: {self.advice}", "enum": [None, *self.defaults]}

    def _check(self, value: Any) -> None:
        if value is not None and not any(_is_same(value, each) for each in self.defaults):
            raise PydanticCustomError("not_served", "not served")


@dataclass(frozen=True, eq=False)
class Harmless:
    """A field that cannot change the answer: any value is taken, none is read."""

    why: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        del source, handler
        return core_schema.any_schema()

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        del schema, handler
        return {"description": f"let through, without effect: {self.why}"}


Rule = Must | NotServed | Harmless


def _is_same(value: Any, default: Any) -> bool:
    """Equal as JSON has it: 1 and 1.0 are, 0 and false are not."""
    if isinstance(value, bool) or isinstance(default, bool):
        return value is default
    return bool(value == default)


def _whole(value: Any) -> Any:
    """1.0 and 1e3 are integers in JSON Schema, and what many programs write for one; Python's JSON makes floats."""
    return int(value) if type(value) is float and value.is_integer() else value


def _ids(value: Any) -> tuple[int, ...]:
    """A list of token ids. Faster than a check by pydantic per element: prompts have tens of thousands of them."""
    if type(value) is not list:
        raise PydanticCustomError("ids_type", "no list")
    kinds = {*map(type, value)}
    if float in kinds:
        value = [*map(_whole, value)]
        kinds = {*map(type, value)}
    if kinds != {int} or min(value) < 0 or max(value) > INT32_MAX:
        raise PydanticCustomError("ids_range", "no token ids, or none")
    return tuple(value)


def _prompt(value: Any) -> str | tuple[int, ...]:
    if type(value) is not str:
        return _ids(value)
    if not value:
        raise PydanticCustomError("too_short", "empty")
    return value


@dataclass(frozen=True, eq=False)
class _Plain:
    """A check in Python with its JSON Schema beside it."""

    check: Any
    schema: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        del schema, handler
        return dict(self.schema)


WHOLE = BeforeValidator(_whole)
_ID = {"type": "integer", "minimum": 0, "maximum": INT32_MAX}
_IDS = {"type": "array", "minItems": 1, "items": _ID}
_TEXT_OR_IDS = {"anyOf": [{"type": "string", "minLength": 1}, _IDS]}

Id = Annotated[str, Field(min_length=1, max_length=ID_CHARS_MAX), Must(f"text of 1 to {ID_CHARS_MAX} characters")]
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX), Must(f"text of 1 to {NAME_CHARS_MAX} characters")]
Prompt = Annotated[
    str | tuple[int, ...],
    _Plain(_prompt, _TEXT_OR_IDS),
    Must(f"text, or a list of token ids in 0..{INT32_MAX}; one item is one prompt"),
]
Ids = Annotated[tuple[int, ...], _Plain(_ids, _IDS), Must(f"a list of token ids in 0..{INT32_MAX}")]
OutputTokens = Annotated[int, Field(ge=1, le=INT32_MAX), WHOLE, Must(f"an integer in 1..{INT32_MAX}")]
Count = Annotated[int, Field(ge=0, le=INT32_MAX), WHOLE, Must(f"an integer in 0..{INT32_MAX}")]
Seed = Annotated[int, Field(ge=0, le=UINT64_MAX), WHOLE, Must(f"an integer in 0..{UINT64_MAX}")]
One = Annotated[int, Field(ge=1, le=1), WHOLE, Must("1: one item is one sequence")]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), Must("a number in 0..2")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Must("a number in 0..1")]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), Must("a number in -2..2")]
Repetition = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False), Must("a number in 0.01..100")]
StopText = Annotated[str, Field(min_length=1, max_length=STOP_CHARS_MAX)]
Stop = Annotated[
    StopText | Annotated[list[StopText], Field(max_length=STOP_TEXTS_MAX)],
    Must(f"a text of 1 to {STOP_CHARS_MAX} characters, or a list of at most {STOP_TEXTS_MAX} of them"),
]


def shown(value: Any) -> str:
    """The value as a message may have it: numbers and booleans as they are, of anything else the kind."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value!r:.{SHOWN_CHARS_MAX}}"
        case str():
            return f"a text of {len(value)} characters" if len(value) > SHOWN_CHARS_MAX else "a text" if value else '""'
        case list() | tuple():
            return "a list" if value else "[]"
        case _:
            return "an object"
