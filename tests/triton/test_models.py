"""Who runs on an engine without being scheduled is said, and refused where the text model is misnamed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import grpc.aio
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from sidecar.errors import EngineError
from sidecar.settings.file import EngineEndpoint
from sidecar.triton import models, wire
from sidecar.triton.client import SERVICE, EngineClient
from sidecar.triton.models import EngineModels, Unscheduled, look
from tests.fakes.sidecar import Sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request

NVIDIA = {
    "ensemble": ("preprocessing", "tensorrt_llm", "postprocessing"),
    "preprocessing": (),
    "postprocessing": (),
    "tensorrt_llm": (),
    "reranker": (),
}


class Repository:
    """A Triton that answers what is asked of its model repository; `steps` by model."""

    def __init__(self, steps: Mapping[str, Sequence[str]]) -> None:
        self.steps = dict(steps)
        self.key: tuple[str, str] | None = None
        self.hangs = False
        self.server = grpc.aio.server()
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                each,
                request_deserializer=asked.FromString,
                response_serializer=lambda answer: bytes(answer.SerializeToString()),
            )
            for name, each, asked in (
                ("RepositoryIndex", self._index, service_pb2.RepositoryIndexRequest),
                ("ModelConfig", self._config, service_pb2.ModelConfigRequest),
            )
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _index(self, request: Any, context: Any) -> Any:
        assert request.ready
        if self.hangs:
            await asyncio.Event().wait()
        if self.key is not None and self.key not in {(each.key, each.value) for each in context.invocation_metadata()}:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted")
        index = service_pb2.RepositoryIndexResponse.ModelIndex
        return service_pb2.RepositoryIndexResponse(models=[index(name=each, state="READY") for each in self.steps])

    async def _config(self, request: Any, context: Any) -> Any:
        if request.name not in self.steps:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        config = model_config_pb2.ModelConfig(name=request.name)
        for step in self.steps[request.name]:
            config.ensemble_scheduling.step.add(model_name=step)
        return service_pb2.ModelConfigResponse(config=config)


@contextlib.asynccontextmanager
async def serving(steps: Mapping[str, Sequence[str]]) -> AsyncIterator[tuple[Repository, EngineClient]]:
    repository = Repository(steps)
    await repository.server.start()
    async with EngineClient(f"127.0.0.1:{repository.port}") as client:
        yield repository, client
    await repository.server.stop(None)


def engine(text_model: str | None = "ensemble") -> EngineEndpoint:
    return EngineEndpoint(name="e0", text_model=text_model)


def unscheduled(client: EngineClient, text_model: str | None) -> Unscheduled:
    names = [name for name in ("tensorrt_llm", text_model) if name is not None]
    return Unscheduled([engine(text_model)], {"e0": client}, names)


async def test_ensembles_over_the_engine_are_found_also_through_others() -> None:
    steps = {**NVIDIA, "chat": ("template", "ensemble"), "template": (), "loop": ("loop", "reranker")}
    async with serving(steps) as (_, client):
        found = await look(client, "tensorrt_llm")
    assert found.over_engine == ("chat", "ensemble")
    assert found.ready == tuple(sorted(steps))


@pytest.mark.parametrize(
    ("text_model", "fault"),
    [
        ("ensemble", ""),
        (None, ""),
        ("reranker", ""),  # a model that calls the engine by itself looks like this
        ("ensemblee", "Triton has no text model ensemblee; it has ensemble, postprocessing, preprocessing, reranker,"),
    ],
)
async def test_a_text_model_that_is_not_there_is_a_fault(text_model: str | None, fault: str) -> None:
    async with serving(NVIDIA) as (_, client):
        found = await look(client, "tensorrt_llm")
    told = found.text_model_fault(engine(text_model))
    assert told.startswith(fault)
    assert bool(told) == bool(fault)


async def test_callers_of_the_real_text_model_are_refused_while_the_settings_misname_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(NVIDIA) as (repository, client):
        subject = unscheduled(client, "ensemblee")
        for _ in range(3):
            await subject.look_at("e0")
        assert subject.refused.keys() == {"ensemble"}
        assert "the sidecar's settings name ensemblee as text_model, which is not there" in subject.refused["ensemble"]
        assert [(each.levelno, "Callers of ensemble" in each.getMessage()) for each in caplog.records] == [
            (logging.ERROR, True)
        ]
        repository.steps["ensemblee"] = repository.steps.pop("ensemble")
        await subject.look_at("e0")
        assert subject.refused == {}


async def test_a_second_ensemble_over_the_engine_is_said_once_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    async with serving({**NVIDIA, "chat": ("tensorrt_llm",)}) as (_, client):
        subject = unscheduled(client, "ensemble")
        await subject.look_at("e0")
        await subject.look_at("e0")
    assert subject.refused == {}
    (told,) = caplog.messages
    assert told.startswith("engine e0: chat is not scheduled and shares tensorrt_llm")


async def test_what_cannot_be_looked_up_is_not_known_and_refuses_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(NVIDIA) as (repository, client):
        repository.key = ("admin-key", "secret")
        subject = unscheduled(client, "ensemblee")
        await subject.look_at("e0")
        await subject.look_at("e0")
        assert subject.refused == {}
        assert caplog.messages == ["engine e0: which models run on it is not known: This protocol is restricted"]
        client.own_metadata = (("admin-key", "secret"),)
        await subject.look_at("e0")
        assert subject.refused.keys() == {"ensemble"}


async def test_a_triton_that_hangs_is_not_waited_for() -> None:
    async with serving(NVIDIA) as (repository, client):
        repository.hangs = True
        with pytest.raises(EngineError, match="no answer within"):
            await look(client, "tensorrt_llm", 0.05)


async def test_it_looks_when_an_engine_comes_up_and_soon_again_at_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "LOOK_AGAIN_AT_A_FAULT_S", 0.0)
    looked = asyncio.Queue[int]()
    found = [EngineModels(ready=(), over_engine=()), EngineModels(ready=("ensemble",), over_engine=("ensemble",))]

    async def next_look(*_: Any) -> EngineModels:
        looked.put_nowait(len(found))
        return found.pop(0) if len(found) > 1 else found[0]

    monkeypatch.setattr(models, "look", next_look)
    async with serving(NVIDIA) as (_, client):
        subject = unscheduled(client, "ensemble")
        running = asyncio.create_task(subject.run())
        subject.look_soon("e0")
        async with asyncio.timeout(5):
            assert [await looked.get(), await looked.get()] == [2, 1]
        running.cancel()


async def test_a_refused_model_is_answered_by_name_and_its_neighbours_on_the_stream_go_on(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    cast(dict[str, str], sidecar.passthrough.refused)["chat"] = "model chat is not scheduled"
    chat = ids_request("c")
    chat.model_name = "chat"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sidecar.unary("ModelInfer", chat, wire.InferResponse)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "[request id: c] model chat is not scheduled"

    stream = sidecar.stream()
    await stream.write(chat)
    await stream.write(ids_request("d"))
    answer = await stream.read()
    assert (answer.error_message, answer.infer_response.id) == ("[request id: c] model chat is not scheduled", "c")
    (await triton.next()).tokens(3, final=True)
    assert (await stream.read()).infer_response.id == "d"
    await stream.done_writing()
