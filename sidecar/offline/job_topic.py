"""The jobs topic: every sidecar reads all of it, in no group, from its beginning, and then what comes."""

from __future__ import annotations

import asyncio
import logging

from aiokafka import AIOKafkaConsumer, TopicPartition

from sidecar.core.errors import SidecarError
from sidecar.offline.job_orders import JobOrders
from sidecar.offline.kafka_errors import call, start_client
from sidecar.offline.kafka_options import client_options
from sidecar.offline.kafka_topics import require_topic
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)
LOOK_S = 0.2  # an order is obeyed within it: the broker answers as soon as there is one
RETRY_S = 1.0


async def follow_orders(settings: OfflineSettings, orders: JobOrders) -> None:
    """Keep `orders` as the jobs topic has them, until cancelled. What fails is tried again; what is known holds."""
    while True:
        try:
            await _follow(settings, orders)
        except SidecarError as error:
            log.warning("the orders of jobs are not known anew: %s", error)
        await asyncio.sleep(RETRY_S)


async def _follow(settings: OfflineSettings, orders: JobOrders) -> None:
    """Read the topic from its beginning on. Raises SidecarError as soon as a call fails."""
    options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
    consumer = AIOKafkaConsumer(**client_options(settings), **options)
    try:
        async with call(settings.call_timeout_s):
            await start_client(consumer, consumer._client)
            places = await topic_places(consumer, settings.jobs_topic)
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
        left = {place for place, end in ends.items() if end > 0}
        while True:
            async with call(settings.call_timeout_s):
                found = await consumer.getmany(*places, timeout_ms=int(LOOK_S * 1000))
                left = {place for place in left if await consumer.position(place) < ends[place]}
            for records in found.values():
                for record in records:
                    orders.apply(record.key, record.value)
            if not left:
                orders.all_read()
    finally:
        await consumer.stop()


async def topic_places(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """Every partition of `topic`. Raises LogError if there is none: a consumer alone would have the broker make it."""
    await require_topic(consumer._client, topic)
    await consumer._client.add_topic(topic)
    return [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
