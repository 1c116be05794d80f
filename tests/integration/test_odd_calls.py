"""What no good program sends, and what a dead or hung Triton leaves: answered as Triton itself answers, or at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from dev.server import SidecarProcess, serving
from dev.triton import Triton, TritonSettings
from sidecar.frontend.passthrough import PASSED_THROUGH
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, token_request
from tests.integration.conftest import PARAMETERS, SLOTS, sidecar_settings, status_when

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]
GARBAGE = b"\xff\xff\xff"
UNKNOWN_MODEL = bytes(wire.InferRequest(model_name="nobody", id="n").SerializeToString())
REAL_STATUS = (("triton_grpc_error", "true"),)
Outcome = tuple[grpc.StatusCode, str]


async def unary(address: str, method: str, raw: bytes) -> Outcome:
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/{method}")
        answer = call(raw, timeout=10)
        return await answer.code(), await answer.details()


async def stream(address: str, *messages: bytes, metadata: Any = ()) -> tuple[list[str], grpc.StatusCode, str]:
    """Ids of the final responses and texts of errors, and how the stream ended."""
    async with grpc.aio.insecure_channel(address) as channel:
        open_stream: Any = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer", response_deserializer=wire.StreamResponse.FromString
        )
        call = open_stream(metadata=metadata, timeout=20)
        found = []
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages:
                await call.write(message)
            await call.done_writing()
            while (answer := await call.read()) is not grpc.aio.EOF:
                if answer.error_message or wire.is_final(answer.infer_response):
                    found.append(answer.error_message or answer.infer_response.id)
        return found, await call.code(), await call.details() or ""


def generation(request_id: str) -> bytes:
    request = token_request("tensorrt_llm", (5, 6, 7), 3, request_id)
    wire.add_tensor(request, "streaming", "BOOL", (True,), (1, 1))
    return bytes(request.SerializeToString())


def preprocessing(request_id: str, text: bytes) -> bytes:
    """A request of a model that is not scheduled; it fails for a text that is not UTF-8."""
    request = wire.InferRequest(model_name="preprocessing", id=request_id)
    wire.add_tensor(request, "QUERY", "BYTES", (text,), (1, 1))
    wire.add_tensor(request, "REQUEST_OUTPUT_LEN", "INT32", (4,), (1, 1))
    return bytes(request.SerializeToString())


@pytest.mark.parametrize("raw", [GARBAGE, b"", service_pb2.ModelReadyRequest(name="a\nb").SerializeToString()])
@pytest.mark.parametrize("method", [*PASSED_THROUGH, "ModelInfer"])
async def test_odd_bytes_are_answered_as_triton_answers_them(
    triton: Triton, sidecar: SidecarProcess, method: str, raw: bytes
) -> None:
    assert await unary(sidecar.listen, method, raw) == await unary(triton.target, method, raw)


async def test_what_comes_before_an_unreadable_message_is_served_and_the_end_is_no_success(
    triton: Triton, sidecar: SidecarProcess
) -> None:
    messages = (generation("a"), GARBAGE, generation("b"))
    assert await stream(triton.target, *messages) == (["a"], grpc.StatusCode.OK, "")
    assert await stream(sidecar.listen, *messages) == (["a"], grpc.StatusCode.INTERNAL, "Unable to parse request")


async def test_the_error_of_a_model_that_is_not_scheduled_is_tritons(triton: Triton, sidecar: SidecarProcess) -> None:
    bad, good = preprocessing("bad", b"\xff\xff"), preprocessing("good", b"hello")
    for messages in ((bad,), (bad, good), (UNKNOWN_MODEL,)):
        assert await stream(sidecar.listen, *messages) == await stream(triton.target, *messages)


async def test_a_model_that_fails_ends_the_stream_if_the_caller_asked_for_that_and_this_triton_survives_it(
    triton: Triton, sidecar: SidecarProcess
) -> None:
    restarts = triton.restarts
    for _ in range(10):  # Triton 2.51 itself dies of the second to fourth
        found, code, details = await stream(sidecar.listen, preprocessing("bad", b"\xff\xff"), metadata=REAL_STATUS)
        assert (found, code) == ([], grpc.StatusCode.INVALID_ARGUMENT)
        assert details.startswith("tensor 'QUERY' is not UTF-8")
    (text,), code, _ = await stream(sidecar.listen, UNKNOWN_MODEL, metadata=REAL_STATUS)
    assert (text, code) == ("Request for unknown model: 'nobody' is not found", grpc.StatusCode.OK)
    assert triton.restarts == restarts


async def test_a_hung_and_a_dead_triton_are_unavailable_at_once(tmp_path: Path) -> None:
    server = Triton(tmp_path / "triton", TritonSettings(slots=SLOTS, parameters=PARAMETERS))
    server.directory.mkdir()
    await server.start()
    pid = server.pid
    try:
        async with serving(tmp_path, sidecar_settings(server)) as sidecar:
            assert (await stream(sidecar.listen, generation("up")))[1] is grpc.StatusCode.OK
            os.kill(pid, signal.SIGSTOP)
            await status_when(sidecar, lambda status: bool(status["state"] == "engine down"))
            await _all_unavailable(sidecar)
            os.kill(pid, signal.SIGKILL)
            await _all_unavailable(sidecar)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        await server.stop()


async def _all_unavailable(sidecar: SidecarProcess) -> None:
    async with asyncio.timeout(5):
        errors, code, _ = await stream(sidecar.listen, *(generation(str(number)) for number in range(20)))
        assert (len(errors), code) == (20, grpc.StatusCode.OK)
        found = await asyncio.gather(*(unary(sidecar.listen, "ServerMetadata", b"") for _ in range(20)))
        assert {code for code, _ in found} == {grpc.StatusCode.UNAVAILABLE}
        assert (await stream(sidecar.listen, preprocessing("p", b"x")))[1] is grpc.StatusCode.UNAVAILABLE
