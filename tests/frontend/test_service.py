"""Callers' requests through a whole sidecar: the scheduler, the driver and gRPC are real, only Triton is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2

from sidecar.call import Outcome, Timeline
from sidecar.core.events import Action, Arrived, Event
from sidecar.core.request import Lane, Request
from sidecar.core.settings import SchedulerSettings
from sidecar.frontend.models import ScheduledModel
from sidecar.frontend.service import PARTS_MAX
from sidecar.triton import wire
from sidecar.triton.client import token_request
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.triton.test_wire import many


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
    """A listener that keeps each request."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def handled(self, _now_s: float, event: Event, _actions: Sequence[Action]) -> None:
        if isinstance(event, Arrived):
            self.requests.append(event.request)

    def finished(self, _request: Request, _timeline: Timeline, _outcome: Outcome) -> None:
        pass


def ids_of(response: Any) -> tuple[int, ...] | None:
    return wire.output_values(response.infer_response, "output_ids")


async def read_all(call: Any) -> list[Any]:
    return [response async for response in call]


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
    assert message == (
        "[request id: <id_unknown>] inference input 'input_ids' data-type is 'FP32', but model 'tensorrt_llm' "
        "expects 'INT32'"
    )


async def test_a_missing_input_is_refused_by_its_name(sidecar: Sidecar) -> None:
    request = wire.InferRequest(model_name="ensemble")
    wire.add_tensor(request, "text_input", "BYTES", (b"hi",), (1, 1))
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == (
        "[request id: <id_unknown>] expected number of inputs between 2 and 3 but got 1 inputs for model 'ensemble'. "
        "Got input(s) ['text_input'], but missing required input(s) ['max_tokens']. Please provide all required "
        "input(s)."
    )


async def test_bytes_that_do_not_fill_the_shape_are_refused(sidecar: Sidecar) -> None:
    request = ids_request("u")
    request.raw_input_contents[0] = b"\0\0"
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == (
        "[request id: u] input byte size mismatch for input 'input_ids' for model 'tensorrt_llm'. Expected 12, got 2"
    )


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
    (await triton.next()).error("input 'temperature' must be positive", grpc.StatusCode.INVALID_ARGUMENT)
    code, message, _ = await status_of(answer)
    assert (code, message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "given up after 1 attempts: input 'temperature' must be positive [INVALID_ARGUMENT]",
    )


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
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "[request id: u] x-lane must be one of online, offline, not 'fast'"


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
    assert [request.ttft_objective_ms for request in arrivals.requests] == [250.0]  # the parameter wins


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
    keys = [request.prefix_key for request in arrivals.requests]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == ""


@pytest.mark.parametrize("asked", ["0", "-1", "nan", "inf", "soon", ""])
async def test_an_objective_that_is_no_positive_number_is_refused(sidecar: Sidecar, asked: str) -> None:
    metadata = (("ttft_objective_ms", asked),)
    code, message, _ = await status_of(
        sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=metadata)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == f"[request id: u] ttft_objective_ms must be a number of milliseconds > 0, not '{asked}'"


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


async def test_bytes_that_are_no_request_are_refused_as_triton_refuses_them(sidecar: Sidecar) -> None:
    raw: Any = sidecar.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    code, message, _ = await status_of(raw(b"\xff\xff\xff"))
    assert (code, message) == (grpc.StatusCode.INTERNAL, "Unable to parse request")


