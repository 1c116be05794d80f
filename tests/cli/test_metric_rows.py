"""Every metric stands in one table, and the page shows what the tables say."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.cli.metric_rows import metric_rows
from sidecar.core.engine import Limit
from sidecar.settings.file import EngineEndpoint
from sidecar.telemetry.metric_row import MetricRow
from sidecar.telemetry.metric_table import METRICS
from sidecar.telemetry.metrics import Metrics
from tests.core.builders import scheduler

ROWS = {row.name: row for row in metric_rows()}


def test_no_name_stands_in_the_tables_twice() -> None:
    assert len(ROWS) == len(metric_rows())


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_the_help_of_a_metric_is_one_plain_sentence(row: MetricRow[Any]) -> None:
    assert row.help.endswith(".")
    assert row.help.count(". ") == 0
    assert (row.kind == "histogram") == bool(row.buckets)


def test_the_page_shows_metrics_of_the_table_with_its_help_and_labels() -> None:
    subject = Metrics((EngineEndpoint(name="e"),), version="test", config_hash="test")
    subject.recorder = lambda: {"state": "running", "dropped": 0}
    subject.snapshot = scheduler().snapshot()
    shown = {family.name: family for family in subject.registry.collect()}
    ours = {name: family for name, family in shown.items() if not name.startswith(("python_", "process_"))}
    for name, family in ours.items():
        assert (family.documentation, family.type) == (ROWS[name].help, ROWS[name].kind)
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(ROWS[name].labels), name
    absent = {row.name for row in METRICS} - ours.keys()
    assert absent <= {
        *("sidecar_slots_foreign", "sidecar_latency_model_error_ratio", "sidecar_cost_usd"),
        *("sidecar_online_alone_seconds", "sidecar_online_added_seconds", "sidecar_kv_reuse_ratio"),
        *(
            "sidecar_guard_signal",
            "sidecar_guard_threshold",
            "sidecar_tenant_weight",
            "sidecar_worst_window_share_ratio",
        ),
        *(name for name in absent if name.startswith("sidecar_job_")),  # of jobs that there are not
    }
    assert {sample.labels["limit"] for sample in ours["sidecar_limit_binding"].samples} == set(Limit)
