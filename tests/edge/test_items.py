"""Bytes become an item or a dead letter with a reason, and what was generated becomes a result by the schema."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.work import EndReason
from sidecar.edge.calls import Sampling
from sidecar.edge.items import (
    DeadItemError,
    DeadReason,
    ItemRules,
    Record,
    dead_headers,
    read_item,
    result_headers,
    result_value,
)
from tests.edge.fake_log import WordTokens, generated

SCHEMAS = Path(__file__).parent.parent.parent / "kafka"
ITEM = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "item.schema.json").read_text()))
RESULT = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "result.schema.json").read_text()))
RULES = ItemRules(
    tokens_max={"tensorrt_llm": 2048, "small": 20},
    model_default="tensorrt_llm",
    item_bytes_max=10_000,
    max_tokens_default=256,
)
TOKENS = WordTokens()


def record(value: Any, **headers: str) -> Record:
    return Record(
        topic="inference.requests",
        partition=3,
        offset=17,
        timestamp_ms=1_700_000_000_000,
        key=b"key",
        value=value if isinstance(value, bytes | None) else json.dumps(value).encode(),
        headers=tuple((name.replace("_", "-"), text.encode()) for name, text in headers.items()),
    )


def batch(body: dict[str, Any], url: str = "/v1/completions") -> dict[str, Any]:
    return {"custom_id": "c-1", "method": "POST", "url": url, "body": body}


READABLE = [
    {"id": "1", "prompt": "a b c"},
    {"id": "1", "input_ids": [10, 11, 3], "max_tokens": 5},
    {"id": "1", "prompt": [10, 11, 3], "stop": "STOP", "temperature": 0, "seed": 7},
    batch({"prompt": "a b", "max_tokens": 5, "stop": ["STOP", "x"], "top_p": 0.9, "n": 1}),
    batch({"messages": [{"role": "user", "content": "hi"}]}, "/v1/chat/completions"),
    batch({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "/v1/chat/completions"),
]
UNREADABLE = [
    (b"", DeadReason.MISSING_PROMPT, "the value is empty"),
    (None, DeadReason.MISSING_PROMPT, "the value is empty"),
    (b"\x00\x00\x00\x00\x2a{}", DeadReason.FRAMED, "schema id 42"),
    (b'{"id": "\xff"}', DeadReason.NOT_UTF8, "byte 8"),
    (b"{", DeadReason.NOT_JSON, "line 1"),
    (b"[" * 9_000, DeadReason.NOT_JSON, "recursion"),
    (b'"' + b"x" * 10_000 + b'"', DeadReason.TOO_LARGE, "10002 bytes exceed item_bytes_max 10000"),
    ([1], DeadReason.INVALID, "must be a JSON object, not list"),
    ({"prompt": "p"}, DeadReason.INVALID, "id is missing"),
    ({"id": 7, "prompt": "p"}, DeadReason.INVALID, "id must be str, not int"),
    ({"id": "1"}, DeadReason.MISSING_PROMPT, "neither prompt nor"),
    ({"id": "1", "prompt": ""}, DeadReason.MISSING_PROMPT, "the prompt is empty"),
    ({"id": "1", "input_ids": []}, DeadReason.MISSING_PROMPT, "the prompt is empty"),
    ({"id": "1", "prompt": 5}, DeadReason.INVALID, "prompt must be text or token ids, not int"),
    ({"id": "1", "prompt": ["a"]}, DeadReason.INVALID, "list of token ids"),
    ({"id": "1", "input_ids": [True]}, DeadReason.INVALID, "list of token ids"),
    ({"id": "1", "prompt": "p", "max_tokens": 0}, DeadReason.INVALID, "max_tokens must be >= 1, not 0"),
    (
        {"id": "1", "prompt": "p", "max_tokens": "9"},
        DeadReason.INVALID,
        "max_tokens must be an integer of 64 bits",
    ),
    ({"id": "1", "prompt": "p", "seed": 1 << 64}, DeadReason.INVALID, "seed must be an integer of 64 bits"),
    (b'{"id": "1", "prompt": "p", "temperature": NaN}', DeadReason.NOT_JSON, "NaN is not JSON"),
    ({"id": "1", "prompt": "p", "temperature": "hot"}, DeadReason.INVALID, "temperature must be a number"),
    ({"id": "1", "prompt": "p", "n": 2}, DeadReason.INVALID, "one item is one sequence"),
    ({"id": "1", "prompt": "p", "stop": [""]}, DeadReason.INVALID, "stop must be"),
    (
        {"id": "1", "prompt": "p", "max_tokens": 2047},
        DeadReason.TOO_LONG,
        "prompt of 2 tokens + max_tokens 2047 exceed",
    ),
    ({"id": "1", "prompt": "p", "model": "gpt"}, DeadReason.UNKNOWN_MODEL, "no engine for model 'gpt'"),
    (batch({"input": "x"}, "/v1/embeddings"), DeadReason.UNSUPPORTED_URL, "/v1/embeddings is not served"),
    (batch({"messages": []}, "/v1/chat/completions"), DeadReason.MISSING_PROMPT, "neither"),
    (batch({"messages": [{"content": "x"}]}, "/v1/chat/completions"), DeadReason.INVALID, "role is missing"),
    (
        batch({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "/v1/chat/completions"),
        DeadReason.INVALID,
        "parts of type text",
    ),
    (batch({"prompt": "p"}) | {"method": "GET"}, DeadReason.INVALID, "method must be POST, not 'GET'"),
    ({"url": "/v1/completions", "body": {"prompt": "p"}}, DeadReason.INVALID, "custom_id is missing"),
]


@pytest.mark.parametrize("value", READABLE)
def test_what_the_schema_allows_is_read(value: dict[str, Any]) -> None:
    ITEM.validate(value)
    assert read_item(record(value), RULES, TOKENS).model == "tensorrt_llm"


@pytest.mark.parametrize(("value", "reason", "message"), UNREADABLE)
def test_what_cannot_be_read_has_a_reason(value: Any, reason: DeadReason, message: str) -> None:
    with pytest.raises(DeadItemError, match=re.escape(message)) as caught:
        read_item(record(value), RULES, TOKENS)
    assert caught.value.reason is reason


@pytest.mark.parametrize("value", [value for value, reason, _ in UNREADABLE if reason is DeadReason.INVALID])
def test_what_is_invalid_breaks_the_schema_too(value: Any) -> None:
    assert not ITEM.is_valid(value)


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), lambda each: st.lists(each)).map(repr).map(str.encode)
)
def test_no_bytes_at_all_raise_anything_but_a_dead_letter(value: bytes) -> None:
    with pytest.raises(DeadItemError):
        read_item(record(value), RULES, TOKENS)


def test_a_batch_line_is_read_whole() -> None:
    body = {"prompt": "a b c", "max_tokens": 9, "stop": ["STOP"], "temperature": 0.5, "top_k": 4, "seed": 7}
    item = read_item(
        record(
            batch(body), x_tenant="lab", x_job="j-1", x_deadline="2026-12-01T00:00:00+01:00", traceparent="00-a-b-1"
        ),
        RULES,
        TOKENS,
    )
    assert (item.custom_id, item.chat, item.tenant, item.job) == ("c-1", False, "lab", "j-1")
    assert item.deadline == datetime(2026, 11, 30, 23, tzinfo=UTC)
    assert (item.call.prompt_ids, item.call.output_tokens_max) == ((10, 11, 12, 3), 9)
    assert item.call.sampling == Sampling(temperature=0.5, top_k=4, seed=7)
    assert (item.call.stop_words, item.call.end_id, item.call.traceparent) == (((5, 6),), 2, "00-a-b-1")


def test_the_model_of_the_header_wins_over_that_of_the_body() -> None:
    value = {"id": "1", "prompt": "p", "model": "tensorrt_llm", "max_tokens": 5}
    assert read_item(record(value, x_model="small"), RULES, TOKENS).model == "small"


def test_equal_beginnings_have_equal_prefix_keys() -> None:
    def key(ids: list[int]) -> str:
        return read_item(record({"id": "1", "input_ids": ids}), RULES, TOKENS).prefix_key

    head = list(range(100, 164))
    assert key([*head, 1]) == key([*head, 2]) != key([1, *head])


@pytest.mark.parametrize("text", ["tomorrow", "2026-12-01T00:00:00"])
def test_a_deadline_without_a_meaning_is_a_dead_letter(text: str) -> None:
    with pytest.raises(DeadItemError, match="x-deadline"):
        read_item(record({"id": "1", "prompt": "p"}, x_deadline=text), RULES, TOKENS)


@pytest.mark.parametrize("value", READABLE)
def test_a_result_keeps_the_schema(value: dict[str, Any]) -> None:
    source = record(value)
    item = read_item(source, RULES, TOKENS)
    RESULT.validate(json.loads(result_value(source, item, generated(), TOKENS)))


def test_a_result_says_what_was_generated_how_it_ended_and_what_it_took() -> None:
    source = record(batch({"prompt": "a b c", "stop": "STOP"}), x_tenant="lab")
    item = read_item(source, RULES, TOKENS)
    line = json.loads(
        result_value(source, item, generated(7, 8, 5, 6, reason=EndReason.STOP_WORD, attempts=2, resumed=3), TOKENS)
    )
    assert (line["custom_id"], line["error"]) == ("c-1", None)
    [choice] = line["response"]["body"]["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("7 8", "stop")  # without the stop word, as the API has it
    assert line["response"]["body"]["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    own = line["sidecar"]
    assert (own["ended_by"], own["attempts"], own["resumed"], own["tenant"]) == ("stop_word", 2, 3, "lab")


@pytest.mark.parametrize(
    ("reason", "finish"), [(EndReason.END_ID, "stop"), (EndReason.STOP_WORD, "stop"), (EndReason.LENGTH, "length")]
)
def test_the_finish_reason_is_that_of_the_api(reason: EndReason, finish: str) -> None:
    source = record(READABLE[0])
    line = json.loads(result_value(source, read_item(source, RULES, TOKENS), generated(reason=reason), TOKENS))
    assert line["response"]["body"]["choices"][0]["finish_reason"] == finish


def test_a_result_keeps_the_items_headers_and_says_where_it_came_from() -> None:
    source = record(READABLE[0], x_job="j", x_source_offset="99", color="red")
    assert result_headers(source) == (
        ("x-job", b"j"),
        ("color", b"red"),
        ("x-source-topic", b"inference.requests"),
        ("x-source-partition", b"3"),
        ("x-source-offset", b"17"),
    )


def test_a_dead_letter_keeps_all_headers_and_adds_why_and_from_where() -> None:
    error = DeadItemError(DeadReason.FAILED, "the engine said no", attempts=5)
    headers = dict(dead_headers(record(b"x", x_job="j"), error, "run", 123))
    assert headers == {
        "x-job": b"j",
        "dlq.error.class": b"failed",
        "dlq.error.message": b"the engine said no",
        "dlq.error.stage": b"run",
        "dlq.original.topic": b"inference.requests",
        "dlq.original.partition": b"3",
        "dlq.original.offset": b"17",
        "dlq.original.timestamp": b"1700000000000",
        "dlq.attempts": b"5",
        "dlq.first_seen": b"123",
    }


def test_a_message_that_is_not_valid_unicode_still_becomes_a_header() -> None:
    with pytest.raises(DeadItemError) as caught:
        read_item(record(b'{"custom_id": "1", "url": "/\\ud800", "body": {}}'), RULES, TOKENS)
    headers = dict(dead_headers(record(b"x"), caught.value, "read", 1))
    assert headers["dlq.error.message"].startswith(rb"/\ud800 is not served")
