"""One line for each event that matters, with its trace, and not a line for each of a thousand."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from sidecar.call import Outcome, Timeline
from sidecar.core.events import Arrived, Event, Failed, Finished, Lost, Reject, RejectReason, Woke
from sidecar.core.request import Lane, Request
from sidecar.telemetry.event_log import EVERY_S, REASONS_MAX, EventLog


class Heard:
    """An EventLog, and the lines that it wrote."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "sidecar")
        self._caplog = caplog
        self.log = EventLog(500.0, lambda request_id: f"trace-{request_id}")

    def arrive(self, name: str, lane: Lane = Lane.ONLINE) -> Request:
        request = Request(
            id=name, lane=lane, model="m", arrived_s=0.0, prompt_tokens=1, output_tokens_max=1, tenant="t", job="j"
        )
        self.log.handled(0.0, Arrived(request=request), ())
        return request

    def refuse(self, now_s: float, name: str, reason: RejectReason = RejectReason.QUEUE_FULL) -> None:
        self.arrive(name)
        refused = Finished(request_id=name, outcome=Reject(reason=reason, message="secret"))
        self.log.handled(now_s, Woke(), [refused])

    def tell(self, now_s: float, event: Event) -> None:
        self.log.handled(now_s, event, ())

    @property
    def lines(self) -> list[str]:
        return [each.getMessage() for each in self._caplog.records]

    @property
    def fields(self) -> dict[str, Any]:
        return vars(self._caplog.records[-1])


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Heard:
    return Heard(caplog)


def test_a_refusal_is_one_line_with_its_trace_and_whose_it_is(heard: Heard) -> None:
    heard.refuse(1.0, "a")
    assert heard.lines == ["refused a request: queue_full"]
    wanted = {
        "reason": "refused queue_full",
        "request_id": "a",
        "trace_id": "trace-a",
        "lane": "online",
        "tenant": "t",
        "model": "m",
        "job": "j",
    }
    assert {name: heard.fields.get(name) for name in wanted} == wanted


def test_a_thousand_of_one_reason_are_two_lines_and_the_second_says_how_many(heard: Heard) -> None:
    for at in range(1000):
        heard.refuse(at / 1000, f"a{at}")
    assert len(heard.lines) == 1
    heard.tell(EVERY_S + 0.5, Woke())
    assert heard.lines[1:] == ["refused a request: queue_full (and 998 more in the last 10 s)"]
    assert (heard.fields["trace_id"], heard.fields["more"]) == ("trace-a999", 998)


def test_each_reason_has_its_own_line(heard: Heard) -> None:
    heard.refuse(1.0, "a")
    heard.refuse(1.0, "b", RejectReason.EXPIRED)
    heard.refuse(1.0, "c")
    assert heard.lines == ["refused a request: queue_full", "refused a request: expired"]


def test_after_a_quiet_time_the_next_one_is_told_at_once(heard: Heard) -> None:
    heard.refuse(1.0, "a")
    heard.refuse(2.0, "b")
    heard.refuse(100.0, "c")
    heard.tell(111.0, Woke())
    heard.tell(122.0, Woke())
    heard.refuse(130.0, "d")
    assert heard.lines[-1] == "refused a request: queue_full"


def test_of_an_engines_error_the_code_alone_is_told(heard: Heard) -> None:
    heard.arrive("a")
    heard.tell(1.0, Failed(request_id="a", reason="INVALID_ARGUMENT: cannot read 'secret'", retryable=False))
    heard.tell(1.0, Lost(request_id="a"))
    assert heard.lines == ["the engine failed a dispatch: INVALID_ARGUMENT", "the stream of a dispatch broke"]
    assert "secret" not in str(heard.fields)


def test_an_answer_that_begins_late_says_by_how_much_and_one_in_time_says_nothing(heard: Heard) -> None:
    for name, first_token_s in (("a", 0.4), ("b", 0.713)):
        request = heard.arrive(name)
        timeline = Timeline(0.0, dispatched_s=0.1, first_token_s=first_token_s, finished_s=1.0, queue_wait_s=0.1)
        heard.log.finished(request, timeline, Outcome(outcome="ok"))
    assert heard.lines == ["an online answer began late: after 713 ms of 500"]
    assert (heard.fields["trace_id"], heard.fields["waited_ms"]) == ("trace-b", 100.0)


def test_nothing_is_kept_of_what_is_over_and_only_so_many_reasons(heard: Heard) -> None:
    request = heard.arrive("a")
    heard.log.finished(request, Timeline(0.0), Outcome(outcome="ok"))
    assert heard.log._requests == {}
    for at in range(2 * REASONS_MAX):
        heard.tell(1.0, Failed(request_id="a", reason=f"CODE_{at}", retryable=True))
    assert len(heard.log._muted) == REASONS_MAX
