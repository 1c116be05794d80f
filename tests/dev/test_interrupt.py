"""Ctrl-C and SIGTERM end what was started: the clean-up runs, and the exit code says why it ended."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from dev.interrupt import INTERRUPTED, on_signals, run_until_told


def test_work_that_ends_by_itself_gives_its_result() -> None:
    async def work() -> int:
        return 7

    assert run_until_told(work()) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_work_after_its_clean_up(number: signal.Signals) -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            done.append("cleaned up")

    with pytest.raises(SystemExit) as ended:
        run_until_told(work())
    assert (ended.value.code, done) == (INTERRUPTED, ["cleaned up"])


def test_an_error_of_the_work_is_not_taken_for_a_signal() -> None:
    async def work() -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        run_until_told(work())


async def test_a_handler_that_comes_later_takes_the_place_of_the_earlier() -> None:
    told: list[str] = []
    heard = asyncio.Event()

    def second() -> None:
        told.append("second")
        heard.set()

    on_signals(lambda: told.append("first"))
    on_signals(second)
    os.kill(os.getpid(), signal.SIGTERM)
    await heard.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(number)
    assert told == ["second"]
