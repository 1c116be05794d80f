"""A program sends many prompts and iterates over what became of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion

from sidecar import client as module
from sidecar.batch import board, results, submission
from sidecar.client import BatchClient, BatchJob, BatchResult
from sidecar.core.errors import SettingsError
from sidecar.offline import submit
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Record, dead_headers, result_headers
from sidecar.offline.item_file import ItemFileError
from sidecar.offline.submit import SubmitError
from sidecar.settings.offline import OfflineSettings
from tests.batch.test_board import manifest, submitted
from tests.fakes.topics import JOBS_SETTINGS, FakeTopics
from tests.offline.test_submit import FakeProducer

ITEMS = [{"id": str(number), "prompt": f"item {number}", "max_tokens": 4} for number in range(5)]
JOB = BatchJob(name="nightly", tenant="lab")


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> FakeTopics:
    found = FakeTopics()
    for each in (board, results, submission):
        monkeypatch.setattr(each, "TopicReader", found.reader)
    for each in (board, submission):
        monkeypatch.setattr(each, "write", found.write)
    monkeypatch.setattr(submission, "ends", found.ends)
    return found


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> FakeProducer:
    fake = FakeProducer()
    monkeypatch.setattr(submit, "AIOKafkaProducer", lambda **_: fake)
    return fake


def subject() -> BatchClient:
    return BatchClient(JOBS_SETTINGS)


def outcome(topics: FakeTopics, line: int, *, ok: bool = True, retry: int = 0) -> None:
    headers = (("x-tenant", b"lab"), ("x-job", b"nightly"), ("x-line", b"%d" % line), ("x-retry", b"%d" % retry))
    value = b'{"id": "%d", "prompt": "p"}' % line
    fields: dict[str, Any] = {"topic": "inference.requests", "partition": 0, "timestamp_ms": 0, "key": None}
    item = Record(offset=line, value=value, headers=headers, **fields)
    body = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
    choice = {"index": 0, "text": f"answer {line}", "finish_reason": "stop", "logprobs": None}
    response = {"status_code": 200, "request_id": "r", "body": body | {"choices": [choice]}}
    told = {"id": "b", "custom_id": str(line), "response": response, "error": None}
    if ok:
        topics.add("inference.results", json.dumps(told).encode(), result_headers(item, "sidecar"))
    else:
        error = DeadItemError(DeadReason.INVALID, "seed must be >= 0", param="seed")
        topics.add("inference.requests.dlq", value, dead_headers(item, "sidecar", error, "read", 0))


async def all_of(client: BatchClient, **options: Any) -> list[BatchResult]:
    return [each async for each in client.results(JOB, **options)]


async def test_items_are_sent_as_one_job_under_the_names_that_are_given(
    topics: FakeTopics, producer: FakeProducer
) -> None:
    async with subject() as client:
        due = datetime(2999, 1, 1, tzinfo=UTC)
        job = await client.submit(iter(ITEMS), job="nightly", tenant="lab", deadline=due, model="tensorrt_llm")
    assert job == JOB
    assert [json.loads(value) for value, _, _ in producer.sent] == ITEMS
    assert dict(producer.sent[0][2]) == {
        "x-tenant": b"lab",
        "x-job": b"nightly",
        "x-deadline": b"2999-01-01T00:00:00+00:00",
        "x-model": b"tensorrt_llm",
        "x-line": b"1",
    }
    row = await subject().status(job)
    assert (row.items, row.status) == (5, "running")
    assert "inference.jobs" in topics.records


@pytest.mark.usefixtures("topics")
async def test_the_same_items_again_are_the_same_job(producer: FakeProducer) -> None:
    async def arriving() -> AsyncIterator[dict[str, object]]:
        for each in ITEMS:
            yield each

    jobs = [await subject().submit(ITEMS), await subject().submit(arriving())]
    assert jobs[0] == jobs[1]
    assert jobs[0].name.startswith("file-")
    assert len(producer.sent) == 5


@pytest.mark.usefixtures("topics")
async def test_an_item_at_fault_is_named_and_nothing_is_sent(producer: FakeProducer) -> None:
    with pytest.raises(ItemFileError, match=r"items:6: invalid: .*seed"):
        await subject().submit([*ITEMS, {"id": "6", "prompt": "p", "seed": -1}])
    with pytest.raises(ItemFileError, match="there is no item"):
        await subject().submit([])
    assert producer.sent == []


@pytest.mark.usefixtures("topics")
async def test_a_sending_that_broke_off_says_so(producer: FakeProducer) -> None:
    producer.fails = {3}
    with pytest.raises(SubmitError, match="submit again: what is there is not sent twice"):
        await subject().submit(ITEMS)


async def test_each_item_comes_once_with_its_answer_or_its_error(topics: FakeTopics) -> None:
    submitted(topics, manifest(3))
    for line in (2, 1, 2):
        outcome(topics, line)
    outcome(topics, 3, ok=False)
    found = await all_of(subject())
    assert sorted(each.custom_id for each in found) == ["1", "2", "3"]
    good = {each.custom_id: each.text for each in found if each.ok}
    assert good == {"1": "answer 1", "2": "answer 2"}
    [bad] = [each for each in found if not each.ok]
    assert bad.error is not None
    assert (bad.error["param"], bad.error["message"]) == ("seed", "seed must be >= 0")
    with pytest.raises(ValueError, match="item '3' has no answer"):
        _ = bad.text
    Completion.model_validate(next(each.body for each in found if each.ok))


async def test_a_running_job_gives_what_is_there_if_nobody_wants_to_wait(topics: FakeTopics) -> None:
    submitted(topics, manifest(3))
    outcome(topics, 1)
    assert [each.custom_id for each in await all_of(subject(), follow=False)] == ["1"]


async def test_the_result_of_a_retry_comes_after_the_error(topics: FakeTopics) -> None:
    submitted(topics, manifest(2))
    outcome(topics, 1, ok=False)
    outcome(topics, 1, retry=1)
    found = await all_of(subject(), follow=False)
    assert {each.ok for each in found} == {True} or [each.ok for each in found] == [False, True]


async def test_a_cancel_is_an_order_on_the_jobs_topic(topics: FakeTopics) -> None:
    submitted(topics, manifest(3))
    await subject().cancel(JOB)
    assert (await subject().status(JOB)).status == "cancelling"


def test_a_chat_answer_has_its_text_too() -> None:
    message = {"role": "assistant", "content": "hello"}
    line = {"response": {"body": {"choices": [{"message": message}]}}, "error": None}
    assert BatchResult(custom_id="1", ok=True, line=line).text == "hello"


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("engines: [{name: e}]\n")
    with pytest.raises(SettingsError, match="has no offline part"):
        BatchClient.of_config(file)
    with pytest.raises(SettingsError, match="needs a jobs_topic"):
        BatchClient(OfflineSettings())
    assert module.__doc__ is not None
