"""A file becomes a job once, however often it is sent and wherever a sending ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.batch import board, submission
from sidecar.batch.manifest import Manifest, decoded_manifest
from sidecar.batch.submission import Submission, submit_job
from sidecar.core.errors import SettingsError
from sidecar.offline import submit
from sidecar.offline.item import ItemRules
from sidecar.offline.item_file import check, opened
from sidecar.offline.job_orders import JobField, encoded_key
from sidecar.offline.submit import Sent
from tests.batch.test_board import order, submitted
from tests.fakes.topics import JOBS_SETTINGS, FakeTopics
from tests.offline.test_submit import FakeProducer

HEADERS = {"x-tenant": "lab", "x-job": "nightly", "x-deadline": "2030-01-01T00:00:00Z"}
RULES = ItemRules(
    tokens_max={"tensorrt_llm": 100}, model_default="tensorrt_llm", item_bytes_max=1000, max_tokens_default=8
)
REQUESTS = JOBS_SETTINGS.requests_topic


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> FakeTopics:
    found = FakeTopics()
    for module in (board, submission):
        monkeypatch.setattr(module, "TopicReader", found.reader)
    monkeypatch.setattr(submission, "write", found.write)
    monkeypatch.setattr(submission, "ends", found.ends)
    return found


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> FakeProducer:
    fake = FakeProducer()
    monkeypatch.setattr(submit, "AIOKafkaProducer", lambda **_: fake)
    return fake


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"\n\n".join(b'{"id": "%d", "prompt": "p"}' % number for number in range(50)))
    return path


async def send(path: Path, sent: Sent | None = None, job: str = "nightly") -> Submission:
    with opened(path, 1000) as file:
        checked = check(file, RULES, None, (), record_bytes_max=10_000, allow_duplicates=False)
        return await submit_job(JOBS_SETTINGS, file, checked, HEADERS | {"x-job": job}, sent or Sent())


def change(path: Path) -> None:
    path.write_bytes(b'{"id": "1", "prompt": "another"}')


def manifests(topics: FakeTopics) -> list[Manifest | None]:
    return [decoded_manifest(each.value) for each in topics.records["inference.jobs"][0]]


def arrive(topics: FakeTopics, producer: FakeProducer) -> None:
    """What was sent stands on the requests topic."""
    for at, (value, key, headers) in enumerate(producer.sent):
        topics.add(REQUESTS, value, tuple(headers), partition=at % 2, key=key)


def lines(producer: FakeProducer) -> list[int]:
    return [int(dict(headers)["x-line"]) for _, _, headers in producer.sent]


async def test_each_item_says_its_line_and_the_manifest_how_many_there_are(
    topics: FakeTopics, producer: FakeProducer, path: Path
) -> None:
    topics.add(REQUESTS, b"of yesterday")
    found = await send(path)
    assert (found.before, found.again) == (0, False)
    assert lines(producer) == list(range(1, 100, 2))
    before, after = manifests(topics)
    assert before is not None
    assert (before.items, before.sent, before.source, before.deadline) == (
        *(50, False, "items.jsonl"),
        "2030-01-01T00:00:00Z",
    )
    assert before.starts[REQUESTS] == {0: 1, 1: 0}
    assert after == replace(before, sent=True)


@pytest.mark.usefixtures("topics")
async def test_the_same_file_again_is_the_same_job(producer: FakeProducer, path: Path) -> None:
    await send(path)
    again = await send(path)
    assert (again.before, again.again, len(producer.sent)) == (50, True, 50)


async def test_a_sending_that_broke_off_goes_on_with_what_is_not_there(
    topics: FakeTopics, producer: FakeProducer, path: Path
) -> None:
    producer.fails = {10, 12}
    sent = Sent()
    await send(path, sent)
    assert sent.error
    assert [each is not None and each.sent for each in manifests(topics)] == [False]
    there = [each for at, each in enumerate(producer.sent, start=1) if at not in producer.fails][:30]
    producer.sent, producer.fails = there, set()
    arrive(topics, producer)
    producer.sent = []
    found = await send(path)
    assert found.before == 30
    assert lines(producer) == [19, 23, *range(65, 100, 2)]
    assert [each is not None and each.sent for each in manifests(topics)] == [False, True]


@pytest.mark.usefixtures("topics")
async def test_other_items_under_the_same_name_are_refused(producer: FakeProducer, path: Path) -> None:
    await send(path)
    change(path)
    with pytest.raises(SettingsError, match="has other items already, 50 of them: name another job"):
        await send(path)
    assert len(producer.sent) == 50
    await send(path, job="weekly")
    assert len(producer.sent) == 51


async def test_a_cancelled_job_is_not_sent_again(topics: FakeTopics, producer: FakeProducer, path: Path) -> None:
    await send(path)
    order(topics, JobField.STATE, "cancelled")
    with pytest.raises(SettingsError, match="job 'nightly' was cancelled"):
        await send(path)
    assert len(producer.sent) == 50


async def test_a_manifest_that_nobody_can_read_is_as_none(
    topics: FakeTopics, producer: FakeProducer, path: Path
) -> None:
    topics.add("inference.jobs", b"torn", key=encoded_key(("lab", "nightly"), JobField.MANIFEST))
    await send(path)
    assert len(producer.sent) == 50


def test_a_manifest_can_be_put_on_the_topic_by_a_test() -> None:
    topics = FakeTopics()
    submitted(topics, Manifest(tenant="lab", job="nightly", items=1, digest="d", created="", sent=True))
    assert manifests(topics)[0] is not None
