"""What one endpoint is: which Triton, and what it survives."""

from __future__ import annotations

import asyncio

import pytest
from grpc import StatusCode

from sidecar.errors import EngineError, MalformedAnswerError
from sidecar.triton.client import EngineClient, responses, stop_request
from sidecar.triton.errors import EndedEarlyError
from sidecar.triton.stops import StopLine
from tests.fakes.engine import FakeStream
from tests.fakes.triton import FakeTriton


@pytest.mark.parametrize(
    ("version", "found", "safe"),
    [
        ("2.71.0", (2, 71), True),
        ("2.68.0dev", (2, 68), True),
        ("3.0.0", (3, 0), True),
        ("2.51.0", (2, 51), False),
        ("", None, False),
        ("two", None, False),
    ],
)
async def test_a_stream_ends_with_a_status_only_where_the_server_survives_it(
    triton: FakeTriton, version: str, found: tuple[int, int] | None, safe: bool
) -> None:
    triton.version = version
    async with EngineClient(triton.target) as client:
        assert not client.ends_streams_safely
        await client.look_up_version(5.0)
    assert (client.version, client.ends_streams_safely) == (found, safe)


async def test_the_version_of_a_server_that_does_not_answer_is_unknown(triton: FakeTriton) -> None:
    async with EngineClient(triton.target) as client:
        await client.look_up_version(5.0)
        await triton.kill()
        await client.look_up_version(5.0)
    assert client.version is None


async def test_an_answer_that_is_no_message_is_the_engines_error() -> None:
    stream = FakeStream(asyncio.Queue(), ())
    stream.answers.put_nowait(None)  # what grpc.aio gives for bytes that it cannot parse
    with pytest.raises(MalformedAnswerError, match="no message"):
        await responses(stream, stop_request("tensorrt_llm", "a"))
    assert stream.cancelled.is_set()


async def test_a_stop_whose_refusal_was_lost_is_asked_again_until_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    patience: list[float] = []

    async def stop(_: StopLine, _request: object, _timeout_s: float, patience_s: float = 0.0) -> None:
        patience.append(patience_s)
        raise EndedEarlyError if len(patience) < 3 else EngineError("This is restricted", StatusCode.UNAVAILABLE)

    monkeypatch.setattr(StopLine, "stop", stop)
    async with EngineClient("127.0.0.1:1") as client:
        with pytest.raises(EngineError, match="restricted"):
            await client.stop("tensorrt_llm", "a", 1.0)
        assert patience == [0, 0.1, 0.2]
        patience[:] = [0] * 3  # another error than a lost one is not asked for again
        with pytest.raises(EngineError, match="restricted"):
            await client.stop("tensorrt_llm", "a", 1.0)
    assert len(patience) == 4
