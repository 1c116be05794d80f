"""What exactly-once costs: items per second through the lane's path and through bare aiokafka, in one run.

    scripts/bench kafka [--items N] [--txn-size N] [--rounds N] [--json FILE]       # FILE "-" = standard output

Both read 1 KiB items from one partition of a fresh Apache Kafka and write them, same values, same headers, same
compression, in transactions of the same size that hold the offset too. Bare: consume, send, await, commit. The lane's
path: fetch, the bookkeeping of the owned partition (what is taken, finished, a gap), the opening's commit, the state
installed. No item is parsed and nothing is generated on either side, so neither runs a task per item. Rounds alternate;
the figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from dataclasses import replace
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from dev.broker import LocalKafka
from dev.figures import ran_on, write
from dev.interrupt import run_until_told
from sidecar.offline.item import Record, result_headers
from sidecar.offline.kafka_client import KafkaLog
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane_state import Stated
from sidecar.offline.owned_partition import FinishedItem, OwnedPartition
from sidecar.settings.offline import OfflineSettings

ITEM_BYTES = 1024
COMPRESSION: Literal["lz4"] = "lz4"
PARTITION = 0


async def fill(settings: OfflineSettings, items: int) -> None:
    """The requests topic holds this many items."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, max_batch_size=262_144, compression_type=COMPRESSION
    )
    async with producer:
        for _ in range(items):
            await producer.send(
                settings.requests_topic, os.urandom(ITEM_BYTES // 2).hex().encode(), partition=PARTITION
            )
        await producer.flush()


async def bare(settings: OfflineSettings, items: int, txn_size: int, round_: int) -> float:
    """Items per second of consume and transactional produce as aiokafka gives them."""
    source = TopicPartition(settings.requests_topic, PARTITION)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        enable_auto_commit=False,
        max_partition_fetch_bytes=settings.message_bytes_max,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        transactional_id=f"bare-{round_}",
        compression_type=COMPRESSION,
        max_batch_size=262_144,
        retry_backoff_ms=20,
    )
    async with consumer, producer:
        consumer.assign([source])
        consumer.seek(source, 0)
        done, begun_s = 0, time.monotonic()
        while done < items:
            batch: list[Any] = []
            while len(batch) < min(txn_size, items - done):
                found = await consumer.getmany(source, timeout_ms=200, max_records=txn_size - len(batch))
                batch += found.get(source, [])
            async with producer.transaction():
                sends = [
                    await producer.send(
                        settings.results_topic,
                        value=record.value,
                        key=record.key,
                        partition=PARTITION,
                        headers=[
                            *record.headers,
                            ("x-source-topic", record.topic.encode()),
                            ("x-source-partition", str(record.partition).encode()),
                            ("x-source-offset", str(record.offset).encode()),
                        ],
                    )
                    for record in batch
                ]
                await asyncio.gather(*sends)
                done += len(batch)
                await producer.send_offsets_to_transaction({source: OffsetAndMetadata(done, "")}, f"bare-{round_}")
        return items / (time.monotonic() - begun_s)


async def exactly_once(settings: OfflineSettings, items: int, txn_size: int) -> float:
    """Items per second through the log, an owned partition and its openings, as the lane drives them."""
    joined = asyncio.Event()

    async def revoked() -> None:
        """Nobody else is there."""

    log = KafkaLog(settings, revoked=revoked, assigned=lambda _: joined.set())
    await log.start()
    log.join()
    await joined.wait()
    opening = await log.open(PARTITION)
    owned = OwnedPartition(PARTITION, Stated("partition", time.monotonic), counted=True)
    if opening.state is None:
        raise AssertionError("an opening without a state")
    log.seek(PARTITION, opening.state.watermark)
    owned.begin(opening.state, 1, settings)
    begun_s = time.monotonic()
    while owned.progress is not None and owned.progress.committed.watermark < items:
        for record in await log.fetch([PARTITION], txn_size - len(owned.finished), 0.2):
            if owned.progress.deliver(record.offset):
                owned.take(record)
                owned.finish(record.offset, finished(settings, record))
        if len(owned.finished) >= min(txn_size, items - owned.progress.committed.watermark):
            batch = owned.committable(owned.progress)
            state = owned.marked(owned.progress.after(batch), settings)
            await opening.commit([done.outgoing for done in batch.values()], state)
            owned.progress.install(state)
            for offset in batch:
                owned.let_go(offset)
    rate = items / (time.monotonic() - begun_s)
    await opening.close()
    await log.stop()
    return rate


def finished(settings: OfflineSettings, record: Record) -> FinishedItem:
    return FinishedItem(
        record=record,
        outgoing=Outgoing(
            topic=settings.results_topic,
            key=record.key,
            value=record.value,
            headers=result_headers(record, settings.group),
        ),
        outcome="done",
        reason="",
        retries=0,
        output_tokens=0,
        taken_s=0.0,
    )


async def main(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of all rounds."""
    raw: list[float] = []
    eos: list[float] = []
    async with LocalKafka() as kafka:
        await kafka.create_topics(1)
        settings = OfflineSettings(
            bootstrap_servers=kafka.bootstrap_servers,
            first_start="earliest",
            pending_max=max(options.txn_size, 256),
            compression=COMPRESSION,
        )
        await fill(settings, options.items)
        for round_ in range(options.rounds):
            raw.append(await bare(settings, options.items, options.txn_size, round_))
            grouped = replace(settings, group=f"bench-{round_}")
            eos.append(await exactly_once(grouped, options.items, options.txn_size))
        ratio = statistics.median(ours / theirs for ours, theirs in zip(eos, raw, strict=True))
        return {
            "raw_items_s": round(statistics.median(raw)),
            "eos_items_s": round(statistics.median(eos)),
            "ratio": round(ratio, 3),
            "txn_size": options.txn_size,
            "kafka_version": kafka.version,
            "items": options.items,
            "rounds": options.rounds,
            "ran_on": ran_on(),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=40_000)
    parser.add_argument("--txn-size", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    arguments = parser.parse_args()
    write(run_until_told(main(arguments)), arguments.json)
