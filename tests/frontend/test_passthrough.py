"""What is not scheduled, through a whole sidecar: status, deadline and cancellation are Triton's and the caller's."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from sidecar.frontend import passthrough
from sidecar.triton import wire
from sidecar.triton.client import SERVICE
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_of, ids_request, read_all

REAL_STATUS = (("triton_grpc_error", "true"),)


async def outcome(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ended: its status and details."""
    return await call.code(), await call.details() or ""


def of(model: str, request_id: str = "r") -> Any:
    return wire.InferRequest(model_name=model, id=request_id)


def raw_stream(sidecar: Sidecar) -> Any:
    return sidecar.channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer", response_deserializer=wire.StreamResponse.FromString
    )()


async def test_a_cancelled_call_is_cancelled_in_triton(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.unary("ModelInfer", of("slow"), wire.InferResponse)
    async with asyncio.timeout(5):
        await triton.slow_begun.wait()
        call.cancel()
        await triton.slow_cancelled.wait()


async def test_while_draining_what_runs_goes_on_and_what_comes_is_refused(sidecar: Sidecar, triton: FakeTriton) -> None:
    running = sidecar.unary("ModelInfer", of("slow"), wire.InferResponse)
    async with asyncio.timeout(5):
        await triton.slow_begun.wait()
    sidecar.passthrough.readiness.drain()
    late = sidecar.unary("ModelInfer", of("resnet"), wire.InferResponse)
    assert await outcome(late) == (grpc.StatusCode.UNAVAILABLE, "this sidecar is shutting down")
    assert (running.done(), sidecar.passthrough.running) == (False, 1)
    running.cancel()
    await sidecar.until(lambda: sidecar.passthrough.running == 0)


async def test_the_callers_deadline_is_tritons(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.unary("ModelInfer", of("slow"), wire.InferResponse, timeout=0.3)
    assert (await outcome(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await triton.slow_cancelled.wait()
    assert triton.slow_deadline_s is not None
    assert triton.slow_deadline_s < 0.31  # gRPC rounds it up on the way


async def test_with_triton_grpc_error_a_models_error_ends_the_stream_with_its_status(sidecar: Sidecar) -> None:
    call = sidecar.stream(metadata=REAL_STATUS)
    await call.write(of("faulty"))
    assert await outcome(call) == (grpc.StatusCode.NOT_FOUND, "faulty failed")


async def test_a_triton_that_would_die_of_it_is_not_asked_to_end_the_stream(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, version=(2, 67)) as sidecar:
        call = sidecar.stream(metadata=REAL_STATUS)
        await call.write(of("nobody"))
        assert (await call.read()).error_message == "Request for unknown model"  # as in Triton, this ends nothing
        await call.write(of("faulty"))
        assert await outcome(call) == (grpc.StatusCode.INTERNAL, "faulty failed")
    assert "triton_grpc_error" not in triton.metadata_of["ModelStreamInfer"]


async def test_without_triton_grpc_error_the_stream_goes_on_after_an_error(sidecar: Sidecar) -> None:
    call = sidecar.stream()
    await call.write(of("faulty"))
    assert (await call.read()).error_message == "faulty failed"
    await call.write(of("resnet", "good"))
    assert (await call.read()).infer_response.id == "good"
    await call.done_writing()
    assert (await outcome(call))[0] is grpc.StatusCode.OK


async def test_such_an_error_stops_the_scheduled_requests_of_the_same_stream(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream(metadata=REAL_STATUS)
    await call.write(ids_request("scheduled"))
    request = await triton.next()
    await call.write(of("faulty"))
    assert await outcome(call) == (grpc.StatusCode.NOT_FOUND, "faulty failed")
    await sidecar.until(lambda: triton.stopped == [request.id])
    await sidecar.until(lambda: sidecar.driver.in_flight == 0)


async def test_the_error_of_a_scheduled_request_ends_a_stream_that_triton_still_serves(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream(metadata=REAL_STATUS)
    await call.write(of("slow"))
    await call.write(ids_request("scheduled"))
    (await triton.next()).error("Executor failed process requestId 4")
    assert (await outcome(call))[0] is grpc.StatusCode.INTERNAL


async def test_a_stream_to_a_dead_triton_ends_unavailable() -> None:
    async with FakeTriton() as triton:
        target = triton
    async with running_sidecar({"e0": target}, up=False) as sidecar:
        call = sidecar.stream()
        await call.write(of("resnet"))
        code, details = await outcome(call)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "ExceptionGroup" not in details


async def test_a_stream_that_triton_breaks_off_ends_with_its_status(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    await call.write(of("resnet", "first"))
    assert (await call.read()).infer_response.id == "first"
    await triton.kill()
    assert (await outcome(call))[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("method", ["ServerLive", "ServerMetadata", "ModelInfer"])
async def test_an_engine_that_hangs_refuses_at_once(
    triton: FakeTriton, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton.living = False
    monkeypatch.setattr(passthrough, "FETCH_TIMEOUT_S", 0.25)
    async with running_sidecar({"e0": triton}, up=False) as sidecar:
        calls = [sidecar.unary(method, of("resnet"), wire.InferResponse) for _ in range(20)]
        async with asyncio.timeout(3):  # one look of a quarter of a second for all of them, not twenty
            found = [await outcome(call) for call in calls]
    assert found == [(grpc.StatusCode.UNAVAILABLE, "engine e0 does not answer")] * 20


async def test_a_triton_whose_engine_is_down_serves_all_that_is_not_scheduled(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, up=False) as sidecar:
        answer = await sidecar.unary("ModelInfer", of("resnet", "u"), wire.InferResponse)
        assert answer.id == "u"


async def test_what_came_before_an_unreadable_message_is_served(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = raw_stream(sidecar)
    await call.write(ids_request("good").SerializeToString())
    request = await triton.next()
    await call.write(b"\xff\xff\xff")
    request.tokens(5, final=True)
    assert ids_of(await call.read()) == (5,)
    assert await outcome(call) == (grpc.StatusCode.INTERNAL, "Unable to parse request")


async def test_an_unreadable_message_alone_is_refused_as_triton_refuses_it(sidecar: Sidecar) -> None:
    call = raw_stream(sidecar)
    await call.write(b"\xff\xff\xff")
    assert await outcome(call) == (grpc.StatusCode.INTERNAL, "Unable to parse request")


async def test_an_empty_message_goes_to_triton(sidecar: Sidecar) -> None:
    call = raw_stream(sidecar)
    await call.write(b"")
    await call.done_writing()
    assert [each.infer_response.model_name for each in await read_all(call)] == [""]


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"])
async def test_garbage_to_any_method_never_shows_a_fault_of_ours(sidecar: Sidecar, method: str) -> None:
    for raw in (b"\xff\xff\xff", b"", b"\n\x04a\nb\x00", service_pb2.ModelReadyRequest(name="x" * 1_048_576)):
        raw = raw if isinstance(raw, bytes) else raw.SerializeToString()
        ask: Any = sidecar.channel.unary_unary(f"/{SERVICE}/{method}")
        code, details = await outcome(ask(raw))
        assert code is not grpc.StatusCode.UNKNOWN, (method, raw[:10], details)
