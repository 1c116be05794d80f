"""A row of the table makes its metric, and is read at each scrape."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from sidecar.telemetry.metric_row import MetricRow, Scraped, value


def test_what_is_not_known_is_not_shown() -> None:
    row = MetricRow[list[float]]("a", "gauge", "A.", (), value(lambda found: found[0] if found else None))
    registry, found = CollectorRegistry(), list[float]()
    registry.register(Scraped((row,), lambda: found))
    assert generate_latest(registry) == b""
    found.append(2.0)
    assert generate_latest(registry).endswith(b"a 2.0\n")
