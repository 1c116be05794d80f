"""Jobs of a simulated week: when they are there, what was said of them, and how that is counted."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from sidecar.inflight.profile import profile_named
from sidecar.sim import policies, workloads
from sidecar.sim.jobs import Kept, deadline_figures, eta_figures, item_figures, spread_days
from sidecar.sim.simulation_run import RunPlan, run
from sidecar.sim.workloads import WorkloadJob

DIURNAL = workloads.by_name("diurnal")


def kept(ended_s: float, *, warned_s: float = inf, forecasts: tuple[tuple[float, float], ...] = ()) -> Kept:
    batch = WorkloadJob(tenant="t", name="week", accepted_s=0.0, deadline_s=100.0, items=5)
    return Kept(batch=batch, left=0, ended_s=ended_s, warned_s=warned_s, forecasts=list(forecasts))


@pytest.mark.slow
def test_a_week_fits_into_any_number_of_hours_with_as_many_requests_per_hour() -> None:
    week, short = (DIURNAL.online(1, hours) for hours in (168.0, 16.8))
    assert len(short) == pytest.approx(len(week) / 10, rel=0.1)
    arrived_h = np.array([job.request.arrived_s for job in short]) / 3600 * DIURNAL.time_scale(16.8)
    assert np.sum(arrived_h % 24 < 6) < 0.5 * np.sum(np.abs(arrived_h % 24 - 15) < 3)


def test_the_jobs_of_a_week_keep_their_days_and_shrink_with_it() -> None:
    week, short = DIURNAL.batches(168.0), DIURNAL.batches(16.8)
    assert [each.name for each in week] == [*(f"day-{day}" for day in range(6)), "week"]
    for one, other in zip(week, short, strict=True):
        assert other.deadline_s == pytest.approx(one.deadline_s / 10)
        assert other.items == pytest.approx(one.items / 10, rel=0.01)


def test_every_item_of_a_job_is_there_at_once_and_names_its_deadline() -> None:
    batch, items = DIURNAL.batches(2.0)[1], DIURNAL.items(1, 2.0)
    of_it = [job.request for job in items if job.request.job == batch.name]
    assert len({request.id for request in of_it}) == batch.items
    assert {(request.arrived_s, request.deadline_s, request.tenant) for request in of_it} == {
        (batch.accepted_s, batch.deadline_s, batch.tenant)
    }


def test_coverage_counts_each_forecast_of_a_job_that_ended() -> None:
    runs = [[kept(50.0, forecasts=((40.0, 60.0), (50.0, 52.0))), kept(inf, forecasts=((1.0, 2.0),))]]
    assert eta_figures(runs) == {"p50_coverage": 0.5, "p90_coverage": 1.0, "n": 2}
    assert eta_figures([[kept(50.0)]]) is None


def test_a_warning_counts_only_where_the_deadline_was_missed_and_only_before_it() -> None:
    runs = [[kept(50.0, warned_s=10.0), kept(120.0, warned_s=99.0), kept(120.0, warned_s=101.0), kept(inf)]]
    assert deadline_figures(runs) == {"accepted": 4, "met": 1, "at_risk_told_before_miss": 1}
    assert deadline_figures([[]]) is None


def test_the_spread_is_the_farthest_end_from_their_mean_in_days_of_the_week() -> None:
    assert spread_days([[kept(80.0)], [kept(100.0)]], time_scale=8640.0) == pytest.approx(1.0)
    assert spread_days([[kept(80.0)], [kept(inf)]], time_scale=1.0) is None
    assert spread_days([[]], time_scale=1.0) is None


@pytest.mark.slow
def test_a_run_says_when_its_jobs_end_before_they_do() -> None:
    hours = 0.15
    plan = RunPlan(
        workload=DIURNAL,
        profile=profile_named("70b-tp4-a100"),
        slots=64,
        hours=hours,
        seed=1,
        overrides=DIURNAL.settings(hours),
    )
    jobs = run(plan, policies.by_name("ours")).jobs
    assert all(each.ended_s <= hours * 3600 and each.forecasts for each in jobs)
    assert all(p50_s <= p90_s for each in jobs for p50_s, p90_s in each.forecasts)


def test_items_are_counted_against_their_deadline_one_by_one() -> None:
    batch = WorkloadJob(tenant="t", name="j", accepted_s=0.0, deadline_s=10.0, items=3)
    done, late = Kept(batch=batch, left=0, in_time=3, ended_s=8.0), Kept(batch=batch, left=0, in_time=1, ended_s=12.0)
    assert item_figures([[done], [late]]) == {"n": 6, "in_time": 4, "done_s": 10.0}
    assert item_figures([[done], [Kept(batch=batch, left=1, in_time=2)]]) == {"n": 6, "in_time": 5, "done_s": None}
    assert item_figures([[], []]) is None


def test_a_job_whose_items_expired_has_not_met_its_deadline() -> None:
    late = WorkloadJob(tenant="t", name="late", accepted_s=0.0, deadline_s=2.0, items=40)
    workload = replace(workloads.by_name("eviction"), jobs=(late,), hours=0.01)
    plan = RunPlan(workload=workload, profile=profile_named("1.5b-h200"), slots=2, hours=0.01, seed=1)
    [job] = run(plan, policies.by_name("ours")).jobs
    assert (job.in_time, job.incomplete, job.left) == (0, 40, 0)
    found = deadline_figures([[job]])
    assert found
    assert (found["accepted"], found["met"]) == (1, 0)
