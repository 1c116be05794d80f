"""What fuzz makes of what it sees: who is blamed, when a sidecar is idle, and what stays of it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from dev.fuzz import EXAMPLES, Report, footprint


class Server:
    """A sidecar in this very process that is idle at the third look."""

    def __init__(self, **engine: int) -> None:
        self.pid = os.getpid()
        self.looks = 0
        self.engine = {"slots_busy": 0, "slots_draining": 0, "kv_tokens": 0} | engine

    async def status(self) -> dict[str, Any]:
        await asyncio.sleep(0)  # as a real answer lets others run
        self.looks += 1
        busy = {"slots_busy": 1} if self.looks < 3 else {}
        engine: dict[str, Any] = {**self.engine, **busy, "prefill_tokens": {"online": 0, "offline": 0}}
        lanes = [{"waiting": 0}]
        return {"engines": {"e0": engine}, "in_flight": 0, "lanes": lanes, "tasks": 7}


def test_all_that_is_wrong_is_counted_and_the_first_of_it_is_kept() -> None:
    report = Report()
    for number in range(EXAMPLES + 5):
        report.blame(f"{number}: {'x' * 1000}")
    assert (report.wrong_count, len(report.wrong)) == (EXAMPLES + 5, EXAMPLES)
    assert report.figures()["wrong"] == EXAMPLES + 5
    assert max(map(len, report.wrong)) <= 500


async def test_a_footprint_is_taken_when_nothing_is_in_flight() -> None:
    server: Any = Server()
    found = await footprint(server)
    assert (server.looks, found.tasks) == (3, 7)
    assert found.files > 0
    assert found.rss_mib > 1


async def test_what_an_engine_still_holds_is_no_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dev.fuzz.SETTLE_S", 0.05)
    holds: Any = Server(kv_tokens=32)
    with pytest.raises(TimeoutError):
        await footprint(holds)


async def test_more_tasks_than_before_are_waited_for_and_then_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = Server()
    before = await footprint(server)
    monkeypatch.setattr("dev.fuzz.SETTLE_S", 0.05)
    grown: Any = Server()
    status = grown.status

    async def one_more() -> dict[str, Any]:
        return {**await status(), "tasks": 8}

    grown.status = one_more
    with pytest.raises(TimeoutError):
        await footprint(grown, before)
