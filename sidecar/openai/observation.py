"""What metrics and traces say of HTTP requests, by OpenTelemetry's names."""

from __future__ import annotations

import asyncio

from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry, Histogram

from sidecar.telemetry.tracing import Trace, Tracing

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
FAILED = 500  # from this status on a span is an error


class HttpMetrics:
    """Durations of HTTP requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._durations = Histogram(
            "http_server_request_duration_seconds",
            "Requests of the OpenAI API, from the first byte to the last of the answer",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=BUCKETS,
            registry=registry,
        )

    def served(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request is over."""
        method = method if method in ("GET", "POST", "DELETE") else "_OTHER"
        self._durations.labels(method, route, str(status)).observe(seconds)


def end_span(tracing: Tracing, trace: Trace, method: str, route: str, status: int) -> None:
    """Send the span of a request, if it is kept: sampled, gone wrong, or with a request that is kept."""
    failed = status >= FAILED
    if trace.sampled or failed or trace.late:
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        error_type = str(status) if failed else ""
        name = f"{method} {route}"
        tracing.emit(
            name, SpanKind.SERVER, trace, trace.begun_s, asyncio.get_running_loop().time(), attributes,
            span_id=trace.span_id, error_type=error_type,
        )  # fmt: skip
