"""No prompt and no output is in a log, a span, a metric, the status or the page."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import grpc.aio
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sidecar.settings.file import TracingSettings
from sidecar.telemetry.logs import JsonFormatter
from sidecar.telemetry.page import page
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, text_request

SECRET = "the-patient-is-called-Erika"
SECRET_IDS = (918_273, 645_546)
TRACING = TracingSettings(endpoint="http://unused", online_ratio=1.0, offline_ratio=1.0)


async def _asked(sidecar: Sidecar, triton: FakeTriton) -> None:
    """Calls of both lanes that end well, in errors of each kind, and in refusals; each holds secrets."""
    for lane in ("online", "offline"):
        metadata = (("x-lane", lane), ("x-tenant", "visible-tenant"))
        for end in ("well", "error", "status", "break") if lane == "online" else ("well", "status"):  # no retries
            for message in (
                text_request("t", text=SECRET),
                ids_request("i", ids=SECRET_IDS),
            ):
                call = sidecar.unary("ModelInfer", message, wire.InferResponse, metadata=metadata)
                await _answered(asyncio.ensure_future(call), triton, end)
    for odd in (text_request("o", text=SECRET, output=-3), ids_request("o", ids=SECRET_IDS * 40)):
        with pytest.raises(grpc.aio.AioRpcError):
            await sidecar.unary("ModelInfer", odd, wire.InferResponse)


async def _answered(call: asyncio.Future[Any], triton: FakeTriton, end: str) -> None:
    """Each dispatch of one call ends so, until the call is over."""
    while not call.done():
        waiting = asyncio.ensure_future(triton.next())
        await asyncio.wait({call, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            break
        request = waiting.result()
        of_text = request.message.model_name == "ensemble"
        request.text(SECRET) if of_text else request.tokens(SECRET_IDS[0])
        match end:
            case "well":
                request.text(SECRET, final=True) if of_text else request.tokens(SECRET_IDS[1], final=True)
            case "error":
                request.error(f"cannot make sense of '{SECRET}' {SECRET_IDS}")
            case "status":
                request.error(f"cannot make sense of '{SECRET}' {SECRET_IDS}", grpc.StatusCode.INVALID_ARGUMENT)
            case _:
                request.break_stream()
    await asyncio.wait({call})
    call.exception()


async def test_nothing_that_callers_or_engines_wrote_is_told_anywhere(
    triton: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    exporter = InMemorySpanExporter()
    async with running_sidecar(
        {"e0": triton},
        tracing=TRACING,
        spans=SimpleSpanProcessor(exporter),
    ) as sidecar:
        await asyncio.wait_for(_asked(sidecar, triton), 60)
        await sidecar.until(lambda: sidecar.driver.in_flight == 0)
        document = sidecar.status.document()
        told = {
            "log": "\n".join(JsonFormatter().format(each) for each in caplog.records),
            "spans": "\n".join(each.to_json() for each in exporter.get_finished_spans()),
            "metrics": sidecar.metrics.render("application/openmetrics-text")[0].decode(),
            "status": json.dumps(document),
            "page": page(document),
        }
    assert all("visible-tenant" in told[name] for name in ("log", "status"))  # or nothing would be proven
    for name, text in told.items():
        assert text, name
        for secret in (SECRET, "Erika", *map(str, SECRET_IDS)):
            assert secret not in text, f"{secret} is in the {name}"
