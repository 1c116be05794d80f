"""The order inside a lane, against sorting."""

from __future__ import annotations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sidecar.core.item import Item
from sidecar.core.order import LaneQueue
from sidecar.core.settings import SchedulerSettings
from tests.core.builders import offline


def _item(sequence: int, deadline_s: float, arrived_s: float) -> Item:
    return Item(offline(f"b{sequence}", deadline_s=deadline_s, arrived_s=arrived_s), sequence, arrived_s)


@settings(phases=(Phase.explicit, Phase.generate))  # a mutant need not be shrunk
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=200))
def test_the_head_is_the_least_by_deadline_then_arrival_whoever_left_in_between(
    steps: list[tuple[int, int, bool]],
) -> None:
    queue = LaneQueue(SchedulerSettings())
    waiting: list[Item] = []
    for sequence, (deadline_s, arrived_s, leaves) in enumerate(steps):
        if leaves and waiting:
            gone = waiting.pop(arrived_s % len(waiting))
            queue.discard(gone)
        else:
            item = _item(sequence, deadline_s, arrived_s)
            queue.push(item)
            waiting.append(item)
        first = min(waiting, key=lambda each: (each.work.deadline_s, each.work.arrived_s, each.sequence), default=None)
        assert queue.head() is first
        assert len(queue) == len(waiting)
        assert set(queue) == set(waiting)


def test_an_item_that_comes_back_has_its_old_place() -> None:
    queue = LaneQueue(SchedulerSettings())
    first, second = _item(1, 9.0, 0.0), _item(2, 9.0, 1.0)
    for item in (first, second):
        queue.push(item)
    queue.discard(first)
    first.waiting_since_s = 5.0
    queue.push(first)
    assert queue.head() is first
    assert len(queue) == 2


def test_cancelled_items_do_not_pile_up_behind_the_head() -> None:
    queue = LaneQueue(SchedulerSettings())
    queue.push(_item(0, 0.0, 0.0))
    for sequence in range(1, 5000):
        item = _item(sequence, 1.0, 0.0)
        queue.push(item)
        queue.discard(item)
    assert len(queue.tenants.named("default").waiting._heap) < 200
