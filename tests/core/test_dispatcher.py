"""Who has a slot next, and what is said to hold offline back."""

from __future__ import annotations

from math import inf, nan

import pytest

from sidecar.core.events import (
    Arrived,
    Cancelled,
    Closing,
    Dispatch,
    Ended,
    Ending,
    EngineDown,
    EngineUp,
    Event,
    Finished,
    Measured,
    Progressed,
    RejectReason,
    Stopped,
)
from sidecar.core.request import DispatchKind, EndReason, Request
from sidecar.core.settings import EngineSettings, TenantSettings
from tests.core.builders import complete, offline, online, rejected, scheduler

ONE_SLOT = {"t": TenantSettings(slots_max=1)}


def test_a_reserved_dispatch_does_not_lapse_while_items_wait_whose_tenant_has_all_its_slots() -> None:
    subject = scheduler(slots=2, reservation_every=4, preempt=False, tenants=ONE_SLOT)
    for name in ("a1", "a2"):
        subject.handle(Arrived(request=online(name)), 0.0)
    for request in (offline("b1", tenant="t"), offline("b2", tenant="t"), online("a3")):
        subject.handle(Arrived(request=request), 0.1)
    subject.handle(Ended(request_id="a1", reason=EndReason.END_ID, output_tokens=2), 0.2)  # a3 is contended: credit 1
    subject.handle(Ended(request_id="a2", reason=EndReason.END_ID, output_tokens=2), 0.3)  # b1 is backfill, b2 waits on
    engine = subject.snapshot().engines["e"]
    assert (engine.credit, engine.reserved_lapsed, engine.limit_binding) == (1, 0, "tenant")
    subject.handle(Cancelled(request_id="b2"), 0.4)
    engine = subject.snapshot().engines["e"]
    assert (engine.credit, engine.limit_binding) == (0, "no offline")


def test_a_due_reserved_dispatch_is_taken_when_its_tenant_gets_its_slot_back() -> None:
    subject = scheduler(slots=2, reservation_every=2, preempt=False, reserved_tokens=16, tenants=ONE_SLOT)
    for request in (online("a1"), offline("b1", tenant="t")):
        subject.handle(Arrived(request=request), 0.0)
    for request in (online("a2"), online("a3"), online("a4"), offline("b2", tenant="t")):
        subject.handle(Arrived(request=request), 0.1)
    assert subject.handle(Ended(request_id="a1", reason=EndReason.END_ID, output_tokens=2), 0.2) == [
        complete("a1"),
        Dispatch(
            request_id="a2", engine="e", kind=DispatchKind.ONLINE, slots=1, output_tokens=100, queue_wait_s=0.2 - 0.1
        ),
    ]
    assert subject.snapshot().engines["e"].credit == 0  # b2 could not have had the slot
    [_, dispatched] = subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=2), 0.3)
    assert isinstance(dispatched, Dispatch)
    assert (dispatched.request_id, dispatched.contended) == ("a3", True)
    [_, dispatched] = subject.handle(Ended(request_id="a2", reason=EndReason.END_ID, output_tokens=2), 0.4)
    assert isinstance(dispatched, Dispatch)
    assert (dispatched.request_id, dispatched.kind) == ("b2", DispatchKind.RESERVED)


def test_nothing_holds_offline_back_where_nothing_offline_waits() -> None:
    subject = scheduler(slots=1, preempt=False)
    subject.handle(Arrived(request=offline("b1")), 0.0)
    for number in range(2, 900):
        subject.handle(Arrived(request=online(f"a{number}")), 0.1)
    subject.handle(Arrived(request=offline("b2")), 0.2)
    assert subject.snapshot().engines["e"].limit_binding == "online waits"
    for name in ("b2", *(f"a{number}" for number in range(2, 900)), "b1"):
        subject.handle(Cancelled(request_id=name), 0.3)
    assert subject.snapshot().engines["e"].limit_binding == "no offline"
    cancelled = Finished(request_id="b1", outcome=Ending.CANCELLED)
    assert subject.handle(Stopped(request_id="b1", output_tokens=0), 0.4) == [cancelled]
    assert subject.snapshot().engines["e"].limit_binding == "no offline"


