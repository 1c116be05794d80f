"""Every field that a producer may state is decided by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest
from openai.types import chat as openai_chat

from sidecar.offline.item_fields import Harmless, NotServed
from sidecar.offline.item_format import ChatBody, CompletionBody, Message, TextPart


@pytest.mark.parametrize(
    ("params", "body"),
    [
        (chat_params.CompletionCreateParamsBase, ChatBody),
        (chat_params.CompletionCreateParamsNonStreaming, ChatBody),
        (completion_params.CompletionCreateParamsBase, CompletionBody),
        (completion_params.CompletionCreateParamsStreaming, CompletionBody),
        (openai_chat.ChatCompletionUserMessageParam, Message),
        (openai_chat.ChatCompletionAssistantMessageParam, Message),
        (openai_chat.ChatCompletionToolMessageParam, Message),
        (openai_chat.ChatCompletionContentPartTextParam, TextPart),
    ],
)
def test_every_field_of_the_openai_package_is_decided_by_name(params: Any, body: Any) -> None:
    assert params.__annotations__.keys() <= body.model_fields.keys()


def test_every_field_that_is_not_served_or_has_no_effect_is_in_the_docs() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/kafka.md").read_text()
    for form in (ChatBody, CompletionBody, Message):
        for name, field in form.model_fields.items():
            if any(isinstance(each, NotServed | Harmless) for each in field.metadata):
                assert f"`{name}`" in text, f"{name} is not in docs/kafka.md"
            else:
                assert not any(isinstance(each, Harmless) for each in field.metadata)
