"""A request through the HTTP port to a driver that does what the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from sidecar.core.events import RejectReason
from sidecar.core.request import Lane, Request
from sidecar.keys import Keyring
from sidecar.openai.completions import Completions
from sidecar.openai.server import OpenAiServer
from sidecar.settings.openai import OpenAiSettings
from sidecar.token_call import Generated, RequestDeadError, RequestRejectedError, TokenCall
from tests.fakes.engine import until
from tests.fakes.log import FakeDriver, WordTokens, generated
from tests.openai.test_api_request import CHAT_BODY, RULES

Run = Callable[[Request, TokenCall], Awaitable[Generated]]


class HttpDriver(FakeDriver):
    """A driver with a clock and ids."""

    now_s = 1.0

    def mint(self, prefix: str) -> str:
        return f"{prefix}{len(self.requests)}"


@dataclass(slots=True)
class Client:
    driver: HttpDriver
    http: aiohttp.ClientSession
    served: list[tuple[str, str, int]] = field(default_factory=list)

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.http.post(path, json=body) as response:
            return response.status, await response.json()

    async def events(self, body: Any) -> list[Any]:
        async with self.http.post("/v1/chat/completions", json={**body, "stream": True}) as response:
            lines = (await response.text()).split("\n\n")
        return [each if each == "data: [DONE]" else json.loads(each[6:]) for each in lines if each]


@asynccontextmanager
async def client(run: Run | None = None, keyring: Keyring | None = None, **settings: Any) -> AsyncIterator[Client]:
    driver = HttpDriver(run)
    found: list[tuple[str, str, int]] = []
    server = OpenAiServer(
        OpenAiSettings(listen="127.0.0.1:0", **settings),
        Completions(driver, RULES, WordTokens(), keyring=keyring, body_timeout_s=settings.get("body_timeout_s", 30.0)),
        RULES.models,
        served=lambda method, route, status, _seconds: found.append((method, route, status)),
    )
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http:
            yield Client(driver, http, found)
    finally:
        await server.close()


async def slowly(_request: Request, call: TokenCall) -> Generated:
    assert call.tell is not None
    for each in (7, 8):
        call.tell([each])
        await asyncio.sleep(0)
    return generated(7, 8, 2)


async def test_an_online_request_runs_whole_and_a_flex_one_in_slices() -> None:
    async with client() as found:
        for tier in ("default", "flex"):
            await found.post("/v1/chat/completions", {**CHAT_BODY, "service_tier": tier, "temperature": 0})
    seen = [(each.lane, each.resumable, each.splits_prompt) for each in found.driver.requests]
    assert seen == [(Lane.ONLINE, False, False), (Lane.OFFLINE, True, True)]
    assert len({each.id for each in found.driver.requests}) == 2


async def test_a_stream_shows_the_ids_as_they_come() -> None:
    async with client(slowly) as found:
        *chunks, done = await found.events(CHAT_BODY)
    text = "".join(each["choices"][0]["delta"].get("content", "") for each in chunks)
    assert (text, done) == ("7 8 2", "data: [DONE]")  # these tokens call the end id a word
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_failure_before_the_first_event_has_a_status() -> None:
    async def full(_request: Request, _call: TokenCall) -> Generated:
        raise RequestRejectedError(RejectReason.QUEUE_FULL, "full", 2.0)

    async with (
        client(full) as found,
        found.http.post("/v1/chat/completions", json={**CHAT_BODY, "stream": True}) as got,
    ):
        assert (got.status, got.headers["Retry-After"]) == (429, "2")


async def test_a_failure_after_the_first_event_is_an_event_and_no_end_follows() -> None:
    async def dies(_request: Request, call: TokenCall) -> Generated:
        assert call.tell is not None
        call.tell([7])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise RequestDeadError("UNAVAILABLE: gone", 1)

    async with client(dies) as found:
        *_, last = await found.events(CHAT_BODY)
    assert last["error"]["code"] == "engine_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_request_of_a_program_that_is_gone_is_cancelled(stream: bool) -> None:
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def for_ever(_request: Request, _call: TokenCall) -> Generated:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with client(for_ever) as found:
        asking = asyncio.create_task(found.post("/v1/chat/completions", {**CHAT_BODY, "stream": stream}))
        await running.wait()
        asking.cancel()
        await cancelled.wait()
        await until(lambda: bool(found.served))
    assert found.served == [("POST", "/v1/chat/completions", 499)]
