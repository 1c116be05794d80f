"""Answers that the types of the `openai` package read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sidecar.core.request import EndReason
from sidecar.openai.answers import ApiAnswer
from sidecar.openai.api_request import ApiRequest
from tests.fakes.log import generated
from tests.openai.test_api_request import CHAT_BODY, read

USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def plain() -> ApiRequest:
    return read({"prompt": "a b"}, "/v1/completions")


def events(data: bytes) -> dict[str, Any]:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    return dict(json.loads(data[6:]))


def test_a_whole_chat_and_a_whole_completion() -> None:
    chat = ChatCompletion.model_validate(ApiAnswer(read(CHAT_BODY)).whole("text", generated(7, 8, 2)), strict=True)
    assert chat.choices[0].message.content == "text"
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 2  # the end id is none
    text = Completion.model_validate(ApiAnswer(plain()).whole("text", generated()), strict=True)
    assert text.choices[0].text == "text"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [(EndReason.LENGTH, "length"), (EndReason.END_ID, "stop"), (EndReason.STOP_WORD, "stop")],
)
def test_why_it_ended(reason: EndReason, finish: str) -> None:
    found = ApiAnswer(read(CHAT_BODY)).whole("", generated(reason=reason))
    assert found["choices"][0]["finish_reason"] == finish


def test_the_first_chunk_of_a_chat_names_the_role_and_the_last_ones_the_end_and_the_usage() -> None:
    answer = ApiAnswer(read({**CHAT_BODY, **USAGE}))
    raw = [answer.chunk("a"), answer.chunk("é"), answer.chunk("", generated()), answer.usage_chunk(generated())]
    chunks = [ChatCompletionChunk.model_validate(events(each)) for each in raw]
    assert [each.choices[0].delta.role for each in chunks[:3]] == ["assistant", None, None]
    assert [each.choices[0].delta.content for each in chunks[:3]] == ["a", "é", None]
    assert [each.choices[0].finish_reason for each in chunks[:3]] == [None, None, "stop"]
    assert (chunks[3].choices, chunks[0].usage) == ([], None)
    assert chunks[3].usage is not None


def test_a_tier_is_told() -> None:
    assert ApiAnswer(read({**CHAT_BODY, "service_tier": "flex"})).whole("", generated())["service_tier"] == "flex"
    assert ApiAnswer(read(CHAT_BODY)).whole("", generated())["service_tier"] == "default"
