"""Spans over the wire: into a real gRPC receiver, and into none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.trace import SpanKind

from dev.broker import free_ports
from sidecar import __version__
from sidecar.offline.lane import OfflineLane
from sidecar.settings.file import TracingSettings
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry import span_export as module
from sidecar.telemetry.tracing import Tracing
from sidecar.triton import wire
from tests.fakes.log import FakeCluster, WordTokens
from tests.fakes.sidecar import running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request
from tests.offline.test_lane import running, until
from tests.offline.test_spans import ITEM

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BATCHES = 12


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """OpenTelemetry's TraceService. It keeps what it gets, or hangs."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.metadata: dict[str, str] = {}  # of the last call
        self._hangs = hangs

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name for it
        """What an exporter calls."""
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self._hangs:
            await asyncio.Event().wait()
        return ExportTraceServiceResponse()

    def spans(self) -> dict[str, Span]:
        """By name: in these tests each is sent once."""
        scopes = [scope for request in self.requests for each in request.resource_spans for scope in each.scope_spans]
        spans = [span for scope in scopes for span in scope.spans]
        assert len({span.name for span in spans}) == len(spans)
        return {span.name: span for span in spans}


@asynccontextmanager
async def listening(collector: Collector) -> AsyncIterator[str]:
    """The endpoint of a collector."""
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_spans_go_with_the_headers_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Bearer secret\n")
    collector = Collector()
    async with listening(collector) as endpoint:
        settings = replace(everything_to(endpoint), header_files={"authorization": tmp_path / "token"})
        tracing = Tracing(settings, address="127.0.0.1:8101", version="test", seed=1)
        emit(tracing, 1)
        await tracing.close()
    assert (set(collector.spans()), tracing.dropped_spans) == ({"wait_for_slot"}, 0)
    assert collector.metadata["authorization"] == "Bearer secret"


def everything_to(endpoint: str) -> TracingSettings:
    return TracingSettings(endpoint=endpoint, online_ratio=1.0, offline_ratio=1.0, broker_ratio=0.0)


def sending_to(endpoint: str) -> Tracing:
    return Tracing(everything_to(endpoint), address="127.0.0.1:8101", version="test", seed=1)


async def test_a_request_arrives_as_a_tree_under_its_callers_span(triton: FakeTriton) -> None:
    collector = Collector()
    async with (
        listening(collector) as endpoint,
        running_sidecar({"e0": triton}, tracing=everything_to(endpoint)) as sidecar,
    ):
        metadata = (("traceparent", PARENT),)
        answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=metadata)
        (await triton.next()).tokens(3, final=True)
        await answer
        await sidecar.until(lambda: sidecar.driver.in_flight == 0)
    spans = collector.spans()
    rpc = spans.pop("inference.GRPCInferenceService/ModelInfer")
    assert (rpc.kind, rpc.parent_span_id.hex()) == (Span.SPAN_KIND_SERVER, "b7ad6b7169203331")
    assert {(name, each.parent_span_id) for name, each in spans.items()} == {
        ("wait_for_slot", rpc.span_id),
        ("text_completion tensorrt_llm", rpc.span_id),
    }
    assert {each.trace_id.hex() for each in (rpc, *spans.values())} == {"0af7651916cd43dd8448eb211c80319c"}
    resource = {
        each.key: each.value.string_value for each in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert (resource["service.name"], resource["service.version"]) == ("sidecar", __version__)


async def test_an_item_arrives_as_a_root_with_a_link_over_wait_completion_and_send(triton: FakeTriton) -> None:
    collector, cluster = Collector(), FakeCluster()
    cluster.produce(ITEM, headers=(("traceparent", PARENT.encode()),))
    async with (
        listening(collector) as endpoint,
        running_sidecar({"e0": triton}, tracing=everything_to(endpoint)) as sidecar,
    ):
        parts = (OfflineSettings(tick_s=0.001), sidecar.driver, WordTokens(), {"tensorrt_llm": 64})
        lane = OfflineLane(*parts, make_log=cluster.make_log, tracing=sidecar.tracing)
        async with running(lane):
            request = await triton.next()
            request.tokens(7)
            last = request._answer(True)
            wire.add_output(last, "kv_cache_reused_blocks", "INT32", [2], (1, 1))
            request.answers.put_nowait(last)
            await until(cluster, cluster.everything_once)
    spans = collector.spans()
    told = {each.key: each.value.int_value for each in spans["text_completion tensorrt_llm"].attributes}
    assert told["gen_ai.usage.cache_read.input_tokens"] == 2 * 32
    process = spans.pop("process inference.requests")
    assert (process.kind, process.parent_span_id) == (Span.SPAN_KIND_CONSUMER, b"")
    assert [link.trace_id.hex() for link in process.links] == ["0af7651916cd43dd8448eb211c80319c"]
    assert {(name, each.parent_span_id) for name, each in spans.items()} == {
        ("wait_for_slot", process.span_id),
        ("text_completion tensorrt_llm", process.span_id),
        ("send inference.results", process.span_id),
    }
    assert {each.trace_id for each in spans.values()} == {process.trace_id}
    written = dict(cluster.written[0][1].headers)["traceparent"].decode()
    assert written == f"00-{process.trace_id.hex()}-{spans['send inference.results'].span_id.hex()}-01"


def emit(tracing: Tracing, spans: int) -> None:
    trace = tracing.rpc({})
    for _ in range(spans):
        tracing.emit("wait_for_slot", SpanKind.INTERNAL, trace, 0.0, 1.0, {})


async def sent_or_given_up(tracing: Tracing) -> None:
    """The thread that sends has ended: each span is counted."""
    assert isinstance(tracing._processor, module.Exporting)
    await asyncio.to_thread(tracing._processor._batch_processor._worker_thread.join)


async def test_the_end_waits_once_for_a_collector_that_hangs_and_not_once_per_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EXPORT_TIMEOUT_S", 0.5)
    collector = Collector(hangs=True)
    async with listening(collector) as endpoint:
        tracing = sending_to(endpoint)
        await asyncio.to_thread(emit, tracing, BATCHES * 512)  # else this loop, and the collector in it, stood still
        await tracing.close()
    assert 1 <= len(collector.requests) < BATCHES / 2


async def test_a_collector_that_is_not_there_leaves_a_count_of_the_spans_and_nothing_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "EXPORT_TIMEOUT_S", 0.1)
    tracing = sending_to(f"http://127.0.0.1:{free_ports(1)[0]}")
    emit(tracing, 9000)  # more than the queue holds
    await tracing.close()  # gives up after a while; on a busy host the last batch is in the thread's hands until later
    await sent_or_given_up(tracing)
    assert tracing.dropped_spans == 9000
    assert caplog.messages == []
