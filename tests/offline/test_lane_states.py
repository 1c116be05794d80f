"""What the lane waits for is said, and it goes on by itself once somebody has mended it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sidecar.core.errors import SettingsError, SidecarError
from sidecar.core.request import Request
from sidecar.offline import pauses
from sidecar.offline.instance_fence import Occupant
from sidecar.offline.kafka_errors import LogError, NoCommittedOffsetError, PositionLostError
from sidecar.offline.lane import OfflineLane
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.metrics import OfflineMetrics
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeCluster, FakeDriver, generated
from tests.offline.test_lane import TIMEOUT_S, lane, running, until

TWIN = Occupant(member_id="twin-1", host="/10.0.0.7", client_id="sidecar.pod-0")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "BACKOFF_S", (0.001, 0.002, 0.005))


def waits_for(offline: OfflineLane, cause: Cause) -> Callable[[], bool]:
    return lambda: (offline.state_now.phase, offline.state_now.cause) == (Phase.WAITING, cause)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (LogError("the broker does not let us in", Cause.AUTHENTICATION), Cause.AUTHENTICATION),
        (LogError("no broker answers", Cause.UNREACHABLE), Cause.UNREACHABLE),
        (LogError("topic inference.results does not exist", Cause.TOPIC_MISSING), Cause.TOPIC_MISSING),
        (LogError("a right is missing: group sidecar", Cause.RIGHTS), Cause.RIGHTS),
        (SettingsError("kafka security: no such file: /secret"), Cause.SECRET),
    ],
)
async def test_a_consumer_that_cannot_start_is_tried_again_until_it_can(error: SidecarError, cause: Cause) -> None:
    cluster = FakeCluster(items=3)
    cluster.start_error = error
    offline = lane(cluster, look_again_s=0.005)
    async with running(offline):
        await until(cluster, lambda: len(cluster.logs) > 3 and waits_for(offline, cause)())
        assert offline.state == f"waiting: {error}"
        cluster.start_error = None
        await until(cluster, cluster.everything_once)
        assert offline.state == "running"


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


async def test_nothing_that_can_be_fetched_is_a_state_and_so_are_unknown_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sidecar.offline.lane.WATCH_S", 0.001)
    cluster = FakeCluster(items=2)
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        cluster.fetch_error = LogError("a right is missing: topic", Cause.RIGHTS)
        await until(cluster, lambda: offline.state == "waiting: nothing can be fetched: a right is missing: topic")
        cluster.fetch_error = None
        await until(cluster, lambda: offline.state == "running")
        cluster.ends_error = LogError("no broker answers", Cause.UNREACHABLE)
        await until(cluster, waits_for(offline, Cause.UNREACHABLE))
        [owned_partition] = offline.owned_partitions()
        assert (owned_partition.watermark, owned_partition.end, owned_partition.lag) == (2, None, None)
        cluster.ends_error = None
        await until(cluster, lambda: offline.state == "running" and offline.owned_partitions()[0].lag == 0)


@pytest.mark.parametrize("cause", [Cause.AUTHENTICATION, Cause.TLS])
async def test_a_connection_that_is_no_longer_let_in_is_made_anew_with_what_the_files_hold_now(
    monkeypatch: pytest.MonkeyPatch, cause: Cause
) -> None:
    monkeypatch.setattr("sidecar.offline.lane.WATCH_S", 0.001)
    cluster = FakeCluster(items=2)
    offline = lane(cluster, look_again_s=0.005)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        cluster.ends_error = LogError("the broker does not let us in", cause)
        await until(cluster, lambda: len(cluster.logs) > 2 and offline.state_now.cause is cause)
        cluster.ends_error = None
        cluster.produce(b'{"id": "x", "prompt": "p"}')
        await until(cluster, cluster.everything_once)
        await until(cluster, lambda: offline.state == "running")


async def test_a_consumer_that_finds_no_broker_for_long_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.offline.lane.WATCH_S", 0.001)
    cluster = FakeCluster(items=2)
    offline = lane(cluster, stuck_after_s=0.02)
    async with running(offline):
        await until(cluster, cluster.everything_once)
        cluster.ends_error = LogError("no broker answers", Cause.UNREACHABLE)
        await until(cluster, lambda: len(cluster.logs) > 1)
        cluster.ends_error = None
        await until(cluster, lambda: offline.state == "running")


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


async def test_only_a_programming_error_stops_the_lane_and_says_where() -> None:
    cluster = FakeCluster(items=1)
    cluster.open_errors[0] = KeyError("a prompt of somebody")
    offline = lane(cluster)
    with pytest.raises(KeyError):
        await asyncio.wait_for(offline.run(), TIMEOUT_S)
    assert (offline.state_now.phase, offline.state_now.cause) == (Phase.STOPPED, Cause.DEFECT)
    assert offline.state.startswith("stopped: a programming error: KeyError at log.py:")
    assert "prompt" not in offline.state


def samples(figures: OfflineMetrics, registry: CollectorRegistry) -> list[str]:
    figures.look()
    lines = generate_latest(registry).decode().splitlines()
    names = ("sidecar_offline_state", "sidecar_offline_partition_state", "sidecar_kafka", "sidecar_offline_eta")
    return sorted(line for line in lines if line.startswith(names))


async def test_a_lane_that_waits_shows_its_reason_and_nothing_that_it_does_not_know() -> None:
    cluster = FakeCluster(items=4, partitions=2)
    cluster.open_errors[1] = LogError("a right is missing", Cause.RIGHTS)
    registry = CollectorRegistry()
    offline = lane(cluster, look_again_s=0.005)
    figures = OfflineMetrics(registry, "t", offline)
    assert samples(figures, registry) == ['sidecar_offline_state{reason="none",state="starting",topic="t"} 1.0']
    async with running(offline):
        await until(cluster, lambda: len(cluster.written) == 2 and offline.state_now.phase is Phase.DEGRADED)
        await until(cluster, lambda: offline.owned_partitions()[0].lag == 0)
        assert samples(figures, registry) == [
            'sidecar_kafka_lag{partition="0",topic="t"} 0.0',
            'sidecar_kafka_oldest_age_seconds{partition="0",topic="t"} 0.0',
            'sidecar_offline_partition_state{partition="0",reason="none",state="running",topic="t"} 1.0',
            'sidecar_offline_partition_state{partition="1",reason="rights",state="waiting",topic="t"} 1.0',
            'sidecar_offline_state{reason="rights",state="degraded",topic="t"} 1.0',
        ]
        document = figures.document()
        assert [(each["state"], each["lag"], each["watermark"]) for each in document["partitions"]] == [
            ("running", 0, 2),
            ("waiting: a right is missing", None, None),
        ]
        assert (document["phase"], document["reason"]) == ("degraded", "rights")


async def test_results_that_wait_for_their_commit_count_as_bytes() -> None:
    cluster = FakeCluster(items=50)
    cluster.faults.extend(["before"] * 20)

    async def answer(_request: Request, _call: TokenCall) -> Generated:
        return generated(*range(2000, 3000))

    offline = lane(cluster, FakeDriver(answer), pending_bytes_max=20_000)
    async with running(offline):
        most = 0

        def look() -> bool:
            nonlocal most
            most = max([most, *(owned_partition.bytes_held for owned_partition in offline.owned_partitions())])
            return cluster.everything_once()

        await until(cluster, look)
    assert 0 < most < 20_000 + 50 * 6_000
    assert all(owned_partition.bytes_held == 0 for owned_partition in offline.owned_partitions())


def test_causes_are_a_closed_set_of_label_values() -> None:
    labels: Iterable[str] = [cause.value for cause in Cause]
    assert all(label.replace("_", "").isalpha() for label in labels)
