"""What a field may hold: the limits of each type, and what a message may show of a value."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, TypeAdapter, ValidationError

from sidecar.offline.item_fields import (
    INT32_MAX,
    SHOWN_CHARS_MAX,
    UINT64_MAX,
    Count,
    Harmless,
    Id,
    Ids,
    Name,
    NotServed,
    One,
    OutputTokens,
    Penalty,
    Prompt,
    Repetition,
    Seed,
    Share,
    Stop,
    Temperature,
    shown,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=4),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3),
    max_leaves=5,
)


def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True))


def taken(kind: Any, value: Any) -> bool:
    try:
        adapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Id, ["i", "i" * 512], ["", "i" * 513, 7, None, True]),
        (Name, ["m" * 256], ["", "m" * 257, 1]),
        (OutputTokens, [1, INT32_MAX, 5.0], [0, -1, INT32_MAX + 1, 1.5, True, "5"]),
        (Count, [0, INT32_MAX], [-1, INT32_MAX + 1, False]),
        (Seed, [0, UINT64_MAX], [-1, UINT64_MAX + 1, 0.5]),
        (One, [1, 1.0], [0, 2, True]),
        (Temperature, [0, 0.0, 1, 2.0], [-0.1, 2.1, float("nan"), float("inf"), True, "1"]),
        (Share, [0, 1, 0.5], [-0.001, 1.001, float("nan")]),
        (Penalty, [-2, 2], [-2.1, 2.1, float("-inf")]),
        (Repetition, [0.01, 1, 100], [0, -1, 0.0, 101]),
        (Ids, [[0], [INT32_MAX, 1.0]], [[], [-1], [INT32_MAX + 1], [True], [1.5], ["1"], "1", None, [[1]]]),
        (Prompt, ["p", [1]], ["", [], ["p"], [[1], [2]], 5, {}]),
        (Stop, ["s", "s" * 256, [], ["a", "b"], ["s"] * 16], ["", "s" * 257, ["s"] * 17, [""], [1], 5]),
    ],
)
def test_each_type_takes_what_lies_within_its_limits(kind: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not taken(kind, value)] == []
    assert [value for value in bad if taken(kind, value)] == []


@pytest.mark.parametrize("kind", [OutputTokens, Count, Seed, One])
@settings(max_examples=30)
@given(number=st.integers(-(2**70), 2**70))
def test_a_whole_number_is_one_however_the_producers_json_writes_it(kind: Any, number: int) -> None:
    assert not taken(kind, number % 2**50 + 0.5)
    if float(number) == number:
        assert taken(kind, float(number)) == taken(kind, number)
    if float(number) == number and taken(kind, number):
        assert adapter(kind).validate_python(float(number)) == number


@settings(max_examples=30, deadline=None)
@given(JSON, st.lists(JSON, max_size=3))
def test_a_field_that_is_not_served_takes_null_and_its_defaults_and_nothing_else(value: Any, defaults: Any) -> None:
    kind = Annotated[Any, NotServed("leave it out", tuple(defaults))]
    plain = [json.dumps(each) for each in defaults]
    if value is None or json.dumps(value) in plain:
        assert taken(kind, value)
    elif not isinstance(value, int | float | dict | list):  # of numbers 1 and 1.0 are one value
        assert not taken(kind, value)


@pytest.mark.parametrize(("default", "other"), [(False, 0), (0, False), (1, True), (True, 1), (0, 0.5), ("", None)])
def test_zero_is_not_false_and_one_is_not_true(default: Any, other: Any) -> None:
    kind = Annotated[Any, NotServed("leave it out", (default,))]
    assert taken(kind, default)
    assert taken(kind, other) == (other is None)


def test_a_number_that_is_the_default_may_be_written_with_a_fraction_of_zero() -> None:
    assert taken(Annotated[Any, NotServed("leave it out", (1,))], 1.0)


@given(JSON)
def test_a_harmless_field_takes_any_value(value: Any) -> None:
    assert taken(Annotated[Any, Harmless("it changes nothing")], value)


def test_the_schema_says_in_words_what_the_reader_checks() -> None:
    assert adapter(Seed).json_schema() == {
        "description": f"an integer in 0..{UINT64_MAX}",
        "maximum": UINT64_MAX,
        "minimum": 0,
        "type": "integer",
    }
    assert adapter(Annotated[Any, NotServed("leave it out", (0,))]).json_schema() == {
        "description": "not served: leave it out",
        "enum": [None, 0],
    }


@given(JSON)
def test_a_message_shows_numbers_and_of_anything_else_the_kind(value: Any) -> None:
    told = shown(value)
    assert len(told) <= SHOWN_CHARS_MAX + 20
    if isinstance(value, str | list | dict):
        assert told in ('""', "[]", "a text", "a list", "an object") or told.startswith("a text of ")
    elif value is None or isinstance(value, bool):
        assert told == json.dumps(value)
    else:
        assert float(told) == value


def test_a_long_text_is_shown_by_its_length() -> None:
    assert shown("s" * SHOWN_CHARS_MAX) == "a text"
    assert shown("s" * (SHOWN_CHARS_MAX + 1)) == f"a text of {SHOWN_CHARS_MAX + 1} characters"


def test_a_number_of_any_length_is_shown_in_few_characters() -> None:
    assert shown(10**4000) == "1" + "0" * (SHOWN_CHARS_MAX - 1)
