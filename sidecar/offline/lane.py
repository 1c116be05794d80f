"""The offline lane: items from Kafka, in any order through the engines, results back exactly once.

Per owned partition one task opens the partition (wins its epoch, then reads what is committed) and commits what is
finished every tick (`commits.py`); one task for all takes items in, bounded per partition (`intake.py`); one task per
item runs it (`runner.py`) and leaves its result in the owned partition. After any failed commit the partition is
opened anew, and what is committed says which of the finished results are still to be written. Work in flight survives
that.

Nothing that somebody outside can mend stops the lane: it says what it waits for (`lane_state.py`) and looks again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Protocol

from sidecar.core.errors import SidecarError
from sidecar.core.snapshot import JobSnapshot
from sidecar.offline.commits import Commits
from sidecar.offline.gates import ModelGates
from sidecar.offline.intake import Intake, Source
from sidecar.offline.item import ItemRules
from sidecar.offline.job_orders import JobOrders
from sidecar.offline.job_topic import follow_orders
from sidecar.offline.kafka_client import KafkaLog
from sidecar.offline.kafka_errors import LogError, StuckError, cause_of
from sidecar.offline.lane_state import OPERATOR, Cause, LaneState, Phase, Stated, together
from sidecar.offline.one_instance import Group, OneInstance
from sidecar.offline.owned_partition import FinishedItem, LaneStats, OwnedPartition, PartitionView
from sidecar.offline.partition import Openings, Partitions
from sidecar.offline.pauses import Pauses, wait
from sidecar.offline.runner import GenerationDriver, ItemRuns
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.aliases import Aliases
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.tracing import Tracing
from sidecar.triton.tokenizer import Tokens

log = logging.getLogger(__name__)

WATCH_S = 2.0
NEW_CONNECTION = frozenset((Cause.AUTHENTICATION, Cause.TLS))  # what a consumer was made with holds no longer


class Log(Source, Openings, Group, Protocol):
    """What the lane needs of Kafka (`KafkaLog`)."""

    cluster_id: str

    @property
    def generation(self) -> int: ...
    @property
    def member_id(self) -> str: ...
    async def start(self) -> None: ...
    def join(self) -> None: ...
    def check(self) -> None: ...
    async def stop(self) -> None: ...
    async def ends(self, partitions: Iterable[int]) -> dict[int, int]: ...


class OfflineLane:
    """Runs until `drain` (or a cancel). `state_now` says how it is and why; `stats` and `owned_partitions` feed
    gauges."""

    def __init__(
        self,
        settings: OfflineSettings,
        driver: GenerationDriver,
        tokens: Tokens,
        tokens_max: Mapping[str, int],
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
        on_committed: Callable[[FinishedItem], None] = lambda _: None,
        make_log: Callable[..., Log] = KafkaLog,
        tracing: Tracing | None = None,
        aliases: Aliases | None = None,
        jobs: Callable[[str, str], Iterable[JobSnapshot]] = lambda _tenant, _job: (),
        gates: ModelGates | None = None,
        follow: Callable[[OfflineSettings, JobOrders], Coroutine[Any, Any, None]] = follow_orders,
    ) -> None:
        """`jobs` forecasts those of one name: `Scheduler.jobs_named`. `gates` hold items back for the driver.

        `follow` keeps the orders of jobs as the jobs topic has them, until it is cancelled.
        """
        self.orders = JobOrders(known=not settings.jobs_topic)
        self._follow = follow
        self.stats = LaneStats()
        self._stated = Stated("the offline lane", clock)
        self._settings = settings
        self._clock = clock
        self._make_log = make_log
        self._spans = KafkaSpans(settings, tracing, clock)
        rules = ItemRules.of(settings, tokens_max, aliases)
        common_runs = (settings, rules, driver, tokens, self._spans, self.stats, clock)
        self._runs = ItemRuns(*common_runs, gates or ModelGates(), self.orders)
        self._owned_partitions: dict[int, OwnedPartition] = {}
        common = (settings, self._runs, self._spans, self.stats)
        self._intake = Intake(
            *common, owned_partitions=self._owned_partitions, clock=clock, on_trouble=self._cannot_fetch
        )
        commits = Commits(
            *common, owned_partitions=self._owned_partitions, jobs=jobs, on_committed=on_committed, clock=clock
        )
        self._servers: asyncio.TaskGroup | None = None  # of the session, if there is one
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()
        pauses = self._pauses = Pauses(settings.look_again_s, random.Random(seed))
        self._partitions = Partitions(settings, self.stats, commits, self._intake, pauses)
        self._instance = OneInstance(settings, pauses, clock, self._occupied)
        self._troubles: dict[str, LogError] = {}  # of the consumer, by what it could not do
        self._failed_sessions = 0  # in a row
        self._unassigned_s: float | None = None  # since when the group owes us an assignment (an empty one is one)

    # -- what the rest of the sidecar calls

    @property
    def state_now(self) -> LaneState:
        """Return what the lane does and why: its consumer's state, or that of its partitions where some do not run."""
        return together(
            self._stated.now,
            [(n, owned_partition.stated.now) for n, owned_partition in sorted(self._owned_partitions.items())],
        )

    @property
    def state(self) -> str:
        """`state_now` as a text."""
        return self.state_now.text

    @property
    def now_s(self) -> float:
        """The lane's clock, in which states say since when they hold."""
        return self._clock()

    async def run(self) -> None:
        """Returns after `drain`. Whatever it raises is a programming error, and then the state says so."""
        try:
            async with asyncio.TaskGroup() as self._items:
                following = None
                if self._settings.jobs_topic:
                    orders = self._follow(self._settings, self.orders)
                    following = self._items.create_task(orders, name="offline job orders")
                try:
                    await self._sessions()
                finally:
                    if following is not None:
                        following.cancel()
                    for owned_partition in self._owned_partitions.values():
                        self._drop(owned_partition)
            self._stated.become(Phase.STOPPED)
        except BaseExceptionGroup as group:
            error = _leaves(group)[0]
            self._stated.become(Phase.STOPPED, Cause.DEFECT, f"a programming error: {_place(error)}")
            raise error from None
        finally:
            self._runs.close()
            self._closed.set()

    async def drain(self, timeout_s: float) -> None:
        """No item is taken any more; what runs ends within `timeout_s` or is left; what is finished is committed."""
        self._intake.stopping = True
        self._stated.become(Phase.DRAINING)
        running = [
            task for owned_partition in self._owned_partitions.values() for task in owned_partition.running.values()
        ]
        if running:
            await asyncio.wait(running, timeout=timeout_s)
        self._closing.set()
        self._intake.wake.set()
        await self._leave_all()
        await self._closed.wait()

    def owned_partitions(self) -> list[PartitionView]:
        """The partitions assigned to this process, in order."""
        return [owned_partition.view() for _, owned_partition in sorted(self._owned_partitions.items())]

    # -- one consumer after the other

    async def _sessions(self) -> None:
        while not self._closing.is_set():
            cause = Cause.NONE
            try:
                await self._session(self._make_log(self._settings, revoked=self._revoked, assigned=self._assigned))
            except SidecarError as error:
                cause = cause_of(error)
                self._become(Phase.WAITING, cause, str(error))
                self._failed_sessions += 1
            await self._pauses.until(self._closing, self._failed_sessions, cause)

    async def _session(self, kafka: Log) -> None:
        """One consumer, from its start to its end."""
        try:
            await kafka.start()
            self._spans.cluster_id = kafka.cluster_id
            await self._instance.wait_until_free(kafka, self._closing)
            if not self._closing.is_set():
                await self._serve_all(kafka)
        finally:
            for owned_partition in self._owned_partitions.values():
                owned_partition.end_known = False
            # Cancellation here leaves sockets to the garbage collector; the broker forgets them with the session.
            await kafka.stop()

    async def _serve_all(self, kafka: Log) -> None:
        self._log, self._unassigned_s = kafka, self._clock()
        self._ends_s = self._clock()  # when the log's ends were last known
        self._become(Phase.STARTING, Cause.ASSIGNMENT, "the group has not assigned partitions yet")
        self._troubles.clear()
        try:
            async with asyncio.TaskGroup() as servers:
                self._servers = servers
                servers.create_task(self._intake.run(kafka, self._items, self._closing), name="offline intake")
                servers.create_task(self._watch(), name="offline watchdog")
                servers.create_task(self._instance.beat(kafka, self._closing), name="offline instance")
                kafka.join()
        except BaseExceptionGroup as group:
            raise _worst(group) from group
        finally:
            self._servers = None  # what an ending consumer still calls back is not heard

    async def _revoked(self) -> None:
        """aiokafka's callback: all partitions may go. One last bounded commit each, heartbeats go on meanwhile."""
        self.stats.rebalances += 1
        self._unassigned_s = self._clock()
        self._become(Phase.STARTING, Cause.ASSIGNMENT, "the group assigns its partitions anew")
        await self._leave_all()

    async def _leave_all(self) -> None:
        """No owned partition has an opening, or it is being closed; within the bound for a last commit."""
        for owned_partition in self._owned_partitions.values():
            owned_partition.leave()
        servers = [
            owned_partition.server
            for owned_partition in self._owned_partitions.values()
            if owned_partition.server is not None
        ]
        if servers:
            _, late = await asyncio.wait(servers, timeout=self._settings.revoke_commit_s)
            for server in late:
                server.cancel()

    def _assigned(self, partitions: Collection[int]) -> None:
        """aiokafka's callback: it must not wait. Work in flight for partitions that came back goes on."""
        if self._servers is None:
            return
        self._unassigned_s, self._failed_sessions = None, 0
        if (error := self._instance.assigned(self._log.member_id, self._log.generation)) is not None:
            self._spawn(_raise(error), "offline duplicate instance")
            return
        self._become(Phase.RUNNING)
        for number in set(self._owned_partitions) - set(partitions):
            owned_partition = self._owned_partitions.pop(number)
            owned_partition.leave()
            self._drop(owned_partition)
        for number in partitions:
            if number not in self._owned_partitions:
                self._owned_partitions[number] = OwnedPartition(number, Stated(f"partition {number}", self._clock))
            owned_partition = self._owned_partitions[number]
            owned_partition.counted, owned_partition.fetched_s = False, self._clock()
            owned_partition.refusals.items_max = None
            owned_partition.leaving.clear()
            if self._closing.is_set():
                owned_partition.leave()
            owned_partition.server = self._spawn(
                self._partitions.serve(self._log, owned_partition, owned_partition.server), f"offline {number}"
            )

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """A task of the session; None if the session is ending."""
        try:
            if self._servers is not None:
                return self._servers.create_task(coroutine, name=name)
        except RuntimeError:
            log.debug("%s is not started: the session is ending", name)
        coroutine.close()
        return None

    def _drop(self, owned_partition: OwnedPartition) -> None:
        for offset in list(owned_partition.taken):
            owned_partition.let_go(offset)

    # -- watching

    async def _watch(self) -> None:
        """Looks at the log's ends, for lag, and ends the session if the consumer is stuck, with an error or without."""
        while not self._closing.is_set():
            self._log.check()
            self._runs.look()
            if self._unassigned_s is not None and self._clock() - self._unassigned_s > self._settings.stuck_after_s:
                raise StuckError(f"no assignment for {self._settings.stuck_after_s:.0f} s")
            await self._look_at_ends()
            for owned_partition in self._owned_partitions.values():
                self._raise_if_stuck(owned_partition)
            await wait(self._closing, min(WATCH_S, self._settings.stuck_after_s / 4))

    async def _look_at_ends(self) -> None:
        """The ends, or that they are unknown. Raises where only a new consumer helps: it reads secrets anew."""
        ends: dict[int, int] = {}
        try:
            if self._owned_partitions:
                ends = await self._log.ends(self._owned_partitions)
            self._ends_s = self._clock()
            self._trouble("the log's ends are unknown", None)
        except LogError as error:
            if error.cause in NEW_CONNECTION or self._clock() - self._ends_s > self._settings.stuck_after_s:
                raise
            self._trouble("the log's ends are unknown", error)
        for number, owned_partition in self._owned_partitions.items():
            owned_partition.end_known = number in ends
            owned_partition.end = ends.get(number, owned_partition.end)

    def _cannot_fetch(self, error: LogError | None) -> None:
        self._trouble("nothing can be fetched", error)

    def _trouble(self, what: str, error: LogError | None) -> None:
        """The consumer's state follows from what it cannot do."""
        if error is None:
            self._troubles.pop(what, None)
        else:
            self._troubles[what] = error
        if self._unassigned_s is not None:
            return
        first = next(iter(self._troubles.items()), None)
        if first is None:
            self._become(Phase.RUNNING)
        else:
            self._become(Phase.WAITING, first[1].cause, f"{first[0]}: {first[1]}")

    def _occupied(self, who: str) -> None:
        self._become(Phase.WAITING, Cause.INSTANCE_IN_USE, who)

    def _become(self, phase: Phase, cause: Cause = Cause.NONE, detail: str = "") -> None:
        if self._stated.now.phase is not Phase.DRAINING:
            self._stated.become(phase, cause, detail)

    def _raise_if_stuck(self, owned_partition: OwnedPartition) -> None:
        if owned_partition.progress is None or owned_partition.room(self._settings) == 0 or self._intake.stopping:
            owned_partition.fetched_s = self._clock()
            return
        idle_s = self._clock() - owned_partition.fetched_s
        if owned_partition.end > owned_partition.progress.expected and idle_s > self._settings.stuck_after_s:
            raise StuckError(
                f"partition {owned_partition.number}: nothing fetched for {idle_s:.0f} s although there is more"
            )


async def _raise(error: Exception) -> None:
    raise error


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for each in group.exceptions
        for leaf in (_leaves(each) if isinstance(each, BaseExceptionGroup) else [each])
    ]


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one that somebody has to see: a defect, else what a person can mend; the others only want a new consumer."""
    leaves = _leaves(group)
    defects = [leaf for leaf in leaves if not isinstance(leaf, SidecarError)]
    mendable = [leaf for leaf in leaves if isinstance(leaf, SidecarError) and cause_of(leaf) in OPERATOR]
    return [*defects, *mendable, *leaves][0]


def _place(error: BaseException) -> str:
    """Type and place of a defect; not its text, which may hold a part of an item."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f" at {at.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{at.tb_lineno}" if at is not None else ""
    return f"{type(error).__name__}{where}"
