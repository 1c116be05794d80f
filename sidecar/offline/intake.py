"""Takes items from the log into the owned partitions, as far as there is room, and runs each in a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Record
from sidecar.offline.kafka_errors import LogError, PositionLostError
from sidecar.offline.owned_partition import SOLO_DEATHS, LaneStats, OwnedPartition
from sidecar.offline.pauses import wait
from sidecar.offline.runner import ItemRuns
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)
FETCH_WAIT_S = 0.2


class Source(Protocol):
    """What the intake needs of Kafka (`KafkaLog`)."""

    def seek(self, partition: int, offset: int) -> None: ...
    async def fetch(self, partitions: Iterable[int], records_max: int, wait_s: float) -> list[Record]: ...
    async def position(self, partition: int) -> int: ...


class Intake:
    """Takes items for `owned_partitions`, which it shares with the lane; what was taken runs on through any number of
    `run`s."""

    def __init__(
        self,
        settings: OfflineSettings,
        runs: ItemRuns,
        spans: KafkaSpans,
        stats: LaneStats,
        *,
        owned_partitions: Mapping[int, OwnedPartition],
        clock: Callable[[], float],
        on_trouble: Callable[[LogError | None], None],
    ) -> None:
        """`on_trouble` hears why nothing can be fetched, and None once something could."""
        self.wake = asyncio.Event()
        self.stopping = False  # nothing more is taken
        self._settings = settings
        self._runs = runs
        self._spans = spans
        self._stats = stats
        self._owned_partitions = owned_partitions
        self._clock = clock
        self._on_trouble = on_trouble

    async def run(self, source: Source, items: asyncio.TaskGroup, closing: asyncio.Event) -> None:
        """Takes from `source` until `closing`; each item is a task of `items`."""
        self._source, self._items = source, items
        while not closing.is_set():
            self.wake.clear()
            owned_partitions = {} if self.stopping else self._with_room()
            if not owned_partitions:
                await wait(self.wake, FETCH_WAIT_S)
                continue
            try:
                await self._fetch(owned_partitions)
                self._on_trouble(None)
            except PositionLostError as error:
                self._break(owned_partitions, error)
            except LogError as error:  # the watchdog ends the session if this lasts
                self._on_trouble(error)
                await wait(closing, FETCH_WAIT_S)

    def start(self, owned_partition: OwnedPartition, record: Record) -> None:
        """The item runs; its result is left in the owned partition."""
        task = self._items.create_task(self._run_item(owned_partition, record), name=record.source)
        owned_partition.running[record.offset] = task
        task.add_done_callback(lambda _: self.wake.set())

    def _break(self, owned_partitions: Mapping[int, OwnedPartition], error: PositionLostError) -> None:
        """These partitions, or all that were asked for, have to be opened anew; the others go on."""
        for number, owned_partition in owned_partitions.items():
            if not error.partitions or number in error.partitions:
                owned_partition.broken = error
                owned_partition.wake.set()

    async def _fetch(self, owned_partitions: Mapping[int, OwnedPartition]) -> None:
        openings = {number: owned_partition.opening for number, owned_partition in owned_partitions.items()}
        records_max = max(owned_partition.room(self._settings) for owned_partition in owned_partitions.values())
        begun_s = self._clock()
        try:
            records = await self._source.fetch(owned_partitions, records_max, FETCH_WAIT_S)
        except LogError:
            for each in owned_partitions.values():
                each.astray = True  # aiokafka moves past what it found before it failed, and forgets that
            raise
        self._spans.polled(begun_s, len(records))
        self._stats.consumed += len(records)
        # The consumer's positions are past these records: whatever fails below, none may be forgotten, or the next one
        # would come after a gap, and a gap counts as passed over by the broker. So all are kept before anything waits.
        kept = []
        for number, opening in openings.items():
            owned_partition = self._owned_partitions.get(number)
            if owned_partition is None or owned_partition.progress is None:
                continue  # whoever opens it next seeks
            if owned_partition.opening != opening:
                # The partition was opened anew while we waited: they may be from before its seek, or its first.
                owned_partition.astray = True
                continue
            owned_partition.backlog.extend(record for record in records if record.partition == number)
            kept.append(owned_partition)
        for owned_partition in kept:
            await self._advance(owned_partition, openings[owned_partition.number])

    def _with_room(self) -> dict[int, OwnedPartition]:
        """The owned partitions that have room and nothing left to take."""
        return {
            n: owned_partition
            for n, owned_partition in self._owned_partitions.items()
            if self._take(owned_partition) > 0 and self._on_course(owned_partition)
        }

    def _on_course(self, owned_partition: OwnedPartition) -> bool:
        """True if the consumer's position is where the partition expects it; False if it cannot be put there now."""
        if owned_partition.astray and owned_partition.progress is not None:
            try:
                self._source.seek(owned_partition.number, owned_partition.progress.expected)
            except LogError:
                return False  # not assigned at this moment
            owned_partition.astray = False
        return True

    async def _advance(self, owned_partition: OwnedPartition, opening: int) -> None:
        """Takes what has room, and learns from the consumer's position what the broker passed over."""
        self._take(owned_partition)
        if owned_partition.backlog or owned_partition.progress is None:
            return
        position = await self._source.position(owned_partition.number)
        if owned_partition.opening == opening and owned_partition.progress is not None and not owned_partition.backlog:
            if position > owned_partition.progress.expected or position >= owned_partition.end:
                owned_partition.fetched_s = self._clock()
            owned_partition.progress.skip_to(position)

    def _take(self, owned_partition: OwnedPartition) -> int:
        """Items of the backlog run as far as there is room; the room that is left, 0 while the backlog is not empty."""
        while (
            owned_partition.backlog
            and owned_partition.room(self._settings) > 0
            and owned_partition.progress is not None
        ):
            record = owned_partition.backlog.popleft()
            owned_partition.fetched_s = self._clock()
            if owned_partition.progress.deliver(record.offset):
                self._admit(owned_partition, record)
        return 0 if owned_partition.backlog else owned_partition.room(self._settings)

    def _admit(self, owned_partition: OwnedPartition, record: Record) -> None:
        if record.offset in owned_partition.taken:
            return  # it was in flight when the partition was opened anew
        owned_partition.take(record)
        if not owned_partition.solo:
            self.start(owned_partition, record)
        elif owned_partition.is_culprit(record.offset, self._settings):
            message = f"the process ended {SOLO_DEATHS} times while this item ran alone"
            owned_partition.finish(
                record.offset, self._runs.dead(record, DeadItemError(DeadReason.POISON, message), "run")
            )
        else:
            owned_partition.held = record
            owned_partition.wake.set()

    async def _run_item(self, owned_partition: OwnedPartition, record: Record) -> None:
        """Leaves a FinishedItem in the owned partition, unless cancelled: then the item is somebody else's, or the next
        start's."""
        finished = await self._runs.run(record)
        if owned_partition.running.get(record.offset) is asyncio.current_task():
            del owned_partition.running[record.offset]
            owned_partition.finish(record.offset, finished)
            full = owned_partition.bytes_held >= self._settings.pending_bytes_max
            if full or len(owned_partition.finished) >= self._settings.results_per_commit:
                owned_partition.wake.set()
