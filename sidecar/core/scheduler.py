"""The scheduler: a function of (state, event, time) that returns actions. It has no clock, no sockets and no tasks.

    for action in scheduler.handle(event, now_s=…):   # at once, in order
        …
    scheduler.next_deadline_s()                        # when to handle Woke() if nothing happens before

The duties of a driver:
1. Ids are unique among the requests alive. `now_s` never decreases; it is the only time there is.
2. After each `handle`, look at `next_deadline_s()` again; when it comes, handle `Woke()`.
3. Carry out the actions in order, before the next event.
4. For each Dispatch, exactly one of Ended, Stopped, Failed, Lost, taken from the last response's final flag: end id,
   stop word or requested length reached → Ended (also if we had asked it to stop); final without it after our stop →
   Stopped; error → Failed; no final → Lost. Nothing else about that request after it, until it is dispatched anew.
5. Finished says that a request is over, and how: tell whoever wanted it. It comes once for each request, and says all
   there is to know: with the arrival, at any time while the request waits, or with the terminal event of its last
   dispatch.
6. An offline request whose terminal event comes without its Finished waits for its next Dispatch with the tokens that
it    has: none of them if it is not resumable, and none of this dispatch's after Failed.
7. After Preempt and Abort stop the dispatch; its terminal event is still owed.
8. Engines are down until EngineUp. After EngineDown report each dispatch on it (4.) as it ends.
9. A Dispatch with `prompt_tokens` fills the KV cache with the head of a prompt: send so many ids, ask for one token,
    drop it, and report Ended by LENGTH with 0 tokens whatever that token was.
10. Say in `reused_tokens` how much of the prompt the engine took from its KV cache, where it tells.
11. Gather tokens into one Progressed per engine and tick; those of a dispatch come before its terminal event.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import inf
from typing import assert_never

from sidecar.core import limits
from sidecar.core.admission import CLOSING, EXPIRED, Admission
from sidecar.core.dispatch_ends import DispatchEnds
from sidecar.core.dispatcher import Dispatcher
from sidecar.core.engine import Engine, Limit
from sidecar.core.errors import SettingsError
from sidecar.core.events import (
    Abort,
    Action,
    Arrived,
    Cancelled,
    Closing,
    Ended,
    Ending,
    EngineDown,
    EngineUp,
    Event,
    Failed,
    Lost,
    Measured,
    Progressed,
    Reject,
    RejectReason,
    Stopped,
    TenantsChanged,
    Woke,
)
from sidecar.core.forecasts import Forecasts
from sidecar.core.request import OFFLINE, ONLINE, EndReason, Lane, Request
from sidecar.core.request_table import RequestTable
from sidecar.core.served_model import ServedModel
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.snapshot import JobSnapshot, Snapshot, engine_snapshot, job_snapshot, job_snapshots, lane_snapshots
from sidecar.core.step import Step
from sidecar.core.timers import Hold, Timers
from sidecar.core.tracked_request import RequestState, TrackedRequest


class Scheduler:
    """Shares the slots of its engines between two lanes. See the duties of a driver above."""

    def __init__(self, settings: SchedulerSettings, engines: Sequence[EngineSettings]) -> None:
        self._settings = settings
        self._engines: dict[str, Engine] = {}
        self._served_models: dict[str, ServedModel] = {}
        for each in engines:
            if (served := self._served_models.get(each.model)) is None:
                served = self._served_models[each.model] = ServedModel.of(each.model, settings)
            self._engines[each.name] = Engine.of(each, settings, served.arrivals)
            served.engines.append(self._engines[each.name])
        for one in self._engines.values():
            group = one.settings.gpu_group
            one.neighbours = [
                each
                for each in self._engines.values()
                if group and each.settings.gpu_group == group and each is not one
            ]
        if len(self._engines) != len(engines) or not engines:
            raise SettingsError(f"engines need one name each, and there must be one: {[each.name for each in engines]}")
        self._step = Step()
        self._timers = Timers(settings)
        self._requests = RequestTable(self._served_models, self._timers, self._step)
        self._ends = DispatchEnds(
            settings, self._engines, self._served_models, self._requests, self._timers, self._step
        )
        self._forecasts = Forecasts(settings, self._served_models, self._step)
        self._admission = Admission(settings, self._timers)
        self._dispatcher = Dispatcher(settings)
        self._sequence = count(1)  # of arrivals

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take in what happened; what is to be done now, in order. Raises ValueError if a driver broke a duty."""
        step = self._step
        step.begin(now_s)
        # What was due before counts, but is dispatched only after the event: it may say that the engine is down.
        if self._timers.any_due(now_s):
            self._run_timers()
        match event:
            case Progressed():
                self._progressed(event)
            case Arrived(request=request):
                self._arrived(request)
            case Ended(reason=reason):
                self._fill(self._ends.confirmed(event, reason))
            case Stopped():
                self._fill(self._ends.confirmed(event, EndReason.LENGTH))
            case Failed():
                self._fill(self._ends.failed(event))
            case Lost():
                self._fill(self._ends.lost(event))
            case Cancelled(request_id=request_id):
                self._cancelled(request_id)
            case Woke():
                self._fill_all()
            case EngineUp(engine=name):
                self._engine_up(name)
            case EngineDown(engine=name):
                self._engine_down(name)
            case Measured():
                self._measured(event)
            case TenantsChanged():
                self._limit_tenants(event)
            case Closing():
                self._close()
            case _:
                assert_never(event)
        while step.changed:
            self._fill(step.changed.pop(0))
        if now_s >= self._forecasts.look_at_s:
            self._forecasts.look()
        self._timers.tidy()
        return step.actions

    def next_deadline_s(self) -> float | None:
        """When to handle Woke() if nothing happens before; None if only an event can change anything."""
        soonest_s = self._timers.next_s()
        for served in self._served_models.values():
            for engine in served.engines if served.offline.eligible() else ():
                chance_s = limits.next_chance_s(engine, self._step.now_s)
                if self._step.now_s < chance_s < soonest_s and not served.online.eligible(long=engine.takes_long):
                    soonest_s = chance_s
        return None if soonest_s == inf else soonest_s

    def queue_of(self, model: str, lane: Lane) -> tuple[int, Limit]:
        """How many requests of `lane` wait for `model`, and what holds offline back on its first engine. O(1)."""
        served = self._served_models.get(model)
        return (0, Limit.DOWN) if served is None else (served.queue(lane).waiting, served.engines[0].limit_binding)

    def foreign_slots(self, engine: str) -> int:
        """Slots of this engine that somebody else uses, as three scrapes in a row agree. O(1)."""
        return self._engines[engine].ledger.foreign_slots

    def block_tokens(self, engine: str) -> int:
        """Tokens per KV block of this engine. O(1)."""
        return self._engines[engine].ledger.block_tokens

    def reuse_of(self, engine: str) -> tuple[int, float]:
        """How often the configured length a slice has here, and the share of what resumes need that the cache held.

        0 times = none are cut, because that share is too small. O(1).
        """
        slices = self._engines[engine].slices
        return slices.factor, slices.hit

    def snapshot(self) -> Snapshot:
        """The state as of the last event. O(waiting): for some calls per second."""
        return Snapshot(
            now_s=self._step.now_s,
            closing=self._requests.closing,
            engines={
                name: engine_snapshot(engine, engine.settings.model, self._step.now_s)
                for name, engine in self._engines.items()
            },
            lanes=tuple(
                each for served in self._served_models.values() for each in lane_snapshots(served, self._step.now_s)
            ),
            jobs=self.jobs(),
            in_flight=sum(tracked.engine != "" for tracked in self._requests.tracked_requests.values()),
            rejects=dict(self._requests.rejects),
            dead_letters=self._requests.dead_letters,
            retries=self._ends.retries,
        )

    def jobs(self) -> tuple[JobSnapshot, ...]:
        """What waits or runs, by job, as of when they were last looked at."""
        return tuple(
            each for served in self._served_models.values() for each in job_snapshots(served, self._step.now_s)
        )

    def jobs_named(self, tenant: str, name: str) -> tuple[JobSnapshot, ...]:
        """The jobs of that name, one per model that has requests of it; none where there are too many jobs.
        O(models)."""
        found = ((served, served.jobs.named(tenant, name)) for served in self._served_models.values())
        return tuple(job_snapshot(served, job, self._step.now_s) for served, job in found if job is not None)

    @property
    def settings(self) -> tuple[SchedulerSettings, tuple[EngineSettings, ...]]:
        """What it was made with."""
        return self._settings, tuple(engine.settings for engine in self._engines.values())

    def alive(self) -> tuple[TrackedRequest, ...]:
        """All requests that are not over, in the order of arrival. To be read only."""
        return tuple(sorted(self._requests.tracked_requests.values(), key=lambda tracked: tracked.sequence))

    def _fill_all(self) -> None:
        for served in self._served_models.values():
            self._fill(served)

    def _fill(self, served: ServedModel) -> None:
        self._dispatcher.fill(served, self._step.now_s, self._step.actions)

    # ---- the queues --------------------------------------------------------------------------------------------------

    def _arrived(self, request: Request) -> None:
        if request.id in self._requests.tracked_requests:
            raise ValueError(f"request {request.id} arrived twice")
        served = self._served_models.get(request.model)
        if refusal := self._refusal(request, served):
            self._requests.refuse(request, refusal)
            return
        assert served is not None
        tracked = TrackedRequest(request, next(self._sequence), self._step.now_s)
        self._requests.tracked_requests[request.id] = tracked
        if request.lane is ONLINE:
            served.arrivals.note(self._step.now_s)
        if request.lane is OFFLINE:
            job, owed = served.jobs.arrived(request)
            tracked.job = job.key
            if owed:
                self._forecasts.owe(served)
        self._requests.enqueue(tracked)
        self._fill(served)

    def _refusal(self, request: Request, served: ServedModel | None) -> Reject | None:
        """Why `request` cannot wait, or None if it can; another one may have left to make room for it."""
        if served is None:
            return self._admission.unknown_model(request, self._served_models)
        if self._requests.closing:
            return CLOSING
        if refusal := self._admission.refusal(request, served, self._step.now_s):
            return refusal
        if self._admission.is_full(request, served):
            full = self._admission.queue_full(request, served, self._step.now_s)
            if (leaving := self._admission.crowded_out(request, served)) is None:
                return full
            self._requests.finish(leaving, full)
        return None

    # ---- what runs ---------------------------------------------------------------------------------------------------

    def _progressed(self, event: Progressed) -> None:
        tracked_requests, engine = self._requests.tracked_requests, self._engine(event.engine)
        served = self._served_models[engine.settings.model]
        online, offline = served.online.tenants, served.offline.tenants
        name, context = engine.settings.name, engine.attribution.batch.context
        for request_id, tokens in event.tokens:
            tracked = tracked_requests.get(request_id)
            if tracked and tracked.engine == name:  # what comes after the terminal event is in it
                (online if tracked.request.lane is ONLINE else offline).streamed(tracked, tokens)
                context[tracked.request.lane] += tokens
        begun = [
            tracked for each in event.first_tokens if (tracked := tracked_requests.get(each)) and tracked.engine == name
        ]
        held_long = not engine.takes_long
        if engine.streamed(event.gaps_s, begun, self._step.now_s) or (held_long and engine.takes_long):
            self._fill(served)

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            raise ValueError(f"an event of engine {name}, which is not among {sorted(self._engines)}")
        return self._engines[name]

    def _cancelled(self, request_id: str) -> None:
        tracked = self._requests.tracked_requests.get(request_id)
        if tracked is None or tracked.state is RequestState.ABORTING:
            return
        served = self._served_models[tracked.request.model]
        if not tracked.engine:
            self._requests.finish(tracked, Ending.CANCELLED)
        else:
            self._abort(tracked, self._engines[tracked.engine])
        self._fill(served)

    def _abort(self, tracked: TrackedRequest, engine: Engine) -> None:
        if tracked.state is RequestState.PREEMPTING:
            engine.stopping -= 1
        else:
            engine.drain(tracked)
        tracked.move(RequestState.ABORTING)
        self._step.actions.append(Abort(request_id=tracked.request.id, engine=engine.settings.name))

    # ---- engines, timers, the end ------------------------------------------------------------------------------------

    def _engine_up(self, name: str) -> None:
        engine = self._engine(name)
        if not engine.up:  # it may have been restarted, and then its cache is empty
            engine.prefixes.clear()
            for tracked in self._requests.tracked_requests.values():
                tracked.lost_on(name)
        engine.up, engine.limit_binding = True, Limit.NO_OFFLINE
        self._fill(self._served_models[engine.settings.model])

    def _engine_down(self, name: str) -> None:
        """No dispatches on this engine. Online callers get their answer at once if no other engine is left."""
        engine = self._engine(name)
        engine.up, engine.limit_binding = False, Limit.DOWN
        served = self._served_models[engine.settings.model]
        for tracked in [] if served.up else sorted(served.online, key=lambda each: each.sequence):
            self._requests.finish(tracked, self._admission.engine_down(served.model))

    def _measured(self, event: Measured) -> None:
        engine = self._engine(event.engine)
        served = self._served_models[engine.settings.model]
        slots_ours = engine.settings.slots - engine.free.slots
        engine.ledger.measured(event, slots_ours, engine.in_use[OFFLINE])
        if engine.note_kv_size():
            self._refuse_too_large(served)
        self._fill(served)

    def _refuse_too_large(self, served: ServedModel) -> None:
        """The engines may hold less than they did when requests arrived: what can never run would block all behind
        it."""
        for tracked in list(self._requests.tracked_requests.values()):
            if not tracked.engine and tracked.request.model == served.model and (why := served.holds(tracked.request)):
                self._requests.finish(tracked, Reject(reason=RejectReason.TOO_LARGE, message=why))

    def _run_timers(self) -> None:
        """End the holds, back-offs and waits whose time has come."""
        for what in self._timers.due(self._step.now_s):
            if isinstance(what, Hold):
                self._ends.release(what)
                self._step.changed.append(self._served_models[what.engine.settings.model])
                continue
            served = self._served_models[what.request.model]
            if self._timers.expired(what.request, self._step.now_s):
                self._requests.finish(what, EXPIRED)
            else:
                served.backing_off -= 1
                what.move(RequestState.WAITING)
                self._requests.enqueue(what)
            self._step.changed.append(served)

    def _limit_tenants(self, event: TenantsChanged) -> None:
        for served in self._served_models.values():
            for queue in (served.online, served.offline):
                queue.tenants.limit(event.tenants, event.tenant_default)
        self._fill_all()

    def _close(self) -> None:
        """From here on arrivals are rejected, online drains, and offline that waits is handed back."""
        self._requests.closing = True
        for tracked in list(self._requests.tracked_requests.values()):
            if not tracked.engine and tracked.request.lane is OFFLINE:
                self._requests.finish(tracked, CLOSING)
        self._fill_all()  # what was kept free for a reserved dispatch is online's now
