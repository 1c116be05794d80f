"""What this process holds of one partition: what is committed, what runs, what waits for the next commit; and
counts."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sidecar.offline.item import Record
from sidecar.offline.job_progress import JobKey, JobTally, job_of
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane_state import LaneState, Stated
from sidecar.offline.offsets import Committed, PartitionOffsets
from sidecar.offline.refusals import Refusals
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.tracing import ItemTrace

SOLO_DEATHS = 2  # unclean ends while one item ran alone, before it is taken for the culprit


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedItem:
    """An item whose result (or dead letter) waits for the next commit. Times in seconds of the lane's clock."""

    record: Record
    outgoing: Outgoing
    outcome: str  # done, dlq, expired or cancelled
    reason: str  # "" for done
    retries: int
    output_tokens: int
    taken_s: float
    trace: ItemTrace | None = None  # None without tracing
    prompt_tokens: int = 0  # of a result


@dataclass(slots=True)
class LaneStats:
    """What happened since the process began; counters only grow."""

    consumed: int = 0
    executions: int = 0  # calls of the engine; more than results if work was lost in a crash
    items: Counter[tuple[str, str]] = field(default_factory=Counter)  # (outcome, reason); committed ones only
    retried: int = 0
    output_tokens: int = 0  # of committed results
    commits: int = 0
    reopens: int = 0
    fenced: int = 0
    rebalances: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionView:
    """One partition, for gauges and the status page. Offsets; `end` is as old as the last look, some seconds.

    What is not known is None: `watermark` and `gaps` before the first opening, `end` while no broker tells it.
    """

    partition: int
    state: LaneState
    ready: bool
    watermark: int | None
    position: int
    gaps: int | None
    end: int | None
    in_flight: int
    finished: int
    bytes_held: int  # of taken items and of results that are not committed
    oldest_ms: int | None  # record timestamp of the oldest taken item that is not committed

    @property
    def lag(self) -> int | None:
        """Offsets between the watermark and the log's end, or None if one of them is not known."""
        return None if self.watermark is None or self.end is None else max(self.end - self.watermark, 0)


