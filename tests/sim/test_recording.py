"""A recording is read back as the world it was made in."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core.events import Arrived, Cancelled
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.sim import recording
from sidecar.sim.replay import recorded
from sidecar.sim.segment import RecordingError
from tests.sim.recorded_minute import ENGINE, SETTINGS, jobs


def test_arrivals_cancellations_and_true_lengths_are_read_back(files: list[Path]) -> None:
    found = recorded(files)
    sent = {job.request.id: job for job in jobs()}
    ended = [job for job in found.jobs if job.output_tokens == sent[job.request.id].output_tokens]

    assert [job.request for job in found.jobs] == [job.request for job in jobs()]
    assert len(ended) > 0.9 * len(sent)
    assert [request_id for _, request_id in found.cancels] == ["o0"]
    assert (found.settings, found.engines) == (SETTINGS, (ENGINE,))


def test_several_segments_in_order_tell_what_one_would(files: list[Path], parts: list[Path]) -> None:
    assert len(parts) > 2
    assert recorded(parts).jobs == recorded(files).jobs
    with pytest.raises(RecordingError, match="gzip"):
        recorded([*parts[:1], Path(__file__)])
    with pytest.raises(RecordingError, match="in their order"):
        recorded([parts[1], parts[0]])


def test_a_later_segment_alone_begins_with_the_request_that_was_alive(parts: list[Path]) -> None:
    found = recorded(parts[1:2])

    assert found.jobs[0].request.arrived_s == 0.0
    assert any(job.request.lane is Lane.OFFLINE and job.request.arrived_s == 0 for job in found.jobs)


def test_a_request_that_comes_twice_is_from_another_run() -> None:
    request = Request(id="a", lane=Lane.ONLINE, model="tensorrt_llm", arrived_s=0, prompt_tokens=1, output_tokens_max=9)
    twice = [(0.0, Arrived(request=request), ()), (1.0, Arrived(request=request), ())]

    with pytest.raises(RecordingError, match="different runs"):
        recording.read(Scheduler(SETTINGS, [ENGINE]), twice)


def test_a_request_without_an_end_is_longer_than_it_got() -> None:
    request = Request(id="a", lane=Lane.ONLINE, model="tensorrt_llm", arrived_s=5, prompt_tokens=0, output_tokens_max=9)
    found = recording.read(
        Scheduler(SETTINGS, [ENGINE]), [(5.0, Arrived(request=request), ()), (6.0, Cancelled(request_id="a"), ())]
    )

    assert [(job.request.arrived_s, job.request.prompt_tokens, job.output_tokens) for job in found.jobs] == [
        (0.0, 1, 1)
    ]
    assert found.cancels == [(1.0, "a")]
