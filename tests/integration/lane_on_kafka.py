"""The offline lane on the real Apache Kafka before an engine that is only fast, and what tests ask of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from dev.broker import LocalKafka
from dev.checker import TopicCount, check, is_finished
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.kafka_opening import KafkaOpening, Outgoing
from sidecar.offline.lane import OfflineLane
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.tracing import Tracing
from tests.fakes.log import FakeDriver, WordTokens
from tests.integration.conftest import LOOK_S

TIMEOUT_S = 60.0
PARTITIONS = 3


async def topics(
    kafka: LocalKafka, directory: Path, name: str, results: Mapping[str, Any] = MappingProxyType({}), **settings: Any
) -> OfflineSettings:
    """Fresh topics, the results topic with the configuration `results`, and settings that name them."""
    names: dict[str, dict[str, Any]] = {f"{name}.requests": {}, f"{name}.results": dict(results)}
    names |= {f"{name}.dlq": {"max.message.bytes": 2_162_688}, f"{name}.progress": {"cleanup.policy": "compact"}}
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"partitions": PARTITIONS, "topics": names}))
    await kafka.create_topics(file=file)
    defaults: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "requests_topic": f"{name}.requests",
        "results_topic": f"{name}.results",
        "dead_letter_topic": f"{name}.dlq",
        "group": name,
        "first_start": "earliest",
        "tick_s": 0.05,
        "session_timeout_s": 6.0,
        "heartbeat_s": 0.5,
    }
    return OfflineSettings(**(defaults | settings))


def items(count: int) -> list[bytes]:
    return [
        json.dumps({"id": str(number), "prompt": f"item {number}", "max_tokens": 4}).encode() for number in range(count)
    ]


@asynccontextmanager
async def lane_runs(lane: OfflineLane) -> AsyncIterator[None]:
    task = asyncio.create_task(lane.run(), name="lane")
    try:
        yield
    finally:
        if not task.done():
            await lane.drain(5.0)
        await task


@asynccontextmanager
async def running(settings: OfflineSettings, tracing: Tracing | None = None) -> AsyncIterator[OfflineLane]:
    lane = OfflineLane(settings, FakeDriver(), WordTokens(), {"tensorrt_llm": 2048}, seed=1, tracing=tracing)
    async with lane_runs(lane):
        yield lane


async def finished(settings: OfflineSettings) -> TopicCount:
    """What the independent checker counts, once every item is below the watermark."""
    servers, names = settings.bootstrap_servers, (settings.requests_topic, settings.results_topic)
    async with asyncio.timeout(TIMEOUT_S):
        while not await asyncio.to_thread(is_finished, servers, settings.group, settings.requests_topic):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
    return await asyncio.to_thread(
        check, servers, settings.group, requests=names[0], results=names[1], dead_letters=settings.dead_letter_topic
    )


async def records(settings: OfflineSettings, topic: str, count: int) -> list[Any]:
    """The first records of a topic, as a reader of results sees them."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    async with consumer, asyncio.timeout(TIMEOUT_S):
        return [await consumer.getone() for _ in range(count)]


async def until_state(lane: OfflineLane, holds: Callable[[OfflineLane], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds(lane):  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def admin_of(kafka: LocalKafka) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


def result(settings: OfflineSettings, text: str) -> Outgoing:
    return Outgoing(topic=settings.results_topic, key=None, value=text.encode(), headers=())


async def opened(settings: OfflineSettings) -> KafkaOpening:
    """An opening of partition 0, as soon as the group's coordinator is there."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            opening = KafkaOpening(settings, 0)
            try:
                await opening.start()
                return opening
            except LogError:
                await opening.close()
