"""A body is read by the reader of items; what the API has beside an item is read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from sidecar.core.request import Lane
from sidecar.offline.dead_letters import DeadItemError
from sidecar.offline.item import ItemRules
from sidecar.offline.item_format import CHAT, COMPLETIONS
from sidecar.openai.api_request import ApiRequest, read_asked
from tests.fakes.log import WordTokens

RULES = ItemRules(tokens_max={"m": 64}, model_default="m", item_bytes_max=2000, max_tokens_default=16)
CHAT_BODY = {"messages": [{"role": "user", "content": "a question"}]}


def read(
    body: dict[str, Any], url: str = CHAT, usual: Lane = Lane.ONLINE, headers: Mapping[str, str] = {}
) -> ApiRequest:
    return read_asked(json.dumps(body).encode(), url, headers, "chatcmpl-1", RULES, WordTokens(), usual)


def test_a_chat_is_online_and_whole_unless_it_says_otherwise() -> None:
    asked = read(CHAT_BODY)
    assert (asked.lane, asked.stream, asked.usage, asked.item.chat) == (Lane.ONLINE, False, False, True)
    assert asked.item.call.output_tokens_max == RULES.max_tokens_default


def test_flex_is_the_offline_lane_and_other_tiers_are_refused() -> None:
    assert read({**CHAT_BODY, "service_tier": "flex"}).lane is Lane.OFFLINE
    assert read({**CHAT_BODY, "service_tier": "auto"}).lane is Lane.ONLINE
    assert read(CHAT_BODY, usual=Lane.OFFLINE).lane is Lane.OFFLINE
    assert read({**CHAT_BODY, "service_tier": "default"}, usual=Lane.OFFLINE).lane is Lane.ONLINE
    wrong: list[Any] = ["priority", 1, [], {}]
    for tier in wrong:
        with pytest.raises(DeadItemError, match="service_tier must be"):
            read({**CHAT_BODY, "service_tier": tier})


def test_the_usage_of_a_stream_comes_where_it_is_wanted() -> None:
    body = {**CHAT_BODY, "stream": True}
    assert not read({**body, "stream_options": {}}).usage
    assert read({**body, "stream_options": {"include_usage": True}}).usage


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"temprature": 1}, "temprature"),
        ({"max_tokens": 1e400}, None),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_name(more: dict[str, Any], param: str | None) -> None:
    with pytest.raises(DeadItemError) as refused:
        read({**CHAT_BODY, **more})
    assert refused.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"n":1,"n":1}', b"x" * 2001])
def test_what_is_no_object_within_the_bound_is_refused(body: bytes) -> None:
    with pytest.raises(DeadItemError):
        read_asked(body, COMPLETIONS, {}, "cmpl-1", RULES, WordTokens(), Lane.ONLINE)


def test_the_tenant_is_the_headers_and_a_job_is_for_batches() -> None:
    asked = read(CHAT_BODY, headers={"X-Tenant": "reports", "x-job": "weekly"})
    assert (asked.item.tenant, asked.item.job) == ("reports", None)


def test_two_requests_without_a_seed_draw_differently() -> None:
    one, other = (
        read_asked(
            json.dumps(CHAT_BODY).encode(), CHAT, {}, id, RULES, WordTokens(), Lane.ONLINE
        ).item.call.sampling.seed
        for id in ("chatcmpl-1", "chatcmpl-2")
    )
    assert one != other
