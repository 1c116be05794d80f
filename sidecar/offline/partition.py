"""One owned partition: it is opened, commits every tick, and is opened anew after anything unclear."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from sidecar.core.errors import SidecarError
from sidecar.offline.commits import Commits, Opening
from sidecar.offline.intake import Intake
from sidecar.offline.kafka_errors import FencedError, RecordRefusedError, cause_of
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.owned_partition import LaneStats, OwnedPartition
from sidecar.offline.pauses import Pauses, wait
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)


class Openings(Protocol):
    """What a partition needs of Kafka (`KafkaLog`)."""

    def seek(self, partition: int, offset: int) -> None: ...
    async def open(self, partition: int) -> Opening: ...


class Partitions:
    """Serves owned partitions, one task each. A failure waits and says why; it concerns its own partition alone."""

    def __init__(
        self, settings: OfflineSettings, stats: LaneStats, commits: Commits, intake: Intake, pauses: Pauses
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._commits = commits
        self._intake = intake
        self._pauses = pauses
        self._openings = 0

    async def serve(self, source: Openings, owned_partition: OwnedPartition, before: asyncio.Task[None] | None) -> None:
        """Commits until the partition is lost. `before` is the task that served it until now."""
        if before is not None and not before.done():
            await asyncio.wait([before])  # never two of one partition
        owned_partition.failures = 0
        while not owned_partition.leaving.is_set():
            opening, cause = None, Cause.NONE
            try:
                opening = await source.open(owned_partition.number)
                self._begin(source, owned_partition, opening)
                await self._ticks(owned_partition, opening)
            except RecordRefusedError as error:
                self._stats.reopens += 1
                log.debug("partition %d is opened anew: %s", owned_partition.number, error)
                cause = Cause.RECORD_REFUSED
                if owned_partition.stated.now.phase is Phase.WAITING:  # else the record is looked for at once
                    owned_partition.failures += 1
            except SidecarError as error:
                owned_partition.failures, cause = owned_partition.failures + 1, cause_of(error)
                self._stats.reopens += opening is not None
                self._stats.fenced += isinstance(error, FencedError)
                owned_partition.stated.become(Phase.WAITING, cause, str(error))
            finally:
                owned_partition.progress = None
                if opening is not None:
                    await opening.close()
            await self._pauses.until(owned_partition.leaving, owned_partition.failures, cause)

    def _begin(self, source: Openings, owned_partition: OwnedPartition, opening: Opening) -> None:
        """The partition is ready. Nothing here may wait: a record delivered in between would belong to neither
        opening."""
        if opening.state is None:
            raise AssertionError("an opening without a state")
        source.seek(owned_partition.number, opening.state.watermark)
        self._openings += 1
        owned_partition.tallies, owned_partition.bytes_max = opening.tallies, opening.bytes_max
        owned_partition.begin(opening.state, self._openings, self._settings)
        self._intake.wake.set()

    async def _ticks(self, owned_partition: OwnedPartition, opening: Opening) -> None:
        """Commits until the partition is lost, or the opening must be replaced. Raises LogError: the outcome is
        unknown."""
        while True:
            await self._commits.commit(owned_partition, opening)
            owned_partition.failures = 0
            self._run_alone(owned_partition)
            self._intake.wake.set()
            if opening.tainted:
                self._stats.reopens += 1
                return
            if owned_partition.broken is not None:
                raise owned_partition.broken
            if owned_partition.leaving.is_set():
                return
            await wait(owned_partition.wake, self._settings.tick_s)
            owned_partition.wake.clear()

    def _run_alone(self, owned_partition: OwnedPartition) -> None:
        """The item that has to run alone runs, once that is committed."""
        if (
            owned_partition.held is None
            or owned_partition.progress is None
            or owned_partition.progress.committed.suspect != owned_partition.held.offset
        ):
            return
        record, owned_partition.held = owned_partition.held, None
        self._intake.start(owned_partition, record)
