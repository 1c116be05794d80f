"""A dispatch that its engine has forgotten is stopped there, and tried again."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.core.settings import SchedulerSettings
from sidecar.driver.watchdog import Watchdog
from sidecar.token_call import RequestDeadError
from tests.driver.test_generation import call, offline
from tests.fakes.engine import FakeEngine, running_driver

ONCE = SchedulerSettings(window_ms=0, retry_backoff_s=0.0, attempts_max=1)


async def test_a_dispatch_without_a_token_is_given_up() -> None:
    engine = FakeEngine()
    async with running_driver(engine, scheduler=ONCE, progress_timeout_s=0.01) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        stream = await engine.next()
        with pytest.raises(RequestDeadError, match=r"^UNAVAILABLE: the engine gave no token for"):
            async with asyncio.timeout(10):
                await task
        assert engine.stopped == [stream.request.id]


async def test_a_dispatch_that_falls_silent_after_a_token_is_given_up() -> None:
    engine = FakeEngine()
    async with running_driver(engine, scheduler=ONCE, progress_timeout_s=0.01) as driver:
        task = asyncio.ensure_future(driver.generate(offline(), call()))
        stream = await engine.next()
        stream.tokens(4)
        with pytest.raises(RequestDeadError, match="the engine gave no token for"):
            async with asyncio.timeout(10):
                await task
        assert engine.stopped == [stream.request.id]


async def test_while_the_loop_itself_was_held_up_no_engine_is_blamed() -> None:
    loop = asyncio.get_running_loop()
    silent: Any = SimpleNamespace(
        heard_s=loop.time(),
        last_token_s=loop.time(),
        patience_s=0.0,
        stopping=False,
        request_id="r",
        dispatch=SimpleNamespace(engine="e"),
        fault=None,
    )
    looks: list[int] = []
    blamed = asyncio.Event()

    def in_flight() -> list[Any]:
        looks.append(1)
        return [silent]

    watchdog = Watchdog(0.1, in_flight, lambda _: blamed.set())
    watchdog.watch()
    time.sleep(0.5)  # noqa: ASYNC251 - this is the fault
    while not looks:  # noqa: ASYNC110 - a count, not an event
        await asyncio.sleep(0)
    assert not blamed.is_set()
    async with asyncio.timeout(10):
        await blamed.wait()  # the next look is in time
    watchdog.close()
