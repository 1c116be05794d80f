"""A partition that cannot be opened waits alone, says why, and goes on once somebody has mended it."""

from __future__ import annotations

import pytest

from sidecar.core.errors import SidecarError
from sidecar.offline.kafka_errors import LogError, NoCommittedOffsetError, PositionLostError
from sidecar.offline.lane_state import Cause, Phase
from tests.fakes.log import FakeCluster
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
