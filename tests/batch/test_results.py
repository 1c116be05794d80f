"""A job's results, gathered from topics: complete, in order, none twice; and again after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.batch import board, results
from sidecar.batch.results import Gathered, gather
from sidecar.core.errors import SettingsError
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Headers, Record, dead_headers, result_headers
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.lane_state import Cause
from tests.batch.test_board import manifest, submitted
from tests.fakes.topics import JOBS_SETTINGS, FakeTopics

NIGHTLY = ("lab", "nightly")
RESULTS, DEAD, REQUESTS = JOBS_SETTINGS.results_topic, JOBS_SETTINGS.dead_letter_topic, JOBS_SETTINGS.requests_topic


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> FakeTopics:
    found = FakeTopics()
    for module in (board, results):
        monkeypatch.setattr(module, "TopicReader", found.reader)
    return found


def item(line: int | None, offset: int = 0, job: str = "nightly", *more: tuple[str, bytes]) -> Record:
    headers: Headers = (("x-tenant", b"lab"), ("x-job", job.encode()), *more)
    if line is not None:
        headers = (*headers, ("x-line", b"%d" % line))
    value = b'{"id": "%d", "prompt": "p"}' % (line or offset)
    return Record(topic=REQUESTS, partition=0, offset=offset, timestamp_ms=0, key=None, value=value, headers=headers)


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def ended(topics: FakeTopics, source: Record, *, ok: bool = True, group: str = "sidecar", partition: int = 0) -> None:
    if ok:
        topics.add(RESULTS, b"result %d" % source.offset, result_headers(source, group), partition=partition)
    else:
        error = DeadItemError(DeadReason.INVALID, "bad")
        topics.add(DEAD, source.value, dead_headers(source, group, error, "read", 0), partition=partition)


async def test_results_come_in_the_order_of_lines_and_errors_apart(topics: FakeTopics, tmp_path: Path) -> None:
    submitted(topics, manifest(5))
    for line in (5, 3, 1, 4, 2):
        ended(topics, item(line, offset=10 + line), ok=line != 3, partition=line % 2)
    ended(topics, item(1, offset=99, job="weekly"))
    ended(topics, item(1, offset=98), group="another")
    found = await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err")
    assert found == Gathered(results=4, errors=1, items=5)
    assert found.complete
    assert (tmp_path / "out").read_text().split("\n") == ["result 11", "result 12", "result 14", "result 15", ""]
    assert (tmp_path / "err").read_text().count('"custom_id":"3"') == 1
    assert names(tmp_path) == ["err", "out"]


async def test_a_running_job_gives_what_is_there_and_the_next_call_reads_on(topics: FakeTopics, tmp_path: Path) -> None:
    submitted(topics, manifest(4))
    ended(topics, item(3, offset=3))
    first = await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err")
    assert (first, first.complete) == (Gathered(results=1, errors=0, items=4), False)
    assert (tmp_path / "out").read_text() == "result 3\n"
    topics.records[RESULTS][0][0] = item(None, job="nobody's")  # it is not read again
    for line in (1, 2, 4):
        ended(topics, item(line, offset=line))
    assert (await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err")).complete
    assert (tmp_path / "out").read_text() == "result 1\nresult 2\nresult 3\nresult 4\n"


async def test_following_waits_until_the_last_item_has_its_outcome(topics: FakeTopics, tmp_path: Path) -> None:
    submitted(topics, manifest(6))
    ended(topics, item(2, offset=2))
    later = FakeTopics()
    for line in (6, 1, 3, 5, 4):
        ended(later, item(line, offset=line), ok=line != 5)
    topics.arriving = [*later.records[RESULTS][0], *later.records[DEAD][0]]
    seen: list[Gathered] = []
    found = await gather(
        JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err", follow=True, on_progress=seen.append
    )
    assert found == seen[-1] == Gathered(results=5, errors=1, items=6)
    assert [each.results + each.errors for each in seen] == sorted(each.results + each.errors for each in seen)
    assert (tmp_path / "out").read_text().count("\n") == 5


async def test_a_line_that_was_sent_twice_has_one_result(topics: FakeTopics, tmp_path: Path) -> None:
    submitted(topics, manifest(2))
    for line, offset in ((1, 1), (2, 2), (1, 3)):
        ended(topics, item(line, offset=offset))
    await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err")
    assert (tmp_path / "out").read_text() == "result 1\nresult 2\n"


async def test_nothing_is_read_before_the_job_began(topics: FakeTopics, tmp_path: Path) -> None:
    ended(topics, item(1, offset=1))  # of an earlier job of the same name, whose manifest is gone
    submitted(topics, manifest(1, starts={RESULTS: {0: 1}, DEAD: {0: 0}}))
    ended(topics, item(1, offset=2))
    await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err")
    assert (tmp_path / "out").read_text() == "result 2\n"


async def test_the_items_of_another_producer_are_counted_and_come_by_their_offsets(
    topics: FakeTopics, tmp_path: Path
) -> None:
    topics.add("inference.jobs", b"null", key=b"[]")
    for _ in range(3):
        topics.add(REQUESTS, b"{}", item(None).headers)
    for offset in (2, 0, 1):
        ended(topics, item(None, offset=offset))
    found = await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err")
    assert found == Gathered(results=3, errors=0, items=3)
    assert (tmp_path / "out").read_text() == "result 0\nresult 1\nresult 2\n"


async def test_a_job_that_nobody_knows_is_named(topics: FakeTopics, tmp_path: Path) -> None:
    topics.add(REQUESTS, b"{}")
    with pytest.raises(SettingsError, match="no item of job 'nightly' of tenant 'lab'"):
        await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err")
    assert names(tmp_path) == []


async def test_following_outlasts_brokers_that_are_away(
    topics: FakeTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(topics, manifest(2))
    for line in (1, 2):
        ended(topics, item(line, offset=line))
    failures = [LogError("no broker answers", Cause.UNREACHABLE), LogError("timed out")]

    def reader(settings: Any, starts: Any) -> Any:
        if "inference.jobs" not in starts and failures:
            raise failures.pop()
        return topics.reader(settings, starts)

    monkeypatch.setattr(results, "TopicReader", reader)
    monkeypatch.setattr(results, "LOOK_S", 0.0)
    found = await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err", follow=True)
    assert (found.complete, failures) == (True, [])


@pytest.mark.parametrize(("cause", "follow"), [(Cause.RIGHTS, True), (Cause.UNREACHABLE, False)])
async def test_what_does_not_pass_ends_it(
    topics: FakeTopics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Cause, follow: bool
) -> None:
    submitted(topics, manifest(2))

    def reader(*_: Any) -> Any:
        raise LogError("no", cause)

    monkeypatch.setattr(results, "TopicReader", reader)
    with pytest.raises(LogError, match="no"):
        await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err", follow=follow)


async def test_lines_that_nobody_vouches_for_do_not_place_items(topics: FakeTopics, tmp_path: Path) -> None:
    for offset in range(3):
        topics.add(REQUESTS, b"{}", item(7).headers)  # a producer's own header of that name, the same on each
        ended(topics, item(7, offset=offset))
    topics.add("inference.jobs", b"null", key=b"[]")
    found = await gather(JOBS_SETTINGS, NIGHTLY, tmp_path / "out", tmp_path / "err")
    assert found == Gathered(results=3, errors=0, items=3)
