"""Queries are written from the table of metrics: a name or a label that is gone is an error."""

from __future__ import annotations

import pytest

from dev.boards.query import OURS, mean, of, per, percentile, rate
from sidecar.cli.metric_rows import metric_rows


@pytest.mark.parametrize("name", ["sidecar_slot", "sidecar_tokens", "sidecar_queue_wait_seconds"])
def test_a_metric_that_is_not_on_the_page_cannot_be_asked_for(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        of(name)


def test_a_label_that_the_metric_has_not_cannot_be_asked_for() -> None:
    with pytest.raises(KeyError, match="sidecar_tokens_total has no label tenant"):
        of("sidecar_tokens_total", tenant="a")


def test_a_selector_keeps_to_the_board_and_knows_four_kinds_of_filter() -> None:
    board = 'job=~"$job", instance=~"$instance", model=~"$model"'
    assert of("sidecar_slots") == f"sidecar_slots{{{board}}}"
    assert of("sidecar_tokens_total", lane="online") == f'sidecar_tokens_total{{{board}, lane="online"}}'
    for value, written in (("~a|b", '=~"a|b"'), ("!a", '!="a"'), ("!~a|b", '!~"a|b"')):
        assert of("sidecar_tokens_total", lane=value).endswith(f"lane{written}}}")


def test_metrics_of_others_are_not_narrowed_to_our_jobs() -> None:
    assert of("DCGM_FI_PROF_SM_ACTIVE") == "DCGM_FI_PROF_SM_ACTIVE"


def test_every_sample_of_every_metric_has_its_name() -> None:
    assert len(OURS) == sum(3 if row.kind == "histogram" else 1 for row in metric_rows())


def test_a_quotient_has_no_sample_where_there_is_nothing_to_divide_by() -> None:
    assert per("a", "b") == "a / (b > 0)"
    assert "_count" in mean("sidecar_interference_seconds").split("/")[1]


def test_a_percentile_keeps_the_buckets_and_the_label_that_it_is_asked_by() -> None:
    assert "sum by (le, lane) (rate(" in percentile(0.95, "sidecar_queue_wait_seconds", "lane")
    assert rate("sidecar_tokens_total", over="1h").endswith("[1h]))")
