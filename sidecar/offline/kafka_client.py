"""The offline lane's port to Kafka, on stock aiokafka: the group, the items, and the openings of its partitions.

Group ownership is only a hint: the lock on a partition is the epoch of its transactional id, and the state (offset and
gaps) lives behind that lock. So an opening wins the epoch first, reads the state second, and is thrown away after the
first call whose outcome is unknown: the next one reads what is true.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CorruptRecordException

from sidecar.offline.broker_version import metadata_version, warning
from sidecar.offline.header_names import make_readable
from sidecar.offline.instance_fence import InstanceFence, Occupant
from sidecar.offline.item import Record
from sidecar.offline.kafka_errors import (
    STOP_TIMEOUT_S,
    LogError,
    NoCommittedOffsetError,
    PositionLostError,
    call,
    hear_aiokafka,
    start_client,
    translated,
)
from sidecar.offline.kafka_opening import KafkaOpening
from sidecar.offline.kafka_options import client_options
from sidecar.offline.kafka_topics import Topics, look
from sidecar.offline.lane_state import Cause
from sidecar.offline.offsets import Committed
from sidecar.offline.outcomes import remembered
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)
POLL_INTERVAL_MAX_MS = 24 * 3600 * 1000  # a lane without room does not poll; the lane has a watchdog of its own


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
        hear_aiokafka()
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
            metadata_max_age_ms=int(settings.metadata_max_age_s * 1000),
            max_partition_fetch_bytes=settings.message_bytes_max,
            partition_assignment_strategy=(StickyPartitionAssignor,),
        )
        self._names_repaired = False
        self._repair_names()
        # Position queries queue behind the long poll of the consumer's connection (measured: 500 ms): hence a second.
        self._queries = AIOKafkaConsumer(**options, isolation_level="read_committed")
        self._fence = InstanceFence(self._queries._client, settings)

    @property
    def generation(self) -> int:
        """The group generation that the consumer believes to be in; aiokafka has no public name for it."""
        return int(self._consumer._coordinator.generation)

    @property
    def member_id(self) -> str:
        """Our name in the group; "" before it was given."""
        return str(self._consumer._coordinator.member_id)

    async def start(self) -> None:
        """Connected, and the topics are there. Raises LogError with its cause."""
        async with call(self._settings.call_timeout_s):
            await start_client(self._queries, self._queries._client)
            self.cluster_id = (await self._topics()).cluster_id
            await self._check_version()
            await start_client(self._consumer, self._consumer._client)

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
            raise translated(error, float("inf")) from error

    async def occupant(self) -> Occupant | None:
        """The member of the group that has our instance_id, alive or not yet forgotten."""
        async with call(self._settings.request_timeout_s):
            return await self._fence.occupant()

    async def bump(self) -> bool:
        """We are alive, and others can tell. True if another process with our instance_id was, since our last time."""
        async with call(self._settings.request_timeout_s):
            return await self._fence.bump()

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
        async with call(self._settings.request_timeout_s):
            topics = await self._topics()
        topics.check(partition)
        opening = KafkaOpening(self._settings, partition, topics.bytes_max)
        try:
            await opening.start()
            opening.state = await self._sure(partition, opening)
            await self._check_position(partition, opening.state)
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
        async with call(wait_s + self._settings.call_timeout_s):  # longer only while a rebalance is under way
            batches = await self._getmany(*sources, timeout_ms=int(wait_s * 1000), max_records=records_max)
        return [record_of(record) for records in batches.values() for record in records]

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
        async with call(self._settings.request_timeout_s):
            return int(await self._consumer.position(self._source(partition)))

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The last stable offset of each partition: where a read_committed reader's log ends."""
        try:
            async with call(self._settings.request_timeout_s):
                found = await self._queries.end_offsets([self._source(partition) for partition in partitions])
        except LogError as error:
            if error.cause is Cause.KAFKA:  # aiokafka looks for a topic that is gone until its time is over
                async with call(self._settings.request_timeout_s):
                    await self._topics()
            raise
        return {source.partition: int(offset) for source, offset in found.items()}

    def _source(self, partition: int) -> TopicPartition:
        return TopicPartition(self._settings.requests_topic, partition)

    async def _sure(self, partition: int, opening: KafkaOpening) -> Committed:
        """Return what is committed: what the broker says, unless visible outcomes say more; then the broker is told.

        Raises NoCommittedOffsetError where the group has outcomes and no offset. Its items are not taken for done:
        Kafka deletes the offsets of a topic with the topic, and other items may stand in one of the same name.
        """
        said = opening.state
        if said is not None and said.by_hand:
            return said
        begin = said or await self._where("earliest", partition)
        whole = await remembered(self._settings, partition, begin)
        if whole is begin:
            return said or await self._first_position(partition)
        if said is None:
            raise NoCommittedOffsetError(
                f"group {self._settings.group!r} has no offset for partition {partition} of"
                f" {self._settings.requests_topic}, and results up to offset {whole.high - 1}: it has lost its offsets,"
                f" or the topic was made anew; decide with `sidecar offsets reset`"
            )
        await self._check_position(partition, whole)
        await opening.commit((), whole)
        return whole

    async def _first_position(self, partition: int) -> Committed:
        source, where = self._source(partition), self._settings.first_start
        if where == "refuse":
            raise NoCommittedOffsetError(
                f"group {self._settings.group!r} has no offset for partition {partition} of {source.topic}: "
                f"set first_start to earliest or latest (or the offsets were lost: see `sidecar offsets reset`)"
            )
        return await self._where(where, partition)

    async def _where(self, where: Literal["earliest", "latest"], partition: int) -> Committed:
        """Nothing is done, and the first item is at that end of the log."""
        source = self._source(partition)
        query = self._queries.beginning_offsets if where == "earliest" else self._queries.end_offsets
        async with call(self._settings.request_timeout_s):
            offset = int((await query([source]))[source])
        return Committed(watermark=offset, high=offset, by_hand=True)

    async def _check_version(self) -> None:
        """A broker that can tear transactions is named in the log."""
        with contextlib.suppress(OSError):
            found = warning(await metadata_version(self._settings), self._settings.abort_fence)
            if found is not None:
                log.warning("%s", found)

    async def _topics(self) -> Topics:
        return await look(self._queries._client, self._settings)

    async def _check_position(self, partition: int, state: Committed) -> None:
        """Raises PositionLostError unless the log holds the watermark, and what was done above it: nothing is skipped.

        Of a log that was made anew, and is shorter, items would else count as done that nobody has seen.
        """
        source = self._source(partition)
        async with call(self._settings.request_timeout_s):
            begin = int((await self._queries.beginning_offsets([source]))[source])
            end = int((await self._queries.end_offsets([source]))[source])
        if not begin <= state.watermark <= state.high <= end:
            done = "" if state.high == state.watermark else f" with items up to {state.high} done"
            raise PositionLostError(
                f"the group is at offset {state.watermark}{done}, and the log holds {begin} to {end}: its retention "
                f"passed it, or the topic was made anew; decide with `sidecar offsets reset`",
                [partition],
            )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Hands rebalances to the lane. aiokafka logs and swallows what these raise."""

    def __init__(self, revoked: Callable[[], Awaitable[None]], assigned: Callable[[Collection[int]], None]) -> None:
        self._revoked = revoked
        self._assigned = assigned

    async def on_partitions_revoked(self, _: Collection[TopicPartition]) -> None:
        await self._revoked()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._assigned([source.partition for source in assigned])


def record_of(record: Any) -> Record:
    """Return what a consumer of aiokafka has read, as a value of ours."""
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
    )
