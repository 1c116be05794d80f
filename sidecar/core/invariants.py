"""What must hold after each step, checked from the outside: the books are kept anew from events and actions alone.

    checker = Invariants(settings, engines)
    checker.observe(event, actions, now_s)     # after each handle
    checker.check(scheduler.snapshot())        # as often as its cost allows
    checker.check_drained()                    # after Closing, once every dispatch is over

Both drivers' tests use it; it shares no state and no code with the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
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
    TenantsChanged,
)
from sidecar.core.request import DispatchKind, EndReason, Lane, Request
from sidecar.core.settings import EngineSettings, OnDeadline, ReservationMode, SchedulerSettings
from sidecar.core.snapshot import EngineSnapshot, Snapshot


class InvariantError(SidecarError):
    """The scheduler or its driver broke a promise; the message says which and with what."""


def ensure(condition: bool, message: str) -> None:
    """Raise InvariantError(message) unless `condition` holds."""
    if not condition:
        raise InvariantError(message)


@dataclass(slots=True)
class _Record:
    """One request as the outside knows it."""

    request: Request
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
        """The engine has computed what `dispatch` sent, and this request has so many tokens more because of it."""
        context = self.request.prompt_tokens + self.tokens + tokens
        self.computed[dispatch.engine] = context if dispatch.prompt_tokens is None else dispatch.prompt_tokens


@dataclass(slots=True)
class Invariants:
    """The books of an observer."""

    settings: SchedulerSettings
    engines: Sequence[EngineSettings]
    requests: dict[str, _Record] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)  # slots per engine whose terminal event is owed
    holds: list[tuple[float, str, int]] = field(default_factory=list)  # slots the engine may still use after Lost
    up: set[str] = field(default_factory=set)
    closing: bool = False
    now_s: float = 0.0
    arrived: dict[tuple[object, ...], int] = field(default_factory=dict)  # accepted requests, by what they queue in
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
        unsaid = self.requests.get(getattr(event, "request_id", ""))
        ensure(unsaid is None or unsaid.ending is None, f"it was not said that {unsaid and unsaid.request.id} is over")
        if isinstance(event, Arrived) and event.request.id not in self.requests:
            self.arrived[_queue(event.request)] -= 1  # refused at once: it has never stood in the queue

    def _take_in(self, event: Event) -> None:
        match event:
            case Arrived(request=request):
                ensure(request.id not in self.requests, f"{request.id} arrived twice")
                queue = _queue(request)
                self.arrived[queue] = self.arrived.get(queue, 0) + 1
                self.requests[request.id] = _Record(request, self.arrived[queue])
                self._wait(self.requests[request.id])
            case Ended(request_id=request_id, reason=reason, output_tokens=tokens):
                self._over(request_id, tokens, reason)
            case Stopped(request_id=request_id, output_tokens=tokens):
                self._over(request_id, tokens, EndReason.LENGTH)
            case Lost(request_id=request_id, output_tokens=tokens):
                self._over(request_id, tokens, EndReason.LENGTH, lost=True)
            case Failed(request_id=request_id):
                self._failed(request_id)
            case Cancelled(request_id=request_id):
                if (record := self.requests.get(request_id)) and record.dispatch is None:
                    record.ending = Ending.CANCELLED
            case EngineUp(engine=name):
                self.up.add(name)
            case EngineDown(engine=name):
                self.up.discard(name)
            case TenantsChanged(tenants=tenants, tenant_default=default):
                self.settings = replace(self.settings, tenants=tenants, tenant_default=default)
            case Closing():
                self.closing = True
            case _:
                pass

    def _carry_out(self, action: Action) -> None:
        match action:
            case Dispatch():
                self._dispatched(action)
            case Preempt(request_id=request_id):
                record = self.requests[request_id]
                ensure(record.dispatch is not None and not record.stopping, f"{request_id} preempted, but not running")
                chunk = record.dispatch is not None and record.dispatch.prompt_tokens is not None
                ensure(record.request.lane is Lane.OFFLINE, f"online {request_id} preempted")
                ensure(record.request.resumable or chunk, f"{request_id} preempted, and cannot resume")
                reserved = record.dispatch is not None and record.dispatch.kind is DispatchKind.RESERVED
                ensure(not reserved, f"reserved {request_id} preempted")
                record.stopping = True
            case Abort(request_id=request_id):
                record = self.requests[request_id]
                ensure(record.dispatch is not None and not record.aborted, f"{request_id} aborted, but not in flight")
                record.aborted = True
            case Finished():
                self._finished(action)
            case _:
                pass

    def _finished(self, action: Finished) -> None:
        request_id, outcome = action.request_id, action.outcome
        record = self.requests.pop(request_id, None)
        ensure(record is not None, f"{request_id} is {outcome}, but it is gone")
        assert record is not None
        ensure(record.dispatch is None, f"{request_id} is {outcome} while in flight")
        if isinstance(outcome, Reject):
            self._check_reject(record, outcome)  # also of one that was cancelled just when its time had come
        elif isinstance(outcome, DeadLetter):
            ensure(record.request.lane is Lane.OFFLINE, f"online {request_id} is a dead letter")
            ensure(record.ending is None, f"{request_id} is a dead letter, the books say {record.ending}")
        else:
            ensure(outcome is record.ending, f"{request_id} is {outcome}, the books say {record.ending}")

    def _check_reject(self, record: _Record, outcome: Reject) -> None:
        """What has begun leaves no full queue, and what is late is late."""
        request = record.request
        if outcome.reason is RejectReason.QUEUE_FULL:
            ensure(not record.began, f"{request.id} had begun to run, and left for want of room")
        if outcome.reason is RejectReason.EXPIRED:
            ensure(self._late(request), f"{request.id} expired at {self.now_s}, and is due at {request.deadline_s}")

    def _late(self, request: Request) -> bool:
        expires = request.lane is Lane.ONLINE or self.settings.on_deadline is OnDeadline.EXPIRE
        return expires and request.deadline_s <= self.now_s

    def _dispatched(self, action: Dispatch) -> None:
        record = self.requests.get(action.request_id)
        ensure(record is not None, f"{action.request_id} dispatched, but it is gone")
        assert record is not None
        request, settings = record.request, next(each for each in self.engines if each.name == action.engine)
        ensure(record.dispatch is None, f"{request.id} dispatched twice")
        ensure(action.engine in self.up, f"{request.id} dispatched to engine {action.engine}, which is down")
        ensure(settings.model == request.model, f"{request.id} is for {request.model}, dispatched to {settings.model}")
        ensure(not _exceeds(request, settings), f"{request.id} is too large for {action.engine}")
        ensure(action.slots == request.slots, f"{request.id} needs {request.slots} slots and got {action.slots}")
        ensure(action.queue_wait_s >= 0, f"{request.id} waited {action.queue_wait_s} s")
        ensure(not self._late(request), f"{request.id} dispatched at {self.now_s}, and was due at {request.deadline_s}")
        left = request.output_tokens_max - record.tokens
        asked = action.output_tokens
        ensure(1 <= asked <= left, f"{request.id} may generate {left} tokens, and is dispatched for {asked}")
        chunk = action.prompt_tokens
        ensure(chunk is None or request.splits_prompt, f"{request.id} got a chunk, and its prompt cannot be split")
        context = request.prompt_tokens + record.tokens
        ensure(chunk is None or 0 < chunk < context, f"{request.id} got a chunk of {chunk} ids")
        whole = request.resumable or chunk is not None or asked == left
        ensure(whole, f"{request.id} cannot resume, and is dispatched for {asked} of {left} tokens")
        online = request.lane is Lane.ONLINE
        ensure(not self.closing or online, f"offline {request.id} dispatched after Closing")
        ensure((action.kind is DispatchKind.ONLINE) == online, f"{request.id}: kind {action.kind}")
        self.used[action.engine] = self.used.get(action.engine, 0) + action.slots
        ensure(self.used[action.engine] <= settings.slots, f"engine {action.engine} oversubscribed by {request.id}")
        if action.kind is DispatchKind.RESERVED:
            self._check_reserved(record, action, settings)
        record.dispatch, record.backing_off, record.began = action, False, True
        self._check_fifo(record)

    def _check_reserved(self, record: _Record, action: Dispatch, engine: EngineSettings) -> None:
        """A reserved dispatch computes one chunk of a prompt at most, if the prompt can be split."""
        request, fixed = record.request, engine.prefill_slice_tokens
        chunk = self.settings.offline_prefill_tokens if fixed is None else 2 * fixed
        if not chunk or not request.splits_prompt or engine.name in self.slices_off:
            return
        sent = request.prompt_tokens + record.tokens if action.prompt_tokens is None else action.prompt_tokens
        known = record.computed.get(engine.name, 0)
        short = request.prefix_key != "" or sent - known <= chunk  # of shared prefixes the scheduler knows more
        ensure(short, f"reserved {request.id} computes {sent - known} ids at once")

    def _over(self, request_id: str, tokens: int, reason: EndReason, *, lost: bool = False) -> None:
        dispatch = self.requests[request_id].dispatch if request_id in self.requests else None
        record = self._confirmed(request_id, lost=lost)
        if dispatch is not None and not lost and (tokens or dispatch.prompt_tokens is not None):
            record.ran(dispatch, tokens)
        ensure(tokens >= 0, f"{request_id} generated {tokens} tokens")
        record.tokens += tokens
        tokens_max = record.request.output_tokens_max
        ensure(record.tokens <= tokens_max, f"{request_id} may generate {tokens_max} tokens, not {record.tokens}")
        if record.request.is_complete(record.tokens, reason):
            record.ending = Ending.COMPLETE
            return
        if record.aborted or record.request.lane is Lane.ONLINE:
            record.ending = Ending.CANCELLED if record.aborted else Ending.INCOMPLETE
            return
        if not record.request.resumable:
            record.tokens = 0
        self._wait(record)

    def _failed(self, request_id: str) -> None:
        record = self._confirmed(request_id, lost=False)
        if record.aborted or record.request.lane is Lane.ONLINE:
            record.ending = Ending.CANCELLED if record.aborted else Ending.INCOMPLETE
        else:
            record.backing_off = True
            self._wait(record)

    def _confirmed(self, request_id: str, *, lost: bool) -> _Record:
        record = self.requests.get(request_id)
        ensure(record is not None and record.dispatch is not None, f"a second terminal event for {request_id}")
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
        request = record.request
        heappush(self.fifo.setdefault(_group(request), []), (request.arrived_s, record.order, request.id))

    def _check_fifo(self, record: _Record) -> None:
        """First in, first out within lane, tenant, deadline and objective. But offline equal prefixes may go ahead of
        what came less than a window before them, and who backs off has lost its place for that time."""
        heap = self.fifo[_group(record.request)]
        while heap and not self._waits(heap[0][2]):
            heappop(heap)
        first = heap[0] if heap else None
        mine = (record.request.arrived_s, record.order, record.request.id)
        grouped = record.request.prefix_key != "" and record.request.lane is Lane.OFFLINE
        near = grouped and first is not None and self._is_near(record, *first[:2])
        ensure(first is None or first >= mine or near, f"{record.request.id} overtook {first and first[2]}")

    def _is_near(self, record: _Record, arrived_s: float, order: int) -> bool:
        """True if `record` came so soon after what arrived then that it may go ahead with its prefix."""
        soon = record.request.arrived_s - arrived_s <= self.settings.prefix_group_s
        return soon and record.order - order < self.settings.prefix_group_window

    def _waits(self, request_id: str) -> bool:
        record = self.requests.get(request_id)
        return record is not None and record.dispatch is None and not record.backing_off

    # ---- against the scheduler's own account -------------------------------------------------------------------------

    def check(self, snapshot: Snapshot) -> None:
        """Raise InvariantError if the scheduler's account differs from the books, or breaks a bound."""
        in_flight = sum(record.dispatch is not None for record in self.requests.values())
        ensure(snapshot.in_flight == in_flight, f"{snapshot.in_flight} in flight, the books say {in_flight}")
        for settings in self.engines:
            self._check_engine(settings, snapshot.engines[settings.name])
        for lane in Lane:
            known = sum(record.dispatch is None and record.request.lane is lane for record in self.requests.values())
            told = sum(each.waiting + each.backing_off for each in snapshot.lanes if each.lane is lane)
            ensure(known == told, f"{told} {lane} requests wait, the books say {known}")
        late = [name for name, each in self.requests.items() if each.dispatch is None and self._late(each.request)]
        ensure(not late, f"past their deadline these wait on: {late[:5]}")
        offline = sum(record.request.lane is Lane.OFFLINE for record in self.requests.values())
        told = sum(job.items for job in snapshot.jobs)
        ensure(told == offline, f"{told} requests belong to jobs, the books say {offline}")
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
        told, due = engine.reserved_taken + engine.reserved_lapsed + pending, engine.reserved_due
        ensure(due == told, f"{settings.name}: {due} reserved dispatches were due, {told} are accounted for")
        if self.settings.reservation_mode is not ReservationMode.FIRM:
            return
        ensure(engine.window_violations == 0, f"{settings.name}: {engine.window_violations} windows below the bound")
        gap = engine.starvation_gap_dispatches
        ensure(gap <= self.settings.reservation_every, f"{settings.name}: {gap} contended dispatches without offline")

    def _check_live(self, snapshot: Snapshot) -> None:
        """With a free slot, a candidate that fits and no limit that binds, a dispatch has happened."""
        waiting = [each.request for each in self.requests.values() if each.dispatch is None and not each.backing_off]
        for engine in snapshot.engines.values():
            mine = [request for request in waiting if request.model == engine.model]
            online = [request for request in mine if request.lane is Lane.ONLINE]
            lane = next(each for each in snapshot.lanes if (each.model, each.lane) == (engine.model, Lane.OFFLINE))
            offline = lane.waiting > 0
            if engine.up:
                said = engine.limit_binding is not Limit.NO_OFFLINE
                ensure(said == offline, f"{engine.name}: {engine.limit_binding}, and offline waits: {offline}")
            if not engine.up or not mine:
                continue
            settings = next(each for each in self.engines if each.name == engine.name)
            if any(_exceeds(request, settings) for request in mine):
                continue  # it may be next, and waits for another engine
            if any(not self._may_be_held(request, mine) for request in online):
                widest = max(request.slots for request in online)
                # Which of them is next is not known here; any of them may lack KV, rounded up to blocks.
                tokens = max(
                    (request.prompt_tokens + request.output_tokens_max + 1024) * request.slots for request in online
                )
                kv_taken = engine.kv_tokens + engine.kv_foreign_tokens
                short_of_kv = engine.kv_tokens_max and kv_taken + tokens > engine.kv_tokens_max
                ensure(
                    engine.slots_free < widest or engine.limit_binding is Limit.RESERVED_DISPATCH or bool(short_of_kv),
                    f"{engine.name}: {engine.slots_free} slots free while online work waits",
                )
            elif offline and not online:
                ensure(
                    engine.limit_binding is not Limit.NONE, f"{engine.name}: offline waits and nothing holds it back"
                )

    def _may_be_held(self, request: Request, waiting: Sequence[Request]) -> bool:
        """True if its tenant has all its slots, or a long prompt before which another one may be in prefill."""
        limits = self.settings.tenants.get(request.tenant, self.settings.tenant_default)

        def same_tenant(other: Request) -> bool:
            same_lane = (other.model, other.lane) == (request.model, request.lane)
            return same_lane and (other.tenant == request.tenant or not self.settings.tenant_fairness)

        theirs = [each for each in self.requests.values() if each.dispatch and same_tenant(each.request)]
        if self.settings.tenant_fairness and 0 < limits.slots_max <= sum(each.request.slots for each in theirs):
            return True
        long = self.settings.long_prompt_tokens or inf
        return any(each.prompt_tokens > long and same_tenant(each) for each in waiting)

    def check_drained(self) -> None:
        """Raise InvariantError unless nothing waits and nothing is in flight."""
        ensure(not self.requests, f"after Closing these are left: {sorted(self.requests)[:5]}")


def _exceeds(request: Request, engine: EngineSettings) -> bool:
    """True if `engine` can never run `request`, which another one of its model can."""
    lent = engine.slots if request.lane is Lane.ONLINE else max(1, engine.slots - engine.slots_online_min)
    return request.slots > lent or request.prompt_tokens + request.output_tokens_max > engine.tokens_max


def _queue(request: Request) -> tuple[object, ...]:
    return request.model, request.lane, request.tenant


def _group(request: Request) -> tuple[object, ...]:
    return *_queue(request), request.deadline_s, request.ttft_objective_ms
