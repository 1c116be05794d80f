"""One row of a table of metrics, and the collector that reads such a table at each scrape.

Each room has the table of the metrics whose values it owns. A row without `read` is kept as things happen; its counter,
gauge or histogram is made from the row, so that a name and its help stand in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Source = TypeVar("Source")
Labelled = tuple[tuple[str, ...], float]  # the values of a sample's labels, and the sample's own
_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


@dataclass(frozen=True)  # without slots: Python 3.11 cannot make a generic class that is frozen and has them
class MetricRow(Generic[Source]):
    """One metric: positional, so that a table has columns."""

    name: str  # of a counter without `_total`
    kind: Literal["counter", "gauge", "histogram"]
    help: str  # one plain sentence
    labels: tuple[str, ...] = ()
    read: Callable[[Source], Iterable[Labelled]] | None = None
    buckets: tuple[float, ...] = ()

    def counter(self, registry: CollectorRegistry) -> Counter:
        """Return a new counter that is kept as things happen."""
        return Counter(self.name, self.help, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """Return a new gauge that is set as things happen."""
        return Gauge(self.name, self.help, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """Return a new histogram that observes things as they happen."""
        return Histogram(self.name, self.help, self.labels, buckets=self.buckets, registry=registry)


def value(read: Callable[[Source], float | None]) -> Callable[[Source], Iterator[Labelled]]:
    """Return the reader of a metric without labels; it has no sample where the value is None."""

    def samples(source: Source) -> Iterator[Labelled]:
        if (found := read(source)) is not None:
            yield (), found

    return samples


class Scraped(Collector, Generic[Source]):
    """Reads a table off its source at each scrape. A metric without a sample is not shown."""

    def __init__(self, rows: Sequence[MetricRow[Source]], source: Callable[[], Source | None]) -> None:
        self._rows = rows
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry would refuse names that it knows, and a test says that there are none."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the families in the order of the table; none before there is a source."""
        if (source := self._source()) is None:
            return
        for row in self._rows:
            if row.read is not None and (samples := list(row.read(source))):
                family = _FAMILIES[row.kind](row.name, row.help, labels=row.labels)
                for labels, number in samples:
                    family.add_metric(labels, number)
                yield family
