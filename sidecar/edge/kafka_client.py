"""The offline lane's port to Kafka, on stock aiokafka: read items, and commit one transaction per partition and tick.

Group ownership is only a hint: the lock on a partition is the epoch of its transactional id, and the state (offset and
holes) lives behind that lock. So an opening wins the epoch first, reads the state second, and is thrown away after the
first call whose outcome is unknown: the next one reads what is true.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CorruptRecordException, InvalidProducerEpoch, OffsetOutOfRangeError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata

from sidecar.core.errors import SettingsError, SidecarError
from sidecar.edge.broker_version import metadata_version, warning
from sidecar.edge.header_names import make_readable
from sidecar.edge.items import Headers, Record
from sidecar.edge.kafka_settings import OfflineSettings, client_options
from sidecar.edge.offsets import Committed
from sidecar.edge.progress import JobKey, Tally, decoded

log = logging.getLogger(__name__)
STOP_TIMEOUT_S = 3.0
POLL_INTERVAL_MAX_MS = 24 * 3600 * 1000  # a lane without room does not poll; the lane has a watchdog of its own
NO_OFFSET = -1


class NoCommittedOffsetError(SettingsError):
    """The group has no offset for a partition: an operator has to say where it begins."""


class PositionLostError(SettingsError):
    """The log no longer holds the watermark (or not yet): an operator has to decide, nothing is skipped silently."""


class LogError(SidecarError):
    """Kafka failed a call, or did not answer in time: what it did is unknown. Open anew and try again."""


class FencedError(LogError):
    """Another opening of the same partition has won the epoch."""


@contextlib.asynccontextmanager
async def _call(timeout_s: float) -> AsyncIterator[None]:
    """Bounds calls of aiokafka (start and commit have no timeout) and translates whatever they raise.

    It raises more than KafkaErrors: after a fencing also IllegalOperation, a plain Exception, and AssertionErrors.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except SidecarError:
        raise
    except (ProducerFenced, InvalidProducerEpoch) as error:
        raise FencedError(repr(error)) from error
    except OffsetOutOfRangeError as error:
        raise PositionLostError(
            f"the log does not hold the committed position ({error}): its retention passed it, or the topic was made "
            f"anew; decide with `sidecar offsets reset`"
        ) from error
    except Exception as error:
        raise LogError(repr(error)) from error


