"""Callers' requests through a whole sidecar: the scheduler, the driver and gRPC are real, only Triton is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from sidecar.core.events import Action, Arrived, Event
from sidecar.core.settings import SchedulerSettings
from sidecar.core.work import Lane, Work
from sidecar.edge import outbox, wire
from sidecar.edge.engine_client import stop_request, token_request
from sidecar.edge.ports import Outcome, Timeline
from tests.edge.conftest import Sidecar, running_sidecar
from tests.edge.fake_triton import FakeTriton


def ids_request(request_id: str, *, ids: tuple[int, ...] = (1, 2, 3), output: int = 4, stream: bool = True) -> Any:
    request = token_request("tensorrt_llm", ids, output, request_id)
    wire.add_tensor(request, "streaming", "BOOL", (stream,), (1, 1))
    return request


def text_request(request_id: str, *, text: str = "hello", output: int = 4) -> Any:
    request = wire.InferRequest(model_name="ensemble", id=request_id)
    wire.add_tensor(request, "text_input", "BYTES", (text.encode(),), (1, 1))
    wire.add_tensor(request, "max_tokens", "INT32", (output,), (1, 1))
    return request


class Arrivals:
    """A listener that keeps each work."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    def handled(self, _now_s: float, event: Event, _actions: Sequence[Action]) -> None:
        if isinstance(event, Arrived):
            self.works.append(event.work)

    def finished(self, _work: Work, _timeline: Timeline, _outcome: Outcome) -> None:
        pass


def ids_of(response: Any) -> tuple[int, ...] | None:
    return wire.output_values(response.infer_response, "output_ids")


async def read_all(call: Any) -> list[Any]:
    return [response async for response in call]


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


async def test_a_stop_that_the_engine_never_confirms_ends_by_cancelling_the_stream(triton: FakeTriton) -> None:
    triton.confirms_stops = False
    async with running_sidecar({"e0": triton}, stop_timeout_s=0.1) as sidecar:
        call = sidecar.stream()
        await call.write(ids_request("stuck"))
        request = await triton.next()
        call.cancel()
        async with asyncio.timeout(5):
            await request.gone.wait()
        await sidecar.until(lambda: sidecar.driver.in_flight == 0)


