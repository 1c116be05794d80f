"""What a final response means: an answer, the end of the engine's length, or no answer at all."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.call import Timeline
from sidecar.core.events import Dispatch, Ended
from sidecar.core.request import DispatchKind, EndReason
from sidecar.core.settings import SchedulerSettings
from sidecar.driver.dispatches import Alive, Dispatched
from sidecar.driver.generation import Generation
from sidecar.driver.verdicts import of_final
from sidecar.token_call import RequestDeadError
from tests.driver.test_generation import END, call, offline
from tests.fakes.engine import FakeEngine, answer_of, running_driver


async def test_an_engine_that_ends_without_a_token_has_given_no_answer() -> None:
    engine = FakeEngine()
    scheduler = SchedulerSettings(window_ms=0, retry_backoff_s=0.0, attempts_max=2)
    async with running_driver(engine, scheduler=scheduler) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        for _ in range(2):
            (await engine.next()).end()
        with pytest.raises(RequestDeadError, match=r"^INTERNAL: empty_output"):
            await task


async def test_after_a_retry_the_answer_is_whole() -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        (await engine.next()).end()
        (await engine.next()).tokens(4, END, final=True)
        done = await task
        assert (done.output_ids, done.attempts) == ((4, END), 2)


async def test_a_resume_that_ends_without_a_token_found_the_end_at_once() -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        first = await engine.next()
        first.tokens(4, 5)
        first.close()  # without a final response
        (await engine.next()).end()
        done = await task
        assert (done.output_ids, done.reason) == ((4, 5), EndReason.END_ID)


@pytest.mark.parametrize(("tokens_max", "reason"), [(12, EndReason.LENGTH), (13, EndReason.END_ID)])
async def test_an_answer_that_the_engines_length_cut_ended_by_length(tokens_max: int, reason: EndReason) -> None:
    """TensorRT-LLM lowers the output of a request that does not fit without a word."""
    request = offline(prompt=8, output=8)
    alive = Alive(request, Generation(request, call(prompt_ids=tuple(range(8)))), Timeline(0.0))
    asked = Dispatch(
        request_id="k1", engine="e0", kind=DispatchKind.BACKFILL, slots=1, output_tokens=8, queue_wait_s=0.0
    )
    alive.call.request(asked, "r")
    alive.call.receive(answer_of((20, 21, 22, 23)))
    running = Dispatched(asked, "r", begun_s=0.0, tokens=4)
    found = of_final(alive, running, tokens_max=tokens_max, block_tokens=32)
    assert found.heard == Ended(request_id="k1", reason=reason, output_tokens=4)