def test_what_a_wide_reserved_dispatch_kept_free_is_online_s_when_it_is_handed_back() -> None:
    subject = scheduler(slots=2, reservation_every=2, preempt=False)
    for request in (online("a1"), online("a2"), online("a3"), online("a4"), offline("b1", slots=2)):
        subject.handle(Arrived(request=request), 0.0)
    subject.handle(Ended(request_id="a1", reason=EndReason.END_ID, output_tokens=2), 0.1)
    assert subject.handle(Ended(request_id="a2", reason=EndReason.END_ID, output_tokens=2), 0.2) == [complete("a2")]
    assert subject.snapshot().engines["e"].limit_binding == "reserved dispatch"
    message = "this sidecar is shutting down"
    assert subject.handle(Closing(), 0.3) == [
        rejected("b1", RejectReason.CLOSING, message),
        Dispatch(request_id="a4", engine="e", kind=DispatchKind.ONLINE, slots=1, output_tokens=100, queue_wait_s=0.3),
    ]


def test_a_long_prompt_gets_through_in_reserved_dispatches_alone_a_chunk_in_each() -> None:
    engine = EngineSettings(name="e", slots=1, tokens_max=9000, prefill_slice_tokens=100)
    subject = scheduler(engines=(engine,), reservation_every=4, reserved_tokens=32, preempt=False)
    running = "a0"
    subject.handle(Arrived(request=online(running)), 0.0)
    subject.handle(Arrived(request=offline("b1", prompt_tokens=8000, output_tokens_max=100)), 0.0)
    sent: list[tuple[int | None, int]] = []
    number, now_s = 0, 0.0
    while running:
        number, now_s = number + 1, now_s + 1.0
        subject.handle(Arrived(request=online(f"a{number}")), now_s)
        tokens = sent[-1][1] if running == "b1" and sent[-1][0] is None else 0
        reason = EndReason.LENGTH if running == "b1" else EndReason.END_ID
        dispatched = subject.handle(Ended(request_id=running, reason=reason, output_tokens=tokens), now_s)
        [running, *_] = [each.request_id for each in dispatched if isinstance(each, Dispatch)] or [""]
        sent += [
            (each.prompt_tokens, each.output_tokens)
            for each in dispatched
            if isinstance(each, Dispatch) and each.request_id == "b1"
        ]
        if running != "b1" and not any(tracked.request.id == "b1" for tracked in subject.alive()):
            break
    chunks = [(100 * n, 1) for n in range(1, 80)]
    assert sent == [*chunks, (None, 32), (None, 32), (None, 32), (None, 4)]
    assert number <= 4 * (len(sent) + 1)
    assert subject.snapshot().engines["e"].window_violations == 0


def test_after_an_engine_was_down_nothing_is_taken_to_be_in_its_cache() -> None:
    engine = EngineSettings(name="e", slots=1, yield_rows="never", prefill_slice_tokens=100)
    subject = scheduler(engines=(engine,))
    subject.handle(Arrived(request=offline("b1", prompt_tokens=250)), 0.0)
    subject.handle(EngineDown(engine="e", reason="killed"), 0.1)
    subject.handle(Ended(request_id="b1", reason=EndReason.LENGTH, output_tokens=0), 0.1)
    [dispatched] = subject.handle(EngineUp(engine="e"), 5.0)
    assert isinstance(dispatched, Dispatch)
    assert dispatched.prompt_tokens == 100


def test_an_engine_at_rest_has_no_load_of_others_though_its_gauges_show_the_last_iteration() -> None:
    subject = scheduler(slots=4)
    names = [f"b{number}" for number in range(4)]
    for name in names:
        subject.handle(Arrived(request=offline(name)), 0.0)
    subject.handle(Measured(engine="e", ok=True, active_requests=4, iterations=40), 0.5)
    for name in names:
        subject.handle(Cancelled(request_id=name), 1.0)
        subject.handle(Stopped(request_id=name, output_tokens=3), 1.0)
    for number in range(4):
        subject.handle(Measured(engine="e", ok=True, active_requests=4, iterations=43), 1.1 + number)
    assert subject.foreign_slots("e") == 0
    [dispatched] = subject.handle(Arrived(request=offline("b9")), 9.0)
    assert isinstance(dispatched, Dispatch)


