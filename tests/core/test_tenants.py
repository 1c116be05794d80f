"""Tenants inside a lane: the bound of the virtual token counter, what is charged, and what one tenant may have."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sidecar.core import tenants
from sidecar.core.errors import SettingsError
from sidecar.core.events import (
    Action,
    Arrived,
    Dispatch,
    Ended,
    Progressed,
    RejectReason,
    Stopped,
    TenantsChanged,
)
from sidecar.core.lane_queue import LaneQueue
from sidecar.core.request import EndReason, Lane
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.core.snapshot import OTHERS, TENANTS_NAMED, Snapshot
from sidecar.core.tracked_request import TrackedRequest
from tests.core.builders import offline, online, rejected, scheduler

INPUT_MAX, OUTPUT_MAX, SLOTS = 40, 30, 4


class Lines:
    """A lane whose slots are always full: tenants f and g always have somebody waiting, others come and go."""

    def __init__(self, weights: tuple[float, float]) -> None:
        named = {"f": TenantSettings(weight=weights[0]), "g": TenantSettings(weight=weights[1])}
        self.queue = LaneQueue(SchedulerSettings(tenants=named))
        self.running: deque[tuple[TrackedRequest, int]] = deque()
        self.count = 0

    def arrive(self, tenant: str, prompt_tokens: int) -> None:
        self.count += 1
        request = offline(f"b{self.count}", tenant=tenant, prompt_tokens=prompt_tokens, output_tokens_max=OUTPUT_MAX)
        self.queue.push(TrackedRequest(request, self.count, 0.0))

    def dispatch(self, output_tokens: int) -> None:
        head = self.queue.head()
        assert head is not None
        self.queue.dispatch(head)
        self.running.append((head, output_tokens))

    def iterate(self) -> None:
        """Each resident gives a token; who has given all is gone, and its slot is free."""
        for tracked, output_tokens in list(self.running):
            self.queue.tenants.streamed(tracked, 1)
            if tracked.streamed_tokens >= output_tokens:
                self.running.remove((tracked, output_tokens))
                self.queue.finish(tracked)

    def service(self, tenant: str) -> float:
        """Weighted tokens per weight so far."""
        account = self.queue.tenants.named(tenant)
        return (account.input_tokens + 2 * account.output_tokens) / account.limits.weight


@settings(
    max_examples=60,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow],  # on a busy machine drawing is slow
)
@given(st.data(), st.sampled_from([(1.0, 1.0), (1.0, 2.0), (4.0, 1.0)]))
def test_of_two_tenants_that_always_wait_neither_gets_further_ahead_than_the_bound(
    data: st.DataObject, weights: tuple[float, float]
) -> None:
    lines = Lines(weights)
    lengths = {
        name: (data.draw(st.integers(1, INPUT_MAX)), data.draw(st.integers(1, OUTPUT_MAX))) for name in ("f", "g", "h")
    }
    ahead = [0.0]
    for _ in range(data.draw(st.integers(20, 150))):
        for name in ("f", "g"):
            while len(lines.queue.tenants.named(name).waiting) <= SLOTS:
                lines.arrive(name, data.draw(st.integers(1, lengths[name][0])))
        if data.draw(st.integers(0, 3)) == 0:
            lines.arrive("h", lengths["h"][0])
        while len(lines.running) < SLOTS:
            lines.dispatch(data.draw(st.integers(1, OUTPUT_MAX)))
        lines.iterate()
        ahead.append(lines.service("f") - lines.service("g"))
    least_weight = min(weights)
    bound = 2 * max(1 * INPUT_MAX, 2 * SLOTS * OUTPUT_MAX) / least_weight
    assert max(ahead) - min(ahead) <= bound  # over every stretch of time, because both wait in all of them


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=80))
def test_with_one_tenant_the_order_is_deadline_then_arrival_whatever_was_charged(
    steps: list[tuple[int, int, bool]],
) -> None:
    queue = LaneQueue(SchedulerSettings())
    waiting: list[TrackedRequest] = []
    for sequence, (deadline_s, arrived_s, dispatch) in enumerate(steps):
        if dispatch and waiting:
            first = min(waiting, key=lambda each: (each.request.deadline_s, each.request.arrived_s, each.sequence))
            assert queue.head() is first
            queue.dispatch(first)
            waiting.remove(first)
        else:
            tracked = TrackedRequest(
                offline(f"b{sequence}", deadline_s=deadline_s, arrived_s=arrived_s), sequence, arrived_s
            )
            queue.push(tracked)
            waiting.append(tracked)


def test_silence_is_no_credit() -> None:
    lines = Lines((1.0, 1.0))
    for _ in range(10):
        lines.arrive("f", 10)
    for _ in range(5):
        lines.dispatch(1)
    for _ in range(5):
        lines.arrive("g", 10)  # was silent while f got five dispatches: level from now on, not five dispatches ahead
    dispatched = []
    for _ in range(6):
        lines.dispatch(1)
        dispatched.append(lines.running[-1][0].request.tenant)
    assert all(one != other for one, other in pairwise(dispatched))


def test_weights_share_the_slots_in_their_proportion() -> None:
    lines = Lines((3.0, 1.0))
    for _ in range(40):
        lines.arrive("f", 10)
        lines.arrive("g", 10)
    for _ in range(40):
        lines.dispatch(1)
    assert lines.queue.tenants.named("f").in_flight == 30


def test_who_writes_more_gets_fewer_dispatches() -> None:
    lines = Lines((1.0, 1.0))
    for _ in range(60):
        lines.arrive("f", 10)
        lines.arrive("g", 10)
    for _ in range(60):
        waiting = lines.queue.head()
        assert waiting is not None
        lines.dispatch(30 if waiting.request.tenant == "f" else 1)
        while lines.running:
            lines.iterate()
    dispatched = {name: 60 - len(lines.queue.tenants.named(name).waiting) for name in ("f", "g")}
    assert dispatched["g"] > 4 * dispatched["f"]  # a request of f costs 10 + 2 * 30, one of g 10 + 2


def test_a_prompt_is_charged_once_however_often_the_item_is_preempted() -> None:
    subject = scheduler(slots=1, slice_tokens=20, slice_tokens_busy=20)
    subject.handle(Arrived(request=offline("b1", tenant="t", prompt_tokens=50)), 0.0)
    subject.handle(Arrived(request=online("a1", tenant="u")), 1.0)  # preempts b1
    subject.handle(Stopped(request_id="b1", output_tokens=5), 1.1)
    subject.handle(Ended(request_id="a1", reason=EndReason.END_ID, output_tokens=3), 2.0)
    subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=7), 3.0)
    assert _served(subject.snapshot())[Lane.OFFLINE, "t"] == (50, 12)
    assert _served(subject.snapshot())[Lane.ONLINE, "u"] == (10, 3)


def test_tokens_generated_again_after_a_restart_are_charged_to_nobody() -> None:
    subject = scheduler(slots=1)
    subject.handle(Arrived(request=offline("b1", tenant="t", resumable=False)), 0.0)
    subject.handle(Progressed(engine="e", tokens=(("b1", 30),), first_tokens=("b1",)), 1.0)
    subject.handle(Stopped(request_id="b1", output_tokens=30), 2.0)  # and starts from zero
    subject.handle(Progressed(engine="e", tokens=(("b1", 20),), first_tokens=("b1",)), 3.0)
    assert _served(subject.snapshot())[Lane.OFFLINE, "t"] == (10, 30)
    subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=35), 4.0)
    assert _served(subject.snapshot())[Lane.OFFLINE, "t"] == (10, 35)


def test_a_tenant_over_its_own_bound_is_refused_by_name_and_others_are_not() -> None:
    subject = scheduler(slots=1, tenants={"t": TenantSettings(waiting_max=1)})
    for name in ("a0", "a1"):
        subject.handle(Arrived(request=online(name, tenant="t")), 0.0)
    refused = rejected("a2", RejectReason.QUEUE_FULL, "1 requests of tenant t wait already, and 1 may", 1.0)
    assert subject.handle(Arrived(request=online("a2", tenant="t")), 0.0) == [refused]
    assert subject.handle(Arrived(request=online("a3", tenant="u")), 0.0) == []


def test_a_tenant_with_all_its_slots_is_passed_over_until_one_comes_free() -> None:
    subject = scheduler(slots=3, tenants={"t": TenantSettings(slots_max=1)})
    subject.handle(Arrived(request=offline("b1", tenant="t")), 0.0)
    assert subject.handle(Arrived(request=offline("b2", tenant="t")), 0.0) == []
    assert subject.snapshot().engines["e"].limit_binding == "tenant"
    assert _ids(subject.handle(Arrived(request=offline("b3", tenant="u")), 0.0)) == ["b3"]
    assert _ids(subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=3), 1.0)) == ["b2"]


def test_a_second_long_prompt_waits_for_the_first_and_others_pass_it() -> None:
    subject = scheduler(slots=4, long_prompt_tokens=1000)
    long = {"tenant": "r", "prompt_tokens": 1500}
    assert _ids(subject.handle(Arrived(request=online("h1", **long)), 0.0)) == ["h1"]
    assert subject.handle(Arrived(request=online("h2", **long)), 0.1) == []
    assert _ids(subject.handle(Arrived(request=online("a1", tenant="t")), 0.2)) == ["a1"]
    assert _ids(subject.handle(Arrived(request=offline("b1", prompt_tokens=20)), 0.3)) == ["b1"]
    prefilled = Progressed(engine="e", tokens=(("h1", 1),), first_tokens=("h1",))
    assert _ids(subject.handle(prefilled, 1.0)) == ["h2"]


def test_without_the_rule_long_prompts_start_together() -> None:
    subject = scheduler(slots=4, long_prompt_tokens=0)
    long = {"tenant": "r", "prompt_tokens": 1500}
    assert _ids(subject.handle(Arrived(request=online("h1", **long)), 0.0)) == ["h1"]
    assert _ids(subject.handle(Arrived(request=online("h2", **long)), 0.1)) == ["h2"]


def test_without_fairness_the_lane_is_first_come_first_served() -> None:
    queue = LaneQueue(SchedulerSettings(tenant_fairness=False, tenants={"t": TenantSettings(slots_max=1)}))
    tracked_requests = [
        TrackedRequest(offline(f"b{n}", tenant="tu"[n == 5], arrived_s=float(n)), n, 0.0) for n in range(6)
    ]
    for tracked in tracked_requests:
        queue.push(tracked)
    for tracked in tracked_requests:
        assert queue.head() is tracked
        queue.dispatch(tracked)


def test_a_request_expires_though_its_tenant_is_not_next() -> None:
    subject = scheduler(slots=1)
    for name, tenant, deadline_s in (("a1", "t", 90.0), ("a2", "t", 90.0), ("a3", "u", 5.0)):
        subject.handle(Arrived(request=online(name, tenant=tenant, deadline_s=deadline_s)), 0.0)
    assert subject.next_deadline_s() == 5.0


def test_names_that_callers_make_up_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "ACCOUNTS_MAX", 100)
    subject = scheduler(slots=1)
    for number in range(1000):
        subject.handle(Arrived(request=online(f"a{number}", tenant=f"t{number}")), float(number))
        subject.handle(Ended(request_id=f"a{number}", reason=EndReason.END_ID, output_tokens=2), number + 0.5)
    rows = next(lane.tenants for lane in subject.snapshot().lanes if lane.lane is Lane.ONLINE)
    assert len(rows) == TENANTS_NAMED + 1
    assert rows[-1].tenant == OTHERS
    assert sum(each.input_tokens for each in rows) == 10_000
    assert sum(each.output_tokens for each in rows) == 2_000


@pytest.mark.parametrize(
    "nonsense", [{"weight": 0.0}, {"weight": float("inf")}, {"waiting_max": -1}, {"slots_max": -1}]
)
def test_nonsense_about_a_tenant_cannot_be_built(nonsense: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(nonsense))):
        TenantSettings(**nonsense)  # type: ignore[arg-type]


def _served(snapshot: Snapshot) -> dict[tuple[Lane, str], tuple[int, int]]:
    rows = [(lane.lane, each) for lane in snapshot.lanes for each in lane.tenants]
    return {(lane, each.tenant): (each.input_tokens, each.output_tokens) for lane, each in rows}


def _ids(actions: Sequence[Action]) -> list[str]:
    return [each.request_id for each in actions if isinstance(each, Dispatch)]


# ---- weights and limits that change ----------------------------------------------------------------------------------


def changed(**named: TenantSettings) -> TenantsChanged:
    return TenantsChanged(tenants=named, tenant_default=TenantSettings())


def test_a_tenant_whose_limit_on_slots_is_lifted_gets_them_at_once() -> None:
    subject = scheduler(slots=3, tenants={"t": TenantSettings(slots_max=1)})
    for number in range(3):
        subject.handle(Arrived(request=online(f"o{number}", tenant="t")), 0.0)
    assert subject.snapshot().in_flight == 1
    found = subject.handle(changed(t=TenantSettings(slots_max=2)), 0.1)
    assert [each.request_id for each in found if isinstance(each, Dispatch)] == ["o1"]


def test_a_tenant_that_may_have_less_keeps_what_runs_and_gets_no_more() -> None:
    subject = scheduler(slots=3)
    for number in range(2):
        subject.handle(Arrived(request=online(f"o{number}", tenant="t")), 0.0)
    assert subject.handle(changed(t=TenantSettings(slots_max=1)), 0.1) == []
    assert subject.handle(Arrived(request=online("o2", tenant="t")), 0.2) == []
    assert subject.snapshot().in_flight == 2


def test_a_tenant_that_is_made_heavier_is_served_more_often_from_then_on() -> None:
    queue = LaneQueue(SchedulerSettings())
    number = 0

    def served(count: int) -> list[str]:
        nonlocal number
        found = []
        for _ in range(count):
            for tenant in ("light", "heavy"):
                number += 1
                request = offline(f"b{number}", tenant=tenant, prompt_tokens=10, output_tokens_max=1)
                queue.push(TrackedRequest(request, number, 0.0))
            head = queue.head()
            assert head is not None
            queue.dispatch(head)
            queue.finish(head)
            found.append(head.request.tenant)
        return found

    assert served(40).count("heavy") == 20
    queue.tenants.limit({"heavy": TenantSettings(weight=3)}, TenantSettings())
    assert served(40).count("heavy") == 30


def test_who_is_crowding_is_judged_by_the_weights_of_now() -> None:
    queue = LaneQueue(SchedulerSettings())
    for number, tenant in enumerate(("a", "a", "b", "b", "b")):
        request = offline(f"b{number}", tenant=tenant, prompt_tokens=10, output_tokens_max=1)
        queue.push(TrackedRequest(request, number, 0.0))
    first = queue.tenants.largest()
    queue.tenants.limit({"a": TenantSettings(weight=0.5)}, TenantSettings())
    second = queue.tenants.largest()
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == ("b", "a")