@dataclass(slots=True)
class OwnedPartition:
    """One assigned partition. `taken` items survive a new opening: running, or finished and not yet committed."""

    number: int
    stated: Stated
    progress: PartitionOffsets | None = None  # None: not ready, nothing may be taken or committed
    committed: Committed | None = None  # when last known; None before the first opening
    opening: int = 0  # a record fetched under another one is not taken
    backlog: deque[Record] = field(default_factory=deque)  # fetched, and not yet taken for want of room
    astray: bool = False  # the consumer's position is not where `progress` expects it: seek before the next fetch
    taken: dict[int, Record] = field(default_factory=dict)
    jobs: Counter[JobKey | None] = field(default_factory=Counter)  # of `taken`; never a count of 0
    tallies: dict[JobKey, JobTally] = field(default_factory=dict)  # what is committed on the progress topic
    running: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    finished: dict[int, FinishedItem] = field(default_factory=dict)
    bytes_held: int = 0  # of `taken`, and of what is finished
    bytes_max: Mapping[str, int] = field(default_factory=dict)  # that each topic takes, where it is known
    refusals: Refusals = field(default_factory=Refusals)
    failures: int = 0  # of openings in a row, none of which committed anything
    broken: LogError | None = None  # what the intake found: the partition has to be opened anew
    server: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # commit now
    leaving: asyncio.Event = field(default_factory=asyncio.Event)  # revoked or closing: one last commit
    counted: bool = False  # this assignment is counted in the committed restarts; before that nothing runs
    solo_until: int = 0  # below it items run one at a time, to find the one that kills the process
    held: Record | None = None  # runs once the fact that it runs alone is committed
    end: int = 0  # of the log, when last asked
    end_known: bool = False  # False while no broker tells it
    fetched_s: float = 0.0  # when something was last fetched, or nothing was left to fetch

    @property
    def solo(self) -> bool:
        """True while items run one at a time."""
        return self.progress is not None and self.progress.expected < self.solo_until

    def room(self, settings: OfflineSettings) -> int:
        """Return how many more records may be taken."""
        if self.progress is None or not self.counted or self.leaving.is_set():
            return 0
        if self.bytes_held >= settings.pending_bytes_max or self.broken is not None:
            return 0
        if self.solo:
            return 0 if self.progress.pending else 1
        return max(0, self.progress.room(settings.pending_max, settings.span_max))

    def unread(self, job: JobKey) -> int:
        """Records of the partition that were not taken yet, if all that were are of this job: so these probably are."""
        if self.progress is None or self.jobs.keys() != {job}:
            return 0
        return max(self.end - self.progress.expected, 0)

    def leave(self) -> None:
        """One last commit, then this process has nothing to do with the partition."""
        self.leaving.set()
        self.wake.set()

    def take(self, record: Record) -> None:
        """The record is ours until it is committed or let go."""
        self.taken[record.offset] = record
        self.jobs[job_of(record)] += 1
        self.bytes_held += _bytes(record)

    def finish(self, offset: int, finished: FinishedItem) -> None:
        """A taken item waits for the next commit, in place of what waited for it before."""
        before = self.finished.get(offset)
        self.bytes_held += finished.outgoing.size - (before.outgoing.size if before is not None else 0)
        self.finished[offset] = finished

    def let_go(self, offset: int) -> None:
        """The item is committed, or somebody else's: if it runs it is cancelled, what it gave is forgotten."""
        record = self.taken.pop(offset, None)
        if record is None:
            return
        self.bytes_held -= _bytes(record)
        self.jobs[key := job_of(record)] -= 1
        if not self.jobs[key]:
            del self.jobs[key]
        if (finished := self.finished.pop(offset, None)) is not None:
            self.bytes_held -= finished.outgoing.size
        self.refusals.forget(offset)
        task = self.running.pop(offset, None)
        if task is not None:
            task.cancel()

    def begin(self, committed: Committed, opening: int, settings: OfflineSettings) -> None:
        """The owned partition agrees with what is committed under this opening, and is ready."""
        for offset in [offset for offset in self.taken if committed.is_done(offset)]:
            self.let_go(offset)
        self.backlog.clear()
        self.astray = False
        self.broken = None
        if self.held is not None:
            self.let_go(self.held.offset)
            self.held = None
        self.opening = opening
        self.progress = PartitionOffsets(committed)
        self.committed = committed
        if committed.restarts >= settings.poison_restarts:
            self.solo_until = committed.high + settings.pending_max  # nothing beyond it can have been taken

    def install(self, progress: PartitionOffsets, committed: Committed) -> None:
        """This is committed now."""
        progress.install(committed)
        self.committed = committed

    def committable(self, progress: PartitionOffsets) -> dict[int, FinishedItem]:
        """Return what is finished and was delivered under this opening; a result from before waits for its record."""
        return {offset: done for offset, done in self.finished.items() if offset in progress.pending}

    def marked(self, state: Committed, settings: OfflineSettings) -> Committed:
        """The state with what finds a poison item: how often an owner ended uncleanly, and who ran alone then."""
        if self.leaving.is_set():
            return replace(state, restarts=0, suspect=None)
        if not self.counted:
            state = replace(state, restarts=state.restarts + 1)
        if self.held is None or self.held.offset == state.suspect:
            return state
        return replace(state, restarts=settings.poison_restarts, suspect=self.held.offset)

    def is_culprit(self, offset: int, settings: OfflineSettings) -> bool:
        """True if the process ended often enough while this item ran alone."""
        committed = self.progress.committed if self.progress is not None else None
        if committed is None or committed.suspect != offset:
            return False
        return committed.restarts >= settings.poison_restarts + SOLO_DEATHS

    def view(self) -> PartitionView:
        """The owned partition in numbers."""
        stamps = [record.timestamp_ms for record in self.taken.values() if record.timestamp_ms >= 0]
        return PartitionView(
            partition=self.number,
            state=self.stated.now,
            ready=self.progress is not None,
            watermark=None if self.committed is None else self.committed.watermark,
            position=self.progress.expected if self.progress else 0,
            gaps=None if self.committed is None else len(self.committed.gaps),
            end=self.end if self.end_known else None,
            in_flight=len(self.running),
            finished=len(self.finished),
            bytes_held=self.bytes_held,
            oldest_ms=min(stamps, default=None),
        )


def _bytes(record: Record) -> int:
    """Return what a taken record holds in memory: its value, its key and its headers."""
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.value or b"") + len(record.key or b"") + headers