async def test_an_engines_error_holds_the_callers_id_on_a_stream_and_in_a_status(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    for caller_id, shown in (("mine", "mine"), ("", "<id_unknown>")):
        call = sidecar.stream()
        await call.write(ids_request(caller_id))
        request = await triton.next()
        request.error(f"[request id: {request.id}] expected less")
        answer = await call.read()
        assert (answer.infer_response.id, answer.error_message) == (caller_id, f"[request id: {shown}] expected less")
        assert not wire.is_final(answer.infer_response)  # as Triton, where no model had it
        unary = sidecar.unary("ModelInfer", ids_request(caller_id), wire.InferResponse)
        request = await triton.next()
        request.error(f"[request id: {request.id}] expected less")
        assert (await status_of(unary))[1] == f"[request id: {shown}] expected less"


async def test_an_engines_error_for_an_offline_call_holds_the_callers_id(sidecar: Sidecar, triton: FakeTriton) -> None:
    metadata = (("x-lane", "offline"),)
    answer = sidecar.unary("ModelInfer", ids_request("mine"), wire.InferResponse, metadata=metadata)
    request = await triton.next()
    request.error(f"[request id: {request.id}] expected less", grpc.StatusCode.INVALID_ARGUMENT)
    assert (await status_of(answer))[
        1
    ] == "given up after 1 attempts: [request id: mine] expected less [INVALID_ARGUMENT]"


@pytest.mark.parametrize("lane", ["online", "offline"])
async def test_a_refusal_of_the_schedulers_begins_with_the_callers_id(sidecar: Sidecar, lane: str) -> None:
    call = sidecar.stream(metadata=(("x-lane", lane),))
    await call.write(ids_request("long", ids=(1,) * 40, output=30))
    answer = await call.read()
    assert answer.error_message.startswith("[request id: long] ")
    # As Triton, where the model itself would refuse it:
    assert (answer.infer_response.id, answer.infer_response.model_name) == ("long", "tensorrt_llm")
    assert wire.is_final(answer.infer_response)


async def test_a_request_waits_no_longer_for_a_slot_than_its_timeout(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, slots=1) as sidecar:
        call = sidecar.stream()
        await call.write(ids_request("runs"))
        running = await triton.next()
        waits = ids_request("waits")
        waits.parameters["timeout"].int64_param = 1000
        await call.write(waits)
        answer = await call.read()
        assert answer.error_message.startswith("[request id: waits] Request timeout expired")
        assert answer.infer_response.model_name == "tensorrt_llm"
        assert wire.is_final(answer.infer_response)
        running.tokens(1, final=True)
        assert ids_of(await call.read()) == (1,)


async def test_a_defect_in_reading_one_request_concerns_it_alone_and_no_prompt_is_logged(
    sidecar: Sidecar, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = ScheduledModel.lengths

    def failing(model: ScheduledModel, request: Any, beams_max: int | None = None) -> Any:
        if request.id.startswith("bad"):
            raise KeyError(str(request))
        return lengths(model, request, beams_max)

    monkeypatch.setattr(ScheduledModel, "lengths", failing)
    call = sidecar.stream()
    await call.write(text_request("good", text="a secret"))
    running = await triton.next()
    await call.write(text_request("bad", text="a secret"))
    assert (await call.read()).error_message == "[request id: bad] the sidecar failed: KeyError"
    large = sidecar.unary("ModelInfer", text_request("bad too", text="a secret" * 10_000), wire.InferResponse)
    assert (await status_of(large))[0] is grpc.StatusCode.INTERNAL
    running.text("fine", final=True)
    assert (await call.read()).infer_response.id == "good"
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text
    assert sidecar.driver.in_flight == 0


async def test_inputs_in_shared_memory_are_passed_on_as_they_are(triton: FakeTriton) -> None:
    arrivals = Arrivals()
    async with running_sidecar({"e0": triton}, watcher=arrivals) as sidecar:
        request = ids_request("shared")
        for at, size in ((2, 4), (0, 12)):  # request_output_len and input_ids
            request.inputs[at].parameters["shared_memory_region"].string_param = "here"
            request.inputs[at].parameters["shared_memory_byte_size"].int64_param = size
            del request.raw_input_contents[at]
        call = sidecar.stream()
        await call.write(request)
        reached = await triton.next()
        assert [tensor.parameters["shared_memory_region"].string_param for tensor in reached.message.inputs] == [
            *("here", "", "here", "")
        ]
        assert list(reached.message.raw_input_contents) == list(request.raw_input_contents)
        reached.tokens(1, final=True)
        assert ids_of(await call.read()) == (1,)
    assert [(request.prompt_tokens, request.output_tokens_max) for request in arrivals.requests] == [(3, 61)]


async def test_a_unary_call_for_several_sequences_is_refused_since_it_has_one_response(sidecar: Sidecar) -> None:
    request = ids_request("u")
    wire.add_tensor(request, "num_return_sequences", "INT32", (2,), (1, 1))
    code, message, _ = await status_of(sidecar.unary("ModelInfer", request, wire.InferResponse))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelStreamInfer" in message


async def test_an_id_of_a_mebibyte_is_given_back_whole_and_told_in_short(sidecar: Sidecar, triton: FakeTriton) -> None:
    long = "x" * (1 << 20)
    call = sidecar.stream()
    await call.write(ids_request(long))
    (await triton.next()).tokens(1, final=True)
    assert (await call.read()).infer_response.id == long
    code, message, _ = await status_of(sidecar.unary("ModelInfer", ids_request(long, output=0), wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(message) < 1000


async def test_parameters_of_the_sidecar_are_not_for_triton(sidecar: Sidecar, triton: FakeTriton) -> None:
    request = ids_request("u")
    request.parameters["ttft_objective_ms"].uint64_param = 250
    request.parameters["mine"].string_param = "for the model"
    answer = sidecar.unary("ModelInfer", request, wire.InferResponse)
    reached = await triton.next()
    assert set(reached.message.parameters) == {"mine", wire.EMPTY_FINAL}
    reached.tokens(3, final=True)
    await answer


async def test_a_request_that_would_end_triton_reaches_it_by_no_way(sidecar: Sidecar, triton: FakeTriton) -> None:
    """Classes of an output that holds texts: tritonserver 2.51 ends with a segmentation fault."""
    asking = text_request("t")
    asking.outputs.add(name="text_output").parameters["classification"].int64_param = 2
    code, details, _ = await status_of(sidecar.unary("ModelInfer", asking, wire.InferResponse))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "output 'text_output' of model 'ensemble' holds texts" in details
    call = sidecar.stream()
    await call.write(asking)
    await call.write(ids_request("good"))
    await call.done_writing()
    (await triton.next()).tokens(1, 2, 3, 4, final=True)
    answers = [each async for each in call]
    assert [(each.infer_response.id, bool(each.error_message)) for each in answers] == [("t", True), ("good", False)]


async def test_an_offline_call_is_answered_under_the_models_version(sidecar: Sidecar, triton: FakeTriton) -> None:
    metadata = (("x-lane", "offline"),)
    answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=metadata)
    (await triton.next()).tokens(3, final=True)
    assert ((await answer).model_name, (await answer).model_version) == ("tensorrt_llm", "1")


async def test_an_offline_output_that_begins_with_the_prompt_is_the_engines_own(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    metadata = (("x-lane", "offline"),)
    request = ids_request("u", stream=False)  # and the engine is TensorRT-LLM's default, which puts the prompt first
    answer = sidecar.unary("ModelInfer", request, wire.InferResponse, metadata=metadata)
    reached = await triton.next()
    assert reached.input("exclude_input_in_output") is None
    reached.tokens(1, 2, 3, 9, final=True)
    assert wire.output_values(await answer, "output_ids") == (1, 2, 3, 9)


async def test_classes_of_an_output_are_passed_on_as_they_are(sidecar: Sidecar, triton: FakeTriton) -> None:
    request = ids_request("u", stream=False)
    request.outputs.add(name="output_ids").parameters["classification"].int64_param = 2
    answer = sidecar.unary("ModelInfer", request, wire.InferResponse)
    reached = await triton.next()
    classes = reached._answer(True)
    wire.add_output(classes, "output_ids", "BYTES", (b"381:0", b"376:1"), (1, 2))
    reached.answers.put_nowait(classes)
    assert wire.output_values(await answer, "output_ids") == (b"381:0", b"376:1")


async def test_a_request_of_too_many_parts_is_refused_and_its_neighbour_lives(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    await call.write(many("parameters"))
    await call.write(ids_request("good"))
    await call.done_writing()
    (await triton.next()).tokens(5, final=True)
    refused, good = await read_all(call)
    expected = f"[request id: r] the request has more than {PARTS_MAX} inputs, outputs, parameters and raw contents"
    assert (refused.error_message, refused.infer_response.id, good.infer_response.id) == (expected, "r", "good")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await sidecar.unary("ModelInfer", many("parameters"), wire.InferResponse)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, expected)
