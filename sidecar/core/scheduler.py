"""The scheduler: a function of (state, event, time) that returns actions. It has no clock, no sockets and no tasks.

    for action in scheduler.handle(event, now_s=…):   # at once, in order
        …
    scheduler.next_deadline_s()                        # when to handle Woke() if nothing happens before

The duties of a driver:
1. Ids are unique among the works alive. `now_s` never decreases; it is the only time there is.
2. After each `handle`, look at `next_deadline_s()` again; when it comes, handle `Woke()`.
3. Carry out the actions in order, before the next event.
4. For each Dispatch, exactly one of Ended, Stopped, Failed, Lost, taken from the last response's final flag: end id,
   stop word or requested length reached → Ended (also if we had asked it to stop); final without it after our stop →
   Stopped; error → Failed; no final → Lost. Nothing else about that work after it, until it is dispatched anew.
5. Finished says that a work is over, and how: tell whoever wanted it. It comes once for each work, and says all there
   is to know: with the arrival, at any time while the work waits, or with the terminal event of its last dispatch.
6. An offline work whose terminal event comes without its Finished waits for its next Dispatch with the tokens that it
   has: none of them if it is not resumable, and none of this dispatch's after Failed.
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

from sidecar.core import lending
from sidecar.core.admission import CLOSING, EXPIRED, Admission
from sidecar.core.dispatch_ends import DispatchEnds
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
    Woke,
)
from sidecar.core.forecasts import Forecasts
from sidecar.core.grants import Grants
from sidecar.core.handling import Handling
from sidecar.core.item import Item, State
from sidecar.core.pool import Pool
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.snapshot import JobSnapshot, Snapshot, engine_snapshot, job_snapshot, job_snapshots, lane_snapshots
from sidecar.core.timers import Hold, Timers
from sidecar.core.work import OFFLINE, ONLINE, EndReason, Lane, Work
from sidecar.core.works import Works


class Scheduler:
    """Shares the slots of its engines between two lanes. See the duties of a driver above."""

    def __init__(self, settings: SchedulerSettings, engines: Sequence[EngineSettings]) -> None:
        self._settings = settings
        self._engines: dict[str, Engine] = {}
        self._pools: dict[str, Pool] = {}
        for each in engines:
            if (pool := self._pools.get(each.model)) is None:
                pool = self._pools[each.model] = Pool.of(each.model, settings)
            self._engines[each.name] = Engine.of(each, settings, pool.arrivals)
            pool.engines.append(self._engines[each.name])
        for one in self._engines.values():
            group = one.settings.gpu_group
            one.neighbours = [
                each
                for each in self._engines.values()
                if group and each.settings.gpu_group == group and each is not one
            ]
        if len(self._engines) != len(engines) or not engines:
            raise SettingsError(f"engines need one name each, and there must be one: {[each.name for each in engines]}")
        self._handling = Handling()
        self._timers = Timers(settings)
        self._works = Works(self._pools, self._timers, self._handling)
        self._ends = DispatchEnds(settings, self._engines, self._pools, self._works, self._timers, self._handling)
        self._forecasts = Forecasts(settings, self._pools, self._handling)
        self._admission = Admission(settings, self._timers)
        self._grants = Grants(settings)
        self._sequence = count(1)  # of arrivals

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take in what happened; what is to be done now, in order. Raises ValueError if a driver broke a duty."""
        handling = self._handling
        handling.begin(now_s)
        # What was due before counts, but is granted only after the event: it may say that the engine is down.
        if self._timers.any_due(now_s):
            self._run_timers()
        match event:
            case Progressed():
                self._progressed(event)
            case Arrived(work=work):
                self._arrived(work)
            case Ended(reason=reason):
                self._fill(self._ends.confirmed(event, reason))
            case Stopped():
                self._fill(self._ends.confirmed(event, EndReason.LENGTH))
            case Failed():
                self._fill(self._ends.failed(event))
            case Lost():
                self._fill(self._ends.lost(event))
            case Cancelled(work_id=work_id):
                self._cancelled(work_id)
            case Woke():
                self._fill_all()
            case EngineUp(engine=name):
                self._engine_up(name)
            case EngineDown(engine=name):
                self._engine_down(name)
            case Measured():
                self._measured(event)
            case Closing():
                self._close()
            case _:
                assert_never(event)
        while handling.stirred:
            self._fill(handling.stirred.pop(0))
        if now_s >= self._forecasts.look_at_s:
            self._forecasts.look()
        self._timers.tidy()
        return handling.actions

    def next_deadline_s(self) -> float | None:
        """When to handle Woke() if nothing happens before; None if only an event can change anything."""
        soonest_s = self._timers.next_s()
        for pool in self._pools.values():
            for engine in pool.engines if pool.offline.eligible() else ():
                chance_s = lending.next_chance_s(engine, self._handling.now_s)
                if self._handling.now_s < chance_s < soonest_s and not pool.online.eligible(long=engine.takes_long):
                    soonest_s = chance_s
        return None if soonest_s == inf else soonest_s

    def queue_of(self, model: str, lane: Lane) -> tuple[int, Limit]:
        """How many works of `lane` wait for `model`, and what holds offline back on its first engine. O(1)."""
        pool = self._pools.get(model)
        return (0, Limit.DOWN) if pool is None else (pool.queue(lane).waiting, pool.engines[0].limit_binding)

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
            now_s=self._handling.now_s,
            closing=self._works.closing,
            engines={
                name: engine_snapshot(engine, engine.settings.model, self._handling.now_s)
                for name, engine in self._engines.items()
            },
            lanes=tuple(each for pool in self._pools.values() for each in lane_snapshots(pool, self._handling.now_s)),
            jobs=self.jobs(),
            in_flight=sum(item.engine != "" for item in self._works.items.values()),
            rejects=dict(self._works.rejects),
            dead_letters=self._works.dead_letters,
            retries=self._ends.retries,
        )

    def jobs(self) -> tuple[JobSnapshot, ...]:
        """What waits or runs, by job, as of when they were last looked at."""
        return tuple(each for pool in self._pools.values() for each in job_snapshots(pool, self._handling.now_s))

    def jobs_named(self, tenant: str, name: str) -> tuple[JobSnapshot, ...]:
        """The jobs of that name, one per model that has items of it; none where there are too many jobs. O(models)."""
        found = ((pool, pool.jobs.named(tenant, name)) for pool in self._pools.values())
        return tuple(job_snapshot(pool, job, self._handling.now_s) for pool, job in found if job is not None)

    @property
    def settings(self) -> tuple[SchedulerSettings, tuple[EngineSettings, ...]]:
        """What it was made with."""
        return self._settings, tuple(engine.settings for engine in self._engines.values())

    def alive(self) -> tuple[Item, ...]:
        """All work that is not over, in the order of arrival. To be read only."""
        return tuple(sorted(self._works.items.values(), key=lambda item: item.sequence))

    def _fill_all(self) -> None:
        for pool in self._pools.values():
            self._fill(pool)

    def _fill(self, pool: Pool) -> None:
        self._grants.fill(pool, self._handling.now_s, self._handling.actions)

    # ---- the queues --------------------------------------------------------------------------------------------------

    def _arrived(self, work: Work) -> None:
        if work.id in self._works.items:
            raise ValueError(f"work {work.id} arrived twice")
        pool = self._pools.get(work.model)
        if refusal := self._refusal(work, pool):
            self._works.refuse(work, refusal)
            return
        assert pool is not None
        item = Item(work, next(self._sequence), self._handling.now_s)
        self._works.items[work.id] = item
        if work.lane is ONLINE:
            pool.arrivals.note(self._handling.now_s)
        if work.lane is OFFLINE:
            job, owed = pool.jobs.arrived(work)
            item.job = job.key
            if owed:
                self._forecasts.owe(pool)
        self._works.enqueue(item)
        self._fill(pool)

    def _refusal(self, work: Work, pool: Pool | None) -> Reject | None:
        """Why `work` cannot wait, or None if it can; another one may have left to make room for it."""
        if pool is None:
            return self._admission.unknown_model(work, self._pools)
        if self._works.closing:
            return CLOSING
        if refusal := self._admission.refusal(work, pool, self._handling.now_s):
            return refusal
        if self._admission.is_full(work, pool):
            full = self._admission.queue_full(work, pool, self._handling.now_s)
            if (leaving := self._admission.crowded_out(work, pool)) is None:
                return full
            self._works.finish(leaving, full)
        return None

    # ---- what runs ---------------------------------------------------------------------------------------------------

    def _progressed(self, event: Progressed) -> None:
        items, engine = self._works.items, self._engine(event.engine)
        pool = self._pools[engine.settings.model]
        online, offline = pool.online.tenants, pool.offline.tenants
        name, context = engine.settings.name, engine.interference.batch.context
        for work_id, tokens in event.tokens:
            item = items.get(work_id)
            if item and item.engine == name:  # what comes after the terminal event is in it
                (online if item.work.lane is ONLINE else offline).streamed(item, tokens)
                context[item.work.lane] += tokens
        begun = [item for each in event.first_tokens if (item := items.get(each)) and item.engine == name]
        held_long = not engine.takes_long
        if engine.streamed(event.gaps_s, begun, self._handling.now_s) or (held_long and engine.takes_long):
            self._fill(pool)

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            raise ValueError(f"an event of engine {name}, which is not among {sorted(self._engines)}")
        return self._engines[name]

    def _cancelled(self, work_id: str) -> None:
        item = self._works.items.get(work_id)
        if item is None or item.state is State.ABORTING:
            return
        pool = self._pools[item.work.model]
        if not item.engine:
            self._works.finish(item, Ending.CANCELLED)
        else:
            self._abort(item, self._engines[item.engine])
        self._fill(pool)

    def _abort(self, item: Item, engine: Engine) -> None:
        if item.state is State.PREEMPTING:
            engine.stopping -= 1
        else:
            engine.drain(item)
        item.move(State.ABORTING)
        self._handling.actions.append(Abort(work_id=item.work.id, engine=engine.settings.name))

    # ---- engines, timers, the end ------------------------------------------------------------------------------------

    def _engine_up(self, name: str) -> None:
        engine = self._engine(name)
        if not engine.up:  # it may have been restarted, and then its cache is empty
            engine.prefixes.clear()
            for item in self._works.items.values():
                item.lost_on(name)
        engine.up, engine.limit_binding = True, Limit.NO_OFFLINE
        self._fill(self._pools[engine.settings.model])

    def _engine_down(self, name: str) -> None:
        """No grants on this engine. Online callers get their answer at once if no other engine is left."""
        engine = self._engine(name)
        engine.up, engine.limit_binding = False, Limit.DOWN
        pool = self._pools[engine.settings.model]
        for item in [] if pool.up else sorted(pool.online, key=lambda each: each.sequence):
            self._works.finish(item, self._admission.engine_down(pool.model))

    def _measured(self, event: Measured) -> None:
        engine = self._engine(event.engine)
        pool = self._pools[engine.settings.model]
        slots_ours = engine.settings.slots - engine.free.slots
        engine.ledger.measured(event, slots_ours, engine.in_use[OFFLINE])
        if engine.note_kv_size():
            self._refuse_too_large(pool)
        self._fill(pool)

    def _refuse_too_large(self, pool: Pool) -> None:
        """The engines may hold less than they did when works arrived: what can never run would block all behind it."""
        for item in list(self._works.items.values()):
            if not item.engine and item.work.model == pool.model and (why := pool.holds(item.work)):
                self._works.finish(item, Reject(reason=RejectReason.TOO_LARGE, message=why))

    def _run_timers(self) -> None:
        """End the holds, back-offs and waits whose time has come."""
        for what in self._timers.due(self._handling.now_s):
            if isinstance(what, Hold):
                self._ends.release(what)
                self._handling.stirred.append(self._pools[what.engine.settings.model])
                continue
            pool = self._pools[what.work.model]
            if self._timers.expired(what.work, self._handling.now_s):
                self._works.finish(what, EXPIRED)
            else:
                pool.backing_off -= 1
                what.move(State.WAITING)
                self._works.enqueue(what)
            self._handling.stirred.append(pool)

    def _close(self) -> None:
        """From here on arrivals are rejected, online drains, and offline that waits is handed back."""
        self._works.closing = True
        for item in list(self._works.items.values()):
            if not item.engine and item.work.lane is OFFLINE:
                self._works.finish(item, CLOSING)
        self._fill_all()  # what was kept free for a turn is online's now
