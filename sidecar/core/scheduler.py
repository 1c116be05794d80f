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
5. After Ended, Stopped or Lost ask `work.is_complete(tokens, reason)` (with LENGTH where there is no reason): if it
   holds, answer the caller; the scheduler has forgotten the work. If not, online work is over all the same, and offline
   work waits for its next Dispatch with its tokens (none of them if it is not resumable).
6. After Failed: online work is over. Offline work waits for its next Dispatch, or its DeadLetter is among the actions.
7. After Preempt and Abort stop the dispatch; its terminal event is still owed. After Abort the work is gone whatever
   that says, also when a Preempt came before.
8. After Reject and DeadLetter the work is gone. Reject may come at any time while a work waits, and with the terminal
   event of an offline dispatch whose work would wait again.
9. Engines are down until EngineUp. After EngineDown report each dispatch on it (4.) as it ends.
10. A Dispatch with `prompt_tokens` fills the KV cache with the head of a prompt: send so many ids, ask for one token,
    drop it, and report Ended by LENGTH with 0 tokens whatever that token was.
11. Say in `reused_tokens` how much of the prompt the engine took from its KV cache, where it tells.
12. Gather tokens into one Progressed per engine and tick; those of a dispatch come before its terminal event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from math import inf
from typing import assert_never

from sidecar.core import lending
from sidecar.core.admission import Admission, Refusal
from sidecar.core.deadlines import WINDOW_S
from sidecar.core.engine import Engine, Limit
from sidecar.core.errors import SettingsError
from sidecar.core.events import (
    Abort,
    Action,
    Arrived,
    Cancelled,
    Closing,
    DeadLetter,
    Ended,
    EngineDown,
    EngineUp,
    Event,
    Failed,
    Forecast,
    Lost,
    Measured,
    Progressed,
    Reject,
    RejectReason,
    Stopped,
    Woke,
)
from sidecar.core.grants import Grants
from sidecar.core.item import Item, State
from sidecar.core.pool import Pool
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.snapshot import JobSnapshot, Snapshot, engine_snapshot, job_snapshot, job_snapshots, lane_snapshots
from sidecar.core.timers import Hold, Timers
from sidecar.core.work import OFFLINE, ONLINE, EndReason, Lane, Work

