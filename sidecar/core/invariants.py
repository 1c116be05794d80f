"""What must hold after each step, checked from the outside: the books are kept anew from events and actions alone.

    checker = Invariants(settings, engines)
    checker.observe(event, actions, now_s)     # after each handle
    checker.check(scheduler.snapshot())        # as often as its cost allows
    checker.check_drained()                    # after Closing, once every dispatch is over

Both drivers' tests use it; it shares no state and no code with the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from heapq import heappop, heappush
from math import inf

from sidecar.core.engine import Limit
from sidecar.core.errors import SidecarError
from sidecar.core.events import (
    Abort,
    Action,
    Arrived,
    Cancelled,
    Closing,
    DeadLetter,
    Dispatch,
    Ended,
    Ending,
    EngineDown,
    EngineUp,
    Event,
    Failed,
    Finished,
    Lost,
    Preempt,
    Reject,
    RejectReason,
    Stopped,
)
from sidecar.core.settings import EngineSettings, OnDeadline, ReservationMode, SchedulerSettings
from sidecar.core.snapshot import EngineSnapshot, Snapshot
from sidecar.core.work import EndReason, GrantKind, Lane, Work


class InvariantError(SidecarError):
    """The scheduler or its driver broke a promise; the message says which and with what."""


def ensure(condition: bool, message: str) -> None:
    """Raise InvariantError(message) unless `condition` holds."""
    if not condition:
        raise InvariantError(message)


@dataclass(slots=True)
class _Record:
    """One work as the outside knows it."""

    work: Work
    order: int
    tokens: int = 0  # kept from dispatches that are over
    dispatch: Dispatch | None = None
    stopping: bool = False  # preempted
    aborted: bool = False
    backing_off: bool = False
    began: bool = False  # it has run
    ending: Ending | None = None  # how it is over, by the event that is being booked
    computed: dict[str, int] = field(default_factory=dict)  # of its context, by engine

    def ran(self, dispatch: Dispatch, tokens: int) -> None:
        """The engine has computed what `dispatch` sent, and this work has so many tokens more because of it."""
        context = self.work.prompt_tokens + self.tokens + tokens
        self.computed[dispatch.engine] = context if dispatch.prompt_tokens is None else dispatch.prompt_tokens


@dataclass(slots=True)
class Invariants:
    """The books of an observer."""

    settings: SchedulerSettings
    engines: Sequence[EngineSettings]
    works: dict[str, _Record] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)  # slots per engine whose terminal event is owed
    holds: list[tuple[float, str, int]] = field(default_factory=list)  # slots the engine may still use after Lost
    up: set[str] = field(default_factory=set)
    closing: bool = False
    now_s: float = 0.0
    arrived: dict[tuple[object, ...], int] = field(default_factory=dict)  # accepted works, by what they queue in
    slices_off: set[str] = field(default_factory=set)  # engines that do not reuse their cache, by the last snapshot
    fifo: dict[tuple[object, ...], list[tuple[float, int, str]]] = field(default_factory=dict)

    def observe(self, event: Event, actions: Sequence[Action], now_s: float) -> None:
        """Book one step. Raises InvariantError if it broke a promise."""
        ensure(now_s >= self.now_s, f"time ran backwards: {self.now_s} → {now_s}")
        self.now_s = now_s
        while self.holds and self.holds[0][0] <= now_s:
            _, name, slots = heappop(self.holds)
            self.used[name] -= slots
        self._take_in(event)
        for action in actions:
            self._carry_out(action)
        unsaid = self.works.get(getattr(event, "work_id", ""))
        ensure(unsaid is None or unsaid.ending is None, f"it was not said that {unsaid and unsaid.work.id} is over")
        if isinstance(event, Arrived) and event.work.id not in self.works:
            self.arrived[_queue(event.work)] -= 1  # refused at once: it has never stood in the queue

    def _take_in(self, event: Event) -> None:
        match event:
            case Arrived(work=work):
                ensure(work.id not in self.works, f"{work.id} arrived twice")
                queue = _queue(work)
                self.arrived[queue] = self.arrived.get(queue, 0) + 1
                self.works[work.id] = _Record(work, self.arrived[queue])
                self._wait(self.works[work.id])
            case Ended(work_id=work_id, reason=reason, output_tokens=tokens):
                self._over(work_id, tokens, reason)
            case Stopped(work_id=work_id, output_tokens=tokens):
                self._over(work_id, tokens, EndReason.LENGTH)
            case Lost(work_id=work_id, output_tokens=tokens):
                self._over(work_id, tokens, EndReason.LENGTH, lost=True)
            case Failed(work_id=work_id):
                self._failed(work_id)
            case Cancelled(work_id=work_id):
                record = self.works.get(work_id)
                if record and record.dispatch is None:
                    record.ending = Ending.CANCELLED
            case EngineUp(engine=name):
                self.up.add(name)
            case EngineDown(engine=name):
                self.up.discard(name)
            case Closing():
                self.closing = True
            case _:
                pass

    def _carry_out(self, action: Action) -> None:
        match action:
            case Dispatch():
                self._dispatched(action)
            case Preempt(work_id=work_id):
                record = self.works[work_id]
                ensure(record.dispatch is not None and not record.stopping, f"{work_id} preempted, but not running")
                piece = record.dispatch is not None and record.dispatch.prompt_tokens is not None
                ensure(record.work.lane is Lane.OFFLINE, f"online {work_id} preempted")
                ensure(record.work.resumable or piece, f"{work_id} preempted, and cannot resume")
                ensure(
                    record.dispatch is None or record.dispatch.kind is not GrantKind.RESERVED, f"turn {work_id} taken"
                )
                record.stopping = True
            case Abort(work_id=work_id):
                record = self.works[work_id]
                ensure(record.dispatch is not None and not record.aborted, f"{work_id} aborted, but not in flight")
                record.aborted = True
            case Finished():
                self._finished(action)
            case _:
                pass

    def _finished(self, action: Finished) -> None:
        work_id, outcome = action.work_id, action.outcome
        record = self.works.pop(work_id, None)
        ensure(record is not None, f"{work_id} is {outcome}, but it is gone")
        assert record is not None
        ensure(record.dispatch is None, f"{work_id} is {outcome} while in flight")
        if isinstance(outcome, Reject):
            self._check_reject(record, outcome)  # also of one that was cancelled just when its time had come
        elif isinstance(outcome, DeadLetter):
            ensure(record.work.lane is Lane.OFFLINE, f"online {work_id} is a dead letter")
            ensure(record.ending is None, f"{work_id} is a dead letter, the books say {record.ending}")
        else:
            ensure(outcome is record.ending, f"{work_id} is {outcome}, the books say {record.ending}")

    def _check_reject(self, record: _Record, outcome: Reject) -> None:
        """What has begun leaves no full queue, and what is late is late."""
        work = record.work
        if outcome.reason is RejectReason.QUEUE_FULL:
            ensure(not record.began, f"{work.id} had begun to run, and left for want of room")
        if outcome.reason is RejectReason.EXPIRED:
            ensure(self._late(work), f"{work.id} expired at {self.now_s}, and is due at {work.deadline_s}")

    def _late(self, work: Work) -> bool:
        expires = work.lane is Lane.ONLINE or self.settings.on_deadline is OnDeadline.EXPIRE
        return expires and work.deadline_s <= self.now_s

    def _dispatched(self, action: Dispatch) -> None:
        record = self.works.get(action.work_id)
        ensure(record is not None, f"{action.work_id} dispatched, but it is gone")
        assert record is not None
        work, settings = record.work, next(each for each in self.engines if each.name == action.engine)
        ensure(record.dispatch is None, f"{work.id} dispatched twice")
        ensure(action.engine in self.up, f"{work.id} dispatched to engine {action.engine}, which is down")
        ensure(settings.model == work.model, f"{work.id} is for {work.model}, dispatched to {settings.model}")
        ensure(not _exceeds(work, settings), f"{work.id} is too large for {action.engine}")
        ensure(action.slots == work.slots, f"{work.id} needs {work.slots} slots and got {action.slots}")
        ensure(action.queue_wait_s >= 0, f"{work.id} waited {action.queue_wait_s} s")
        ensure(not self._late(work), f"{work.id} dispatched at {self.now_s}, and was due at {work.deadline_s}")
        left = work.output_tokens_max - record.tokens
        ensure(
            1 <= action.output_tokens <= left, f"{work.id} may generate {left} tokens, granted {action.output_tokens}"
        )
        piece = action.prompt_tokens
        ensure(piece is None or work.splits_prompt, f"{work.id} got a piece, and its prompt cannot be split")
        ensure(piece is None or 0 < piece < work.prompt_tokens + record.tokens, f"{work.id} got a piece of {piece} ids")
        whole = work.resumable or piece is not None or action.output_tokens == left
        ensure(whole, f"{work.id} cannot resume, and is granted {action.output_tokens} of {left} tokens")
        ensure(not self.closing or work.lane is Lane.ONLINE, f"offline {work.id} dispatched after Closing")
        ensure((action.kind is GrantKind.ONLINE) == (work.lane is Lane.ONLINE), f"{work.id}: kind {action.kind}")
        self.used[action.engine] = self.used.get(action.engine, 0) + action.slots
        ensure(self.used[action.engine] <= settings.slots, f"engine {action.engine} oversubscribed by {work.id}")
        if action.kind is GrantKind.RESERVED:
            self._check_turn(record, action, settings)
        record.dispatch, record.backing_off, record.began = action, False, True
        self._check_fifo(record)

    def _check_turn(self, record: _Record, action: Dispatch, engine: EngineSettings) -> None:
        """A turn computes a piece of a prompt at most, twice as large in a lull; but for what cannot be split."""
        work, piece = record.work, 2 * engine.piece_tokens
        if not piece or not work.splits_prompt or engine.name in self.slices_off:
            return
        sent = work.prompt_tokens + record.tokens if action.prompt_tokens is None else action.prompt_tokens
        known = record.computed.get(engine.name, 0)
        # Of a prefix that others have the scheduler knows more than these books.
        ensure(work.prefix_key != "" or sent - known <= piece, f"turn {work.id} computes {sent - known} ids at once")

    def _over(self, work_id: str, tokens: int, reason: EndReason, *, lost: bool = False) -> None:
        dispatch = self.works[work_id].dispatch if work_id in self.works else None
        record = self._confirmed(work_id, lost=lost)
        if dispatch is not None and not lost and (tokens or dispatch.prompt_tokens is not None):
            record.ran(dispatch, tokens)
        ensure(tokens >= 0, f"{work_id} generated {tokens} tokens")
        record.tokens += tokens
        ensure(record.tokens <= record.work.output_tokens_max, f"{work_id} generated more than it may: {record.tokens}")
        if record.work.is_complete(record.tokens, reason):
            record.ending = Ending.COMPLETE
            return
        if record.aborted or record.work.lane is Lane.ONLINE:
            record.ending = Ending.CANCELLED if record.aborted else Ending.INCOMPLETE
            return
        if not record.work.resumable:
            record.tokens = 0
        self._wait(record)

    def _failed(self, work_id: str) -> None:
        record = self._confirmed(work_id, lost=False)
        if record.aborted or record.work.lane is Lane.ONLINE:
            record.ending = Ending.CANCELLED if record.aborted else Ending.INCOMPLETE
        else:
            record.backing_off = True
            self._wait(record)

    def _confirmed(self, work_id: str, *, lost: bool) -> _Record:
        record = self.works.get(work_id)
        ensure(record is not None and record.dispatch is not None, f"a second terminal event for {work_id}")
        assert record is not None
        assert record.dispatch is not None
        dispatch, record.dispatch, record.stopping = record.dispatch, None, False
        hold_s = next(each.lost_hold_s for each in self.engines if each.name == dispatch.engine)
        if lost and hold_s > 0:
            heappush(self.holds, (self.now_s + hold_s, dispatch.engine, dispatch.slots))
        else:
            self.used[dispatch.engine] -= dispatch.slots
        return record

    # ---- order -------------------------------------------------------------------------------------------------------

    def _wait(self, record: _Record) -> None:
        work = record.work
        heappush(self.fifo.setdefault(_group(work), []), (work.arrived_s, record.order, work.id))

    def _check_fifo(self, record: _Record) -> None:
        """First in, first out within lane, tenant, deadline and objective. But offline equal prefixes may go ahead of
        what came less than a window before them, and who backs off has lost its place for that time."""
        heap = self.fifo[_group(record.work)]
        while heap and not self._waits(heap[0][2]):
            heappop(heap)
        first = heap[0] if heap else None
        mine = (record.work.arrived_s, record.order, record.work.id)
        grouped = record.work.prefix_key != "" and record.work.lane is Lane.OFFLINE
        near = grouped and first is not None and self._is_near(record, *first[:2])
        ensure(first is None or first >= mine or near, f"{record.work.id} overtook {first and first[2]}")

    def _is_near(self, record: _Record, arrived_s: float, order: int) -> bool:
        """True if `record` came so soon after what arrived then that it may go ahead with its prefix."""
        soon = record.work.arrived_s - arrived_s <= self.settings.prefix_group_s
        return soon and record.order - order < self.settings.prefix_group_window

    def _waits(self, work_id: str) -> bool:
        record = self.works.get(work_id)
        return record is not None and record.dispatch is None and not record.backing_off

    # ---- against the scheduler's own account -------------------------------------------------------------------------

    def check(self, snapshot: Snapshot) -> None:
        """Raise InvariantError if the scheduler's account differs from the books, or breaks a bound."""
        in_flight = sum(record.dispatch is not None for record in self.works.values())
        ensure(snapshot.in_flight == in_flight, f"{snapshot.in_flight} in flight, the books say {in_flight}")
        for settings in self.engines:
            self._check_engine(settings, snapshot.engines[settings.name])
        for lane in Lane:
            known = sum(record.dispatch is None and record.work.lane is lane for record in self.works.values())
            told = sum(each.waiting + each.backing_off for each in snapshot.lanes if each.lane is lane)
            ensure(known == told, f"{told} {lane} works wait, the books say {known}")
        late = [work_id for work_id, each in self.works.items() if each.dispatch is None and self._late(each.work)]
        ensure(not late, f"past their deadline these wait on: {late[:5]}")
        items = sum(record.work.lane is Lane.OFFLINE for record in self.works.values())
        told = sum(job.items for job in snapshot.jobs)
        ensure(told == items, f"{told} items belong to jobs, the books say {items}")
        self._check_live(snapshot)

    def _check_engine(self, settings: EngineSettings, engine: EngineSnapshot) -> None:
        for each in fields(engine):
            value = getattr(engine, each.name)
            ensure(not isinstance(value, int | float) or value >= 0, f"{settings.name}: {each.name} is {value}")
        (self.slices_off.discard if engine.slice_factor else self.slices_off.add)(settings.name)
        used = self.used.get(settings.name, 0)
        ensure(engine.slots_busy == used, f"{settings.name}: {engine.slots_busy} slots busy, the books say {used}")
        if not used:
            counts = (engine.prefill_tokens, engine.decoding_rows, engine.decoding_context_tokens)
            held = engine.kv_tokens + sum(sum(each.values()) for each in counts)
            ensure(not held, f"{settings.name} is at rest and holds {engine.kv_tokens} KV tokens, {counts}")
        parts = engine.slots_online + engine.slots_offline + engine.slots_draining
        ensure(parts == engine.slots_busy, f"{settings.name}: {parts} slots by use, {engine.slots_busy} busy")
        pending = engine.credit // (self.settings.reservation_every - 1)
        turns = engine.turns_taken + engine.turns_lapsed + pending
        ensure(engine.turns_due == turns, f"{settings.name}: {engine.turns_due} turns due, {turns} accounted for")
        if self.settings.reservation_mode is not ReservationMode.FIRM:
            return
        ensure(engine.window_violations == 0, f"{settings.name}: {engine.window_violations} windows below the bound")
        gap = engine.starvation_gap_grants
        ensure(gap <= self.settings.reservation_every, f"{settings.name}: {gap} contended grants without offline")

    def _check_live(self, snapshot: Snapshot) -> None:
        """With a free slot, a candidate that fits and no limit that binds, a grant has happened."""
        waiting = [each.work for each in self.works.values() if each.dispatch is None and not each.backing_off]
        for engine in snapshot.engines.values():
            mine = [work for work in waiting if work.model == engine.model]
            online = [work for work in mine if work.lane is Lane.ONLINE]
            lane = next(each for each in snapshot.lanes if (each.model, each.lane) == (engine.model, Lane.OFFLINE))
            offline = lane.waiting > 0
            if engine.up:
                said = engine.limit_binding is not Limit.NO_OFFLINE
                ensure(said == offline, f"{engine.name}: {engine.limit_binding}, and offline waits: {offline}")
            if not engine.up or not mine:
                continue
            settings = next(each for each in self.engines if each.name == engine.name)
            if any(_exceeds(work, settings) for work in mine):
                continue  # it may be next, and waits for another engine
            if any(not self._may_be_held(work, mine) for work in online):
                widest = max(work.slots for work in online)
                # Which of them is next is not known here; any of them may lack KV, rounded up to blocks.
                tokens = max((work.prompt_tokens + work.output_tokens_max + 1024) * work.slots for work in online)
                kv_taken = engine.kv_tokens + engine.kv_foreign_tokens
                short_of_kv = engine.kv_tokens_max and kv_taken + tokens > engine.kv_tokens_max
                ensure(
                    engine.slots_free < widest or engine.limit_binding is Limit.TURN or bool(short_of_kv),
                    f"{engine.name}: {engine.slots_free} slots free while online work waits",
                )
            elif offline and not online:
                ensure(
                    engine.limit_binding is not Limit.NONE, f"{engine.name}: offline waits and nothing holds it back"
                )

    def _may_be_held(self, work: Work, waiting: Sequence[Work]) -> bool:
        """True if its tenant has all its slots, or a long prompt before which another one may be in prefill."""
        limits = self.settings.tenants.get(work.tenant, self.settings.tenant_default)

        def same_tenant(other: Work) -> bool:
            same_lane = (other.model, other.lane) == (work.model, work.lane)
            return same_lane and (other.tenant == work.tenant or not self.settings.tenant_fairness)

        theirs = [each for each in self.works.values() if each.dispatch and same_tenant(each.work)]
        if self.settings.tenant_fairness and 0 < limits.slots_max <= sum(each.work.slots for each in theirs):
            return True
        long = self.settings.long_prompt_tokens or inf
        return any(each.prompt_tokens > long and same_tenant(each) for each in waiting)

    def check_drained(self) -> None:
        """Raise InvariantError unless nothing waits and nothing is in flight."""
        ensure(not self.works, f"after Closing these are left: {sorted(self.works)[:5]}")


def _exceeds(work: Work, engine: EngineSettings) -> bool:
    """True if `engine` can never run `work`, which another one of its model can."""
    lent = engine.slots if work.lane is Lane.ONLINE else max(1, engine.slots - engine.slots_online_min)
    return work.slots > lent or work.prompt_tokens + work.output_tokens_max > engine.tokens_max


def _queue(work: Work) -> tuple[object, ...]:
    return work.model, work.lane, work.tenant


def _group(work: Work) -> tuple[object, ...]:
    return *_queue(work), work.deadline_s, work.ttft_objective_ms
