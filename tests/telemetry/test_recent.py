"""What the status page shows beyond the scheduler's counters, over a real scheduler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.events import Action, Arrived, Dispatch, Ended, EngineUp, Event, Preempt, Progressed, Stopped
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.settings.file import EngineEndpoint
from sidecar.telemetry.recent import Recent

ENGINE = EngineEndpoint(name="e", slots=4, usd_per_hour=8.0, yield_rows="never", tokens_max=4096)
SETTINGS = SchedulerSettings(
    window_ms=0, online_queue_max=2, tenants={"big": TenantSettings(weight=3.0)}, headroom_share_max=0.0
)


class Watched:
    """A scheduler that `Recent` listens to, and a clock."""

    def __init__(self, engine: EngineEndpoint = ENGINE, settings: SchedulerSettings = SETTINGS) -> None:
        self.now_s = 1000.0
        self.scheduler = Scheduler(settings, [engine.for_scheduler()])
        self.recent = Recent((engine,), self.scheduler, clock=lambda: self.now_s, wall=lambda: 5_000.0 + self.now_s)
        self.tell(EngineUp(engine="e"))

    def tell(self, event: Event) -> list[Action]:
        actions = self.scheduler.handle(event, self.now_s)
        self.recent.handled(self.now_s, event, actions)
        return actions

    def arrive(self, name: str, lane: Lane = Lane.ONLINE, tenant: str = "t", **options: Any) -> list[Action]:
        request = Request(
            id=name,
            lane=lane,
            model=ENGINE.model,
            arrived_s=self.now_s,
            prompt_tokens=10,
            output_tokens_max=64,
            tenant=tenant,
            **options,
        )
        return self.tell(Arrived(request=request))

    def parts(self) -> dict[str, Any]:
        return self.recent.parts(self.scheduler.snapshot())


def test_each_slot_says_who_has_it_since_when_and_with_how_many_tokens() -> None:
    watched = Watched()
    watched.arrive("b", Lane.OFFLINE, "<b>big</b>", job="weekly")
    watched.now_s += 2.0
    watched.arrive("a")
    watched.tell(Progressed(engine="e", tokens=(("a", 3), ("b", 5)), first_tokens=("a", "b")))
    first, second = watched.recent.rows()["e"]
    assert first == {
        "row": first["row"],
        "lane": "offline",
        "tenant": "<b>big</b>",
        "job": "weekly",
        "kind": "backfill",
        "draining": False,
        "slots": 1,
        "age_s": 2.0,
        "tokens": 5,
    }
    assert (second["lane"], second["kind"], second["age_s"], second["tokens"]) == ("online", "online", 0.0, 3)


def test_who_waits_has_no_slot_and_who_is_told_to_stop_drains() -> None:
    watched = Watched()
    for at in range(5):
        watched.arrive(f"b{at}", Lane.OFFLINE)
    assert len(watched.recent.rows()["e"]) == ENGINE.slots
    watched.tell(Progressed(engine="e", tokens=tuple((f"b{at}", 1) for at in range(4)), first_tokens=("b0", "b1")))
    assert any(isinstance(each, Preempt) for each in watched.arrive("a"))
    assert sum(each["draining"] for each in watched.recent.rows()["e"]) == 1
    assert watched.parts()["decisions"][-1]["text"] == "stopped 1 row of `t`: an online request arrived"


def test_refusals_begin_an_overload_that_ends_a_minute_after_the_last_one() -> None:
    watched = Watched()
    for at in range(10):
        watched.arrive(f"a{at}")
    watched.now_s += 30.0
    assert watched.parts()["recent"]["refusing_s"] == 30.0
    watched.arrive("late")
    watched.now_s += 59.0
    assert watched.parts()["recent"]["refusing_s"] == 89.0
    watched.now_s += 2.0
    assert watched.parts()["recent"]["refusing_s"] is None
    watched.arrive("again")
    assert watched.parts()["recent"]["refusing_s"] == 0.0


def test_a_request_that_nobody_can_serve_is_no_overload() -> None:
    watched = Watched()
    watched.arrive("a", slots=9)
    assert watched.parts()["recent"]["refusing_s"] is None


def test_a_first_token_is_judged_by_the_requests_own_objective() -> None:
    watched = Watched()
    watched.arrive("a", ttft_objective_ms=100.0)
    watched.arrive("b")
    watched.now_s += 0.3
    watched.tell(Progressed(engine="e", tokens=(("a", 1), ("b", 1)), first_tokens=("a", "b")))
    recent = watched.parts()["recent"]
    assert (recent["began"], recent["late"], recent["ttft_p95_ms"]) == (2, 1, pytest.approx(300.0))


def test_dollars_are_split_by_who_had_the_slots_and_absent_without_a_price() -> None:
    watched = Watched()
    watched.arrive("a")
    watched.arrive("b", Lane.OFFLINE)
    watched.arrive("c", Lane.OFFLINE)
    watched.now_s += 100.0
    assert watched.parts()["usd_per_hour"] == {"online": 2.0, "offline": 4.0, "idle": 2.0}
    assert "usd_per_hour" not in Watched(replace(ENGINE, usd_per_hour=0.0)).parts()


def test_tenants_have_their_share_beside_what_their_weight_gives() -> None:
    watched = Watched()
    for at, tenant in enumerate(("big", "small", "small")):
        watched.arrive(f"b{at}", Lane.OFFLINE, tenant)
    watched.tell(Progressed(engine="e", tokens=(("b0", 30), ("b1", 5), ("b2", 5))))
    found = {each["tenant"]: (each["share"], each["due"], each["slots"]) for each in watched.parts()["tenants"]}
    assert found == {"big": (0.75, 0.75, 1), "small": (0.25, 0.25, 2)}


def test_where_tenants_are_not_told_apart_no_share_is_shown() -> None:
    watched = Watched(settings=SchedulerSettings(tenant_fairness=False))
    watched.arrive("a")
    assert watched.parts()["tenants"] == []


def test_nothing_is_kept_of_requests_that_are_over() -> None:
    watched = Watched()
    watched.arrive("a")
    watched.tell(Ended(request_id="a", reason=EndReason.END_ID, output_tokens=1))
    watched.arrive("b", Lane.OFFLINE)
    watched.tell(Stopped(request_id="b", output_tokens=3))
    actions = watched.arrive("c", Lane.OFFLINE)
    assert any(isinstance(each, Dispatch) for each in actions)
    for name in ("b", "c"):
        watched.tell(Ended(request_id=name, reason=EndReason.END_ID, output_tokens=1))
    assert (watched.recent._requests, watched.recent._running) == ({}, {})
    watched.now_s += 5.0
    assert watched.parts()["history"]["offline_slots"][-1] >= 0.0
