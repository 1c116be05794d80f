"""What others do, in small: caps, AIMD, eviction, static batches."""

from __future__ import annotations

from sidecar.core.events import Action, Arrived, Dispatch, Ended, EngineUp, Preempt, Reject, Stopped, Woke
from sidecar.core.work import EndReason, Lane, Work
from sidecar.lab.baselines import ONLINE_QUEUE_MAX, Aimd, Fixed, Gateway


def work(work_id: str, lane: Lane = Lane.ONLINE) -> Work:
    return Work(id=work_id, lane=lane, model="tensorrt_llm", arrived_s=0.0, prompt_tokens=8, output_tokens_max=8)


def offline(number: int) -> Arrived:
    return Arrived(work=work(f"b{number}", Lane.OFFLINE))


def ended(work_id: str) -> Ended:
    return Ended(work_id=work_id, reason=EndReason.END_ID, output_tokens=3)


def granted(actions: list[Action]) -> list[str]:
    return [each.work_id for each in actions if isinstance(each, Dispatch)]


def test_a_cap_holds_offline_back_and_leaves_the_rest_to_online() -> None:
    gateway = Gateway(engine="e0", slots=3, cap=Fixed(1))
    assert granted(gateway.handle(offline(1), 0.0)) == ["b1"]
    assert granted(gateway.handle(offline(2), 0.0)) == []
    assert granted(gateway.handle(Arrived(work=work("o1")), 0.0)) == ["o1"]
    assert granted(gateway.handle(ended("b1"), 1.0)) == ["b2"]


def test_aimd_grows_by_one_per_window_of_successes_and_halves_once_a_second() -> None:
    aimd = Aimd(most=8, least=2, cap=4.0)
    for _ in range(4):
        aimd.finished()
    assert aimd.rows() == 5
    for at_s in (10.0, 10.5, 11.1):
        aimd.congested(at_s)
    assert aimd.rows() == 2  # 5 → 2.5 → (too soon) → 2


def test_bands_evict_at_most_two_then_wait_for_them() -> None:
    gateway = Gateway(engine="e0", slots=3, cap=Fixed(3), evict=True)
    for number in range(3):
        gateway.handle(offline(number), 0.0)
    gateway.handle(offline(9), 0.0)
    evicted = gateway.handle(Arrived(work=work("o1")), 1.0)
    assert [each.work_id for each in evicted if isinstance(each, Preempt)] == ["b2"]
    assert gateway.handle(Arrived(work=work("o2")), 1.1) == []  # stop and wait
    assert granted(gateway.handle(Stopped(work_id="b2", output_tokens=2), 1.2)) == ["o1"]


def test_a_static_batch_starts_after_its_window_and_admits_nobody_until_all_are_done() -> None:
    gateway = Gateway(engine="e0", slots=2, cap=Fixed(2), batches=True)
    gateway.handle(EngineUp(engine="e0"), 0.0)
    assert gateway.handle(offline(1), 0.0) == []
    assert gateway.next_deadline_s() == 0.015
    assert gateway.handle(Arrived(work=work("o1")), 0.010) == []
    assert granted(gateway.handle(Woke(), 0.015)) == ["o1", "b1"]
    assert gateway.handle(Arrived(work=work("o2")), 0.1) == []
    assert gateway.handle(ended("o1"), 0.2) == []
    assert gateway.handle(ended("b1"), 0.3) == []
    assert granted(gateway.handle(Woke(), 0.315)) == ["o2"]


def test_a_full_online_queue_refuses() -> None:
    gateway = Gateway(engine="e0", slots=1, cap=Fixed(1))
    for number in range(ONLINE_QUEUE_MAX + 1):
        gateway.handle(Arrived(work=work(f"o{number}")), 0.0)
    [refusal] = gateway.handle(Arrived(work=work("late")), 0.0)
    assert isinstance(refusal, Reject)
