"""What others do, in small: caps, AIMD, eviction, static batches, budgets, nights."""

from __future__ import annotations

from collections import deque
from math import inf

from sidecar.core.events import (
    Action,
    Arrived,
    Dispatch,
    Ended,
    EngineUp,
    Finished,
    Preempt,
    Progressed,
    Reject,
    Stopped,
    Woke,
)
from sidecar.core.request import EndReason, Lane, Request
from sidecar.sim.baselines import ONLINE_QUEUE_MAX, BatchGatewayAimd, Budget, Fixed, Gateway, Load, Nights, Tidal


def request(request_id: str, lane: Lane = Lane.ONLINE, deadline_s: float = inf) -> Request:
    return Request(
        id=request_id,
        lane=lane,
        model="tensorrt_llm",
        arrived_s=0.0,
        prompt_tokens=8,
        output_tokens_max=8,
        deadline_s=deadline_s,
    )


def offline(number: int) -> Arrived:
    return Arrived(request=request(f"b{number}", Lane.OFFLINE))


def ended(request_id: str) -> Ended:
    return Ended(request_id=request_id, reason=EndReason.END_ID, output_tokens=3)


def load(now_s: float = 0.0, *, active: int = 0, items: tuple[Request, ...] = ()) -> Load:
    return Load(now_s=now_s, slots=8, active=active, offline=deque(items))


def dispatched(actions: list[Action]) -> list[str]:
    return [each.request_id for each in actions if isinstance(each, Dispatch)]


def test_a_cap_holds_offline_back_and_leaves_the_rest_to_online() -> None:
    gateway = Gateway(engine="e0", slots=3, cap=Fixed(1))
    assert dispatched(gateway.handle(offline(1), 0.0)) == ["b1"]
    assert dispatched(gateway.handle(offline(2), 0.0)) == []
    assert dispatched(gateway.handle(Arrived(request=request("o1")), 0.0)) == ["o1"]
    assert dispatched(gateway.handle(ended("b1"), 1.0)) == ["b2"]


def test_aimd_grows_by_one_per_window_of_successes_and_halves_once_a_second() -> None:
    aimd = BatchGatewayAimd(most=8, least=2, cap=4.0)
    for _ in range(4):
        aimd.finished(0.0)
    assert aimd.rows(load()) == 5
    for at_s in (10.0, 10.5, 11.1):
        aimd.congested(at_s)
    assert aimd.rows(load()) == 2  # 5 → 2.5 → (too soon) → 2


def test_bands_evict_at_most_two_then_wait_for_them() -> None:
    gateway = Gateway(engine="e0", slots=3, cap=Fixed(3), evict=True)
    for number in range(3):
        gateway.handle(offline(number), 0.0)
    gateway.handle(offline(9), 0.0)
    evicted = gateway.handle(Arrived(request=request("o1")), 1.0)
    assert [each.request_id for each in evicted if isinstance(each, Preempt)] == ["b2"]
    assert gateway.handle(Arrived(request=request("o2")), 1.1) == []  # stop and wait
    assert dispatched(gateway.handle(Stopped(request_id="b2", output_tokens=2), 1.2)) == ["o1"]


def test_a_static_batch_starts_after_its_window_and_admits_nobody_until_all_are_done() -> None:
    gateway = Gateway(engine="e0", slots=2, cap=Fixed(2), batches=True)
    gateway.handle(EngineUp(engine="e0"), 0.0)
    assert gateway.handle(offline(1), 0.0) == []
    assert gateway.next_deadline_s() == 0.015
    assert gateway.handle(Arrived(request=request("o1")), 0.010) == []
    assert dispatched(gateway.handle(Woke(), 0.015)) == ["o1", "b1"]
    assert gateway.handle(Arrived(request=request("o2")), 0.1) == []
    assert dispatched(gateway.handle(ended("o1"), 0.2)) == []
    assert dispatched(gateway.handle(ended("b1"), 0.3)) == []
    assert dispatched(gateway.handle(Woke(), 0.315)) == ["o2"]


def test_a_full_online_queue_refuses() -> None:
    gateway = Gateway(engine="e0", slots=1, cap=Fixed(1))
    for number in range(ONLINE_QUEUE_MAX + 1):
        gateway.handle(Arrived(request=request(f"o{number}")), 0.0)
    [refusal] = gateway.handle(Arrived(request=request("late")), 0.0)
    assert isinstance(refusal, Finished)
    assert isinstance(refusal.outcome, Reject)


