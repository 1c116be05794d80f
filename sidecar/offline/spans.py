"""Spans of the offline lane: polls and commits, and for each item its processing and the sending of what came of it.

Attribute names and span kinds follow OpenTelemetry's messaging conventions 1.45: one `process` span per item, linked to
the context in which the item was created, and never one span over a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.trace import SpanKind

from sidecar.call import TRACEPARENT
from sidecar.core.request import Lane
from sidecar.offline.item import Headers, Record
from sidecar.offline.kafka_options import client_id
from sidecar.offline.owned_partition import FinishedItem
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.tracing import ItemTrace, Tracing

TRACE_STATE = "tracestate"


class KafkaSpans:
    """What the lane's doings look like as spans. Without `tracing` none is made."""

    def __init__(self, settings: OfflineSettings, tracing: Tracing | None, clock: Callable[[], float]) -> None:
        self.cluster_id = ""  # known once a broker has answered
        self._settings = settings
        self._tracing = tracing
        self._clock = clock

    def item(self, record: Record) -> ItemTrace | None:
        """An item begins."""
        if self._tracing is None:
            return None
        return self._tracing.item((dict(record.headers).get(TRACEPARENT) or b"").decode(errors="replace"))

    def adopt(self, request_id: str, trace: ItemTrace | None) -> None:
        """The spans of this request hang from the item's."""
        if self._tracing is not None and trace is not None:
            self._tracing.adopt(request_id, trace.process)

    def polled(self, begun_s: float, records: int) -> None:
        """Records have been fetched, from several partitions at once."""
        trace = None if self._tracing is None else self._tracing.broker()
        if self._tracing is not None and trace is not None:
            topic = self._settings.requests_topic
            attributes = self._attributes("poll", "receive", topic) | {"messaging.batch.message_count": records}
            name = f"poll {topic}"
            self._tracing.emit(name, SpanKind.CLIENT, trace, begun_s, self._clock(), attributes, span_id=trace.span_id)

    @contextmanager
    def committing(self, partition: int, batch: Iterable[FinishedItem]) -> Iterator[None]:
        """Within it one transaction becomes committed: the sending and the processing of the whole batch end with
        it."""
        begun_s, error_type = self._clock(), ""
        try:
            yield
        except BaseException as error:
            error_type = type(error).__name__
            raise
        finally:
            self._committed(partition, begun_s, error_type)
        for done in batch:
            self._end_item(done, begun_s)

    def _committed(self, partition: int, begun_s: float, error_type: str) -> None:
        trace = None if self._tracing is None else self._tracing.broker()
        if self._tracing is not None and trace is not None:
            topic = self._settings.requests_topic
            self._tracing.emit(
                f"commit {topic}",
                SpanKind.CLIENT,
                trace,
                begun_s,
                self._clock(),
                self._attributes("commit", "settle", topic, partition),
                span_id=trace.span_id,
                error_type=error_type,
            )

    def _end_item(self, done: FinishedItem, begun_s: float) -> None:
        """The spans of one item are sent, if they are kept: sampled, or a dead letter."""
        trace, tracing = done.trace, self._tracing
        if tracing is None or trace is None or not (trace.process.sampled or done.reason):
            return
        record, to, ended_s = done.record, done.outgoing.topic, self._clock()
        carries = (TRACEPARENT, context_of(trace)) in done.outgoing.headers
        tracing.emit(
            f"send {to}",
            SpanKind.PRODUCER if carries else SpanKind.CLIENT,
            trace.process,
            begun_s,
            ended_s,
            self._attributes("send", "send", to, record.partition),
            span_id=trace.send_id,
        )
        attributes = self._attributes("process", "process", record.topic, record.partition)
        attributes |= {"kafka.offset": record.offset, "sidecar.lane": Lane.OFFLINE.value}
        if record.key is not None:
            attributes["kafka.message.key"] = record.key.decode(errors="replace")
        tracing.emit(
            f"process {record.topic}",
            SpanKind.CONSUMER,
            trace.process,
            trace.process.begun_s,
            ended_s,
            attributes,
            span_id=trace.process.span_id,
            error_type=done.reason,
        )

    def _attributes(self, name: str, operation: str, topic: str, partition: int | None = None) -> dict[str, Any]:
        found = {
            "messaging.system.name": "kafka",
            "messaging.operation.name": name,
            "messaging.operation.type": operation,
            "messaging.destination.name": topic,
            "messaging.client.id": client_id(self._settings),
        }
        if partition is not None:
            found["messaging.destination.partition.id"] = str(partition)
        if operation != "send":
            found["messaging.consumer.group.name"] = self._settings.group
        if self.cluster_id:
            found["kafka.cluster.id"] = self.cluster_id
        return found


def context_of(trace: ItemTrace) -> bytes:
    """The `traceparent` of the sending of an item's result."""
    return f"00-{trace.process.trace_id:032x}-{trace.send_id:016x}-01".encode()


def result_context(headers: Headers, trace: ItemTrace | None) -> Headers:
    """The headers of a result: a new message, created in the send span. Untouched if that is not sampled."""
    if trace is None or not trace.process.sampled:
        return headers
    rest = (each for each in headers if each[0] not in (TRACEPARENT, TRACE_STATE))
    return (*rest, (TRACEPARENT, context_of(trace)))


def dead_context(headers: Headers, trace: ItemTrace | None) -> Headers:
    """The headers of a dead letter: still the item, so the context that it was created in stays, if it has one."""
    if any(name == TRACEPARENT for name, _ in headers):
        return headers
    return result_context(headers, trace)
