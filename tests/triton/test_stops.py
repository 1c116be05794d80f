"""Stops share a stream, and none suffers from another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sidecar.errors import EngineError, MalformedAnswerError, StreamBrokenError
from sidecar.triton import stops
from sidecar.triton.client import EngineClient, stop_request
from tests.fakes.engine import FakeStream, until
from tests.fakes.triton import FakeTriton

MODEL = "tensorrt_llm"


@pytest_asyncio.fixture
async def client(triton: FakeTriton) -> AsyncIterator[EngineClient]:
    async with EngineClient(triton.target) as client:
        yield client


async def test_many_at_once_need_one_stream(triton: FakeTriton, client: EngineClient) -> None:
    await asyncio.gather(*(client.stop(MODEL, f"k{number}", 5.0) for number in range(64)))
    assert triton.streams == 1


async def test_one_that_is_refused_leaves_the_others_alone(triton: FakeTriton, client: EngineClient) -> None:
    triton.refused_stops = {"bad"}
    answers = await asyncio.gather(
        *(client.stop(MODEL, each, 5.0) for each in ("a", "bad", "b")), return_exceptions=True
    )
    assert [type(each) for each in answers] == [type(None), EngineError, type(None)]
    await client.stop(MODEL, "later", 5.0)
    assert triton.streams == 1


async def test_one_without_an_answer_makes_the_next_use_another_stream(
    triton: FakeTriton, client: EngineClient
) -> None:
    triton.mute_stops = {"mute", "slow"}
    slow = asyncio.create_task(client.stop(MODEL, "slow", 5.0))
    with pytest.raises(StreamBrokenError, match="DEADLINE_EXCEEDED"):
        await client.stop(MODEL, "mute", 0.05)
    await client.stop(MODEL, "k1", 5.0)
    assert triton.streams == 2
    assert not slow.done()
    slow.cancel()
    await asyncio.wait([slow])


async def test_a_stream_that_breaks_is_told_to_all_who_wait_and_replaced(
    client: EngineClient, triton: FakeTriton
) -> None:
    triton.mute_stops = {"a", "b"}
    waiting = [asyncio.create_task(client.stop(MODEL, each, 5.0)) for each in ("a", "b")]
    await client.stop(MODEL, "c", 5.0)  # written after them
    assert client._stops is not None
    await client._stops.close()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, StreamBrokenError) for each in found)
    await client.stop(MODEL, "d", 5.0)


async def test_no_stream_stays_open_without_work(
    triton: FakeTriton, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stops, "IDLE_S", 0.01)
    await client.stop(MODEL, "a", 5.0)
    async with asyncio.timeout(5.0):
        while client._stops is not None and client._stops.usable:  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0.01)
    await client.stop(MODEL, "b", 5.0)
    assert triton.streams == 2


async def test_an_answer_that_is_no_message_is_an_error_at_once() -> None:
    stream = FakeStream(asyncio.Queue(), ())
    line = stops.StopLine(stream)
    asking = asyncio.create_task(line.stop(stop_request(MODEL, "a"), 60.0))
    await until(lambda: stream.request is not None)
    stream.answers.put_nowait(None)  # what grpc.aio gives for bytes that it cannot parse
    with pytest.raises(MalformedAnswerError, match="no message"):
        await asking
    assert not line.usable
    await line.close()
