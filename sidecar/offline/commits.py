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
from sidecar.offline.job_progress import JobKey, Outlook, Tally, counted, encoded, job_of, outlook
from sidecar.offline.kafka_errors import RecordRefusedError
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.offsets import Committed, Progress
from sidecar.offline.owned_partition import Finished, LaneStats, Share
from sidecar.offline.refusals import Shape
from sidecar.offline.runner import ItemRuns
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)
COMMIT_BYTES = 16 << 20  # of one transaction, one record aside: it has to be sent within call_timeout_s
OWN_HEADER_BYTES = 1024  # of one of our headers in the shortest dead letter
UNKNOWN_BYTES_MAX = 64 << 10  # that a shortened dead letter may have where the topic's limit is not known


class Opening(Protocol):
    """One life of a partition's transactional id (`KafkaOpening`)."""

    tainted: bool
    state: Committed | None
    tallies: dict[JobKey, Tally]
    bytes_max: Mapping[str, int]

    async def commit(self, records: Sequence[Outgoing], state: Committed) -> None: ...
    async def close(self) -> None: ...


class Commits:
    """Commits shares, and counts what is durable. `shares` are all of the lane's: a job lies on several."""

    def __init__(
        self,
        settings: OfflineSettings,
        runs: ItemRuns,
        spans: KafkaSpans,
        stats: LaneStats,
        *,
        shares: Mapping[int, Share],
        jobs: Callable[[str, str], Iterable[JobSnapshot]],
        on_durable: Callable[[Finished], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._runs = runs
        self._spans = spans
        self._stats = stats
        self._shares = shares
        self._jobs = jobs
        self._on_durable = on_durable
        self._clock = clock

    async def commit(self, share: Share, opening: Opening) -> None:
        """What is finished is durable, as far as one transaction goes; `share.wake` is set if another should follow.

        Raises LogError: the outcome is unknown, or, RecordRefusedError, nothing is durable.
        """
        progress = share.progress
        if progress is None:
            raise AssertionError("a commit without an opening")
        batch = self._batch(share, progress)
        state = share.marked(progress.after(batch), self._settings)
        tallies, told = self._told(share, batch.values())
        if state != progress.durable or told:
            with self._spans.committing(share.number, batch.values()):
                try:
                    await opening.commit([*(done.outgoing for done in batch.values()), *told], state)
                except RecordRefusedError as error:
                    self._refused(share, batch, error)
                    raise
            share.install(progress, state)
            share.tallies |= tallies
            self._stats.commits += 1
        share.counted = True
        share.refusals.passed(batch)
        for offset, done in batch.items():
            share.let_go(offset)
            self._count(done)
        if not share.refusals.held:
            share.stated.become(Phase.RUNNING)
        if batch and share.refusals.waits(share.committable(progress), self._clock()):
            share.wake.set()  # only after one that did something, or an empty one would follow without end

    def _batch(self, share: Share, progress: Progress) -> dict[int, Finished]:
        """What goes into this transaction; whatever its topic certainly refuses was changed before."""
        ready = share.committable(progress)
        for offset in ready:
            self._fit(share, offset)
        ready = share.committable(progress)
        sizes = {offset: done.outgoing.size for offset, done in ready.items()}
        return {each: ready[each] for each in share.refusals.choose(sizes, COMMIT_BYTES, self._clock())}

    def _fit(self, share: Share, offset: int) -> None:
        """The finished item is one that its topic takes, as far as the topic's limit is known."""
        while offset not in share.refusals.held:
            done = share.finished[offset]
            limit = share.bytes_max.get(done.outgoing.topic)
            if limit is None or done.outgoing.fits(limit, self._settings.compression):
                return
            self._change(share, offset, f"takes at most {limit} bytes in a batch", too_large=True)

    def _refused(self, share: Share, batch: Mapping[int, Finished], error: RecordRefusedError) -> None:
        """The one that is to blame is changed, or it is looked for in the next transactions."""
        offsets = list(batch)
        refused = [offsets[at] for at in error.indexes if at < len(offsets)]
        if not refused:  # what is told of jobs was refused: no item is to blame
            share.stated.become(Phase.WAITING, Cause.RECORD_REFUSED, str(error))
            return
        if share.refusals.refused(offsets, refused) is None:
            return
        [offset] = offsets
        self._change(share, offset, f"refused it ({error})", error.too_large)

    def _change(self, share: Share, offset: int, why: str, too_large: bool) -> None:
        """A result that is refused becomes a dead letter, and a dead letter a shorter one, or one that waits."""
        done = share.finished[offset]
        outgoing = done.outgoing
        if outgoing.topic == self._settings.results_topic:
            reason = DeadReason.RESULT_TOO_LARGE if too_large else DeadReason.RESULT_REFUSED
            message = f"topic {outgoing.topic} {why}; the result has {outgoing.size} bytes"
            dead = self._runs.dead(
                done.record, DeadItemError(reason, message, done.retries + 1), "write", done.taken_s, done.trace
            )
            share.finish(offset, dead)
            return
        match share.refusals.shorter(offset, self._clock() + self._settings.look_again_s):
            case Shape.CUT:
                limit = share.bytes_max.get(outgoing.topic, UNKNOWN_BYTES_MAX)
                share.finish(offset, replace(done, outgoing=_cut(done, limit)))
            case Shape.BARE:
                share.finish(offset, replace(done, outgoing=_bare(done)))
            case _:
                share.stated.become(
                    Phase.DEGRADED,
                    Cause.RECORD_REFUSED,
                    f"topic {outgoing.topic} {why}: not even the shortest dead letter of offset {offset}, of "
                    f"{outgoing.size} bytes; the item waits",
                )

    def _told(self, share: Share, batch: Collection[Finished]) -> tuple[dict[JobKey, Tally], list[Outgoing]]:
        """The tallies that this commit changes, and the records that say so."""
        if not self._settings.progress_topic:
            return {}, []
        outlooks = {
            key: outlook(self._jobs(*key), key, sum(each.unread(key) for each in self._shares.values()))
            for key in share.jobs
            if key is not None
        }
        tallies = counted(share.tallies, ((done.record, done.outcome == "done") for done in batch), outlooks)
        ending = Counter(job_of(done.record) for done in batch)
        told = []
        for job, tally in tallies.items():
            waiting = share.jobs[job] - ending[job] + share.unread(job)
            key, value = encoded(job, share.number, tally, waiting, outlooks.get(job, Outlook()))
            told.append(Outgoing(topic=self._settings.progress_topic, key=key, value=value, headers=()))
        return tallies, told

    def _count(self, done: Finished) -> None:
        self._stats.items[done.outcome, done.reason] += 1
        self._stats.retried += done.retries
        self._stats.output_tokens += done.output_tokens
        self._on_durable(done)


def _cut(done: Finished, bytes_max: int) -> Outgoing:
    """The dead letter with as much of its value as the topic takes, and all headers if they leave room for some."""
    value = done.record.value or b""
    whole = replace(done.outgoing, headers=(*done.outgoing.headers, ("dlq.truncated", str(len(value)).encode())))
    room = bytes_max - replace(whole, value=None).size
    return replace(whole, value=value[: max(room, 0)])


def _bare(done: Finished) -> Outgoing:
    """The dead letter without key, value and the item's own headers: where it was, and why it ended."""
    names = [name for name, _ in done.record.headers]
    own = done.outgoing.headers[len(names) :] if _leads(done, names) else done.outgoing.headers
    headers = [(name, (value or b"")[:OWN_HEADER_BYTES]) for name, value in own if name.startswith("dlq.")]
    return replace(done.outgoing, key=b"", value=b"", headers=tuple(headers))


def _leads(done: Finished, names: list[str]) -> bool:
    return [name for name, _ in done.outgoing.headers[: len(names)]] == names
