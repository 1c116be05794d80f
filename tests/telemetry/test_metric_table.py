"""The table of metrics: names and units by the conventions, and readers that say only what is known."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sidecar.core.deadlines import JobVerdict
from sidecar.core.engine import Limit
from sidecar.core.events import Arrived, EngineUp
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.snapshot import EngineSnapshot, JobSnapshot, Snapshot
from sidecar.telemetry.metric_row import Labelled, MetricRow, Scraped
from sidecar.telemetry.metric_table import JOBS_SHOWN, KEPT, METRICS, SCRAPED, Scrape, tenant_label

UNITS = ("seconds", "usd", "ratio", "info")
ROWS = {row.name: row for row in METRICS}


def snapshot() -> Snapshot:
    scheduler = Scheduler(SchedulerSettings(window_ms=0), [EngineSettings(name="e", slots=2)])
    scheduler.handle(EngineUp(engine="e"), 0.0)
    for number, tenant in enumerate(("a", "a", "b\ud800")):
        asked = Request(
            id=f"r{number}",
            lane=Lane.ONLINE,
            model="tensorrt_llm",
            arrived_s=float(number),
            prompt_tokens=5,
            output_tokens_max=5,
            tenant=tenant,
        )
        scheduler.handle(Arrived(request=asked), float(number))
    return scheduler.snapshot()


def scrape(**parts: Any) -> Scrape:
    known: dict[str, Any] = {
        "snapshot": snapshot(),
        "addresses": {"e": "host:8001"},
        "slot_seconds": {("e", Lane.ONLINE): 3.0},
        "usd": [("tensorrt_llm", "e", {"online": 0.25, "idle": 0.5})],
        "tenant_tokens": [(("tensorrt_llm", "online", "a", "input"), 10)],
        "dropped_spans": 0,
        "recorder": None,
        "loop_lag_s": 0.01,
    }
    return Scrape(**(known | parts))


def of_engine(**changes: Any) -> Scrape:
    """A scrape whose engine has these figures."""
    now = snapshot()
    [engine] = now.engines.values()
    return scrape(snapshot=replace(now, engines={"e": changed(engine, **changes)}))


def changed(engine: EngineSnapshot, **changes: Any) -> EngineSnapshot:
    own = {name: value for name, value in changes.items() if hasattr(engine, name)}
    figures = {name: value for name, value in changes.items() if name not in own}
    return replace(engine, **own, attribution=replace(engine.attribution, **figures))


def read(name: str, found: Scrape) -> dict[tuple[Any, ...], float]:
    reader = ROWS[name].read
    assert reader is not None
    return {tuple(map(str, labels)): float(number) for labels, number in reader(found)}


@pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
def test_names_say_their_unit_and_never_their_kind(row: MetricRow[Any]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", row.name)
    assert not row.name.endswith(("_total", "_count", "_sum", "_bucket", "_milliseconds", "_ms"))
    if "time" in row.help.lower().split()[0:1] or row.kind == "histogram":
        assert row.name.endswith(UNITS)


@pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
def test_no_label_is_one_that_prometheus_gives_to_what_it_scrapes(row: MetricRow[Any]) -> None:
    assert not {"job", "instance"} & set(row.labels)


@pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
def test_buckets_belong_to_histograms_and_ascend(row: MetricRow[Any]) -> None:
    assert bool(row.buckets) == (row.kind == "histogram")
    assert list(row.buckets) == sorted(set(row.buckets))


def test_what_is_kept_has_no_reader_and_what_is_scraped_has_one() -> None:
    assert [row.name for row in KEPT if row.read is not None] == []
    assert [row.name for row in SCRAPED if row.read is None] == []


@pytest.mark.parametrize("row", SCRAPED, ids=lambda row: row.name)
def test_each_sample_has_a_value_for_each_label_and_none_comes_twice(row: MetricRow[Scrape]) -> None:
    assert row.read is not None
    found: list[Labelled] = [*row.read(scrape(recorder={"state": "running", "dropped": 0}))]
    assert {len(labels) for labels, _ in found} <= {len(row.labels)}
    assert len({tuple(map(str, labels)) for labels, _ in found}) == len(found)


def test_the_whole_table_is_a_page_whatever_tenants_are_called() -> None:
    registry = CollectorRegistry()
    registry.register(Scraped(SCRAPED, scrape))
    page = generate_latest(registry).decode()
    assert 'sidecar_tenant_waiting{lane="online",model="tensorrt_llm",tenant="b\\\\ud800"} 1.0' in page
    assert 'sidecar_engine_ready{model="tensorrt_llm",server_address="host:8001"} 1.0' in page


@pytest.mark.parametrize(("name", "label"), [("a", "a"), ("é😀", "é😀"), ("b\ud800", "b\\ud800"), ("", "")])
def test_a_name_that_cannot_be_encoded_is_written_so_that_it_can(name: str, label: str) -> None:
    assert tenant_label(name) == label
    tenant_label(name).encode()


def test_of_the_limits_one_is_at_1_and_all_others_at_0() -> None:
    assert read("sidecar_limit_binding", of_engine(limit_binding=Limit.SLOTS)) == {
        ("tensorrt_llm", "e", str(limit)): float(limit is Limit.SLOTS) for limit in Limit
    }


@pytest.mark.parametrize(
    ("name", "unknown", "known", "value"),
    [
        ("sidecar_slots_foreign", {"foreign_slots": None}, {"foreign_slots": 2}, 2),
        ("sidecar_kv_reuse_ratio", {"resumed_tokens": 0}, {"resumed_tokens": 9, "reuse_ratio": 0.5}, 0.5),
        (
            "sidecar_online_added_seconds",
            {"attributed": 0, "added_ms": 7.0},
            {"attributed": 1, "added_ms": 7.0},
            0.007,
        ),
        ("sidecar_online_alone_seconds", {"attributed": 0, "alone_ms": 9.0}, {"attributed": 1, "alone_ms": 9.0}, 0.009),
    ],
)
def test_what_is_not_known_of_an_engine_has_no_sample(
    name: str, unknown: dict[str, Any], known: dict[str, Any], value: float
) -> None:
    assert read(name, of_engine(**unknown)) == {}
    assert read(name, of_engine(**known)) == {("tensorrt_llm", "e"): value}


def test_a_signal_of_the_guard_has_its_threshold_and_an_unknown_one_neither() -> None:
    for found in (
        of_engine(kv_tokens_max=0),
        of_engine(kv_tokens_max=1000, kv_tokens=200, kv_foreign_tokens=100, kv_guard_tokens=100),
    ):
        assert read("sidecar_guard_signal", found).keys() == read("sidecar_guard_threshold", found).keys()
    kv = ("tensorrt_llm", "e", "kv_cache_utilization")
    full = of_engine(kv_tokens_max=1000, kv_tokens=200, kv_foreign_tokens=100, kv_guard_tokens=100)
    assert (read("sidecar_guard_signal", full)[kv], read("sidecar_guard_threshold", full)[kv]) == (0.3, 0.9)
    assert kv not in read("sidecar_guard_signal", of_engine(kv_tokens_max=0))


def test_slots_of_an_engine_that_was_taken_away_are_left_out() -> None:
    found = scrape(slot_seconds={("e", Lane.ONLINE): 3.0, ("gone", Lane.ONLINE): 9.0})
    assert read("sidecar_slot_seconds", found) == {("tensorrt_llm", "e", "online"): 3.0}


@pytest.mark.parametrize(
    ("recorder", "running"),
    [
        (None, {}),
        ({"state": "running", "dropped": 2}, {(): 1.0}),
        ({"state": "stopped: full", "dropped": 2}, {(): 0.0}),
    ],
)
def test_a_recorder_is_told_of_only_where_one_was_asked_for(recorder: Any, running: dict[Any, float]) -> None:
    found = scrape(recorder=recorder)
    assert read("sidecar_recorder_running", found) == running
    assert read("sidecar_recorder_dropped_records", found) == ({} if recorder is None else {(): 2.0})


def test_rent_is_split_by_who_had_the_slots() -> None:
    assert read("sidecar_cost_usd", scrape()) == {
        ("tensorrt_llm", "e", "online"): 0.25,
        ("tensorrt_llm", "e", "idle"): 0.5,
    }


def test_every_result_of_a_reserved_dispatch_and_every_term_is_there_at_zero() -> None:
    assert [key[2] for key in read("sidecar_reserved_dispatches", scrape())] == ["due", "taken", "postponed", "lapsed"]
    assert [key[2] for key in read("sidecar_latency_model_seconds", scrape())] == [
        *("iteration", "token", "context_1000")
    ]


def job(name: str, *, verdict: JobVerdict = JobVerdict.ON_TIME, items: int = 1, **known: float) -> JobSnapshot:
    seconds: dict[str, float | None] = {"deadline_in_s": None, "eta_p50_s": None, "eta_p90_s": None, **known}
    return JobSnapshot(model="m", tenant="t", job=name, items=items, verdict=verdict, **seconds)


def of_jobs(*jobs: JobSnapshot) -> Scrape:
    return scrape(snapshot=replace(snapshot(), jobs=jobs))


def test_of_ten_thousand_jobs_fifty_have_labels_and_a_late_one_is_among_them() -> None:
    jobs = [job(f"j{number}", items=10) for number in range(10_000)]
    shown = read("sidecar_job_items", of_jobs(*jobs, job("late", verdict=JobVerdict.AT_RISK)))
    assert len(shown) == JOBS_SHOWN
    assert ("m", "t", "late") in shown


def test_a_job_says_when_it_is_due_and_done_and_nothing_that_is_not_known() -> None:
    found = of_jobs(job("a", deadline_in_s=-5.0, eta_p50_s=60.0, eta_p90_s=90.0), job("b"))
    assert read("sidecar_job_deadline_seconds", found) == {("m", "t", "a"): -5.0}
    assert read("sidecar_job_eta_seconds", found) == {("m", "t", "a", "p50"): 60.0, ("m", "t", "a", "p90"): 90.0}


@pytest.mark.parametrize(
    ("verdict", "at_risk"),
    [
        (JobVerdict.ON_TIME, [0.0]),
        (JobVerdict.AT_RISK, [1.0]),
        (JobVerdict.INFEASIBLE, [1.0]),
        (JobVerdict.UNKNOWN, []),
        (JobVerdict.NO_DEADLINE, []),
    ],
)
def test_a_job_is_at_risk_only_where_a_deadline_was_judged(verdict: JobVerdict, at_risk: list[float]) -> None:
    assert list(read("sidecar_job_at_risk", of_jobs(job("a", verdict=verdict))).values()) == at_risk


def test_requests_without_the_name_of_a_job_are_no_job() -> None:
    assert read("sidecar_job_items", of_jobs(job(""))) == {}


def test_a_tenant_has_the_weight_of_the_settings_and_the_others_together_have_none() -> None:
    weights = read("sidecar_tenant_weight", scrape(weights={"a": 3.0}))
    online = {tenant: weight for (_, lane, tenant), weight in weights.items() if lane == "online"}
    assert online == {"a": 3.0, "b\\ud800": 1.0}
    assert {key[2] for key in read("sidecar_tenant_slots", scrape())} == {"a", "b\\ud800", "other"}


def test_contended_dispatches_are_split_between_the_lanes() -> None:
    split = read("sidecar_contended_dispatches", of_engine(contended=10, offline_of_contended=3))
    assert split == {("tensorrt_llm", "e", "offline"): 3.0, ("tensorrt_llm", "e", "online"): 7.0}
