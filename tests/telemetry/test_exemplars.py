"""From a bucket of a histogram to the trace of a request in it, for whoever accepts OpenMetrics."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from dev.broker import free_ports
from sidecar.telemetry.http import Status, serve_http
from tests.driver.test_generation import begin, call, offline
from tests.fakes.triton import FakeTriton
from tests.telemetry.test_tracing import PARENT, Traced, traced

OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"
WITH_EXEMPLARS = {
    "gen_ai_server_request_duration_seconds",
    "gen_ai_server_time_to_first_token_seconds",
    "sidecar_queue_wait_seconds",
}
Exemplars = dict[tuple[str, str], set[tuple[str, str]]]  # by family and lane


async def page_of(each: Traced, accept: str) -> tuple[str, str]:
    """The metrics as one who accepts this sees them, and their type."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    runner = await serve_http(
        address, Status(each.sidecar.driver.scheduler.snapshot, each.sidecar.metrics, "test"), each.sidecar.metrics
    )
    try:
        async with (
            aiohttp.ClientSession(headers={"Accept": accept}) as session,
            session.get(f"http://{address}/metrics") as answer,
        ):
            return await answer.text(), answer.headers["Content-Type"]
    finally:
        await runner.cleanup()


def exemplars(page: str) -> Exemplars:
    """Trace and span id of each exemplar. Raises ValueError if the page is no OpenMetrics."""
    found: Exemplars = {}
    for family in text_string_to_metric_families(page):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.exemplar:
                ids = (sample.exemplar.labels["trace_id"], sample.exemplar.labels["span_id"])
                found.setdefault((family.name, sample.labels["lane"]), set()).add(ids)
    return found


@pytest.fixture
async def by_parent(triton: FakeTriton) -> AsyncIterator[Traced]:
    async for each in traced(triton, 0.0):
        yield each


async def test_what_a_sampled_request_took_names_its_span_in_three_families(
    by_parent: Traced, triton: FakeTriton
) -> None:
    await by_parent.ask(triton, traceparent=PARENT)
    await by_parent.sidecar.until(lambda: len(by_parent.spans()) == 3)
    page, content_type = await page_of(by_parent, OPENMETRICS)
    rpc = by_parent.spans()["inference.GRPCInferenceService/ModelInfer"].context
    ids = (f"{rpc.trace_id:032x}", f"{rpc.span_id:016x}")
    assert exemplars(page) == {(family, "online"): {ids} for family in WITH_EXEMPLARS}
    assert content_type.startswith("application/openmetrics-text")


async def test_what_is_not_sampled_leaves_no_exemplar_that_nobody_could_open(
    by_parent: Traced, triton: FakeTriton
) -> None:
    await by_parent.ask(triton)
    page, _ = await page_of(by_parent, OPENMETRICS)
    assert exemplars(page) == {}


async def test_an_item_names_its_process_span(by_parent: Traced, triton: FakeTriton) -> None:
    trace = by_parent.tracing.item(PARENT).process
    request = offline("inference.requests/0/1#1")
    by_parent.tracing.adopt(request.id, trace)
    task = begin(by_parent.sidecar, call(), request)
    (await triton.next()).tokens(2, final=True)
    await task
    page, _ = await page_of(by_parent, OPENMETRICS)
    ids = (f"{trace.trace_id:032x}", f"{trace.span_id:016x}")
    assert exemplars(page) == {(family, "offline"): {ids} for family in WITH_EXEMPLARS}


@pytest.mark.parametrize("accept", ["*/*", "text/plain"])
async def test_who_does_not_ask_for_openmetrics_gets_plain_text_without_exemplars(
    by_parent: Traced, triton: FakeTriton, accept: str
) -> None:
    await by_parent.ask(triton, traceparent=PARENT)
    page, content_type = await page_of(by_parent, accept)
    assert content_type.startswith("text/plain")
    assert "trace_id" not in page
    assert {family.name for family in plain_families(page)} >= WITH_EXEMPLARS