def test_what_an_engine_cannot_hold_any_more_is_refused_when_three_scrapes_say_so() -> None:
    subject = scheduler(slots=1, slice_tokens=0, preempt=False)
    for request in (online("a1"), online("a2", prompt_tokens=900), online("a3"), offline("b1", prompt_tokens=1500)):
        subject.handle(Arrived(request=request), 0.0)
    scrape = Measured(engine="e", ok=True, active_requests=1, kv_blocks_max=16, kv_blocks_free=10, tokens_per_block=32)
    for now_s in (1.0, 2.0):
        assert subject.handle(scrape, now_s) == []
    why = "it needs {} tokens of KV cache, and the engine has 512"
    assert subject.handle(scrape, 3.0) == [
        rejected("a2", RejectReason.TOO_LARGE, why.format(1024)),
        rejected("b1", RejectReason.TOO_LARGE, why.format(1600)),
    ]
    assert subject.handle(scrape, 4.0) == []


@pytest.mark.parametrize(
    ("asked", "kv_tokens", "needed"),
    [
        (online("a1", prompt_tokens=900, output_tokens_max=95), 1000, 1024),
        (online("a1", prompt_tokens=300, output_tokens_max=90, slots=8), 3200, 3328),
        (offline("a1", prompt_tokens=300, output_tokens_max=90, slots=8), 3200, 3328),
    ],
)
def test_what_does_not_fit_in_whole_blocks_is_refused_and_holds_up_nobody(
    asked: Request, kv_tokens: int, needed: int
) -> None:
    subject = scheduler(engines=(EngineSettings(name="e", kv_tokens=kv_tokens, yield_rows="never"),))
    message = f"it needs {needed} tokens of KV cache, and the engine has {kv_tokens}"
    refused = rejected("a1", RejectReason.TOO_LARGE, message)
    assert subject.handle(Arrived(request=asked), 0.0) == [refused]
    [dispatched] = subject.handle(Arrived(request=online("a2")), 0.1)
    assert isinstance(dispatched, Dispatch)


SMALL = EngineSettings(name="small", slots=1, tokens_max=200, yield_rows="never")
LARGE = EngineSettings(name="large", slots=2, tokens_max=2000, yield_rows="never")


def test_what_fits_one_engine_of_a_model_only_runs_there() -> None:
    subject = scheduler(engines=(SMALL, LARGE), preempt=False, window_ms=0.0)
    long = {"prompt_tokens": 900}
    [first] = subject.handle(Arrived(request=online("a1", **long)), 0.0)
    [second] = subject.handle(Arrived(request=offline("b1", **long)), 0.0)
    assert isinstance(first, Dispatch)
    assert isinstance(second, Dispatch)
    assert {first.engine, second.engine} == {"large"}
    assert subject.handle(Arrived(request=online("a2", **long)), 0.1) == []
    assert subject.handle(Arrived(request=offline("b2", **long)), 0.1) == []
    assert subject.snapshot().engines["small"].limit_binding == "too large"


def test_an_item_is_not_kept_for_the_home_of_its_prefix_if_that_cannot_hold_it() -> None:
    for number in range(8):  # of these prefixes some are at home on either engine
        subject = scheduler(engines=(SMALL, LARGE))
        request = offline("b1", prompt_tokens=900, prefix_key=f"p{number}")
        [dispatched] = subject.handle(Arrived(request=request), 0.0)
        assert isinstance(dispatched, Dispatch)
        assert dispatched.engine == "large"


