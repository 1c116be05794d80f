"""Routes, bounds and refusals of the HTTP port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from sidecar.core.errors import SettingsError
from sidecar.core.request import Request
from sidecar.openai.completions import Completions
from sidecar.openai.server import OpenAiServer
from sidecar.settings.openai import OpenAiSettings
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import WordTokens, generated
from tests.openai.test_api_request import CHAT_BODY, RULES
from tests.openai.test_completions import HttpDriver, client


async def test_what_is_not_served_is_refused_in_the_apis_form() -> None:
    async with client() as found:
        for path, status, text in (
            ("/v1/embeddings", 404, "POST /v1/embeddings is not served"),
            ("/v1/models", 405, "/v1/models is not served by POST"),
        ):
            got, document = await found.post(path, {})
            assert (got, document["error"]["message"]) == (status, text)


async def test_a_body_beyond_the_bound_is_refused() -> None:
    async with client(body_bytes_max=100) as found:
        status, document = await found.post("/v1/chat/completions", {"messages": "x" * 200})
    assert (status, "openai.body_bytes_max" in document["error"]["message"]) == (413, True)


async def test_one_request_too_many_is_refused_and_the_next_one_is_not() -> None:
    running, go = asyncio.Event(), asyncio.Event()

    async def when_told(_request: Request, _call: TokenCall) -> Generated:
        running.set()
        await go.wait()
        return generated()

    async with client(when_told, requests_max=1) as found:
        first = asyncio.create_task(found.post("/v1/chat/completions", CHAT_BODY))
        await running.wait()
        status, document = await found.post("/v1/chat/completions", CHAT_BODY)
        assert (status, document["error"]["code"]) == (429, "rate_limit_exceeded")
        go.set()
        assert (await first)[0] == 200
        assert (await found.post("/v1/chat/completions", CHAT_BODY))[0] == 200


async def test_bytes_beyond_what_may_be_held_are_refused_until_others_are_given_back() -> None:
    running, go = asyncio.Event(), asyncio.Event()

    async def when_told(_request: Request, _call: TokenCall) -> Generated:
        running.set()
        await go.wait()
        return generated()

    async with client(when_told, body_bytes_max=100, held_bytes_max=100) as found:
        first = asyncio.create_task(found.post("/v1/chat/completions", CHAT_BODY))
        await running.wait()
        status, document = await asyncio.wait_for(found.post("/v1/chat/completions", CHAT_BODY), 10)
        assert (status, "openai.held_bytes_max" in document["error"]["message"]) == (429, True)
        go.set()
        assert (await first)[0] == 200
        assert (await found.post("/v1/chat/completions", CHAT_BODY))[0] == 200


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with client(body_timeout_s=0.01) as found, found.http.post("/v1/completions", data=never()) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (408, "request_timeout")


async def test_models_are_listed_and_an_unknown_one_is_not_found() -> None:
    async with client() as found:
        async with found.http.get("/v1/models") as response:
            assert [each["id"] for each in (await response.json())["data"]] == RULES.models
        async with found.http.get("/v1/models/gpt-9") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


async def test_a_defect_of_ours_is_told_by_its_kind_alone() -> None:
    async def fails(_request: Request, _call: TokenCall) -> Generated:
        raise ValueError("a secret")

    async with client(fails) as found:
        status, document = await found.post("/v1/chat/completions", CHAT_BODY)
    assert (status, document["error"]["message"]) == (500, "the sidecar failed: ValueError")


async def test_a_port_that_is_taken_is_said_by_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = OpenAiSettings(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        server = OpenAiServer(settings, Completions(HttpDriver(), RULES, WordTokens()), RULES.models)
        with pytest.raises(SettingsError, match="openai: cannot bind"):
            await server.start()
