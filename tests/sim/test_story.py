"""What a recording says of one request."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sidecar.core.events import Ending
from sidecar.core.request import Lane
from sidecar.sim.segment import RecordingError
from sidecar.sim.story import BEFORE_S, Scanned, scan, told
from tests.sim.injected import AT_S, TARGET, Run, online, record, run_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    directory = tmp_path_factory.mktemp("burst")
    run = run_of("burst", 1)
    run.offline = True
    return scan(record(run, directory, trace_of=lambda request_id: TRACE if request_id == TARGET else ""))


def test_a_request_is_found_by_its_id_and_by_its_trace(scanned: Scanned) -> None:
    assert scanned.wall_s is not None
    assert scanned.ids(TARGET) == [TARGET]
    assert scanned.ids(TRACE.upper()) == [TARGET]
    with pytest.raises(RecordingError, match="no request and no trace 'nobody' in the recording"):
        scanned.ids("nobody")


def test_its_story_has_its_dispatch_its_first_token_and_its_end_in_order(scanned: Scanned) -> None:
    story = told(scanned, TARGET)
    [stay] = story.stays
    assert story.trace_id == TRACE
    assert story.outcome is Ending.COMPLETE
    assert stay.first_s is not None
    assert AT_S <= stay.begun_s < stay.first_s < story.end_s
    assert stay.ended_s == story.end_s
    assert (stay.lane, stay.owner, stay.how) == (Lane.ONLINE, "chat", "end_id")
    assert story.records[0][0] >= AT_S - BEFORE_S


def test_who_was_there_is_known_with_lane_and_owner(scanned: Scanned) -> None:
    story = told(scanned, TARGET)
    assert {each.owner for each in story.at_arrival} <= {"search", "weekly", "chat"}
    beside = {each.owner for each in story.others if each.overlap_s(AT_S, story.end_s) > 0}
    assert "search" in beside
    assert all(each.begun_s <= (each.first_s or each.begun_s) for each in story.others)


def test_a_request_that_waits_to_the_end_of_the_recording_has_no_end(tmp_path: Path) -> None:
    run = Run(rng=random.Random(1), slots=1, offline=False)
    run.online = [online("a", AT_S - 1.0, "chat", 10, 4000), online(TARGET, AT_S, "chat", 10, 5)]
    paths = record(run, tmp_path)
    story = told(scan(paths), TARGET)
    if not story.stays:
        assert story.outcome is None


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(b"no")
    with pytest.raises(RecordingError):
        scan([tmp_path / "x.gz"])
