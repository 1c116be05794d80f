"""Jobs by name: how many are told apart, what each look costs, and how tenants share a rate."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.deadlines import WINDOW_S, JobVerdict
from sidecar.core.events import Arrived, Cancelled, Dispatch, Ended, Woke
from sidecar.core.jobs import JOBS_MAX, LOOK_JOBS, LOOK_S, TENANTS_MAX, Jobs, Sharing, TenantShare
from sidecar.core.request import EndReason
from tests.core.builders import offline, scheduler

NAMES = 5000


def _jobs_of_many_producers() -> Jobs:
    """One request each of NAMES jobs of as many tenants, and of NAMES tenants that name no job."""
    jobs = Jobs(3600.0)
    for number in range(NAMES):
        jobs.arrived(offline(f"n{number}", tenant=f"t{number}", job=f"j{number}", deadline_s=1000.0 + number))
        jobs.arrived(offline(f"u{number}", tenant=f"t{number}"))
    return jobs


def test_jobs_beyond_the_bound_count_together_and_are_not_forecast() -> None:
    jobs = _jobs_of_many_producers()
    rows = list(jobs)
    assert len(rows) == JOBS_MAX + TENANTS_MAX + 1
    others = jobs.named("", "")
    assert others is not None
    assert others.items == 2 * NAMES - JOBS_MAX - TENANTS_MAX
    jobs._lengths.note(100)
    jobs.begin_round()
    while jobs.owed:
        jobs.look(10.0, lambda _: 1.0)
    assert (others.verdict, others.eta.p50_s, others.urgency) == (JobVerdict.UNKNOWN, inf, 0.0)
    assert jobs.forecasts == JOBS_MAX + TENANTS_MAX
    assert jobs.named("t0", "j0") is rows[0]
    assert jobs.named("t4999", "j4999") is None


def test_whose_job_is_over_leaves_room_for_a_new_one() -> None:
    jobs = Jobs(3600.0)
    alive = [jobs.arrived(offline(f"b{number}", job=f"j{number}"))[0] for number in range(JOBS_MAX + 2)]
    assert alive[-1].name == ""
    jobs.left(alive[0].key, inf, 0, 0.0)
    assert jobs.arrived(offline("c1", job="late"))[0].name == "late"
    assert jobs.arrived(offline("c2", job="later"))[0].name == ""
    for job in alive[1:]:
        jobs.left(job.key, inf, 0, 0.0)
    assert sorted(job.name for job in jobs) == ["", "late"]


def test_an_event_makes_few_forecasts_however_many_jobs_there_are() -> None:
    subject = scheduler(slots=4, offline_queue_max=2 * NAMES)
    [served] = subject._served_models.values()
    made: list[int] = []

    def handle(event: Arrived | Woke | Ended, now_s: float) -> None:
        before = served.jobs.forecasts
        subject.handle(event, now_s)
        made.append(served.jobs.forecasts - before)

    for number in range(NAMES):  # within a tenth of a second: a look at the first of them
        request = offline(f"b{number}", tenant=f"t{number}", job=f"j{number}")
        handle(Arrived(request=request), 1.0 + 0.9 * LOOK_S * number / NAMES)
    assert (made[0], sum(made)) == (1, 1)
    for number in range(NAMES):  # of jobs that are known, or too many: none is owed a forecast by arriving
        request = offline(f"c{number}", tenant=f"t{number}", job=f"j{number}")
        handle(Arrived(request=request), 1.0 + 0.9 * LOOK_S)
    assert sum(made) == 1
    for number in range(1, 2 * JOBS_MAX):
        handle(Woke(), 1.0 + number * LOOK_S)
    assert max(made) == LOOK_JOBS
    assert sum(made) >= JOBS_MAX
    for number in range(2 * JOBS_MAX):  # a round has come: each of them again
        handle(Woke(), 3 * WINDOW_S + number * LOOK_S)
    assert max(made) == LOOK_JOBS
    assert all(job.judged_s > 2 * WINDOW_S for job in served.jobs if job.forecast)


def test_the_first_jobs_after_a_quiet_time_are_judged_as_they_come() -> None:
    subject = scheduler(slots=1)
    [served] = subject._served_models.values()
    for number in range(20):
        now_s = 5.0 + number * 1.5 * LOOK_S
        subject.handle(Arrived(request=offline(f"b{number}", job=f"j{number}")), now_s)
        assert served.jobs.forecasts == number + 1


def test_the_jobs_of_one_name_are_found_without_a_look_at_the_others() -> None:
    subject = scheduler(slots=1)
    subject.handle(Arrived(request=offline("b1", tenant="t", job="weekly")), 1.0)
    subject.handle(Arrived(request=offline("b2", tenant="t", job="weekly")), 1.0)
    assert subject.jobs_named("t", "weekly") == subject.jobs()
    assert subject.jobs_named("u", "weekly") == ()
    for name in ("b1", "b2"):
        subject.handle(Cancelled(request_id=name), 2.0)
    subject.handle(Ended(request_id="b1", reason=EndReason.LENGTH, output_tokens=3), 3.0)
    assert subject.jobs_named("t", "weekly") == ()


def test_an_urgent_job_that_is_over_makes_nothing_urgent_any_more() -> None:
    jobs = Jobs(3600.0)
    jobs.rate.samples.extend([50.0] * 40)
    jobs._lengths.note(100)
    job, _ = jobs.arrived(offline("b1", job="weekly", deadline_s=60.0))
    jobs.look(10.0, lambda _: 1.0)
    assert jobs.urgency > 0.9
    jobs.left(job.key, 60.0, 0, 0.0)
    jobs.look(40.0, lambda _: 1.0)
    assert jobs.urgency == 0.0


def _shared(tenant: str, tokens: float, variance: float, shares: Mapping[str, TenantShare]) -> tuple[float, float]:
    """What `Sharing.in_all` says, by its definition."""
    per_weight = tokens / shares[tenant].weight
    total, scatter, weight = 0.0, 0.0, 0.0
    for each in shares.values():
        if each.tokens <= each.weight * per_weight and each is not shares[tenant]:
            total += each.tokens
            scatter += each.variance
        else:
            total += each.weight * per_weight
            weight += each.weight
    return total, scatter + variance * (weight / shares[tenant].weight) ** 2


_SHARE = st.builds(
    TenantShare, st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.0, 10.0, 100.0, 1000.0, inf]), st.floats(0, 9)
)


@given(st.lists(_SHARE, min_size=1, max_size=8), st.integers(0, 7), st.floats(0.01, 1.0), st.floats(0, 9))
def test_tenants_share_as_the_definition_says(
    shares: list[TenantShare], number: int, part: float, variance: float
) -> None:
    named = {f"t{n}": each for n, each in enumerate(shares)}
    tenant = f"t{number % len(shares)}"
    tokens = part * named[tenant].tokens if named[tenant].tokens < inf else 500.0 * part
    found = Sharing(named).in_all(tenant, tokens, variance)
    assert found == pytest.approx(_shared(tenant, tokens, variance, named), abs=1e-6)


def test_a_dispatch_needs_no_forecast_to_be_made() -> None:
    subject = scheduler(slots=1)
    [dispatched] = subject.handle(Arrived(request=offline("b1", job="weekly", deadline_s=1e9)), 1.0)
    assert isinstance(dispatched, Dispatch)
