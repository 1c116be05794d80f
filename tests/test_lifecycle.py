"""The process and its operating system."""

from __future__ import annotations

import asyncio
import os
import resource
import signal

import pytest

from sidecar.lifecycle import FILES_WANTED, on_signals, prepare_for_many_connections


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_closes_and_the_second_breaks_off(number: signal.Signals) -> None:
    heard: list[str] = []
    changed = asyncio.Event()

    def note(what: str) -> None:
        heard.append(what)
        changed.set()

    on_signals(lambda: note("close"), lambda: note("break off"))
    for expected in (["close"], ["close", "break off"]):
        changed.clear()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(changed.wait(), 5)
        assert heard == expected
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(each)


def test_as_many_files_may_be_open_as_the_process_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        prepare_for_many_connections()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == (FILES_WANTED if hard < 0 else min(hard, FILES_WANTED))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
