"""Spans over OTLP, made when a request is over and only for those that are kept.

Ids are drawn when something begins, so that the engine's own spans can name ours as their parent; the spans themselves
are built at the end, from the timestamps that the driver keeps anyway. A request that is not sampled costs a
comparison, a token nothing, and one that went wrong is kept although it was not sampled (`sidecar.sampled_late`).

Attribute names follow OpenTelemetry's semantic conventions 1.45 (rpc, messaging) and its gen_ai conventions; they are
written out here because the packages that hold them are still betas.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import inf
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sidecar.call import TRACEPARENT, Outcome, Terminal, Timeline
from sidecar.core.events import Action, Arrived, Dispatch, Ended, Event, Failed, Lost, Stopped
from sidecar.core.request import Lane, Request
from sidecar.settings.file import TracingSettings
from sidecar.telemetry.span_export import Exporting, GivenIds
from sidecar.tls import Material

CURRENT: ContextVar[Trace | None] = ContextVar("trace of the RPC being served", default=None)
SCHEMA_URL = "https://opentelemetry.io/schemas/1.45.0"
_W3C = TraceContextTextMapPropagator()
Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


def no_trace(_request_id: str) -> str:
    """Without tracing no request has a trace."""
    return ""


@dataclass(slots=True, kw_only=True, eq=False)
class Trace:
    """One span of ours that others hang from: the RPC of a caller, or the processing of an item."""

    trace_id: int
    span_id: int
    parent_id: int  # 0 = a root
    sampled: bool
    begun_s: float
    link: SpanContext | None = None  # the context in which a message was created
    lanes: set[Lane] = field(default_factory=set)  # of the requests that hang from it
    late: bool = False  # a request of it is kept although it was not sampled, so it is too


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTrace:
    """The spans of one item whose ids are known before they end: its processing, and the sending of its result."""

    process: Trace
    send_id: int


@dataclass(slots=True)
class _Attempt:
    """One dispatch."""

    span_id: int
    waited_since_s: float
    begun_s: float
    kind: str
    queue_depth: int
    limit_binding: str
    ended_s: float = 0.0
    finish_reason: str = "error"
    error_type: str = ""
    reused_tokens: int | None = None  # of the prompt, which the engine still had in its KV cache; None = unknown


@dataclass(slots=True)
class _Traced:
    trace: Trace
    arrived_s: float
    request: Request | None = None
    queue_depth: int = 0  # of its lane, when it last began to wait: itself included, unless it was dispatched at once
    limit_binding: str = ""  # what held offline back then
    attempts: list[_Attempt] = field(default_factory=list)


class Tracing:
    """A driver's Listener that keeps what spans need, and sends them."""

    def __init__(
        self,
        settings: TracingSettings,
        *,
        address: str,
        version: str,
        ttft_objective_ms: float = inf,
        processor: SpanProcessor | None = None,
        seed: int | None = None,
        queue_of: Callable[[str, Lane], tuple[int, str]] = lambda _model, _lane: (0, ""),
        tls: Material | None = None,
    ) -> None:
        """Online requests that begin later than `ttft_objective_ms`, or than their own objective, are always kept.

        `queue_of` tells how many requests of a model and lane wait, and what holds offline back: `Scheduler.queue_of`.
        """
        self._settings = settings
        self._ttft_objective_ms = ttft_objective_ms
        self._address = address
        self._random = random.Random(seed)
        self._ids = GivenIds()
        self._time = asyncio.get_running_loop().time
        resource = Resource.create({"service.name": "sidecar", "service.version": version})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._processor = processor or Exporting(settings, tls)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("sidecar", version, SCHEMA_URL)
        self._requests: dict[str, _Traced] = {}
        self._queue_of = queue_of

    @property
    def dropped_spans(self) -> int:
        """How many spans were made and never reached the collector."""
        return self._processor.dropped if isinstance(self._processor, Exporting) else 0

    async def close(self) -> None:
        """What waits has been sent, or given up within EXPORT_TIMEOUT_S."""
        await asyncio.to_thread(self._provider.shutdown)

    # ---- where traces begin ------------------------------------------------------------------------------------------

    def rpc(self, metadata: Mapping[str, Any]) -> Trace:
        """A caller's RPC begins: in the caller's trace if it sent one, else in a new one, sampled by ratio."""
        parent = parse(metadata.get(TRACEPARENT))
        if parent is not None:
            sampled = parent.trace_flags.sampled
            return self._trace(parent.trace_id, parent.span_id, sampled)
        return self._root(self._settings.online_ratio)

    def item(self, traceparent: str | None) -> ItemTrace:
        """An item begins: a trace of its own, linked to its producer's; kept if that is sampled, else by ratio."""
        link = parse(traceparent)
        ratio = 1.0 if link and link.trace_flags.sampled else self._settings.offline_ratio
        return ItemTrace(process=self._root(ratio, link), send_id=self._random.getrandbits(64))

    def broker(self) -> Trace | None:
        """The trace of one poll or commit, which is a single span; None for the many that are not sampled."""
        trace = self._root(self._settings.broker_ratio)
        return trace if trace.sampled else None

    def adopt(self, request_id: str, trace: Trace) -> None:
        """The spans of this request hang from `trace`."""
        self._requests[request_id] = _Traced(trace, self._time())

    def headers(self, request_id: str) -> Sequence[tuple[str, str]]:
        """What to send along with the current dispatch.

        Nothing if it is not sampled: Triton traces whatever comes with a valid parent, its sampled flag or not.
        """
        traced = self._requests.get(request_id)
        if traced is None or not traced.trace.sampled or not traced.attempts:
            return ()
        return ((TRACEPARENT, f"00-{traced.trace.trace_id:032x}-{traced.attempts[-1].span_id:016x}-01"),)

    def trace_id(self, request_id: str) -> str:
        """Return the trace of a request that is alive, sampled or not; "" if it has none."""
        traced = self._requests.get(request_id)
        return "" if traced is None else f"{traced.trace.trace_id:032x}"

    def exemplar(self, request_id: str) -> dict[str, str] | None:
        """Which span a measurement of this request belongs to; None if that is not sampled, for nobody could open
        it."""
        traced = self._requests.get(request_id)
        if traced is None or not traced.trace.sampled:
            return None
        return {"trace_id": f"{traced.trace.trace_id:032x}", "span_id": f"{traced.trace.span_id:016x}"}

    def _root(self, ratio: float, link: SpanContext | None = None) -> Trace:
        return self._trace(self._random.getrandbits(128), 0, self._random.random() < ratio, link)

    def _trace(self, trace_id: int, parent_id: int, sampled: bool, link: SpanContext | None = None) -> Trace:
        span_id = self._random.getrandbits(64)
        return Trace(
            trace_id=trace_id, span_id=span_id, parent_id=parent_id, sampled=sampled, begun_s=self._time(), link=link
        )

    # ---- Listener ----------------------------------------------------------------------------------------------------

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """Note when dispatches begin and end, and what those find that begin to wait."""
        if isinstance(event, Arrived):
            self._waits(event.request.id, event.request)
        elif isinstance(event, Ended | Stopped | Failed | Lost):
            self._ended(event, now_s)
            self._waits(event.request_id)
        for action in actions:
            if isinstance(action, Dispatch) and (traced := self._requests.get(action.request_id)) is not None:
                span_id = self._random.getrandbits(64)
                found = traced.queue_depth, traced.limit_binding
                traced.attempts.append(_Attempt(span_id, now_s - action.queue_wait_s, now_s, action.kind, *found))

    def _waits(self, request_id: str, request: Request | None = None) -> None:
        """The request has arrived, or waits anew after a dispatch (or backs off before it does)."""
        traced = self._requests.get(request_id)
        if traced is None:
            return
        traced.request = request = request or traced.request
        if request is not None:
            traced.trace.lanes.add(request.lane)
            traced.queue_depth, traced.limit_binding = self._queue_of(request.model, request.lane)

    def _ended(self, event: Terminal, now_s: float) -> None:
        traced = self._requests.get(event.request_id)
        if traced is None or not traced.attempts:
            return
        attempt = traced.attempts[-1]
        attempt.ended_s = now_s
        attempt.reused_tokens = getattr(event, "reused_tokens", None)
        match event:
            case Ended(reason=reason):
                attempt.finish_reason = reason
            case Stopped():
                attempt.finish_reason = "stopped"
            case Failed(reason=reason):
                attempt.error_type = reason.split(":", 1)[0]
            case Lost():
                attempt.error_type = "UNAVAILABLE"

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """Send the spans of a request, if they are kept."""
        traced = self._requests.pop(request.id, None)
        if traced is None:
            return
        slow = request.lane is Lane.ONLINE and timeline.began_late(request, self._ttft_objective_ms)
        if slow or outcome.outcome in ("error", "expired", "rejected"):
            traced.trace.late = True
        elif not traced.trace.sampled:
            return
        for number, attempt in enumerate(traced.attempts, start=1):
            self._wait(request, traced.trace, attempt)
            self._completion(request, traced.trace, attempt, timeline, number)
        if not traced.attempts:
            ended_s = timeline.finished_s or self._time()
            attributes = _wait_attributes(request, traced.queue_depth, traced.limit_binding)
            self.emit(
                "wait_for_slot",
                SpanKind.INTERNAL,
                traced.trace,
                traced.arrived_s,
                ended_s,
                attributes,
                error_type=outcome.error_type,
            )

    def _wait(self, request: Request, trace: Trace, attempt: _Attempt) -> None:
        attributes = _wait_attributes(request, attempt.queue_depth, attempt.limit_binding)
        attributes["sidecar.dispatch.kind"] = attempt.kind
        self.emit("wait_for_slot", SpanKind.INTERNAL, trace, attempt.waited_since_s, attempt.begun_s, attributes)

    def _completion(self, request: Request, trace: Trace, attempt: _Attempt, timeline: Timeline, number: int) -> None:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "triton",
            "gen_ai.request.model": request.model,
            "gen_ai.request.max_tokens": request.output_tokens_max,
            "gen_ai.usage.input_tokens": request.prompt_tokens,
            "gen_ai.usage.output_tokens": timeline.output_tokens,
            "gen_ai.response.finish_reasons": (attempt.finish_reason,),
            "rpc.system.name": "grpc",
            "rpc.method": "inference.GRPCInferenceService/ModelStreamInfer",
            "sidecar.engine": timeline.engine,
            "sidecar.attempt": number,
        }
        if attempt.reused_tokens is not None:
            attributes["gen_ai.usage.cache_read.input_tokens"] = attempt.reused_tokens
        if timeline.alone_s is not None:
            attributes["sidecar.alone_ms"] = timeline.alone_s * 1000
        if timeline.slowdown is not None:
            attributes["sidecar.slowdown"] = timeline.slowdown
        first_s = timeline.first_token_s
        if first_s is not None and number == 1:
            attributes["gen_ai.response.time_to_first_chunk"] = first_s - attempt.begun_s
        span = self._begin(
            f"text_completion {request.model}", SpanKind.CLIENT, trace, attempt.begun_s, attributes, attempt.span_id
        )
        if first_s is not None and number == 1:
            span.add_event("gen_ai.first_token", timestamp=self._ns(first_s))
        self._end(span, attempt.ended_s or self._time(), attempt.error_type)

    # ---- the spans that others hang from -----------------------------------------------------------------------------

    def end_rpc(self, trace: Trace, method: str, code: str) -> None:
        """Send the span of a caller's RPC, if it is kept: sampled, gone wrong, or with a request that is kept."""
        failed = code not in ("OK", "CANCELLED")
        if not (trace.sampled or failed or trace.late):
            return
        host, _, port = self._address.rpartition(":")
        attributes: dict[str, Any] = {
            "rpc.system.name": "grpc",
            "rpc.method": method,
            "rpc.status_code": code,
            "server.address": host,
            "server.port": int(port),
        }
        if trace.lanes:
            attributes["sidecar.lane"] = ",".join(sorted(trace.lanes))
        self.emit(
            method,
            SpanKind.SERVER,
            trace,
            trace.begun_s,
            self._time(),
            attributes,
            span_id=trace.span_id,
            error_type=code if failed else "",
        )

    # ---- building ----------------------------------------------------------------------------------------------------

    def emit(
        self,
        name: str,
        kind: SpanKind,
        trace: Trace,
        begun_s: float,
        ended_s: float,
        attributes: Attributes,
        *,
        span_id: int | None = None,
        error_type: str = "",
    ) -> None:
        """A span is being sent, whether sampled or not: the trace's own if it has that id, else one that hangs from it.

        With an `error_type` its status is ERROR.
        """
        span_id = self._random.getrandbits(64) if span_id is None else span_id
        self._end(self._begin(name, kind, trace, begun_s, attributes, span_id), ended_s, error_type)

    def _begin(
        self,
        name: str,
        kind: SpanKind,
        trace: Trace,
        begun_s: float,
        attributes: Attributes,
        span_id: int,
    ) -> Any:
        own = span_id == trace.span_id
        parent_id = trace.parent_id if own else trace.span_id
        self._ids.trace_id, self._ids.span_id = trace.trace_id, span_id
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = SpanContext(trace.trace_id, parent_id, is_remote=True, trace_flags=flags)
        return self._tracer.start_span(
            name,
            otel.set_span_in_context(otel.NonRecordingSpan(parent)) if parent_id else Context(),
            kind=kind,
            attributes={**attributes, **({} if trace.sampled else {"sidecar.sampled_late": True})},
            links=[Link(trace.link)] if trace.link and own else None,
            start_time=self._ns(begun_s),
        )

    def _end(self, span: Any, ended_s: float, error_type: str) -> None:
        if error_type:
            span.set_attribute("error.type", error_type)
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=self._ns(ended_s))

    def _ns(self, at_s: float) -> int:
        """A time of the loop's clock as nanoseconds since 1970."""
        return time.time_ns() - int((self._time() - at_s) * 1e9)


def parse(traceparent: Any) -> SpanContext | None:
    """The context of a W3C `traceparent`, or None if there is no valid one."""
    carrier = {TRACEPARENT: traceparent} if isinstance(traceparent, str) else {}
    context = otel.get_current_span(_W3C.extract(carrier, Context())).get_span_context()
    return context if context.is_valid else None


def _wait_attributes(request: Request, queue_depth: int, limit_binding: str) -> dict[str, Any]:
    """What was found at the beginning of a wait; nothing bound whoever was dispatched at once."""
    bound = {"sidecar.limit_binding": str(limit_binding)} if queue_depth else {}
    return {"sidecar.lane": request.lane.value, "sidecar.queue.depth": queue_depth, **bound}
