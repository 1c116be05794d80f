"""The commit of one partition's tick: what is finished becomes one transaction, and what a topic refuses is found.

A record that its topic will not take would hold up its partition for ever. Where the topic's limit is known such a
record is never sent; where it is not, `refusals.py` finds it, and here it becomes a dead letter, whole, shortened, or
of its reason alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from sidecar.core.snapshot import JobSnapshot
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.job_progress import ItemEnd, JobKey, JobTally, Outlook, counted, encoded, job_of, outlook
from sidecar.offline.kafka_errors import RecordRefusedError
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.offsets import Committed, PartitionOffsets
from sidecar.offline.owned_partition import FinishedItem, LaneStats, OwnedPartition
from sidecar.offline.receipts import outcome_digest
from sidecar.offline.refusals import WrittenForm
from sidecar.offline.runner import ItemRuns
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)
COMMIT_BYTES = 16 << 20  # of one transaction, one record aside: it has to be sent within call_timeout_s
WHOSE = frozenset(("x-tenant", "x-job", "x-line", "x-retry"))  # the item's headers that its job's counts need
NAME_BYTES = 512
OWN_HEADER_BYTES = 1024  # of one of our headers in the shortest dead letter
UNKNOWN_BYTES_MAX = 64 << 10  # that a shortened dead letter may have where the topic's limit is not known


class Opening(Protocol):
    """One life of a partition's transactional id (`KafkaOpening`)."""

    tainted: bool
    state: Committed | None
    tallies: dict[JobKey, JobTally]
    bytes_max: Mapping[str, int]

    async def commit(self, records: Sequence[Outgoing], state: Committed) -> None: ...
    async def close(self) -> None: ...


