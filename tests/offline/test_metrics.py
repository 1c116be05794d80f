"""The lane in gauges and on the status page: what is not known is absent, never 0."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from sidecar.offline.dead_letters import DeadReason
from sidecar.offline.job_counts import JobCounts
from sidecar.offline.job_orders import JobField, JobOrders, encoded_key
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.lane import OfflineLane
from sidecar.offline.lane_state import Cause, LaneState, Phase
from sidecar.offline.metrics import Drain, ItemDurations, OfflineMetrics
from sidecar.offline.owned_partition import LaneStats, PartitionView
from tests.fakes.log import FakeCluster
from tests.offline.builders import finished, of_job, record
from tests.offline.test_lane import lane, running, until


def samples(figures: OfflineMetrics, registry: CollectorRegistry) -> list[str]:
    figures.look()
    lines = generate_latest(registry).decode().splitlines()
    names = (
        "sidecar_offline_state",
        "sidecar_offline_partition_state",
        "sidecar_kafka_lag",
        "sidecar_kafka_oldest",
        "sidecar_offline_eta",
    )
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


def test_at_a_steady_rate_it_is_what_is_left_over_the_rate() -> None:
    drain = Drain()
    for second in range(0, 600, 15):
        drain.look(2 * second, float(second))
    assert drain.eta_s(1000) == pytest.approx(500.0)


def test_where_nothing_ends_the_end_is_not_known_and_nothing_left_is_done() -> None:
    drain = Drain()
    for second in (0.0, 15.0):
        drain.look(7, second)
    assert drain.eta_s(1) is None
    assert drain.eta_s(0) == 0.0


def test_looks_close_together_do_not_disturb_the_rate() -> None:
    drain = Drain()
    for tick in range(3000):
        drain.look(tick // 10, tick / 10)  # ten looks per second, one item per second
    assert drain.per_s == pytest.approx(1.0, rel=0.05)


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 100)), max_size=20), st.integers(0, 10**6))
def test_an_end_is_never_in_the_past_and_known_once_something_ended(looks: list[tuple[float, int]], left: int) -> None:
    drain, now_s, ended = Drain(), 0.0, 0
    for passed_s, more in looks:
        now_s, ended = now_s + passed_s, ended + more
        drain.look(ended, now_s)
        assert drain.per_s >= 0
        eta_s = drain.eta_s(left)
        assert eta_s is None or eta_s >= 0
        assert (eta_s is None) == (left > 0 and drain.per_s == 0)


class FakeLane:
    """What the metrics read off a lane."""

    def __init__(self, *partitions: PartitionView) -> None:
        self.stats = LaneStats()
        self.state_now = LaneState(phase=Phase.RUNNING)
        self.now_s = 100.0
        self.views = list(partitions)
        self.orders = JobOrders()

    def owned_partitions(self) -> list[PartitionView]:
        return self.views


def view(partition: int = 0, **fields: Any) -> PartitionView:
    """One partition that is served and done, unless `fields` say otherwise."""
    defaults: dict[str, Any] = {"state": LaneState(phase=Phase.RUNNING), "ready": True, "watermark": 5, "position": 5}
    defaults |= {"gaps": 0, "end": 5, "in_flight": 0, "finished": 0, "bytes_held": 0, "oldest_ms": None}
    return PartitionView(partition=partition, **(defaults | fields))


def shown(lane: FakeLane) -> tuple[OfflineMetrics, CollectorRegistry]:
    registry = CollectorRegistry()
    figures = OfflineMetrics(registry, "t", cast(OfflineLane, lane))
    figures.look()
    return figures, registry


def test_every_way_to_end_is_at_zero_before_the_first_item_ends() -> None:
    lane = FakeLane()
    lane.stats.items["dlq", "poison"] = 2
    lane.stats.retried = 3
    _, registry = shown(lane)
    ends = {
        (sample.labels["outcome"], sample.labels["reason"]): sample.value
        for family in registry.collect()
        if family.name == "sidecar_offline_items"
        for sample in family.samples
    }
    assert ends["done", ""] == ends["expired", "expired"] == ends["dlq", "invalid"] == 0
    assert (ends["dlq", "poison"], ends["retried", ""]) == (2, 3)
    named = {DeadReason.EXPIRED, DeadReason.CANCELLED}
    assert ends.keys() == {("done", ""), ("retried", ""), *((reason.value, reason.value) for reason in named)} | {
        ("dlq", reason.value) for reason in DeadReason if reason not in named
    }


@pytest.mark.parametrize(
    ("lane", "known"),
    [
        (FakeLane(view(end=5)), True),
        (FakeLane(view(end=None)), False),
        (FakeLane(view(0), view(1, watermark=None)), False),
        (FakeLane(), False),  # a member of the group without a partition: others have the work
    ],
)
def test_when_the_lane_is_done_is_known_only_with_the_lag_of_each_partition(lane: FakeLane, known: bool) -> None:
    _, registry = shown(lane)
    assert registry.get_sample_value("sidecar_offline_eta_seconds", {"topic": "t"}) == (0.0 if known else None)


def test_a_lane_that_does_not_run_has_no_end() -> None:
    lane = FakeLane(view(end=5))
    lane.state_now = LaneState(phase=Phase.WAITING, cause=Cause.UNREACHABLE)
    _, registry = shown(lane)
    assert registry.get_sample_value("sidecar_offline_eta_seconds", {"topic": "t"}) is None


def test_what_is_in_flight_and_what_waits_for_its_commit_are_both_not_over() -> None:
    _, registry = shown(FakeLane(view(in_flight=3, finished=4), view(1, in_flight=1)))
    assert registry.get_sample_value("sidecar_offline_in_flight", {"topic": "t"}) == 8


def test_the_oldest_item_has_an_age_that_is_not_negative_and_an_unknown_one_has_none() -> None:
    now_ms = int(time.time() * 1000)
    lane = FakeLane(
        view(0, oldest_ms=now_ms - 5_000),
        view(1, oldest_ms=now_ms + 60_000),
        view(2),
        view(3, end=9),
        view(4, end=None),
    )
    _, registry = shown(lane)
    ages = [
        registry.get_sample_value("sidecar_kafka_oldest_age_seconds", {"topic": "t", "partition": str(number)})
        for number in range(5)
    ]
    assert ages[0] is not None
    assert 5 <= ages[0] < 60
    assert ages[1:] == [0, 0, None, None]  # a producer's clock may run ahead


def test_the_page_shows_counts_by_outcome_and_since_when_a_state_holds() -> None:
    waiting = LaneState(phase=Phase.WAITING, cause=Cause.RIGHTS, detail="a right is missing", since_s=90.0)
    lane = FakeLane(view(0, state=waiting, end=None))
    lane.stats.items |= {("done", ""): 2, ("dlq", "invalid"): 1}
    document = shown(lane)[0].document()
    assert document["stats"]["items"] == [
        {"outcome": "dlq", "reason": "invalid", "count": 1},
        {"outcome": "done", "reason": "", "count": 2},
    ]
    [partition] = document["partitions"]
    assert {name: partition[name] for name in ("state", "phase", "reason", "since_s", "lag")} == {
        "state": "waiting: a right is missing",
        "phase": "waiting",
        "reason": "rights",
        "since_s": 10.0,
        "lag": None,
    }
    assert json.loads(json.dumps(document)) == document  # it is sent as JSON


def test_an_item_counts_with_its_reason_from_its_consumption_to_its_commit() -> None:
    registry = CollectorRegistry()
    durations = ItemDurations(registry, "t")
    durations.committed(finished(record(), taken_s=time.monotonic() - 7))
    durations.committed(finished(record(), outcome="dlq", reason="poison", taken_s=time.monotonic()))
    labels = {"messaging_destination_name": "t", "error_type": ""}
    name = "messaging_process_duration_seconds"
    total = registry.get_sample_value(f"{name}_sum", labels)
    assert total is not None
    assert 7 <= total < 60
    assert registry.get_sample_value(f"{name}_count", labels | {"error_type": "poison"}) == 1


async def test_what_is_committed_shows_in_the_watermark_the_events_and_the_ends_of_jobs() -> None:
    cluster = FakeCluster(items=4, partitions=1)
    registry, counts = CollectorRegistry(), JobCounts()
    offline = lane(cluster)
    figures = OfflineMetrics(registry, "t", offline, counts)
    counts.committed(finished(of_job(0, "nightly")))
    async with running(offline):
        await until(cluster, lambda: [each.watermark for each in offline.owned_partitions()] == [4])
        figures.look()
        page = generate_latest(registry).decode()
    assert 'sidecar_kafka_watermark_offset{partition="0",topic="t"} 4.0' in page
    assert 'sidecar_kafka_gaps{partition="0",topic="t"} 0.0' in page
    assert 'sidecar_offline_held_bytes{partition="0",topic="t"}' in page
    assert 'sidecar_offline_partition_events_total{event="fenced",topic="t"} 0.0' in page
    assert 'sidecar_job_ended_items_total{job_name="nightly",outcome="done",tenant="lab",topic="t"} 1.0' in page


async def test_jobs_that_somebody_holds_back_are_counted_and_named() -> None:
    lane = FakeLane()
    for job, state in (("a", "paused"), ("b", "cancelled"), ("c", "cancelled"), ("d", "running")):
        lane.orders.apply(encoded_key(("lab", job), JobField.STATE), b'{"value": "%s"}' % state.encode())
    figures, registry = shown(lane)
    counts = {
        state: registry.get_sample_value("sidecar_offline_jobs_held_back", {"topic": "t", "state": state})
        for state in ("paused", "cancelled")
    }
    assert counts == {"paused": 1, "cancelled": 2}
    assert figures.document()["jobs_held_back"][0] == {"tenant": "lab", "job": "a", "state": "paused"}
