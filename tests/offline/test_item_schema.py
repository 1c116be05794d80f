"""kafka/item.schema.json is made from the reader, and reads well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.offline.item_schema import LINE_CHARS, as_file, item_schema

ROOT = Path(__file__).parent.parent.parent


def test_the_checked_in_schema_is_the_generated_one() -> None:
    made = "python -m sidecar.offline.item_schema > kafka/item.schema.json"
    assert (ROOT / "kafka/item.schema.json").read_text() == as_file(item_schema()) + "\n", f"run {made}"
    jsonschema.Draft202012Validator.check_schema(item_schema())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=30), each, max_size=4),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=30), JSON, max_size=6))
def test_a_schema_written_in_lines_is_the_same_schema(schema: dict[str, Any]) -> None:
    assert json.loads(as_file(json.loads(json.dumps(schema)))) == schema


def test_what_fits_on_a_line_stays_on_it() -> None:
    assert as_file({"a": [1, 2], "b": {"c": None}}) == '{"a": [1, 2], "b": {"c": null}}'
    long = {"a": "x" * LINE_CHARS, "b": 1}
    assert as_file({"out": long}).splitlines() == [
        "{",
        '  "out": {',
        f'    "a": "{"x" * LINE_CHARS}",',
        '    "b": 1',
        "  }",
        "}",
    ]


@pytest.mark.parametrize(
    ("stated", "valid"),
    [
        ({}, False),
        ({"prompt": "p"}, True),
        ({"prompt": "p", "input_ids": None}, True),
        ({"prompt": None, "input_ids": [1]}, True),
        ({"prompt": "p", "input_ids": [1]}, False),
        ({"prompt": None}, False),
        ({"messages": [{"role": "user", "content": "c"}], "prompt": None}, True),
        ({"messages": [{"role": "user", "content": "c"}], "prompt": "p"}, False),
    ],
)
def test_an_item_has_one_prompt_and_null_states_none(stated: dict[str, Any], valid: bool) -> None:
    assert jsonschema.Draft202012Validator(item_schema()).is_valid({"id": "1", **stated}) is valid


def test_no_title_repeats_a_name_and_no_default_says_null() -> None:
    def dicts(at: Any) -> Iterator[dict[str, Any]]:
        if isinstance(at, dict):
            yield at
        for each in at.values() if isinstance(at, dict) else at if isinstance(at, list) else ():
            yield from dicts(each)

    definitions = item_schema()["$defs"]
    assert [
        each for each in dicts(definitions) if "title" in each or ("default" in each and each["default"] is None)
    ] == []


def test_every_definition_is_used_and_each_that_is_used_is_there() -> None:
    schema = item_schema()
    used = set(re.findall(r"#/\$defs/(\w+)", json.dumps(schema)))
    assert used == schema["$defs"].keys()
