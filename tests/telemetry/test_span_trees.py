"""Golden trees of spans: what hangs from what when a caller gives up, and when an item is resumed twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sidecar.core.settings import SchedulerSettings
from sidecar.offline.lane import OfflineLane
from sidecar.settings.file import TracingSettings
from sidecar.settings.offline import OfflineSettings
from sidecar.triton import wire
from tests.fakes.log import FakeCluster, WordTokens
from tests.fakes.sidecar import running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request
from tests.offline.test_lane import running, until
from tests.telemetry.test_tracing import Traced, traced

LEFT_OUT = ("poll ", "commit ")  # traces of their own


def tree(spans: tuple[ReadableSpan, ...]) -> list[str]:
    """One line per span: its depth, its name, its kind, and what it ended with."""
    kept = [each for each in spans if not each.name.startswith(LEFT_OUT)]
    known = {each.context.span_id for each in kept}
    children: dict[int, list[ReadableSpan]] = {}
    for each in kept:  # in the order in which they were sent: two of one moment differ by the clock's noise
        parent = each.parent.span_id if each.parent and each.parent.span_id in known else 0
        children.setdefault(parent, []).append(each)

    def lines(parent: int, depth: int) -> list[str]:
        return [
            line
            for each in children.get(parent, ())
            for line in (
                f"{'  ' * depth}{each.name} {each.kind.name}{_end(each)}",
                *lines(each.context.span_id, depth + 1),
            )
        ]

    return lines(0, 0)


def _end(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    told = [attributes.get(name) for name in ("sidecar.dispatch.kind", "sidecar.attempt", "error.type")]
    reasons = attributes.get("gen_ai.response.finish_reasons")
    told += list(reasons) if isinstance(reasons, tuple) else []
    return "".join(f" {each}" for each in told if each is not None)


@pytest.fixture
async def always(triton: FakeTriton) -> AsyncIterator[Traced]:
    async for each in traced(triton, 1.0):
        yield each


@pytest.fixture
async def sliced(triton: FakeTriton) -> AsyncIterator[Traced]:
    """Items run in chunks of eight output tokens."""
    exporter = InMemorySpanExporter()
    settings = TracingSettings(endpoint="http://unused", offline_ratio=1.0)
    scheduler = SchedulerSettings(window_ms=0, slice_tokens=8, slice_tokens_busy=8)
    processor = SimpleSpanProcessor(exporter)
    async with running_sidecar({"e0": triton}, tracing=settings, spans=processor, scheduler=scheduler) as sidecar:
        assert sidecar.tracing is not None
        yield Traced(sidecar=sidecar, tracing=sidecar.tracing, exporter=exporter)


async def test_a_caller_that_gives_up_leaves_a_wait_and_a_stopped_completion(
    always: Traced, triton: FakeTriton
) -> None:
    answer = always.sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
    request = await triton.next()
    request.tokens(3)
    answer.cancel()
    request.end()
    await always.sidecar.until(lambda: len(always.exporter.get_finished_spans()) == 3)
    assert tree(always.exporter.get_finished_spans()) == [
        "inference.GRPCInferenceService/ModelInfer SERVER",
        "  wait_for_slot INTERNAL online",
        "  text_completion tensorrt_llm CLIENT 1 stopped",
    ]


async def test_an_item_that_is_resumed_twice_has_a_wait_and_a_completion_for_each_dispatch(
    sliced: Traced, triton: FakeTriton
) -> None:
    cluster = FakeCluster()
    cluster.produce(b'{"id": "1", "prompt": "one two", "max_tokens": 40}')
    parts = (sliced.sidecar.driver, WordTokens(), {"tensorrt_llm": 64})
    lane = OfflineLane(OfflineSettings(tick_s=0.001), *parts, make_log=cluster.make_log, tracing=sliced.tracing)
    async with running(lane), asyncio.timeout(10):
        for _ in range(2):
            request = await triton.next()
            request.tokens(*[7] * request.input("request_output_len")[0], final=True)
        (await triton.next()).tokens(7, 2, final=True)
        await until(cluster, cluster.everything_once)
    assert tree(sliced.exporter.get_finished_spans()) == [
        "process inference.requests CONSUMER",
        "  wait_for_slot INTERNAL backfill",
        "  text_completion tensorrt_llm CLIENT 1 length",
        "  wait_for_slot INTERNAL resume",
        "  text_completion tensorrt_llm CLIENT 2 length",
        "  wait_for_slot INTERNAL resume",
        "  text_completion tensorrt_llm CLIENT 3 end_id",
        "  send inference.results PRODUCER",
    ]


async def test_a_dead_letter_is_a_failed_process_span_over_what_was_sent(always: Traced) -> None:
    cluster = FakeCluster()
    cluster.produce(b"{")
    parts = (always.sidecar.driver, WordTokens(), {"tensorrt_llm": 64})
    lane = OfflineLane(OfflineSettings(tick_s=0.001), *parts, make_log=cluster.make_log, tracing=always.tracing)
    async with running(lane), asyncio.timeout(10):
        await until(cluster, cluster.everything_once)
    assert tree(always.exporter.get_finished_spans()) == [
        "process inference.requests CONSUMER not_json",
        "  send inference.requests.dlq PRODUCER",
    ]


async def test_an_online_request_is_a_call_over_its_wait_and_its_completion(always: Traced, triton: FakeTriton) -> None:
    await always.ask(triton)
    await always.sidecar.until(lambda: len(always.exporter.get_finished_spans()) == 3)
    assert tree(always.exporter.get_finished_spans()) == [
        "inference.GRPCInferenceService/ModelInfer SERVER",
        "  wait_for_slot INTERNAL online",
        "  text_completion tensorrt_llm CLIENT 1 end_id",
    ]
