"""The order inside a lane, against sorting."""

from __future__ import annotations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sidecar.core.lane_queue import LaneQueue
from sidecar.core.settings import SchedulerSettings
from sidecar.core.tracked_request import TrackedRequest
from tests.core.builders import offline, online


def _tracked(sequence: int, deadline_s: float, arrived_s: float) -> TrackedRequest:
    return TrackedRequest(offline(f"b{sequence}", deadline_s=deadline_s, arrived_s=arrived_s), sequence, arrived_s)


@settings(phases=(Phase.explicit, Phase.generate))  # a mutant need not be shrunk
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=200))
def test_the_head_is_the_least_by_deadline_then_arrival_whoever_left_in_between(
    steps: list[tuple[int, int, bool]],
) -> None:
    queue = LaneQueue(SchedulerSettings())
    waiting: list[TrackedRequest] = []
    for sequence, (deadline_s, arrived_s, leaves) in enumerate(steps):
        if leaves and waiting:
            gone = waiting.pop(arrived_s % len(waiting))
            queue.discard(gone)
        else:
            tracked = _tracked(sequence, deadline_s, arrived_s)
            queue.push(tracked)
            waiting.append(tracked)
        first = min(
            waiting, key=lambda each: (each.request.deadline_s, each.request.arrived_s, each.sequence), default=None
        )
        assert queue.head() is first
        assert queue.waiting == queue.eligible() == len(waiting)
        assert set(queue) == set(waiting)


def test_an_item_that_comes_back_has_its_old_place() -> None:
    queue = LaneQueue(SchedulerSettings())
    first, second = _tracked(1, 9.0, 0.0), _tracked(2, 9.0, 1.0)
    for tracked in (first, second):
        queue.push(tracked)
    queue.discard(first)
    first.waiting_since_s = 5.0
    queue.push(first)
    assert queue.head() is first
    assert queue.waiting == 2


def test_cancelled_items_do_not_pile_up_behind_the_head() -> None:
    queue = LaneQueue(SchedulerSettings())
    queue.push(_tracked(0, 0.0, 0.0))
    for sequence in range(1, 5000):
        tracked = _tracked(sequence, 1.0, 0.0)
        queue.push(tracked)
        queue.discard(tracked)
    assert len(queue.tenants.named("default").waiting._heap) < 200


def order_of(queue: LaneQueue) -> list[str]:
    found = []
    while (head := queue.head()) is not None:
        found.append(head.request.id)
        queue.discard(head)
    return found


def grouped(window: int, prefixes: str) -> list[str]:
    """The order of requests `b0`, `b1` … that arrived with these prefixes; a dot stands for none."""
    queue = LaneQueue(SchedulerSettings(prefix_group_window=window))
    for number, prefix in enumerate(prefixes):
        key = "" if prefix == "." else prefix
        queue.push(TrackedRequest(offline(f"b{number}", arrived_s=float(number), prefix_key=key), number, 0.0))
    return order_of(queue)


def test_equal_prefixes_run_together_behind_the_oldest_of_them() -> None:
    assert grouped(10, "xy.xyx") == ["b0", "b3", "b5", "b1", "b4", "b2"]


def test_without_a_window_items_run_as_they_came() -> None:
    assert grouped(0, "xy.xyx") == ["b0", "b1", "b2", "b3", "b4", "b5"]


def test_an_item_is_overtaken_by_fewer_than_the_window_however_popular_a_prefix_is() -> None:
    assert grouped(3, "x.xxxxxx") == ["b0", "b2", "b1", "b3", "b4", "b5", "b6", "b7"]


def test_the_second_of_1200_items_is_overtaken_by_less_than_a_window_of_a_popular_prefix() -> None:
    for arrivals_per_s, overtaken in ((1000, 127), (1, 60)):
        queue = LaneQueue(SchedulerSettings())
        for number in range(1200):
            key = "common" if number != 1 else "rare"
            request = offline(f"b{number}", arrived_s=number / arrivals_per_s, prefix_key=key)
            queue.push(TrackedRequest(request, number, 0.0))
        assert order_of(queue).index("b1") == overtaken


def test_callers_who_wait_are_served_as_they_came_whatever_their_prefix() -> None:
    queue = LaneQueue(SchedulerSettings())
    for number, key in enumerate("xyxyx"):
        queue.push(TrackedRequest(online(f"a{number}", arrived_s=float(number), prefix_key=key), number, 0.0))
    assert order_of(queue) == ["a0", "a1", "a2", "a3", "a4"]


def test_what_comes_back_keeps_its_place_in_its_group() -> None:
    queue = LaneQueue(SchedulerSettings(prefix_group_window=10))
    tracked_requests = [
        TrackedRequest(offline(f"b{n}", arrived_s=float(n), prefix_key=key), n, 0.0)
        for n, key in enumerate(("x", "y", "x"))
    ]
    for tracked in tracked_requests:
        queue.push(tracked)
    queue.dispatch(tracked_requests[0])
    queue.dispatch(tracked_requests[2])
    queue.push(tracked_requests[2])
    assert order_of(queue) == ["b2", "b1"]


def test_a_tighter_objective_of_its_own_goes_first_if_its_first_token_is_due_sooner() -> None:
    queue = LaneQueue(SchedulerSettings(ttft_objective_ms=500.0))
    due_s = {"usual": (0.0, 0.0), "urgent": (0.1, 250.0), "patient": (0.2, 900.0), "later": (0.3, 0.0)}
    for number, (name, (arrived_s, objective_ms)) in enumerate(due_s.items()):
        request = online(name, arrived_s=arrived_s, ttft_objective_ms=objective_ms)
        queue.push(TrackedRequest(request, number, arrived_s))
    assert order_of(queue) == ["urgent", "usual", "later", "patient"]
