"""All metrics of the product, from the tables of the rooms that own their values."""

from __future__ import annotations

from typing import Any

from sidecar.driver import metrics as driver
from sidecar.offline import metrics as offline
from sidecar.telemetry import metric_table
from sidecar.telemetry.metric_row import MetricRow


def metric_rows() -> tuple[MetricRow[Any], ...]:
    """Return one row per metric, in the order in which a reader meets them: requests and engines, faults, offline."""
    return (*metric_table.METRICS, *driver.METRICS, *offline.METRICS)