async def _start(user: AIOKafkaProducer | AIOKafkaConsumer | AIOKafkaAdminClient, client: AIOKafkaClient) -> None:
    """`user.start()`; a cancel ends it only after the first connection of its `client` has answered, or failed to.

    Cancelled before that, aiokafka (0.14.0) forgets this connection without closing it.
    """
    bootstrap = client.bootstrap

    async def whole() -> None:
        task = asyncio.create_task(bootstrap(), name="kafka bootstrap")
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            _, late = await asyncio.wait([task], timeout=STOP_TIMEOUT_S)
            if late:
                task.cancel()
            elif not task.cancelled():
                task.exception()  # heard: nobody waits for it any more
            raise

    client.bootstrap = whole
    await user.start()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One record to write: a result, a dead letter, or how far a job is."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """Bytes of the record, a little more than what is sent: the broker's and the client's limits are on this."""
        headers = sum(len(name) + len(value or b"") + 10 for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers + 100


class KafkaOpening:
    """One life of a partition's transactional id: from winning the epoch until the first ambiguous call.

    `state` was read after the epoch was won. `tainted` is True after any failed or timed-out broker call, even a
    retried one: an old request may then still be applied to the next transaction of this epoch (KAFKA-17754).
    """

    def __init__(self, settings: OfflineSettings, partition: int) -> None:
        self._settings = settings
        self._source = TopicPartition(settings.requests_topic, partition)
        self._producer = AIOKafkaProducer(
            **client_options(settings),
            transactional_id=f"sidecar.{settings.group}.{settings.requests_topic}.{partition}",
            transaction_timeout_ms=int(settings.transaction_timeout_s * 1000),
            compression_type=None if settings.compression == "none" else settings.compression,
            max_request_size=settings.message_bytes_max + (64 << 10),
            max_batch_size=262_144,
            retry_backoff_ms=20,  # measured: back-to-back commits p99 46 ms, against 127 ms with the default of 100
        )
        self.tainted = False
        self.state: Committed | None = None
        self.tallies: dict[JobKey, Tally] = {}

    async def start(self) -> None:
        """The epoch is ours, a predecessor's transaction is over, and `state` is what is durable (None: nothing)."""
        async with _call(self._settings.call_timeout_s):
            await _start(self._producer, self._producer.client)
            self._watch_calls()
            self.state = await self._read()
            if self._settings.progress_topic:
                self.tallies = await self._read_tallies()
            if self._settings.abort_fence and self.state is not None:
                await self._abort_fence(self.state)

    async def commit(self, records: Sequence[Outgoing], state: Committed) -> None:
        """The records and the state are durable together. After any exception nobody knows: replace this opening."""
        metadata = state.encode()
        if len(metadata) > self._settings.metadata_chars_max:  # cannot be: admission bounds it
            raise AssertionError(f"metadata of {len(metadata)} characters for {len(state.holes)} holes")
        async with _call(self._settings.call_timeout_s):
            await self._producer.begin_transaction()
            futures = [await self._send(record) for record in records]
            # Each one, and before the offsets: a batch that expired while its partition had no leader fails only its
            # future, and the commit then succeeds without it (measured: 41 of 4,816 results lost over six restarts).
            await asyncio.gather(*futures)
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
            await _start(admin, admin._client)
            offsets = await admin.list_consumer_group_offsets(self._settings.group, partitions=[self._source])
        finally:
            await admin.close()
        found = offsets[self._source]
        return None if found.offset == NO_OFFSET else Committed.decode(found.offset, found.metadata)

    async def _read_tallies(self) -> dict[JobKey, Tally]:
        """What the progress topic holds of this partition. Short, because it is compacted; ours alone to write."""
        source = TopicPartition(self._settings.progress_topic, self._source.partition)
        found: list[tuple[bytes, bytes | None]] = []
        # Not seek_to_beginning: by default the first reset goes to the end, and won against it (seen, aiokafka 0.14.0).
        options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
        consumer = AIOKafkaConsumer(**client_options(self._settings), **options)
        try:
            await _start(consumer, consumer._client)
            consumer.assign([source])
            end = (await consumer.end_offsets([source]))[source]
            while await consumer.position(source) < end:
                for records in (await consumer.getmany(source, timeout_ms=200)).values():
                    found += [(record.key, record.value) for record in records]
        finally:
            await consumer.stop()
        return decoded(found)

    async def _send(self, record: Outgoing) -> Any:
        return await self._producer.send(
            record.topic,
            value=record.value,
            key=record.key,
            partition=self._source.partition,
            headers=list(record.headers),
        )

    async def _send_offsets(self, state: Committed, metadata: str) -> None:
        offsets = {self._source: OffsetAndMetadata(state.watermark, metadata)}
        await self._producer.send_offsets_to_transaction(offsets, self._settings.group)

    async def _abort_fence(self, state: Committed) -> None:
        """Markers of our own, aborted, so that a predecessor's skipped ones cannot expose its records."""
        await self._producer.begin_transaction()
        for topic in (self._settings.results_topic, self._settings.dead_letter_topic):
            await (await self._send(Outgoing(topic=topic, key=None, value=b"", headers=())))
        await self._send_offsets(state, state.encode())
        await self._producer.abort_transaction()


