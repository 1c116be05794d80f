"""The column "as recorded" holds what the recording holds, whatever a simulation makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sidecar.core.events import (
    Action,
    Arrived,
    Cancelled,
    DeadLetter,
    Ended,
    Ending,
    EngineUp,
    Event,
    Failed,
    Finished,
    Lost,
    Progressed,
    Stopped,
)
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.profile import PROFILES
from sidecar.sim import recording, whatif
from sidecar.sim.recorded_figures import RecordedFigures

SETTINGS = SchedulerSettings(online_queue_max=4, window_ms=0.0)
ENGINE = EngineSettings(name="e0", slots=2, yield_rows="never")


def request(name: str, lane: Lane, at_s: float, **fields: int) -> Request:
    sizes = {"prompt_tokens": 9, "output_tokens_max": 8} | fields
    return Request(id=name, lane=lane, model="tensorrt_llm", arrived_s=at_s, **sizes)  # type: ignore[arg-type]


def record(events: Sequence[tuple[float, Event]]) -> recording.Recording:
    scheduler = Scheduler(SETTINGS, [ENGINE])
    records: list[tuple[float, Event, Sequence[Action]]] = []
    for now_s, event in events:
        records.append((now_s, event, scheduler.handle(event, now_s)))
    return recording.read(Scheduler(SETTINGS, [ENGINE]), records)


def crowd(count: int) -> list[tuple[float, Event]]:
    """So many requests at once on two slots with room for four to wait; the first is answered."""
    arrivals = [(1.0, Arrived(request=request(f"o{n}", Lane.ONLINE, 1.0))) for n in range(count)]
    return [
        (0.0, EngineUp(engine="e0")),
        *arrivals,
        (1.1, Progressed(engine="e0", tokens=(("o0", 1),), first_tokens=("o0",))),
        (1.5, Ended(request_id="o0", reason=EndReason.END_ID, output_tokens=4)),
    ]


def test_what_was_refused_stays_refused_in_the_first_column() -> None:
    report = whatif.compare(record(crowd(227)), ["online_queue_max=1000"], PROFILES["70b-tp4-a100"])

    assert report["recorded"]["online"]["refused"] == 221
    assert report["changed"]["online"]["refused"] == 0
    shown = whatif.table(report)
    assert shown.columns == ("", "as recorded", "replayed", "online_queue_max=1000")
    assert shown.rows[0][1] == "1"


def test_latencies_are_those_of_the_answers() -> None:
    figures = record(crowd(3)).figures["online"]

    assert (figures["n"], figures["refused"], figures["cancelled"], figures["failed"]) == (1, 0, 0, 0)
    assert figures["ttft_ms"]["p50"] == pytest.approx(100)
    assert figures["e2e_ms"]["p50"] == pytest.approx(500)


def test_offline_tokens_count_once_and_those_of_what_starts_again_do_not() -> None:
    figures = RecordedFigures()
    for each in (request("a", Lane.OFFLINE, 0.0, output_tokens_max=9), request("b", Lane.OFFLINE, 0.0)):
        figures.take(0.0, Arrived(request=each), ())
    figures.take(1.0, Stopped(request_id="a", output_tokens=3), ())
    figures.take(2.0, Lost(request_id="a", output_tokens=1), ())
    figures.take(
        3.0,
        Ended(request_id="a", reason=EndReason.LENGTH, output_tokens=5),
        (Finished(request_id="a", outcome=Ending.COMPLETE),),
    )
    figures.take(
        4.0,
        Failed(request_id="b", reason="INTERNAL: x", retryable=False),
        (Finished(request_id="b", outcome=DeadLetter(reason="x", attempts=1)),),
    )

    found = figures.document(10.0)
    assert (found["offline_tokens_per_s"], found["offline_waiting"]) == (0.9, 0)


def test_a_request_that_is_given_up_or_fails_is_no_answer() -> None:
    figures = RecordedFigures()
    for name in "abc":
        figures.take(0.0, Arrived(request=request(name, Lane.ONLINE, 0.0)), ())
    figures.take(1.0, Cancelled(request_id="a"), ())
    figures.take(1.1, Stopped(request_id="a", output_tokens=1), ())
    figures.take(1.2, Failed(request_id="b", reason="INTERNAL: x", retryable=False), ())
    figures.take(1.3, Lost(request_id="c"), ())

    online = figures.document(10.0)["online"]
    assert (online["n"], online["cancelled"], online["failed"]) == (0, 1, 2)
