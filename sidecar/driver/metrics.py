"""What the driver sees beside the scheduler, in gauges: engines that fall silent, and faults that it contained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.driver.driver import Driver


class DriverMetrics:
    """Families of one driver. `look` is to be called in its loop before each scrape, which runs in a thread."""

    def __init__(self, registry: CollectorRegistry, driver: Driver, models: Mapping[str, str]) -> None:
        """`models` are those of the engines, by the engines' names."""
        self._driver = driver
        self._models = models
        self._silences_s: dict[str, float] = {}
        self._faults: dict[tuple[str, str], int] = {}
        registry.register(self)

    def look(self) -> None:
        """The next scrape shows the driver as it is now."""
        self._silences_s = self._driver.silences_s()
        self._faults = dict(self._driver.contained.faults)

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: there is nothing before the first look."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The families as of the last look. An engine with nothing in flight has no sample."""
        text = "Of the dispatches in flight on it: the longest time without a token"
        silence = GaugeMetricFamily("sidecar_engine_silence_seconds", text, labels=("model", "engine"))
        for name, seconds in self._silences_s.items():
            silence.add_metric((self._models[name], name), seconds)
        text = "What calls, listeners and engines' answers raised, and the driver contained"
        faults = CounterMetricFamily("sidecar_contained_faults", text, labels=("where", "error_type"))
        for where, count in self._faults.items():
            faults.add_metric(where, count)
        return (silence, faults)
