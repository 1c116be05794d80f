"""The faults break one thing each and leave it mended, drawn from the seed."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from dev import chaos_faults
from dev.chaos_faults import SIGSTOP_S, ChaosFaults, until
from dev.endtxn_proxy import ProxyFaults

DOCUMENT = Path(__file__).parents[2] / "docs" / "chaos.md"


class Victim:
    """A sidecar that writes down what is done to it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log
        self.reasons: list[str] = []

    async def start(self) -> None:
        self.log.append(f"{self.name} starts")

    async def end(self, how: signal.Signals) -> None:
        self.log.append(f"{self.name} {how.name}")

    def signal(self, which: signal.Signals) -> None:
        self.log.append(f"{self.name} {which.name}")

    def count(self, _: str) -> int:
        return 1


class Broker:
    """A cluster that writes down what is done to it."""

    brokers = 1

    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def stop(self, index: int, how: signal.Signals) -> None:
        self.log.append(f"broker {index} {how.name}")

    async def start(self, index: int) -> None:
        self.log.append(f"broker {index} starts")

    async def wait_ready(self) -> None:
        self.log.append("broker ready")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def faults(log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChaosFaults:
    async def sleep(seconds: float) -> None:
        log.append(f"{seconds:g} s" if seconds in (SIGSTOP_S,) else "a while")

    monkeypatch.setattr("dev.chaos_faults.asyncio.sleep", sleep)
    kafka: Any = Broker(log)
    sidecars: list[Any] = [Victim("one", log)]
    return ChaosFaults(
        kafka,
        ProxyFaults(),
        sidecars,
        [],
        lambda _: Victim("guest", log),  # type: ignore[arg-type, return-value]
        partitions=4,
        directory=tmp_path,
        draw=random.Random(1),
    )


async def test_a_stopped_process_sleeps_longer_than_its_session_and_wakes(faults: ChaosFaults, log: list[str]) -> None:
    await faults.kinds["sigstop"]()
    assert log == ["one SIGSTOP", f"{SIGSTOP_S:g} s", "one SIGCONT"]
    assert SIGSTOP_S > chaos_faults.SESSION_TIMEOUT_S


async def test_a_killed_process_comes_back(faults: ChaosFaults, log: list[str]) -> None:
    await faults.kinds["kill9"]()
    assert log == ["one SIGKILL", "a while", "one starts"]


@pytest.mark.parametrize(("kind", "how"), [("broker_term", "SIGTERM"), ("broker_kill9", "SIGKILL")])
async def test_a_broker_ends_and_answers_again(faults: ChaosFaults, log: list[str], kind: str, how: str) -> None:
    await faults.kinds[kind]()
    assert log == [f"broker 0 {how}", "a while", "broker 0 starts", "broker ready"]


async def test_a_guest_comes_works_and_goes_for_good(faults: ChaosFaults, log: list[str]) -> None:
    await faults.kinds["rebalance"]()
    assert log[0] == "guest starts"
    assert log[-1] in ("guest SIGTERM", "guest SIGKILL")


async def test_an_engines_trouble_is_over_with_its_fault(faults: ChaosFaults, tmp_path: Path) -> None:
    await faults.kinds["engine_fails"]()
    assert os.listdir(tmp_path) == []


async def test_a_leader_is_back_after_its_fault(faults: ChaosFaults) -> None:
    await faults.kinds["leaderless"]()
    assert faults._proxy.leaderless == ""


def test_every_fault_is_told_in_the_document(faults: ChaosFaults) -> None:
    text = DOCUMENT.read_text()
    assert [kind for kind in faults.kinds if f"`{kind}`" not in text] == []


async def test_a_wait_ends_when_it_is_reached_or_its_time_is_over() -> None:
    looks = iter([False, False, True])
    await until(lambda: next(looks), 60.0)
    assert list(looks) == []
    await until(lambda: False, 0.0)
