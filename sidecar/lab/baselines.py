"""What others do, in the place of the scheduler: gateways that cap, evict or batch, each with the same two queues.

None of them slices or resumes. Their parameters are those their authors publish; where a signal does not exist here
the nearest one stands in, and the docstring says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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
    EngineUp,
    Event,
    Failed,
    Lost,
    PauseIntake,
    Preempt,
    Reject,
    RejectReason,
    ResumeIntake,
    Stopped,
    Woke,
)
from sidecar.core.work import GrantKind, Lane, Work

BACKLOG_HIGH, BACKLOG_LOW = 128, 64  # enough to fill any batch here; the backlog itself is endless
ONLINE_QUEUE_MAX = 1024  # as ours


class Cap(Protocol):
    """How many offline items may be in flight."""

    def rows(self) -> int: ...
    def finished(self) -> None: ...
    def congested(self, now_s: float) -> None: ...


@dataclass(slots=True)
class Fixed:
    """A static cap."""

    cap: int

    def rows(self) -> int:
        """The cap."""
        return self.cap

    def finished(self) -> None:
        """Nothing is learnt."""

    def congested(self, now_s: float) -> None:
        """Nothing is learnt."""


@dataclass(slots=True)
class Aimd:
    """The concurrency control of llm-d's batch gateway: at least 5, +1 per window of successes, halved on congestion.

    Published for 20 per endpoint, with errors, timeouts and 429 as signals. The engine here refuses nothing, so online
    work that finds no slot stands in for a 429, counted at most once per second.
    """

    most: int = 20
    least: int = 5
    cap: float = 5.0
    _successes: int = 0
    _halved_s: float = -inf

    def rows(self) -> int:
        """The cap as it stands."""
        return int(self.cap)

    def finished(self) -> None:
        """One more success; a full window of them raises the cap by one."""
        self._successes += 1
        if self._successes >= self.cap:
            self._successes, self.cap = 0, min(self.most, self.cap + 1)

    def congested(self, now_s: float) -> None:
        """Halve the cap, unless it was halved within the last second."""
        if now_s - self._halved_s >= 1.0:
            self._halved_s, self._successes, self.cap = now_s, 0, max(self.least, self.cap / 2)


@dataclass(slots=True, kw_only=True, eq=False)
class Gateway:
    """Online first, then offline up to its cap. A grant lasts for the whole generation.

    `forward_all`: the engine's own queue is used, first come first served, and offline is kept at its cap in it.
    `evict`: online that waits cancels offline, as llm-d's flow control does: max(1, deficit) at a time and at most two,
    stop and wait, no new round for `grace_s`. `batches`: grants only into an empty engine, after waiting `window_s`
    for online (static batches with backfill).
    """

    engine: str
    slots: int
    cap: Cap
    forward_all: bool = False
    evict: bool = False
    batches: bool = False
    grace_s: float = 0.5
    window_s: float = 0.015
    waiting: dict[Lane, deque[Work]] = field(default_factory=lambda: {lane: deque() for lane in Lane})
    running: dict[str, Work] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)
    aborting: set[str] = field(default_factory=set)  # their caller is gone
    _paused: bool = False
    _evicted_s: float = -inf
    _empty_s: float = 0.0  # since when the engine is empty (batches)
    _now_s: float = 0.0

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take in the event; grants, evictions and the intake's marks follow."""
        self._now_s = now_s
        actions: list[Action] = []
        match event:
            case Arrived(work=work) if work.lane is Lane.ONLINE and len(self.waiting[work.lane]) >= ONLINE_QUEUE_MAX:
                return [Reject(work_id=work.id, reason=RejectReason.QUEUE_FULL, message="full", retry_after_s=1.0)]
            case Arrived(work=work):
                self.waiting[work.lane].append(work)
            case Ended() | Stopped() | Failed() | Lost():
                self._over(event.work_id, event)
            case EngineUp():
                self._empty_s = now_s
            case Cancelled(work_id=work_id):
                actions += self._cancelled(work_id)
            case Woke():
                pass  # the window of a batch is over
            case _:
                return actions
        actions += self._fill()
        actions += self._evict() if self.evict else ()
        actions += self._intake()
        return actions

    def next_deadline_s(self) -> float | None:
        """When the window of a static batch is over."""
        due_s = self._empty_s + self.window_s
        return due_s if self.batches and not self.running and due_s > self._now_s else None

    def _over(self, work_id: str, event: Ended | Stopped | Failed | Lost) -> None:
        work = self.running.pop(work_id)
        self.stopping.discard(work_id)
        if not self.running:
            self._empty_s = self._now_s
        if work_id in self.aborting:
            self.aborting.remove(work_id)
        elif work.lane is Lane.OFFLINE:
            if isinstance(event, Ended):
                self.cap.finished()
            else:
                self.waiting[work.lane].appendleft(work)

    def _cancelled(self, work_id: str) -> Iterator[Action]:
        if work_id in self.running:
            self.aborting.add(work_id)
            yield Abort(work_id=work_id, engine=self.engine)
        for queue in self.waiting.values():
            for work in [each for each in queue if each.id == work_id]:
                queue.remove(work)

    def _fill(self) -> Iterator[Action]:
        online, offline = self.waiting[Lane.ONLINE], self.waiting[Lane.OFFLINE]
        if self.batches and (self.running or self._now_s < self._empty_s + self.window_s):
            return
        while online and (self.forward_all or len(self.running) < self.slots):
            yield self._grant(online.popleft(), GrantKind.ONLINE, contended=bool(offline))
        if online:
            self.cap.congested(self._now_s)
        while offline and self._offline() < self.cap.rows() and (self.forward_all or len(self.running) < self.slots):
            yield self._grant(offline.popleft(), GrantKind.BACKFILL, contended=False)

    def _grant(self, work: Work, kind: GrantKind, *, contended: bool) -> Dispatch:
        self.running[work.id] = work
        return Dispatch(
            work_id=work.id,
            engine=self.engine,
            kind=kind,
            slots=1,
            output_tokens=work.output_tokens_max,
            queue_wait_s=self._now_s - work.arrived_s,
            contended=contended,
        )

    def _offline(self) -> int:
        return sum(work.lane is Lane.OFFLINE for work in self.running.values())

    def _evict(self) -> Iterator[Action]:
        waiting = len(self.waiting[Lane.ONLINE])
        if not waiting or self.stopping or self._now_s < self._evicted_s + self.grace_s:
            return
        victims = [work.id for work in self.running.values() if work.lane is Lane.OFFLINE]
        for work_id in victims[-min(2, max(1, ceil(waiting))) :]:  # the newest have the least to lose
            self.stopping.add(work_id)
            self._evicted_s = self._now_s
            yield Preempt(work_id=work_id, engine=self.engine)

    def _intake(self) -> Iterator[Action]:
        waiting = len(self.waiting[Lane.OFFLINE])
        if not self._paused and waiting >= BACKLOG_HIGH:
            self._paused = True
            yield PauseIntake(model="tensorrt_llm")
        elif self._paused and waiting <= BACKLOG_LOW:
            self._paused = False
            yield ResumeIntake(model="tensorrt_llm")
