"""Who may wait where a lane is full, and what the others are told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sidecar.core.events import Arrived, Cancelled, Dispatch, Ended, Finished, Reject, RejectReason, Stopped
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import TenantSettings
from tests.core.builders import offline, online, refusal, rejected, scheduler

BOUND = 12
WEIGHTS = {"flood": 1.0, "heavy": 2.0, "modest": 1.0}


def _request(lane: Lane, name: str, tenant: str) -> Request:
    return (online if lane is Lane.ONLINE else offline)(name, tenant=tenant)


def _crowded(bound: int, **settings: Any) -> Scheduler:
    """One slot, and room for so many that wait in each lane."""
    bounds: dict[str, Any] = {"online_queue_max": bound, "offline_queue_max": bound, "offline_queue_low": 0}
    return scheduler(slots=1, preempt=False, **bounds, **settings)


@settings(max_examples=100, deadline=None, phases=(Phase.explicit, Phase.generate))  # a mutant need not be shrunk
@given(
    st.sampled_from(Lane),
    st.lists(
        st.tuples(st.sampled_from(["flood", "flood", "flood", "heavy", "modest"]), st.integers(0, 9)), max_size=120
    ),
)
def test_whoever_has_less_waiting_than_its_share_gets_in_and_stays(lane: Lane, steps: list[tuple[str, int]]) -> None:
    tenants = {name: TenantSettings(weight=weight) for name, weight in WEIGHTS.items()}
    subject = _crowded(BOUND, slice_tokens=0, tenants=tenants)
    waiting: Counter[str] = Counter()
    running = ""
    owners: dict[str, str] = {}
    for number, (tenant, choice) in enumerate(steps):
        name = f"w{number}"
        actions = []
        if choice == 0 and running:
            actions = subject.handle(Ended(request_id=running, reason=EndReason.END_ID, output_tokens=3), float(number))
            running = ""
        else:
            owners[name] = tenant
            entitled = waiting[tenant] + 1 <= BOUND * WEIGHTS[tenant] / sum(WEIGHTS.values())
            actions = subject.handle(Arrived(request=_request(lane, name, tenant)), float(number))
            waiting[tenant] += 1
            if entitled:
                assert not [each for each in actions if isinstance(each, Finished) and each.request_id == name]
        for action in actions:
            if isinstance(action, Finished) and isinstance(action.outcome, Reject):
                owner = owners[action.request_id]
                assert action.outcome.reason is RejectReason.QUEUE_FULL
                assert waiting[owner] > BOUND * WEIGHTS[owner] / sum(WEIGHTS.values())
                waiting[owner] -= 1
            elif isinstance(action, Dispatch):
                running = action.request_id
                waiting[owners[running]] -= 1
        assert sum(waiting.values()) <= BOUND


@pytest.mark.parametrize("lane", Lane)
def test_a_flood_leaves_the_place_of_its_newest_to_a_modest_tenant(lane: Lane) -> None:
    subject = _crowded(3)
    for number in range(4):
        subject.handle(Arrived(request=_request(lane, f"f{number}", "flood")), 0.0)
    message = f"3 {lane} requests wait for model tensorrt_llm already"

    def told(name: str) -> list[Finished]:
        return [rejected(name, RejectReason.QUEUE_FULL, message, 1.0)]

    assert subject.handle(Arrived(request=_request(lane, "f4", "flood")), 0.0) == told("f4")
    assert subject.handle(Arrived(request=_request(lane, "m0", "modest")), 0.1) == told("f3")
    assert subject.handle(Arrived(request=_request(lane, "m1", "modest")), 0.2) == told("m1")


def test_what_has_begun_to_run_does_not_leave() -> None:
    subject = scheduler(slots=2, offline_queue_max=2, offline_queue_low=0)
    for name in ("f0", "f1"):
        subject.handle(Arrived(request=offline(name, tenant="flood")), 0.0)
    for name in ("a0", "a1"):
        subject.handle(Arrived(request=online(name)), 0.1)
    for name in ("f0", "f1"):
        subject.handle(Stopped(request_id=name, output_tokens=5), 0.2)
    name, _ = refusal(subject.handle(Arrived(request=offline("m0", tenant="modest")), 0.3))
    assert name == "m0"


def test_who_is_refused_is_told_when_as_many_as_wait_will_be_over() -> None:
    subject = scheduler(slots=1, online_queue_max=10)
    for number in range(11):
        subject.handle(Arrived(request=online(f"a{number}")), 0.0)
    for number in range(4):
        subject.handle(Ended(request_id=f"a{number}", reason=EndReason.END_ID, output_tokens=3), 2.0 * (number + 1))
    hints: list[float | None] = []
    for number in range(11, 16):
        actions = subject.handle(Arrived(request=online(f"a{number}")), 8.0)
        hints += [refusal([each])[1].retry_after_s for each in actions]
    assert hints == [20.0]  # ten wait, and one is over each two seconds
    _, refused = refusal(subject.handle(Arrived(request=online("late")), 90.0))
    assert refused.retry_after_s == 60.0  # nothing was over for more than a minute


def test_a_tenant_at_its_own_bound_is_told_how_long_its_own_requests_take() -> None:
    subject = scheduler(slots=1, tenants={"t": TenantSettings(waiting_max=2)})
    for number in range(3):
        subject.handle(Arrived(request=online(f"a{number}", tenant="t")), 0.0)
    for number in range(2):
        subject.handle(Ended(request_id=f"a{number}", reason=EndReason.END_ID, output_tokens=3), 0.4 * (number + 1))
        subject.handle(Arrived(request=online(f"a{number + 3}", tenant="t")), 0.4 * (number + 1))
    assert subject.handle(Arrived(request=online("a5", tenant="t")), 0.8) == [
        rejected("a5", RejectReason.QUEUE_FULL, "2 requests of tenant t wait already, and 2 may", 0.8)
    ]


def test_whoever_is_refused_leaves_no_state() -> None:
    subject = scheduler(slots=1, online_queue_max=1)
    for name in ("a0", "a1"):
        subject.handle(Arrived(request=online(name)), 0.0)
    for number in range(50):
        refusal(subject.handle(Arrived(request=online(f"b{number}", tenant=f"t{number}")), 0.0))
    [served] = subject._served_models.values()
    assert [account.name for account in served.online.tenants] == ["default"]


def test_a_tenant_that_has_left_nothing_behind_is_not_the_largest() -> None:
    subject = scheduler(slots=1, online_queue_max=4)
    for number in range(5):
        subject.handle(Arrived(request=online(f"f{number}", tenant="flood")), 0.0)
    for number in range(1, 5):
        subject.handle(Cancelled(request_id=f"f{number}"), 0.1)
    for number in range(4):
        subject.handle(Arrived(request=online(f"m{number}", tenant=f"t{number % 2}")), 0.2)
    name, _ = refusal(subject.handle(Arrived(request=online("m4", tenant="flood")), 0.3))
    assert name == "m2"


@pytest.mark.parametrize("field", ["tenant", "job", "prefix_key"])
def test_a_name_that_is_too_long_to_be_kept_is_refused_without_being_repeated(field: str) -> None:
    subject = scheduler(slots=1)
    name = "x" * 257
    assert subject.handle(Arrived(request=offline("b1", **{field: name})), 0.0) == [
        rejected("b1", RejectReason.TOO_LARGE, f"its {field} has 257 characters, and 256 may")
    ]
    _, refused = refusal(subject.handle(Arrived(request=replace(offline("b2"), model="m" * 5000)), 0.0))
    assert len(refused.message) < 400
