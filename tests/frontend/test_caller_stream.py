"""One caller's stream: its requests run concurrently, and each gets its answers under the caller's id."""

from __future__ import annotations

import gc
from typing import Any

import grpc
import grpc.aio
import pytest

from sidecar.core.settings import SchedulerSettings
from sidecar.frontend import outbox
from sidecar.frontend.caller_request import CallerRequest
from sidecar.settings.limits import LimitSettings
from sidecar.triton import wire
from sidecar.triton.client import SERVICE
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_of, ids_request, read_all, text_request


async def test_tokens_stream_through_under_the_callers_id(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    await call.write(ids_request("mine"))
    request = await triton.next()
    assert request.id != "mine"
    request.tokens(7)
    first = await call.read()
    assert (first.infer_response.id, ids_of(first)) == ("mine", (7,))
    assert not wire.is_final(first.infer_response)
    request.tokens(8, final=True)
    last = await call.read()
    assert (last.infer_response.id, ids_of(last)) == ("mine", (8,))
    assert wire.is_final(last.infer_response)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_requests_of_one_stream_run_concurrently_and_interleave(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    await call.write(ids_request("a", ids=(1,)))
    await call.write(ids_request("b", ids=(2,)))
    await call.done_writing()
    requests = await triton.next_by_prompt(2)
    requests[2,].tokens(1, final=True)
    assert (await call.read()).infer_response.id == "b"
    requests[1,].tokens(2, final=True)
    assert (await call.read()).infer_response.id == "a"
    assert await call.read() is grpc.aio.EOF


async def test_a_failed_request_is_answered_by_error_message_and_its_neighbour_lives(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    await call.write(ids_request("good", ids=(1,)))
    await call.write(ids_request("bad", ids=(2,)))
    requests = await triton.next_by_prompt(2)
    requests[2,].error("Executor failed process requestId 4")
    answer = await call.read()
    assert answer.error_message == "Executor failed process requestId 4"
    assert answer.infer_response.id == "bad"
    assert wire.is_final(answer.infer_response)
    requests[1,].tokens(5, final=True)
    assert ids_of(await call.read()) == (5,)


async def test_the_same_id_twice_on_one_stream_reaches_the_engine_under_two_ids(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    await call.write(ids_request("twin"))
    await call.write(ids_request("twin"))
    one, other = await triton.next(), await triton.next()
    assert one.id != other.id
    one.end()
    other.end()


async def test_an_empty_final_response_reaches_only_the_caller_who_asked_for_it(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    await call.write(ids_request("plain"))
    asking = ids_request("asking")
    asking.parameters[wire.EMPTY_FINAL].bool_param = True
    await call.write(asking)
    await call.done_writing()
    (await triton.next()).end()
    (await triton.next()).end()
    assert [each.infer_response.id for each in await read_all(call)] == ["asking"]


async def test_cancelling_the_call_stops_the_request_in_the_engine(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    await call.write(ids_request("gone"))
    request = await triton.next()
    call.cancel()
    await sidecar.until(lambda: triton.stopped == [request.id])
    await sidecar.until(lambda: sidecar.driver.in_flight == 0)


async def test_the_callers_deadline_stops_the_request_in_the_engine(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream(timeout=0.2)
    await call.write(ids_request("late"))
    request = await triton.next()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read_all(call)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await sidecar.until(lambda: triton.stopped == [request.id])


async def test_with_triton_grpc_error_the_first_error_ends_the_stream_with_its_status(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream(metadata=(("triton_grpc_error", "true"),))
    await call.write(ids_request("a"))
    (await triton.next()).error("input 'x' must be positive", grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read_all(call)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_requests_of_models_that_are_not_scheduled_pass_through_a_stream(sidecar: Sidecar) -> None:
    call = sidecar.stream()
    await call.write(wire.InferRequest(model_name="resnet", id="r1"))
    await call.done_writing()
    assert [each.infer_response.id for each in await read_all(call)] == ["r1"]


async def test_a_slow_reader_does_not_keep_its_slot(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    await call.write(ids_request("slow", output=30))
    request = await triton.next()
    for token in range(29):
        request.tokens(token)
    request.tokens(29, final=True)
    await sidecar.until(lambda: sidecar.driver.in_flight == 0)
    await call.done_writing()
    assert [ids_of(each) for each in await read_all(call)] == [(token,) for token in range(30)]


async def test_a_caller_who_never_reads_is_cut_off_before_it_fills_the_memory(
    sidecar: Sidecar, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_MAX", 4)
    call = sidecar.stream()
    await call.write(text_request("slow", output=30))
    request = await triton.next()
    for _ in range(40):  # far beyond what HTTP/2's window takes without a reader
        request.text("x" * 1_000_000)
    await sidecar.until(lambda: triton.stopped == [request.id])
    await sidecar.until(lambda: sidecar.driver.in_flight == 0)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read_all(call)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_every_one_of_many_requests_on_a_stream_gets_one_answer(triton: FakeTriton) -> None:
    settings = SchedulerSettings(online_queue_max=10, window_ms=0)
    async with running_sidecar({"e0": triton}, slots=2, scheduler=settings) as sidecar:
        call = sidecar.stream()
        await call.write(ids_request("r0"))
        await call.write(ids_request("r1"))
        running = [await triton.next(), await triton.next()]
        for number in range(2, 1000):
            await call.write(ids_request(f"r{number}"))
        await call.done_writing()
        refused = [await call.read() for _ in range(988)]
        assert all("10 online requests wait" in each.error_message for each in refused)
        for request in running:
            request.tokens(1, final=True)
        for _ in range(10):
            (await triton.next()).tokens(1, final=True)
        served = [await call.read() for _ in range(12)]
        assert [ids_of(each) for each in served] == [(1,)] * 12
        assert len({each.infer_response.id for each in refused + served}) == 1000
        assert await call.read() is grpc.aio.EOF


async def test_a_stream_without_requests_and_one_whose_requests_all_fail_end_with_ok(sidecar: Sidecar) -> None:
    empty = sidecar.stream()
    await empty.done_writing()
    assert await read_all(empty) == []
    failing = sidecar.stream()
    for number in range(5):
        await failing.write(ids_request(f"r{number}", output=0))
    await failing.done_writing()
    answers = await read_all(failing)
    assert [each.infer_response.id for each in answers] == [f"r{number}" for number in range(5)]
    assert await failing.code() is grpc.StatusCode.OK


async def test_with_triton_grpc_error_what_triton_could_not_take_is_answered_by_a_message(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream(metadata=(("triton_grpc_error", "true"),))
    bad = ids_request("bad")
    wire.add_tensor(bad, "temprature", "FP32", (0.5,), (1, 1))
    await call.write(bad)
    await call.write(ids_request("good"))
    assert (await call.read()).infer_response.id == "bad"
    (await triton.next()).tokens(1, final=True)
    assert ids_of(await call.read()) == (1,)


async def test_with_triton_grpc_error_what_a_model_refuses_ends_the_stream(sidecar: Sidecar) -> None:
    call = sidecar.stream(metadata=(("triton_grpc_error", "true"),))
    await call.write(ids_request("bad", output=0))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read_all(call)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_status_that_ends_the_stream_ends_its_other_requests_and_leaves_nothing_behind(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream(metadata=(("triton_grpc_error", "true"),))
    await call.write(ids_request("runs", ids=(1,)))
    await call.write(ids_request("fails", ids=(2,)))
    requests = await triton.next_by_prompt(2)
    requests[2,].error("no such adapter", grpc.StatusCode.NOT_FOUND)
    with pytest.raises(grpc.aio.AioRpcError, match="no such adapter") as raised:
        await read_all(call)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    await sidecar.until(lambda: triton.stopped == [requests[1,].id])
    await sidecar.until(lambda: sidecar.driver.in_flight == 0 and sidecar.held.used == 0)


async def test_a_caller_who_has_half_closed_still_gets_every_answer(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    await call.write(ids_request("a"))
    await call.write(wire.InferRequest(model_name="resnet", id="other"))
    request = await triton.next()
    await call.done_writing()
    assert (await call.read()).infer_response.id == "other"
    request.tokens(7, final=True)
    assert (await call.read()).infer_response.id == "a"
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_request_of_an_unknown_model_gets_tritons_error_and_its_neighbour_lives(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    await call.write(wire.InferRequest(model_name="nobody", id="x"))
    assert (await call.read()).error_message == "Request for unknown model"
    await call.write(ids_request("good"))
    (await triton.next()).tokens(1, final=True)
    assert (await call.read()).infer_response.id == "good"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_while_the_memory_for_requests_is_full_a_stream_says_so_and_goes_on(triton: FakeTriton) -> None:
    limits = LimitSettings(message_bytes_max=600, held_bytes_max=600)
    async with running_sidecar({"e0": triton}, limits=limits) as sidecar:
        call = sidecar.stream()
        await call.write(ids_request("first", ids=(1,) * 40, output=1))
        running = await triton.next()
        await call.write(ids_request("second", ids=(1,) * 40, output=1))
        answer = await call.read()
        assert (answer.infer_response.id, "limits.held_bytes_max" in answer.error_message) == ("second", True)
        running.tokens(1, final=True)
        assert (await call.read()).infer_response.id == "first"
        await call.write(ids_request("third", ids=(1,) * 40, output=1))
        (await triton.next()).tokens(1, final=True)
        assert (await call.read()).infer_response.id == "third"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_an_unreadable_message_ends_the_reading_and_what_came_before_it_is_answered(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    raw: Any = sidecar.channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer", response_deserializer=wire.StreamResponse.FromString
    )()
    await raw.write(ids_request("before").SerializeToString())
    request = await triton.next()
    await raw.write(b"\xff\xff")
    request.tokens(1, final=True)
    assert (await raw.read()).infer_response.id == "before"
    assert await raw.code() is grpc.StatusCode.INTERNAL
    assert await raw.details() == "Unable to parse request"


async def test_a_stream_that_ends_by_a_status_keeps_no_request_until_the_next_collection(triton: FakeTriton) -> None:
    limits = LimitSettings(message_bytes_max=1_000, held_bytes_max=1_000)
    asked = ids_request("large", ids=(1,) * 200)
    async with running_sidecar({"e0": triton}, limits=limits) as sidecar:
        running = sidecar.unary("ModelInfer", ids_request("first", ids=(1,) * 40), wire.InferResponse)
        first = await triton.next()
        gc.collect()
        gc.disable()
        try:
            call = sidecar.stream(metadata=(("triton_grpc_error", "true"),))
            await call.write(asked)
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await sidecar.until(lambda: kept("large") == 0)
        finally:
            gc.enable()
        first.tokens(4, final=True)
        await running


async def test_a_stream_that_waits_for_its_next_request_keeps_nothing_of_the_last_one(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    gc.collect()
    gc.disable()
    try:
        await call.write(ids_request("last"))
        (await triton.next()).tokens(4, final=True)
        await call.read()
        await sidecar.until(lambda: kept("last") == 0)
    finally:
        gc.enable()
    await call.done_writing()


def kept(request_id: str) -> int:
    """How many requests with this id are in memory."""
    return sum(isinstance(each, CallerRequest) and each.id == request_id for each in gc.get_objects())
