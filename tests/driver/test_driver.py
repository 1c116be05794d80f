"""The driver's duties: one terminal event per dispatch, one Progressed per tick, several engines, a clean end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sidecar.call import Outcome, Timeline
from sidecar.core.events import Action, Ended, EngineDown, EngineUp, Event, Failed, Lost, Progressed, Stopped
from sidecar.core.request import EndReason, Request
from sidecar.core.settings import SchedulerSettings
from sidecar.triton import wire
from tests.driver.test_generation import begin, call, offline
from tests.fakes.sidecar import running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request, status_of


class Watcher:
    """A Listener that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.outcomes: dict[str, Outcome] = {}

    def handled(self, now_s: float, event: Event, actions: Sequence[Action]) -> None:
        del now_s, actions
        self.events.append(event)

    def finished(self, request: Request, timeline: Timeline, outcome: Outcome) -> None:
        del timeline
        self.outcomes[request.id] = outcome

    def terminal(self) -> list[Any]:
        return [each for each in self.events if isinstance(each, Ended | Stopped | Failed | Lost)]

    def progressed(self) -> list[Progressed]:
        return [each for each in self.events if isinstance(each, Progressed)]


async def test_all_tokens_of_a_dispatch_enter_before_its_end_and_add_up(triton: FakeTriton) -> None:
    watcher = Watcher()
    async with running_sidecar({"e0": triton}, watcher=watcher) as sidecar:
        task = begin(sidecar, call())
        request = await triton.next()
        request.tokens(4)
        request.tokens(5, 6)
        request.tokens(2, final=True)
        await task
    assert watcher.terminal() == [Ended(request_id="k1", reason=EndReason.END_ID, output_tokens=4)]
    before_end = watcher.events[: watcher.events.index(watcher.terminal()[0])]
    reported = [each for each in before_end if isinstance(each, Progressed)]
    assert reported == watcher.progressed()
    assert sum(tokens for each in reported for _, tokens in each.tokens) == 4
    assert [request_id for each in reported for request_id in each.first_tokens] == ["k1"]
    assert sum(len(each.gaps_s) for each in reported) == 2


async def test_tokens_of_one_tick_are_one_event(triton: FakeTriton) -> None:
    watcher = Watcher()
    async with running_sidecar({"e0": triton}, watcher=watcher) as sidecar:
        tasks = [begin(sidecar, call(), offline(f"k{number}")) for number in range(2)]
        requests = [await triton.next() for _ in tasks]
        for request in requests:
            request.tokens(4)
        await sidecar.until(lambda: sum(len(each.tokens) for each in watcher.progressed()) == 2)
        assert len(watcher.progressed()) == 1
        for request in requests:
            request.tokens(2, final=True)
        await asyncio.gather(*tasks)


async def test_a_dispatch_that_reached_its_length_ended_although_it_was_told_to_stop(triton: FakeTriton) -> None:
    watcher = Watcher()
    async with running_sidecar({"e0": triton}, watcher=watcher) as sidecar:
        triton.confirms_stops = False
        task = begin(sidecar, call(output_tokens_max=2))
        request = await triton.next()
        task.cancel()
        await sidecar.until(lambda: request.id in triton.stopped)
        request.tokens(4, 5, final=True)
        await sidecar.until(lambda: sidecar.driver.in_flight == 0)
    assert watcher.terminal() == [Ended(request_id="k1", reason=EndReason.LENGTH, output_tokens=2)]
    assert watcher.outcomes["k1"].outcome == "cancelled"


async def test_a_stop_is_said_again_until_the_engine_heard_it(triton: FakeTriton) -> None:
    """It may overtake its request inside Triton, and then finds nobody."""
    async with running_sidecar({"e0": triton}) as sidecar:
        triton.confirms_stops = False
        task = begin(sidecar, call())
        request = await triton.next()
        task.cancel()
        await sidecar.until(lambda: triton.stopped.count(request.id) >= 2)
        request.end()
        await sidecar.until(lambda: sidecar.driver.in_flight == 0)


async def test_the_slots_of_two_engines_are_filled(triton: FakeTriton) -> None:
    async with FakeTriton() as other, running_sidecar({"a": triton, "b": other}, slots=1) as sidecar:
        answers = [sidecar.unary("ModelInfer", ids_request(name), wire.InferResponse) for name in ("x", "y")]
        for request in (await triton.next(), await other.next()):
            request.tokens(3, final=True)
        for answer in answers:
            await answer