class Commits:
    """Commits for owned partitions, and counts what is committed. `owned_partitions` are all of the lane's: a job lies
    on several."""

    def __init__(
        self,
        settings: OfflineSettings,
        runs: ItemRuns,
        spans: KafkaSpans,
        stats: LaneStats,
        *,
        owned_partitions: Mapping[int, OwnedPartition],
        jobs: Callable[[str, str], Iterable[JobSnapshot]],
        on_committed: Callable[[FinishedItem], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._runs = runs
        self._spans = spans
        self._stats = stats
        self._owned_partitions = owned_partitions
        self._jobs = jobs
        self._on_committed = on_committed
        self._clock = clock

    async def commit(self, owned_partition: OwnedPartition, opening: Opening) -> None:
        """What is finished is committed, as far as one transaction goes; `wake` is set if another should follow.

        Raises LogError: the outcome is unknown, or, RecordRefusedError, nothing is committed.
        """
        progress = owned_partition.progress
        if progress is None:
            raise AssertionError("a commit without an opening")
        batch = self._batch(owned_partition, progress)
        state = owned_partition.marked(progress.after(batch), self._settings)
        tallies, told = self._told(owned_partition, batch.values())
        if state != progress.committed or told:
            with self._spans.committing(owned_partition.number, batch.values()):
                try:
                    await opening.commit([*(done.outgoing for done in batch.values()), *told], state)
                except RecordRefusedError as error:
                    self._refused(owned_partition, batch, error)
                    raise
            owned_partition.install(progress, state)
            owned_partition.tallies |= tallies
            self._stats.commits += 1
        owned_partition.counted = True
        owned_partition.refusals.passed(batch)
        for offset, done in batch.items():
            owned_partition.let_go(offset)
            self._count(done)
        if not owned_partition.refusals.held:
            owned_partition.stated.become(Phase.RUNNING)
        if batch and owned_partition.refusals.waits(owned_partition.committable(progress), self._clock()):
            owned_partition.wake.set()  # only after one that did something, or an empty one would follow without end

    def _batch(self, owned_partition: OwnedPartition, progress: PartitionOffsets) -> dict[int, FinishedItem]:
        """Return what goes into this transaction; whatever its topic certainly refuses was changed before."""
        ready = owned_partition.committable(progress)
        for offset in ready:
            self._fit(owned_partition, offset)
        ready = owned_partition.committable(progress)
        sizes = {offset: done.outgoing.size for offset, done in ready.items()}
        return {each: ready[each] for each in owned_partition.refusals.choose(sizes, COMMIT_BYTES, self._clock())}

    def _fit(self, owned_partition: OwnedPartition, offset: int) -> None:
        """The finished item is one that its topic takes, as far as the topic's limit is known."""
        while offset not in owned_partition.refusals.held:
            done = owned_partition.finished[offset]
            limit = owned_partition.bytes_max.get(done.outgoing.topic)
            if limit is None or done.outgoing.fits(limit, self._settings.compression):
                return
            self._change(owned_partition, offset, f"takes at most {limit} bytes in a batch", too_large=True)

    def _refused(
        self, owned_partition: OwnedPartition, batch: Mapping[int, FinishedItem], error: RecordRefusedError
    ) -> None:
        """The one that is to blame is changed, or it is looked for in the next transactions."""
        offsets = list(batch)
        refused = [offsets[at] for at in error.indexes if at < len(offsets)]
        if not refused:  # what is told of jobs was refused: no item is to blame
            owned_partition.stated.become(Phase.WAITING, Cause.RECORD_REFUSED, str(error))
            return
        if owned_partition.refusals.refused(offsets, refused) is None:
            return
        [offset] = offsets
        self._change(owned_partition, offset, f"refused it ({error})", error.too_large)

    def _change(self, owned_partition: OwnedPartition, offset: int, why: str, too_large: bool) -> None:
        """A result that is refused becomes a dead letter, and a dead letter a shorter one, or one that waits."""
        done = owned_partition.finished[offset]
        outgoing = done.outgoing
        if outgoing.topic == self._settings.results_topic:
            reason = DeadReason.RESULT_TOO_LARGE if too_large else DeadReason.RESULT_REFUSED
            message = f"topic {outgoing.topic} {why}; the result has {outgoing.size} bytes"
            dead = self._runs.dead(
                done.record, DeadItemError(reason, message, done.retries + 1), "write", done.taken_s, done.trace
            )
            owned_partition.finish(offset, dead)
            return
        match owned_partition.refusals.shorter(offset, self._clock() + self._settings.look_again_s):
            case WrittenForm.CUT:
                limit = owned_partition.bytes_max.get(outgoing.topic, UNKNOWN_BYTES_MAX)
                owned_partition.finish(offset, replace(done, outgoing=_cut(done, limit)))
            case WrittenForm.BARE:
                owned_partition.finish(offset, replace(done, outgoing=_bare(done)))
            case _:
                owned_partition.stated.become(
                    Phase.DEGRADED,
                    Cause.RECORD_REFUSED,
                    f"topic {outgoing.topic} {why}: not even the shortest dead letter of offset {offset}, of "
                    f"{outgoing.size} bytes; the item waits",
                )

    def _told(
        self, owned_partition: OwnedPartition, batch: Collection[FinishedItem]
    ) -> tuple[dict[JobKey, JobTally], list[Outgoing]]:
        """The tallies that this commit changes, and the records that say so."""
        if not self._settings.progress_topic:
            return {}, []
        outlooks = {
            key: outlook(self._jobs(*key), key, sum(each.unread(key) for each in self._owned_partitions.values()))
            for key in owned_partition.jobs
            if key is not None
        }
        tallies = counted(owned_partition.tallies, map(_end, batch), outlooks)
        ending = Counter(job_of(done.record) for done in batch)
        told = []
        for job, tally in tallies.items():
            waiting = owned_partition.jobs[job] - ending[job] + owned_partition.unread(job)
            key, value = encoded(job, owned_partition.number, tally, waiting, outlooks.get(job, Outlook()))
            told.append(Outgoing(topic=self._settings.progress_topic, key=key, value=value, headers=()))
        return tallies, told

    def _count(self, done: FinishedItem) -> None:
        self._stats.items[done.outcome, done.reason] += 1
        self._stats.retried += done.retries
        self._stats.output_tokens += done.output_tokens
        self._on_committed(done)


def _end(done: FinishedItem) -> ItemEnd:
    """What the counts of its job have to know of an item, as it is written."""
    return ItemEnd(
        done.record,
        well=done.outcome == "done",
        cancelled=done.outcome == "cancelled",
        prompt_tokens=done.prompt_tokens,
        output_tokens=done.output_tokens,
        digest=outcome_digest(done.record.partition, done.record.offset, done.outgoing.value),
    )


def _cut(done: FinishedItem, bytes_max: int) -> Outgoing:
    """The dead letter with as much of its value as the topic takes, and all headers if they leave room for some."""
    value = done.record.value or b""
    whole = replace(done.outgoing, headers=(*done.outgoing.headers, ("dlq.truncated", str(len(value)).encode())))
    room = bytes_max - replace(whole, value=None).size
    return replace(whole, value=value[: max(room, 0)])


def _bare(done: FinishedItem) -> Outgoing:
    """The dead letter without key, value and most of the item's headers: whose it was, where, and why it ended."""
    names = [name for name, _ in done.record.headers]
    own = done.outgoing.headers[len(names) :] if _leads(done, names) else done.outgoing.headers
    kept = [each for each in done.record.headers if each[0].lower() in WHOSE and len(each[1] or b"") <= NAME_BYTES]
    headers = [(name, (value or b"")[:OWN_HEADER_BYTES]) for name, value in own if name.startswith("dlq.")]
    headers = [*kept[-len(WHOSE) :], *headers]
    return replace(done.outgoing, key=b"", value=b"", headers=tuple(headers))


def _leads(done: FinishedItem, names: list[str]) -> bool:
    return [name for name, _ in done.outgoing.headers[: len(names)]] == names
