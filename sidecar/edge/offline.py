"""The offline lane: items from Kafka, in any order through the engines, results back exactly once.

Per owned partition one task opens the partition (wins its epoch, then reads what is durable) and commits what is
finished every tick; one task for all takes items in, bounded per partition; one task per item runs it (`item_runs.py`)
and leaves its result in the partition's share. After any failed commit the partition is opened anew, and what
is durable says which of the finished results are still to be written. Work in flight survives that.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

from sidecar.core.errors import SidecarError
from sidecar.core.snapshot import JobSnapshot
from sidecar.edge.item_runs import Driver, ItemRuns
from sidecar.edge.items import DeadItemError, DeadReason, ItemRules, Record
from sidecar.edge.kafka_client import FencedError, KafkaLog, LogError, Outgoing
from sidecar.edge.kafka_settings import OfflineSettings
from sidecar.edge.kafka_spans import KafkaSpans
from sidecar.edge.offsets import Committed
from sidecar.edge.progress import JobKey, Outlook, Tally, counted, encoded, job_of, outlook
from sidecar.edge.routing import Aliases
from sidecar.edge.share import SOLO_DEATHS, Finished, LaneStats, Share, ShareView
from sidecar.edge.tokens import Tokens
from sidecar.edge.tracing import Tracing

log = logging.getLogger(__name__)

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # between openings of one partition, and between consumers
FETCH_WAIT_S = 0.2
WATCH_S = 2.0
DUPLICATE_ASSIGNMENTS = 6  # within one generation and this many seconds: two processes share an instance_id
DUPLICATE_WITHIN_S = 120.0


class Opening(Protocol):
    """One life of a partition's transactional id (`KafkaOpening`)."""

    tainted: bool
    state: Committed | None
    tallies: dict[JobKey, Tally]

    async def commit(self, records: Sequence[Outgoing], state: Committed) -> None: ...
    async def close(self) -> None: ...


class Log(Protocol):
    """What the lane needs of Kafka (`KafkaLog`)."""

    cluster_id: str

    @property
    def generation(self) -> int: ...
    async def start(self) -> None: ...
    def join(self) -> None: ...
    def check(self) -> None: ...
    async def stop(self) -> None: ...
    async def open(self, partition: int) -> Opening: ...
    def seek(self, partition: int, offset: int) -> None: ...
    async def fetch(self, partitions: Iterable[int], records_max: int, wait_s: float) -> list[Record]: ...
    async def position(self, partition: int) -> int: ...
    async def ends(self, partitions: Iterable[int]) -> dict[int, int]: ...


class StuckError(SidecarError):
    """The consumer does nothing although there is work: make it anew."""


class DuplicateInstanceError(SidecarError):
    """Two processes use one instance_id: they take the membership from each other for ever, without an error."""


