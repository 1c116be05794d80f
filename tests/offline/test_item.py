"""Bytes become an item or a dead letter with a reason, and what was generated becomes a result by the schema."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion
from tokenizers import Tokenizer, models

from sidecar.core.request import EndReason
from sidecar.offline.item import (
    DeadItemError,
    DeadReason,
    ItemRules,
    Record,
    dead_headers,
    read_item,
    result_headers,
    result_value,
)
from sidecar.settings.aliases import Rule
from sidecar.token_call import Sampling
from sidecar.triton.tokenizer import Tokens
from tests.fakes.log import WordTokens, generated
from tests.triton.model_directories import llama_like, mistral_like

SCHEMAS = Path(__file__).parent.parent.parent / "kafka"
ITEM = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "item.schema.json").read_text()))
RESULT = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "result.schema.json").read_text()))
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
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
    (b"{", DeadReason.NOT_JSON, "at character 2"),
    (b"[" * 9_000, DeadReason.NOT_JSON, "nested too deeply"),
    (b'"' + b"x" * 10_000 + b'"', DeadReason.TOO_LARGE, "10002 bytes exceed item_bytes_max 10000"),
    ([1], DeadReason.INVALID, "must be a JSON object, not a list"),
    ({"prompt": "p"}, DeadReason.INVALID, "id is missing"),
    ({"id": 7, "prompt": "p"}, DeadReason.INVALID, "id must be text of 1 to 512 characters, not 7"),
    ({"id": "1"}, DeadReason.MISSING_PROMPT, "neither prompt nor input_ids is stated"),
    ({"id": "1", "prompt": ""}, DeadReason.MISSING_PROMPT, "prompt is empty"),
    ({"id": "1", "input_ids": []}, DeadReason.MISSING_PROMPT, "input_ids is empty"),
    (
        {"id": "1", "prompt": 5},
        DeadReason.INVALID,
        "prompt must be text, or a list of token ids in 0..2147483647; one item is one prompt, not 5",
    ),
    ({"id": "1", "prompt": ["a"]}, DeadReason.INVALID, "list of token ids"),
    ({"id": "1", "input_ids": [True]}, DeadReason.INVALID, "list of token ids"),
    (
        {"id": "1", "prompt": "p", "max_tokens": 0},
        DeadReason.INVALID,
        "max_tokens must be an integer in 1..2147483647, not 0",
    ),
    (
        {"id": "1", "prompt": "p", "max_tokens": "9"},
        DeadReason.INVALID,
        "max_tokens must be an integer in 1..2147483647, not a text",
    ),
    (
        {"id": "1", "prompt": "p", "seed": 1 << 64},
        DeadReason.INVALID,
        "seed must be an integer in 0..18446744073709551615",
    ),
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
    (batch({"input": "x"}, "/v1/embeddings"), DeadReason.UNSUPPORTED_URL, "url '/v1/embeddings' is not served"),
    (batch({"messages": []}, "/v1/chat/completions"), DeadReason.MISSING_PROMPT, "messages is empty"),
    (batch({"messages": [{"content": "x"}]}, "/v1/chat/completions"), DeadReason.INVALID, "role is missing"),
    (
        batch({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "/v1/chat/completions"),
        DeadReason.INVALID,
        "messages[0].content must be text",
    ),
    (batch({"prompt": "p"}) | {"method": "GET"}, DeadReason.INVALID, 'method must be "POST"'),
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


@settings(max_examples=50)
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
        record(batch(body), x_tenant="lab", x_job="j-1", x_deadline="2026-12-01T00:00:00+01:00", traceparent=PARENT),
        RULES,
        TOKENS,
    )
    assert (item.custom_id, item.chat, item.tenant, item.job) == ("c-1", False, "lab", "j-1")
    assert item.deadline == datetime(2026, 11, 30, 23, tzinfo=UTC)
    assert (item.call.prompt_ids, item.call.output_tokens_max) == ((10, 11, 12, 3), 9)
    assert item.call.sampling == Sampling(temperature=0.5, top_k=4, top_p=1.0, seed=7)
    assert (item.call.stop_words, item.call.stop_texts, item.call.decode) == ((), ("STOP",), TOKENS.decode)
    assert (item.call.end_id, item.call.traceparent, item.call.resumable) == (2, PARENT, False)


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
    stopped = generated(7, 8, 5, 6, reason=EndReason.STOP_WORD, attempts=2, resumed=3)
    line = json.loads(result_value(source, item, replace(stopped, text="7 8"), TOKENS))
    assert (line["custom_id"], line["error"]) == ("c-1", None)
    [choice] = line["response"]["body"]["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("7 8", "stop")
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
    assert result_headers(source, "g") == (
        ("x-job", b"j"),
        ("color", b"red"),
        ("x-source-topic", b"inference.requests"),
        ("x-source-partition", b"3"),
        ("x-source-offset", b"17"),
        ("x-source-group", b"g"),
    )


def test_a_dead_letter_keeps_all_headers_and_adds_why_and_from_where() -> None:
    error = DeadItemError(DeadReason.FAILED, "the engine said no", attempts=5)
    headers = dict(dead_headers(record(b"x", x_job="j"), "g", error, "run", 123))
    assert headers == {
        "x-job": b"j",
        "dlq.error.class": b"failed",
        "dlq.error.message": b"the engine said no",
        "dlq.error.openai": (
            b'{"code": "server_error", "message": "the engine said no", "param": null, "type": "server_error"}'
        ),
        "dlq.error.stage": b"run",
        "dlq.original.topic": b"inference.requests",
        "dlq.original.partition": b"3",
        "dlq.original.offset": b"17",
        "dlq.original.group": b"g",
        "dlq.original.timestamp": b"1700000000000",
        "dlq.attempts": b"5",
        "dlq.first_seen": b"123",
    }


def test_a_message_that_is_not_valid_unicode_still_becomes_a_header() -> None:
    headers = dict(dead_headers(record(b"x"), "g", DeadItemError(DeadReason.FAILED, "cut \ud800"), "run", 1))
    assert headers["dlq.error.message"] == rb"cut \ud800"
    assert json.loads(headers["dlq.error.openai"])["message"] == "cut \ud800"


def test_a_dead_letter_names_the_field_as_the_api_does() -> None:
    with pytest.raises(DeadItemError) as caught:
        read_item(record(batch({"prompt": "p", "seed": -1})), RULES, TOKENS)
    headers = dict(dead_headers(record(b"x"), "g", caught.value, "read", 1))
    assert json.loads(headers["dlq.error.openai"]) == {
        "code": "invalid_value",
        "message": "seed must be an integer in 0..18446744073709551615, not -1",
        "param": "seed",
        "type": "invalid_request_error",
    }


def test_the_openai_package_reads_every_result_and_misses_the_time_if_it_is_left_out() -> None:
    for value, chat in ((READABLE[3], False), (READABLE[0], False), (READABLE[4], True)):
        source = record(value)
        item = read_item(source, RULES, TOKENS)
        body = json.loads(result_value(source, item, generated(), TOKENS, 1_700_000_000.9))["response"]["body"]
        form: Any = ChatCompletion if chat else Completion
        read = form.model_validate(body, strict=True)
        assert (read.created, read.model) == (1_700_000_000, "tensorrt_llm")
        assert (read.choices[0].finish_reason, read.choices[0].logprobs) == ("stop", None)
        if chat:
            assert (read.choices[0].message.content, read.choices[0].message.refusal) == ("7 8 2", None)
        for name in ("created", "model", "id", "choices", "object"):
            with pytest.raises(ValueError, match=name):
                form.model_validate({key: each for key, each in body.items() if key != name})


def test_a_result_has_the_model_that_was_asked_for_and_the_engines_beside_it() -> None:
    rules = replace(RULES, aliases={"gpt-4o-mini": (Rule(model="tensorrt_llm"),)})
    source = record(batch({"prompt": "p", "model": "gpt-4o-mini"}))
    line = json.loads(result_value(source, read_item(source, rules, TOKENS), generated(), TOKENS))
    assert (line["response"]["body"]["model"], line["sidecar"]["model"]) == ("gpt-4o-mini", "tensorrt_llm")


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised() -> None:
    class Counting(WordTokens):
        token_bytes_max = 4
        encoded = 0

        def encode_prompt(self, text: str) -> tuple[int, ...]:
            self.encoded += 1
            return super().encode_prompt(text)

    tokens = Counting()
    messages = [{"role": "user", "content": "é" * 50}]
    for value in ({"id": "1", "prompt": "a" * 81}, batch({"messages": messages}, "/v1/chat/completions")):
        with pytest.raises(DeadItemError, match="a token has at most 4") as caught:
            read_item(record(value, x_model="small"), RULES, tokens)
        assert caught.value.reason is DeadReason.TOO_LONG
    assert tokens.encoded == 0
    read_item(record({"id": "1", "prompt": "a" * 80, "max_tokens": 5}, x_model="small"), RULES, tokens)
    assert tokens.encoded == 1


def test_token_ids_are_within_the_vocabulary_where_it_is_known() -> None:
    class Small(WordTokens):
        vocabulary = 10

    assert read_item(record({"id": "1", "input_ids": [9]}), RULES, Small()).call.prompt_ids == (9,)
    with pytest.raises(DeadItemError, match=r"input_ids holds the id 10; the vocabulary has 0\.\.9"):
        read_item(record({"id": "1", "input_ids": [9, 10]}), RULES, Small())


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x_tenant": "t" * 257}, "header x-tenant must be 1 to 256 printable characters"),
        ({"x_job": "a\nb"}, "header x-job must be 1 to 256 printable characters"),
        ({"x_model": "m" * 300}, "header x-model must be 1 to 256 printable characters"),
        ({"x_deadline": "2026-12-01T24:00:00Z"}, "x-deadline must be a time by RFC 3339"),
        ({"x_deadline": "2026-12-01T06:00:61Z"}, "x-deadline must be a time by RFC 3339"),
        ({"x_deadline": "9999-12-31T23:59:60Z"}, "x-deadline must be a time by RFC 3339"),
        ({"x_deadline": "2026-12-01"}, "x-deadline must be a time by RFC 3339"),
        ({"x_deadline": "2026-W49-2T06:00:00Z"}, "x-deadline must be a time by RFC 3339"),
        ({"x_deadline": "2026-06-31T06:00:00Z"}, "x-deadline must be a time by RFC 3339"),
        ({"x_deadline": "1764568800"}, "x-deadline must be a time by RFC 3339"),
        ({"x_deadline": "9" * 9999}, "x-deadline must be a time by RFC 3339"),
    ],
)
def test_a_header_that_means_nothing_is_refused_by_name(headers: dict[str, str], message: str) -> None:
    with pytest.raises(DeadItemError, match=message) as caught:
        read_item(record(READABLE[0], **headers), RULES, TOKENS)
    assert caught.value.reason is DeadReason.INVALID
    assert len(str(caught.value)) < 200


def test_a_header_that_is_no_text_is_refused_by_name() -> None:
    with pytest.raises(DeadItemError, match="header x-tenant is not UTF-8"):
        read_item(replace(record(READABLE[0]), headers=(("x-tenant", b"\xff"),)), RULES, TOKENS)


@pytest.mark.parametrize(
    "text",
    [
        *("2026-12-01T00:00:00Z", "2026-12-01 01:00:00.5+01:00", "2026-11-30t19:00:00.25-05:00"),
        *("2026-11-30T23:59:60Z", "2026-12-01t00:59:60.25+01:00"),  # a leap second
    ],
)
def test_a_deadline_is_read_in_every_form_of_the_standard(text: str) -> None:
    deadline = read_item(record(READABLE[0], x_deadline=text), RULES, TOKENS).deadline
    assert deadline is not None
    assert deadline.astimezone(UTC).replace(microsecond=0) == datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        *("", "00-a-b-1", "x" * 9999, PARENT.replace("0af", "000"), "ff" + PARENT[2:], "é\n"),
        *(PARENT + "\n", "01" + PARENT[2:] + "-é", "01" + PARENT[2:] + "-\x00"),
    ],
)
def test_a_trace_parent_that_is_malformed_is_as_none(text: str) -> None:
    broken = text if text != PARENT.replace("0af", "000") else "00-" + "0" * 32 + PARENT[35:]
    assert read_item(record(READABLE[0], traceparent=broken), RULES, TOKENS).call.traceparent is None


def test_headers_without_a_value_are_as_none() -> None:
    names = ("x-tenant", "x-job", "x-model", "x-deadline", "traceparent")
    for nothing in (None, b""):
        headers: Any = tuple((name, nothing) for name in names)
        item = read_item(replace(record(READABLE[0]), headers=headers), RULES, TOKENS)
        assert (item.tenant, item.job, item.deadline) == ("default", None, None)


def test_the_case_of_a_headers_name_does_not_matter_and_the_last_one_counts() -> None:
    headers = (("x-job", b"first"), ("X-Tenant", b"acme"), ("X-JOB", b"last"), ("X-Deadline", b"2026-12-01T00:00:00Z"))
    item = read_item(replace(record(READABLE[0]), headers=headers), RULES, TOKENS)
    assert (item.tenant, item.job) == ("acme", "last")
    assert item.deadline == datetime(2026, 12, 1, tzinfo=UTC)


def test_more_tokens_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(DeadItemError, match="min_tokens 300 exceeds max_tokens 256"):
        read_item(record({"id": "1", "prompt": "p", "min_tokens": 300}), RULES, TOKENS)


@pytest.fixture
def llama(tmp_path: Path) -> Tokens:
    return Tokens.load(llama_like(tmp_path))


def test_a_chat_is_written_by_the_models_template_and_ends_by_any_of_its_end_ids(llama: Tokens) -> None:
    value = {"id": "q", "messages": [{"role": "user", "content": "hi <|eot_id|>"}], "max_tokens": 20}
    ITEM.validate(value)
    item = read_item(record(value), RULES, llama)
    assert item.chat
    assert item.call.prompt_ids == llama.chat_ids([("user", "hi <|eot_id|>")], 2048)
    assert item.call.prompt_ids.count(261) == 1
    assert (item.call.end_id, item.call.further_end_ids) == (257, (260, 261))

    words = llama.encode_words("Paris")
    for end in ((), (257,), (260,), (261,)):  # the engine keeps the first for itself, and sends the others
        line = json.loads(result_value(record(value), item, generated(*words, *end), llama))
        body = line["response"]["body"]
        assert body["choices"][0]["message"]["content"] == "Paris"
        assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("stop", len(words))
        assert line["sidecar"]["cost"]["tokens"] == body["usage"]["total_tokens"]


def test_an_output_cut_by_its_length_counts_whole_whatever_its_last_id(llama: Tokens) -> None:
    value = {"id": "q", "prompt": "a", "max_tokens": 2}
    item = read_item(record(value), RULES, llama)
    cut = generated(66, 67, reason=EndReason.LENGTH)
    body = json.loads(result_value(record(value), item, cut, llama))["response"]["body"]
    assert body["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        ({"id": "1", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}, DeadReason.INVALID, "both stated"),
        ({"id": "1", "prompt": "a", "min_tokens": 3}, DeadReason.INVALID, "min_tokens is not served by a model with"),
    ],
)
def test_what_a_model_of_several_end_ids_cannot_do_is_refused(
    value: dict[str, Any], reason: DeadReason, message: str, llama: Tokens
) -> None:
    with pytest.raises(DeadItemError, match=message) as raised:
        read_item(record(value), RULES, llama)
    assert raised.value.reason is reason


def test_a_chat_that_the_template_refuses_is_a_dead_letter_by_name(tmp_path: Path) -> None:
    tokens = Tokens.load(mistral_like(tmp_path))
    value = batch({"messages": [{"role": "assistant", "content": "secret"}]}, "/v1/chat/completions")
    with pytest.raises(DeadItemError, match="messages: the chat template refuses these messages: roles must") as raised:
        read_item(record(value), RULES, tokens)
    assert (raised.value.reason, raised.value.param) == (DeadReason.CHAT_TEMPLATE, "messages")


def test_a_text_without_a_token_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer: Any = Tokenizer(models.BPE())  # it knows added words alone, and drops the rest
    tokenizer.add_special_tokens(["<e>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = Tokens.load(tmp_path / "tokenizer.json", (0,))
    with pytest.raises(DeadItemError, match="prompt: the tokenizer makes no token of this text"):
        read_item(record({"id": "a", "prompt": "how far"}), RULES, tokens)
