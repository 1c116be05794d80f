"""The metrics count whatever they are told, and never raise into the driver."""

from __future__ import annotations

import dataclasses

from sidecar.call import Outcome, Timeline
from sidecar.core.events import Dispatch, Ended, Failed, Lost, Preempt, Progressed, Stopped
from sidecar.core.request import DispatchKind, EndReason, Lane, Request
from sidecar.settings.file import EngineEndpoint
from sidecar.telemetry.metrics import Metrics
from tests.core.builders import scheduler

REQUEST = Request(id="a", lane=Lane.ONLINE, model="tensorrt_llm", arrived_s=0.0, prompt_tokens=3, output_tokens_max=9)


def metrics() -> Metrics:
    return Metrics((EngineEndpoint(name="e0"),), version="test", config_hash="test")


def test_events_of_a_request_that_it_never_heard_of_are_left_out() -> None:
    subject = metrics()
    dispatch = Dispatch(
        request_id="x",
        engine="e0",
        kind=DispatchKind.ONLINE,
        slots=1,
        output_tokens=4,
        queue_wait_s=0.0,
        contended=False,
    )
    for event in (
        Progressed(engine="e0", tokens=(("x", 3),), first_tokens=("x",)),
        Ended(request_id="x", reason=EndReason.END_ID, output_tokens=3),
        Stopped(request_id="x", output_tokens=3),
        Failed(request_id="x", reason="", retryable=True),
        Lost(request_id="x"),
    ):
        subject.handled(1.0, event, (dispatch, Preempt(request_id="x", engine="e0")))
    subject.finished(REQUEST, Timeline(0.0), Outcome(outcome="ok"))
    assert b"sidecar_preemptions_total" in subject.render()[0]


def test_what_an_engine_says_is_no_label() -> None:
    subject = metrics()
    for number in range(9):
        subject.finished(REQUEST, Timeline(0.0), Outcome(outcome="error", error_type=f"prompt number {number} is bad"))
    page = subject.render()[0].decode()
    assert 'sidecar_requests_total{error_type="other",lane="online",model="tensorrt_llm",outcome="error"} 9.0' in page
    assert "prompt number" not in page


def test_the_recorder_is_there_only_where_one_was_asked_for() -> None:
    with_one, without = metrics(), metrics()
    with_one.recorder = lambda: {"state": "stopped: No space left on device", "dropped": 7}
    for each in (with_one, without):
        each.snapshot = dataclasses.replace(scheduler().snapshot(), engines={})
    page = with_one.render()[0].decode()
    assert "sidecar_recorder_running 0.0" in page
    assert "sidecar_recorder_dropped_records_total 7.0" in page
    assert b"sidecar_recorder" not in without.render()[0]
