"""Dead letters as people look at them, and sent again with their origin."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.batch import board, dead_items
from sidecar.batch.dead_items import DeadChoice, DeadItem, dead_item, retry, retry_headers
from sidecar.core.errors import SettingsError
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Headers, Record, dead_headers
from sidecar.offline.job_orders import JobField
from sidecar.offline.job_progress import JobTally
from tests.batch.test_board import manifest, order, progress, submitted
from tests.fakes.topics import JOBS_SETTINGS, FakeTopics

DEAD, REQUESTS = JOBS_SETTINGS.dead_letter_topic, JOBS_SETTINGS.requests_topic
JOB: Headers = (("x-tenant", b"lab"), ("x-job", b"nightly"))


class FakeProducer:
    """What it is given stands on the topic at once."""

    topics: FakeTopics

    def __init__(self, **options: Any) -> None:
        assert options["enable_idempotence"]
        self.client = self

    async def start(self) -> None:
        """Connected."""

    async def stop(self) -> None:
        """Flushed."""

    async def send(self, topic: str, value: bytes, key: bytes, headers: list[tuple[str, bytes]]) -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_result(self.topics.add(topic, value, tuple(headers), key=key))
        return future


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> FakeTopics:
    async def start(producer: FakeProducer, _: Any) -> None:
        await producer.start()

    found = FakeProducer.topics = FakeTopics()
    for module in (board, dead_items):
        monkeypatch.setattr(module, "TopicReader", found.reader)
    monkeypatch.setattr(board, "write", found.write)
    monkeypatch.setattr(dead_items, "AIOKafkaProducer", FakeProducer)
    monkeypatch.setattr(dead_items, "start_client", start)
    return found


def dead(
    topics: FakeTopics, offset: int, reason: DeadReason = DeadReason.FAILED, headers: Headers = JOB, *more: Any
) -> Record:
    value = b'{"id": "%d", "prompt": "p"}' % offset
    fields: dict[str, Any] = {"topic": REQUESTS, "partition": 1, "offset": offset, "timestamp_ms": 5}
    item = Record(key=b"prefix", value=value, headers=(*headers, ("x-line", b"%d" % offset)), **fields)
    told = dead_headers(item, "sidecar", DeadItemError(reason, "it broke", attempts=3), "run", 9)
    return topics.add(DEAD, value, (*told, *more), key=b"prefix", partition=1)


async def retried(choice: DeadChoice | None = None) -> tuple[int, int]:
    return await retry(JOBS_SETTINGS, choice or DeadChoice(), lambda _: None)


def test_it_says_what_was_wrong_with_which_item() -> None:
    item = dead_item(dead(FakeTopics(), 7))
    assert item.document() == {
        "source": "inference.requests/1/7",
        "at": "inference.requests.dlq/1/0",
        "custom_id": "7",
        "tenant": "lab",
        "job": "nightly",
        "reason": "failed",
        "message": "it broke",
        "attempts": 3,
        "retry": 0,
    }


async def test_a_retry_keeps_the_item_and_says_where_it_stood(topics: FakeTopics) -> None:
    told = dead(topics, 7)
    assert await retried() == (1, 0)
    [sent] = topics.records[REQUESTS][0]
    assert (sent.key, sent.value) == (b"prefix", told.value)
    assert sent.headers == (
        *(*JOB, ("x-line", b"7"), ("x-retry", b"1")),
        ("x-retry-of", b"inference.requests/1/7"),
    )


async def test_none_is_sent_twice(topics: FakeTopics) -> None:
    for offset in range(5):
        dead(topics, offset)
    assert await retried(DeadChoice(sources=frozenset(["inference.requests/1/3"]))) == (1, 0)
    assert await retried() == (4, 1)
    assert await retried() == (0, 5)


async def test_a_retry_that_died_too_may_be_tried_once_more(topics: FakeTopics) -> None:
    item = dead_item(dead(topics, 7, headers=(*JOB, ("x-retry", b"1"), ("x-retry-of", b"inference.requests/1/2"))))
    assert item.retry == 1
    assert dict(retry_headers(item)) | {"x-retry": b"2", "x-retry-of": b"inference.requests/1/7"} == dict(
        retry_headers(item)
    )
    assert [name for name, _ in retry_headers(item)].count("x-retry") == 1


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (DeadChoice(job="nightly"), 2),
        (DeadChoice(job="weekly"), 1),
        (DeadChoice(tenant="lab"), 3),
        (DeadChoice(tenant="acme"), 0),
        (DeadChoice(reasons=frozenset(["invalid", "expired"])), 1),
        (DeadChoice(job="nightly", reasons=frozenset(["failed"])), 1),
    ],
)
async def test_only_those_that_are_meant_are_sent(topics: FakeTopics, choice: DeadChoice, sent: int) -> None:
    dead(topics, 1)
    dead(topics, 2, DeadReason.INVALID)
    dead(topics, 3, headers=(("x-tenant", b"lab"), ("x-job", b"weekly")))
    dead(topics, 4, headers=())
    assert (await retried(choice))[0] == sent


async def test_what_was_cut_is_left_out(topics: FakeTopics) -> None:
    dead(topics, 1, DeadReason.TOO_LARGE, JOB, ("dlq.truncated", b"9000"))
    topics.add(DEAD, b"")
    assert await retried() == (0, 2)


async def test_the_job_counts_what_was_sent_again(topics: FakeTopics) -> None:
    submitted(topics, manifest(4))
    progress(topics, 0, JobTally(done=1, dead=3))
    for offset in range(3):
        dead(topics, offset)
    await retried(DeadChoice(sources=frozenset(["inference.requests/1/0"])))
    await retried()
    row = (await board.read_board(JOBS_SETTINGS)).find("nightly", None)
    assert (row.retried, row.failed, row.left, row.over) == (3, 0, 3, False)
    progress(topics, 0, JobTally(done=3, dead=4))
    row = (await board.read_board(JOBS_SETTINGS)).find("nightly", None)
    assert (row.failed, row.left, row.status) == (1, 0, "completed")


async def test_a_count_that_a_crash_prevented_is_made_up_for(topics: FakeTopics) -> None:
    submitted(topics, manifest(1))
    topics.add(REQUESTS, b"{}", (*JOB, ("x-retry-of", b"inference.requests/1/0")))
    dead(topics, 0)
    assert await retried() == (0, 1)
    assert (await board.read_board(JOBS_SETTINGS)).find("nightly", None).retried == 1


async def test_items_of_a_cancelled_job_are_not_sent_again(topics: FakeTopics) -> None:
    submitted(topics, manifest(1))
    order(topics, JobField.STATE, "cancelled")
    progress(topics, 0, JobTally(dead=1, cancelled=1))
    dead(topics, 0, DeadReason.CANCELLED)
    with pytest.raises(SettingsError, match="job 'nightly' was cancelled"):
        await retried()
    assert REQUESTS not in topics.records


def test_a_dead_letter_of_somebody_else_is_shown_as_far_as_it_goes() -> None:
    record = FakeTopics().add(DEAD, None, (("dlq.attempts", b"many"), ("x-retry", b"\xff")))
    item: DeadItem = dead_item(record)
    assert (item.source, item.job, item.attempts, item.retry, item.cut) == ("//", None, 0, 0, True)
