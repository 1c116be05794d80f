"""The offline lane in gauges and on the status page: read off its counters and shares at each scrape."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.edge.items import DeadReason
from sidecar.edge.offline import OfflineLane
from sidecar.edge.share import Finished, ShareView

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

    def eta_s(self, left: int) -> float:
        """Seconds until `left` items have ended; inf while none does."""
        if not left:
            return 0.0
        return left / self.per_s if self.per_s else math.inf


class OfflineMetrics:
    """Families of one offline lane. `durable` is to be called for each item whose result is."""

    def __init__(self, registry: CollectorRegistry, topic: str) -> None:
        self.lane: OfflineLane | None = None
        self._topic = topic
        self._shares: list[ShareView] = []
        self._ends: dict[tuple[str, str], int] = {}
        self._drain = Drain()
        duration = Histogram(
            "messaging_process_duration_seconds",
            "Consumed to result acknowledged",
            ("messaging_destination_name", "error_type"),
            buckets=PROCESS_S,
            registry=registry,
        )
        self._durations = {reason: duration.labels(topic, reason) for reason in ("", *DeadReason)}
        registry.register(self)

    def durable(self, done: Finished) -> None:
        """Note how long this item took."""
        self._durations[done.reason].observe(time.monotonic() - done.taken_s)

    def look(self) -> None:
        """The next scrape, which runs in a thread, shows the lane as it is now."""
        if self.lane is not None:
            self._shares = self.lane.shares()
            self._ends = dict(self.lane.stats.items)
            self._drain.look(sum(self._ends.values()), time.monotonic())

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: the lane does not exist yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The families as of the last look."""
        if self.lane is None:
            return
        shares = self._shares
        yield self._consumed(self.lane)
        yield self._items(self.lane)
        in_flight = GaugeMetricFamily("sidecar_offline_in_flight", "Consumed, not durable", labels=("topic",))
        in_flight.add_metric((self._topic,), sum(share.in_flight + share.finished for share in shares))
        yield in_flight
        eta = GaugeMetricFamily("sidecar_offline_eta_seconds", "Left, at the rate of late", labels=("topic",))
        eta.add_metric((self._topic,), self._drain.eta_s(sum(max(share.end - share.watermark, 0) for share in shares)))
        yield eta
        yield from self._partitions(shares)

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
        now_ms = time.time() * 1000
        for share in shares:
            where = (self._topic, str(share.partition))
            lag.add_metric(where, max(share.end - share.watermark, 0) if share.ready else 0)
            age.add_metric(where, 0 if share.oldest_ms is None else max(now_ms - share.oldest_ms, 0) / 1000)
        return (lag, age)

    def document(self) -> dict[str, Any]:
        """The lane as the status page shows it."""
        if self.lane is None:
            return {"state": "starting"}
        stats = dataclasses.asdict(self.lane.stats)
        items = [{"outcome": o, "reason": r, "count": n} for (o, r), n in sorted(self.lane.stats.items.items())]
        return {
            "state": self.lane.state,
            "topic": self._topic,
            "stats": stats | {"items": items},
            "partitions": [dataclasses.asdict(share) for share in self.lane.shares()],
        }
