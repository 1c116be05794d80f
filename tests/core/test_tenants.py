"""Tenants share a lane by the tokens they get, not by the items they send."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sidecar.core.events import Action, Arrived, Dispatch, Ended
from sidecar.core.item import Item
from sidecar.core.tenants import INPUT_WEIGHT, OUTPUT_WEIGHT, TENANTS_KEPT, FairQueue
from sidecar.core.work import EndReason
from tests.core.builders import offline, online, scheduler

PROMPT, OUTPUT = 50, 40  # most tokens of one item below
BOUND = 2 * max(INPUT_WEIGHT * PROMPT, OUTPUT_WEIGHT * OUTPUT)


def _push(queue: FairQueue, tenant: str, number: int, prompt_tokens: int = 10) -> None:
    work = offline(f"{tenant}{number}", tenant=tenant, prompt_tokens=prompt_tokens, arrived_s=float(number))
    queue.push(Item(work, number, float(number)))


def _serve(queue: FairQueue, output_tokens: int) -> str:
    item = queue.head()
    assert item is not None
    queue.discard(item)
    queue.charge(item.work.tenant, item.work.prompt_tokens, output_tokens)
    return item.work.tenant


@settings(phases=(Phase.explicit, Phase.generate))
@given(st.data())
def test_two_backlogged_tenants_never_differ_by_more_than_the_bound(data: st.DataObject) -> None:
    queue = FairQueue({"b": 2.0})
    service: defaultdict[str, float] = defaultdict(float)
    for number in range(80):
        for tenant in "ab":
            _push(queue, tenant, number, data.draw(st.integers(1, PROMPT)))
    for _ in range(80):
        item = queue.head()
        assert item is not None
        output = data.draw(st.integers(1, OUTPUT))
        tenant = _serve(queue, output)
        weight = 2.0 if tenant == "b" else 1.0
        service[tenant] += (INPUT_WEIGHT * item.work.prompt_tokens + OUTPUT_WEIGHT * output) / weight
        assert abs(service["a"] - service["b"]) <= BOUND


def test_idling_saves_nothing_up() -> None:
    queue = FairQueue({})
    for number in range(20):
        _push(queue, "busy", number)
    for _ in range(10):
        _serve(queue, 10)
    _push(queue, "back", 99)
    assert queue.served["back"] == queue.served["busy"]


def test_who_arrives_at_an_empty_lane_begins_where_the_last_one_left() -> None:
    queue = FairQueue({})
    _push(queue, "first", 1)
    _serve(queue, 10)
    level = queue.served["first"]
    _push(queue, "second", 2)
    assert queue.served["second"] == level


def test_tenants_that_came_once_are_forgotten() -> None:
    queue = FairQueue({})
    for number in range(3 * TENANTS_KEPT):
        _push(queue, f"t{number}", number)
        _serve(queue, 1)
    assert len(queue.served) <= 2 * TENANTS_KEPT
    assert len(queue) == 0
    assert queue.head() is None


def _ids(actions: list[Action]) -> list[str]:
    return [action.work_id for action in actions if isinstance(action, Dispatch)]


@pytest.mark.parametrize("make", [online, offline])
def test_a_tenant_that_sends_a_thousand_items_does_not_delay_one_that_sends_two(make: type) -> None:
    subject = scheduler(slots=1, preempt=False)
    for number in range(50):
        subject.handle(Arrived(work=make(f"many{number}", tenant="many", arrived_s=0.0)), 0.0)
    for name in ("few0", "few1"):
        subject.handle(Arrived(work=make(name, tenant="few", arrived_s=1.0)), 1.0)
    order = ["many0"]
    for step in range(4):
        ended = Ended(work_id=order[-1], reason=EndReason.END_ID, output_tokens=10)
        order += _ids(subject.handle(ended, 2.0 + step))
    assert {"few0", "few1"} <= set(order)
