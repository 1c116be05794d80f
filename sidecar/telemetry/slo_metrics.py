"""Whether each online request got what was promised: judged one by one, against its own objective if it stated one.

From a histogram it could only be read where the objective is the boundary of a bucket.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from prometheus_client import CollectorRegistry

from sidecar.call import Outcome, Timeline
from sidecar.core.events import RejectReason
from sidecar.core.request import Lane, Request
from sidecar.core.settings import SchedulerSettings
from sidecar.telemetry.metric_table import DEADLINES, SLO_EVENTS, SLO_TARGET

SLOS = ("ttft", "e2e", "availability")
NOT_OURS = frozenset((RejectReason.TOO_LARGE, RejectReason.UNKNOWN_MODEL))  # the caller's own fault


class SloMetrics:
    """The families `sidecar_slo_*`."""

    def __init__(self, registry: CollectorRegistry, models: Iterable[str], promised: SchedulerSettings) -> None:
        self._ttft_objective_ms, self._e2e_s = promised.ttft_objective_ms, promised.e2e_objective_ms / 1000
        target, events = SLO_TARGET.gauge(registry), SLO_EVENTS.counter(registry)
        target.labels("ttft").set(promised.ttft_objective_ms / 1000)
        target.labels("e2e").set(self._e2e_s)
        self._events = {
            (model, slo): (events.labels(model, slo, "bad"), events.labels(model, slo, "good"))
            for model in models
            for slo in SLOS
        }

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """Count a request that is over; one that its caller gave up, or asked for wrongly, says nothing."""
        if request.lane is Lane.OFFLINE or outcome.outcome == "cancelled" or outcome.error_type in NOT_OURS:
            return
        served = outcome.outcome == "ok"
        self._count(request.model, "availability", served)
        if timeline.first_token_s is not None:
            self._count(request.model, "ttft", not timeline.began_late(request, self._ttft_objective_ms))
        if served and timeline.finished_s is not None:
            self._count(request.model, "e2e", timeline.finished_s - timeline.arrived_s <= self._e2e_s)

    def _count(self, model: str, slo: str, good: bool) -> None:
        if (verdicts := self._events.get((model, slo))) is not None:
            verdicts[good].inc()


class DeadlineMetrics:
    """The family `sidecar_deadlines`: of both lanes, for requests that have a deadline."""

    def __init__(self, registry: CollectorRegistry, models: Iterable[str]) -> None:
        counter = DEADLINES.counter(registry)
        self._verdicts = {
            (model, lane): (counter.labels(model, lane, "missed"), counter.labels(model, lane, "met"))
            for model in models
            for lane in Lane
        }

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """Count a request that is over; one that was cancelled says nothing about its deadline."""
        verdicts = self._verdicts.get((request.model, request.lane))
        if verdicts is None or request.deadline_s == inf or outcome.outcome == "cancelled":
            return
        end_s = inf if timeline.finished_s is None else timeline.finished_s
        verdicts[outcome.outcome == "ok" and end_s <= request.deadline_s].inc()
