"""The decision loop: whole lists of actions, so that a surprise shows up."""

from __future__ import annotations

from sidecar.core.events import Arrived, Dispatch, Ended, Failed, Woke
from sidecar.core.request import DispatchKind, EndReason
from tests.core.builders import complete, offline, online, scheduler


def test_a_freed_slot_goes_to_online_before_offline() -> None:
    subject = scheduler(slots=1, preempt=False)
    assert subject.handle(Arrived(request=offline("b1")), 0.0) == [
        Dispatch(request_id="b1", engine="e", kind=DispatchKind.BACKFILL, slots=1, output_tokens=100, queue_wait_s=0.0)
    ]
    assert subject.handle(Arrived(request=offline("b2")), 0.0) == []
    assert subject.handle(Arrived(request=online("a1", arrived_s=1.0)), 1.0) == []
    assert subject.handle(Ended(request_id="b1", reason=EndReason.END_ID, output_tokens=7), 3.0) == [
        complete("b1"),
        Dispatch(
            request_id="a1",
            engine="e",
            kind=DispatchKind.ONLINE,
            slots=1,
            output_tokens=100,
            queue_wait_s=2.0,
            contended=True,
        ),
    ]
    assert subject.snapshot().engines["e"].contended == 1


def test_a_retry_that_is_due_at_once_is_the_next_deadline() -> None:
    subject = scheduler(slots=1, retry_backoff_s=0.0)
    subject.handle(Arrived(request=offline("b1")), 0.0)
    assert subject.handle(Failed(request_id="b1", reason="a hiccup", retryable=True), 1.0) == []
    assert subject.next_deadline_s() == 1.0
    [again] = subject.handle(Woke(), 1.0)
    assert isinstance(again, Dispatch)
