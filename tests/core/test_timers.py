"""What is due when, and that what is stale does not pile up."""

from __future__ import annotations

from math import inf

from sidecar.core.item import Item, State
from sidecar.core.settings import OnDeadline, SchedulerSettings
from sidecar.core.timers import Timers
from tests.core.builders import offline, online


def _item(name: str, deadline_s: float = inf) -> Item:
    return Item(offline(name, deadline_s=deadline_s), 1, 0.0)


def test_a_retry_and_a_deadline_are_due_in_the_order_of_their_times() -> None:
    timers, item = Timers(SchedulerSettings()), _item("b1", 7.0)
    item.state = State.BACKING_OFF
    timers.waits(item)
    timers.retry(item, 5.0)
    assert timers.next_s() == 5.0
    assert list(timers.due(5.0)) == [item]
    item.state = State.WAITING
    assert timers.next_s() == 7.0
    assert list(timers.due(9.0)) == [item]
    assert timers.next_s() == inf


def test_the_deadline_of_an_item_is_set_once_and_it_is_not_due_while_it_runs() -> None:
    timers, item = Timers(SchedulerSettings()), _item("b1", 7.0)
    for state in (State.WAITING, State.RUNNING, State.WAITING, State.RUNNING):
        item.state = state
        timers.waits(item)
    assert (timers.next_s(), len(timers)) == (7.0, 1)
    assert list(timers.due(7.0)) == []
    assert timers.next_s() == inf


def test_the_deadline_of_a_request_that_runs_is_no_time_to_wake_at() -> None:
    timers, item = Timers(SchedulerSettings()), Item(online("a1", deadline_s=8.0), 1, 0.0)
    timers.waits(item)
    item.state = State.RUNNING
    timers.tidy()
    assert timers.next_s() == inf


def test_offline_deadlines_are_not_due_where_work_is_run_past_them() -> None:
    timers = Timers(SchedulerSettings(on_deadline=OnDeadline.RUN))
    late, caller = _item("b1", 7.0), Item(online("a1", deadline_s=8.0), 2, 0.0)
    for item in (late, caller):
        timers.waits(item)
    assert list(timers.due(9.0)) == [caller]
    assert (timers.expired(late.work, 9.0), timers.expired(caller.work, 9.0)) == (False, True)


def test_timers_of_what_is_gone_do_not_pile_up_behind_one_that_is_far_away() -> None:
    timers = Timers(SchedulerSettings())
    timers.waits(_item("first", 1.0))
    for number in range(5000):
        item = _item(f"b{number}", 3600.0 + number)
        timers.waits(item)
        item.state = State.GONE
    assert len(timers) < 200
