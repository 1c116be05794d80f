"""What others do, in the place of the scheduler: gateways that cap, evict or batch, each with the same two queues.

None of them slices or resumes. Their parameters are those their authors publish; where a signal does not exist here
the nearest one stands in, and the docstring says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Protocol

from sidecar.core.events import (
    Abort,
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    Ended,
    Ending,
    EngineUp,
    Event,
    Failed,
    Finished,
    Lost,
    PauseIntake,
    Preempt,
    Progressed,
    Reject,
    RejectReason,
    ResumeIntake,
    Stopped,
    Woke,
)
from sidecar.core.request import DispatchKind, Lane, Request

BACKLOG_HIGH, BACKLOG_LOW = 128, 64  # enough to fill any batch here; the backlog itself is endless
ONLINE_QUEUE_MAX = 1024  # as ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a cap may look at."""

    now_s: float
    slots: int
    active: int  # dispatches of both lanes
    offline: deque[Request]  # that wait


class Cap(Protocol):
    """How many offline items may be in flight."""

    def rows(self, load: Load, /) -> int: ...
    def next_s(self) -> float: ...
    def finished(self, now_s: float, /) -> None: ...
    def congested(self, now_s: float, /) -> None: ...


@dataclass(slots=True)
class Fixed:
    """A static cap."""

    cap: int

    def rows(self, _: Load) -> int:
        """The cap."""
        return self.cap

    def next_s(self) -> float:
        """Time changes nothing."""
        return inf

    def finished(self, now_s: float) -> None:
        """Nothing is learnt."""

    def congested(self, now_s: float) -> None:
        """Nothing is learnt."""


@dataclass(slots=True)
class BatchGatewayAimd:
    """The concurrency control of llm-d's batch gateway: at least 5, +1 per window of successes, halved on congestion.

    Published for 20 per endpoint, with errors, timeouts and 429 as signals. The engine here refuses nothing, so online
    work that finds no slot stands in for a 429, counted at most once per second. Without `refused` it does not: that is
    the controller as published in front of an engine with a queue, which never says no.
    """

    most: int = 20
    least: int = 5
    cap: float = 5.0
    refused: bool = True
    _successes: int = 0
    _halved_s: float = -inf

    def rows(self, _: Load) -> int:
        """The cap as it stands."""
        return int(self.cap)

    def next_s(self) -> float:
        """Only events change it."""
        return inf

    def finished(self, _: float) -> None:
        """One more success; a full window of them raises the cap by one."""
        self._successes += 1
        if self._successes >= self.cap:
            self._successes, self.cap = 0, min(self.most, self.cap + 1)

    def congested(self, now_s: float) -> None:
        """Online found no slot."""
        if self.refused:
            self.late(now_s)

    def late(self, now_s: float) -> None:
        """Halve the cap, unless it was halved within the last second."""
        if now_s - self._halved_s >= 1.0:
            self._halved_s, self._successes, self.cap = now_s, 0, max(self.least, self.cap / 2)


@dataclass(slots=True)
class Tidal:
    """Tidal's gateway: once per second it looks at scraped metrics, and adds one row or halves them.

    Published: laxity against a horizon of six hours; above an urgency of 0.9 it keeps a floor, here a quarter of the
    slots. Online work that found no slot since the last look stands in for its latency signal.
    """

    horizon_s: float = 6 * 3600.0
    cap: float = 1.0
    _floor: int = 0
    _hot: bool = False
    _next_s: float = 0.0
    _finished_s: deque[float] = field(default_factory=lambda: deque(maxlen=256))

    def rows(self, load: Load) -> int:
        """The cap as of the last look."""
        if load.now_s >= self._next_s:
            self.cap = max(1.0, self.cap / 2) if self._hot else min(load.slots, self.cap + 1)
            self._floor = load.slots // 4 if self._urgency(load) > 0.9 else 0
            self._hot, self._next_s = False, load.now_s + 1.0
        return max(int(self.cap), self._floor)

    def _urgency(self, load: Load) -> float:
        """Of the earliest deadline, as if all that waits came before it; 0 without one, or without a rate."""
        deadline_s = min((request.deadline_s for request in load.offline), default=inf)
        if deadline_s == inf or not self._finished_s or load.now_s <= self._finished_s[0]:
            return 0.0
        rate = len(self._finished_s) / (load.now_s - self._finished_s[0])
        return 1 - (deadline_s - load.now_s - len(load.offline) / rate) / self.horizon_s

    def next_s(self) -> float:
        """The next look."""
        return self._next_s

    def finished(self, now_s: float) -> None:
        """One more for the rate."""
        self._finished_s.append(now_s)

    def congested(self, _: float) -> None:
        """The next look will see it."""
        self._hot = True


