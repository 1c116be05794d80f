"""One process per instance_id: the younger of two leaves or waits, the older one goes on."""

from __future__ import annotations

import asyncio
import random

import pytest

from sidecar.offline.instance_fence import Occupant
from sidecar.offline.kafka_errors import InstanceInUseError, LogError
from sidecar.offline.lane_state import Cause
from sidecar.offline.one_instance import OneInstance
from sidecar.offline.pauses import Pauses
from sidecar.settings.offline import OfflineSettings
from tests.fakes.log import FakeCluster
from tests.offline.test_lane import lane, running, until, waits_for

TWIN = Occupant(member_id="twin-1", host="/10.0.0.7", client_id="sidecar.pod-0")


async def test_a_newcomer_waits_while_the_holder_of_its_instance_id_lives() -> None:
    cluster = FakeCluster(items=3)
    cluster.occupant, cluster.occupant_lives = TWIN, True
    offline = lane(cluster, instance_id="pod-0", heartbeat_s=0.001, look_again_s=0.005)
    async with running(offline):
        await until(cluster, waits_for(offline, Cause.INSTANCE_IN_USE))
        await until(cluster, lambda: offline.state.endswith("each process needs its own"))
        assert offline.state.startswith("waiting: instance_id 'pod-0' is in use by host /10.0.0.7")
        assert cluster.written == []
        cluster.occupant = None  # it left
        await until(cluster, cluster.everything_once)
    assert len(cluster.logs) == 1  # one consumer waited; none joined and left


async def test_the_membership_of_a_dead_predecessor_is_taken_over_at_once() -> None:
    cluster = FakeCluster(items=3)
    cluster.occupant = TWIN
    offline = lane(cluster, instance_id="pod-0", heartbeat_s=0.001)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert len(cluster.logs) == 1


async def test_the_younger_of_two_that_run_with_one_instance_id_leaves() -> None:
    cluster = FakeCluster(items=3)
    offline = lane(cluster, instance_id="pod-0", heartbeat_s=0.001, look_again_s=0.005)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        cluster.occupant, cluster.occupant_lives = TWIN, True
        await until(cluster, waits_for(offline, Cause.INSTANCE_IN_USE))
        cluster.occupant = None
        await until(cluster, lambda: offline.state == "running")


async def test_the_older_of_two_that_run_with_one_instance_id_goes_on() -> None:
    cluster = FakeCluster(items=3)
    offline = lane(cluster, instance_id="pod-0", heartbeat_s=0.001, session_timeout_s=0.01)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        begun_s = offline.now_s
        await until(cluster, lambda: offline.now_s - begun_s > 0.03)  # no longer young
        cluster.occupant, cluster.occupant_lives = TWIN, True
        bumps = cluster.bumps
        await until(cluster, lambda: cluster.bumps > bumps + 5)
        cluster.produce(b'{"id": "x", "prompt": "p"}')
        await until(cluster, cluster.everything_once)
        assert (offline.state, len(cluster.logs)) == ("running", 1)


async def test_a_process_that_another_takes_the_membership_from_leaves_and_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = FakeCluster(items=3)
    offline = lane(cluster, instance_id="pod-0", look_again_s=0.01)
    async with running(offline):
        await until(cluster, lambda: bool(offline.owned_partitions()))
        for _ in range(5):
            await cluster.logs[0].revoked()
            cluster.logs[0].assigned([0])
        told = "waiting: instance_id 'pod-0' is in use: assigned 6 times within one generation"
        await until(cluster, lambda: told in caplog.text)  # it is over too soon to be seen as the state
        await until(cluster, cluster.everything_once)


async def test_rebalances_of_different_generations_are_no_duplicate_instance() -> None:
    cluster = FakeCluster(items=3)
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, lambda: bool(offline.owned_partitions()))
        for generation in range(2, 12):
            await cluster.logs[0].revoked()
            cluster.logs[0].generation = generation
            cluster.logs[0].assigned([0])
        await until(cluster, cluster.everything_once)


class FakeGroup:
    """A group whose member with our instance_id is `member`; each bump takes the next of `foreign`."""

    def __init__(self, member: Occupant | None = None, *foreign: bool | LogError) -> None:
        self.member = member
        self.foreign = [*foreign]
        self.bumps = 0

    async def occupant(self) -> Occupant | None:
        return self.member

    async def bump(self) -> bool:
        self.bumps += 1
        found = self.foreign.pop(0) if self.foreign else False
        if isinstance(found, LogError):
            raise found
        return found


