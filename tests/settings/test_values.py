"""Values that YAML has and that are no numbers: each is named with its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.settings.values import NUMBER_MAX, mistakes


@dataclass
class Made:
    """What a loader made of the document."""

    slots: Any = 1
    name: Any = "n"
    on: Any = True
    each: Any = field(default_factory=list)
    by_name: Any = field(default_factory=dict)


def found(document: dict[str, Any], **made: Any) -> list[str]:
    return [*mistakes(document, Made(**made))]


@pytest.mark.parametrize(
    ("document", "made", "told"),
    [
        ({"slots": True}, 1, "slots: must be a number, not true"),
        ({"slots": False}, 0, "slots: must be a number, not false"),
        ({"slots": float("inf")}, float("inf"), f"slots: must be a number of at most {NUMBER_MAX}, not inf"),
        ({"slots": float("-inf")}, float("-inf"), f"slots: must be a number of at most {NUMBER_MAX}, not -inf"),
        ({"slots": float("nan")}, float("nan"), f"slots: must be a number of at most {NUMBER_MAX}, not nan"),
        ({"slots": 2**53 + 1}, 2**53 + 1, f"slots: must be a number of at most {NUMBER_MAX}, not {2**53 + 1}"),
        ({"slots": -1e300}, -1e300, f"slots: must be a number of at most {NUMBER_MAX}, not -1e+300"),
    ],
)
def test_what_is_no_number_is_named_with_what_it_is(document: dict[str, Any], made: Any, told: str) -> None:
    assert found(document, slots=made) == [told]


@given(st.integers(-NUMBER_MAX, NUMBER_MAX) | st.floats(-NUMBER_MAX, NUMBER_MAX))
def test_every_number_that_a_float_can_count_is_one(number: float) -> None:
    assert found({"slots": number}, slots=number) == []


def test_a_boolean_is_one_where_one_is_wanted() -> None:
    assert found({"on": True}, on=True) == []
    assert found({"name": True}, name="True") == []  # the loader's to judge


def test_a_place_is_told_through_lists_and_names() -> None:
    document = {
        "each": [{"slots": 1}, {"slots": True}],
        "by_name": {"lab": {"slots": float("inf")}, "x": {"slots": 2}},
    }
    made = {
        "each": [Made(), Made()],
        "by_name": {"lab": Made(slots=float("inf")), "x": Made(slots=2)},
    }
    assert found(document, **made) == [
        "each.1.slots: must be a number, not true",
        f"by_name.lab.slots: must be a number of at most {NUMBER_MAX}, not inf",
    ]


def test_each_mistake_has_a_line_of_its_own() -> None:
    assert len(found({"slots": True, "each": [False]}, each=[0])) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3),
    max_leaves=6,
)


def numbers(document: Any) -> list[float]:
    """All numbers of the document, booleans aside."""
    if isinstance(document, bool | str) or document is None:
        return []
    if isinstance(document, dict | list):
        inside = document.values() if isinstance(document, dict) else document
        return [number for each in inside for number in numbers(each)]
    return [document]


@given(JSON)
def test_of_what_is_taken_as_it_stands_the_numbers_that_nobody_can_count_are_named(document: Any) -> None:
    uncountable = [each for each in numbers(document) if not abs(each) <= NUMBER_MAX]
    assert len([*mistakes(document, document)]) == len(uncountable)
