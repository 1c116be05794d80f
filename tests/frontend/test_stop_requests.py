"""A caller's stop gets its answer, and reaches what the same caller runs under that id."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from sidecar.core.request import Lane, Request
from sidecar.core.settings import SchedulerSettings
from sidecar.errors import BadRequestError
from sidecar.frontend.caller_request import parse
from sidecar.frontend.service import Stoppable
from sidecar.frontend.statuses import Booked
from sidecar.frontend.stop_requests import is_stop
from sidecar.triton import wire
from sidecar.triton.client import SERVICE, stop_request
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_of, ids_request, status_of, text_request

MALFORMED = ("no dummies", "no bytes", "two bytes", "datatype", "shape", "no data", "shared memory")


@asynccontextmanager
async def another_connection(sidecar: Sidecar) -> AsyncIterator[Any]:
    """A ModelStreamInfer call from elsewhere."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(sidecar.address, options=options) as channel:
        yield channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=wire.InferRequest.SerializeToString,
            response_deserializer=wire.StreamResponse.FromString,
        )


def about(response: Any) -> tuple[str, str, str, bool, str]:
    """Id, model, version, final flag and error of a streamed response."""
    infer = response.infer_response
    return infer.id, infer.model_name, infer.model_version, wire.is_final(infer), response.error_message


async def rest(call: Any) -> list[Any]:
    """What comes until the stream ends."""
    found = []
    while (response := await call.read()) is not grpc.aio.EOF:
        found.append(response)
    return found


@pytest.mark.parametrize("wants_empty_final", [False, True])
async def test_a_stop_of_an_unknown_id_is_answered_as_triton_answers_it(
    sidecar: Sidecar, wants_empty_final: bool
) -> None:
    call = sidecar.stream()
    stop = stop_request("tensorrt_llm", "nobody")
    if wants_empty_final:
        stop.parameters[wire.EMPTY_FINAL].bool_param = True
    await call.write(stop)
    await call.done_writing()
    assert [about(each) for each in await rest(call)] == [("nobody", "tensorrt_llm", "1", True, "")]


