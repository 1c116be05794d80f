"""The HTTP server under callers who open much and send or read little: everybody else is still answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from dev.broker import free_ports
from sidecar.core.errors import SettingsError
from sidecar.settings.limits import LimitSettings
from sidecar.telemetry import connections
from sidecar.telemetry.connections import HttpServer

HALF = b"GET / HTTP/1.1\r\nHost: x\r\nX-Half: "
SECRET = "the words of a prompt"
LARGE = 16 << 20  # beyond what the kernel takes for a reader who stands still


class Site:
    """An HTTP server with a short, a large, a slow and a faulty page."""

    def __init__(self, **limits: float) -> None:
        app = web.Application()
        pages = {"/": self._short, "/large": self._large, "/slow": self._slow, "/faulty": self._faulty}
        app.add_routes([web.get(path, page) for path, page in pages.items()])
        self.server = HttpServer(app, LimitSettings(**limits))  # type: ignore[arg-type]
        self.port = free_ports(1)[0]
        self.asked_slow = asyncio.Event()
        self.may_answer = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Site:
        await self.server.start(f"127.0.0.1:{self.port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.may_answer.set()
        await self.server.cleanup()
        for writer in self._writers:
            writer.close()

    async def get(self, path: str = "/") -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
            return answer.status, await answer.text()

    async def sent(self, raw: bytes) -> asyncio.StreamReader:
        """A connection of its own on which so much was sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 10)
        self._writers.append(writer)
        writer.write(raw)
        return reader

    async def _short(self, _request: web.Request) -> web.Response:
        return web.Response(text="short")

    async def _large(self, _request: web.Request) -> web.Response:
        return web.Response(body=bytes(LARGE))

    async def _slow(self, _request: web.Request) -> web.Response:
        self.asked_slow.set()
        await self.may_answer.wait()
        return web.Response(text="slow")

    async def _faulty(self, _request: web.Request) -> web.Response:
        raise KeyError(SECRET)


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(connections, "SHUTDOWN_S", 0.05)  # who reads nothing is not waited for
    async with Site(http_connections_max=8) as running:
        yield running


async def ended(reader: asyncio.StreamReader) -> None:
    """The server has closed this connection."""
    async with asyncio.timeout(5):
        try:
            while await reader.read(1 << 20):
                pass
        except ConnectionResetError:
            pass


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        HALF,
        b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx",
    ],
    ids=["silent", "half a request", "reads nothing", "half a body"],
)
async def test_whoever_holds_on_to_many_connections_keeps_nobody_else_out(site: Site, raw: bytes) -> None:
    readers = [await site.sent(raw) for _ in range(16)]
    assert await site.get() == (200, "short")
    for reader in readers[:8]:  # the oldest had to go
        await ended(reader)


async def test_a_request_that_is_being_answered_is_not_closed_for_another_one(site: Site) -> None:
    answer = asyncio.ensure_future(site.get("/slow"))
    await site.asked_slow.wait()
    for _ in range(50):
        await site.sent(HALF)
    assert await site.get() == (200, "short")
    site.may_answer.set()
    assert await answer == (200, "slow")


@pytest.mark.parametrize("raw", [b"", HALF, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_connection_that_neither_sends_nor_reads_is_closed_in_time(raw: bytes) -> None:
    async with Site(http_idle_s=0.05) as site:
        reader = await site.sent(raw)
        if b"large" in raw:  # read the head only; the rest stands still until the server gives up
            await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(5):
                while site.server.open:  # noqa: ASYNC110 - a state, not an event
                    await asyncio.sleep(0)
        await ended(reader)


async def test_a_connection_serves_one_request(site: Site) -> None:
    reader = await site.sent(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    answer = (await reader.read(10_000)).decode()
    assert (answer.count("200 OK"), answer.count("Connection: close")) == (1, 1)
    await ended(reader)


@pytest.mark.parametrize(
    "raw", [b"\x00\xff" * 99 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"]
)
async def test_what_is_no_http_is_refused_and_not_logged(
    site: Site, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    reader = await site.sent(raw)
    assert (await reader.readline()).startswith(b"HTTP/1.0 400")
    await ended(reader)
    assert caplog.records == []


async def test_a_fault_of_a_page_is_logged_once_and_quotes_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        status, text = await site.get("/faulty")
        assert status == 500
        assert SECRET not in text
    (record,) = caplog.records
    assert "an HTTP request failed: KeyError at test_connections.py" in record.getMessage()
    assert SECRET not in caplog.text


async def test_a_page_that_is_not_there_is_not_found(site: Site) -> None:
    assert (await site.get("/nowhere"))[0] == 404


async def test_a_port_that_is_taken_is_named(site: Site) -> None:
    with pytest.raises(SettingsError, match=f"http: cannot bind 127.0.0.1:{site.port}"):
        await HttpServer(web.Application(), LimitSettings()).start(f"127.0.0.1:{site.port}")
