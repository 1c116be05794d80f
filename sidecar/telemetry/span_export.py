"""How spans reach the collector: over OTLP, in batches, and never at the expense of what they tell of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator

from sidecar.settings.file import TracingSettings
from sidecar.tls import Material

SPANS_MAX = 8192  # that wait to be sent
EXPORT_TIMEOUT_S = 3  # of one batch, and of all that is left at the end


class GivenIds(IdGenerator):
    """Hands out the ids that were drawn when the span began."""

    trace_id = span_id = 0

    def generate_trace_id(self) -> int:
        """Return that of the trace."""
        return self.trace_id

    def generate_span_id(self) -> int:
        """Return that of the span."""
        return self.span_id


class Exporting(BatchSpanProcessor):
    """Sends from a thread of its own; when the collector is away spans are dropped and counted, never waited for."""

    def __init__(self, settings: TracingSettings, tls: Material | None = None) -> None:
        # They would warn that nobody listens, and of each queue that is full; whoever misses spans sees it there.
        logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").setLevel(logging.CRITICAL)
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL)
        self._otlp = _Counting(settings, tls)
        self._overflown = 0
        super().__init__(
            self._otlp,
            max_queue_size=SPANS_MAX,
            schedule_delay_millis=1000,
            max_export_batch_size=512,
            export_timeout_millis=EXPORT_TIMEOUT_S * 1000,
        )

    @property
    def dropped(self) -> int:
        """How many spans found the queue full, or were in a batch that the collector did not take."""
        return self._overflown + self._otlp.failed

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it; the oldest one gives way if there is no room."""
        self._overflown += len(self._batch_processor._queue) >= SPANS_MAX  # the SDK counts for its own metrics only
        super().on_end(span)

    def shutdown(self) -> None:
        """What waited has been sent, or given up after EXPORT_TIMEOUT_S: the SDK would try each batch for so long."""
        giving_up = threading.Timer(EXPORT_TIMEOUT_S, self._otlp.shutdown)
        giving_up.daemon = True
        giving_up.start()
        super().shutdown()  # type: ignore[no-untyped-call]
        giving_up.cancel()


class _Counting(SpanExporter):
    """Counts the spans of batches that failed. With certificates that have changed it connects anew."""

    def __init__(self, settings: TracingSettings, tls: Material | None) -> None:
        self.failed = 0
        self._endpoint = settings.endpoint
        self._headers = settings.headers()
        self._tls = tls
        self._tls_version = 0
        self._over = threading.Event()
        self._exporter = self._connected()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE  # also if it raises: the channel may be closed under it
        try:
            if self._tls is not None and self._tls.refresh() != self._tls_version and not self._over.is_set():
                self._exporter.shutdown()
                self._exporter = self._connected()
            result = self._exporter.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._over.set()
        self._exporter.shutdown()

    def _connected(self) -> OTLPSpanExporter:
        if self._tls is None:
            return OTLPSpanExporter(
                endpoint=self._endpoint, insecure=True, headers=self._headers, timeout=EXPORT_TIMEOUT_S
            )
        self._tls_version = self._tls.refresh()
        return OTLPSpanExporter(
            endpoint=self._endpoint,
            insecure=False,
            credentials=self._tls.channel_credentials(),
            headers=self._headers,
            timeout=EXPORT_TIMEOUT_S,
            channel_options=self._tls.channel_options(),  # type: ignore[arg-type]  # the exporter says: of one pair
        )