async def test_a_stop_ends_the_request_with_the_engines_final_and_is_answered_itself(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    await call.write(ids_request("mine"))
    running = await triton.next()
    running.tokens(7)
    assert ids_of(await call.read()) == (7,)
    await call.write(stop_request("tensorrt_llm", "mine"))
    assert about(await call.read()) == ("mine", "tensorrt_llm", "1", True, "")
    await call.done_writing()
    assert await rest(call) == []  # the fake ends what was stopped by flags alone
    assert triton.stopped == [running.id]


async def test_a_stop_without_an_id_gets_the_engines_error(sidecar: Sidecar) -> None:
    call = sidecar.stream()
    await call.write(stop_request("tensorrt_llm", ""))
    await call.done_writing()
    (answer,) = await rest(call)
    assert "needs the id" in answer.error_message


def malformed(kind: str) -> Any:
    stop = stop_request("tensorrt_llm", "mine")
    (tensor,) = (each for each in stop.inputs if each.name == "stop")
    match kind:
        case "no dummies":
            stop = wire.InferRequest(model_name="tensorrt_llm", id="mine")
            wire.add_tensor(stop, "stop", "BOOL", (True,), (1, 1))
        case "no bytes":
            stop.raw_input_contents[-1] = b""
        case "two bytes":
            stop.raw_input_contents[-1] = b"\1\1"
        case "datatype":
            tensor.datatype = "INT32"
        case "shape":
            tensor.shape.append(1)
        case "no data":
            del stop.raw_input_contents[-1]
        case "shared memory":
            tensor.parameters["shared_memory_region"].string_param = "here"
            del stop.raw_input_contents[-1]
    return stop


@pytest.mark.parametrize(
    "kind", ["no dummies", "no bytes", "two bytes", "datatype", "shape", "no data", "shared memory"]
)
async def test_a_malformed_stop_gets_its_error_and_stops_nobody(
    sidecar: Sidecar, triton: FakeTriton, kind: str
) -> None:
    call = sidecar.stream()
    await call.write(ids_request("mine"))
    running = await triton.next()
    await call.write(malformed(kind))
    answer = await call.read()
    assert answer.infer_response.id == "mine"
    assert "stop" in answer.error_message
    running.tokens(5, final=True)
    assert ids_of(await call.read()) == (5,)
    assert triton.stopped == []


async def test_a_stop_that_says_false_is_no_stop(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    request = ids_request("mine")
    wire.add_tensor(request, "stop", "BOOL", (False,), (1, 1))
    await call.write(request)
    (await triton.next()).tokens(5, final=True)
    assert ids_of(await call.read()) == (5,)


async def test_a_stop_to_a_model_without_that_input_is_refused_as_triton_does(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream()
    await call.write(text_request("mine"))
    running = await triton.next()
    stop = text_request("mine")
    wire.add_tensor(stop, "stop", "BOOL", (True,), (1, 1))
    await call.write(stop)
    assert (await call.read()).error_message == "unexpected inference input 'stop' for model 'ensemble'"
    await call.write(stop_request("tensorrt_llm", "mine"))  # so it is done: the ensemble's request runs there
    assert about(await call.read()) == ("mine", "tensorrt_llm", "1", True, "")
    await sidecar.until(lambda: triton.stopped == [running.id])


async def test_a_stop_reaches_the_same_tenants_request_on_another_connection(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    call = sidecar.stream(metadata=(("x-tenant", "a"),))
    await call.write(ids_request("mine"))
    running = await triton.next()
    async with another_connection(sidecar) as stream:
        others = stream(metadata=(("x-tenant", "b"),))
        await others.write(stop_request("tensorrt_llm", "mine"))
        assert about(await others.read()) == ("mine", "tensorrt_llm", "1", True, "")
        assert triton.stopped == []
        own = stream(metadata=(("x-tenant", "a"),))
        await own.write(stop_request("tensorrt_llm", "mine"))
        assert about(await own.read()) == ("mine", "tensorrt_llm", "1", True, "")
    await sidecar.until(lambda: triton.stopped == [running.id])


async def test_a_stop_by_a_unary_call_reaches_a_stream_and_is_answered(sidecar: Sidecar, triton: FakeTriton) -> None:
    call = sidecar.stream()
    await call.write(ids_request("mine"))
    running = await triton.next()
    answer = await sidecar.unary("ModelInfer", stop_request("tensorrt_llm", "mine"), wire.InferResponse)
    assert (answer.id, answer.model_name, answer.model_version) == ("mine", "tensorrt_llm", "1")
    await sidecar.until(lambda: triton.stopped == [running.id])


async def test_a_stop_by_a_unary_call_without_an_id_is_an_invalid_argument(sidecar: Sidecar) -> None:
    code, message, _ = await status_of(
        sidecar.unary("ModelInfer", stop_request("tensorrt_llm", ""), wire.InferResponse)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "id" in message


async def test_a_request_stopped_while_it_waits_ends_with_no_tokens(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, slots=1) as sidecar:
        call = sidecar.stream()
        await call.write(ids_request("runs"))
        running = await triton.next()
        await call.write(ids_request("waits"))
        await call.write(text_request("text waits"))
        await call.write(stop_request("tensorrt_llm", "waits"))
        await call.write(stop_request("tensorrt_llm", "text waits"))
        answers = [(await call.read()).infer_response for _ in range(4)]
        ends = {each.id: each for each in answers if each.outputs}
        assert wire.output_values(ends["waits"], "output_ids") == ()
        assert wire.output_values(ends["waits"], "sequence_length") == (0,)
        assert wire.output_values(ends["text waits"], "text_output") == (b"",)
        assert all(wire.is_final(each) for each in answers)
        await call.done_writing()
        running.tokens(1, final=True)
        assert [ids_of(each) for each in await rest(call)] == [(1,)]


async def test_an_offline_call_that_is_stopped_is_answered_with_what_it_has(triton: FakeTriton) -> None:
    settings = SchedulerSettings(slice_tokens=2, slice_tokens_busy=2, window_ms=0)
    async with running_sidecar({"e0": triton}, scheduler=settings) as sidecar:
        call = sidecar.stream(metadata=(("x-lane", "offline"),))
        await call.write(ids_request("mine"))
        (await triton.next()).tokens(4, 5, final=True)
        second = await triton.next()
        await call.write(stop_request("tensorrt_llm", "mine"))
        await call.done_writing()
        answers = await rest(call)
        assert [wire.is_final(each.infer_response) for each in answers] == [True, True]
        assert {ids_of(each) for each in answers} == {None, (4, 5)}
        assert triton.stopped == [second.id]


async def test_more_stops_than_are_answered_at_a_time_are_all_answered(sidecar: Sidecar) -> None:
    call = sidecar.stream()
    for number in range(50):
        await call.write(stop_request("tensorrt_llm", f"r{number}"))
    await call.done_writing()
    assert {each.infer_response.id for each in await rest(call)} == {f"r{number}" for number in range(50)}


async def test_a_stop_that_the_engine_does_not_answer_gets_an_error(
    sidecar: Sidecar, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.frontend.stop_requests.ANSWER_TIMEOUT_S", 0.05)
    triton.answers_stops = False
    call = sidecar.stream()
    await call.write(stop_request("tensorrt_llm", "mine"))
    await call.done_writing()
    (answer,) = await rest(call)
    assert answer.error_message.startswith("[request id: mine] ")


def request(request_id: str, tenant: str = "t", model: str = "m") -> Request:
    return Request(
        id=request_id, lane=Lane.ONLINE, model=model, arrived_s=0, prompt_tokens=1, output_tokens_max=1, tenant=tenant
    )


def test_of_equal_ids_those_on_the_stops_own_connection_are_meant_first() -> None:
    stoppable = Stoppable()
    for request_id, peer, tenant, model in (
        ("o1", "here", "t", "m"),
        ("o2", "here", "u", "m"),
        ("o3", "there", "t", "m"),
        ("o4", "there", "u", "m"),
        ("o5", "here", "t", "other"),
    ):
        stoppable.add(Booked(request_id=request_id, caller_id="1"), peer, request(request_id, tenant, model))
    assert stoppable.named("1", "here", "t", ["m"]) == ["o1", "o2"]
    assert stoppable.named("1", "nowhere", "t", ["m"]) == ["o1", "o3"]
    assert stoppable.named("1", "nowhere", "t", ["m", "other"]) == ["o1", "o3", "o5"]
    assert stoppable.named("2", "here", "t", ["m"]) == []


def test_what_is_over_cannot_be_named_and_leaves_nothing_behind() -> None:
    stoppable = Stoppable()
    for caller_id in ("1", ""):
        booked = Booked(request_id="o1", caller_id=caller_id)
        stoppable.add(booked, "here", request("o1"))
        stoppable.discard(booked)
        stoppable.discard(booked)
        assert stoppable.named(caller_id, "here", "t", ["m"]) == []
    assert not stoppable._owners


@pytest.mark.parametrize("datatype", ["BYTES", "FP32", "INT8"])
def test_a_stop_of_another_datatype_is_refused_where_no_modelconfig_is_known(datatype: str) -> None:
    request = stop_request("tensorrt_llm", "a")
    request.inputs[-1].datatype = datatype
    content = {"BYTES": wire.pack("BYTES", [b"1"]), "FP32": wire.pack("FP32", [1.0]), "INT8": b"\1"}[datatype]
    request.raw_input_contents[-1] = content
    with pytest.raises(BadRequestError) as raised:
        is_stop(parse(request))
    expected = f"inference input 'stop' data-type is '{datatype}', but model 'tensorrt_llm' expects 'BOOL'"
    assert str(raised.value) == f"[request id: a] {expected}"


async def test_what_a_stop_says_to_the_sidecar_stays_here(sidecar: Sidecar, triton: FakeTriton) -> None:
    stop = stop_request("tensorrt_llm", "nobody")
    stop.parameters["x-tenant"].SetInParent()  # of no type, which Triton refuses
    stop.parameters["ttft_objective_ms"].double_param = 5.0
    stop.parameters["theirs"].string_param = "kept"
    call = sidecar.stream()
    await call.write(stop)
    await call.done_writing()
    assert [about(each)[0] for each in await rest(call)] == ["nobody"]
    assert "theirs" in triton.stop_parameters
    assert not {"x-tenant", "ttft_objective_ms"} & triton.stop_parameters
