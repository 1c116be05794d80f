"""The driver that obeys the scheduler in real time: asyncio, one loop, one task per dispatch.

It owns the duties that stand at the top of `sidecar/core/scheduler.py`, and nothing else: it knows neither gRPC
services nor Kafka. Whoever wants work done (an online request, an offline item) arrives here as a `Call`.

Whose fault is whose: what an engine answers, a call raises or a listener raises stays with that dispatch, call or
listener. What the scheduler raises, or an action that cannot be carried out, is a fault of the core, wherever it was
asked from: nothing after it can be trusted, so `run()` ends with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, assert_never

from sidecar.call import Call, Listener, Outcome, Terminal, Timeline, Tracer
from sidecar.core.events import (
    Abort,
    Action,
    Arrived,
    Cancelled,
    Closing,
    DeadLetter,
    Dispatch,
    Ending,
    EngineDown,
    Event,
    Failed,
    Finished,
    Forecast,
    PauseIntake,
    Preempt,
    Reject,
    RejectReason,
    ResumeIntake,
    Stopped,
)
from sidecar.core.request import Request
from sidecar.core.scheduler import Scheduler
from sidecar.driver import forecasts, verdicts
from sidecar.driver.containment import Containment, EventQueue
from sidecar.driver.dispatches import Alive, Dispatched, ProgressTicks
from sidecar.driver.generation import Generation
from sidecar.driver.hang_watch import Quiet
from sidecar.driver.streams import Streams
from sidecar.driver.verdicts import DispatchVerdict, fault_of
from sidecar.driver.watchdog import Watchdog
from sidecar.settings.file import PROGRESS_TIMEOUT_S
from sidecar.token_call import Generated, TokenCall
from sidecar.triton.client import EngineClient

logger = logging.getLogger(__name__)


class Driver:
    """Feeds events to a Scheduler and carries out its actions. `run()` must be running."""

    def __init__(
        self,
        scheduler: Scheduler,
        engines: Mapping[str, EngineClient],
        *,
        instance: str = "",
        stop_timeout_s: float = 2.0,
        progress_timeout_s: float = PROGRESS_TIMEOUT_S,
        listeners: Sequence[Listener] = (),
        tracer: Tracer | None = None,
        intake: Callable[[str, bool], None] = lambda _model, _may_take_more: None,
        trouble: Callable[[str], None] = lambda _engine: None,
    ) -> None:
        """`instance` sets the request ids of this process apart from those of others on the same engine.

        `progress_timeout_s`: a dispatch that gives no token for so long is given up; 0 = none is.
        `listeners` hear everything; their order does not matter. `intake` hears whether the scheduler may take more
        items of a model, and `trouble` the name of an engine to which a stream broke.
        """
        self.scheduler = scheduler
        self.contained = Containment()
        self.progress_timeout_s = progress_timeout_s
        self._intake = intake
        self._trouble = trouble
        self._tokens_max = {each.name: each.tokens_max for each in scheduler.settings[1]}
        self._instance = instance
        self._listeners = listeners
        self._alive: dict[str, Alive] = {}
        self._over = asyncio.Event()  # closed and drained, or broken
        self._queue = EventQueue(scheduler, self._step, broke=self._over.set)
        self._ticks = ProgressTicks(self.handle)
        self._watchdog = Watchdog(progress_timeout_s, self._in_flight, self._stalled)
        self._streams = Streams(self, engines, self.contained, self._watchdog, tracer, stop_timeout_s)
        self._tasks: asyncio.TaskGroup | None = None
        self._time = asyncio.get_running_loop().time
        self._closing = False
        self._breaking_off = False  # no dispatch begins any more
        self._ids = count(1)

    # ---- for the upper edges -----------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """The clock of all times here: the loop's, monotonic."""
        return self._time()

    @property
    def in_flight(self) -> int:
        """Dispatches whose terminal event is owed."""
        return len(self._in_flight())

    @property
    def _broken(self) -> Exception | None:
        """The fault of the core that ends this driver, if there is one."""
        return self._queue.broken

    def silences_s(self) -> dict[str, float]:
        """By engine: for how long the dispatch that waits longest has given no token. Absent if none is in flight."""
        return self._watchdog.silences_s()

    def quiet(self, engine: str) -> Quiet | None:
        """Return for how long nothing in flight on the engine has given a token. None if nothing is in flight."""
        running = [each for each in self._in_flight() if each.dispatch.engine == engine]
        if not running:
            return None
        since_s = max(min(each.begun_s for each in running), self._ticks.heard_s.get(engine, 0.0))
        patience_s = max(self.progress_timeout_s, *(each.patience_s for each in running))
        return Quiet(requests=len(running), seconds=self.now_s - since_s, patience_s=patience_s)

    def mint(self, prefix: str) -> str:
        """An id that no other request of this driver has."""
        return f"{prefix}{next(self._ids)}"

    def arrive(self, request: Request, call: Call) -> None:
        """`request` waits, runs, or has been refused by the time this returns. Its `call` hears what becomes of it.

        Raises ValueError if a request of this id is alive; nothing has changed then.
        """
        if request.id in self._alive:
            raise ValueError(f"request {request.id} has arrived already")
        alive = self._alive[request.id] = Alive(request, call, Timeline(request.arrived_s))
        self.handle(Arrived(request=request))
        if self._broken is not None:
            self._give_up(alive)

    def cancel(self, request_id: str) -> None:
        """Whoever wanted this request is gone. Its engine is told to stop; unknown ids are ignored."""
        alive = self._alive.get(request_id)
        if alive is None or alive.cancelled:
            return
        alive.cancelled = True
        self.handle(Cancelled(request_id=request_id))

    def engine_down(self, engine: str, reason: str) -> None:
        """No more is dispatched on this engine, and its streams are broken off: one that hangs would never end them.

        Online callers hear it at once; items wait with the tokens they have.
        """
        self.handle(EngineDown(engine=engine, reason=reason))
        for running in self._in_flight():
            if running.dispatch.engine == engine:
                self._streams.break_off(running)

    async def generate(self, request: Request, call: TokenCall) -> Generated:
        """Return the whole output of `call`, over all its dispatches. Raises RequestRejectedError or RequestDeadError.

        Cancelled: the engine is told to stop, and nothing of the request is left.
        """
        if not call.resumable:
            request = replace(request, resumable=False)
        generation = Generation(request, call)
        self.arrive(request, generation)
        try:
            return await generation.result
        finally:
            self.cancel(request.id)  # ignored once it is over

    def close(self) -> None:
        """No new request is taken; `run()` returns when what runs has ended."""
        if not self._closing:
            self._closing = True
            self.handle(Closing())
            self._note_drained()

    async def run(self) -> None:
        """Obey until closed and drained. Cancelled: streams break off, and each dispatch is reported Lost.

        Raises what a fault of the core raised; then too streams break off, and whoever waits is told.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    await self._over.wait()
                    if self._broken is not None:
                        raise self._broken
                finally:  # also when cancelled: what breaks off now must not be dispatched anew
                    self.close()
                    self._tasks, self._breaking_off = None, True
        except BaseExceptionGroup:
            if self._broken is None:
                raise
            raise self._broken from None
        finally:
            self._ticks.close()
            self._watchdog.close()
            self._queue.close()
            for alive in tuple(self._alive.values()):
                self._give_up(alive)

    # ---- events in, actions out --------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Handle `event` and obey, after those that were already waiting (an action may cause events).

        It never raises: whoever brought the event has no part in a fault of the core, which ends `run()`.
        """
        self._queue.put(event)

    def _step(self, event: Event) -> None:
        now_s = self.now_s
        actions = self.scheduler.handle(event, now_s)
        for listener in self._listeners:
            self.contained.run(type(listener).__name__, listener.handled, now_s, event, actions)
        if isinstance(event, Terminal):  # its call hears of it before it may be dispatched anew
            self._tell_end(event, actions)
        for action in actions:
            self._obey(action)

    def _obey(self, action: Action) -> None:
        match action:
            case Dispatch():
                self._dispatch(action)
            case Preempt() | Abort():
                self.stop(self._alive[action.request_id])
            case Finished():
                self._tell_finish(action)
            case Forecast():
                forecasts.tell(action, self.now_s)
            case PauseIntake(model=model):
                self._tell_intake(model, False)
            case ResumeIntake(model=model):
                self._tell_intake(model, True)
            case _:
                assert_never(action)

    def _tell_intake(self, model: str, may_take_more: bool) -> None:
        self.contained.run("the intake", self._intake, model, may_take_more)

    # ---- dispatches --------------------------------------------------------------------------------------------------

    def _in_flight(self) -> list[Dispatched]:
        return [alive.running for alive in self._alive.values() if alive.running is not None]

    def _dispatch(self, action: Dispatch) -> None:
        alive = self._alive[action.request_id]
        line = alive.timeline
        line.dispatched_s = self.now_s
        line.dispatches += 1
        line.resumed += alive.generated_tokens > 0
        line.queue_wait_s += action.queue_wait_s
        line.engine, line.kind = action.engine, action.kind
        request_id = f"{self._instance}{action.request_id}.{line.dispatches}"
        running = alive.running = Dispatched(action, request_id, self.now_s)
        task = self._spawn(self._streams.relay(alive, running), f"dispatch {request_id}")
        if task is None:
            asyncio.get_running_loop().call_soon(self._end, alive, running)
        else:  # a task that is cancelled before its first step runs no `finally` of its own
            task.add_done_callback(lambda _: self._end(alive, running))
            self._watchdog.watch()

    def _spawn(self, request: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """The task that does `request`; None, and it is not begun, if this driver is being broken off."""
        if self._tasks is not None:
            return self._tasks.create_task(request, name=name)
        request.close()
        if not self._breaking_off:
            raise RuntimeError("the driver is not running")
        return None

    def progress(self, alive: Alive, running: Dispatched, tokens: int) -> None:
        """A dispatch gave tokens."""
        now_s, dispatch = self._time(), running.dispatch
        if alive.timeline.first_token_s is None:
            alive.timeline.first_token_s = now_s
        # What an engine gives beyond what was asked for is the caller's to see, and no service of the scheduler's.
        if (counted := min(tokens, dispatch.output_tokens * dispatch.slots - running.tokens)) > 0:
            self._ticks.note(running, counted, now_s)

    def final(self, alive: Alive, running: Dispatched) -> None:
        """The engine gave the final response of a dispatch."""
        engine = running.dispatch.engine
        lengths = self._tokens_max[engine], self._queue.ask(self.scheduler.block_tokens, engine) or 0
        self._settle(alive, running, verdicts.after_final(alive, running, self.contained, *lengths))

    def stop(self, alive: Alive) -> None:
        """The engine is being told to stop this request's dispatch; its terminal event follows."""
        running = alive.running
        if running is None or running.stopping:
            return
        running.stopping = True
        if self._spawn(self._streams.tell_engine(alive.request.model, running), f"stop {running.request_id}") is None:
            self._streams.break_off(running)

    def broke(self, engine: str) -> None:
        """A stream to this engine broke."""
        self.contained.run("the listener for trouble", self._trouble, engine)

    def _stalled(self, running: Dispatched) -> None:
        """A dispatch has a fault, and is silent: it is stopped there, and tried again or given up."""
        alive = self._alive.get(running.dispatch.request_id)
        if alive is not None and alive.running is running:
            self.stop(alive)

    def _end(self, alive: Alive, running: Dispatched) -> None:
        """The stream of a dispatch is over. Report it, unless a final response did."""
        if running.stream is not None:
            running.stream.cancel()  # does nothing to one that has ended
        if running.linger is not None:
            running.linger.cancel()
        if alive.running is not running or running.done.is_set():
            return
        try:
            found = verdicts.of_broken(alive, running)
        except Exception as error:
            running.fault = fault_of(error, running, self.contained)
            found = verdicts.of_broken(alive, running)
        self._settle(alive, running, found)

    def _settle(self, alive: Alive, running: Dispatched, found: DispatchVerdict) -> None:
        """A dispatch is over: the scheduler hears of it, and then the call."""
        request_id = alive.request.id
        self._ticks.flush(running.dispatch.engine)
        running.done.set()
        if found.whole:  # whatever the scheduler makes of the event, nobody wants more of this request
            self.handle(Cancelled(request_id=request_id))
        alive.heard = found.heard
        self.handle(found.event)

    def _tell_end(self, event: Terminal, actions: Sequence[Action]) -> None:
        """The scheduler has handled the end of a dispatch: count what is kept, and tell the call."""
        alive = self._alive.get(event.request_id)
        if alive is None or alive.heard is None:
            return
        finish = next(
            (each for each in actions if isinstance(each, Finished) and each.request_id == event.request_id), None
        )
        over, line = finish is not None and isinstance(finish.outcome, Ending), alive.timeline
        line.alone_s = None if finish is None else finish.alone_s
        line.attempts += isinstance(alive.heard, Failed)
        if not isinstance(event, Failed):
            alive.generated_tokens += event.output_tokens
            line.output_tokens = alive.generated_tokens
            if not over and not alive.request.resumable:
                alive.generated_tokens = 0
        self._tell(alive, alive.heard, over=over)
        alive.running = None  # not before: who cancels it meanwhile finds it dispatched
        if not over:
            alive.heard = None

    # ---- requests that are over --------------------------------------------------------------------------------------

    def _tell(self, alive: Alive, event: Terminal, *, over: bool) -> None:
        self.contained.run(type(alive.call).__name__, alive.call.settled, event, alive.timeline, over=over)

    def _tell_finish(self, action: Finished) -> None:
        """A request is over: its call hears it, if the end of its dispatch did not say so, and so does who watches."""
        alive = self._alive.get(action.request_id)
        if alive is None:  # its call is over already
            return
        if isinstance(action.outcome, Reject | DeadLetter):
            self.contained.run(type(alive.call).__name__, alive.call.refused, action.outcome)
            self._finish(alive, verdicts.outcome_of_refusal(action.outcome))
            return
        if (heard := alive.heard) is None:  # cancelled while it waited
            heard = Stopped(request_id=action.request_id, output_tokens=0)
            self._tell(alive, heard, over=True)
        self._finish(alive, verdicts.outcome_of(heard, cancelled=alive.cancelled))

    def _give_up(self, alive: Alive) -> None:
        """This driver ends before the request could."""
        alive.running = None
        if self._alive.pop(alive.request.id, None) is not None:
            why = "is shutting down" if self._broken is None else "ends because of a fault of its own"
            refusal = Reject(reason=RejectReason.CLOSING, message=f"this sidecar {why}")
            self.contained.run(type(alive.call).__name__, alive.call.refused, refusal)

    def _finish(self, alive: Alive, outcome: Outcome) -> None:
        if self._alive.pop(alive.request.id, None) is None:
            return
        alive.timeline.finished_s = self.now_s
        for listener in self._listeners:
            self.contained.run(type(listener).__name__, listener.finished, alive.request, alive.timeline, outcome)
        self._note_drained()

    def _note_drained(self) -> None:
        if self._closing and not self._alive:
            self._over.set()
