"""Two sidecars are restarted one after the other, under load: callers who try again lose no call, and no item is lost
or done twice."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import aio as aio_client
from tritonclient.utils import InferenceServerException

from dev.broker import LocalKafka
from dev.checker import check, is_finished
from dev.server import SidecarProcess
from dev.triton import Triton
from sidecar.offline.submit import submit
from sidecar.settings.offline import OfflineSettings
from tests.integration.conftest import SLOTS, sidecar_settings
from tests.integration.test_tritonclient import text_inputs

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]
RESTARTS = 6
CALLERS = 3
TRIES_MAX = 50  # some seconds: the other sidecar answers at the next try, unless it has only just started
PARTITIONS = 4


class Callers:
    """Clients that know both addresses, and try the other one when one is unavailable."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self.answered = 0
        self.tried_again = 0
        self.failed: list[str] = []
        self.over = False

    async def run(self) -> None:
        """Call until told that it is over."""
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(aio_client.InferenceServerClient(each)) for each in self._addresses
            ]
            for at in itertools.cycle(range(len(clients))):
                if self.over:
                    return
                await self._call(clients[at], clients[1 - at])

    async def _call(self, *clients: Any) -> None:
        for client in itertools.islice(itertools.cycle(clients), TRIES_MAX):
            try:
                inputs = text_inputs("the train to the coast", 8, stream=False)
                result = await client.infer("ensemble", inputs, client_timeout=30)
                assert result.as_numpy("text_output")[0]
                self.answered += 1
                return
            except InferenceServerException as error:
                if error.status() != f"StatusCode.{grpc.StatusCode.UNAVAILABLE.name}":
                    self.failed.append(str(error))
                    return
                self.tried_again += 1
                await asyncio.sleep(0.1)  # as a client's back-off
        self.failed.append("unavailable, however often it was tried")


class Producer:
    """Sends items until told that it is over."""

    def __init__(self, offline: OfflineSettings) -> None:
        self._offline = offline
        self.sent = 0
        self.over = False

    async def run(self) -> None:
        while not self.over:
            ids = range(self.sent, self.sent + 5)
            items = [json.dumps({"id": str(each), "prompt": "a train", "max_tokens": 8}).encode() for each in ids]
            await submit(self._offline, items, {})
            self.sent += len(items)
            await asyncio.sleep(0.5)  # the rate of the load


async def test_restarts_one_after_the_other_cost_no_call_and_no_item(triton: Triton, tmp_path: Path) -> None:
    async with LocalKafka() as kafka:
        await kafka.create_topics(PARTITIONS)
        await restarted(triton, kafka, tmp_path)


async def restarted(triton: Triton, kafka: LocalKafka, tmp_path: Path) -> None:
    """Restart under load, and count."""
    settings = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        offline = {"bootstrap_servers": kafka.bootstrap_servers, "first_start": "earliest", "instance_id": name}
        made = sidecar_settings(triton, offline={**offline, "group": "rolling"})
        made["engines"][0]["slots"] = SLOTS // 2  # each owns a half of the engine's
        settings.append((tmp_path / name, made))
    running: list[SidecarProcess] = []
    try:
        running += [await SidecarProcess.start(*each) for each in settings]
        callers = Callers([each.listen for each in running])
        producer = Producer(OfflineSettings(bootstrap_servers=kafka.bootstrap_servers))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(callers.run())
            tasks.create_task(producer.run())
            for number in range(RESTARTS):
                before = callers.answered
                await running[number % 2].drain()  # also says that it ended with 0
                await running[number % 2].kill()
                running[number % 2] = await SidecarProcess.start(*settings[number % 2])
                async with asyncio.timeout(60):
                    while callers.answered <= before:  # noqa: ASYNC110 - a count, not an event
                        await asyncio.sleep(0.05)
            callers.over = producer.over = True
        async with asyncio.timeout(240):  # a lane waits for its instance id after each restart, so items pile up
            while not await asyncio.to_thread(is_finished, kafka.bootstrap_servers, "rolling"):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        for last in running:
            await last.drain()
    finally:
        for last in running:
            await last.kill()
    found = await asyncio.to_thread(check, kafka.bootstrap_servers, "rolling")
    print(f"{RESTARTS} restarts: {callers.answered} calls, {callers.tried_again} tried again; {found.results} items")
    assert callers.failed == []
    assert found.clean, (found.lost, found.duplicated)
    assert (found.source_offsets, found.results, found.dead) == (producer.sent, producer.sent, 0)
