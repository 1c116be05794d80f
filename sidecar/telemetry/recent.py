"""What the status page shows beyond the scheduler's counters: history, decisions, who has each slot, shares, dollars.

It listens to the driver, and costs it some microseconds per tick of an engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sidecar.call import Outcome, Timeline
from sidecar.core.events import (
    Action,
    Arrived,
    Dispatch,
    Ended,
    Event,
    Failed,
    Finished,
    Lost,
    Progressed,
    Reject,
    RejectReason,
    Stopped,
)
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.snapshot import Snapshot
from sidecar.core.tracked_request import RequestState
from sidecar.settings.file import EngineEndpoint
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.history import History

OVERLOAD = (RejectReason.QUEUE_FULL, RejectReason.EXPIRED)  # refusals that say that there is too much to do
REFUSALS_APART_S = 60.0  # a refusal so long after the last one begins a new overload


class Recent:
    """A listener of the driver, and a few parts of the status document."""

    def __init__(
        self,
        engines: Sequence[EngineEndpoint],
        scheduler: Scheduler,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`clock` is the loop's, and `wall` the one that people look at."""
        self._engines = {each.name: each for each in engines}
        self._scheduler = scheduler
        self._clock, self._wall = clock, wall
        self._objective_s = scheduler.settings[0].ttft_objective_ms / 1000
        self._requests: dict[str, Request] = {}
        self._running: dict[str, Dispatch] = {}
        self._history, self._decisions = History(clock()), Decisions()
        self._began_s = clock()
        self._refusing: tuple[float, float] | None = None  # when online requests were first and last refused

    # ---- Listener ----------------------------------------------------------------------------------------------------

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        """Keep what is worth showing of one event."""
        match event:
            case Progressed():
                self._progressed(now_s, event)
            case Arrived(request=request):
                self._requests[request.id] = request
            case Ended() | Stopped() | Failed() | Lost():
                if (dispatch := self._running.pop(event.request_id, None)) is not None:
                    self._slots(now_s, dispatch, -dispatch.slots)
            case _:
                pass
        self._decisions.take(now_s, event, actions, self._requests)
        for action in actions:
            if isinstance(action, Dispatch):
                self._running[action.request_id] = action
                self._slots(now_s, action, action.slots)
            elif isinstance(action, Finished):
                outcome = action.outcome
                over = self._requests.get(action.request_id)
                full = isinstance(outcome, Reject) and outcome.reason in OVERLOAD
                if full and over is not None and over.lane is Lane.ONLINE:
                    self._refused(now_s)
                self._requests.pop(action.request_id, None)

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        """Do nothing: how a request ended is in the actions."""

    def _progressed(self, now_s: float, event: Progressed) -> None:
        requests = self._requests
        for request_id in event.first_tokens:
            request = requests.get(request_id)
            if request is not None and request.lane is Lane.ONLINE:
                objective_s = request.ttft_objective_ms / 1000 or self._objective_s
                self._history.began(now_s, now_s - request.arrived_s, objective_s)
        rows = [
            (request.lane, request.tenant, tokens)
            for request_id, tokens in event.tokens
            if (request := requests.get(request_id)) is not None
        ]
        self._history.streamed(now_s, rows, event.gaps_s)

    def _slots(self, now_s: float, dispatch: Dispatch, more: int) -> None:
        if (request := self._requests.get(dispatch.request_id)) is not None:
            self._history.slots(now_s, dispatch.engine, request.lane, more)

    def _refused(self, now_s: float) -> None:
        self._history.refused(now_s)
        first_s, last_s = self._refusing or (now_s, now_s)
        self._refusing = now_s if now_s - last_s > REFUSALS_APART_S else first_s, now_s

    # ---- the status document -----------------------------------------------------------------------------------------

    def parts(self, snapshot: Snapshot) -> dict[str, Any]:
        """Sections of the status document, and what the sentences on top of it are made from."""
        now_s, at = self._clock(), self._wall()
        refusing = self._refusing if self._refusing and now_s - self._refusing[1] <= REFUSALS_APART_S else None
        found = {
            "at": round(at, 3),  # on the clock of the wall, in seconds since 1970
            "up_s": round(now_s - self._began_s, 1),
            "objective": {"ttft_ms": self._objective_s * 1000},
            "recent": self._history.recent(now_s)
            | {"refusing_s": None if refusing is None else round(now_s - refusing[0], 1)},
            "history": self._history.document(now_s),
            "tenants": self._tenants(snapshot),
            "decisions": self._decisions.document(now_s, at),
        }
        if (usd := self._usd_per_hour(now_s)) is not None:
            found["usd_per_hour"] = usd
        return found

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """By engine, who has its slots: one entry per dispatch, the oldest request first."""
        now_s = self._clock()
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self._engines}
        for tracked in self._scheduler.alive():
            if not tracked.engine:
                continue
            request = tracked.request
            kind = "reserved" if tracked.reserved else "resume" if tracked.generated_tokens else "backfill"
            found[tracked.engine].append(
                {
                    "row": tracked.sequence,
                    "lane": request.lane,
                    "tenant": request.tenant,
                    "job": request.job,
                    "kind": "online" if request.lane is Lane.ONLINE else kind,
                    "draining": tracked.state is not RequestState.RUNNING,
                    "slots": request.slots,
                    "age_s": round(max(now_s - tracked.begun_s, 0.0), 2),
                    "tokens": tracked.generated_tokens + tracked.streamed_tokens,
                }
            )
        return found

    def _tenants(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Each tenant of each lane: its share of the output tokens of the last quarter of an hour, and that which its
        weight gives it among those that want some."""
        settings = self._scheduler.settings[0]
        if not settings.tenant_fairness:  # then they are not told apart
            return []
        recent = self._history.tokens()
        found: dict[tuple[Lane, str], dict[str, Any]] = {}
        for queue in snapshot.lanes:
            for each in queue.tenants:
                row = found.setdefault((queue.lane, each.tenant), {"waiting": 0, "slots": 0, "tokens": 0})
                row["waiting"] += each.waiting
                row["slots"] += each.slots
                row["tokens"] += each.input_tokens + each.output_tokens
        wants = {key: row["waiting"] or row["slots"] or recent.get(key, 0) for key, row in found.items()}
        weights = {key: settings.tenants.get(key[1], settings.tenant_default).weight for key in found if wants[key]}
        for lane in Lane:
            total = sum(tokens for (each, _), tokens in recent.items() if each is lane)
            weight = sum(each for key, each in weights.items() if key[0] is lane)
            for key in [each for each in weights if each[0] is lane]:
                found[key]["weight"] = weights[key]
                found[key]["due"] = round(weights[key] / weight, 4)
                found[key]["share"] = round(recent.get(key, 0) / total, 4) if total else None
        rows = [{"lane": key[0], "tenant": key[1], **found[key]} for key in weights]
        return sorted(rows, key=lambda row: (row["lane"] is not Lane.ONLINE, -(row["share"] or 0), row["tenant"]))

    def _usd_per_hour(self, now_s: float) -> dict[str, float] | None:
        """Rent per hour by who had the slots in the last five minutes; None if no engine's price is known."""
        priced = {name: each for name, each in self._engines.items() if each.usd_per_hour}
        if not priced:
            return None
        shares = self._history.slot_shares(now_s, {name: each.slots for name, each in priced.items()})
        spent = {
            lane.value: sum(each.usd_per_hour * shares[name][lane] for name, each in priced.items()) for lane in Lane
        }
        spent["idle"] = max(sum(each.usd_per_hour for each in priced.values()) - sum(spent.values()), 0.0)
        return {name: round(each, 4) for name, each in spent.items()}