def test_tidal_adds_a_row_each_second_and_halves_them_at_the_next_look_after_online_found_no_slot() -> None:
    tidal = Tidal()
    assert [tidal.rows(load(at_s)) for at_s in (0.0, 0.5, 1.0, 2.0, 3.0)] == [2, 2, 3, 4, 5]
    tidal.congested(3.1)
    assert [tidal.rows(load(at_s)) for at_s in (3.5, 4.0, 5.0)] == [5, 2, 3]


def test_tidal_keeps_a_floor_for_a_deadline_that_is_near_however_congested_it_is() -> None:
    tidal, due = Tidal(), request("b1", Lane.OFFLINE, deadline_s=700.0)
    for at_s in range(10):
        tidal.finished(float(at_s))
        tidal.congested(float(at_s))
    assert tidal.rows(load(10.0)) == 1
    tidal.congested(10.5)
    assert tidal.rows(load(11.0, items=(due,))) == 2  # a quarter of eight slots


def test_any_budget_lets_every_worker_in_until_the_next_scrape() -> None:
    gateway = Gateway(engine="e0", slots=2, cap=Budget(), forward_all=True)
    assert len(dispatched(gateway.handle(offline(0), 0.0))) == 1
    assert [len(dispatched(gateway.handle(offline(number), 1.0))) for number in (1, 2, 3)] == [1, 1, 1]  # two too many
    assert gateway.next_deadline_s() is None  # nobody waits
    assert dispatched(gateway.handle(offline(4), 5.0)) == []
    assert gateway.next_deadline_s() == 10.0


def test_of_two_queues_a_batch_holds_one_lane_and_a_batch_of_offline_goes_on_later() -> None:
    gateway = Gateway(engine="e0", slots=2, cap=Fixed(2), batches=True, batch_s=1.0, window_s=0.0)
    gateway.handle(EngineUp(engine="e0"), 0.0)
    assert dispatched(gateway.handle(offline(1), 0.0)) == ["b1"]
    assert gateway.handle(Arrived(request=request("o1")), 0.5) == []
    assert gateway.next_deadline_s() == 1.0
    assert gateway.handle(Woke(), 1.0) == [Preempt(request_id="b1", engine="e0")]
    assert dispatched(gateway.handle(Stopped(request_id="b1", output_tokens=3), 1.1)) == ["o1"]  # a slot is left empty
    [rest] = [each for each in gateway.handle(ended("o1"), 1.2) if isinstance(each, Dispatch)]
    assert (rest.request_id, rest.output_tokens) == ("b1", 5)


def test_nights_and_weekends_are_offlines_and_days_are_not() -> None:
    nights, hour_s = Nights(), 3600.0
    assert [nights.rows(load(hour * hour_s)) for hour in (0, 7.9, 8, 19.9, 20, 5 * 24 + 12)] == [8, 8, 0, 0, 8, 8]
    nights.rows(load(7.5 * hour_s))
    assert nights.next_s() == 8 * hour_s


def test_an_aimd_that_looks_at_ttft_halves_its_cap_when_a_first_token_is_late() -> None:
    cap = BatchGatewayAimd(most=64, least=1, cap=8.0, refused=False)
    gateway = Gateway(engine="e", slots=64, cap=cap, late_s=0.3)
    gateway.handle(Arrived(request=request("o", Lane.ONLINE)), 0.0)
    gateway.handle(Progressed(engine="e", tokens=(), first_tokens=("o",), gaps_s=()), 0.2)
    assert cap.rows(Load(now_s=0.2, slots=64, active=1, offline=deque())) == 8
    gateway.handle(Arrived(request=request("p", Lane.ONLINE)), 1.0)
    gateway.handle(Progressed(engine="e", tokens=(), first_tokens=("p",), gaps_s=()), 1.4)
    assert cap.rows(Load(now_s=1.4, slots=64, active=2, offline=deque())) == 4


def test_the_published_aimd_hears_nothing_from_an_engine_that_never_refuses() -> None:
    cap = BatchGatewayAimd(refused=False)
    cap.congested(1.0)
    assert cap.cap == 5.0
