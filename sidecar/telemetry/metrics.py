"""What Prometheus sees: counters kept as things happen, gauges read from the scheduler's snapshot at each scrape.

Names follow the OpenTelemetry conventions where there is one, else `sidecar_*`. Label sets are finite, every child is
made before the first event (a counter that appears with its first event loses it to `increase()`), and children are
looked up once: `labels()` on each call would treble the cost of an observation (measured: 0.3 µs against 1.0 µs).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from grpc import StatusCode
from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sidecar.call import Outcome, Terminal, Timeline
from sidecar.core.engine import Limit
from sidecar.core.events import (
    Action,
    Arrived,
    Dispatch,
    Ended,
    Event,
    Failed,
    Finished,
    Lost,
    Preempt,
    Progressed,
    RejectReason,
    Stopped,
)
from sidecar.core.request import OFFLINE, DispatchKind, Lane, Request
from sidecar.core.settings import ReservationMode, SchedulerSettings
from sidecar.core.snapshot import Snapshot
from sidecar.errors import EngineError
from sidecar.settings.file import EngineEndpoint
from sidecar.telemetry import metric_table as table
from sidecar.telemetry.metric_row import Scraped
from sidecar.telemetry.slo_metrics import DeadlineMetrics, SloMetrics
from sidecar.telemetry.tenant_metrics import TenantMetrics

_OUTCOMES = ("ok", "error", "cancelled", "expired", "rejected")
# What an engine says is text of its own, and a label needs a finite set.
_ERROR_TYPES = frozenset(("", "dead_letter", *RejectReason, *(each.name for each in StatusCode)))
_UPSTREAM = "inference.GRPCInferenceService/ModelStreamInfer"
_KINDS = {
    Lane.ONLINE: (DispatchKind.ONLINE,),
    Lane.OFFLINE: (DispatchKind.BACKFILL, DispatchKind.RESERVED, DispatchKind.RESUME),
}


@dataclass(slots=True)
class LaneUsage:
    """What one lane of one engine has used since the start."""

    slots: int = 0
    slot_seconds: float = 0.0
    since_s: float = 0.0
    output_tokens: int = 0

    def at(self, now_s: float) -> float:
        """Slot-seconds up to `now_s`."""
        return self.slot_seconds + self.slots * (now_s - self.since_s)

    def change(self, slots: int, now_s: float) -> None:
        """From `now_s` on so many more slots are in use."""
        self.slot_seconds, self.since_s = self.at(now_s), now_s
        self.slots += slots


class _Lane:
    """The children of one model and lane."""

    def __init__(self, metrics: Metrics, model: str, lane: Lane) -> None:
        gen_ai = ("text_completion", "triton", model)
        self.ttft = metrics.ttft.labels(*gen_ai, lane)
        self.tpot = metrics.tpot.labels(*gen_ai, lane)
        self.queue_wait = metrics.waits.of(model, lane)
        self.input_tokens = metrics.tokens.labels(model, lane, "input")
        self.output_tokens = metrics.tokens.labels(model, lane, "output")
        self.dispatches = {kind: metrics.dispatches.labels(model, lane, kind) for kind in _KINDS[lane]}
        self.requests = {outcome: metrics.requests.labels(model, lane, outcome, "") for outcome in _OUTCOMES}
        metrics.attribution.labels(model)
        metrics.slowdown.labels(model)
        for reason in RejectReason:
            metrics.requests.labels(model, lane, "rejected", reason)
        metrics.duration.labels(*gen_ai, lane, "")


class Metrics:
    """A driver's Listener and the gRPC server's observer."""

    def __init__(
        self,
        engines: Sequence[EngineEndpoint],
        *,
        version: str,
        config_hash: str,
        scheduler: SchedulerSettings | None = None,
        queue_of: Callable[[str, Lane], tuple[int, str]] = lambda _model, _lane: (0, Limit.NONE),
        exemplar: Callable[[str], dict[str, str] | None] | None = None,
        dropped_spans: Callable[[], int] = lambda: 0,
        recorder: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """`scheduler` says what is promised: the objectives, and how long a reserved dispatch that is due may be put
        off.

        The others are `Scheduler.queue_of`, `Tracing.exemplar`, `Tracing.dropped_spans` and `Recorder.document`.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each, which nothing reads
        self.registry = CollectorRegistry()
        self._engines = {engine.name: engine for engine in engines}
        promised = scheduler or SchedulerSettings()
        self._make_families()
        self.build.labels(version, config_hash).set(1)
        firm = promised.reservation_mode is ReservationMode.FIRM
        models = sorted({engine.model for engine in engines})
        self._slos = SloMetrics(self.registry, models, promised)
        self._deadlines = DeadlineMetrics(self.registry, models)
        self._weights = {name: tenant.weight for name, tenant in promised.tenants.items()}
        for model in models:
            self.preemptions.labels(model, "online")
            self.offline_max_wait.labels(model).set(0.0 if firm else promised.postpone_max_s)
            for limit in Limit:
                self.held.labels(model, limit)
        for engine in engines:
            self.rpc_client.labels("grpc", _UPSTREAM, "OK", engine.target)
        self._lanes = {(model, lane): _Lane(self, model, lane) for model in models for lane in Lane}
        self.usage = {(name, lane): LaneUsage() for name in self._engines for lane in Lane}
        self._queue_of, self._exemplar = queue_of, exemplar
        self.dropped_spans, self.recorder = dropped_spans, recorder
        self.began_s = time.monotonic()  # the loop's clock
        self._spending = threading.Lock()
        self._spent: dict[str, dict[str, float]] = {}  # US dollars by engine and who had its slots, as last told
        self._requests: dict[str, Request] = {}
        self._exemplars: dict[str, dict[str, str]] = {}  # of the sampled requests among them
        self._running: dict[str, tuple[LaneUsage, Dispatch, float]] = {}
        self.snapshot: Snapshot | None = None
        self.loop_lag_max_s = 0.0  # since the last scrape
        self._tenants = TenantMetrics()
        self.registry.register(Scraped(table.SCRAPED, self._scrape))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def _make_families(self) -> None:
        registry = self.registry
        self.duration, self.rpc = table.DURATION.histogram(registry), table.RPC_SERVER.histogram(registry)
        self.ttft, self.tpot = table.TTFT.histogram(registry), table.TPOT.histogram(registry)
        self.rpc_client, self.dispatches = table.RPC_CLIENT.histogram(registry), table.DISPATCHES.counter(registry)
        self.attribution, self.slowdown = table.INTERFERENCE.histogram(registry), table.SLOWDOWN.histogram(registry)
        self.requests, self.tokens = table.REQUESTS.counter(registry), table.TOKENS.counter(registry)
        self.preemptions, self.held = table.PREEMPTIONS.counter(registry), table.HELD.counter(registry)
        self.offline_max_wait, self.build = table.OFFLINE_MAX_WAIT.gauge(registry), table.BUILD.gauge(registry)
        self.waits = _Waits(registry)

    # ---- Listener ----------------------------------------------------------------------------------------------------

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """Count what the event and its actions mean."""
        match event:
            case Progressed():
                self._progressed(event)
            case Arrived(request=request):
                self._requests[request.id] = request
                if self._exemplar is not None and (exemplar := self._exemplar(request.id)) is not None:
                    self._exemplars[request.id] = exemplar
                if request.lane is OFFLINE and not any(isinstance(each, Dispatch | Finished) for each in actions):
                    self.held.labels(request.model, self._queue_of(request.model, OFFLINE)[1]).inc()
            case Ended() | Stopped() | Failed() | Lost():
                self._over(now_s, event)
            case _:
                pass
        for action in actions:
            if isinstance(action, Dispatch):
                self._dispatched(action, now_s)
            elif isinstance(action, Preempt):
                self.preemptions.labels(self._engines[action.engine].model, "online").inc()

    def _over(self, now_s: float, event: Terminal) -> None:
        if (running := self._running.pop(event.request_id, None)) is None:
            return
        usage, dispatch, begun_s = running
        usage.change(-dispatch.slots, now_s)
        upstream = ("grpc", _UPSTREAM, status_of(event), self.address(dispatch.engine))
        self.rpc_client.labels(*upstream).observe(now_s - begun_s)

    def _progressed(self, event: Progressed) -> None:
        tokens_by_lane: dict[tuple[str, Lane], int] = {}
        for request_id, tokens in event.tokens:
            if (request := self._requests.get(request_id)) is not None:
                key = (request.model, request.lane)
                tokens_by_lane[key] = tokens_by_lane.get(key, 0) + tokens
        for key, tokens in tokens_by_lane.items():
            self._lanes[key].output_tokens.inc(tokens)
            self.usage[event.engine, key[1]].output_tokens += tokens

    def _dispatched(self, action: Dispatch, now_s: float) -> None:
        if (request := self._requests.get(action.request_id)) is None:
            return
        usage = self.usage[action.engine, request.lane]
        usage.change(action.slots, now_s)
        self._running[action.request_id] = (usage, action, now_s)
        lane = self._lanes[request.model, request.lane]
        lane.dispatches[action.kind].inc()
        lane.queue_wait.observe(action.queue_wait_s, self._exemplars.get(request.id))

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """Count a request that is over, and how long it took."""
        self._requests.pop(request.id, None)
        exemplar = self._exemplars.pop(request.id, None)
        if (lane := self._lanes.get((request.model, request.lane))) is None:
            return
        end_s = timeline.finished_s or timeline.arrived_s
        gen_ai = ("text_completion", "triton", request.model)
        error_type = outcome.error_type if outcome.error_type in _ERROR_TYPES else "other"
        self.duration.labels(*gen_ai, request.lane, error_type).observe(end_s - timeline.arrived_s, exemplar)
        self.requests.labels(request.model, request.lane, outcome.outcome, error_type).inc()
        self._slos.finished(request, timeline, outcome)
        self._deadlines.finished(request, timeline, outcome)
        if timeline.first_token_s is None:
            return
        lane.input_tokens.inc(request.prompt_tokens)
        lane.ttft.observe(timeline.first_token_s - timeline.arrived_s, exemplar)
        if outcome.outcome == "ok" and timeline.alone_s is not None and timeline.dispatched_s is not None:
            self.attribution.labels(request.model).observe(max(0.0, end_s - timeline.dispatched_s - timeline.alone_s))
        if outcome.outcome == "ok" and timeline.slowdown is not None:
            self.slowdown.labels(request.model).observe(timeline.slowdown)
        if outcome.outcome == "ok" and timeline.output_tokens > 1:
            lane.tpot.observe((end_s - timeline.first_token_s) / (timeline.output_tokens - 1))

    def served(self, method: str, code: str, seconds: float) -> None:
        """Count one inbound RPC."""
        self.rpc.labels("grpc", method, code).observe(seconds)

    # ---- the page ----------------------------------------------------------------------------------------------------

    def rents(self) -> Iterable[tuple[str, str, Mapping[str, float]]]:
        """Model and name of each engine whose price is known, and US dollars since the start by who had its slots.

        Nobody's dollars ever become fewer: Prometheus would take that for a restart, and count all of them again.
        """
        now_s = time.monotonic()
        for name, engine in self._engines.items():
            if engine.usd_per_hour:
                usd_per_s = engine.usd_per_hour / 3600
                spent = {lane.value: usd_per_s * self.usage[name, lane].at(now_s) / engine.slots for lane in Lane}
                spent["idle"] = usd_per_s * (now_s - self.began_s) - sum(spent.values())
                with self._spending:  # two scrapes may be rendered at once, each in a thread
                    known = self._spent.setdefault(name, dict.fromkeys(spent, 0.0))
                    known |= {who: max(known[who], usd) for who, usd in spent.items()}
                    yield engine.model, name, dict(known)

    def address(self, engine: str) -> str:
        """Where an engine is, as the label says it."""
        return self._engines[engine].target

    def _scrape(self) -> table.Scrape | None:
        """Return what the next page shows; None before there is a snapshot. The longest lag is counted anew."""
        if (snapshot := self.snapshot) is None:
            return None
        lag_s, self.loop_lag_max_s = self.loop_lag_max_s, 0.0
        return table.Scrape(
            snapshot=snapshot,
            addresses={name: engine.target for name, engine in self._engines.items()},
            slot_seconds={key: usage.at(snapshot.now_s) for key, usage in self.usage.items()},
            usd=self.rents(),
            tenant_tokens=self._tenants.tokens(snapshot),
            dropped_spans=self.dropped_spans(),
            recorder=None if self.recorder is None else self.recorder(),
            loop_lag_s=lag_s,
            weights=self._weights,
        )

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page for `snapshot` and its content type: with exemplars if OpenMetrics is accepted, else as plain text.

        Takes some 10 ms: call it in a thread.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def status_of(event: Terminal) -> str:
    """The gRPC status of the dispatch that ended so, by its name."""
    match event:
        case Ended() | Stopped():
            return "OK"
        case Failed(reason=reason):
            return EngineError.parse(reason)[0].name
        case Lost():
            return "UNAVAILABLE"
        case _:
            assert_never(event)


class _Waits(Collector):
    """One family from two histograms: the lanes wait on scales that share no useful buckets."""

    def __init__(self, registry: CollectorRegistry) -> None:
        row = table.QUEUE_WAIT
        self._lanes = {
            lane: Histogram(row.name, row.help, ("model",), buckets=buckets, registry=None)
            for lane, buckets in ((Lane.ONLINE, row.buckets), (Lane.OFFLINE, table.WAIT_OFFLINE_S))
        }
        registry.register(self)

    def of(self, model: str, lane: Lane) -> Histogram:
        """Return what observes the waits of one lane."""
        return self._lanes[lane].labels(model)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, as `Scraped` does."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the one family."""
        family = Metric(table.QUEUE_WAIT.name, table.QUEUE_WAIT.help, table.QUEUE_WAIT.kind)
        for lane, histogram in self._lanes.items():
            for part in histogram.collect():
                for sample in part.samples:
                    family.samples.append(sample._replace(labels={**sample.labels, "lane": lane}))
        yield family
