"""The last decisions in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from sidecar.core.deadlines import JobVerdict
from sidecar.core.events import (
    Action,
    Arrived,
    DeadLetter,
    Dispatch,
    EngineDown,
    Event,
    Finished,
    Forecast,
    Preempt,
    Reject,
    RejectReason,
    Woke,
)
from sidecar.core.request import DispatchKind, Lane, Request
from sidecar.telemetry.decisions import KEPT, LINE_S, OWNERS_MAX, REASON_MAX, Decisions


def request(name: str, lane: Lane = Lane.OFFLINE, **options: str) -> Request:
    return Request(
        id=name,
        lane=lane,
        model="m",
        arrived_s=0.0,
        prompt_tokens=1,
        output_tokens_max=1,
        **options,  # type: ignore[arg-type]
    )


WEEKLY = [request(f"w{number}", tenant="research", job="weekly") for number in range(12)]
LABELS = [request(f"l{number}", tenant="labels") for number in range(3)]
CALLER = request("c", Lane.ONLINE, tenant="chat")
ALL = {each.id: each for each in (*WEEKLY, *LABELS, CALLER)}
ARRIVED = Arrived(request=CALLER)


def texts(*steps: tuple[float, Event, Sequence[Action]]) -> list[str]:
    decisions = Decisions()
    for now_s, event, actions in steps:
        decisions.take(now_s, event, actions, ALL)
    return [each["text"] for each in decisions.document(100.0, 1_000.0)]


def stopped(*requests: Request) -> list[Action]:
    return [Preempt(request_id=each.id, engine="e") for each in requests]


def resumed(each: Request) -> Dispatch:
    return Dispatch(
        request_id=each.id, engine="e", kind=DispatchKind.RESUME, slots=1, output_tokens=1, queue_wait_s=0.0
    )


def test_rows_that_are_stopped_for_one_arrival_are_one_line_with_their_number() -> None:
    assert texts((1.0, ARRIVED, stopped(*WEEKLY))) == ["stopped 12 rows of `weekly`: an online request arrived"]


def test_several_owners_stand_in_one_line_the_largest_first() -> None:
    assert texts((1.0, ARRIVED, stopped(*LABELS, *WEEKLY))) == [
        "stopped 15 rows (12 of `weekly`, 3 of `labels`): an online request arrived"
    ]


def test_what_repeats_a_moment_later_adds_to_its_line_and_later_begins_another() -> None:
    first = (1.0, ARRIVED, stopped(WEEKLY[0]))
    again = (2.5, ARRIVED, stopped(WEEKLY[1]))
    later = (60.0, ARRIVED, stopped(WEEKLY[2]))
    assert texts(first, again, later) == [
        "stopped 2 rows of `weekly`: an online request arrived",
        "stopped 1 row of `weekly`: an online request arrived",
    ]


def test_a_line_stands_for_some_seconds_however_often_it_repeats() -> None:
    steps = [(float(at), ARRIVED, stopped(WEEKLY[0])) for at in range(2 * int(LINE_S))]
    assert len(texts(*steps)) == 2


def test_a_slice_that_goes_on_is_told_only_if_it_was_stopped() -> None:
    assert texts((1.0, Woke(), [resumed(WEEKLY[0])])) == []
    assert texts((1.0, Woke(), stopped(WEEKLY[0])), (9.0, Woke(), [resumed(WEEKLY[0])])) == [
        "stopped 1 row of `weekly`: online needs the room",
        "resumed 1 row of `weekly`",
    ]


def test_refusals_and_dead_letters_say_why_and_nothing_that_an_engine_wrote() -> None:
    refused = Finished(request_id="c", outcome=Reject(reason=RejectReason.QUEUE_FULL, message="secret"))
    dead = Finished(
        request_id="w0", outcome=DeadLetter(reason="INVALID_ARGUMENT: the prompt 'secret' is odd", attempts=1)
    )
    assert texts((1.0, ARRIVED, [refused, dead])) == [
        "refused 1 online request of `chat`: the queue is full",
        "gave up 1 item of `weekly`: INVALID_ARGUMENT",
    ]


def test_every_reason_of_a_refusal_has_words() -> None:
    for reason in RejectReason:
        refused = Finished(request_id="c", outcome=Reject(reason=reason, message=""))
        assert texts((1.0, ARRIVED, [refused]))[0].startswith("refused 1 online request of `chat`: ")


def test_an_engine_that_says_very_much_has_one_short_line() -> None:
    [text] = texts((1.0, EngineDown(engine="e\x1b[2J", reason="line\nline " * 100), ()))
    assert text.isprintable()
    assert len(text) < REASON_MAX + 60


def test_a_forecast_is_told_when_it_turns_and_not_while_it_is_good() -> None:
    def foreseen(verdict: JobVerdict) -> list[Action]:
        return [Forecast(model="m", tenant="t", job="j", verdict=verdict, deadline_s=inf, eta_p50_s=1.0, eta_p90_s=2.0)]

    good, bad = foreseen(JobVerdict.ON_TIME), foreseen(JobVerdict.INFEASIBLE)
    steps: list[tuple[float, Event, Sequence[Action]]] = [
        (float(at), Woke(), each) for at, each in enumerate((good, good, bad, bad, good))
    ]
    assert texts(*steps) == ["job `j` of `t` cannot be done in time", "job `j` of `t` will be done in time"]


def test_the_list_is_bounded_and_so_are_the_names_in_a_line() -> None:
    steps: list[tuple[float, Event, Sequence[Action]]] = [
        (100.0 * at, ARRIVED, stopped(WEEKLY[0])) for at in range(3 * KEPT)
    ]
    assert len(texts(*steps)) == KEPT
    many = {f"x{at}": request(f"x{at}", tenant=f"t{at}") for at in range(3 * OWNERS_MAX)}
    decisions = Decisions()
    decisions.take(0.0, ARRIVED, stopped(*many.values()), many)
    [line] = decisions.document(0.0, 0.0)
    assert line["text"].count("`") == 2 * OWNERS_MAX


def test_a_line_has_the_time_on_the_wall() -> None:
    decisions = Decisions()
    decisions.take(90.0, ARRIVED, stopped(WEEKLY[0]), ALL)
    assert decisions.document(100.0, 5_000.0)[0]["at"] == 4_990.0
