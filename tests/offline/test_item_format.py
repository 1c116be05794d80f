"""Every field that a producer may state is decided by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest
from openai.types import chat as openai_chat
from pydantic import BaseModel

from sidecar.offline.item_fields import Harmless, Must, NotServed
from sidecar.offline.item_format import ChatBody, ChatLine, CompletionBody, CompletionLine, Message, ShortItem, TextPart


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


def test_the_newer_name_of_the_bound_on_the_output_wins() -> None:
    assert CompletionBody(prompt="p").output_tokens_max is None
    assert CompletionBody(prompt="p", max_tokens=5).output_tokens_max == 5
    assert ChatBody(max_completion_tokens=7).output_tokens_max == 7
    assert ShortItem(id="1", max_tokens=5, max_completion_tokens=7).output_tokens_max == 7


@pytest.mark.parametrize(("stop", "texts"), [(None, ()), ("a", ("a",)), ([], ()), (["b", "a"], ("b", "a"))])
def test_stop_is_one_text_or_several_in_their_order(stop: Any, texts: tuple[str, ...]) -> None:
    assert CompletionBody(prompt="p", stop=stop).stop_texts == texts


@pytest.mark.parametrize("form", [CompletionLine, ChatLine, ShortItem, CompletionBody, ChatBody, Message, TextPart])
def test_no_form_takes_a_field_that_it_does_not_name_and_none_can_be_changed(form: type[BaseModel]) -> None:
    assert form.model_config["extra"] == "forbid"
    assert form.model_config["strict"]
    assert form.model_config["frozen"]


@pytest.mark.parametrize("form", [CompletionLine, ChatLine, ShortItem, CompletionBody, ChatBody, Message, TextPart])
def test_every_field_has_one_rule_or_is_a_form_of_its_own(form: type[BaseModel]) -> None:
    for name, field in form.model_fields.items():
        rules = [each for each in field.metadata if isinstance(each, Must | NotServed | Harmless)]
        optional = not field.is_required()
        assert len(rules) == 1 or (not rules and optional), name  # an optional one has its rule within the union
        if isinstance(next(iter(rules), None), NotServed | Harmless):
            assert field.default is None, name


def test_a_field_that_another_form_has_under_another_name_says_which() -> None:
    for form, name, wanted in (
        (CompletionLine, "id", "custom_id"),
        (ShortItem, "custom_id", "here it is id"),
        (CompletionBody, "messages", "here it is prompt"),
        (ChatBody, "prompt", "here it is messages"),
    ):
        [rule] = [each for each in form.model_fields[name].metadata if isinstance(each, NotServed)]
        assert wanted in rule.advice