async def test_a_stop_request_ends_the_callers_own_request_with_its_final(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    request = ids_request("mine")
    request.parameters[wire.EMPTY_FINAL].bool_param = True
    await call.write(request)
    running = await triton.next()
    await call.write(stop_request("tensorrt_llm", "mine"))
    final = await call.read()
    assert final.infer_response.id == "mine"
    assert wire.is_final(final.infer_response)
    assert triton.stopped == [running.id]


async def test_a_stop_request_does_not_reach_another_connections_request(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    await call.write(ids_request("mine"))
    running = await triton.next()
    async with grpc.aio.insecure_channel(sidecar.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        raw: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        await raw(stop_request("tensorrt_llm", "mine").SerializeToString())
    assert triton.stopped == []
    running.end()


async def test_unary_infer_joins_the_streamed_ids(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    request = await triton.next()
    request.tokens(4)
    request.tokens(5, 6)
    request.tokens(7, final=True)
    joined = await answer
    assert joined.id == "u"
    assert wire.output_values(joined, "output_ids") == (4, 5, 6, 7)
    assert list(joined.outputs[0].shape) == [1, 1, 4]


async def test_unary_infer_joins_the_streamed_text(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", text_request("u"), wire.InferResponse)
    request = await triton.next()
    request.text("a stitch ")
    request.text("in time", final=True)
    assert wire.output_values(await answer, "text_output") == (b"a stitch in time",)


async def test_unary_infer_that_was_not_streamed_is_returned_as_it_is(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", ids_request("u", stream=False), wire.InferResponse)
    (await triton.next()).tokens(1, 2, 3, 9, final=True)
    assert wire.output_values(await answer, "output_ids") == (1, 2, 3, 9)


async def status_of(answer: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await answer
    return raised.value.code(), raised.value.details() or "", dict(raised.value.trailing_metadata())


async def test_an_unknown_input_is_refused_by_its_name(sidecar: Sidecar, triton: FakeTriton) -> None:
    request = ids_request("u")
    wire.add_tensor(request, "temprature", "FP32", (0.5,), (1, 1))
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert (code, message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "unexpected inference input 'temprature' for model 'tensorrt_llm'",
    )
    assert triton.idle


async def test_a_wrong_datatype_is_refused_by_the_tensors_name(sidecar: Sidecar) -> None:
    request = wire.InferRequest(model_name="tensorrt_llm")
    wire.add_tensor(request, "input_ids", "FP32", (1.0,), (1, 1))
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "input 'input_ids' has datatype FP32; model 'tensorrt_llm' expects INT32"


async def test_a_missing_input_is_refused_by_its_name(sidecar: Sidecar) -> None:
    request = wire.InferRequest(model_name="ensemble")
    wire.add_tensor(request, "text_input", "BYTES", (b"hi",), (1, 1))
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'max_tokens' is missing" in message


async def test_bytes_that_do_not_fill_the_shape_are_refused(sidecar: Sidecar) -> None:
    request = ids_request("u")
    request.raw_input_contents[0] = b"\0\0"
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'input_ids' has 2 bytes; shape [1, 3] needs 12" in message


async def test_prompt_and_output_beyond_the_model_are_refused_with_both_numbers(sidecar: Sidecar) -> None:
    request = ids_request("u", ids=(1,) * 40, output=30)
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "40" in message
    assert "30" in message


async def test_an_estimated_text_length_refuses_nothing(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", text_request("u", text="word " * 400, output=8), wire.InferResponse)
    (await triton.next()).text("fine", final=True)
    assert wire.output_values(await answer, "text_output") == (b"fine",)


async def test_an_unknown_model_is_not_found(sidecar: Sidecar) -> None:
    request = wire.InferRequest(model_name="unknown")
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "unknown" in message


async def test_a_full_queue_is_resource_exhausted_with_a_retry_hint(triton: FakeTriton) -> None:
    settings = SchedulerSettings(online_queue_max=1, window_ms=0)
    async with running_sidecar({"e0": triton}, slots=1, scheduler=settings) as sidecar:
        call = sidecar.stream()
        await call.write(ids_request("runs"))
        running = await triton.next()
        await call.write(ids_request("waits"))
        await sidecar.until(lambda: sidecar.driver.scheduler.snapshot().waiting(Lane.ONLINE) == 1)
        code, message, trailing = await status_of(sidecar.unary("ModelInfer", ids_request("x"), wire.InferResponse))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "try again in 1 s" in message
        assert trailing["retry-after-ms"] == "1000"
        running.end()
        (await triton.next()).end()


async def test_a_stream_that_breaks_in_the_engine_is_answered_unavailable(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    request = await triton.next()
    request.tokens(1)
    request.break_stream()
    assert (await status_of(answer))[0] is grpc.StatusCode.UNAVAILABLE


async def test_with_triton_grpc_error_the_first_error_ends_the_stream_with_its_status(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream(metadata=(("triton_grpc_error", "true"),))
    await call.write(ids_request("a"))
    (await triton.next()).error("input 'x' must be positive")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read_all(call)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_for_the_offline_lane_is_booked_there(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=(("x-lane", "offline"),))
    request = await triton.next()
    assert sidecar.driver.scheduler.snapshot().engines["e0"].slots_offline == 1
    request.tokens(3, final=True)
    assert wire.output_values(await answer, "output_ids") == (3,)


async def test_an_offline_call_runs_in_slices_and_is_answered_once_in_whole(triton: FakeTriton) -> None:
    settings = SchedulerSettings(slice_tokens=2, slice_tokens_busy=2, window_ms=0)
    async with running_sidecar({"e0": triton}, scheduler=settings) as sidecar:
        request = ids_request("mine", output=4)
        wire.add_tensor(request, "stop_words_list", "INT32", (9, 8, 1, 2), (1, 2, 2))
        request.parameters["x-lane"].string_param = "offline"
        call = sidecar.stream()
        await call.write(request)
        await call.done_writing()
        first = await triton.next()
        assert (first.input("input_ids"), first.input("request_output_len")) == ((1, 2, 3), (2,))
        assert first.input("stop_words_list") == (9, 8, 1, 2)
        first.tokens(4, 5, final=True)
        second = await triton.next()
        assert (second.input("input_ids"), second.input("request_output_len")) == ((1, 2, 3, 4, 5), (2,))
        second.tokens(6, 7, final=True)
        answers = await read_all(call)
        assert [(each.infer_response.id, ids_of(each)) for each in answers] == [("mine", (4, 5, 6, 7))]
        assert wire.is_final(answers[0].infer_response)


async def test_an_offline_call_that_the_engine_refuses_is_told_why(sidecar: Sidecar, triton: FakeTriton) -> None:
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=(("x-lane", "offline"),))
    (await triton.next()).error("input 'temperature' must be positive")
    code, message, _ = await status_of(answer)
    assert (code, message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "given up after 1 attempts: input 'temperature' must be positive",
    )


async def test_a_stop_ends_a_request_that_still_waits_with_an_empty_final(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, slots=1) as sidecar:
        call = sidecar.stream()
        await call.write(ids_request("runs"))
        running = await triton.next()
        waiting = ids_request("waits")
        waiting.parameters[wire.EMPTY_FINAL].bool_param = True
        await call.write(waiting)
        await call.write(stop_request("tensorrt_llm", "waits"))
        final = await call.read()
        assert (final.infer_response.id, wire.is_final(final.infer_response)) == ("waits", True)
        await call.done_writing()
        running.tokens(1, final=True)
        assert (await call.read()).infer_response.id == "runs"
        assert await call.read() is grpc.aio.EOF


async def test_an_offline_call_that_failed_midway_delivers_only_the_attempt_that_succeeded(triton: FakeTriton) -> None:
    settings = SchedulerSettings(retry_backoff_s=0.001, window_ms=0)
    async with running_sidecar({"e0": triton}, scheduler=settings) as sidecar:
        request = ids_request("u")
        wire.add_tensor(request, "repetition_penalty", "FP32", (1.5,), (1, 1))  # so it cannot be sliced
        request.parameters["x-lane"].string_param = "offline"
        call = sidecar.stream()
        await call.write(request)
        await call.done_writing()
        first = await triton.next()
        assert first.input("repetition_penalty") == (1.5,)
        first.tokens(1)
        first.error("Stub process 'x' is not healthy.")
        second = await triton.next()
        assert second.id != first.id
        second.tokens(2)
        second.tokens(3, final=True)
        assert [ids_of(each) for each in await read_all(call)] == [(2,), (3,)]


async def test_a_lane_that_does_not_exist_is_refused(sidecar: Sidecar) -> None:
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=(("x-lane", "fast"),))
    code, message, _ = await status_of(answer)
    assert (code, message) == (grpc.StatusCode.INVALID_ARGUMENT, "x-lane must be one of online, offline, not 'fast'")


@pytest.mark.parametrize(
    ("kind", "value"), [("int64_param", 250), ("uint64_param", 250), ("double_param", 250.0), ("string_param", "250")]
)
async def test_a_request_may_state_its_own_objective(triton: FakeTriton, kind: str, value: object) -> None:
    arrivals = Arrivals()
    async with running_sidecar({"e0": triton}, watcher=arrivals) as sidecar:
        request = ids_request("u")
        setattr(request.parameters["ttft_objective_ms"], kind, value)
        answer = sidecar.unary("ModelInfer", request, wire.InferResponse, metadata=(("ttft_objective_ms", "900"),))
        (await triton.next()).tokens(3, final=True)
        await answer
    assert [work.ttft_objective_ms for work in arrivals.works] == [250.0]  # the parameter wins


async def test_prompts_that_begin_alike_have_one_prefix_and_short_ones_none(triton: FakeTriton) -> None:
    arrivals = Arrivals()
    texts = {"a": "x" * 512 + "one", "b": "x" * 512 + "another", "c": "y" * 512, "d": "short"}
    async with running_sidecar({"e0": triton}, slots=4, watcher=arrivals) as sidecar:
        call = sidecar.stream()
        for name, text in texts.items():
            await call.write(text_request(name, text=text))
            (await triton.next()).text("so be it", final=True)
            await call.read()
        await call.done_writing()
    keys = [work.prefix_key for work in arrivals.works]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == ""


@pytest.mark.parametrize("asked", ["0", "-1", "nan", "inf", "soon", ""])
async def test_an_objective_that_is_no_positive_number_is_refused(sidecar: Sidecar, asked: str) -> None:
    metadata = (("ttft_objective_ms", asked),)
    code, message, _ = await status_of(
        sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=metadata)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == f"ttft_objective_ms must be a number of milliseconds > 0, not '{asked}'"


async def test_other_methods_pass_through_with_metadata_both_ways(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.unary(
        "ServerMetadata",
        service_pb2.ServerMetadataRequest(),
        service_pb2.ServerMetadataResponse,
        metadata=(("triton-grpc-protocol-key", "secret"),),
    )
    assert (await call).name == "fake"
    assert dict(await call.initial_metadata())["from-triton"] == "initial"
    assert dict(await call.trailing_metadata())["from-triton-too"] == "trailing"
    assert triton.metadata_of["ServerMetadata"]["triton-grpc-protocol-key"] == "secret"


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


async def test_bytes_that_are_no_request_are_refused_as_triton_refuses_them(sidecar: Sidecar) -> None:
    raw: Any = sidecar.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    code, message, _ = await status_of(raw(b"\xff\xff\xff"))
    assert (code, message) == (grpc.StatusCode.INTERNAL, "Unable to parse request")
