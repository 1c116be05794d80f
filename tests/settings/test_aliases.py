"""A model alias: the first rule that holds decides which model serves a request or an item."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from sidecar.core.errors import SettingsError
from sidecar.offline.item import DeadItemError, read_item
from sidecar.settings.aliases import Rule, check_aliases, routed
from sidecar.triton import wire
from tests.fakes.log import WordTokens
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, text_request
from tests.offline.test_item import RULES, record

RULES_OF_CHAT = (
    Rule(model="small", prompt_tokens_max=3, max_tokens_max=8),
    Rule(model="small", tenants=("labels", "tests")),
    Rule(model="small", headers={"x-tier": "economy"}),
    Rule(model="tensorrt_llm"),
)
ALIASES = {"chat": RULES_OF_CHAT}


@pytest.fixture
async def small() -> AsyncIterator[FakeTriton]:
    async with FakeTriton("small", "small_text") as fake:
        yield fake


@pytest.fixture
async def both(triton: FakeTriton, small: FakeTriton) -> AsyncIterator[Sidecar]:
    async with running_sidecar({"large-0": triton, "small-0": small}, aliases=ALIASES) as running:
        yield running


def to_chat(request: Any, **parameters: str) -> Any:
    request.model_name = "chat"
    for name, value in parameters.items():
        request.parameters[name.replace("_", "-")].string_param = value
    return request


@pytest.mark.parametrize("name", ["x-tier", "X-Tier"])
def test_a_rule_for_a_header_holds_however_its_name_is_written(name: str) -> None:
    rule = Rule(model="small", headers={name: "economy"})
    assert rule.holds(1, 1, "t", {"x-tier": "economy"}.get)  # as gRPC has metadata
    assert rule.holds(1, 1, "t", {name: "economy"}.get)
    assert not rule.holds(1, 1, "t", {"x-tier": "first"}.get)


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ((3, 8, "default", {}), "small"),
        ((4, 8, "default", {}), "tensorrt_llm"),
        ((3, 9, "default", {}), "tensorrt_llm"),
        ((900, 900, "tests", {}), "small"),
        ((900, 900, "default", {"x-tier": "economy"}), "small"),
        ((900, 900, "default", {"x-tier": "first"}), "tensorrt_llm"),
    ],
)
def test_the_first_rule_that_holds_decides(asked: tuple[int, int, str, dict[str, str]], model: str) -> None:
    prompt_tokens, max_tokens, tenant, headers = asked
    assert routed(RULES_OF_CHAT, prompt_tokens, max_tokens, tenant, headers.get) == model


async def test_a_short_request_goes_to_the_small_model_and_a_long_one_to_the_large(
    both: Sidecar, triton: FakeTriton, small: FakeTriton
) -> None:
    call = both.stream()
    await call.write(to_chat(ids_request("short", ids=(1, 2, 3))))
    request = await small.next()
    assert request.message.model_name == "small"
    request.tokens(7, final=True)
    assert (await call.read()).infer_response.id == "short"
    await call.write(to_chat(ids_request("long", ids=(1, 2, 3, 4))))
    request = await triton.next()
    assert request.message.model_name == "tensorrt_llm"
    request.tokens(7, final=True)
    assert (await call.read()).infer_response.id == "long"
    await call.done_writing()


async def test_a_text_goes_to_the_text_model_over_the_engines(both: Sidecar, small: FakeTriton) -> None:
    call = both.stream()
    await call.write(to_chat(text_request("mine", text="a long text, as " * 8), x_tenant="tests"))
    request = await small.next()
    assert request.message.model_name == "small_text"
    request.text("so be it", final=True)
    assert (await call.read()).infer_response.model_name == "small_text"
    await call.done_writing()


async def test_a_rule_may_read_the_metadata_of_the_call(both: Sidecar, small: FakeTriton) -> None:
    call = both.stream(metadata=(("x-tier", "economy"),))
    await call.write(to_chat(ids_request("mine", ids=tuple(range(1, 30)))))
    request = await small.next()
    request.tokens(7, final=True)
    assert wire.is_final((await call.read()).infer_response)
    await call.done_writing()


async def test_an_alias_has_the_configuration_of_its_last_model(both: Sidecar) -> None:
    ask = service_pb2.ModelConfigRequest
    answer = await both.unary("ModelConfig", ask(name="chat"), service_pb2.ModelConfigResponse)
    assert answer.config.name == "ensemble"


async def test_a_model_is_asked_about_where_it_is_served(both: Sidecar) -> None:
    ask = service_pb2.ModelConfigRequest
    answer = await both.unary("ModelConfig", ask(name="small_text"), service_pb2.ModelConfigResponse)
    assert answer.config.name == "small_text"
    with pytest.raises(grpc.aio.AioRpcError, match="unknown model: 'medium'"):
        await both.unary("ModelConfig", ask(name="medium"), service_pb2.ModelConfigResponse)


def test_an_item_is_routed_like_a_request() -> None:
    rules = type(RULES)(
        tokens_max=RULES.tokens_max,
        aliases=ALIASES,
        model_default="chat",
        item_bytes_max=10_000,
        max_tokens_default=8,
    )
    assert read_item(record({"id": "1", "prompt": "a b"}), rules, WordTokens()).model == "small"
    assert read_item(record({"id": "1", "prompt": "a b c"}), rules, WordTokens()).model == "tensorrt_llm"
    to_labels = record({"id": "1", "prompt": "a b c"}, x_tenant="labels")
    assert read_item(to_labels, rules, WordTokens()).model == "small"
    with pytest.raises(DeadItemError, match=r"no engine for model 'gpt'; known: \['chat', 'small', 'tensorrt_llm'\]"):
        read_item(record({"id": "1", "prompt": "a", "model": "gpt"}), rules, WordTokens())


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"small": (Rule(model="large"),)}, "small is the name of a model"),
        ({"chat": ()}, "the last rule of chat must set nothing but model"),
        ({"chat": (Rule(model="large", tenants=("a",)),)}, "the last rule of chat must set nothing but model"),
        ({"chat": (Rule(model="medium"),)}, r"chat: no engine serves medium; known: \['large', 'small'\]"),
    ],
)
def test_an_alias_that_leads_nowhere_is_refused(aliases: dict[str, tuple[Rule, ...]], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_aliases(aliases, {"small", "large"}, {"small", "large"})