async def test_when_one_engine_goes_down_its_waiting_callers_move_to_the_other(triton: FakeTriton) -> None:
    async with FakeTriton() as other, running_sidecar({"a": triton, "b": other}, slots=1) as sidecar:
        sidecar.driver.handle(EngineDown(engine="a", reason="test"))
        answers = [sidecar.unary("ModelInfer", ids_request(name), wire.InferResponse) for name in ("x", "y")]
        for _ in answers:
            (await other.next()).tokens(3, final=True)
        for answer in answers:
            await answer
        assert triton.idle


async def test_an_engine_that_hangs_loses_its_streams_when_it_is_found_down(triton: FakeTriton) -> None:
    watcher = Watcher()
    async with running_sidecar({"e0": triton}, watcher=watcher) as sidecar:
        answer = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
        await triton.next()
        item = begin(sidecar, call())
        (await triton.next()).tokens(4)
        await sidecar.until(lambda: bool(watcher.progressed()))
        sidecar.driver.engine_down("e0", "probes time out")
        code, _, _ = await status_of(answer)
        assert code.name == "UNAVAILABLE"
        sidecar.driver.handle(EngineUp(engine="e0"))
        resumed = await triton.next()
        assert resumed.input("input_ids") == (11, 12, 13, 4)
        resumed.tokens(2, final=True)
        assert (await item).output_ids == (4, 2)
    assert [type(each).__name__ for each in watcher.terminal()] == ["Lost", "Lost", "Ended"]


async def test_the_driver_knows_for_how_long_an_engine_gave_nobody_a_token(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, progress_timeout_s=7.0) as sidecar:
        driver = sidecar.driver
        assert driver.quiet("e0") is None

        def since_s() -> float:
            found = driver.quiet("e0")
            assert found is not None
            assert (found.requests, found.patience_s >= 7.0) == (1, True)
            return driver.now_s - found.seconds

        task = begin(sidecar, call())
        request = await triton.next()
        begun_s = since_s()
        assert since_s() == pytest.approx(begun_s)
        request.tokens(4)
        await sidecar.until(lambda: since_s() > begun_s)
        request.tokens(2, final=True)
        await task
        assert driver.quiet("e0") is None


async def test_with_no_engine_up_callers_are_told_at_once_and_items_wait(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}) as sidecar:
        sidecar.driver.handle(EngineDown(engine="e0", reason="test"))
        code, _, _ = await status_of(sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse))
        assert code.name == "UNAVAILABLE"
        item = begin(sidecar, call())
        sidecar.driver.handle(EngineUp(engine="e0"))
        (await triton.next()).tokens(2, final=True)
        await item


async def test_closing_lets_what_runs_end_and_refuses_what_comes(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}) as sidecar:
        running = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse)
        request = await triton.next()
        sidecar.driver.close()
        code, message, _ = await status_of(sidecar.unary("ModelInfer", ids_request("v"), wire.InferResponse))
        assert (code.name, message) == ("UNAVAILABLE", "[request id: v] this sidecar is shutting down")
        request.tokens(3, final=True)
        assert wire.output_values(await running, "output_ids") == (3,)


async def test_a_malformed_answer_fails_its_request_and_nothing_else(triton: FakeTriton) -> None:
    settings = SchedulerSettings(retry_backoff_s=0.001, attempts_max=1, window_ms=0)
    async with running_sidecar({"e0": triton}, scheduler=settings) as sidecar:
        task = begin(sidecar, call(prompt_ids=(1,)))
        neighbour = begin(sidecar, call(prompt_ids=(2,)), offline("k2"))
        requests = await triton.next_by_prompt(2)
        answer = wire.StreamResponse()
        answer.infer_response.outputs.add(name="output_ids", datatype="INT32", shape=(1, 1, 1))
        answer.infer_response.raw_output_contents.append(b"\1\2\3")
        requests[1,].answers.put_nowait(answer)
        await asyncio.wait((task,))
        assert "3 bytes are no INT32 tensor" in str(task.exception())
        requests[2,].tokens(2, final=True)
        assert (await neighbour).output_ids == (2,)
