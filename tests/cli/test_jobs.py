"""`sidecar jobs` and `sidecar job` from the command line, without a broker."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sidecar.batch import board
from sidecar.cli import jobs, main
from sidecar.cli.jobs import register_job, register_jobs
from sidecar.offline.job_orders import JobField, decoded_key
from sidecar.offline.job_progress import JobTally, Outlook, encoded
from tests.batch.test_board import manifest, submitted
from tests.fakes.topics import FakeTopics

NIGHTLY = ("lab", "nightly")


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> FakeTopics:
    found = FakeTopics()
    monkeypatch.setattr(board, "TopicReader", found.reader)
    monkeypatch.setattr(board, "write", found.write)
    return found


def call(*arguments: str) -> int:
    return main.main(arguments, {}, [register_jobs, register_job])


def progress(topics: FakeTopics, tally: JobTally, waiting: int = 0, **outlook: Any) -> None:
    key, value = encoded(NIGHTLY, 0, tally, waiting, Outlook(**outlook))
    topics.add("inference.progress", value, key=key, timestamp_ms=int(time.time() * 1000))


def orders(topics: FakeTopics) -> list[tuple[object, object]]:
    found: list[tuple[object, object]] = []
    for record in topics.records["inference.jobs"][0]:
        key = decoded_key(record.key)
        if key is not None and key[1] is not JobField.MANIFEST:
            found.append((key, json.loads(record.value or b"")["value"]))
    return found


def test_a_list_has_a_line_for_each_job(topics: FakeTopics, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(topics, manifest(1200))
    submitted(topics, manifest(5, job=("acme", "a\x1b[2J")))
    progress(topics, JobTally(done=1000, dead=3, prompt_tokens=9), 200, eta_p50_s=7200.0, eta_p90_s=10_800.0)
    assert call("jobs") == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    head, *lines = told.splitlines()
    assert head.split() == ["job", "tenant", "status", "items", "done", "failed", "cancelled", "tokens", "ends"]
    assert lines[1].split(maxsplit=8)[:8] == ["nightly", "lab", "running", "1,200", "1,000", "3", "0", "9"]
    assert "at most 3 h in nine cases of ten" in lines[1]


def test_jobs_that_are_over_can_be_left_out(topics: FakeTopics, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(topics, manifest(3))
    progress(topics, JobTally(done=3))
    assert call("jobs", "--running") == 0
    assert capsys.readouterr().out == "no job\n"
    assert call("jobs", "--json", "--tenant", "lab") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"


@pytest.mark.parametrize(("action", "state"), [("cancel", "cancelled"), ("pause", "paused"), ("resume", "running")])
def test_an_order_stands_on_the_jobs_topic(topics: FakeTopics, action: str, state: str) -> None:
    submitted(topics, manifest(3))
    assert call("job", action, "nightly") == 0
    assert orders(topics) == [((NIGHTLY, JobField.STATE), state)]


def test_a_deadline_is_ordered_and_taken_back(topics: FakeTopics) -> None:
    submitted(topics, manifest(3))
    assert call("job", "deadline", "nightly", "2999-01-01T00:00:00Z") == 0
    assert call("job", "deadline", "nightly", "none") == 0
    assert [value for _, value in orders(topics)] == ["2999-01-01T00:00:00Z", None]


def test_a_priority_is_ordered(topics: FakeTopics, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(topics, manifest(3))
    assert call("job", "priority", "nightly", "high") == 0
    assert orders(topics) == [((NIGHTLY, JobField.PRIORITY), "high")]
    assert call("job", "show", "nightly", "--json") == 0
    assert '"priority": "high"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("deadline", "said"), [("tomorrow", "TIME must be a time by RFC 3339"), ("2001-01-01T00:00:00Z", "has passed")]
)
def test_a_deadline_that_makes_no_sense_is_not_ordered(
    topics: FakeTopics, deadline: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(topics, manifest(3))
    assert call("job", "deadline", "nightly", deadline) == 2
    assert said in capsys.readouterr().err
    assert orders(topics) == []


def test_a_job_that_nobody_knows_is_not_ordered_about(topics: FakeTopics, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(topics, manifest(3))
    assert call("job", "cancel", "nightyl") == 2
    assert "there is no job 'nightyl'" in capsys.readouterr().err
    assert orders(topics) == []


def test_one_job_is_shown_whole(topics: FakeTopics, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(topics, manifest(3, deadline="2999-01-01T00:00:00Z"))
    progress(topics, JobTally(done=2, dead=1, cancelled=1, digest=255))
    assert call("job", "show", "nightly") == 0
    told = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if " tokens" not in line)
    assert (told["status"], told["left"], told["deadline"]) == ("cancelled", "0", "2999-01-01T00:00:00Z")
    assert told["digest"] == f"{255:032x}"
    assert call("job", "show", "nightly", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cancelled"] == 1


def test_waiting_ends_with_the_job_and_says_if_an_item_failed(
    topics: FakeTopics, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(topics, manifest(3))
    monkeypatch.setattr(jobs, "WATCH_S", 0)
    tallies = [JobTally(), JobTally(done=1), JobTally(done=2, dead=1)]
    looks = 0
    read_board = board.read_board

    async def looked(settings: Any) -> Any:
        nonlocal looks
        progress(topics, tallies[min(looks, 2)])
        looks += 1
        return await read_board(settings)

    monkeypatch.setattr(jobs, "read_board", looked)
    assert call("job", "cancel", "nightly", "--wait") == jobs.FAILED
    assert "job nightly is over: 2 done, 1 failed, 0 cancelled" in capsys.readouterr().out
    assert looks == 3
