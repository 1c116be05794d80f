"""The jobs topic is read whole, then as orders come, and again after whatever fails."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from sidecar.offline import job_topic as module
from sidecar.offline.job_orders import JobField, JobOrders, JobState, encoded_key
from sidecar.offline.job_topic import follow_orders
from sidecar.settings.offline import OfflineSettings

PLACE = TopicPartition("inference.jobs", 0)
NIGHTLY = ("lab", "nightly")


class FakeConsumer:
    """One partition; each read gives one of `records`, or raises one."""

    def __init__(self, end: int, *records: Any) -> None:
        self._client = self
        self.end = end
        self.at = 0
        self.records = list(records)
        self.stopped = False
        self.waits = asyncio.Event()

    async def start(self) -> None:
        """Connected."""

    def assign(self, places: list[TopicPartition]) -> None:
        assert places == [PLACE]

    async def end_offsets(self, _: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {PLACE: self.end}

    async def position(self, _: TopicPartition) -> int:
        return self.at

    async def getmany(self, *_: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        assert timeout_ms <= 500  # an order is to be obeyed within a second
        if not self.records:
            self.waits.set()
            await asyncio.Event().wait()
        found = self.records.pop(0)
        if isinstance(found, Exception):
            raise found
        self.at += 1
        return {PLACE: [found]}

    async def stop(self) -> None:
        self.stopped = True


def state(value: str) -> SimpleNamespace:
    return SimpleNamespace(key=encoded_key(NIGHTLY, JobField.STATE), value=json.dumps({"value": value}).encode())


@pytest.fixture
def consumers(monkeypatch: pytest.MonkeyPatch) -> list[FakeConsumer]:
    waiting: list[FakeConsumer] = []

    async def start(consumer: Any, _client: Any) -> None:
        await consumer.start()

    async def places(*_: Any) -> list[TopicPartition]:
        return [PLACE]

    made = iter(waiting)
    monkeypatch.setattr(module, "AIOKafkaConsumer", lambda **_: next(made))
    monkeypatch.setattr(module, "start_client", start)
    monkeypatch.setattr(module, "topic_places", places)
    monkeypatch.setattr(module, "RETRY_S", 0)
    return waiting


async def followed(orders: JobOrders, last: FakeConsumer) -> None:
    task = asyncio.create_task(follow_orders(OfflineSettings(jobs_topic="inference.jobs"), orders), name="following")
    async with asyncio.timeout(10):
        await last.waits.wait()
    task.cancel()
    await asyncio.wait([task])
    assert last.stopped


async def test_the_last_order_of_the_topic_holds(consumers: list[FakeConsumer]) -> None:
    consumers.append(FakeConsumer(2, state("paused"), state("cancelled")))
    orders = JobOrders(known=False)
    await followed(orders, consumers[-1])
    assert orders.state(NIGHTLY) is JobState.CANCELLED
    assert orders._known.is_set()


async def test_orders_are_not_known_before_all_that_stood_there_was_read(consumers: list[FakeConsumer]) -> None:
    consumers.append(FakeConsumer(2, state("paused")))
    orders = JobOrders(known=False)
    await followed(orders, consumers[-1])
    assert not orders._known.is_set()


async def test_an_empty_topic_is_read_at_once(consumers: list[FakeConsumer]) -> None:
    consumers.append(FakeConsumer(0, state("paused")))
    orders = JobOrders(known=False)
    await followed(orders, consumers[-1])
    assert (orders._known.is_set(), orders.state(NIGHTLY)) == (True, JobState.PAUSED)


async def test_after_a_failure_it_is_read_anew_and_what_is_known_holds(
    consumers: list[FakeConsumer], caplog: pytest.LogCaptureFixture
) -> None:
    consumers.append(FakeConsumer(9, state("paused"), KafkaError("the broker is gone")))
    consumers.append(FakeConsumer(9))
    orders = JobOrders(known=False)
    await followed(orders, consumers[-1])
    assert orders.state(NIGHTLY) is JobState.PAUSED
    assert consumers[0].stopped
    assert "the orders of jobs are not known anew" in caplog.text
