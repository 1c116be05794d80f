"""Every engine is watched: its changes are told, and what is wrong with it is said in words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from sidecar.driver.engine_watch import EngineWatch
from sidecar.settings.file import EngineEndpoint
from sidecar.triton.advice import with_advice
from sidecar.triton.client import EngineClient
from sidecar.triton.models import Unscheduled
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton


@dataclass(slots=True)
class Watched:
    sidecar: Sidecar
    watch: EngineWatch
    client: EngineClient
    suspected: asyncio.Event
    changes: list[tuple[str, bool]]


@pytest.fixture
async def watched(triton: FakeTriton) -> AsyncIterator[Watched]:
    """An engine that is believed down until the watch says otherwise."""
    async with running_sidecar({"e0": triton}, up=False) as sidecar, EngineClient(triton.target) as client:
        changes: list[tuple[str, bool]] = []
        engines, clients, suspected = [EngineEndpoint(name="e0", target=triton.target)], {"e0": client}, asyncio.Event()
        watch = EngineWatch(
            sidecar.driver,
            engines,
            clients,
            Unscheduled(engines, clients, ("tensorrt_llm", "ensemble")),
            suspected={"e0": suspected},
            changed=lambda name, up: changes.append((name, up)),
        )
        task = asyncio.create_task(watch.run())
        yield Watched(sidecar, watch, client, suspected, changes)
        task.cancel()
        await asyncio.wait((task,))


async def test_an_engine_that_comes_up_is_told_of_and_asked_for_its_version(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert watched.watch.health("e0") is None
    assert watched.watch.faults("e0") == ["down: not probed yet"]
    await watched.sidecar.until(lambda: watched.client.version == (2, 71))
    assert watched.changes == [("e0", True)]
    health = watched.watch.health("e0")
    assert health is not None
    assert (health.up, health.reason) == (True, "")
    assert watched.watch.faults("e0") == []
    assert "engine e0 is up: model tensorrt_llm" in caplog.text


async def test_whoever_suspects_an_engine_has_it_probed_at_once(
    watched: Watched, triton: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    await watched.sidecar.until(lambda: watched.changes == [("e0", True)])
    await triton.kill()
    watched.suspected.set()
    await watched.sidecar.until(lambda: watched.changes == [("e0", True), ("e0", False)])
    health = watched.watch.health("e0")
    assert health is not None
    assert not health.up
    assert watched.watch.faults("e0")[0] == f"down: {with_advice(health.reason)}"  # of whichever call failed first
    assert "engine e0 is down: model tensorrt_llm" in caplog.text