@dataclass(slots=True)
class Budget:
    """llm-d-async's dispatch budget: N = most · (free share − 0.05), scraped, five seconds old at most.

    All its workers read the same number and wake together, so that any budget lets them all in. `most` is a hundred by
    default, which on an engine of fewer slots never closes; here it is the slots of the engine.
    """

    workers: int = 64
    reserve: float = 0.05
    cache_s: float = 5.0
    _open: bool = False
    _next_s: float = 0.0

    def rows(self, load: Load) -> int:
        """Every worker, or none."""
        if load.now_s >= self._next_s:
            self._open = load.slots * (1 - load.active / load.slots - self.reserve) > 0
            self._next_s = load.now_s + self.cache_s
        return self.workers if self._open else 0

    def next_s(self) -> float:
        """The next scrape."""
        return self._next_s

    def finished(self, now_s: float) -> None:
        """Nothing is learnt."""

    def congested(self, now_s: float) -> None:
        """Nothing is learnt."""


@dataclass(slots=True)
class Nights:
    """Offline has the engine from 20 to 8 h and on weekends, online otherwise. Runs begin on a Monday at midnight."""

    week_s: float = 7 * 86_400.0
    _now_s: float = 0.0

    def rows(self, load: Load) -> int:
        """All slots, or none."""
        self._now_s = load.now_s
        return load.slots if self._offline() else 0

    def _offline(self) -> bool:
        day, hour = divmod(self._now_s / self.week_s * 168 % 168, 24)
        return day >= 5 or not 8 <= hour < 20

    def next_s(self) -> float:
        """The next full hour."""
        hour_s = self.week_s / 168
        return (self._now_s // hour_s + 1) * hour_s

    def finished(self, now_s: float) -> None:
        """Nothing is learnt."""

    def congested(self, now_s: float) -> None:
        """Nothing is learnt."""


@dataclass(slots=True, kw_only=True, eq=False)
class Gateway:
    """Online first, then offline up to its cap. A dispatch lasts for the whole generation.

    `forward_all`: the engine's own queue is used, first come first served, and offline is kept at its cap in it.
    `evict`: online that waits cancels offline, as llm-d's flow control does: max(1, deficit) at a time and at most two,
    stop and wait, no new round for `grace_s`. `batches`: dispatches only into an empty engine, after waiting `window_s`
    for online (static batches with backfill). `batch_s`: a batch is of one lane, online's first, and one of offline is
    stopped after so long; what it did not complete goes on in a later one (two priority queues).
    """

    engine: str
    slots: int
    cap: Cap
    forward_all: bool = False
    evict: bool = False
    batches: bool = False
    grace_s: float = 0.5
    window_s: float = 0.015
    batch_s: float = inf
    late_s: float = inf  # a first token later than this is congestion
    waiting: dict[Lane, deque[Request]] = field(default_factory=lambda: {lane: deque() for lane in Lane})
    running: dict[str, Request] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)
    aborting: set[str] = field(default_factory=set)  # their caller is gone
    _paused: bool = False
    _evicted_s: float = -inf
    _empty_s: float = 0.0  # since when the engine is empty (batches)
    _began_s: float = 0.0  # when the batch began
    _kept: dict[str, int] = field(default_factory=dict)  # tokens of those that were stopped and may resume
    _now_s: float = 0.0

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take in the event; dispatches, evictions and the intake's marks follow."""
        self._now_s = now_s
        actions: list[Action] = []
        match event:
            case Arrived(request=request) if (
                request.lane is Lane.ONLINE and len(self.waiting[request.lane]) >= ONLINE_QUEUE_MAX
            ):
                full = Reject(reason=RejectReason.QUEUE_FULL, message="full", retry_after_s=1.0)
                return [Finished(request_id=request.id, outcome=full)]
            case Arrived(request=request):
                self.waiting[request.lane].append(request)
            case Ended() | Stopped() | Failed() | Lost():
                actions += self._over(event.request_id, event)
            case EngineUp():
                self._empty_s = now_s
            case Cancelled(request_id=request_id):
                actions += self._cancelled(request_id)
            case Progressed(first_tokens=first) if self.late_s < inf:
                self._look_at(first)
                return actions
            case Woke():
                actions += self._batch_over()
            case _:
                return actions
        actions += self._fill()
        actions += self._evict() if self.evict else ()
        actions += self._intake()
        return actions

    def next_deadline_s(self) -> float | None:
        """Return when the window of a static batch is over, or the batch itself, or the cap may be another one."""
        due = [self.cap.next_s()] if self.waiting[Lane.OFFLINE] else []
        if self.batches:
            due.append(self._began_s + self.batch_s if self.running else self._empty_s + self.window_s)
        return min((each for each in due if self._now_s < each < inf), default=None)

    def _look_at(self, first_tokens: Iterable[str]) -> None:
        """Tell the cap if an online request had to wait too long for its first token."""
        waits_s = [
            self._now_s - request.arrived_s
            for request_id in first_tokens
            if (request := self.running.get(request_id)) and request.lane is Lane.ONLINE
        ]
        if isinstance(self.cap, BatchGatewayAimd) and max(waits_s, default=0.0) > self.late_s:
            self.cap.late(self._now_s)

    def _batch_over(self) -> Iterator[Action]:
        """Stop a batch of offline work whose time is over; batches of online work run to their end."""
        if self._now_s < self._began_s + self.batch_s:
            return
        for request in self.running.values():
            if request.lane is Lane.OFFLINE and request.id not in self.stopping:
                self.stopping.add(request.id)
                yield Preempt(request_id=request.id, engine=self.engine)

    def _over(self, request_id: str, event: Ended | Stopped | Failed | Lost) -> Iterator[Action]:
        request = self.running.pop(request_id)
        self.stopping.discard(request_id)
        if not self.running:
            self._empty_s = self._now_s
        if request_id in self.aborting:
            self.aborting.remove(request_id)
            yield Finished(request_id=request_id, outcome=Ending.CANCELLED)
        elif isinstance(event, Ended):
            if request.lane is Lane.OFFLINE:
                self.cap.finished(self._now_s)
                self._kept.pop(request_id, None)
            yield Finished(request_id=request_id, outcome=Ending.COMPLETE)
        elif request.lane is Lane.ONLINE:
            yield Finished(request_id=request_id, outcome=Ending.INCOMPLETE)
        else:
            if request.resumable and not isinstance(event, Failed):
                self._kept[request_id] = self._kept.get(request_id, 0) + event.output_tokens
            self.waiting[request.lane].appendleft(request)

    def _cancelled(self, request_id: str) -> Iterator[Action]:
        if request_id in self.running:
            self.aborting.add(request_id)
            yield Abort(request_id=request_id, engine=self.engine)
        for queue in self.waiting.values():
            for request in [each for each in queue if each.id == request_id]:
                queue.remove(request)
                yield Finished(request_id=request_id, outcome=Ending.CANCELLED)

    def _fill(self) -> Iterator[Action]:
        online, offline = self.waiting[Lane.ONLINE], self.waiting[Lane.OFFLINE]
        if self.batches and (self.running or self._now_s < self._empty_s + self.window_s):
            return
        self._began_s = self._now_s
        while online and (self.forward_all or len(self.running) < self.slots):
            yield self._dispatch(online.popleft(), DispatchKind.ONLINE, contended=bool(offline))
        if online:
            self.cap.congested(self._now_s)
        if self.batch_s < inf and self.running:
            return  # the batch is online's
        load = Load(now_s=self._now_s, slots=self.slots, active=len(self.running), offline=offline)
        rows = self.cap.rows(load)
        while offline and self._offline() < rows and (self.forward_all or len(self.running) < self.slots):
            yield self._dispatch(offline.popleft(), DispatchKind.BACKFILL, contended=False)

    def _dispatch(self, request: Request, kind: DispatchKind, *, contended: bool) -> Dispatch:
        self.running[request.id] = request
        return Dispatch(
            request_id=request.id,
            engine=self.engine,
            kind=kind,
            slots=1,
            output_tokens=request.output_tokens_max - self._kept.get(request.id, 0),
            queue_wait_s=self._now_s - request.arrived_s,
            contended=contended,
        )

    def _offline(self) -> int:
        return sum(request.lane is Lane.OFFLINE for request in self.running.values())

    def _evict(self) -> Iterator[Action]:
        waiting = len(self.waiting[Lane.ONLINE])
        if not waiting or self.stopping or self._now_s < self._evicted_s + self.grace_s:
            return
        victims = [request.id for request in self.running.values() if request.lane is Lane.OFFLINE]
        for request_id in victims[-min(2, max(1, ceil(waiting))) :]:  # the newest have the least to lose
            self.stopping.add(request_id)
            self._evicted_s = self._now_s
            yield Preempt(request_id=request_id, engine=self.engine)

    def _intake(self) -> Iterator[Action]:
        waiting = len(self.waiting[Lane.OFFLINE])
        if not self._paused and waiting >= BACKLOG_HIGH:
            self._paused = True
            yield PauseIntake(model="tensorrt_llm")
        elif self._paused and waiting <= BACKLOG_LOW:
            self._paused = False
            yield ResumeIntake(model="tensorrt_llm")
