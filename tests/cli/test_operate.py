"""What `status` shows, and what it says of whoever else answers there."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli import operate
from sidecar.cli.main import main
from sidecar.cli.operate import StatusError


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"version": 1}', b"<html>", b"\xff", b"[" * 100_000])
def test_whoever_else_listens_there_is_no_sidecar(capsys: pytest.CaptureFixture[str], body: bytes) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        assert main(["status", "--http", f"127.0.0.1:{server.server_port}"], {}, COMMANDS) == 1
        answering.join()
    told = capsys.readouterr().err
    assert "is no status of a sidecar" in told
    assert told.count("\n") == 1


@asynccontextmanager
async def answering(text: bytes) -> AsyncIterator[str]:
    """An HTTP server that answers everything with this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + text)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_an_answer_without_end_is_given_up_at_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operate, "STATUS_BYTES_MAX", 1000)
    async with answering(b'{"x": "' + b"x" * 100_000) as address:
        with pytest.raises(StatusError, match="is no status of a sidecar"):
            await operate._fetch(address)


async def test_a_status_of_another_version_is_told_from_no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(b'{"state": "serving"}') as address:
        with pytest.raises(StatusError, match="is no status of a sidecar of this version"):
            await operate._fetch(address)
        monkeypatch.setattr(operate, "status_text", lambda document: f"it is {document['state']}")
        assert await operate._fetch(address) == "it is serving"


async def test_where_nobody_listens_the_address_is_named() -> None:
    with pytest.raises(StatusError, match=r"no sidecar answers on http://127\.0\.0\.1:1: "):
        await operate._fetch("127.0.0.1:1")


def test_to_watch_goes_on_while_the_sidecar_starts_again_and_ends_with_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: Iterator[str | StatusError] = iter(["one", StatusError("no sidecar answers"), "two"])

    async def fetch(_: str) -> str:
        if (found := next(seen, None)) is None:
            raise KeyboardInterrupt
        if isinstance(found, StatusError):
            raise found
        return found

    monkeypatch.setattr(operate, "_fetch", fetch)
    monkeypatch.setattr(operate, "WATCH_S", 0.0)
    assert main(["status", "--watch"], {}, [operate.register_status]) == 0
    assert capsys.readouterr().out.splitlines() == ["one", "no sidecar answers", "two"]
