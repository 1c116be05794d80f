"""Which spans come of a request or an item, how they hang together, and what the engine is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sidecar.settings.file import TracingSettings
from sidecar.telemetry.tracing import Tracing, parse
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    sidecar: Sidecar
    tracing: Tracing
    exporter: InMemorySpanExporter

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    async def ask(self, triton: FakeTriton, **metadata: str) -> Any:
        """One unary request that the engine answers; what the engine was sent."""
        answer = self.sidecar.unary(
            "ModelInfer", ids_request("u"), wire.InferResponse, metadata=tuple(metadata.items())
        )
        request = await triton.next()
        request.tokens(3)
        request.tokens(4, final=True)
        await answer
        return request


async def traced(triton: FakeTriton, ratio: float) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    settings = TracingSettings(endpoint="http://unused", online_ratio=ratio, offline_ratio=ratio, broker_ratio=ratio)
    processor = SimpleSpanProcessor(exporter)
    async with running_sidecar({"e0": triton}, tracing=settings, spans=processor) as sidecar:
        assert sidecar.tracing is not None
        yield Traced(sidecar=sidecar, tracing=sidecar.tracing, exporter=exporter)


@pytest.fixture
async def always(triton: FakeTriton) -> AsyncIterator[Traced]:
    async for each in traced(triton, 1.0):
        yield each


@pytest.fixture
async def never(triton: FakeTriton) -> AsyncIterator[Traced]:
    async for each in traced(triton, 0.0):
        yield each


async def test_a_request_is_a_server_span_over_its_wait_and_its_completion(always: Traced, triton: FakeTriton) -> None:
    request = await always.ask(triton, traceparent=PARENT)
    await always.sidecar.until(lambda: len(always.spans()) == 3)
    spans = always.spans()
    rpc = spans["inference.GRPCInferenceService/ModelInfer"]
    wait, completion = spans["wait_for_slot"], spans["text_completion tensorrt_llm"]
    assert [each.kind for each in (rpc, wait, completion)] == [SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.CLIENT]
    assert rpc.parent is not None
    assert f"{rpc.parent.span_id:016x}" == "b7ad6b7169203331"
    assert {f"{each.context.trace_id:032x}" for each in spans.values()} == {"0af7651916cd43dd8448eb211c80319c"}
    assert wait.parent is not None
    assert completion.parent is not None
    assert wait.parent.span_id == completion.parent.span_id == rpc.context.span_id
    assert request.metadata["traceparent"].split("-")[2] == f"{completion.context.span_id:016x}"


async def test_the_completion_says_what_was_asked_and_what_came(always: Traced, triton: FakeTriton) -> None:
    await always.ask(triton)
    await always.sidecar.until(lambda: len(always.spans()) == 3)
    completion = always.spans()["text_completion tensorrt_llm"]
    attributes = dict(completion.attributes or {})
    assert attributes["gen_ai.request.max_tokens"] == 4
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (3, 2)
    assert attributes["gen_ai.response.finish_reasons"] == ("end_id",)
    assert [event.name for event in completion.events] == ["gen_ai.first_token"]


async def test_what_is_not_sampled_makes_no_span_and_tells_the_engine_nothing(
    never: Traced, triton: FakeTriton
) -> None:
    request = await never.ask(triton, traceparent=PARENT[:-2] + "00")
    assert "traceparent" not in request.metadata
    await never.sidecar.until(lambda: never.sidecar.driver.in_flight == 0)
    assert never.spans() == {}


async def test_what_goes_wrong_is_kept_although_it_was_not_sampled(never: Traced, triton: FakeTriton) -> None:
    answer = never.sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    (await triton.next()).error("Executor failed process requestId 4")
    with pytest.raises(grpc.aio.AioRpcError):
        await answer
    await never.sidecar.until(lambda: len(never.spans()) == 3)
    for span in never.spans().values():
        assert (span.attributes or {})["sidecar.sampled_late"] is True
    completion = never.spans()["text_completion tensorrt_llm"]
    assert completion.status.status_code is StatusCode.ERROR
    assert (completion.attributes or {})["error.type"] == "INTERNAL"


async def test_what_begins_later_than_its_objective_is_kept_although_it_was_not_sampled(
    never: Traced, triton: FakeTriton
) -> None:
    await never.ask(triton)
    await never.ask(triton, ttft_objective_ms="0.000001")
    await never.sidecar.until(lambda: len(never.spans()) == 3)
    for span in never.spans().values():
        assert (span.attributes or {})["sidecar.sampled_late"] is True
        assert span.status.status_code is StatusCode.UNSET
    assert len(never.exporter.get_finished_spans()) == 3  # none of the one before


async def test_the_span_of_a_call_names_the_lanes_of_what_it_asked_for(always: Traced, triton: FakeTriton) -> None:
    await always.ask(triton)
    await always.ask(triton, **{"x-lane": "offline"})
    rpc = "inference.GRPCInferenceService/ModelInfer"
    await always.sidecar.until(lambda: [e.name for e in always.exporter.get_finished_spans()].count(rpc) == 2)
    spans = [each for each in always.exporter.get_finished_spans() if each.name == rpc]
    assert [(each.attributes or {})["sidecar.lane"] for each in spans] == ["online", "offline"]


async def test_a_wait_says_how_long_the_queue_was_and_what_held_offline_back(
    always: Traced, triton: FakeTriton
) -> None:
    answers = [always.sidecar.unary("ModelInfer", ids_request(str(n)), wire.InferResponse) for n in range(3)]
    for _ in range(3):  # two slots: the third waits
        (await triton.next()).tokens(3, final=True)
    for answer in answers:
        await answer
    await always.sidecar.until(lambda: len(always.exporter.get_finished_spans()) == 9)
    found = sorted(
        ((each.attributes or {})["sidecar.queue.depth"], (each.attributes or {}).get("sidecar.limit_binding"))
        for each in always.exporter.get_finished_spans()
        if each.name == "wait_for_slot"
    )
    assert found == [(0, None), (0, None), (1, "no offline")]


@pytest.mark.parametrize(
    "text", [None, "", "00-zz", PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), b"00"]
)
def test_what_is_no_trace_parent_is_none(text: Any) -> None:
    assert parse(text) is None