class OfflineLane:
    """Runs until `drain` (or a cancel). `state` says in words how it is; `stats` and `shares` feed gauges."""

    def __init__(
        self,
        settings: OfflineSettings,
        driver: Driver,
        tokens: Tokens,
        tokens_max: Mapping[str, int],
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
        on_durable: Callable[[Finished], None] = lambda _: None,
        make_log: Callable[..., Log] = KafkaLog,
        tracing: Tracing | None = None,
        aliases: Aliases | None = None,
        jobs: Callable[[str, str], Iterable[JobSnapshot]] = lambda _tenant, _job: (),
    ) -> None:
        """`jobs` forecasts those of one name: `Scheduler.jobs_named`."""
        self.state = "starting"
        self.stats = LaneStats()
        self._settings = settings
        self._clock = clock
        self._random = random.Random(seed)
        self._on_durable = on_durable
        self._make_log = make_log
        self._jobs = jobs
        self._spans = KafkaSpans(settings, tracing, clock)
        rules = ItemRules.of(settings, tokens_max, aliases)
        self._runs = ItemRuns(settings, rules, driver, tokens, self._spans, self.stats, clock)
        self._shares: dict[int, Share] = {}
        self._servers: asyncio.TaskGroup | None = None  # of the session, if there is one
        self._intake_wake = asyncio.Event()
        self._draining = False
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()
        self._openings = 0
        self._failed_sessions = 0  # in a row
        self._unassigned_s: float | None = None  # since when the group owes us an assignment (an empty one is one)
        self._assignments: deque[tuple[float, int]] = deque(maxlen=DUPLICATE_ASSIGNMENTS)

    # -- what the rest of the sidecar calls

    async def run(self) -> None:
        """Returns after `drain`. Raises SettingsError, OffsetsError, DuplicateInstanceError: an operator has to act."""
        try:
            async with asyncio.TaskGroup() as self._items:
                try:
                    await self._sessions()
                finally:
                    for share in self._shares.values():
                        self._drop(share)
        except BaseExceptionGroup as group:
            raise _leaves(group)[0] from None
        finally:
            self._runs.close()
            self.state = "stopped"
            self._closed.set()

    async def drain(self, timeout_s: float) -> None:
        """No item is taken any more; what runs ends within `timeout_s` or is left; what is finished is durable."""
        self._draining = True
        self.state = "draining"
        running = [task for share in self._shares.values() for task in share.running.values()]
        if running:
            await asyncio.wait(running, timeout=timeout_s)
        self._closing.set()
        self._intake_wake.set()
        await self._leave_all()
        await self._closed.wait()

    def pause(self, model: str) -> None:
        """Items of this model wait before the scheduler: its offline queue is at its high mark."""
        self._runs.pause(model)

    def resume(self, model: str) -> None:
        """Items of this model may go on to the scheduler."""
        self._runs.resume(model)

    def shares(self) -> list[ShareView]:
        """The partitions assigned to this process, in order."""
        return [share.view() for _, share in sorted(self._shares.items())]

    # -- one consumer after the other

    async def _sessions(self) -> None:
        while not self._closing.is_set():
            kafka = self._make_log(self._settings, revoked=self._revoked, assigned=self._assigned)
            try:
                await kafka.start()
                self._spans.cluster_id = kafka.cluster_id
                self.state = "running"
                await self._session(kafka)
            except (LogError, StuckError) as error:
                self.state = f"unavailable: {error}"
                log.warning("the offline lane is paused: %s", error)
                self._failed_sessions += 1
            finally:
                # Cancellation here leaves sockets to the garbage collector; the broker forgets them with the session.
                await kafka.stop()
            await self._pause_for(self._closing, self._failed_sessions)

    async def _session(self, kafka: Log) -> None:
        self._log, self._unassigned_s = kafka, self._clock()
        self._assignments.clear()  # a static member that joins again keeps the generation: that alone proves nothing
        try:
            async with asyncio.TaskGroup() as servers:
                self._servers = servers
                servers.create_task(self._intake(), name="offline intake")
                servers.create_task(self._watch(), name="offline watchdog")
                kafka.join()
        except BaseExceptionGroup as group:
            raise _worst(group) from group
        finally:
            self._servers = None  # what an ending consumer still calls back is not heard

    async def _revoked(self) -> None:
        """aiokafka's callback: all partitions may go. One last bounded commit each, heartbeats go on meanwhile."""
        self.stats.rebalances += 1
        self._unassigned_s = self._clock()
        await self._leave_all()

    async def _leave_all(self) -> None:
        """No share has an opening, or it is being closed; within the bound for a last commit."""
        for share in self._shares.values():
            share.leave()
        servers = [share.server for share in self._shares.values() if share.server is not None]
        if servers:
            _, late = await asyncio.wait(servers, timeout=self._settings.revoke_commit_s)
            for server in late:
                server.cancel()

    def _assigned(self, partitions: Collection[int]) -> None:
        """aiokafka's callback: it must not wait. Work in flight for partitions that came back goes on."""
        if self._servers is None:
            return
        self._unassigned_s, self._failed_sessions = None, 0
        if self._is_duplicate_instance():
            return
        for number in set(self._shares) - set(partitions):
            share = self._shares.pop(number)
            share.leave()
            self._drop(share)
        for number in partitions:
            share = self._shares.setdefault(number, Share(number))
            share.counted, share.fetched_s = False, self._clock()
            share.leaving.clear()
            if self._closing.is_set():
                share.leave()
            share.server = self._spawn(self._serve(share, share.server), f"offline {number}")

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """A task of the session; None if the session is ending."""
        try:
            if self._servers is not None:
                return self._servers.create_task(coroutine, name=name)
        except RuntimeError:
            log.debug("%s is not started: the session is ending", name)
        coroutine.close()
        return None

    def _drop(self, share: Share) -> None:
        for offset in list(share.taken):
            share.let_go(offset)

    # -- one partition: open, commit every tick, open anew after anything unclear

    async def _serve(self, share: Share, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])  # never two of one share
        failures = 0
        while not share.leaving.is_set():
            try:
                opening = await self._log.open(share.number)
            except LogError as error:
                failures += 1
                log.warning("partition %d cannot be opened: %s", share.number, error)
                await self._pause_for(share.leaving, failures)
                continue
            try:
                self._begin(share, opening)
                failures = 0
                await self._ticks(share, opening)
            except LogError as error:
                failures += 1
                self.stats.reopens += 1
                self.stats.fenced += isinstance(error, FencedError)
                log.warning("partition %d is opened anew: %s", share.number, error)
            finally:
                share.progress = None
                await opening.close()
            if failures:
                await self._pause_for(share.leaving, failures)

    def _begin(self, share: Share, opening: Opening) -> None:
        """The share is ready. Nothing here may wait: a record delivered in between would belong to neither opening."""
        if opening.state is None:
            raise AssertionError("an opening without a state")
        self._log.seek(share.number, opening.state.watermark)
        self._openings += 1
        share.tallies = opening.tallies
        share.begin(opening.state, self._openings, self._settings)
        self._intake_wake.set()

    async def _ticks(self, share: Share, opening: Opening) -> None:
        """Commits until the share leaves, or the opening must be replaced. Raises LogError: the outcome is unknown."""
        while True:
            await self._commit(share, opening)
            if opening.tainted:
                self.stats.reopens += 1
                return
            if share.leaving.is_set():
                return
            await self._pause_for_tick(share)

    async def _commit(self, share: Share, opening: Opening) -> None:
        progress = share.progress
        if progress is None:
            raise AssertionError("a commit without an opening")
        batch = share.committable(progress)
        state = share.marked(progress.after(batch), self._settings)
        tallies, told = self._told(share, batch.values())
        if state != progress.durable or told:
            with self._spans.committing(share.number, batch.values()):
                await opening.commit([*(done.outgoing for done in batch.values()), *told], state)
            progress.install(state)
            share.tallies |= tallies
            self.stats.commits += 1
        share.counted = True
        for offset, done in batch.items():
            share.let_go(offset)
            self._count(done)
        if share.held is not None and state.suspect == share.held.offset:
            record, share.held = share.held, None
            self._start(share, record)
        self._intake_wake.set()

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
        self.stats.items[done.outcome, done.reason] += 1
        self.stats.retried += done.retries
        self.stats.output_tokens += done.output_tokens
        self._on_durable(done)

    # -- intake

    async def _intake(self) -> None:
        while not self._closing.is_set():
            self._intake_wake.clear()
            shares = {} if self._draining else self._hungry()
            if not shares:
                await _wait(self._intake_wake, FETCH_WAIT_S)
                continue
            try:
                await self._fetch(shares)
            except LogError as error:  # the watchdog ends the session if this lasts
                log.warning("nothing could be fetched: %s", error)
                await _wait(self._closing, FETCH_WAIT_S)

    async def _fetch(self, shares: Mapping[int, Share]) -> None:
        openings = {number: share.opening for number, share in shares.items()}
        records_max = max(share.room(self._settings) for share in shares.values())
        begun_s = self._clock()
        try:
            records = await self._log.fetch(shares, records_max, FETCH_WAIT_S)
        except LogError:
            for each in shares.values():
                each.astray = True  # aiokafka moves past what it found before it failed, and forgets that
            raise
        self._spans.polled(begun_s, len(records))
        self.stats.consumed += len(records)
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

    def _hungry(self) -> dict[int, Share]:
        """The shares that have room and nothing left to take."""
        return {n: share for n, share in self._shares.items() if self._take(share) > 0 and self._on_course(share)}

    def _on_course(self, share: Share) -> bool:
        """True if the consumer's position is where the share expects it; False if it cannot be put there now."""
        if share.astray and share.progress is not None:
            try:
                self._log.seek(share.number, share.progress.expected)
            except LogError:
                return False  # not assigned at this moment
            share.astray = False
        return True

    async def _advance(self, share: Share, opening: int) -> None:
        """Takes what has room, and learns from the consumer's position what the broker passed over."""
        self._take(share)
        if share.backlog or share.progress is None:
            return
        position = await self._log.position(share.number)
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
            self._start(share, record)
        elif share.is_culprit(record.offset, self._settings):
            message = f"the process ended {SOLO_DEATHS} times while this item ran alone"
            share.finished[record.offset] = self._runs.dead(record, DeadItemError(DeadReason.POISON, message), "run")
        else:
            share.held = record
            share.wake.set()

    def _start(self, share: Share, record: Record) -> None:
        task = self._items.create_task(self._run_item(share, record), name=record.source)
        share.running[record.offset] = task
        task.add_done_callback(lambda _: self._intake_wake.set())

    async def _run_item(self, share: Share, record: Record) -> None:
        """Leaves a Finished in the share, unless cancelled: then the item is somebody else's, or the next start's."""
        finished = await self._runs.run(record)
        if share.running.get(record.offset) is asyncio.current_task():
            del share.running[record.offset]
            share.finished[record.offset] = finished
            if len(share.finished) >= self._settings.results_per_commit:
                share.wake.set()

    # -- watching, waiting

    async def _watch(self) -> None:
        """Looks at the log's ends, for lag, and ends the session if the consumer is stuck, with an error or without."""
        while not self._closing.is_set():
            self._log.check()
            self._runs.look()
            if self._unassigned_s is not None and self._clock() - self._unassigned_s > self._settings.stuck_after_s:
                raise StuckError(f"no assignment for {self._settings.stuck_after_s:.0f} s")
            try:
                ends = await self._log.ends(self._shares) if self._shares else {}
            except LogError as error:
                log.info("the log's ends are unknown: %s", error)
                ends = {}
            for number, end in ends.items():
                if number in self._shares:
                    self._shares[number].end = end
            for share in self._shares.values():
                self._raise_if_stuck(share)
            await _wait(self._closing, min(WATCH_S, self._settings.stuck_after_s / 4))

    def _raise_if_stuck(self, share: Share) -> None:
        if share.progress is None or share.room(self._settings) == 0 or self._draining:
            share.fetched_s = self._clock()
            return
        idle_s = self._clock() - share.fetched_s
        if share.end > share.progress.expected and idle_s > self._settings.stuck_after_s:
            raise StuckError(f"partition {share.number}: nothing fetched for {idle_s:.0f} s although there is more")

    def _is_duplicate_instance(self) -> bool:
        """True, and the lane ends with that error, if assignments follow one another within one generation."""
        self._assignments.append((self._clock(), self._log.generation))
        (first_s, generation), (last_s, _) = self._assignments[0], self._assignments[-1]
        if len(self._assignments) < DUPLICATE_ASSIGNMENTS or last_s - first_s > DUPLICATE_WITHIN_S:
            return False
        if any(each != generation for _, each in self._assignments):
            return False
        error = DuplicateInstanceError(
            f"assigned {DUPLICATE_ASSIGNMENTS} times within one generation: another process uses the "
            f"instance_id {self._settings.instance_id!r}; each needs its own"
        )
        self._spawn(_raise(error), "offline duplicate instance")
        return True

    async def _pause_for_tick(self, share: Share) -> None:
        await _wait(share.wake, self._settings.tick_s)
        share.wake.clear()

    async def _pause_for(self, event: asyncio.Event, failures: int) -> None:
        """Jittered, so that two owners who fence each other do not do it for ever."""
        if failures:
            await _wait(event, BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] * self._random.uniform(0.5, 1.5))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass


async def _raise(error: Exception) -> None:
    raise error


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for each in group.exceptions
        for leaf in (_leaves(each) if isinstance(each, BaseExceptionGroup) else [each])
    ]


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one that an operator has to see; LogError and StuckError only mean that a new consumer is needed."""
    leaves = _leaves(group)
    return next((leaf for leaf in leaves if not isinstance(leaf, (LogError, StuckError))), leaves[0])
