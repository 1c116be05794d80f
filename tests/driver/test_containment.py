"""Whose fault is whose: calls and listeners keep theirs to themselves, and a fault of the core ends the driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from sidecar.call import Outcome, Timeline
from sidecar.core.events import (
    Action,
    Arrived,
    Cancelled,
    Dispatch,
    Ended,
    EngineUp,
    Event,
    Finished,
    Measured,
    Preempt,
    Progressed,
    Reject,
    RejectReason,
    Woke,
)
from sidecar.core.request import DispatchKind, EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.driver.containment import Containment, place_of
from sidecar.driver.driver import Driver
from sidecar.token_call import RequestDeadError, RequestRejectedError, Sampling
from sidecar.triton.client import EngineClient, token_request
from tests.driver.test_generation import END, call, offline
from tests.fakes.engine import FakeEngine, running_driver, until


def test_what_is_raised_is_counted_and_the_first_of_its_kind_is_logged_without_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    contained = Containment()

    def fails(key: str) -> None:
        raise {"a": KeyError, "b": ValueError}[key]("a secret prompt")

    for key in "aabab":
        assert contained.run("the listener", fails, key) is None
    assert contained.run("the listener", len, "abc") == 3
    assert contained.faults == {("the listener", "KeyError"): 3, ("the listener", "ValueError"): 2}
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "KeyError at tests/driver/test_containment.py" in caplog.text
    assert "secret" not in caplog.text


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert place_of(ValueError("x")) == "ValueError"


class Raising:
    """A listener, or whatever else is told something, that always fails."""

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        raise RuntimeError(f"{now_s} {event} {actions}")

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        raise ValueError(f"{request} {timeline} {outcome}")

    def headers(self, request_id: str) -> Any:
        raise KeyError(request_id)


async def test_a_listener_that_always_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()

    def intake(model: str, may_take_more: bool) -> None:
        raise LookupError(f"{model} {may_take_more}")

    async with running_driver(engine, listeners=(Raising(),), tracer=Raising(), intake=intake) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        (await engine.next()).tokens(4, END, final=True)
        assert (await task).output_ids == (4, END)
        assert driver.contained.faults["Raising", "RuntimeError"] > 2
        assert driver.contained.faults["Raising", "ValueError"] == 1
        assert driver.contained.faults["the tracer", "KeyError"] == 1
    assert caplog.text.count("Raising failed: RuntimeError") == 1


class BadCall:
    """A Call one of whose methods raises."""

    def __init__(self, fails: str) -> None:
        self.fails = fails
        self.heard: list[str] = []
        self.judged = self.own = False
        self.reused_blocks = None

    def _say(self, name: str) -> None:
        self.heard.append(name)
        if self.fails == name:
            raise RuntimeError("a secret output")

    @property
    def metadata(self) -> Any:
        self._say("metadata")
        return ()

    @property
    def stop_wanted(self) -> bool:
        self._say("stop_wanted")
        return False

    def request(self, dispatch: Dispatch, request_id: str) -> Any:
        self._say("request")
        return token_request("tensorrt_llm", (1,), dispatch.output_tokens, request_id)

    def receive(self, response: Any) -> int:
        del response
        self._say("receive")
        return 1

    def ended_by(self) -> EndReason | None:
        self._say("ended_by")
        return EndReason.END_ID

    def settled(self, event: Any, timeline: Timeline, *, over: bool) -> None:
        del timeline
        self.heard.append(f"{type(event).__name__}, over: {over}")
        self._say("settled")

    def refused(self, action: Any) -> None:
        self.heard.append(type(action).__name__)
        self._say("refused")


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("fails", ["request", "metadata", "receive", "stop_wanted", "ended_by", "settled", "refused"])
async def test_a_call_that_raises_ends_alone_and_its_slot_comes_back(
    fails: str, lane: Lane, caplog: pytest.LogCaptureFixture
) -> None:
    engine, bad = FakeEngine(), BadCall(fails)
    settings = SchedulerSettings(window_ms=0, retry_backoff_s=0.0, attempts_max=2)
    async with running_driver(engine, scheduler=settings, slots=1) as driver:
        request = Request(id="bad", lane=lane, model="tensorrt_llm", arrived_s=0, prompt_tokens=1, output_tokens_max=4)
        driver.arrive(request, bad)
        good = asyncio.ensure_future(driver.generate(offline(), call()))

        async def serve() -> None:
            while True:
                stream = await engine.next()
                if stream.input("input_ids") == (1,):
                    stream.tokens(7)
                stream.tokens(END, final=True)

        serving = asyncio.ensure_future(serve())
        assert (await good).output_ids == (END,)
        await until(lambda: driver.in_flight == 0 and not driver.scheduler.alive())
        serving.cancel()
    assert "secret" not in caplog.text
    over = [each for each in bad.heard if each.endswith("over: True") or each in ("Reject", "DeadLetter")]
    assert len(over) == 1, bad.heard


async def test_a_stop_that_raises_breaks_its_stream_off_and_no_other() -> None:
    class Deaf(FakeEngine):
        async def stop(self, model: str, request_id: str, timeout_s: float) -> None:
            raise OSError(model, request_id, timeout_s)

    engine = Deaf()
    async with running_driver(engine) as driver:
        gone = asyncio.ensure_future(driver.generate(offline(), call()))
        await engine.next()
        stays = asyncio.ensure_future(driver.generate(offline("k2"), call()))
        other = await engine.next()
        gone.cancel()
        await until(lambda: driver.in_flight == 1)
        other.tokens(END, final=True)
        assert (await stays).output_ids == (END,)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=-1),
        Sampling(seed=2**64),
        Sampling(top_k=2**31),
        Sampling(min_tokens=2**40),
        Sampling(temperature=1e300),
        Sampling(seed=cast(Any, "abc")),
        Sampling(top_p=cast(Any, "x")),
    ],
    ids=str,
)
async def test_a_value_that_no_tensor_can_hold_ends_its_item_alone_at_the_first_try(sampling: Sampling) -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        with pytest.raises(RequestDeadError, match=r"^INVALID_ARGUMENT: input '") as raised:
            await driver.generate(offline(), call(sampling=sampling))
        assert raised.value.attempts == 1
        good = asyncio.ensure_future(driver.generate(offline("k2"), call()))
        (await engine.next()).tokens(END, final=True)
        await good
    assert len(engine.streams) == 1  # none for the bad one


@pytest.mark.parametrize("ids", [(2**31 + 7,), (-(2**31) - 7,), ("x",)], ids=str)
async def test_ids_that_are_none_end_their_item_alone_and_are_not_repeated(ids: tuple[Any, ...]) -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        with pytest.raises(RequestDeadError, match=r"^INVALID_ARGUMENT: input 'input_ids'") as raised:
            await driver.generate(offline(prompt=1), call(prompt_ids=ids))
        assert str(ids[0]) not in str(raised.value)


async def test_a_second_request_of_an_id_is_refused_and_the_first_goes_on() -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        first = asyncio.ensure_future(driver.generate(offline(), call()))
        stream = await engine.next()
        with pytest.raises(ValueError, match="k1 has arrived already"):
            await driver.generate(offline(), call())
        stream.tokens(END, final=True)
        assert (await first).output_ids == (END,)


class Doubling(Scheduler):
    """Refuses one request in the same breath in which it dispatches another."""

    def handle(self, event: Event, now_s: float) -> list[Action]:
        actions = super().handle(event, now_s)
        if isinstance(event, Arrived) and event.request.id == "k2":
            full = Reject(reason=RejectReason.QUEUE_FULL, message="full")
            return [Finished(request_id="k1", outcome=full), *actions]
        return actions


async def test_a_cancel_from_within_a_refusal_is_carried_out_after_the_actions_that_came_with_it() -> None:
    """The next of these actions may be the dispatch of the very work that is being cancelled."""

    class Cancels(BadCall):
        def refused(self, action: Any) -> None:
            super().refused(action)
            driver.cancel("k2")

    engine, first, second = FakeEngine(), Cancels(""), BadCall("")
    driver, running = made(engine, Doubling)
    await asyncio.sleep(0)
    driver.arrive(offline("k1"), first)  # waits: the engine is down
    driver.handle(EngineUp(engine="e0"))
    driver.arrive(offline("k2"), second)
    await until(lambda: len(engine.stopped) == 1)
    await until(lambda: second.heard[-2:] == ["Ended, over: True", "settled"])
    assert "Reject" in first.heard
    running.cancel()
    await asyncio.wait((running,))


# ---- faults of the core ----------------------------------------------------------------------------------------------


class FaultError(Exception):
    """What a core with a defect raises."""


def failing(when: Callable[[Event], bool], method: str = "handle") -> type[Scheduler]:
    """A core that raises at the first event for which `when`; or, later, when it is asked by `method`."""

    class Failing(Scheduler):
        armed = False

        def handle(self, event: Event, now_s: float) -> list[Action]:
            if when(event):
                if method == "handle":
                    raise FaultError(type(event).__name__)
                self.armed = True
            return super().handle(event, now_s)

        def next_deadline_s(self) -> float | None:
            if self.armed and method == "next_deadline_s":
                raise FaultError(method)
            return super().next_deadline_s()

        def block_tokens(self, engine: str) -> int:
            if self.armed and method == "block_tokens":
                raise FaultError(method)
            return super().block_tokens(engine)

    return Failing


def made(engine: FakeEngine, core: type[Scheduler], **more: Any) -> tuple[Driver, asyncio.Task[None]]:
    settings = EngineSettings(name="e0", slots=2, tokens_max=64, lost_hold_s=0.0, yield_rows="never")
    scheduler = SchedulerSettings(window_ms=0, retry_backoff_s=0.0)
    driver = Driver(core(scheduler, [settings]), {"e0": cast(EngineClient, engine)}, **more)
    return driver, asyncio.ensure_future(driver.run())


@pytest.mark.parametrize(
    ("event", "method"),
    [
        (Arrived, "handle"),
        (Arrived, "next_deadline_s"),
        (Progressed, "handle"),
        (Ended, "handle"),
        (Ended, "next_deadline_s"),
        (Arrived, "block_tokens"),
        (Cancelled, "handle"),
        (Measured, "handle"),
        (Woke, "handle"),
    ],
    ids=str,
)
async def test_a_fault_of_the_core_ends_the_driver_with_it_wherever_it_was_asked_from(
    event: type[Event], method: str
) -> None:
    """From a caller's handler, from the tick's timer, from a stream, from a prober, from the core's own timer."""
    engine = FakeEngine()
    driver, running = made(engine, failing(lambda each: isinstance(each, event), method))
    await asyncio.sleep(0)
    driver.handle(EngineUp(engine="e0"))
    item = asyncio.ensure_future(driver.generate(offline(), call()))
    waits = [asyncio.ensure_future(driver.generate(offline(f"w{number}"), call())) for number in range(3)]
    await asyncio.sleep(0)
    if event is Measured:
        driver.handle(Measured(engine="e0", ok=True))
    elif event is Cancelled:
        driver.cancel("k1")
    elif event is Woke:
        asyncio.get_running_loop().call_soon(driver._queue.wake)
    elif event is not Arrived or method == "block_tokens":
        stream = await engine.next()
        stream.tokens(4)
        if event is Progressed:
            await until(running.done)
        stream.tokens(END, final=True)
    with pytest.raises(FaultError, match=event.__name__ if method == "handle" else method):
        async with asyncio.timeout(5):
            await running
    done = await asyncio.gather(item, *waits, return_exceptions=True)  # nobody waits for ever
    assert all(isinstance(each, RequestRejectedError) for each in done[1:])
    with pytest.raises(RequestRejectedError, match="ends because of a fault of its own"):
        await driver.generate(offline("late"), call())


