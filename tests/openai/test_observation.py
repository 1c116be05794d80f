"""What metrics and spans say of HTTP requests."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from sidecar.openai.observation import HttpMetrics, end_span
from sidecar.settings.file import TracingSettings
from sidecar.telemetry.tracing import Tracing

COUNT = "http_server_request_duration_seconds_count"


@pytest.mark.parametrize(("method", "label"), [("POST", "POST"), ("BREW", "_OTHER")])
def test_a_request_is_counted_by_a_bounded_number_of_labels(method: str, label: str) -> None:
    registry = CollectorRegistry()
    HttpMetrics(registry).served(method, "/v1/models", 200, 0.1)
    labels = {"http_request_method": label, "http_route": "/v1/models", "http_response_status_code": "200"}
    assert registry.get_sample_value(COUNT, labels) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(200, StatusCode.UNSET), (429, StatusCode.UNSET), (502, StatusCode.ERROR)]
)
async def test_a_span_says_the_route_and_the_status(status: int, code: StatusCode) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(
        TracingSettings(endpoint="http://127.0.0.1:1"),
        address="a:1",
        version="0",
        processor=SimpleSpanProcessor(exporter),
    )
    end_span(tracing, tracing.rpc({}), "POST", "/v1/completions", status)
    await tracing.close()
    [span] = exporter.get_finished_spans()
    assert (span.name, span.status.status_code) == ("POST /v1/completions", code)
    assert dict(span.attributes or {})["http.response.status_code"] == status
