"""A dispatch that its engine has forgotten is stopped there, and tried again."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.core.settings import SchedulerSettings
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
