"""Homes of prefixes: each has one, a lost engine moves only its own, and no engine is piled up on."""

from __future__ import annotations

from collections import Counter

from sidecar.core.arrivals import ArrivalRate
from sidecar.core.engine import Engine
from sidecar.core.events import Arrived, Dispatch, Ended, EngineDown, Event
from sidecar.core.placement import Placement
from sidecar.core.prefixes import PREFIXES_MAX, Prefixes
from sidecar.core.request import EndReason
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from tests.core.builders import offline, online, scheduler

KEYS = [f"prefix-{number}" for number in range(1000)]


def engines(*slots: int) -> list[Engine]:
    made = [
        Engine.of(EngineSettings(name=f"e{number}", slots=each), SchedulerSettings(), ArrivalRate())
        for number, each in enumerate(slots)
    ]
    for engine in made:
        engine.up = True
    return made


def homes(placement: Placement) -> dict[str, Engine | None]:
    return {key: placement.home(key) for key in KEYS}


def test_prefixes_are_spread_by_the_slots_of_the_engines() -> None:
    counts = Counter(engine.settings.name for engine in homes(Placement(engines(8, 8, 16))).values() if engine)
    assert 420 < counts["e2"] < 580
    assert 180 < counts["e0"] < 320


def test_a_lost_engine_moves_only_the_prefixes_that_were_at_home_on_it() -> None:
    made = engines(8, 8, 8)
    before = homes(placement := Placement(made))
    made[1].up = False
    after = homes(placement)
    assert all(after[key] is before[key] for key in KEYS if before[key] is not made[1])
    assert {engine.settings.name for engine in after.values() if engine} == {"e0", "e2"}


def test_an_engine_with_more_than_its_share_by_a_quarter_is_passed_over() -> None:
    made = engines(8, 8)
    placement = Placement(made)
    key = next(key for key in KEYS if placement.home(key) is made[0])
    made[0].free.take(2)  # 2 of 2 + 1 slots: more than 1.25 * 3 / 2, rounded up
    assert placement.home(key) is made[1]
    made[1].free.take(2)
    assert placement.home(key) is made[0]


def test_one_engine_or_no_prefix_has_no_home_to_prefer() -> None:
    assert Placement(engines(8)).home("a") is None
    assert Placement(engines(8, 8)).home("") is None


def dispatched(subject: Scheduler, event: Event, now_s: float) -> list[tuple[str, str]]:
    return [(each.request_id, each.engine) for each in subject.handle(event, now_s) if isinstance(each, Dispatch)]


def two_engines() -> Scheduler:
    return scheduler(engines=tuple(EngineSettings(name=name, slots=4, yield_rows="never") for name in ("e0", "e1")))


def test_items_and_requests_with_one_prefix_meet_on_one_engine_while_the_load_allows_it() -> None:
    subject = two_engines()
    [(_, home)] = dispatched(subject, Arrived(request=offline("b1", prefix_key="p")), 0.0)
    subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=5), 1.0)
    assert dispatched(subject, Arrived(request=offline("b2", prefix_key="p")), 2.0) == [("b2", home)]
    subject.handle(Ended(request_id="b2", reason=EndReason.END_ID, output_tokens=5), 3.0)
    assert dispatched(subject, Arrived(request=online("a1", prefix_key="p")), 4.0) == [("a1", home)]


def test_the_items_of_a_lost_engine_go_on_elsewhere_with_their_tokens() -> None:
    subject = two_engines()
    [(_, home)] = dispatched(subject, Arrived(request=offline("b1", prefix_key="p")), 0.0)
    subject.handle(EngineDown(engine=home, reason="gone"), 1.0)
    [(moved, other)] = dispatched(subject, Ended(request_id="b1", reason=EndReason.LENGTH, output_tokens=60), 1.1)
    assert moved == "b1"
    assert other != home
    assert [tracked.generated_tokens for tracked in subject.alive()] == [60]


def test_what_a_prefix_found_last_is_expected_next_and_the_oldest_is_forgotten() -> None:
    subject = Prefixes()
    subject.learn("p", 96)
    subject.learn("p", 256)
    assert subject.tokens("p") == 256
    subject.learn("p", None)
    assert subject.tokens("p") == 256
    subject.learn("", 512)
    assert subject.tokens("") == 0
    for number in range(PREFIXES_MAX):
        subject.learn(f"q{number}", 1)
    assert subject.tokens("p") == 0
