"""The offline lane in gauges and on the status page: read off its counters and shares at each scrape."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.offline.item import DeadReason
from sidecar.offline.lane import OfflineLane
from sidecar.offline.lane_state import Phase, State
from sidecar.offline.owned_partition import Finished, ShareView

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
    """How long the items of one lane took. `durable` is to be called for each item whose result is."""

    def __init__(self, registry: CollectorRegistry, topic: str) -> None:
        duration = Histogram(
            "messaging_process_duration_seconds",
            "Consumed to result acknowledged",
            ("messaging_destination_name", "error_type"),
            buckets=PROCESS_S,
            registry=registry,
        )
        self._durations = {reason: duration.labels(topic, reason) for reason in ("", *DeadReason)}

    def durable(self, done: Finished) -> None:
        """Note how long this item took."""
        self._durations[done.reason].observe(time.monotonic() - done.taken_s)


class OfflineMetrics:
    """Families of one offline lane, read off it at each scrape."""

    def __init__(self, registry: CollectorRegistry, topic: str, lane: OfflineLane) -> None:
        self._lane = lane
        self._topic = topic
        self._shares: list[ShareView] = []
        self._state = State()
        self._ends: dict[tuple[str, str], int] = {}
        self._drain = Drain()
        registry.register(self)

    def look(self) -> None:
        """The next scrape, which runs in a thread, shows the lane as it is now."""
        self._shares = self._lane.shares()
        self._state = self._lane.state_now
        self._ends = dict(self._lane.stats.items)
        self._drain.look(sum(self._ends.values()), time.monotonic())

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: nobody has looked at the lane yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The families as of the last look."""
        shares = self._shares
        yield self._consumed(self._lane)
        yield self._items(self._lane)
        in_flight = GaugeMetricFamily("sidecar_offline_in_flight", "Consumed, not durable", labels=("topic",))
        in_flight.add_metric((self._topic,), sum(share.in_flight + share.finished for share in shares))
        yield in_flight
        yield from self._states(shares)
        yield self._eta(shares)
        yield from self._partitions(shares)

    def _states(self, shares: list[ShareView]) -> Iterable[Metric]:
        held = "1 for the state and the reason that hold now; the others have no sample"
        lane = GaugeMetricFamily("sidecar_offline_state", held, labels=("topic", "state", "reason"))
        lane.add_metric((self._topic, self._state.phase.value, self._state.cause.value), 1)
        yield lane
        labels = ("topic", "partition", "state", "reason")
        partition = GaugeMetricFamily("sidecar_offline_partition_state", held, labels=labels)
        for share in shares:
            where = (self._topic, str(share.partition), share.state.phase.value, share.state.cause.value)
            partition.add_metric(where, 1)
        yield partition

    def _eta(self, shares: list[ShareView]) -> Metric:
        """Without a sample while the lag of a partition or the rate is not known, or no partition is ours."""
        eta = GaugeMetricFamily("sidecar_offline_eta_seconds", "Left, at the rate of late", labels=("topic",))
        lags = [share.lag for share in shares]
        known = [lag for lag in lags if lag is not None]
        if self._state.phase is Phase.RUNNING and len(known) == len(lags):
            left_s = self._drain.eta_s(sum(known))
            if left_s is not None:
                eta.add_metric((self._topic,), left_s)
        return eta

    def _consumed(self, lane: OfflineLane) -> Metric:
        labels = ("messaging_system", "messaging_destination_name", "error_type")
        consumed = CounterMetricFamily("messaging_client_consumed_messages", "Records taken in", labels=labels)
        consumed.add_metric(("kafka", self._topic, ""), lane.stats.consumed)
        return consumed

    def _items(self, lane: OfflineLane) -> Metric:
        items = CounterMetricFamily("sidecar_offline_items", "Items by end", labels=("topic", "outcome", "reason"))
        zero = {("done", ""): 0, ("expired", DeadReason.EXPIRED.value): 0}
        zero |= {("dlq", reason.value): 0 for reason in DeadReason if reason is not DeadReason.EXPIRED}
        for (outcome, reason), count in (zero | self._ends).items():
            items.add_metric((self._topic, outcome, reason), count)
        items.add_metric((self._topic, "retried", ""), lane.stats.retried)
        return items

    def _partitions(self, shares: list[ShareView]) -> Iterable[Metric]:
        labels = ("topic", "partition")
        lag = GaugeMetricFamily("sidecar_kafka_lag", "Log end minus watermark", labels=labels)
        age = GaugeMetricFamily("sidecar_kafka_oldest_age_seconds", "Of the oldest item not durable", labels=labels)
        # What is not known has no sample: a lane that stands still must not look as if nothing were left to do.
        now_ms = time.time() * 1000
        for share in shares:
            where = (self._topic, str(share.partition))
            if share.lag is not None:
                lag.add_metric(where, share.lag)
            if share.oldest_ms is not None:
                age.add_metric(where, max(now_ms - share.oldest_ms, 0) / 1000)
            elif share.lag == 0:
                age.add_metric(where, 0)
        return (lag, age)

    def document(self) -> dict[str, Any]:
        """The lane as the status page shows it. What is not known is null."""
        now_s = self._lane.now_s
        stats = dataclasses.asdict(self._lane.stats)
        items = [{"outcome": o, "reason": r, "count": n} for (o, r), n in sorted(self._lane.stats.items.items())]
        return {
            **_state(self._lane.state_now, now_s),
            "topic": self._topic,
            "stats": stats | {"items": items},
            "partitions": [
                {**dataclasses.asdict(share), **_state(share.state, now_s), "lag": share.lag}
                for share in self._lane.shares()
            ],
        }


def _state(state: State, now_s: float) -> dict[str, Any]:
    return {
        "state": state.text,
        "phase": state.phase.value,
        "reason": state.cause.value,
        "since_s": round(max(now_s - state.since_s, 0.0), 3),
    }