@pytest.mark.parametrize("action", [Dispatch, "Preempt"], ids=str)
async def test_an_action_for_a_request_that_nobody_knows_ends_the_driver(action: Any) -> None:
    class Confused(Scheduler):
        def handle(self, event: Event, now_s: float) -> list[Action]:
            actions = super().handle(event, now_s)
            if not isinstance(event, Arrived):
                return actions
            if action is Dispatch:
                return [
                    Dispatch(
                        request_id="ghost",
                        engine="e0",
                        kind=DispatchKind.BACKFILL,
                        slots=1,
                        output_tokens=1,
                        queue_wait_s=0.0,
                    )
                ]
            return [Preempt(request_id="ghost", engine="e0")]

    driver, running = made(FakeEngine(), Confused)
    await asyncio.sleep(0)
    driver.handle(EngineUp(engine="e0"))
    task = asyncio.ensure_future(driver.generate(offline(), call()))
    with pytest.raises(KeyError, match="ghost"):
        await running
    with pytest.raises(RequestRejectedError):
        await task


async def test_breaking_off_tells_everybody_and_dispatches_nobody_anew() -> None:
    engine = FakeEngine()
    driver, running = made(engine, Scheduler)
    await asyncio.sleep(0)
    driver.handle(EngineUp(engine="e0"))
    tasks = [asyncio.ensure_future(driver.generate(offline(f"k{number}"), call())) for number in range(4)]
    await engine.next()
    await engine.next()
    running.cancel()
    await asyncio.wait((running,))
    assert running.cancelled()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, RequestRejectedError) and each.reason == "closing" for each in found)
    assert len(engine.streams) == 2
    assert all(stream.cancelled.is_set() for stream in engine.streams)
    assert driver.scheduler.snapshot().engines["e0"].slots_busy == 0


async def test_a_caller_who_waited_hears_it_when_all_is_broken_off() -> None:
    """The slots of those that break off come free, and nothing may begin in them."""
    engine = FakeEngine()
    driver, running = made(engine, Scheduler)
    await asyncio.sleep(0)
    driver.handle(EngineUp(engine="e0"))
    calls = [BadCall("") for _ in range(4)]
    for number, each in enumerate(calls):
        request = offline(f"o{number}", prompt=1)
        driver.arrive(replace(request, lane=Lane.ONLINE), each)
    await engine.next()
    await engine.next()
    running.cancel()
    await asyncio.wait((running,))
    await asyncio.sleep(0)
    for each in calls:
        assert each.heard[-2:] in (["Lost, over: True", "settled"], ["Reject", "refused"])
        assert each.heard.count("settled") + each.heard.count("refused") == 1
    assert driver.in_flight == 0
    assert len(engine.streams) == 2