class Process:
    """One process with an instance_id, whose clock a test sets."""

    def __init__(self, instance_id: str = "pod-0") -> None:
        settings = OfflineSettings(instance_id=instance_id, heartbeat_s=0.001, session_timeout_s=30.0)
        self.now_s = 0.0
        self.told: list[str] = []
        self.closing = asyncio.Event()
        pauses = Pauses(0.001, random.Random(1))
        self.one = OneInstance(settings, pauses, lambda: self.now_s, self.told.append)

    async def joins(self, group: FakeGroup) -> None:
        async with asyncio.timeout(5):
            await self.one.wait_until_free(group, self.closing)

    async def beats(self, group: FakeGroup, count: int) -> None:
        """Beat until the group was asked so often."""

        async def bump() -> bool:
            found = await FakeGroup.bump(group)
            if group.bumps >= count:
                self.closing.set()
            return found

        group.bump = bump  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            await self.one.beat(group, self.closing)


async def test_without_an_instance_id_nobody_is_asked() -> None:
    process, group = Process(""), FakeGroup(TWIN, True)
    await process.joins(group)
    await process.one.beat(group, process.closing)
    assert (group.bumps, process.told) == (0, [])


async def test_our_own_membership_from_before_is_no_other_process() -> None:
    process, group = Process(), FakeGroup(TWIN, True, True)
    process.one.assigned(TWIN.member_id, 1)
    await process.joins(group)
    assert (group.bumps, process.told) == (0, [])


async def test_a_group_that_cannot_be_asked_is_left_to_decide_by_its_session() -> None:
    process = Process()
    group = FakeGroup(TWIN, LogError("a right is missing"))
    await process.joins(group)
    assert process.told == [
        "instance_id 'pod-0' is in use by host /10.0.0.7, or was until a moment ago",
        "instance_id 'pod-0' is in use by host /10.0.0.7; each process needs its own",
        "instance_id 'pod-0' is in use by host /10.0.0.7",  # the second look finds it dead
    ]


async def test_a_process_that_closes_does_not_wait_for_its_instance_id() -> None:
    process = Process()
    process.closing.set()
    await process.joins(FakeGroup(TWIN, *[True] * 1000))


@pytest.mark.parametrize(
    ("foreign", "age_s", "leaves"),
    [
        ([True, True, True], 0.0, True),
        ([True, True, True], 59.0, True),
        ([True, True, True], 60.0, False),  # of two sessions' age: the other one is the younger
        ([True, True, False, True, True], 0.0, False),  # it asks now and then, and does not run
        ([True, True, LogError("lost"), True], 0.0, True),  # what is not known breaks no row
    ],
)
async def test_the_younger_process_leaves_once_another_one_beats_as_often_as_it(
    foreign: list[bool | LogError], age_s: float, leaves: bool
) -> None:
    process = Process()
    await process.joins(FakeGroup())
    process.now_s = age_s
    if not leaves:
        await process.beats(FakeGroup(None, *foreign), len(foreign) + 1)
        return
    with pytest.raises(InstanceInUseError, match="'pod-0' is in use: another process runs with it"):
        await process.beats(FakeGroup(None, *foreign), len(foreign) + 1)


async def test_a_process_that_never_had_its_instance_id_does_not_leave_for_another() -> None:
    await Process().beats(FakeGroup(None, *[True] * 9), 9)


@pytest.mark.parametrize(
    ("generations", "apart_s", "in_use"),
    [
        ([1] * 6, 1.0, True),
        ([1] * 6, 24.0, True),
        ([1] * 6, 24.1, False),  # longer than two minutes: the broker made the group anew
        ([1] * 5, 1.0, False),
        ([1, 1, 1, 1, 1, 2], 1.0, False),
        ([2, 1, 1, 1, 1, 1, 1], 1.0, True),  # the last six count
    ],
)
def test_assignments_in_a_row_within_one_generation_show_a_twin(
    generations: list[int], apart_s: float, in_use: bool
) -> None:
    process = Process()
    found = []
    for generation in generations:
        found.append(process.one.assigned("m", generation))
        process.now_s += apart_s
    assert [each is not None for each in found[:-1]] == [False] * (len(found) - 1)
    assert (found[-1] is not None) is in_use


async def test_a_process_that_left_for_another_asks_again_and_takes_nothing_for_its_own() -> None:
    process = Process()
    await process.joins(FakeGroup())
    for _ in range(6):
        error = process.one.assigned(TWIN.member_id, 1)
    assert isinstance(error, InstanceInUseError)
    group = FakeGroup(TWIN, False, False)  # the name that was ours may be the other's now
    await process.joins(group)
    assert group.bumps == 2
