"""The offline lane in gauges and on the status page: read off its counters and owned partitions at each scrape."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from sidecar.offline.item import DeadReason
from sidecar.offline.job_counts import JobCounts
from sidecar.offline.job_orders import JobState
from sidecar.offline.job_progress import JobKey
from sidecar.offline.lane import OfflineLane
from sidecar.offline.lane_state import LaneState, Phase
from sidecar.offline.owned_partition import FinishedItem, PartitionView
from sidecar.telemetry.metric_row import Labelled, MetricRow, Scraped
from sidecar.telemetry.metric_table import JOBS_SHOWN, tenant_label

JOBS_SHOWN_MAX = 100  # of those that are paused or cancelled, the newest orders
DRAIN_S = 300.0  # time constant of the running mean
PROCESS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


@dataclasses.dataclass(slots=True)
class Drain:
    """How fast items end, as a running mean over real elapsed time."""

    per_s: float = 0.0
    _ended: int = 0
    _at_s: float = math.inf

    def look(self, ended: int, now_s: float) -> None:
        """So many items have ended since the start. Looks closer together than a second are taken together."""
        passed_s = now_s - self._at_s
        if 0 <= passed_s < 1:
            return
        if passed_s >= 1:
            weight = 1 - math.exp(-passed_s / DRAIN_S) if self.per_s else 1.0
            self.per_s += weight * ((ended - self._ended) / passed_s - self.per_s)
        self._ended, self._at_s = ended, now_s

    def eta_s(self, left: int) -> float | None:
        """Seconds until `left` items have ended; None while none does."""
        if not left:
            return 0.0
        return left / self.per_s if self.per_s else None


class ItemDurations:
    """How long the items of one lane took. `committed` is to be called for each item whose result is."""

    def __init__(self, registry: CollectorRegistry, topic: str) -> None:
        duration = DURATION.histogram(registry)
        self._durations = {reason: duration.labels(topic, reason) for reason in ("", *DeadReason)}

    def committed(self, done: FinishedItem) -> None:
        """Note how long this item took."""
        self._durations[done.reason].observe(time.monotonic() - done.taken_s)


class OfflineMetrics:
    """Families of one offline lane, read off it at each scrape."""

    def __init__(
        self, registry: CollectorRegistry, topic: str, lane: OfflineLane, jobs: JobCounts | None = None
    ) -> None:
        """`jobs` counts how the items of each job ended."""
        self._lane = lane
        self._jobs = jobs or JobCounts()
        self._stats = lane.stats
        self._job_ends: Sequence[tuple[JobKey, Mapping[str, int]]] = []
        self._topic = topic
        self._owned_partitions: list[PartitionView] = []
        self._state = LaneState()
        self._ends: dict[tuple[str, str], int] = {}
        self._held_back: Counter[JobState] = Counter()
        self._drain = Drain()
        registry.register(Scraped(SCRAPED, lambda: self))

    def look(self) -> None:
        """The next scrape, which runs in a thread, shows the lane as it is now."""
        self._owned_partitions = self._lane.owned_partitions()
        self._state = self._lane.state_now
        self._ends = dict(self._lane.stats.items)
        self._stats = dataclasses.replace(self._lane.stats)
        self._job_ends = self._jobs.newest(JOBS_SHOWN)
        self._held_back = Counter(state for _, state in self._lane.orders.held_back())
        self._drain.look(sum(self._ends.values()), time.monotonic())

    # ---- the readers of the table below, as of the last look ---------------------------------------------------------

    def consumed(self) -> Iterator[Labelled]:
        """Yield how many records were taken in."""
        yield ("kafka", self._topic, ""), self._lane.stats.consumed

    def items(self) -> Iterator[Labelled]:
        """Yield how many items ended so; each known end is there from the start."""
        named = (DeadReason.EXPIRED, DeadReason.CANCELLED)
        zero = {("done", ""): 0} | {(reason.value, reason.value): 0 for reason in named}
        zero |= {("dlq", reason.value): 0 for reason in DeadReason if reason not in named}
        for end, count in (zero | self._ends | {("retried", ""): self._lane.stats.retried}).items():
            yield (self._topic, *end), count

    def in_flight(self) -> Iterator[Labelled]:
        """Yield how many items are neither waiting at the broker nor over."""
        yield (self._topic,), sum(each.in_flight + each.finished for each in self._owned_partitions)

    def state(self) -> Iterator[Labelled]:
        """Yield the state and the reason that hold now; the others have no sample."""
        yield (self._topic, self._state.phase.value, self._state.cause.value), 1

    def partition_states(self) -> Iterator[Labelled]:
        """Yield the same for each partition."""
        for each in self._owned_partitions:
            yield (self._topic, str(each.partition), each.state.phase.value, each.state.cause.value), 1

    def eta(self) -> Iterator[Labelled]:
        """Yield nothing while the lag of a partition or the rate is not known, or no partition is ours."""
        lags = [owned_partition.lag for owned_partition in self._owned_partitions]
        known = [lag for lag in lags if lag is not None]
        if self._state.phase is Phase.RUNNING and known and len(known) == len(lags):
            left_s = self._drain.eta_s(sum(known))
            if left_s is not None:
                yield (self._topic,), left_s

    def jobs_held_back(self) -> Iterator[Labelled]:
        """Yield how many jobs are paused and cancelled, as far as orders are known here."""
        for state in (JobState.PAUSED, JobState.CANCELLED):
            yield (self._topic, state.value), self._held_back.get(state, 0)

    # What is not known has no sample: a lane that stands still must not look as if nothing were left to do.

    def lags(self) -> Iterator[Labelled]:
        """Yield the lag of each partition of which it is known."""
        for owned_partition in self._owned_partitions:
            if owned_partition.lag is not None:
                yield (self._topic, str(owned_partition.partition)), owned_partition.lag

    def ages(self) -> Iterator[Labelled]:
        """Yield the age of the oldest item of each partition, 0 where none is left."""
        now_ms = time.time() * 1000
        for owned_partition in self._owned_partitions:
            if owned_partition.oldest_ms is not None:
                yield (self._topic, str(owned_partition.partition)), max(now_ms - owned_partition.oldest_ms, 0) / 1000
            elif owned_partition.lag == 0:
                yield (self._topic, str(owned_partition.partition)), 0

    def commits(self) -> Iterator[Labelled]:
        """Yield what happened to transactions and owned partitions."""
        yield (self._topic, "committed"), self._stats.commits
        yield (self._topic, "fenced"), self._stats.fenced
        yield (self._topic, "reopened"), self._stats.reopens
        yield (self._topic, "rebalanced"), self._stats.rebalances

    def watermarks(self) -> Iterator[Labelled]:
        """Yield the watermark of each partition of which it is known."""
        for each in self._owned_partitions:
            if each.watermark is not None:
                yield (self._topic, str(each.partition)), each.watermark

    def gaps(self) -> Iterator[Labelled]:
        """Yield the gaps of each partition of which they are known."""
        for each in self._owned_partitions:
            if each.gaps is not None:
                yield (self._topic, str(each.partition)), each.gaps

    def bytes_held(self) -> Iterator[Labelled]:
        """Yield what the taken items of each partition hold of the memory."""
        for each in self._owned_partitions:
            yield (self._topic, str(each.partition)), each.bytes_held

    def job_ends(self) -> Iterator[Labelled]:
        """Yield how the items of the jobs ended of which one ended last."""
        for (tenant, job), counts in self._job_ends:
            for outcome, count in counts.items():
                yield (self._topic, tenant_label(tenant), tenant_label(job), outcome), count

    def document(self) -> dict[str, Any]:
        """The lane as the status page shows it. What is not known is null."""
        now_s = self._lane.now_s
        stats = dataclasses.asdict(self._lane.stats)
        items = [{"outcome": o, "reason": r, "count": n} for (o, r), n in sorted(self._lane.stats.items.items())]
        return {
            **_state(self._lane.state_now, now_s),
            "topic": self._topic,
            "jobs_held_back": [
                {"tenant": tenant, "job": job, "state": state.value}
                for (tenant, job), state in self._lane.orders.held_back()[-JOBS_SHOWN_MAX:]
            ],
            "stats": stats | {"items": items},
            "partitions": [
                {
                    **dataclasses.asdict(owned_partition),
                    **_state(owned_partition.state, now_s),
                    "lag": owned_partition.lag,
                }
                for owned_partition in self._lane.owned_partitions()
            ],
        }


def _state(state: LaneState, now_s: float) -> dict[str, Any]:
    return {
        "state": state.text,
        "phase": state.phase.value,
        "reason": state.cause.value,
        "since_s": round(max(now_s - state.since_s, 0.0), 3),
    }


_PARTITION = ("topic", "partition")
# fmt: off
DURATION = MetricRow[OfflineMetrics]("messaging_process_duration_seconds", "histogram",
    "Time from the consumption of an item until its result is committed.",
    ("messaging_destination_name", "error_type"), buckets=PROCESS_S)
SCRAPED = (
    MetricRow("messaging_client_consumed_messages", "counter", "Records that were consumed.",
        ("messaging_system_name", "messaging_destination_name", "error_type"), OfflineMetrics.consumed),
    MetricRow("sidecar_offline_items", "counter", "Items that are over, by their outcome, and retries.",
        ("topic", "outcome", "reason"), OfflineMetrics.items),
    MetricRow("sidecar_offline_in_flight", "gauge", "Items that were consumed and whose result is not committed.",
        ("topic",), OfflineMetrics.in_flight),
    MetricRow("sidecar_offline_jobs_held_back", "gauge", "Jobs that somebody has paused or cancelled.",
        ("topic", "state"), OfflineMetrics.jobs_held_back),
    MetricRow("sidecar_offline_state", "gauge", "1 for the state and the reason of the lane that hold now.",
        ("topic", "state", "reason"), OfflineMetrics.state),
    MetricRow("sidecar_offline_partition_state", "gauge",
        "1 for the state and the reason of a partition that hold now.", (*_PARTITION, "state", "reason"),
        OfflineMetrics.partition_states),
    MetricRow("sidecar_offline_eta_seconds", "gauge",
        "Time until the lane has finished what is left, at the rate of the last minutes.", ("topic",),
        OfflineMetrics.eta),
    MetricRow("sidecar_kafka_lag", "gauge", "Records from the committed offset to the end of the partition.",
        _PARTITION, OfflineMetrics.lags),
    MetricRow("sidecar_kafka_oldest_age_seconds", "gauge", "Age of the oldest item whose result is not committed.",
        _PARTITION, OfflineMetrics.ages),
    MetricRow("sidecar_offline_partition_events", "counter",
        "Transactions committed, and partitions fenced, reopened and rebalanced.", ("topic", "event"),
        OfflineMetrics.commits),
    MetricRow("sidecar_kafka_watermark_offset", "gauge",
        "Offset below which every item of the partition has a committed result or dead letter.", _PARTITION,
        OfflineMetrics.watermarks),
    MetricRow("sidecar_kafka_gaps", "gauge", "Items that are not done, from the watermark to the highest item that is.",
        _PARTITION, OfflineMetrics.gaps),
    MetricRow("sidecar_offline_held_bytes", "gauge", "Memory of the items and results that are not committed.",
        _PARTITION, OfflineMetrics.bytes_held),
    MetricRow("sidecar_job_ended_items", "counter",
        f"Items of a job that ended here since the start; the {JOBS_SHOWN} jobs with the newest ends.",
        ("topic", "tenant", "job_name", "outcome"), OfflineMetrics.job_ends),
)
# fmt: on
METRICS = (DURATION, *SCRAPED)
