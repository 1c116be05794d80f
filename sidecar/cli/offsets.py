"""`sidecar offsets show | decode | reset`: what is committed, with the gaps that Kafka's own tools hide."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    InvalidProducerEpoch,
    KafkaError,
    ProducerFenced,
    UnknownError,
)
from aiokafka.structs import OffsetAndMetadata

from sidecar.core.errors import SettingsError, SidecarError
from sidecar.offline.committed_offsets import committed_offsets
from sidecar.offline.kafka_options import client_options
from sidecar.offline.kafka_topics import require_topic
from sidecar.offline.offsets import Committed, OffsetsError
from sidecar.settings.offline import OfflineSettings

WRITE_TRIES = 20
SEEN_TRIES, SEEN_AGAIN_S = 50, 0.1  # the end of a transaction is in the log within milliseconds, on an idle broker


class GroupActiveError(SidecarError):
    """Offsets are reset only where no sidecar of the group works from them: it would go on from what it knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionPlace:
    """One partition: what is committed (None = nothing that is ours), and where its log begins and ends."""

    partition: int
    committed: Committed | None
    begin: int
    end: int
    offset: int | None = None  # as committed; None = nothing
    problem: str = ""  # why no sidecar can work from it

    @property
    def done_above(self) -> int:
        """Items above the watermark that are done already: what a plain lag counts as open."""
        if self.committed is None:
            return 0
        return self.committed.high - self.committed.watermark - len(self.committed.gaps)


async def show(settings: OfflineSettings) -> list[PartitionPlace]:
    """Every partition of the requests topic. Raises LogError if it is not there, KafkaError."""
    consumer = AIOKafkaConsumer(**client_options(settings), isolation_level="read_committed")
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await consumer.start()
        await require_topic(admin._client, settings.requests_topic)
        topic = (await admin.describe_topics([settings.requests_topic]))[0]
        sources = [TopicPartition(settings.requests_topic, each["partition"]) for each in topic["partitions"]]
        offsets = await _committed_offsets(admin, settings.group, sources)
        begins, ends = await consumer.beginning_offsets(sources), await consumer.end_offsets(sources)
        return [_place(source.partition, offsets[source], begins[source], ends[source]) for source in sorted(sources)]
    finally:
        await consumer.stop()
        await admin.close()


async def reset(settings: OfflineSettings, to: str, partitions: Sequence[int] = ()) -> dict[int, int]:
    """The group begins at `to` (earliest, latest, an offset) in these partitions (none = all), without gaps.

    What lies above and is done already will be done again. Written through each partition's transactional id, so that
    a sidecar which still runs is fenced. Raises GroupActiveError if the group has members and one of them may work from
    what is committed. A partition from which none can (no offset, a lost position, metadata that are not ours) is reset
    under their eyes: they look again by themselves.
    """
    places = {each.partition: each for each in await show(settings)}
    _check(settings, places, to, partitions)
    if any(not each.problem for each in places.values() if not partitions or each.partition in partitions):
        await _refuse_if_active(settings)
    targets = {
        number: place.begin if to == "earliest" else place.end if to == "latest" else int(to)
        for number, place in places.items()
        if not partitions or number in partitions
    }
    for number, offset in targets.items():
        await _write(settings, number, offset)
    await _until_seen(settings, places, targets)
    return targets


async def _until_seen(
    settings: OfflineSettings, before: Mapping[int, PartitionPlace], targets: Mapping[int, int]
) -> None:
    """Who asks now is told what was written: the broker answers before the end of a transaction is in its log."""
    for _ in range(SEEN_TRIES):
        now = {each.partition: each for each in await show(settings)}
        if all(now[each].offset != before[each].offset or before[each].offset == to for each, to in targets.items()):
            return
        await asyncio.sleep(SEEN_AGAIN_S)


def _check(settings: OfflineSettings, places: Mapping[int, PartitionPlace], to: str, partitions: Sequence[int]) -> None:
    """Raise SettingsError, before anything is written, for a partition that is not there, or an offset outside its log.

    From outside no sidecar could work: the group's position would be lost.
    """
    for number in partitions:
        if number not in places:
            raise SettingsError(f"--partition {number}: {settings.requests_topic} has 0..{max(places)}")
    for number in partitions or places:
        place = places[number]
        if to not in ("earliest", "latest") and not place.begin <= int(to) <= place.end:
            raise SettingsError(f"--to {to}: partition {number} holds {place.begin} to {place.end}")


async def _write(settings: OfflineSettings, partition: int, offset: int) -> None:
    """The group is at this offset. A sidecar that looks at the partition at the same moment fences us: then again."""
    source = TopicPartition(settings.requests_topic, partition)
    for tries_left in reversed(range(WRITE_TRIES)):
        producer = AIOKafkaProducer(
            **client_options(settings),
            transactional_id=f"sidecar.{settings.group}.{settings.requests_topic}.{partition}",
        )
        try:
            async with producer, producer.transaction():
                await producer.send_offsets_to_transaction({source: OffsetAndMetadata(offset, "")}, settings.group)
            return
        except KafkaError as error:
            if not tries_left or not _met_another(error):
                raise


def _met_another(error: KafkaError) -> bool:
    """True if another user of the transactional id may be why.

    Where the end of a transaction met the beginning of the next one, Kafka 4.2 answered that it does not know why.
    """
    return isinstance(error, ProducerFenced | InvalidProducerEpoch) or isinstance(error.__cause__, UnknownError)


async def _refuse_if_active(settings: OfflineSettings) -> None:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        group = (await admin.describe_consumer_groups([settings.group]))[0].to_object()["groups"][0]
    finally:
        await admin.close()
    if group["members"]:
        raise GroupActiveError(f"group {settings.group} has {len(group['members'])} members; stop them first")


async def _committed_offsets(admin: AIOKafkaAdminClient, group: str, sources: list[TopicPartition]) -> Any:
    """What is committed; a fresh cluster makes its offsets topic when it is first asked for a coordinator."""
    for wait_s in (0.2, 0.5, 1.0, 2.0):
        try:
            return await committed_offsets(admin, group, sources)
        except GroupCoordinatorNotAvailableError:
            await asyncio.sleep(wait_s)
    return await committed_offsets(admin, group, sources)


def _place(partition: int, found: OffsetAndMetadata, begin: int, end: int) -> PartitionPlace:
    place = PartitionPlace(partition=partition, committed=None, begin=begin, end=end)
    if found.offset < 0:
        return replace(place, problem="the group has no offset here")
    place = replace(place, offset=found.offset)
    try:
        place = replace(place, committed=Committed.decode(found.offset, found.metadata))
    except OffsetsError as error:
        return replace(place, problem=str(error))
    if not begin <= found.offset <= end:
        return replace(place, problem=f"the log holds {begin} to {end}")
    if place.committed is not None and place.committed.high > end:
        return replace(
            place, problem=f"items up to {place.committed.high} are done, and the log holds {begin} to {end}"
        )
    return place
