"""A partition that cannot be opened waits alone, says why, and goes on once somebody has mended it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

import pytest

from sidecar.core.errors import SidecarError
from sidecar.offline.commits import Commits
from sidecar.offline.intake import Intake
from sidecar.offline.job_progress import JobKey, JobTally
from sidecar.offline.kafka_errors import FencedError, LogError, NoCommittedOffsetError, PositionLostError
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.offsets import Committed
from sidecar.offline.owned_partition import LaneStats, OwnedPartition
from sidecar.offline.partition import Partitions
from sidecar.offline.pauses import Pauses
from sidecar.offline.spans import KafkaSpans
from tests.fakes.log import FakeCluster
from tests.offline.builders import NOTHING_DONE, SETTINGS, owned, runs
from tests.offline.test_lane import lane, running, until, waits_for


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (LogError("topic inference.results has 1 partitions", Cause.PARTITION_MISSING), Cause.PARTITION_MISSING),
        (LogError("a right is missing: transactional id", Cause.RIGHTS), Cause.RIGHTS),
        (NoCommittedOffsetError("group 'g' has no offset for partition 1"), Cause.NO_OFFSET),
        (PositionLostError("the log holds 5 to 9", [1]), Cause.POSITION_LOST),
    ],
)
async def test_a_partition_that_cannot_be_opened_waits_alone_until_it_can(error: SidecarError, cause: Cause) -> None:
    cluster = FakeCluster(items=20, partitions=3)
    cluster.open_errors[1] = error
    offline = lane(cluster, look_again_s=0.005)
    async with running(offline):
        await until(cluster, lambda: {number for number, _ in cluster.written} == {0, 2})
        await until(cluster, lambda: offline.state_now.cause is cause)
        assert offline.state == f"degraded: 1 of 3 partitions; partition 1: {error}"
        [_, waiting, _] = offline.owned_partitions()
        assert (waiting.state.phase, waiting.state.cause, waiting.watermark, waiting.lag) == (
            Phase.WAITING,
            cause,
            None,
            None,
        )
        cluster.open_errors.clear()
        await until(cluster, cluster.everything_once)
        await until(cluster, lambda: offline.state == "running")


async def test_a_position_that_the_log_lost_holds_up_its_partition_alone_until_it_is_reset() -> None:
    cluster = FakeCluster(items=20, partitions=2)
    cluster.log_begins[0] = 4
    offline = lane(cluster, look_again_s=0.005)
    async with running(offline):
        await until(cluster, lambda: len(cluster.written) == 10 and offline.state_now.cause is Cause.POSITION_LOST)
        cluster.committed[0] = (4, "")
        await until(cluster, lambda: len(cluster.written) == 16)
        await until(cluster, lambda: offline.state == "running")
    assert {offset for (number, offset) in cluster.outcomes() if number == 0} == set(range(4, 10))


async def test_a_position_lost_while_the_partition_is_read_opens_it_anew() -> None:
    cluster = FakeCluster(items=6)
    offline = lane(cluster, look_again_s=0.005)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        cluster.log_begins[0] = 50
        await until(cluster, waits_for(offline, Cause.POSITION_LOST))
        cluster.log_begins.clear()
        cluster.produce(b'{"id": "x", "prompt": "p"}')
        await until(cluster, cluster.everything_once)


async def test_metadata_of_another_program_hold_up_their_partition_until_they_are_reset() -> None:
    cluster = FakeCluster(items=2, partitions=2)
    cluster.committed[0] = (0, "bitset:01")
    offline = lane(cluster, look_again_s=0.01)
    async with running(offline):
        await until(cluster, lambda: len(cluster.written) == 1 and offline.state_now.phase is Phase.DEGRADED)
        assert offline.state_now.cause is Cause.FOREIGN_METADATA
        assert "1 of 2 partitions; partition 0: the metadata committed at offset 0 is not" in offline.state
        cluster.committed[0] = (0, "")
        await until(cluster, cluster.everything_once)
        await until(cluster, lambda: offline.state == "running")


class FakeOpened:
    """One opening. `commits` are its transactions: each raises what it is, if that is an error."""

    def __init__(
        self, *commits: Exception | None, tainted: bool = False, state: Committed | None = NOTHING_DONE
    ) -> None:
        self.tainted = tainted
        self.state = state
        self.tallies: dict[JobKey, JobTally] = {("lab", "j"): JobTally(done=3)}
        self.bytes_max: Mapping[str, int] = {"inference.results": 99}
        self.written: list[Committed] = []
        self.closed = False
        self._outcomes = [*commits]

    async def commit(self, records: Sequence[Outgoing], state: Committed) -> None:
        del records
        self.written.append(state)
        if self._outcomes and (error := self._outcomes.pop(0)) is not None:
            raise error

    async def close(self) -> None:
        self.closed = True


class FakeSource:
    """Opens these, one after the other; then the partition is taken away."""

    def __init__(self, partition: OwnedPartition, *openings: FakeOpened | Exception) -> None:
        self.sought: list[int] = []
        self._partition = partition
        self._openings = [*openings]
        self.seek_error: Exception | None = None

    def seek(self, partition: int, offset: int) -> None:
        del partition
        self.sought.append(offset)
        if self.seek_error is not None:
            raise self.seek_error

    async def open(self, partition: int) -> FakeOpened:
        del partition
        opening = self._openings.pop(0)
        if not self._openings:
            self._partition.leave()  # the last one makes one last commit
        if isinstance(opening, Exception):
            raise opening
        return opening


class Served:
    """One partition and what serves it."""

    def __init__(self) -> None:
        self.partition = owned(None)
        self.stats = LaneStats()
        clock, shared = (lambda: 0.0), {0: self.partition}
        items, spans = runs(settings=SETTINGS), KafkaSpans(SETTINGS, None, clock)
        self.intake = Intake(
            SETTINGS, items, spans, self.stats, owned_partitions=shared, clock=clock, on_trouble=lambda _: None
        )
        commits = Commits(
            *(SETTINGS, items, spans, self.stats),
            owned_partitions=shared,
            jobs=lambda _tenant, _job: (),
            on_committed=lambda _: None,
            clock=clock,
        )
        self.partitions = Partitions(SETTINGS, self.stats, commits, self.intake, Pauses(0.001, random.Random(1)))

    async def serve(self, source: FakeSource, before: asyncio.Task[None] | None = None) -> None:
        async with asyncio.timeout(5):
            await self.partitions.serve(source, self.partition, before)


async def test_an_opening_begins_at_what_is_committed_with_what_it_read() -> None:
    served = Served()
    opening = FakeOpened(state=Committed(watermark=4, high=7, gaps=(4,)))
    source = FakeSource(served.partition, opening)
    await served.serve(source)
    assert source.sought == [4]
    assert served.partition.bytes_max == {"inference.results": 99}
    assert served.partition.tallies == {("lab", "j"): JobTally(done=3)}
    assert served.intake.wake.is_set()
    assert opening.closed
    assert served.partition.progress is None  # nothing may be taken or committed any more


async def test_a_clean_end_is_committed_as_one() -> None:
    served = Served()
    opening = FakeOpened(state=Committed(watermark=4, high=4, restarts=2))
    await served.serve(FakeSource(served.partition, opening))
    assert opening.written == [Committed(watermark=4, high=4)]


async def test_a_tainted_opening_is_replaced_after_one_commit() -> None:
    served = Served()
    first, second = FakeOpened(tainted=True), FakeOpened()
    await served.serve(FakeSource(served.partition, first, second))
    assert (served.stats.reopens, served.stats.fenced, first.closed, len(first.written)) == (1, 0, True, 1)


@pytest.mark.parametrize(
    ("error", "cause", "fenced"),
    [
        (LogError("the answer is lost"), Cause.KAFKA, 0),
        (FencedError("a newer epoch"), Cause.FENCED, 1),
        (PositionLostError("the log begins later"), Cause.POSITION_LOST, 0),
    ],
)
async def test_an_unclear_commit_is_a_state_and_a_new_opening(error: LogError, cause: Cause, fenced: int) -> None:
    served = Served()
    states = []
    first, second = FakeOpened(error), FakeOpened()
    source = FakeSource(served.partition, first, second)
    reopened = source.open

    async def look(partition: int) -> FakeOpened:
        states.append((served.partition.stated.now.phase, served.partition.stated.now.cause))
        return await reopened(partition)

    source.open = look  # type: ignore[method-assign]
    await served.serve(source)
    assert states[1] == (Phase.WAITING, cause)
    assert (served.stats.reopens, served.stats.fenced) == (1, fenced)
    assert first.closed
    assert served.partition.stated.now.phase is Phase.RUNNING


async def test_what_cannot_be_opened_counts_as_a_failure_and_not_as_a_new_opening() -> None:
    served = Served()
    await served.serve(FakeSource(served.partition, LogError("no"), LogError("no"), LogError("no")))
    assert (served.partition.failures, served.stats.reopens) == (3, 0)


async def test_a_commit_that_succeeds_ends_the_row_of_failures() -> None:
    served = Served()
    await served.serve(FakeSource(served.partition, LogError("no"), FakeOpened()))
    assert served.partition.failures == 0


async def test_an_opening_that_cannot_be_sought_is_closed() -> None:
    served = Served()
    opening = FakeOpened()
    source = FakeSource(served.partition, opening)
    source.seek_error = LogError("no longer assigned")
    await served.serve(source)
    assert (opening.closed, opening.written, served.partition.progress) == (True, [], None)


async def test_a_defect_ends_the_partition_with_its_own_error_and_leaves_nothing_open() -> None:
    served = Served()
    opening = FakeOpened(KeyError("a defect"))
    with pytest.raises(KeyError):
        await served.serve(FakeSource(served.partition, opening, FakeOpened()))
    assert opening.closed


async def test_the_next_server_of_a_partition_waits_for_the_one_before() -> None:
    served, go_on = Served(), asyncio.Event()

    async def wait() -> None:
        await go_on.wait()

    before = asyncio.create_task(wait(), name="before")
    opening = FakeOpened(state=Committed(watermark=0, high=0, restarts=1))
    after = asyncio.create_task(served.serve(FakeSource(served.partition, opening), before), name="after")
    for _ in range(5):
        await asyncio.sleep(0)
    assert opening.written == []
    go_on.set()
    await after
    assert len(opening.written) == 1


async def test_what_the_intake_found_broken_is_opened_anew() -> None:
    served = Served()
    lost = PositionLostError("out of range", [0])
    first = FakeOpened()

    async def commit(records: Sequence[Outgoing], state: Committed) -> None:
        await FakeOpened.commit(first, records, state)
        served.partition.broken = lost

    first.commit = commit  # type: ignore[method-assign]
    await served.serve(FakeSource(served.partition, first, FakeOpened()))
    assert (served.stats.reopens, first.closed, served.partition.broken) == (1, True, None)
