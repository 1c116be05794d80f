"""A baseline of the lab decides in the place of the scheduler, in a whole sidecar."""

from __future__ import annotations

import pytest

from dev.bench._mixed_worker import BASELINES, Governed, governed
from sidecar.core.errors import SettingsError
from sidecar.core.events import Abort, Arrived, Cancelled, Dispatch, Ending, EngineUp, Finished, Stopped
from sidecar.core.request import Lane, Request
from sidecar.core.settings import EngineSettings, SchedulerSettings

ENGINE = EngineSettings(name="a100", slots=2, tokens_max=4096)


def request(name: str, lane: Lane) -> Request:
    return Request(id=name, lane=lane, model="tensorrt_llm", arrived_s=0.0, prompt_tokens=9, output_tokens_max=50)


def dispatched(scheduler: Governed, name: str, lane: Lane, now_s: float) -> list[str]:
    actions = scheduler.handle(Arrived(request=request(name, lane)), now_s)
    return [each.request_id for each in actions if isinstance(each, Dispatch)]


def test_a_baseline_decides_and_the_page_still_knows_whether_the_engine_is_up() -> None:
    scheduler = governed("offline-only", SchedulerSettings(), [ENGINE])

    assert not scheduler.snapshot().engines["a100"].up
    assert scheduler.handle(EngineUp(engine="a100"), 0.0) == []
    assert scheduler.snapshot().engines["a100"].up
    assert [dispatched(scheduler, name, Lane.OFFLINE, 1.0) for name in "abc"] == [["a"], ["b"], []]
    assert scheduler.snapshot().now_s == 1.0


def test_a_caller_that_leaves_is_taken_out_of_a_baseline_for_good() -> None:
    scheduler = governed("offline-only", SchedulerSettings(), [ENGINE])
    for name in "abcd":
        dispatched(scheduler, name, Lane.OFFLINE, 0.0)

    over = Finished(request_id="c", outcome=Ending.CANCELLED)
    assert scheduler.handle(Cancelled(request_id="c"), 1.0) == [over]
    assert scheduler.handle(Cancelled(request_id="a"), 1.0) == [Abort(request_id="a", engine="a100")]
    after = scheduler.handle(Stopped(request_id="a", output_tokens=3), 1.1)
    assert [each.request_id for each in after if isinstance(each, Dispatch)] == ["d"]
    assert scheduler.handle(Cancelled(request_id="a"), 1.2) == []


def test_what_is_no_baseline_is_named() -> None:
    assert {"aimd", "offline-only", "static-cap"} <= set(BASELINES)
    assert "naive" not in BASELINES  # it needs the engine's own queue
    with pytest.raises(SettingsError, match="known: "):
        governed("ours", SchedulerSettings(), [ENGINE])
