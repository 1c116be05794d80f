"""Items are sent in their order, spread over partitions, and whoever is interrupted knows how to go on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError

from sidecar.offline import submit as module
from sidecar.offline.item_file import Digest, opened
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.submit import IN_FLIGHT_MAX, PREFIX_LINES, Sent, SubmitError, prefix_key, send_file, submit, told
from sidecar.settings.offline import OfflineSettings

SETTINGS = OfflineSettings()
LINES = 3 * IN_FLIGHT_MAX


class FakeClient:
    """Knows topics; it is asked for them without leave to make one."""

    def __init__(self) -> None:
        self.error_code = 0

    def get_random_node(self) -> int:
        return 1

    async def send(self, node: int, request: Any) -> Any:
        assert (node, request._allow_auto_topic_creation) == (1, False)
        return self

    def to_object(self) -> dict[str, Any]:
        partitions = [] if self.error_code else [{"partition": 0}]
        topic = {"topic": "missing", "error_code": self.error_code, "partitions": partitions}
        return {"topics": [topic]}


class FakeProducer:
    """Answers each record at once; some fail, or never get an answer, or send a signal to this process."""

    def __init__(self, **_: Any) -> None:
        self.client = FakeClient()
        self.sent: list[tuple[bytes, bytes, list[tuple[str, bytes]]]] = []
        self.fails: set[int] = set()
        self.failure: Exception = KafkaTimeoutError("no answer")
        self.refuses: int | None = None
        self.interrupts_at: int | None = None
        self.silent_after: int | None = None

    async def start(self) -> None:
        """Connected."""

    async def stop(self) -> None:
        """Flushed."""

    async def send(
        self, topic: str, value: bytes, key: bytes, headers: list[tuple[str, bytes]]
    ) -> asyncio.Future[None]:
        assert topic == SETTINGS.requests_topic
        number = len(self.sent) + 1
        if number == self.refuses:
            raise KafkaTimeoutError("the buffer is full")
        self.sent.append((value, key, headers))
        if number == self.interrupts_at:
            os.kill(os.getpid(), signal.SIGINT)
        future = asyncio.get_running_loop().create_future()
        if number in self.fails:
            future.set_exception(self.failure)
        elif self.silent_after is None or number <= self.silent_after:
            future.set_result(None)
        return future


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> FakeProducer:
    fake = FakeProducer()
    monkeypatch.setattr(module, "AIOKafkaProducer", lambda **_: fake)
    return fake


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"\n".join(b'{"id": "%d", "prompt": "p"}' % number for number in range(1, LINES + 1)))
    return path


async def sending(path: Path, first_line: int = 1, digest: str | None = None) -> Sent:
    sent = Sent()
    with opened(path, 1000) as file:
        read = Digest()
        for _, value in file.lines():
            read.add(value)
        await send_file(SETTINGS, file, digest or read.text, (("x-job", b"j"),), first_line=first_line, sent=sent)
    return sent


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def ids(producer: FakeProducer) -> list[int]:
    return [int(json.loads(value)["id"]) for value, _, _ in producer.sent]


async def test_every_line_is_sent_once_in_its_order_with_the_headers(producer: FakeProducer, path: Path) -> None:
    assert await sending(path) == Sent(acknowledged=LINES)
    assert ids(producer) == list(range(1, LINES + 1))
    assert {tuple(headers) for _, _, headers in producer.sent} == {(("x-job", b"j"),)}


async def test_a_record_that_fails_ends_the_sending_and_says_how_to_go_on(producer: FakeProducer, path: Path) -> None:
    producer.fails = {10, 12}
    sent = await sending(path)
    assert (sent.acknowledged, sent.open_line, sent.beyond) == (IN_FLIGHT_MAX - 2, 10, IN_FLIGHT_MAX - 11)
    assert sent.error.startswith("KafkaTimeoutError")
    assert (
        told(sent, 1)
        == "1998 items are acknowledged; go on with --from 10 (1989 of those are after it and will be there twice)"
    )
    assert len(producer.sent) == IN_FLIGHT_MAX


async def test_a_producer_that_takes_no_more_ends_the_sending(producer: FakeProducer, path: Path) -> None:
    producer.refuses = IN_FLIGHT_MAX + 7
    sent = await sending(path)
    assert (sent.acknowledged, sent.open_line, sent.beyond) == (IN_FLIGHT_MAX + 6, IN_FLIGHT_MAX + 7, 0)


async def test_what_was_left_out_is_sent_from_its_line_on(producer: FakeProducer, path: Path) -> None:
    assert (await sending(path, first_line=LINES - 2)).acknowledged == 3
    assert ids(producer) == [LINES - 2, LINES - 1, LINES]
    await submit(SETTINGS, lines_of(path), {})
    keys = {json.loads(value)["id"]: key for value, key, _ in producer.sent[3:]}
    assert [keys[str(LINES - 2)], keys[str(LINES)]] == [producer.sent[0][1], producer.sent[2][1]]


async def test_an_interruption_waits_for_what_is_on_its_way_and_stops(producer: FakeProducer, path: Path) -> None:
    producer.interrupts_at = 5
    sent = await sending(path)
    assert (sent.acknowledged, sent.open_line, sent.error) == (IN_FLIGHT_MAX, IN_FLIGHT_MAX + 1, "interrupted")
    assert told(sent, 1) == f"{IN_FLIGHT_MAX} items are acknowledged; go on with --from {IN_FLIGHT_MAX + 1}"


async def test_an_interruption_does_not_wait_for_ever(
    producer: FakeProducer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    producer.interrupts_at, producer.silent_after = 5, 100
    sent = await sending(path)
    assert (sent.acknowledged, sent.open_line) == (100, 101)
    assert "no answer" in sent.error


async def test_a_file_that_changes_meanwhile_is_told(producer: FakeProducer, path: Path) -> None:
    with pytest.raises(SubmitError, match=f"changed after it was checked; {LINES} items are acknowledged"):
        await sending(path, digest="another")
    append(path, b"\nnull\n")
    with pytest.raises(SubmitError, match="changed after it was checked"):
        await sending(path, digest="of the old one")
    assert len(producer.sent) > LINES


async def test_the_plain_function_raises_what_went_wrong(producer: FakeProducer) -> None:
    assert await submit(SETTINGS, [b'{"id": "1", "prompt": "p"}'], {"x-tenant": "é"}) == 1
    assert producer.sent[0][2] == [("x-tenant", "é".encode())]
    producer.fails = {2}
    with pytest.raises(SubmitError, match="KafkaTimeoutError"):
        await submit(SETTINGS, [b'{"id": "1", "prompt": "p"}'], {})


def test_prompts_that_begin_alike_share_a_key_for_so_many_lines() -> None:
    def key(prompt: str, line: int = 0) -> bytes:
        return prefix_key(json.dumps({"id": "1", "prompt": prompt}).encode(), line)

    shared = "You are a careful reader. " * 20
    assert key(shared + "one") == key(shared + "two") != key("one")
    keys = Counter(key(shared + str(line), line) for line in range(2000))
    assert max(keys.values()) == PREFIX_LINES
    assert len(keys) == 2000 // PREFIX_LINES + 1


def test_what_is_no_item_has_a_key_too() -> None:
    values = [b"not json", b"null", b"[1]", b'{"body": null}', b"\xff", b"[" * 100_000, b'{"prompt": "\\ud83d"}']
    assert len({prefix_key(value) for value in values}) == len(values)


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"messages": [{"role": "user"}]}, {"input_ids": [1, 2]}])
def test_every_object_has_a_key(body: dict[str, Any]) -> None:
    assert prefix_key(json.dumps({"body": body}).encode()) == prefix_key(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnknownTopicOrPartitionError, "topic inference.requests does not exist"),
        (TopicAuthorizationFailedError, "a right is missing: Describe on topic missing"),
    ],
)
async def test_a_topic_that_is_not_there_is_named_and_not_made(
    producer: FakeProducer, path: Path, error: Any, expected: str
) -> None:
    producer.client.error_code = error.errno
    with pytest.raises(LogError, match=f"^{expected}$"):
        await sending(path)
    assert producer.sent == []


async def test_a_record_that_kafka_refuses_has_its_cause_in_words(producer: FakeProducer, path: Path) -> None:
    producer.fails, producer.failure = {1}, TopicAuthorizationFailedError()
    sent = await sending(path)
    assert sent.error.startswith("a right is missing: TopicAuthorizationFailedError")


def test_what_was_sent_is_counted_in_words() -> None:
    assert told(Sent(), 1) == "no item is acknowledged"
    one = Sent(acknowledged=1, open_line=2, beyond=1)
    assert told(one, 1) == (
        "1 item is acknowledged; go on with --from 2 (1 of those is after it and will be there twice)"
    )
