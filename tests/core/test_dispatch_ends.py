"""What a terminal event means: whether the request is over, how, and what is known then; said once and nowhere else."""

from __future__ import annotations

import pytest

from sidecar.core.events import (
    Abort,
    Arrived,
    Cancelled,
    DeadLetter,
    Dispatch,
    Ended,
    Ending,
    Failed,
    Finished,
    Lost,
    Preempt,
    Stopped,
)
from sidecar.core.request import EndReason, Request
from sidecar.core.scheduler import Scheduler
from tests.core.builders import complete, offline, online, scheduler

FAILED = Failed(request_id="w", reason="INTERNAL: x", retryable=True)
BY_LENGTH = Ended(request_id="w", reason=EndReason.LENGTH, output_tokens=40)


def running(asked: Request) -> Scheduler:
    subject = scheduler(slots=1)
    [dispatch] = subject.handle(Arrived(request=asked), 0.0)
    assert isinstance(dispatch, Dispatch)
    return subject


@pytest.mark.parametrize("asked", [online("w"), offline("w")], ids=lambda asked: str(asked.lane))
@pytest.mark.parametrize("reason", [EndReason.END_ID, EndReason.STOP_WORD])
def test_a_request_that_ended_by_itself_is_complete(asked: Request, reason: EndReason) -> None:
    assert running(asked).handle(Ended(request_id="w", reason=reason, output_tokens=3), 1.0) == [complete("w")]


@pytest.mark.parametrize("event", [BY_LENGTH, Stopped(request_id="w", output_tokens=3), FAILED, Lost(request_id="w")])
def test_an_online_request_is_over_with_its_dispatch(event: Ended | Stopped | Failed | Lost) -> None:
    subject = running(online("w"))
    assert subject.handle(event, 1.0) == [Finished(request_id="w", outcome=Ending.INCOMPLETE)]
    assert subject.alive() == ()


@pytest.mark.parametrize("event", [BY_LENGTH, Stopped(request_id="w", output_tokens=3), FAILED, Lost(request_id="w")])
def test_an_item_that_is_not_complete_is_not_over(event: Ended | Stopped | Failed | Lost) -> None:
    subject = running(offline("w"))
    assert not [each for each in subject.handle(event, 1.0) if isinstance(each, Finished)]
    assert [tracked.request.id for tracked in subject.alive()] == ["w"]


@pytest.mark.parametrize("asked", [online("w"), offline("w")], ids=lambda asked: str(asked.lane))
@pytest.mark.parametrize("event", [BY_LENGTH, Stopped(request_id="w", output_tokens=3), FAILED, Lost(request_id="w")])
def test_what_was_cancelled_is_over_with_the_end_of_its_dispatch_and_not_before(
    asked: Request, event: Ended | Stopped | Failed | Lost
) -> None:
    subject = running(asked)
    assert subject.handle(Cancelled(request_id="w"), 0.5) == [Abort(request_id="w", engine="e")]
    assert subject.handle(event, 1.0) == [Finished(request_id="w", outcome=Ending.CANCELLED)]


def test_what_was_cancelled_and_is_complete_all_the_same_is_complete() -> None:
    subject = running(online("w"))
    subject.handle(Cancelled(request_id="w"), 0.5)
    assert subject.handle(Ended(request_id="w", reason=EndReason.LENGTH, output_tokens=100), 1.0) == [complete("w")]


def test_a_cancelled_request_that_waits_is_over_at_once() -> None:
    subject = running(online("a"))
    subject.handle(Arrived(request=online("w")), 0.1)
    assert subject.handle(Cancelled(request_id="w"), 0.2) == [Finished(request_id="w", outcome=Ending.CANCELLED)]


def test_an_item_is_given_up_with_its_last_attempt() -> None:
    subject = running(offline("w"))
    for_good = Failed(request_id="w", reason="INVALID_ARGUMENT: x", retryable=False)
    dead = DeadLetter(reason="INVALID_ARGUMENT: x", attempts=1)
    assert subject.handle(for_good, 1.0) == [Finished(request_id="w", outcome=dead)]


def test_the_tokens_of_a_stopped_slice_count_towards_the_end() -> None:
    subject = running(offline("w", output_tokens_max=10))
    preempt, *_ = subject.handle(Arrived(request=online("a")), 0.1)
    assert preempt == Preempt(request_id="w", engine="e")
    subject.handle(Stopped(request_id="w", output_tokens=4), 0.2)
    [_, again] = subject.handle(Ended(request_id="a", reason=EndReason.END_ID, output_tokens=1), 0.3)
    assert isinstance(again, Dispatch)
    assert again.output_tokens == 6
    assert subject.handle(Ended(request_id="w", reason=EndReason.LENGTH, output_tokens=6), 0.4) == [complete("w")]
