"""The second driver: it obeys the scheduler in simulated time, where the first (`sidecar/driver/driver.py`) is asyncio.

Time is a heap of things to come. The duties are those numbered in `sidecar/core/scheduler.py`. Here they are also
checked: a scheduler that dispatches unknown requests, oversubscribes an engine or stops what does not run, and an
engine that answers twice, raise BrokenPromiseError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Protocol, assert_never

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
    Forecast,
    Lost,
    PauseIntake,
    Preempt,
    Reject,
    ResumeIntake,
    Stopped,
    Woke,
)
from sidecar.core.request import EndReason, Lane
from sidecar.sim.faults import DispatchFault, SimulatedFaults
from sidecar.sim.machine import CallEnded, FirstToken, Machine, SimulatedDispatch
from sidecar.sim.progress import BrokenPromiseError, RequestProgress, RunningDispatch, outcome_word
from sidecar.sim.ticks import MachineTicks
from sidecar.sim.workloads import SimulatedRequest

WAKES_MAX = 1000  # at one moment: beyond it next_deadline_s() does not move on


class Decides(Protocol):
    """What both drivers obey: the scheduler, or a baseline of the lab in its place."""

    def handle(self, event: Event, now_s: float) -> list[Action]: ...
    def next_deadline_s(self) -> float | None: ...


class Observer:
    """Is told what happened, in order, and decides nothing. This one forgets it all."""

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        """The scheduler answered `event` with `actions`; they are about to be done."""

    def finished(self, progress: RequestProgress) -> None:
        """This request is over, for the reason in `progress.outcome`."""


@dataclass(slots=True, kw_only=True, eq=False)
class SimulatedDriver:
    """Runs one scheduler over simulated engines. One driver, one run."""

    scheduler: Decides
    machines: Mapping[str, Machine]
    observer: Observer = field(default_factory=Observer)
    faults: SimulatedFaults = field(default_factory=SimulatedFaults)
    tick_s: float = 0.010  # first tokens wait at most this long to be told, as in the real driver
    progress_s: float = 0.0  # token counts are told at most this often; 0 = at each tick, as in the real driver

    now_s: float = 0.0
    alive: dict[str, RequestProgress] = field(default_factory=dict)
    waiting: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))  # alive and not dispatched
    events: int = 0
    closed: bool = False
    _paused: set[str] = field(default_factory=set)  # models that take no more items for now
    _feeding: bool = False
    _fed_full: bool = False  # the last item was refused for want of room: try again later
    _arrivals: Iterator[SimulatedRequest] = field(default_factory=lambda: iter(()))
    _backlog: Callable[[float], SimulatedRequest] | None = None
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=count)
    _ticks: MachineTicks = field(init=False)
    _wakes: tuple[float, int] = (-inf, 0)

    def __post_init__(self) -> None:
        self._ticks = MachineTicks(self.machines, self.alive, self.tell, tick_s=self.tick_s, progress_s=self.progress_s)

    # ---- a run -------------------------------------------------------------------------------------------------------

    def begin(
        self, arrivals: Iterator[SimulatedRequest], backlog: Callable[[float], SimulatedRequest] | None = None
    ) -> None:
        """Bring the engines up, schedule the arrivals (given by time) and fill the offline queue from the backlog."""
        self._arrivals, self._backlog = arrivals, backlog
        for name in self.machines:
            self.tell(EngineUp(engine=name))
            self._plan_down(name)
        self._schedule_arrival()
        self._feed()

    def run(self, until_s: float = inf) -> None:
        """All that happens up to `until_s` has happened. With inf, nothing is left to happen."""
        while True:
            machine_s = min(map(Machine.next_s, self.machines.values()))
            heap_s = self._heap[0][0] if self._heap else inf
            when_s = min(machine_s, heap_s, self._ticks.at_s, self._deadline_s())
            if when_s > until_s or when_s == inf:
                break
            self.now_s = when_s
            if machine_s == when_s:
                self._run_machines()
            elif heap_s == when_s:
                heappop(self._heap)[2]()
            elif self._ticks.at_s == when_s:
                self._ticks.tick(self.now_s)
            else:
                self._wake()
        if until_s < inf:
            self.now_s = until_s

    def answer_online(self, until_s: float) -> None:
        """Run until no online request is in flight, at most to `until_s`."""
        while self.now_s < until_s and any(each.request.lane is Lane.ONLINE for each in self.alive.values()):
            self.run(min(until_s, self.now_s + 1.0))

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Do `what` at `when_s`, after all that was planned for that moment before."""
        heappush(self._heap, (when_s, next(self._order), what))

    def calm(self) -> None:
        """Nothing new comes and nothing goes wrong from here on; engines that are down come back in their time."""
        self._arrivals, self._backlog = iter(()), None
        self.faults.stop()

    def close(self) -> None:
        """This sidecar shuts down."""
        self.closed = True
        self.tell(Closing())

    # ---- events in, actions out --------------------------------------------------------------------------------------

    def tell(self, event: Event, ran_on: str = "") -> None:
        """Give one event to the scheduler and do what it asks for. `ran_on` had the dispatch that the event ends."""
        self.events += 1
        actions = self.scheduler.handle(event, self.now_s)
        for action in actions:
            if isinstance(action, Finished):
                self._over(self._known(action.request_id), action.outcome)
        if isinstance(event, Ended | Stopped | Failed | Lost) and (progress := self.alive.get(event.request_id)):
            self._wait_anew(progress, ran_on)
        self.observer.decided(event, actions, self)
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Dispatch():
                self._dispatch(self._known(action.request_id), action)
            case Preempt(request_id=request_id):
                self._stop(self._known(request_id))
            case Abort(request_id=request_id):
                self._abort(self._known(request_id))
            case Finished() | Forecast():
                pass  # booked before; nobody to tell, an observer has seen it
            case PauseIntake(model=model):
                self._paused.add(model)
            case ResumeIntake(model=model):
                self._paused.discard(model)
                self.at(self.now_s, self._feed)
            case _:
                assert_never(action)

    def _known(self, request_id: str) -> RequestProgress:
        if request_id not in self.alive:
            raise BrokenPromiseError(f"{self.now_s}: the scheduler names {request_id}, which is not alive")
        return self.alive[request_id]

    def _dispatch(self, progress: RequestProgress, action: Dispatch) -> None:
        request, left = progress.request, progress.request.output_tokens_max - progress.kept_tokens
        machine = self.machines[action.engine]
        if progress.running is not None or not 0 < action.output_tokens <= left or action.slots != request.slots:
            raise BrokenPromiseError(f"{self.now_s}: {action} for {progress}")
        progress.running = RunningDispatch(action)
        progress.dispatches += 1
        self.waiting[request.lane] -= 1
        if not machine.up:
            raise BrokenPromiseError(f"{self.now_s}: {action}, and the engine is down")
        machine.submit(self._call(progress, action), self.now_s)
        if machine.occupied > machine.slots:
            raise BrokenPromiseError(f"{self.now_s}: {action} oversubscribes an engine of {machine.slots} slots")
        self._plan_fault(progress)
        self._ticks.arm(self.now_s)

    @staticmethod
    def _call(progress: RequestProgress, action: Dispatch) -> SimulatedDispatch:
        """Return what the engine is sent. With `prompt_tokens`, only the head of the prompt, for the sake of its KV."""
        request, fills_cache = progress.request, action.prompt_tokens is not None
        context_tokens = action.prompt_tokens or request.prompt_tokens + progress.kept_tokens
        return SimulatedDispatch(
            request_id=request.id,
            lane=request.lane,
            context_tokens=context_tokens,
            prefix_key=request.prefix_key,
            prefix_tokens=min(progress.job.prefix_tokens, context_tokens),
            prompt_blocks=progress.job.prompt_blocks,
            output_tokens=1 if fills_cache else min(action.output_tokens, progress.tokens_left),
            output_tokens_max=1 if fills_cache else action.output_tokens,
            slots=request.slots,
            fills_cache=fills_cache,
        )

    def _stop(self, progress: RequestProgress) -> None:
        running = progress.running
        if running is None or running.stopping:
            raise BrokenPromiseError(f"{self.now_s}: {progress.request.id} is told to stop and does not run, or stops")
        running.stopping = True
        self.machines[running.action.engine].stop(progress.request.id, self.now_s)

    def _abort(self, progress: RequestProgress) -> None:
        """Stop it for good; it may be stopping already, to be resumed."""
        running = progress.running
        if running is None or running.aborting:
            raise BrokenPromiseError(f"{self.now_s}: {progress.request.id} is aborted and does not run, or is twice")
        running.aborting = True
        if not running.stopping:
            self._stop(progress)

    # ---- arrivals and departures -------------------------------------------------------------------------------------

    def arrive(self, job: SimulatedRequest) -> None:
        """One request enters the scheduler now."""
        request = job.request
        self.alive[request.id] = RequestProgress(job)
        self.waiting[request.lane] += 1
        after_s = self.faults.cancel_after_s()
        if after_s < inf:
            self.at(self.now_s + after_s, lambda: self.cancel(request.id))
        self.tell(Arrived(request=request))

    def cancel(self, request_id: str) -> None:
        """The caller of this request is gone. Nothing happens if the request is over already."""
        progress = self.alive.get(request_id)
        if progress is not None and not (progress.running and progress.running.aborting):
            self.tell(Cancelled(request_id=request_id))

    def _schedule_arrival(self) -> None:
        if job := next(self._arrivals, None):
            self.at(job.request.arrived_s, lambda: self._arrive_next(job))

    def _arrive_next(self, job: SimulatedRequest) -> None:
        self._schedule_arrival()
        self.arrive(job)

    def _feed(self) -> None:
        """Items of the backlog enter until the scheduler has enough of them."""
        if self._feeding:
            return
        self._feeding, self._fed_full = True, False
        while self._backlog is not None and not (self._paused or self.closed or self._fed_full):
            self.arrive(self._backlog(self.now_s))
        self._feeding = False

    def _over(self, progress: RequestProgress, outcome: Ending | Reject | DeadLetter) -> None:
        """The scheduler says that a request is over, and how."""
        if progress.running is not None:
            raise BrokenPromiseError(f"{self.now_s}: {progress.request.id} is {outcome} while the engine runs it")
        progress.outcome, progress.finished_s = outcome_word(outcome), self.now_s
        self.waiting[progress.request.lane] -= 1
        del self.alive[progress.request.id]
        for machine in self.machines.values():
            machine.forget(progress.request.id)
        self.observer.finished(progress)
        if isinstance(outcome, Reject) and outcome.retry_after_s is not None and progress.request.lane is Lane.OFFLINE:
            self._fed_full = True
            self.at(self.now_s + outcome.retry_after_s, self._feed)

    def _wait_anew(self, progress: RequestProgress, ran_on: str) -> None:
        """The dispatch of an item is over, and the item is not: it goes on with its tokens, or starts again."""
        if not progress.request.resumable:
            self.machines[ran_on].usage.discarded_tokens += progress.kept_tokens
            progress.kept_tokens = 0

    # ---- what the engines did ----------------------------------------------------------------------------------------

    def _run_machines(self) -> None:
        for name, machine in self.machines.items():
            outcomes = machine.advance(self.now_s)
            self._ticks.before_ends(name, self.now_s)
            for outcome in outcomes:
                progress = self._known(outcome.request_id)
                match outcome:
                    case FirstToken():
                        progress.first_token_s = min(progress.first_token_s, self.now_s)
                        self._ticks.first_token(name, outcome.request_id)
                    case CallEnded():
                        self._finish(name, progress, outcome)
                    case _:
                        assert_never(outcome)
        self._ticks.arm(self.now_s)

    def _finish(self, engine: str, progress: RequestProgress, outcome: CallEnded) -> None:
        """The last response of a dispatch, with its final flag. Its first token is told before it."""
        request_id = progress.request.id
        self._ticks.before_end(engine, request_id, self.now_s)
        running, reason = self._release(progress), EndReason.LENGTH
        tokens, reused = outcome.output_tokens, outcome.reused_tokens
        if progress.tokens_left <= tokens and progress.job.output_tokens < progress.request.output_tokens_max:
            reason = EndReason.END_ID
        progress.kept_tokens += tokens
        if running.stopping and outcome.stopped:
            self.tell(Stopped(request_id=request_id, output_tokens=tokens, reused_tokens=reused), engine)
        else:
            self.tell(Ended(request_id=request_id, output_tokens=tokens, reason=reason, reused_tokens=reused), engine)

    def _release(self, progress: RequestProgress) -> RunningDispatch:
        running, progress.running = progress.running, None
        if running is None:
            raise BrokenPromiseError(f"{self.now_s}: a second terminal event for {progress.request.id}")
        self.waiting[progress.request.lane] += 1
        return running

    # ---- the scheduler's timers --------------------------------------------------------------------------------------

    def _deadline_s(self) -> float:
        deadline_s = self.scheduler.next_deadline_s()
        return inf if deadline_s is None else max(deadline_s, self.now_s)

    def _wake(self) -> None:
        when_s, times = self._wakes
        self._wakes = (self.now_s, times + 1 if when_s == self.now_s else 0)
        if times > WAKES_MAX:
            raise BrokenPromiseError(f"{self.now_s}: next_deadline_s() does not move on")
        self.tell(Woke())

    # ---- faults ------------------------------------------------------------------------------------------------------

    def _plan_fault(self, progress: RequestProgress) -> None:
        if fault := self.faults.of_dispatch():
            dispatch = progress.dispatches
            self.at(self.now_s + fault.after_s, lambda: self._strike(progress, dispatch, fault))

    def _strike(self, progress: RequestProgress, dispatch: int, fault: DispatchFault) -> None:
        """The fault happens, unless the dispatch it was meant for is over."""
        if progress.running is None or progress.dispatches != dispatch:
            return
        machine = self.machines[progress.running.action.engine]
        if fault.lost:
            tokens = machine.output_tokens(progress.request.id, self.now_s)
            machine.abandon(progress.request.id, self.now_s)
            self._lose(progress, tokens)
        else:
            machine.drop(progress.request.id, self.now_s)
            self._fail(progress, "injected", retryable=fault.retryable)

    def _fail(self, progress: RequestProgress, reason: str, *, retryable: bool) -> None:
        """The engine answers with an error: the tokens of this dispatch are gone."""
        running = self._release(progress)
        self._ticks.forget(running.action.engine, progress.request.id)
        self.tell(Failed(request_id=progress.request.id, reason=reason, retryable=retryable), running.action.engine)

    def _lose(self, progress: RequestProgress, tokens: int) -> None:
        """The stream breaks: the tokens that did arrive are kept."""
        running = self._release(progress)
        engine = running.action.engine
        self._ticks.forget(engine, progress.request.id)
        progress.kept_tokens += tokens
        self.tell(Lost(request_id=progress.request.id, output_tokens=tokens), engine)

    def _plan_down(self, name: str) -> None:
        after_s = self.faults.down_after_s()
        if after_s < inf:
            self.at(self.now_s + after_s, lambda: self._down(name))

    def _down(self, name: str) -> None:
        """The engine dies under its dispatches: each fails by itself, and it comes back empty after a while."""
        if self.faults.down_after_s() == inf:
            return  # the faults have ended meanwhile
        self.tell(EngineDown(engine=name, reason="killed"))
        for request_id in self.machines[name].kill():
            if progress := self.alive.get(request_id):
                self._fail(progress, "engine down", retryable=True)
        self.at(self.now_s + self.faults.up_after_s(), lambda: self._up(name))

    def _up(self, name: str) -> None:
        self.machines[name].revive()
        self.tell(EngineUp(engine=name))
        self._plan_down(name)
