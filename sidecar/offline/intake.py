"""Items from the log into their partitions' shares, as far as there is room, and one task per item that runs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Record
from sidecar.offline.kafka_errors import LogError, PositionLostError
from sidecar.offline.owned_partition import SOLO_DEATHS, LaneStats, Share
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
    """Takes items for `shares`, which it shares with the lane; what was taken runs on through any number of `run`s."""

    def __init__(
        self,
        settings: OfflineSettings,
        runs: ItemRuns,
        spans: KafkaSpans,
        stats: LaneStats,
        *,
        shares: Mapping[int, Share],
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
        self._shares = shares
        self._clock = clock
        self._on_trouble = on_trouble

    async def run(self, source: Source, items: asyncio.TaskGroup, closing: asyncio.Event) -> None:
        """Takes from `source` until `closing`; each item is a task of `items`."""
        self._source, self._items = source, items
        while not closing.is_set():
            self.wake.clear()
            shares = {} if self.stopping else self._with_room()
            if not shares:
                await wait(self.wake, FETCH_WAIT_S)
                continue
            try:
                await self._fetch(shares)
                self._on_trouble(None)
            except PositionLostError as error:
                self._break(shares, error)
            except LogError as error:  # the watchdog ends the session if this lasts
                self._on_trouble(error)
                await wait(closing, FETCH_WAIT_S)

    def start(self, share: Share, record: Record) -> None:
        """The item runs; its result is left in the share."""
        task = self._items.create_task(self._run_item(share, record), name=record.source)
        share.running[record.offset] = task
        task.add_done_callback(lambda _: self.wake.set())

    def _break(self, shares: Mapping[int, Share], error: PositionLostError) -> None:
        """These partitions, or all that were asked for, have to be opened anew; the others go on."""
        for number, share in shares.items():
            if not error.partitions or number in error.partitions:
                share.broken = error
                share.wake.set()

    async def _fetch(self, shares: Mapping[int, Share]) -> None:
        openings = {number: share.opening for number, share in shares.items()}
        records_max = max(share.room(self._settings) for share in shares.values())
        begun_s = self._clock()
        try:
            records = await self._source.fetch(shares, records_max, FETCH_WAIT_S)
        except LogError:
            for each in shares.values():
                each.astray = True  # aiokafka moves past what it found before it failed, and forgets that
            raise
        self._spans.polled(begun_s, len(records))
        self._stats.consumed += len(records)
        # The consumer's positions are past these records: whatever fails below, none may be forgotten, or the next one
        # would come after a gap, and a gap counts as passed over by the broker. So all are kept before anything waits.
        kept = []
        for number, opening in openings.items():
            share = self._shares.get(number)
            if share is None or share.progress is None:
                continue  # whoever opens it next seeks
            if share.opening != opening:
                share.astray = True  # opened anew while we waited: they may be from before its seek, or its first
                continue
            share.backlog.extend(record for record in records if record.partition == number)
            kept.append(share)
        for share in kept:
            await self._advance(share, openings[share.number])

    def _with_room(self) -> dict[int, Share]:
        """The shares that have room and nothing left to take."""
        return {n: share for n, share in self._shares.items() if self._take(share) > 0 and self._on_course(share)}

    def _on_course(self, share: Share) -> bool:
        """True if the consumer's position is where the share expects it; False if it cannot be put there now."""
        if share.astray and share.progress is not None:
            try:
                self._source.seek(share.number, share.progress.expected)
            except LogError:
                return False  # not assigned at this moment
            share.astray = False
        return True

    async def _advance(self, share: Share, opening: int) -> None:
        """Takes what has room, and learns from the consumer's position what the broker passed over."""
        self._take(share)
        if share.backlog or share.progress is None:
            return
        position = await self._source.position(share.number)
        if share.opening == opening and share.progress is not None and not share.backlog:
            if position > share.progress.expected or position >= share.end:
                share.fetched_s = self._clock()
            share.progress.skip_to(position)

    def _take(self, share: Share) -> int:
        """Items of the backlog run as far as there is room; the room that is left, 0 while the backlog is not empty."""
        while share.backlog and share.room(self._settings) > 0 and share.progress is not None:
            record = share.backlog.popleft()
            share.fetched_s = self._clock()
            if share.progress.deliver(record.offset):
                self._admit(share, record)
        return 0 if share.backlog else share.room(self._settings)

    def _admit(self, share: Share, record: Record) -> None:
        if record.offset in share.taken:
            return  # it was in flight when the partition was opened anew
        share.take(record)
        if not share.solo:
            self.start(share, record)
        elif share.is_culprit(record.offset, self._settings):
            message = f"the process ended {SOLO_DEATHS} times while this item ran alone"
            share.finish(record.offset, self._runs.dead(record, DeadItemError(DeadReason.POISON, message), "run"))
        else:
            share.held = record
            share.wake.set()

    async def _run_item(self, share: Share, record: Record) -> None:
        """Leaves a Finished in the share, unless cancelled: then the item is somebody else's, or the next start's."""
        finished = await self._runs.run(record)
        if share.running.get(record.offset) is asyncio.current_task():
            del share.running[record.offset]
            share.finish(record.offset, finished)
            full = share.bytes_held >= self._settings.pending_bytes_max
            if full or len(share.finished) >= self._settings.results_per_commit:
                share.wake.set()
