"""What is due when, and that what is stale does not pile up."""

from __future__ import annotations

from math import inf

from sidecar.core.settings import OnDeadline, SchedulerSettings
from sidecar.core.timers import Timers
from sidecar.core.tracked_request import RequestState, TrackedRequest
from tests.core.builders import offline, online


def _tracked(name: str, deadline_s: float = inf) -> TrackedRequest:
    return TrackedRequest(offline(name, deadline_s=deadline_s), 1, 0.0)


def test_a_retry_and_a_deadline_are_due_in_the_order_of_their_times() -> None:
    timers, tracked = Timers(SchedulerSettings()), _tracked("b1", 7.0)
    tracked.state = RequestState.BACKING_OFF
    timers.waits(tracked)
    timers.retry(tracked, 5.0)
    assert timers.next_s() == 5.0
    assert list(timers.due(5.0)) == [tracked]
    tracked.state = RequestState.WAITING
    assert timers.next_s() == 7.0
    assert list(timers.due(9.0)) == [tracked]
    assert timers.next_s() == inf


def test_the_deadline_of_an_item_is_set_once_and_it_is_not_due_while_it_runs() -> None:
    timers, tracked = Timers(SchedulerSettings()), _tracked("b1", 7.0)
    for state in (RequestState.WAITING, RequestState.RUNNING, RequestState.WAITING, RequestState.RUNNING):
        tracked.state = state
        timers.waits(tracked)
    assert (timers.next_s(), len(timers)) == (7.0, 1)
    assert list(timers.due(7.0)) == []
    assert timers.next_s() == inf


def test_the_deadline_of_a_request_that_runs_is_no_time_to_wake_at() -> None:
    timers, tracked = Timers(SchedulerSettings()), TrackedRequest(online("a1", deadline_s=8.0), 1, 0.0)
    timers.waits(tracked)
    tracked.state = RequestState.RUNNING
    timers.tidy()
    assert timers.next_s() == inf


def test_offline_deadlines_are_not_due_where_work_is_run_past_them() -> None:
    timers = Timers(SchedulerSettings(on_deadline=OnDeadline.RUN))
    late, caller = _tracked("b1", 7.0), TrackedRequest(online("a1", deadline_s=8.0), 2, 0.0)
    for tracked in (late, caller):
        timers.waits(tracked)
    assert list(timers.due(9.0)) == [caller]
    assert (timers.expired(late.request, 9.0), timers.expired(caller.request, 9.0)) == (False, True)


def test_timers_of_what_is_gone_do_not_pile_up_behind_one_that_is_far_away() -> None:
    timers = Timers(SchedulerSettings())
    timers.waits(_tracked("first", 1.0))
    for number in range(5000):
        tracked = _tracked(f"b{number}", 3600.0 + number)
        timers.waits(tracked)
        tracked.state = RequestState.GONE
    assert len(timers) < 200
