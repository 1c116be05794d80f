"""Phases follow each other on one sidecar, and the report of each ends where the next begins."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from dev import phases
from dev.load import Arrival, LoadResult
from dev.phases import PhaseRunner
from dev.terminal_view import View


class Server:
    """A sidecar that has given ten online tokens more whenever it is asked."""

    listen = "127.0.0.1:1"

    def __init__(self) -> None:
        self.asked = 0
        self.drained = False

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        engine = {
            "slots": 8,
            "slots_free": max(0, 3 - self.asked),
            "slots_busy": 8,
            "slots_online": 4,
            "slots_offline": 4,
            "contended": self.asked,
            "offline_of_contended": 0,
            "window_violations": 0,
            "worst_window_share": None,
            "reserved_due": 0,
            "reserved_taken": 0,
            "reserved_lapsed": 0,
            "slot_seconds": {"online": 0.0, "offline": 0.0},
            "output_tokens": {"online": 10.0 * self.asked, "offline": 0.0},
        }
        lanes = [{"lane": "online", "waiting": 1}, {"lane": "offline", "waiting": 2}, {"lane": "offline", "waiting": 3}]
        items = [{"outcome": "done", "count": 5}, {"outcome": "dead", "count": 7}]
        offline = {"stats": {"items": items}}
        return {"now_s": float(self.asked), "engines": {"a": engine}, "lanes": lanes, "offline": offline}

    async def drain(self) -> None:
        self.drained = True


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> PhaseRunner:
    async def load(_: str, requests: list[Arrival], result: LoadResult) -> None:
        result.sent = len(requests)
        result.e2e_ms += [20.0] * len(requests)
        result.late_ms += [1.0] * len(requests)
        result.answers["why?"] = "so"

    monkeypatch.setattr(phases, "run_load", load)
    monkeypatch.setattr(phases, "REFRESH_S", 0.0)
    server: Any = Server()
    return PhaseRunner(server, "a", View(Console(file=io.StringIO())))


ASKED = [Arrival(due_s=0.0, prompt="why?", output_tokens_max=4)] * 3


async def test_each_phase_has_a_report_and_the_last_ends_with_the_drain(runner: PhaseRunner) -> None:
    await runner.run("online_only", ASKED, 1.0)
    await runner.run("mixed", ASKED[:1], 1.0)
    await runner.drain()
    found = runner.phases()
    assert list(found) == ["online_only", "mixed"]
    assert [each["online"]["n"] for each in found.values()] == [3, 1]
    assert all(each["grants"]["contended"] >= 1 for each in found.values())
    assert runner.answers() == {"why?": "so"}


async def test_the_time_for_a_token_is_that_of_the_first_phase(runner: PhaseRunner) -> None:
    await runner.run("online_only", ASKED, 1.0)
    assert runner.token_s() == pytest.approx(0.060 / 10)
    await runner.run("mixed", [], 1.0)
    assert runner.token_s() == pytest.approx(0.060 / 10)
    assert runner.late_sends_ms(["mixed"])["p50"] is None
    assert runner.late_sends_ms(["online_only"])["p50"] == 1.0


async def test_full_is_when_no_slot_is_free(runner: PhaseRunner) -> None:
    await runner.until_full()
    server: Any = runner.server
    assert server.asked == 3


async def test_one_that_never_fills_is_not_waited_for_for_ever(
    runner: PhaseRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "FULL_TIMEOUT_S", 0.0)
    server: Any = runner.server
    server.asked = -1_000_000
    await runner.until_full()
    assert server.asked < 0
