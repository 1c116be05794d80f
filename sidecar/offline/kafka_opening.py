"""One transaction per tick of one partition, behind the epoch of the partition's transactional id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata

from sidecar.offline.committed_offsets import committed_offsets
from sidecar.offline.item import Headers
from sidecar.offline.job_progress import JobKey, JobTally, decoded
from sidecar.offline.kafka_errors import REFUSALS, STOP_TIMEOUT_S, TOO_LARGE, RecordRefusedError, call, start_client
from sidecar.offline.kafka_options import client_options
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)
BATCH_BYTES = 262_144  # of records sent together; less where a topic takes less
NO_OFFSET = -1
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}  # as Kafka numbers them


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One record to write: a result, a dead letter, or how far a job is."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """Bytes of the record as a batch of its own before compression, rounded up."""
        headers = sum(len(name.encode()) + len(value or b"") + 10 for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers + 100

    def fits(self, bytes_max: int, compression: str) -> bool:
        """True if a topic with this `max.message.bytes` takes the record: it is held against the compressed batch."""
        if self.size <= bytes_max:
            return True
        batch = BatchBuilder(self.size, CODECS[compression], is_transactional=1)
        batch.append(timestamp=0, key=self.key, value=self.value, headers=list(self.headers))
        return len(batch._build()) <= bytes_max


class KafkaOpening:
    """One life of a partition's transactional id: from winning the epoch until the first ambiguous call.

    `state` was read after the epoch was won. `tainted` is True after any failed or timed-out broker call, even a
    retried one: an old request may then still be applied to the next transaction of this epoch (KAFKA-17754).
    """

    def __init__(self, settings: OfflineSettings, partition: int, bytes_max: Mapping[str, int] | None = None) -> None:
        """`bytes_max` is the longest batch that each topic takes, where it is known."""
        self._settings = settings
        self.bytes_max = bytes_max or {}
        self._source = TopicPartition(settings.requests_topic, partition)
        self._producer = AIOKafkaProducer(
            **client_options(settings),
            transactional_id=f"sidecar.{settings.group}.{settings.requests_topic}.{partition}",
            transaction_timeout_ms=int(settings.transaction_timeout_s * 1000),
            compression_type=None if settings.compression == "none" else settings.compression,
            max_request_size=settings.message_bytes_max + (64 << 10),
            max_batch_size=min([BATCH_BYTES, *self.bytes_max.values()]),
            retry_backoff_ms=20,  # measured: back-to-back commits p99 46 ms, against 127 ms with the default of 100
        )
        self.tainted = False
        self.state: Committed | None = None
        self.tallies: dict[JobKey, JobTally] = {}

    async def start(self) -> None:
        """The epoch is ours, a predecessor's transaction is over, and `state` is what is committed (None: nothing)."""
        async with call(self._settings.call_timeout_s):
            await start_client(self._producer, self._producer.client)
            self._watch_calls()
            self.state = await self._read()
            if self._settings.progress_topic:
                self.tallies = await self._read_tallies()
            if self._settings.abort_fence and self.state is not None:
                await self._abort_fence(self.state)

    async def commit(self, records: Sequence[Outgoing], state: Committed) -> None:
        """The records and the state are committed together. After any exception nobody knows: replace this opening.

        Raises RecordRefusedError where a topic will not take some of the records: then nothing is committed.
        """
        metadata = state.encode()
        if len(metadata) > self._settings.metadata_chars_max:  # cannot be: admission bounds it
            raise AssertionError(f"metadata of {len(metadata)} characters for {len(state.gaps)} gaps")
        async with call(self._settings.call_timeout_s):
            await self._producer.begin_transaction()
            futures = [await self._send(record) for record in records]
            # Each one, and before the offsets: a batch that expired while its partition had no leader fails only its
            # future, and the commit then succeeds without it (measured: 41 of 4,816 results lost over six restarts).
            _raise_failed(records, await asyncio.gather(*futures, return_exceptions=True))
            await self._send_offsets(state, metadata)
            await self._producer.commit_transaction()

    async def close(self) -> None:
        """The producer is gone, within a bound; what it had open is aborted by the next opening or the broker."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._producer.stop()
        except Exception as error:
            log.info("closing the producer of %s: %r", self._source, error)
            # stop() flushes first; without its end neither the sender task nor the sockets are closed.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._producer._sender.close()
                    await self._producer.client.close()
        self._hear_failure()

    def _hear_failure(self) -> None:
        """The failure that aiokafka keeps for whoever ends the transaction was handled; nobody logs it once more."""
        waiter = self._producer._txn_manager._transaction_waiter
        if waiter is not None and waiter.done() and not waiter.cancelled():
            waiter.exception()

    def _watch_calls(self) -> None:
        """Every request of the producer passes through client.send; a failed one taints this opening."""
        send = self._producer.client.send

        async def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return await send(*args, **kwargs)
            except BaseException:
                self.tainted = True
                raise

        self._producer.client.send = watched

    async def _read(self) -> Committed | None:
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        try:
            await start_client(admin, admin._client)
            offsets = await committed_offsets(admin, self._settings.group, [self._source])
        finally:
            await admin.close()
        found = offsets[self._source]
        return None if found.offset == NO_OFFSET else Committed.decode(found.offset, found.metadata)

    async def _read_tallies(self) -> dict[JobKey, JobTally]:
        """What the progress topic holds of this partition. Short, because it is compacted; ours alone to write."""
        source = TopicPartition(self._settings.progress_topic, self._source.partition)
        found: list[tuple[bytes | None, bytes | None]] = []
        # Not seek_to_beginning: by default the first reset goes to the end, and won against it (seen, aiokafka 0.14.0).
        options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
        consumer = AIOKafkaConsumer(**client_options(self._settings), **options)
        try:
            await start_client(consumer, consumer._client)
            consumer.assign([source])
            end = (await consumer.end_offsets([source]))[source]
            while await consumer.position(source) < end:
                for records in (await consumer.getmany(source, timeout_ms=200)).values():
                    found += [(record.key, record.value) for record in records]
        finally:
            await consumer.stop()
        return decoded(found)

    async def _send(self, record: Outgoing) -> asyncio.Future[Any]:
        """Return what becomes of the record; one that the client itself finds too long has failed already."""
        value = b"" if record.key is None and record.value is None else record.value  # aiokafka takes no such record
        try:
            sent: asyncio.Future[Any] = await self._producer.send(
                record.topic,
                value=value,
                key=record.key,
                partition=self._source.partition,
                headers=list(record.headers),
            )
            sent.add_done_callback(_hear)  # if the transaction fails elsewhere nobody waits for it
            return sent
        except TOO_LARGE as error:
            failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    async def _send_offsets(self, state: Committed, metadata: str) -> None:
        offsets = {self._source: OffsetAndMetadata(state.watermark, metadata)}
        await self._producer.send_offsets_to_transaction(offsets, self._settings.group)

    async def _abort_fence(self, state: Committed) -> None:
        """Markers of our own, aborted, so that a predecessor's skipped ones cannot expose its records."""
        await self._producer.begin_transaction()
        for topic in (self._settings.results_topic, self._settings.dead_letter_topic):
            await (await self._send(Outgoing(topic=topic, key=b"", value=b"", headers=())))
        await self._send_offsets(state, state.encode())
        await self._producer.abort_transaction()


def _hear(sent: asyncio.Future[Any]) -> None:
    if not sent.cancelled():
        sent.exception()


def _raise_failed(records: Sequence[Outgoing], outcomes: Sequence[Any]) -> None:
    """Raises what the first failed record raised; RecordRefusedError if it is about the records themselves."""
    failed = {at: each for at, each in enumerate(outcomes) if isinstance(each, BaseException)}
    for each in failed.values():
        if not isinstance(each, REFUSALS):
            raise each
    for at, each in failed.items():
        topic = records[at].topic
        refused = [other for other in failed if records[other].topic == topic]
        raise RecordRefusedError(
            f"topic {topic} takes no such record: {type(each).__name__}", topic, refused, isinstance(each, TOO_LARGE)
        )
