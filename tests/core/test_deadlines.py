"""Deadlines: the interval of a forecast, the verdict on a job, and what an urgent one changes."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from sidecar.core.deadlines import WINDOW_S, Eta, JobVerdict, Rate
from sidecar.core.events import Arrived, Dispatch, Ended, Forecast, RejectReason
from sidecar.core.jobs import Jobs
from sidecar.core.request import DispatchKind, EndReason
from sidecar.core.reservation import Reservation
from sidecar.core.settings import OnDeadline
from tests.core.builders import offline, online, rejected, scheduler


def _rate(samples: list[float], *, from_s: float = 0.0) -> Rate:
    """A rate that has seen these samples, in tokens per second."""
    rate, tokens = Rate(), 0.0
    rate.sample(0, from_s, backlogged=True)
    for number, each in enumerate(samples, 1):
        tokens += each * WINDOW_S
        rate.sample(round(tokens), from_s + number * WINDOW_S, backlogged=True)
    return rate


def _eta(rate: Rate, tokens: float, now_s: float) -> Eta:
    outlook = rate.outlook(now_s)
    return Eta(p50_s=rate.p50_s(tokens, outlook), p90_s=rate.p90_s(tokens, 0.0, outlook, rate.spread))


def _jobs(rate: float, *, items: int, length: int, deadline_s: float, horizon_s: float = 3600.0) -> Jobs:
    """One job of so many requests that write `length` tokens each, at a steady rate; it is 1,200 s now."""
    jobs = Jobs(horizon_s)
    jobs.rate = _rate([rate] * 40)
    for number in range(items + 5):
        job, _ = jobs.arrived(offline(f"b{number}", job="weekly", deadline_s=deadline_s))
        if number < 5:
            jobs.left(job.key, deadline_s, length, 0.0) if number else jobs._lengths.note(length)
    job.items = items
    return jobs


def _judge(jobs: Jobs, now_s: float) -> None:
    """Every job is forecast anew."""
    jobs.begin_round()
    while jobs.owed:
        jobs.look(now_s, lambda _: 1.0)


def _verdict(jobs: Jobs) -> JobVerdict:
    _judge(jobs, 1200.0)
    (job,) = jobs
    return job.verdict


def test_at_a_steady_rate_both_ends_of_the_interval_are_tokens_over_rate() -> None:
    eta = _eta(_rate([50.0] * 40), 10_000, 1200.0)
    assert eta.p50_s == pytest.approx(200.0)
    assert eta.p90_s == pytest.approx(200.0)


def test_without_a_rate_nothing_is_divided_by_it() -> None:
    assert _eta(Rate(), 10.0, 0.0).p50_s == inf
    assert _eta(_rate([0.0] * 40), 10.0, 1200.0).p50_s == inf


def test_tenants_share_the_rate_until_one_has_all_it_asked_for() -> None:
    jobs = Jobs(3600.0)
    jobs.rate = _rate([50.0] * 40)
    jobs._lengths.note(100)
    for tenant, items in (("a", 10), ("b", 30)):
        for number in range(items):
            jobs.arrived(offline(f"{tenant}{number}", tenant=tenant, job="weekly"))
    _judge(jobs, 1200.0)
    assert [job.eta.p50_s for job in jobs] == [pytest.approx(40.0), pytest.approx(80.0)]


def test_the_worse_case_is_that_the_others_bring_more() -> None:
    jobs = _jobs(50.0, items=100, length=100, deadline_s=inf)  # of tenant `batch`
    job, _ = jobs.arrived(offline("other", tenant="other", job="small"))
    _judge(jobs, 1200.0)
    mine = next(each for each in jobs if each is not job)
    assert mine.eta.p50_s == pytest.approx((100 + 1) * 100 / 50)  # the other has all it asked for soon
    assert mine.eta.p90_s == pytest.approx(2 * 100 * 100 / 50)  # or goes on until the end
    jobs.left(job.key, inf, 0, 0.0)
    _judge(jobs, 1230.0)
    share = 1200 / 86_400  # of the last day, in which it had work
    assert mine.eta.p90_s == pytest.approx((1 + share) * 100 * 100 / 50, rel=1e-3)


def test_a_job_ends_with_the_last_of_its_items_not_with_its_tokens() -> None:
    jobs = _jobs(50.0, items=100, length=100, deadline_s=inf)
    (job,) = jobs
    for stay_s in (5.0, 15.0):
        job.items += 1
        jobs.left(job.key, inf, 100, stay_s)
    _judge(jobs, 1200.0)
    assert 200.0 + 5.0 < job.eta.p50_s < job.eta.p90_s < 200.0 + 30.0


def test_items_without_the_name_of_a_job_are_a_stream_that_keeps_its_share() -> None:
    jobs = Jobs(3600.0)
    jobs.rate = _rate([50.0] * 40)
    jobs._lengths.note(100)
    jobs.arrived(offline("s1", tenant="stream"))
    for number in range(10):
        jobs.arrived(offline(f"b{number}", job="weekly"))
    _judge(jobs, 1200.0)
    assert [job.eta.p50_s for job in jobs if job.name] == [pytest.approx(40.0)]


def test_an_hour_of_a_day_is_expected_on_the_next_day_too() -> None:
    rate = Rate()
    for number in range(36 * 120):  # a day and a half
        slow = (number * WINDOW_S) % 86_400 < 43_200
        rate.sample(rate._tokens + int((10 if slow else 100) * WINDOW_S), number * WINDOW_S, backlogged=True)
    assert _eta(rate, 43_200 * 100 + 3600 * 10, 36 * 3600.0).p50_s == pytest.approx(43_200 + 3600, rel=0.03)


@pytest.mark.parametrize("now_s", [0.1 + 0.1 + 0.1, 59.99999999999999, 60.0, 599.9999999999999])
def test_a_forecast_gets_past_the_edges_of_a_shorter_weeks_hours(now_s: float) -> None:
    rate = Rate(week_s=168 * 60.0)
    rate.samples.extend([50.0] * 40)
    assert _eta(rate, 50_000, now_s).p50_s == pytest.approx(1000.0)


def test_a_time_without_work_to_do_is_not_taken_for_a_slow_one() -> None:
    rate = _rate([50.0] * 10)
    rate.sample(15_000, 330.0, backlogged=False)
    rate.sample(15_000, 630.0, backlogged=True)
    assert rate.mean == pytest.approx(50.0)


def test_the_same_hour_of_last_week_is_expected_again() -> None:
    rate = Rate()
    for number in range(8 * 24 * 120):  # eight days at half a minute: 10/s by night, 100/s by day
        slow = (number * WINDOW_S) % 86_400 < 43_200
        rate.sample(rate._tokens + int((10 if slow else 100) * WINDOW_S), number * WINDOW_S, backlogged=True)
    now_s = 8 * 86_400.0
    night_tokens = 43_200 * 10
    assert _eta(rate, night_tokens + 36_000 * 100, now_s).p50_s == pytest.approx(43_200 + 36_000, rel=0.03)


def test_nine_of_ten_jobs_are_done_by_p90_and_half_by_p50() -> None:
    random, by_p50, by_p90, trials = Random(1), 0, 0, 400
    for _ in range(trials):
        scatter = [max(0.0, random.gauss(100, 40)) for _ in range(120)]
        rate, need = _rate(scatter), random.uniform(20_000, 200_000)
        eta = _eta(rate, need, 3600.0)
        got = at_s = 0.0
        while got < need:
            sample = max(0.0, random.gauss(100, 40))
            step_s = min(WINDOW_S, (need - got) / sample if sample else WINDOW_S)
            got, at_s = got + sample * step_s, at_s + step_s
        by_p50 += at_s <= eta.p50_s
        by_p90 += at_s <= eta.p90_s
    assert 0.42 <= by_p50 / trials <= 0.58
    assert 0.86 <= by_p90 / trials <= 0.94


@pytest.mark.parametrize(
    ("items", "deadline_s", "verdict"),
    [
        (100, 1200 + 300.0, JobVerdict.ON_TIME),  # 100 requests of 100 tokens at 50/s take 200 s
        (100, 1200 + 150.0, JobVerdict.INFEASIBLE),
        (100, 1199.0, JobVerdict.INFEASIBLE),
        (100, inf, JobVerdict.NO_DEADLINE),
    ],
)
def test_the_verdict_says_whether_the_request_fits_before_the_deadline(
    items: int, deadline_s: float, verdict: JobVerdict
) -> None:
    assert _verdict(_jobs(50.0, items=items, length=100, deadline_s=deadline_s)) is verdict


def test_a_job_that_fits_only_in_the_mean_is_at_risk() -> None:
    jobs = _jobs(50.0, items=100, length=100, deadline_s=1200 + 205.0)
    jobs.rate = _rate([20.0, 80.0, 20.0, 20.0, 80.0, 80.0, 80.0, 20.0] * 5)
    assert _verdict(jobs) is JobVerdict.AT_RISK


def test_a_deadline_counts_for_its_job_as_long_as_an_item_has_it() -> None:
    jobs = Jobs(3600.0)
    for number, deadline_s in enumerate((50.0, 70.0, inf, 50.0, 60.0)):
        job, _ = jobs.arrived(offline(f"b{number}", job="weekly", deadline_s=deadline_s))
    seen = [job.deadline_s]
    for deadline_s in (50.0, 60.0, 50.0, 70.0, inf):
        jobs.left(job.key, deadline_s, 0, 0.0)
        seen.append(job.deadline_s)
    assert seen == [50.0, 50.0, 50.0, 70.0, inf, inf]
    assert list(jobs) == []


def test_an_item_that_expired_is_no_measure_of_how_long_items_are() -> None:
    subject = scheduler(slots=1, slice_tokens=10)
    subject.handle(Arrived(request=offline("b1", job="weekly", deadline_s=5.0)), 0.0)
    subject.handle(Arrived(request=offline("b2", job="weekly", deadline_s=900.0)), 0.0)
    actions = subject.handle(Ended(request_id="b1", reason=EndReason.LENGTH, output_tokens=10), 6.0)
    message = "the deadline passed before it was complete"
    assert actions[0] == rejected("b1", RejectReason.EXPIRED, message)
    [served] = subject._served_models.values()
    assert (served.jobs._lengths.count, [job.deadline_s for job in served.jobs]) == (0, [900.0])


def test_past_its_deadline_an_item_is_run_where_that_is_set() -> None:
    subject = scheduler(slots=1, on_deadline=OnDeadline.RUN)
    actions = subject.handle(Arrived(request=offline("b1", deadline_s=5.0)), 9.0)
    actions += subject.handle(Arrived(request=offline("b2", deadline_s=10.0)), 9.0)
    assert subject.next_deadline_s() is None
    actions += subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=10), 11.0)
    assert [each.request_id for each in actions if isinstance(each, Dispatch)] == ["b1", "b2"]


def test_of_a_new_kind_of_request_nothing_is_claimed() -> None:
    jobs = Jobs(3600.0)
    jobs.arrived(offline("b1", job="weekly", deadline_s=5000.0))
    assert _verdict(jobs) is JobVerdict.UNKNOWN
    assert jobs.urgency == 0.0


def test_urgency_grows_as_laxity_shrinks_and_can_be_switched_off() -> None:
    for deadline_s, urgency in ((200 + 7200.0, 0.0), (200 + 1800.0, 0.5), (200.0, 1.0)):
        jobs = _jobs(50.0, items=100, length=100, deadline_s=1200 + deadline_s)
        _verdict(jobs)
        assert jobs.urgency == pytest.approx(urgency, abs=0.01)
    jobs = _jobs(50.0, items=100, length=100, deadline_s=1200.0, horizon_s=0.0)
    _verdict(jobs)
    assert jobs.urgency == 0.0


def test_an_urgent_reservation_is_due_more_often_and_keeps_its_bound() -> None:
    subject = Reservation(10, saved_max=2)
    subject.earns = 3
    for _ in range(400):
        subject.take_reserved() if subject.due else subject.online_dispatched(0.0)
    assert subject.reserved_taken == 100
    assert subject.reserved_due == subject.reserved_taken + subject.credit // 9
    assert subject.record.window_violations == 0


def _reserved_taken(horizon_s: float) -> tuple[list[JobVerdict], int]:
    """400 requests of 20 tokens behind endless online work on one slot: the verdicts, and the reserved dispatches in
    400 s."""
    subject = scheduler(slots=1, preempt=False, urgency_horizon_s=horizon_s)
    told, taken, now_s, running = [], 0, 0.0, "b0"
    for number in range(400):
        subject.handle(Arrived(request=offline(f"b{number}", job="weekly", deadline_s=3000.0)), now_s)
    for number in range(1200):
        now_s += 1.0
        actions = subject.handle(Arrived(request=online(f"a{number}", arrived_s=now_s)), now_s)
        actions += subject.handle(Ended(request_id=running, reason=EndReason.END_ID, output_tokens=20), now_s)
        told += [each.verdict for each in actions if isinstance(each, Forecast)]
        (dispatched,) = [each for each in actions if isinstance(each, Dispatch)]
        running = dispatched.request_id
        taken += dispatched.kind is DispatchKind.RESERVED and now_s > 800
    return told, taken


def test_a_job_that_would_be_late_is_named_before_and_gets_reserved_dispatches_until_it_is_in_time() -> None:
    told, taken = _reserved_taken(horizon_s=3600.0)
    assert told == [JobVerdict.AT_RISK, JobVerdict.ON_TIME]
    assert taken >= 60


def test_without_urgency_its_reserved_dispatches_stay_each_tenth_and_it_stays_late() -> None:
    told, taken = _reserved_taken(horizon_s=0.0)
    assert told[-1] in (JobVerdict.AT_RISK, JobVerdict.INFEASIBLE)
    assert taken == 40
