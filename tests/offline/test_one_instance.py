"""One process per instance_id: the younger of two leaves or waits, the older one goes on."""

from __future__ import annotations

import pytest

from sidecar.offline.instance_fence import Occupant
from sidecar.offline.lane_state import Cause
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
