"""The driver that obeys the scheduler in real time: asyncio, one loop, one task per dispatch.

It owns the duties that stand at the top of `sidecar/core/scheduler.py`, and nothing else: it knows neither gRPC
services nor Kafka. Whoever wants work done (an online request, an offline item) arrives here as a `Call`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, assert_never

import grpc

from sidecar.core.deadlines import Verdict
from sidecar.core.events import (
    Abort,
    Action,
    Arrived,
    Cancelled,
    Closing,
    DeadLetter,
    Dispatch,
    Ended,
    EngineDown,
    Event,
    Failed,
    Forecast,
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
from sidecar.core.scheduler import Scheduler
from sidecar.core.work import EndReason, Lane, Work
from sidecar.edge import wire
from sidecar.edge.calls import Generated, TokenCall
from sidecar.edge.engine_client import EngineClient, Metadata, send
from sidecar.edge.engine_errors import raise_if_error, translated_errors
from sidecar.edge.errors import EngineError, StreamBrokenError
from sidecar.edge.generation import Generation
from sidecar.edge.ports import TRACEPARENT, Call, Listener, Outcome, Terminal, Timeline, Tracer

logger = logging.getLogger(__name__)
BLOCK_TOKENS = 32  # tokens_per_block of TensorRT-LLM's KV cache, unless the engine was built with another
TICK_S = 0.01  # tokens enter the scheduler once per tick and engine, not one by one
STOP_RETRY_S = 0.1  # a stop may overtake its request inside Triton and find nobody: it is said again, ever more rarely


@dataclass(slots=True, eq=False)
class _Dispatched:
    """One stream to an engine."""

    dispatch: Dispatch
    request_id: str
    stream: Any
    tick: _Tick
    tokens: int = 0
    tokens_reported: int = 0
    last_token_s: float | None = None
    stopping: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class _Alive:
    """One work that is not over."""

    work: Work
    call: Call
    timeline: Timeline
    running: _Dispatched | None = None
    generated_tokens: int = 0
    cancelled: bool = False


@dataclass(slots=True)
class _Tick:
    """What one engine streamed since the last Progressed."""

    grown: list[_Dispatched] = field(default_factory=list)
    first_tokens: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)


class Driver:
    """Feeds events to a Scheduler and carries out its actions. `run()` must be running."""

    def __init__(
        self,
        scheduler: Scheduler,
        engines: Mapping[str, EngineClient],
        *,
        instance: str = "",
        stop_timeout_s: float = 2.0,
        block_tokens: Mapping[str, int] | None = None,
        listeners: Sequence[Listener] = (),
        tracer: Tracer | None = None,
    ) -> None:
        """`instance` sets the request ids of this process apart from those of others on the same engine.

        `block_tokens` is the size of each engine's KV blocks, in tokens (TensorRT-LLM's default where it is not said).
        """
        self.scheduler = scheduler
        self._engines = engines
        self._instance = instance
        self._stop_timeout_s = stop_timeout_s
        self._block_tokens = dict.fromkeys(engines, BLOCK_TOKENS) | dict(block_tokens or {})
        self._listeners = listeners
        self._tracer = tracer
        self._alive: dict[str, _Alive] = {}
        self._events: deque[Event] = deque()
        self._handling = False
        self._ticks = {name: _Tick() for name in engines}
        self._tick_timer: asyncio.TimerHandle | None = None
        self._wake_timer: asyncio.TimerHandle | None = None
        self._woken_at_s: float | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._time = asyncio.get_running_loop().time
        self._closing = asyncio.Event()
        self._drained = asyncio.Event()
        self._ids = count(1)
        self.intake_listeners: list[Callable[[str, bool], None]] = []  # (model, may take more), for the offline lane
        self.trouble: Callable[[str], None] = lambda _engine: None  # a stream to it broke

    # ---- for the upper edges -----------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """The clock of all times here: the loop's, monotonic."""
        return self._time()

    @property
    def in_flight(self) -> int:
        """Dispatches whose terminal event is owed."""
        return sum(alive.running is not None for alive in self._alive.values())

    def mint(self, prefix: str) -> str:
        """An id that no other work of this driver has."""
        return f"{prefix}{next(self._ids)}"

    def arrive(self, work: Work, call: Call) -> None:
        """`work` waits, runs, or has been refused by the time this returns. Its `call` hears what becomes of it."""
        self._alive[work.id] = _Alive(work, call, Timeline(work.arrived_s))
        self.handle(Arrived(work=work))

    def cancel(self, work_id: str) -> None:
        """Whoever wanted this work is gone. Its engine is told to stop; unknown ids are ignored."""
        alive = self._alive.get(work_id)
        if alive is None or alive.cancelled:
            return
        alive.cancelled = True
        self.handle(Cancelled(work_id=work_id))
        if alive.running is None:
            alive.call.settled(Stopped(work_id=work_id, output_tokens=0), alive.timeline, over=True)
            self._finish(alive, Outcome(outcome="cancelled"))

    def engine_down(self, engine: str, reason: str) -> None:
        """No more is granted on this engine, and its streams are broken off: one that hangs would never end them.

        Online callers hear it at once; items wait with the tokens they have.
        """
        self.handle(EngineDown(engine=engine, reason=reason))
        for alive in tuple(self._alive.values()):
            if alive.running is not None and alive.running.dispatch.engine == engine:
                alive.running.stream.cancel()  # the reading task reports Lost

    async def generate(self, work: Work, call: TokenCall) -> Generated:
        """The whole output of `call`, in as many dispatches as it took. Raises WorkRejectedError or WorkDeadError.

        Cancelled: the engine is told to stop, and nothing of the work is left.
        """
        if not call.resumable:
            work = replace(work, resumable=False)
        generation = Generation(work, call)
        self.arrive(work, generation)
        try:
            return await generation.result
        finally:
            self.cancel(work.id)  # ignored once it is over

    def close(self) -> None:
        """No new work is taken; `run()` returns when what runs has ended."""
        if not self._closing.is_set():
            self._closing.set()
            self.handle(Closing())
            self._note_drained()

    async def run(self) -> None:
        """Obey until closed and drained. Cancelled: streams break off, and each dispatch is reported Lost."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._closing.wait()
                await self._drained.wait()
            finally:
                for timer in (self._tick_timer, self._wake_timer):
                    if timer is not None:
                        timer.cancel()

    # ---- events in, actions out --------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """`event` has been handled and obeyed, after those that were already waiting (an action may cause events)."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                event = self._events.popleft()
                now_s = self.now_s
                actions = self.scheduler.handle(event, now_s)
                for listener in self._listeners:
                    listener.handled(now_s, event, actions)
                for action in actions:
                    self._obey(action)
        finally:
            self._handling = False
        self._arm()

    def _obey(self, action: Action) -> None:
        match action:
            case Dispatch():
                self._dispatch(action)
            case Preempt() | Abort():
                self._stop(self._alive[action.work_id])
            case Reject() | DeadLetter():
                self._refused(action)
            case Forecast():
                logger.log(
                    logging.INFO if action.verdict is Verdict.ON_TIME else logging.WARNING,
                    "job %s: %s",
                    action.job,
                    action,
                )
            case PauseIntake(model=model):
                self._tell_intake(model, False)
            case ResumeIntake(model=model):
                self._tell_intake(model, True)
            case _:
                assert_never(action)

    def _tell_intake(self, model: str, may_take_more: bool) -> None:
        for listener in self.intake_listeners:
            listener(model, may_take_more)

    def _arm(self) -> None:
        """The timer stands at the scheduler's next deadline."""
        deadline_s = self.scheduler.next_deadline_s()
        if deadline_s == self._woken_at_s:
            return
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        self._woken_at_s, self._wake_timer = deadline_s, None
        if deadline_s is not None:
            self._wake_timer = asyncio.get_running_loop().call_at(deadline_s, self._wake)

    def _wake(self) -> None:
        self._woken_at_s = None
        self.handle(Woke())

    # ---- one dispatch ------------------------------------------------------------------------------------------------

    def _dispatch(self, action: Dispatch) -> None:
        alive = self._alive[action.work_id]
        line = alive.timeline
        line.granted_s = self.now_s
        line.grants += 1
        line.resumed += alive.generated_tokens > 0
        line.queue_wait_s += action.queue_wait_s
        line.engine, line.kind = action.engine, action.kind
        request_id = f"{self._instance}{action.work_id}.{line.grants}"
        stream = self._engines[action.engine].open(self._metadata(alive), own=alive.call.own)
        alive.running = _Dispatched(action, request_id, stream, self._ticks[action.engine])
        self._spawn(self._relay(alive, alive.running), f"dispatch {request_id}")

    def _metadata(self, alive: _Alive) -> Metadata:
        """The caller's, except that the engine's spans hang from ours where we make some."""
        if self._tracer is None:
            return alive.call.metadata
        rest = tuple(each for each in alive.call.metadata if each[0] not in (TRACEPARENT, "tracestate"))
        return (*rest, *self._tracer.headers(alive.work.id))

    async def _relay(self, alive: _Alive, running: _Dispatched) -> None:
        """Everything that the engine answers reaches the call; then exactly one terminal event is handled."""
        work_id, call, read = alive.work.id, alive.call, running.stream.read
        outcome: Terminal | None = None
        try:
            with translated_errors(running.stream):
                await send(running.stream, call.request(running.dispatch, running.request_id))
                while (response := await read()) is not grpc.aio.EOF:  # the hot path: once per token
                    raise_if_error(response)
                    final = wire.is_final(response.infer_response)
                    if tokens := call.receive(response):
                        self._progress(alive, running, tokens)
                    if final:
                        outcome = self._final(alive, running)
                        self._settle(alive, running, outcome)
                    elif call.stop_wanted:
                        self._stop(alive)
        except EngineError as error:
            if call.own and error.code is grpc.StatusCode.UNAVAILABLE:  # e.g. our key opens the engine no longer
                self.trouble(running.dispatch.engine)
            outcome = outcome or Failed(work_id=work_id, reason=error.reason, retryable=error.retryable)
        except StreamBrokenError:
            if outcome is None and not running.stopping:  # not by us
                self.trouble(running.dispatch.engine)
        finally:  # also when cancelled: a broken stream is reported Lost
            if alive.running is running:
                self._settle(alive, running, outcome or Lost(work_id=work_id, output_tokens=running.tokens))

    def _progress(self, alive: _Alive, running: _Dispatched, tokens: int) -> None:
        now_s, tick = self._time(), running.tick
        if running.tokens == running.tokens_reported:
            tick.grown.append(running)
        running.tokens += tokens
        if running.last_token_s is not None:
            tick.gaps_s.append(now_s - running.last_token_s)
        else:
            tick.first_tokens.append(alive.work.id)
            if alive.timeline.first_token_s is None:
                alive.timeline.first_token_s = now_s
        running.last_token_s = now_s
        if self._tick_timer is None:
            self._tick_timer = asyncio.get_running_loop().call_later(TICK_S, self._end_of_tick)

    def _end_of_tick(self) -> None:
        self._tick_timer = None
        for engine in self._ticks:
            self._report(engine)

    def _report(self, engine: str) -> None:
        """What this engine streamed has entered the scheduler: at each tick, and before each terminal event."""
        tick = self._ticks[engine]
        if not tick.grown:
            return
        event = Progressed(
            engine=engine,
            tokens=tuple((each.dispatch.work_id, each.tokens - each.tokens_reported) for each in tick.grown),
            first_tokens=tuple(tick.first_tokens),
            gaps_s=tuple(tick.gaps_s),
        )
        for each in tick.grown:
            each.tokens_reported = each.tokens
        tick.grown.clear()
        tick.first_tokens.clear()
        tick.gaps_s.clear()
        self.handle(event)

    def _final(self, alive: _Alive, running: _Dispatched) -> Ended | Stopped:
        reason = alive.call.ended_by()
        if reason is None and running.tokens >= running.dispatch.output_tokens:
            reason = EndReason.LENGTH  # also when we had asked it to stop
        elif reason is None and not running.stopping:
            reason = EndReason.END_ID  # fewer than asked for, and nobody stopped it: it kept its end id to itself
        blocks = alive.call.reused_blocks
        reused = None if blocks is None else blocks * self._block_tokens[running.dispatch.engine]
        if reason is None:
            return Stopped(work_id=alive.work.id, output_tokens=running.tokens, reused_tokens=reused)
        return Ended(work_id=alive.work.id, reason=reason, output_tokens=running.tokens, reused_tokens=reused)

    def _settle(self, alive: _Alive, running: _Dispatched, event: Terminal) -> None:
        """The dispatch is over: the scheduler knows, and so does the call."""
        self._report(running.dispatch.engine)
        alive.running = None
        running.done.set()
        over = self._take_in(alive, event)
        alive.timeline.alone_s = self.scheduler.alone_s(alive.work.id)
        alive.call.settled(event, alive.timeline, over=over)
        self.handle(event)
        if over:
            self._finish(alive, _outcome(event, alive.cancelled))

    def _take_in(self, alive: _Alive, event: Terminal) -> bool:
        """Count the tokens that are kept; True if the work is over (duties 5 and 6 of the scheduler)."""
        online = alive.work.lane is Lane.ONLINE
        if isinstance(event, Failed):
            alive.timeline.attempts += 1
            return online or alive.cancelled
        alive.generated_tokens += event.output_tokens
        alive.timeline.output_tokens = alive.generated_tokens
        reason = event.reason if isinstance(event, Ended) else EndReason.LENGTH
        over = online or alive.cancelled or alive.work.is_complete(alive.generated_tokens, reason)
        if not over and not alive.work.resumable:
            alive.generated_tokens = 0
        return over

    def _refused(self, action: Reject | DeadLetter) -> None:
        alive = self._alive.get(action.work_id)
        if alive is None:  # its call is over already
            return
        alive.call.refused(action)
        if isinstance(action, DeadLetter):
            self._finish(alive, Outcome(outcome="error", error_type="dead_letter"))
        elif action.reason is RejectReason.EXPIRED:
            self._finish(alive, Outcome(outcome="expired", error_type=action.reason))
        else:
            self._finish(alive, Outcome(outcome="rejected", error_type=action.reason))

    def _finish(self, alive: _Alive, outcome: Outcome) -> None:
        if self._alive.pop(alive.work.id, None) is None:
            return
        alive.timeline.finished_s = self.now_s
        for listener in self._listeners:
            listener.finished(alive.work, alive.timeline, outcome)
        self._note_drained()

    def _note_drained(self) -> None:
        if self._closing.is_set() and not self._alive:
            self._drained.set()

    # ---- stopping ----------------------------------------------------------------------------------------------------

    def _stop(self, alive: _Alive) -> None:
        """The engine is being told to stop this dispatch; its terminal event follows."""
        running = alive.running
        if running is None or running.stopping:
            return
        running.stopping = True
        self._spawn(self._tell_engine(alive.work.model, running), f"stop {running.request_id}")

    async def _tell_engine(self, model: str, running: _Dispatched) -> None:
        """The dispatch is over: by the engine's final response, or by cancelling the stream when none comes."""
        engine = self._engines[running.dispatch.engine]
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                patience_s = STOP_RETRY_S
                while not running.done.is_set():
                    await engine.stop(model, running.request_id, self._stop_timeout_s)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(patience_s):
                            await running.done.wait()
                    patience_s *= 2
        except (TimeoutError, EngineError, StreamBrokenError):
            running.stream.cancel()  # the reading task reports Lost

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._tasks is None:
            raise RuntimeError("the driver is not running")
        self._tasks.create_task(work, name=name)


def _outcome(event: Terminal, cancelled: bool) -> Outcome:
    match event:
        case _ if cancelled:
            return Outcome(outcome="cancelled")
        case Ended() | Stopped():
            return Outcome(outcome="ok")
        case Failed(reason=reason):
            return Outcome(outcome="error", error_type=reason.split(":", 1)[0])
        case Lost():
            return Outcome(outcome="error", error_type=grpc.StatusCode.UNAVAILABLE.name)
        case _:
            assert_never(event)
