"""Who has a slot next, and what is said to hold offline back."""

from __future__ import annotations

from sidecar.core.events import (
    Arrived,
    Cancelled,
    Closing,
    Dispatch,
    Ended,
    EngineDown,
    EngineUp,
    Measured,
    Reject,
    RejectReason,
    Stopped,
)
from sidecar.core.settings import EngineSettings, TenantSettings
from sidecar.core.work import EndReason, GrantKind
from tests.core.builders import offline, online, scheduler

ONE_SLOT = {"t": TenantSettings(slots_max=1)}


def test_a_turn_does_not_lapse_while_items_wait_whose_tenant_has_all_its_slots() -> None:
    subject = scheduler(slots=2, reservation_every=4, preempt=False, tenants=ONE_SLOT)
    for name in ("a1", "a2"):
        subject.handle(Arrived(work=online(name)), 0.0)
    for work in (offline("b1", tenant="t"), offline("b2", tenant="t"), online("a3")):
        subject.handle(Arrived(work=work), 0.1)
    subject.handle(Ended(work_id="a1", reason=EndReason.END_ID, output_tokens=2), 0.2)  # a3 is contended: credit 1
    subject.handle(Ended(work_id="a2", reason=EndReason.END_ID, output_tokens=2), 0.3)  # b1 is backfill, b2 waits on
    engine = subject.snapshot().engines["e"]
    assert (engine.credit, engine.turns_lapsed, engine.limit_binding) == (1, 0, "tenant")
    subject.handle(Cancelled(work_id="b2"), 0.4)
    engine = subject.snapshot().engines["e"]
    assert (engine.credit, engine.limit_binding) == (0, "no offline")


def test_a_due_turn_is_taken_when_its_tenant_gets_its_slot_back() -> None:
    subject = scheduler(slots=2, reservation_every=2, preempt=False, turn_tokens=16, tenants=ONE_SLOT)
    for work in (online("a1"), offline("b1", tenant="t")):
        subject.handle(Arrived(work=work), 0.0)
    for work in (online("a2"), online("a3"), online("a4"), offline("b2", tenant="t")):
        subject.handle(Arrived(work=work), 0.1)
    assert subject.handle(Ended(work_id="a1", reason=EndReason.END_ID, output_tokens=2), 0.2) == [
        Dispatch(work_id="a2", engine="e", kind=GrantKind.ONLINE, slots=1, output_tokens=100, queue_wait_s=0.2 - 0.1)
    ]
    assert subject.snapshot().engines["e"].credit == 0  # b2 could not have had the slot
    [granted] = subject.handle(Ended(work_id="b1", reason=EndReason.END_ID, output_tokens=2), 0.3)
    assert isinstance(granted, Dispatch)
    assert (granted.work_id, granted.contended) == ("a3", True)
    [granted] = subject.handle(Ended(work_id="a2", reason=EndReason.END_ID, output_tokens=2), 0.4)
    assert isinstance(granted, Dispatch)
    assert (granted.work_id, granted.kind) == ("b2", GrantKind.RESERVED)


def test_nothing_holds_offline_back_where_nothing_offline_waits() -> None:
    subject = scheduler(slots=1, preempt=False)
    subject.handle(Arrived(work=offline("b1")), 0.0)
    for number in range(2, 900):
        subject.handle(Arrived(work=online(f"a{number}")), 0.1)
    subject.handle(Arrived(work=offline("b2")), 0.2)
    assert subject.snapshot().engines["e"].limit_binding == "online waits"
    for name in ("b2", *(f"a{number}" for number in range(2, 900)), "b1"):
        subject.handle(Cancelled(work_id=name), 0.3)
    assert subject.snapshot().engines["e"].limit_binding == "no offline"
    assert subject.handle(Stopped(work_id="b1", output_tokens=0), 0.4) == []
    assert subject.snapshot().engines["e"].limit_binding == "no offline"


