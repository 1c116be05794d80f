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
from sidecar.offline.owned_partition import LaneStats, Share
from sidecar.offline.pauses import Pauses, wait
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)


class Openings(Protocol):
    """What a partition needs of Kafka (`KafkaLog`)."""

    def seek(self, partition: int, offset: int) -> None: ...
    async def open(self, partition: int) -> Opening: ...


class Partitions:
    """Serves shares, one task each. A failure waits and says why; it concerns its own partition alone."""

    def __init__(
        self, settings: OfflineSettings, stats: LaneStats, commits: Commits, intake: Intake, pauses: Pauses
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._commits = commits
        self._intake = intake
        self._pauses = pauses
        self._openings = 0

    async def serve(self, source: Openings, share: Share, before: asyncio.Task[None] | None) -> None:
        """Commits until the share leaves. `before` is the task that served it until now."""
        if before is not None and not before.done():
            await asyncio.wait([before])  # never two of one share
        share.failures = 0
        while not share.leaving.is_set():
            opening, cause = None, Cause.NONE
            try:
                opening = await source.open(share.number)
                self._begin(source, share, opening)
                await self._ticks(share, opening)
            except RecordRefusedError as error:
                self._stats.reopens += 1
                log.debug("partition %d is opened anew: %s", share.number, error)
                cause = Cause.RECORD_REFUSED
                if share.stated.now.phase is Phase.WAITING:  # else the record is looked for at once
                    share.failures += 1
            except SidecarError as error:
                share.failures, cause = share.failures + 1, cause_of(error)
                self._stats.reopens += opening is not None
                self._stats.fenced += isinstance(error, FencedError)
                share.stated.become(Phase.WAITING, cause, str(error))
            finally:
                share.progress = None
                if opening is not None:
                    await opening.close()
            await self._pauses.until(share.leaving, share.failures, cause)

    def _begin(self, source: Openings, share: Share, opening: Opening) -> None:
        """The share is ready. Nothing here may wait: a record delivered in between would belong to neither opening."""
        if opening.state is None:
            raise AssertionError("an opening without a state")
        source.seek(share.number, opening.state.watermark)
        self._openings += 1
        share.tallies, share.bytes_max = opening.tallies, opening.bytes_max
        share.begin(opening.state, self._openings, self._settings)
        self._intake.wake.set()

    async def _ticks(self, share: Share, opening: Opening) -> None:
        """Commits until the share leaves, or the opening must be replaced. Raises LogError: the outcome is unknown."""
        while True:
            await self._commits.commit(share, opening)
            share.failures = 0
            self._run_alone(share)
            self._intake.wake.set()
            if opening.tainted:
                self._stats.reopens += 1
                return
            if share.broken is not None:
                raise share.broken
            if share.leaving.is_set():
                return
            await wait(share.wake, self._settings.tick_s)
            share.wake.clear()

    def _run_alone(self, share: Share) -> None:
        """The item that has to run alone runs, once that is durable."""
        if share.held is None or share.progress is None or share.progress.durable.suspect != share.held.offset:
            return
        record, share.held = share.held, None
        self._intake.start(share, record)
