"""The lane in gauges and on the status page: what is not known is absent, never 0."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from sidecar.offline.kafka_errors import LogError
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.metrics import OfflineMetrics
from tests.fakes.log import FakeCluster
from tests.offline.test_lane import lane, running, until


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
