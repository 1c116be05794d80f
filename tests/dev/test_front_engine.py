"""The engine that does as it is told: each way to be wrong is that way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from dev.front_abuse import request
from dev.front_engine import MODE, MODES, FrontEngine, handlers
from sidecar.triton import wire
from sidecar.triton.client import EngineClient, stop_request


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineClient]:
    monkeypatch.setattr("dev.front_engine.TOKEN_S", 0.0)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers(FrontEngine()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with EngineClient(f"127.0.0.1:{port}") as made:
        yield made
    await server.stop(None)


async def answers(client: EngineClient, mode: str, count: int = 3) -> list[tuple[str, int, bool, bool]]:
    """Of each response: its id, its tokens, whether it is final, and whether it is an error."""
    await client.raw_unary(MODE)(mode.encode())
    call: Any = client.open()
    await call.write(request("r", output=3))
    found: list[tuple[str, int, bool, bool]] = []
    while len(found) < count and (answer := await call.read()) is not grpc.aio.EOF:
        inner = answer.infer_response
        ids = wire.output_values(inner, "output_ids") or ()
        found.append((inner.id, len(ids), wire.is_final(inner), bool(answer.error_message)))
    call.cancel()
    return found


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        ("", [("r", 1, False, False), ("r", 1, False, False), ("r", 1, True, False)]),
        ("unknown_ids", [("nobody", 1, False, False), ("nobody", 1, False, False), ("nobody", 1, True, False)]),
        ("final_first", [("r", 0, True, False), ("r", 1, False, False), ("r", 1, False, False)]),
        ("never_final", [("r", 1, False, False), ("r", 1, False, False), ("r", 1, False, False)]),
    ],
)
async def test_it_answers_as_it_was_told(
    client: EngineClient, mode: str, found: list[tuple[str, int, bool, bool]]
) -> None:
    assert mode in MODES
    assert await answers(client, mode) == found


async def test_it_answers_by_an_error_when_told_and_a_stop_ends_a_request(client: EngineClient) -> None:
    assert await answers(client, "errors", 1) == [("r", 0, True, True)]
    await client.raw_unary(MODE)(b"")
    call: Any = client.open()
    await call.write(request("long", output=1_000_000))
    await call.read()
    stop: Any = client.open()
    await stop.write(stop_request("tensorrt_llm", "long"))
    while not wire.is_final((await call.read()).infer_response):
        pass
    stop.cancel()
    call.cancel()