class KafkaLog:
    """The consumer of the requests topic, and a second, group-less one for lag and first positions.

    `revoked` and `assigned` are called with partition numbers; aiokafka delivers records before and while `assigned`
    runs, so the lane keeps a ready flag of its own per partition and asks only for those.
    """

    def __init__(
        self,
        settings: OfflineSettings,
        *,
        revoked: Callable[[], Awaitable[None]],
        assigned: Callable[[Collection[int]], None],
    ) -> None:
        self._settings = settings
        self._listener = _Listener(revoked, assigned)
        self.cluster_id = ""  # known once started
        options = client_options(settings)
        self._consumer = AIOKafkaConsumer(
            **options,
            group_id=settings.group,
            group_instance_id=settings.instance_id or None,
            isolation_level="read_committed",
            auto_offset_reset="none",
            enable_auto_commit=False,
            session_timeout_ms=int(settings.session_timeout_s * 1000),
            heartbeat_interval_ms=int(settings.heartbeat_s * 1000),
            rebalance_timeout_ms=int(settings.rebalance_timeout_s * 1000),
            max_poll_interval_ms=POLL_INTERVAL_MAX_MS,
            max_partition_fetch_bytes=settings.message_bytes_max,
            partition_assignment_strategy=(StickyPartitionAssignor,),
        )
        self._names_repaired = False
        self._repair_names()
        # Position queries queue behind the long poll of the consumer's connection (measured: 500 ms): hence a second.
        self._queries = AIOKafkaConsumer(**options, isolation_level="read_committed")

    @property
    def generation(self) -> int:
        """The group generation that the consumer believes to be in; aiokafka has no public name for it."""
        return int(self._consumer._coordinator.generation)

    async def start(self) -> None:
        """Connected. Raises LogError if no broker answers, SettingsError if the topics do not fit."""
        async with _call(self._settings.call_timeout_s):
            await _start(self._queries, self._queries._client)
            await self._check_topics()
            await self._check_version()
            await _start(self._consumer, self._consumer._client)

    def join(self) -> None:
        """Joining the group; the callbacks may come from now on."""
        self._consumer.subscribe([self._settings.requests_topic], listener=self._listener)

    def check(self) -> None:
        """Raises LogError for what the group's background task ran into; until it is asked it does nothing more.

        aiokafka raises this from getmany, which a member without partitions never calls.
        """
        try:
            self._consumer._coordinator.check_errors()
        except Exception as error:
            raise LogError(f"the consumer group: {error!r}") from error

    async def stop(self) -> None:
        """Both consumers are gone, within a bound; a static member stays in the group until its session ends."""
        for consumer in (self._consumer, self._queries):
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await consumer.stop()
            except asyncio.CancelledError:
                # aiokafka's stop() may raise it by itself while a broker is down (its fetcher awaits cancelled tasks).
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
            except Exception as error:
                log.info("closing a consumer: %r", error)

    async def open(self, partition: int) -> KafkaOpening:
        """A started opening of this partition, its `state` known. After a LogError or OffsetsError nothing is open."""
        opening = KafkaOpening(self._settings, partition)
        try:
            await opening.start()
            if opening.state is None:
                opening.state = await self._first_position(partition)
        except BaseException:
            await opening.close()
            raise
        return opening

    def seek(self, partition: int, offset: int) -> None:
        """The next fetch of this partition begins at `offset`. Raises LogError if it is no longer assigned."""
        try:
            self._consumer.seek(self._source(partition), offset)
        except Exception as error:
            raise LogError(repr(error)) from error

    async def fetch(self, partitions: Iterable[int], records_max: int, wait_s: float) -> list[Record]:
        """Up to `records_max` records of these partitions; none if nothing came within `wait_s`."""
        sources = [self._source(partition) for partition in partitions]
        if not sources:  # aiokafka would read "none" as "all assigned"
            raise ValueError("fetch needs a partition")
        async with _call(wait_s + self._settings.call_timeout_s):  # longer only while a rebalance is under way
            batches = await self._getmany(*sources, timeout_ms=int(wait_s * 1000), max_records=records_max)
        return [_record(record) for records in batches.values() for record in records]

    async def _getmany(self, *sources: TopicPartition, **options: int) -> dict[TopicPartition, list[Any]]:
        try:
            found: dict[TopicPartition, list[Any]] = await self._consumer.getmany(*sources, **options)
        except (UnicodeDecodeError, CorruptRecordException):  # the latter from aiokafka without its extensions
            if self._names_repaired:
                raise
            self._names_repaired = True
            raise LogError(
                "a record has a header whose name is not UTF-8; from now on such bytes are read as ?"
            ) from None
        return found

    def _repair_names(self) -> None:
        """Once a name of a header was not UTF-8, each answer is made readable; before that, none is looked through."""
        send = self._consumer._client.send

        async def repaired(*args: Any, **kwargs: Any) -> Any:
            answer = await send(*args, **kwargs)
            if self._names_repaired:
                make_readable(answer)
            return answer

        self._consumer._client.send = repaired

    async def position(self, partition: int) -> int:
        """Everything of this partition below it was returned by `fetch`, or will never be."""
        async with _call(self._settings.request_timeout_s):
            return int(await self._consumer.position(self._source(partition)))

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The last stable offset of each partition: where a read_committed reader's log ends."""
        async with _call(self._settings.request_timeout_s):
            found = await self._queries.end_offsets([self._source(partition) for partition in partitions])
        return {source.partition: int(offset) for source, offset in found.items()}

    def _source(self, partition: int) -> TopicPartition:
        return TopicPartition(self._settings.requests_topic, partition)

    async def _first_position(self, partition: int) -> Committed:
        source, where = self._source(partition), self._settings.first_start
        if where == "refuse":
            raise NoCommittedOffsetError(
                f"group {self._settings.group!r} has no offset for partition {partition} of {source.topic}: "
                f"set first_start to earliest or latest (or the offsets were lost: see `sidecar offsets reset`)"
            )
        query = self._queries.beginning_offsets if where == "earliest" else self._queries.end_offsets
        async with _call(self._settings.request_timeout_s):
            offset = int((await query([source]))[source])
        return Committed(watermark=offset, high=offset)

    async def _check_version(self) -> None:
        """A broker that can tear transactions is named in the log."""
        with contextlib.suppress(OSError, ValueError, struct.error):
            found = warning(await metadata_version(self._settings), self._settings.abort_fence)
            if found is not None:
                log.warning("%s", found)

    async def _check_topics(self) -> None:
        """Raises LogError if a topic is missing, SettingsError if it cannot take a result where its item came from."""
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        settings = self._settings
        names = [settings.requests_topic, settings.results_topic, settings.dead_letter_topic]
        names += filter(None, [settings.progress_topic])
        try:
            await _start(admin, admin._client)
            found = {topic["topic"]: topic for topic in await admin.describe_topics(names)}
            self.cluster_id = str((await admin.describe_cluster())["cluster_id"] or "")
        finally:
            await admin.close()
        counts = {name: len(found[name]["partitions"]) if name in found else 0 for name in names}
        for name, count in counts.items():
            if count == 0:
                raise LogError(f"topic {name} does not exist")  # it may have been made a moment ago, or be made yet
            if count < counts[names[0]]:
                raise SettingsError(f"topic {name} has {count} partitions, {names[0]} has {counts[names[0]]}")


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Hands rebalances to the lane. aiokafka logs and swallows what these raise."""

    def __init__(self, revoked: Callable[[], Awaitable[None]], assigned: Callable[[Collection[int]], None]) -> None:
        self._revoked = revoked
        self._assigned = assigned

    async def on_partitions_revoked(self, _: Collection[TopicPartition]) -> None:
        await self._revoked()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._assigned([source.partition for source in assigned])


def _record(record: Any) -> Record:
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple((name, bytes(value or b"")) for name, value in record.headers),
    )
