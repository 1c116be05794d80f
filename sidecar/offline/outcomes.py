"""The newest results and dead letters of a partition, held against what the group coordinator says is committed.

An outcome is committed in the same transaction as the offset of its item. So the newest visible outcome is done in the
committed state, or the coordinator has forgotten that state. It can: Kafka 4.2.1 on one broker that was killed with
SIGKILL loaded its log only up to a record of two minutes before, at one restart after the other, and answered
with the offsets of then, although the log held the later ones. All items since would have run again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import takewhile

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from sidecar.offline.kafka_errors import LogError, PositionLostError, call, start_client
from sidecar.offline.kafka_options import client_options
from sidecar.offline.lane_state import Cause
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)
BLOCK = 16  # offsets of each topic that are read first; a transaction of one record takes two
STRANGE_MAX = 4096  # offsets without an outcome of this partition and group, after which nobody looks further back
SCAN_TIMEOUT_S = 120.0  # what was forgotten may be long; then the partition waits, and says so
GROUP, DEAD_GROUP = "x-source-group", "dlq.original.group"
RESULT_NAMES = ("x-source-topic", "x-source-partition", "x-source-offset", GROUP)
DEAD_NAMES = ("dlq.original.topic", "dlq.original.partition", "dlq.original.offset", DEAD_GROUP)


async def remembered(settings: OfflineSettings, partition: int, state: Committed) -> Committed:
    """Return `state`, with every offset done that has a visible outcome.

    Where the group has no offset at all, `state` is the beginning of the log. The partition's epoch must be won before,
    so that nobody else commits meanwhile. Without the right to read results or dead letters `state` is returned as it
    is, which is logged. Raises LogError, or PositionLostError where too many offsets between the outcomes have none, so
    that nobody knows what they are.
    """
    try:
        async with call(SCAN_TIMEOUT_S):
            found = await _outcomes(settings, partition, state)
    except LogError as error:
        if error.cause is not Cause.RIGHTS:
            raise
        log.warning("results and dead letters do not tell whether the broker forgot an offset: %s", error)
        return state
    if not found:
        return state
    whole = state.with_done(found)
    if len(whole.gaps) > settings.pending_max or len(whole.encode()) > settings.metadata_chars_max:
        raise PositionLostError(
            f"the broker says that partition {partition} of {settings.requests_topic} is done up to {state.watermark},"
            f" but {len(found)} later items have results, up to offset {max(found)}, and {len(whole.gaps)} offsets"
            f" between them have none: see `sidecar offsets reset`",
            (partition,),
        )
    log.warning(
        "partition %d: the broker forgot what was committed above %d: %d outcomes are newer, their items do not run"
        " again",
        partition, state.watermark, len(found),
    )  # fmt: skip
    return whole


async def _outcomes(settings: OfflineSettings, partition: int, state: Committed) -> frozenset[int]:
    """The offsets with a visible outcome that `state` does not call done."""
    consumer = AIOKafkaConsumer(
        **client_options(settings), isolation_level="read_committed", auto_offset_reset="earliest"
    )
    try:
        await start_client(consumer, consumer._client)
        found: set[int] = set()
        for topic, names in ((settings.results_topic, RESULT_NAMES), (settings.dead_letter_topic, DEAD_NAMES)):
            wanted = (settings.requests_topic, str(partition), settings.group)
            found |= await _newer(consumer, TopicPartition(topic, partition), names, wanted, state)
        return frozenset(found)
    finally:
        await consumer.stop()


async def _newer(
    consumer: AIOKafkaConsumer, place: TopicPartition, names: tuple[str, ...], wanted: tuple[str, ...], state: Committed
) -> set[int]:
    """Read `place` from its end backwards, up to the first outcome that is done in `state`.

    Outcomes before that one may be of a time before a person set the offset, and then their items are to run again.
    """
    consumer.assign([place])
    end = (await consumer.end_offsets([place]))[place]
    begin = (await consumer.beginning_offsets([place]))[place]
    found: set[int] = set()
    size, strange = BLOCK, 0
    while begin < end and strange < STRANGE_MAX:
        start = max(begin, end - size)
        offsets = list(sources(await _records(consumer, place, start, end), names, wanted))
        new = list(takewhile(lambda offset: not state.is_done(offset), reversed(offsets)))
        found.update(new)
        if len(new) < len(offsets):
            break
        strange = 0 if offsets else strange + end - start
        end, size = start, 4 * size
    return found


async def _records(consumer: AIOKafkaConsumer, place: TopicPartition, start: int, end: int) -> list[ConsumerRecord]:
    """The visible records of [start, end), without their values."""
    consumer.seek(place, start)
    records: list[ConsumerRecord] = []
    while await consumer.position(place) < end:
        for record in (await consumer.getmany(place, timeout_ms=200)).get(place, []):
            record.value = None  # may be long, and nobody needs it
            if record.offset < end:
                records.append(record)
    return records


def sources(records: Iterable[ConsumerRecord], names: tuple[str, ...], wanted: tuple[str, ...]) -> Iterable[int]:
    """The offsets of the items of these outcomes, where topic, partition and group are the `wanted` ones.

    The last header of a name counts: an item may bring headers of the same names with it.
    """
    topic, partition, offset, group = names
    for record in records:
        headers = dict(record.headers)
        stated = tuple((headers.get(name) or b"").decode(errors="replace") for name in (topic, partition, group))
        number = (headers.get(offset) or b"").decode(errors="replace")
        if stated == wanted and number.isascii() and number.isdecimal():
            yield int(number)
