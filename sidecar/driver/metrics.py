"""What the driver sees beside the scheduler, in gauges: engines that fall silent, and faults that it contained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry

from sidecar.driver.driver import Driver
from sidecar.telemetry.metric_row import Labelled, MetricRow, Scraped


class DriverMetrics:
    """Families of one driver. `look` is to be called in its loop before each scrape, which runs in a thread."""

    def __init__(self, registry: CollectorRegistry, driver: Driver, models: Mapping[str, str]) -> None:
        """`models` are those of the engines, by the engines' names."""
        self._driver = driver
        self._models = models
        self._silences_s: dict[str, float] = {}
        self._faults: dict[tuple[str, str], int] = {}
        registry.register(Scraped(METRICS, lambda: self))

    def look(self) -> None:
        """The next scrape shows the driver as it is now."""
        self._silences_s = self._driver.silences_s()
        self._faults = dict(self._driver.contained.faults)

    def silences(self) -> Iterator[Labelled]:
        """Yield the silence of each engine with something in flight, as of the last look."""
        for name, seconds in self._silences_s.items():
            yield (self._models[name], name), seconds

    def faults(self) -> Iterator[Labelled]:
        """Yield how often each fault was contained, as of the last look."""
        yield from self._faults.items()


# fmt: off
METRICS = (
    MetricRow("sidecar_engine_silence_seconds", "gauge",
        "Longest time without a token of a dispatch that is in flight on the engine.", ("model", "engine"),
        DriverMetrics.silences),
    MetricRow("sidecar_contained_faults", "counter",
        "Exceptions of callers' code, of listeners and of engines' answers that the driver contained.",
        ("where", "error_type"), DriverMetrics.faults),
)
# fmt: on