RETRY_BACKOFF_MAX_S = 30.0
CLOSING = Refusal(reason=RejectReason.CLOSING, message="this sidecar is shutting down")
EXPIRED = Refusal(reason=RejectReason.EXPIRED, message="the deadline passed while it waited")
CUT_OFF = Refusal(reason=RejectReason.EXPIRED, message="the deadline passed before it was complete")


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
        self._grants = Grants(settings)
        self._items: dict[str, Item] = {}
        self._timers = Timers(settings)
        self._admission = Admission(settings, self._timers)
        self._sequence = count(1)  # of arrivals
        self._closing = False
        self._now_s = 0.0
        self._look_at_s = self._sample_at_s = -inf  # when the jobs, and the rate that they share, are looked at next
        self._actions: list[Action] = []
        self._stirred: list[Pool] = []  # where something may be granted beside what the event itself is about
        self._rejects: Counter[RejectReason] = Counter()
        self._dead_letters = 0
        self._retries = 0

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take in what happened; what is to be done now, in order. Raises ValueError if a driver broke a duty."""
        self._now_s = now_s
        self._actions = []
        # What was due before counts, but is granted only after the event: it may say that the engine is down.
        if self._timers.any_due(now_s):
            self._run_timers()
        match event:
            case Progressed():
                self._progressed(event)
            case Arrived(work=work):
                self._arrived(work)
            case Ended(reason=reason):
                self._over(event, reason)
            case Stopped():
                self._over(event, EndReason.LENGTH)
            case Failed():
                self._failed(event)
            case Lost():
                self._lost(event)
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
        while self._stirred:
            self._fill(self._stirred.pop(0))
        if now_s >= self._look_at_s:
            self._look_at_s = self._look()
        self._timers.tidy()
        return self._actions

    def next_deadline_s(self) -> float | None:
        """When to handle Woke() if nothing happens before; None if only an event can change anything."""
        soonest_s = self._timers.next_s()
        for pool in self._pools.values():
            for engine in pool.engines if pool.offline.eligible() else ():
                chance_s = lending.next_chance_s(engine)
                if self._now_s < chance_s < soonest_s and not pool.online.eligible(long=engine.takes_long):
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
            now_s=self._now_s,
            closing=self._closing,
            engines={
                name: engine_snapshot(engine, engine.settings.model, self._now_s)
                for name, engine in self._engines.items()
            },
            lanes=tuple(each for pool in self._pools.values() for each in lane_snapshots(pool, self._now_s)),
            jobs=self.jobs(),
            in_flight=sum(item.engine != "" for item in self._items.values()),
            rejects=dict(self._rejects),
            dead_letters=self._dead_letters,
            retries=self._retries,
        )

    def jobs(self) -> tuple[JobSnapshot, ...]:
        """What waits or runs, by job, as of when they were last looked at."""
        return tuple(each for pool in self._pools.values() for each in job_snapshots(pool, self._now_s))

    def jobs_named(self, tenant: str, name: str) -> tuple[JobSnapshot, ...]:
        """The jobs of that name, one per model that has items of it; none where there are too many jobs. O(models)."""
        found = ((pool, pool.jobs.named(tenant, name)) for pool in self._pools.values())
        return tuple(job_snapshot(pool, job, self._now_s) for pool, job in found if job is not None)

    @property
    def settings(self) -> tuple[SchedulerSettings, tuple[EngineSettings, ...]]:
        """What it was made with."""
        return self._settings, tuple(engine.settings for engine in self._engines.values())

    def alive(self) -> tuple[Item, ...]:
        """All work that is not over, in the order of arrival. To be read only."""
        return tuple(sorted(self._items.values(), key=lambda item: item.sequence))

    def alone_s(self, work_id: str) -> float | None:
        """What a running online request would have taken from its grant until now, without offline beside it.

        None without a trusted latency model, and for anything else. For the driver to ask before its terminal event.
        """
        item = self._items.get(work_id)
        if item is None or not item.engine:
            return None
        return self._engines[item.engine].interference.guard.alone_s(work_id, item.streamed_tokens)

    def _fill_all(self) -> None:
        for pool in self._pools.values():
            self._fill(pool)

    def _fill(self, pool: Pool) -> None:
        self._grants.fill(pool, self._now_s, self._actions)

    # ---- deadlines ---------------------------------------------------------------------------------------------------

    def _look(self) -> float:
        """Make the forecasts that are owed, as many as one look may make. Return when to look again."""
        if self._now_s >= self._sample_at_s:
            self._sample_at_s = self._now_s + WINDOW_S
            for pool in self._pools.values():
                pool.jobs.rate.sample(pool.harvested_tokens, self._now_s, backlogged=pool.offline.waiting > 0)
                pool.jobs.begin_round()
                self._judge(pool)  # also with no job left: then nothing is urgent
        again_s = self._sample_at_s
        for pool in self._pools.values():
            if pool.jobs.owed and self._now_s >= pool.jobs.look_from_s:
                self._judge(pool)
            if pool.jobs.owed:
                again_s = min(again_s, pool.jobs.look_from_s)
        return again_s

    def _judge(self, pool: Pool) -> None:
        """Look at some jobs anew: say what has changed; the most urgent one decides how often offline is due."""
        for job in pool.jobs.look(self._now_s, self._weight):
            if job.deadline_s < inf:
                self._actions.append(
                    Forecast(
                        model=pool.model,
                        tenant=job.tenant,
                        job=job.name,
                        verdict=job.verdict,
                        deadline_s=job.deadline_s,
                        eta_p50_s=job.eta.p50_s,
                        eta_p90_s=job.eta.p90_s,
                    )
                )
        for engine in pool.engines:
            engine.reservation.earns = 1 + round(pool.jobs.urgency * (self._settings.credit_urgent - 1))

    def _weight(self, tenant: str) -> float:
        return self._settings.tenants.get(tenant, self._settings.tenant_default).weight

    # ---- the queues --------------------------------------------------------------------------------------------------

    def _arrived(self, work: Work) -> None:
        if work.id in self._items:
            raise ValueError(f"work {work.id} arrived twice")
        pool = self._pools.get(work.model)
        if refusal := self._refusal(work, pool):
            self._reject(work.id, refusal)
            return
        assert pool is not None
        item = Item(work, next(self._sequence), self._now_s)
        self._items[work.id] = item
        if work.lane is ONLINE:
            pool.arrivals.note(self._now_s)
        if work.lane is OFFLINE:
            job, owed = pool.jobs.arrived(work)
            item.job = job.key
            if owed:
                self._look_at_s = min(self._look_at_s, pool.jobs.look_from_s)
        self._enqueue(pool, item)
        self._fill(pool)

    def _refusal(self, work: Work, pool: Pool | None) -> Refusal | None:
        """Why `work` cannot wait, or None if it can; another one may have left to make room for it."""
        if pool is None:
            return self._admission.unknown_model(work, self._pools)
        if self._closing:
            return CLOSING
        if refusal := self._admission.refusal(work, pool, self._now_s):
            return refusal
        if self._admission.is_full(work, pool):
            full = self._admission.queue_full(work, pool, self._now_s)
            if (leaving := self._admission.crowded_out(work, pool)) is None:
                return full
            self._refuse(pool, leaving, full)
        return None

    def _enqueue(self, pool: Pool, item: Item) -> None:
        item.waiting_since_s = self._now_s
        self._timers.waits(item)
        pool.pace[item.work.lane].waits(self._now_s)
        pool.queue(item.work.lane).push(item)
        if item.work.lane is OFFLINE:
            pool.offline_grew(self._now_s)
            self._actions += pool.intake()

    def _refuse(self, pool: Pool, item: Item, refusal: Refusal) -> None:
        """Reject a work that waits."""
        self._leave(pool, item)
        self._reject(item.work.id, refusal)

    def _reject(self, work_id: str, refusal: Refusal) -> None:
        self._rejects[refusal.reason] += 1
        self._actions.append(
            Reject(
                work_id=work_id,
                reason=refusal.reason,
                message=refusal.message,
                retry_after_s=refusal.retry_after_s,
            )
        )

    def _leave(self, pool: Pool, item: Item) -> None:
        """A work that waits or backs off is gone."""
        if item.state is State.WAITING:
            pool.queue(item.work.lane).discard(item)
            pool.somebody_left(item.work.lane)
            if item.work.lane is OFFLINE:
                pool.offline_shrank(self._now_s)
        else:
            pool.backing_off -= 1
        self._actions += pool.intake()
        self._gone(item)

    # ---- what becomes of a dispatch ----------------------------------------------------------------------------------

    def _progressed(self, event: Progressed) -> None:
        items, engine = self._items, self._engine(event.engine)
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
        if engine.streamed(event.gaps_s, begun, self._now_s) or (held_long and engine.takes_long):
            self._fill(pool)

    def _over(self, event: Ended | Stopped, reason: EndReason) -> None:
        """The engine confirmed the end of a dispatch: the slots are free; what is not complete waits again."""
        item, engine, pool = self._running(event.work_id)
        stopped = isinstance(event, Stopped)
        engine.confirmed(item, self._now_s, event.reused_tokens, event.output_tokens, stopped=stopped)
        if item.work.lane is ONLINE and item.state is State.RUNNING:
            engine.interference.complete(item, event.output_tokens, self._now_s)
        self._finish(item, engine, pool)
        self._keep(pool, item, event.output_tokens)
        complete = item.work.is_complete(item.generated_tokens, reason)
        if item.state is State.ABORTING or complete:
            self._gone(item, complete=complete)
        else:
            item.attempts = item.losses = 0
            self._again(pool, engine, item)
        self._fill(pool)

    def _failed(self, event: Failed) -> None:
        item, engine, pool = self._running(event.work_id)
        engine.counts.discarded_tokens += item.streamed_tokens
        self._finish(item, engine, pool)
        item.attempts += 1
        if item.state is State.ABORTING or item.work.lane is ONLINE:
            self._gone(item)
        elif not event.retryable or item.attempts >= self._settings.attempts_max:
            self._bury(item, event.reason)
        else:
            self._back_off(pool, item)
        self._fill(pool)

    def _lost(self, event: Lost) -> None:
        item, engine, pool = self._running(event.work_id)
        self._finish(item, engine, pool, held_s=engine.settings.lost_hold_s)
        self._keep(pool, item, event.output_tokens)
        item.lost_on(engine.settings.name)
        item.losses = 0 if event.output_tokens and item.work.resumable else item.losses + 1
        complete = item.work.is_complete(item.generated_tokens, EndReason.LENGTH)
        if item.state is State.ABORTING or complete:
            self._gone(item, complete=complete)
        elif item.losses >= self._settings.losses_max and item.work.lane is OFFLINE:
            self._bury(item, f"the stream to the engine broke {item.losses} times without a token")
        else:
            self._again(pool, engine, item)
        self._fill(pool)

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            raise ValueError(f"an event of engine {name}, which is not among {sorted(self._engines)}")
        return self._engines[name]

    def _running(self, work_id: str) -> tuple[Item, Engine, Pool]:
        """The work whose dispatch is over, and where it ran."""
        item = self._items.get(work_id)
        if item is None or not item.engine:
            raise ValueError(f"a terminal event for {work_id}, which is not dispatched")
        return item, self._engines[item.engine], self._pools[item.work.model]

    @staticmethod
    def _keep(pool: Pool, item: Item, tokens: int) -> None:
        """So many tokens of a dispatch that is over stay, and its tenant has paid for them."""
        item.keep(tokens)
        pool.queue(item.work.lane).tenants.streamed(item, 0)

    def _finish(self, item: Item, engine: Engine, pool: Pool, *, held_s: float = 0.0) -> None:
        """The slots of a dispatch that is over are free, or DRAINING for `held_s` more."""
        if item.state is State.RUNNING:
            engine.drain(item)
        elif item.state is State.PREEMPTING:
            engine.stopping -= 1
        pool.queue(item.work.lane).finish(item)
        hold = Hold(engine, item.work.slots, engine.leave(item, self._now_s))
        if held_s > 0:
            self._timers.hold(hold, self._now_s + held_s)
        else:
            self._release(hold)
        if item.work.lane is ONLINE and not engine.online_slots:
            for each in (engine, *engine.neighbours):
                each.yielding.online_left(pool.arrivals.per_s(self._now_s), self._now_s)
            self._stirred += [self._pools[each.settings.model] for each in engine.neighbours]

    def _release(self, hold: Hold) -> None:
        hold.engine.release(hold.slots, hold.kv_tokens, self._now_s)

    def _again(self, pool: Pool, engine: Engine, item: Item) -> None:
        """The rest of the work waits anew, unless there is nobody to wait for it."""
        if not item.work.resumable:
            engine.counts.discarded_tokens += item.generated_tokens
            item.generated_tokens = 0
        if item.work.lane is ONLINE:
            self._gone(item)
        elif not self._given_up(item):
            item.move(State.WAITING)
            self._enqueue(pool, item)

    def _given_up(self, item: Item) -> bool:
        """True if an offline work whose dispatch is over waits no more: it is rejected, and gone."""
        if self._closing:
            refusal = CLOSING
        elif self._timers.expired(item.work, self._now_s):
            refusal = CUT_OFF
        else:
            return False
        self._gone(item)
        self._reject(item.work.id, refusal)
        return True

    def _back_off(self, pool: Pool, item: Item) -> None:
        if self._given_up(item):
            return
        item.move(State.BACKING_OFF)
        self._retries += 1
        pool.backing_off += 1
        self._actions += pool.intake()
        delay_s = min(self._settings.retry_backoff_s * 2 ** (item.attempts - 1), RETRY_BACKOFF_MAX_S)
        self._timers.retry(item, self._now_s + delay_s)
        self._timers.waits(item)

    def _bury(self, item: Item, reason: str) -> None:
        self._gone(item)
        self._dead_letters += 1
        self._actions.append(DeadLetter(work_id=item.work.id, reason=reason, attempts=max(item.attempts, item.losses)))

    def _cancelled(self, work_id: str) -> None:
        item = self._items.get(work_id)
        if item is None or item.state is State.ABORTING:
            return
        pool = self._pools[item.work.model]
        if not item.engine:
            self._leave(pool, item)
        else:
            self._abort(item, self._engines[item.engine])
        self._fill(pool)

    def _abort(self, item: Item, engine: Engine) -> None:
        if item.state is State.PREEMPTING:
            engine.stopping -= 1
        else:
            engine.drain(item)
        item.move(State.ABORTING)
        self._actions.append(Abort(work_id=item.work.id, engine=engine.settings.name))

    def _gone(self, item: Item, *, complete: bool = False) -> None:
        pool = self._pools[item.work.model]
        if item.state not in (State.WAITING, State.BACKING_OFF):
            pool.pace[item.work.lane].over(self._now_s)
        item.move(State.GONE)
        pool.queue(item.work.lane).gone(item)
        if item.job:
            tokens = item.generated_tokens if complete else 0
            stay_s = self._now_s - (item.first_token_s or self._now_s)
            pool.jobs.left(item.job, item.work.deadline_s, tokens, stay_s)
        del self._items[item.work.id]

    # ---- engines, timers, the end ------------------------------------------------------------------------------------

    def _engine_up(self, name: str) -> None:
        engine = self._engine(name)
        if not engine.up:  # it may have been restarted, and then its cache is empty
            engine.prefixes.clear()
            for item in self._items.values():
                item.lost_on(name)
        engine.up, engine.limit_binding = True, Limit.NO_OFFLINE
        self._fill(self._pools[engine.settings.model])

    def _engine_down(self, name: str) -> None:
        """No grants on this engine. Online callers get their answer at once if no other engine is left."""
        engine = self._engine(name)
        engine.up, engine.limit_binding = False, Limit.DOWN
        pool = self._pools[engine.settings.model]
        for item in [] if pool.up else sorted(pool.online, key=lambda each: each.sequence):
            self._refuse(pool, item, self._admission.engine_down(pool.model))

    def _measured(self, event: Measured) -> None:
        engine = self._engine(event.engine)
        pool = self._pools[engine.settings.model]
        slots_ours = engine.settings.slots - engine.free.slots
        engine.ledger.measured(event, slots_ours, engine.in_use[OFFLINE])
        if engine.kv_size_settled():
            self._refuse_too_large(pool)
        self._fill(pool)

    def _refuse_too_large(self, pool: Pool) -> None:
        """The engines may hold less than they did when works arrived: what can never run would block all behind it."""
        for item in list(self._items.values()):
            if not item.engine and item.work.model == pool.model and (why := pool.holds(item.work)):
                self._refuse(pool, item, Refusal(reason=RejectReason.TOO_LARGE, message=why))

    def _run_timers(self) -> None:
        """End the holds, back-offs and waits whose time has come."""
        for what in self._timers.due(self._now_s):
            if isinstance(what, Hold):
                self._release(what)
                self._stirred.append(self._pools[what.engine.settings.model])
                continue
            pool = self._pools[what.work.model]
            if self._timers.expired(what.work, self._now_s):
                self._refuse(pool, what, EXPIRED)
            else:
                pool.backing_off -= 1
                what.move(State.WAITING)
                self._enqueue(pool, what)
            self._stirred.append(pool)

    def _close(self) -> None:
        """From here on arrivals are rejected, online drains, and offline that waits is handed back."""
        self._closing = True
        for item in list(self._items.values()):
            if not item.engine and item.work.lane is OFFLINE:
                pool = self._pools[item.work.model]
                self._refuse(pool, item, CLOSING)
        self._fill_all()  # what was kept free for a turn is online's now