def test_what_a_wide_turn_kept_free_is_online_s_when_the_turn_is_handed_back() -> None:
    subject = scheduler(slots=2, reservation_every=2, preempt=False)
    for work in (online("a1"), online("a2"), online("a3"), online("a4"), offline("b1", slots=2)):
        subject.handle(Arrived(work=work), 0.0)
    subject.handle(Ended(work_id="a1", reason=EndReason.END_ID, output_tokens=2), 0.1)
    assert subject.handle(Ended(work_id="a2", reason=EndReason.END_ID, output_tokens=2), 0.2) == []
    assert subject.snapshot().engines["e"].limit_binding == "turn"
    message = "this sidecar is shutting down"
    assert subject.handle(Closing(), 0.3) == [
        Reject(work_id="b1", reason=RejectReason.CLOSING, message=message),
        Dispatch(work_id="a4", engine="e", kind=GrantKind.ONLINE, slots=1, output_tokens=100, queue_wait_s=0.3),
    ]


def test_a_long_prompt_gets_through_in_turns_alone_a_piece_in_each() -> None:
    engine = EngineSettings(name="e", slots=1, tokens_max=9000, prefill_slice_tokens=100)
    subject = scheduler(engines=(engine,), reservation_every=4, turn_tokens=32, preempt=False, prefill_adaptive=False)
    running = "a0"
    subject.handle(Arrived(work=online(running)), 0.0)
    subject.handle(Arrived(work=offline("b1", prompt_tokens=8000, output_tokens_max=100)), 0.0)
    sent: list[tuple[int | None, int]] = []
    number, now_s = 0, 0.0
    while running:
        number, now_s = number + 1, now_s + 1.0
        subject.handle(Arrived(work=online(f"a{number}")), now_s)
        tokens = sent[-1][1] if running == "b1" and sent[-1][0] is None else 0
        reason = EndReason.LENGTH if running == "b1" else EndReason.END_ID
        granted = subject.handle(Ended(work_id=running, reason=reason, output_tokens=tokens), now_s)
        [running, *_] = [each.work_id for each in granted if isinstance(each, Dispatch)] or [""]
        sent += [
            (each.prompt_tokens, each.output_tokens)
            for each in granted
            if isinstance(each, Dispatch) and each.work_id == "b1"
        ]
        if running != "b1" and not any(item.work.id == "b1" for item in subject.alive()):
            break
    pieces = [(100 * n, 1) for n in range(1, 80)]
    assert sent == [*pieces, (None, 32), (None, 32), (None, 32), (None, 4)]
    assert number <= 4 * (len(sent) + 1)
    assert subject.snapshot().engines["e"].window_violations == 0


def test_after_an_engine_was_down_nothing_is_taken_to_be_in_its_cache() -> None:
    engine = EngineSettings(name="e", slots=1, yield_rows="never", prefill_slice_tokens=100)
    subject = scheduler(engines=(engine,), prefill_adaptive=False)
    subject.handle(Arrived(work=offline("b1", prompt_tokens=250)), 0.0)
    subject.handle(EngineDown(engine="e", reason="killed"), 0.1)
    subject.handle(Ended(work_id="b1", reason=EndReason.LENGTH, output_tokens=0), 0.1)
    [granted] = subject.handle(EngineUp(engine="e"), 5.0)
    assert isinstance(granted, Dispatch)
    assert granted.prompt_tokens == 100


def test_an_engine_at_rest_has_no_load_of_others_though_its_gauges_show_the_last_iteration() -> None:
    subject = scheduler(slots=4)
    names = [f"b{number}" for number in range(4)]
    for name in names:
        subject.handle(Arrived(work=offline(name)), 0.0)
    subject.handle(Measured(engine="e", ok=True, active_requests=4, iterations=40), 0.5)
    for name in names:
        subject.handle(Cancelled(work_id=name), 1.0)
        subject.handle(Stopped(work_id=name, output_tokens=3), 1.0)
    for number in range(4):
        subject.handle(Measured(engine="e", ok=True, active_requests=4, iterations=43), 1.1 + number)
    assert subject.foreign_slots("e") == 0
    [granted] = subject.handle(Arrived(work=offline("b9")), 9.0)
    assert isinstance(granted, Dispatch)