def test_no_reserved_dispatch_is_kept_for_an_item_that_this_engine_can_never_run() -> None:
    subject = scheduler(engines=(SMALL, LARGE), preempt=False, reservation_every=2)
    for name in ("a0", "a1", "a2"):
        subject.handle(Arrived(request=online(name)), 0.0)
    subject.handle(Arrived(request=offline("b1", slots=2)), 0.1)
    for number in range(3, 9):
        subject.handle(Arrived(request=online(f"a{number}")), 0.1)
    running = next(tracked.request.id for tracked in subject.alive() if tracked.engine == "small")
    for number in range(4):
        [_, dispatched] = subject.handle(
            Ended(request_id=running, reason=EndReason.END_ID, output_tokens=2), 1.0 + number
        )
        assert isinstance(dispatched, Dispatch)
        assert (dispatched.engine, dispatched.kind) == ("small", DispatchKind.ONLINE)
        running = dispatched.request_id


def test_no_reserved_dispatch_is_kept_for_an_item_that_lacks_what_others_hold() -> None:
    engine = EngineSettings(name="e", slots=4, kv_tokens=1024, yield_rows="never")
    subject = scheduler(engines=(engine,), reservation_every=2, preempt=False, slice_tokens=0)
    for number in range(3):
        scrape = Measured(engine="e", ok=True, kv_blocks_max=32, kv_blocks_free=12, iterations=number)
        subject.handle(scrape, 0.1 * number)
    subject.handle(Arrived(request=offline("b1", prompt_tokens=400)), 1.0)  # 384 tokens are left by others
    dispatched = [
        action
        for number in range(6)
        for action in subject.handle(Arrived(request=online(f"a{number}", output_tokens_max=20)), 2.0)
    ]
    assert [each.request_id for each in dispatched if isinstance(each, Dispatch)] == ["a0", "a1", "a2", "a3"]


def test_a_tick_that_comes_after_the_end_of_a_dispatch_leaves_nothing_behind() -> None:
    subject = scheduler(slots=1, slice_tokens=10)
    subject.handle(Arrived(request=offline("b1")), 0.0)
    subject.handle(Arrived(request=online("a1")), 0.1)
    subject.handle(Stopped(request_id="b1", output_tokens=0), 0.2)
    late = Progressed(engine="e", tokens=(("b1", 5), ("a1", 1)), first_tokens=("b1", "a1"))
    subject.handle(late, 0.3)
    assert list(subject.snapshot().engines["e"].decoding_rows.values()) == [1, 0]
    subject.handle(Ended(request_id="a1", reason=EndReason.END_ID, output_tokens=1), 0.4)
    subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=3), 0.5)
    engine = subject.snapshot().engines["e"]
    assert (sum(engine.decoding_rows.values()), sum(engine.decoding_context_tokens.values())) == (0, 0)


@pytest.mark.parametrize(
    "event",
    [
        Progressed(engine="f", tokens=()),
        EngineUp(engine="f"),
        EngineDown(engine="f", reason="killed"),
        Measured(engine="f", ok=False),
    ],
)
def test_an_event_of_an_engine_that_is_not_there_is_named(event: Event) -> None:
    with pytest.raises(ValueError, match=r"engine f, which is not among \['e'\]"):
        scheduler(slots=1).handle(event, 1.0)


@pytest.mark.parametrize(
    "nonsense",
    [
        *({"deadline_s": nan}, {"arrived_s": inf}, {"arrived_s": nan}, {"ttft_objective_ms": nan}),
        *({"ttft_objective_ms": -1.0}, {"prompt_tokens": -1}, {"output_tokens_max": 0}, {"slots": 0}),
    ],
)
def test_a_request_that_would_spoil_the_order_of_others_cannot_be_built(nonsense: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(nonsense))):
        online("a1", **nonsense)


def test_an_empty_prompt_with_a_known_prefix_is_dispatched() -> None:
    subject = scheduler(slots=1)
    subject.handle(Arrived(request=offline("b1", prompt_tokens=40, prefix_key="p")), 0.0)
    subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=3, reused_tokens=32), 1.0)
    [dispatched] = subject.handle(Arrived(request=offline("b2", prompt_tokens=0, prefix_key="p")), 2.0)
    assert isinstance(dispatched, Dispatch)
    subject.handle(Ended(request_id="b2", reason=EndReason.END_ID, output_tokens=3, reused_tokens=0), 3.0)
    assert subject.snapshot().engines["e"].reuse_ratio == 1.0
