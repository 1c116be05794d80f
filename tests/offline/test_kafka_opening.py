"""One opening of a partition, over a fake aiokafka producer: the order of calls is what exactly-once rests on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    IllegalOperation,
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    ProducerFenced,
    RecordListTooLargeError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import OffsetAndMetadata
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.offline import kafka_opening
from sidecar.offline.job_progress import JobTally, Outlook, encoded
from sidecar.offline.kafka_errors import (
    FencedError,
    InvalidRecordError,
    LogError,
    PositionLostError,
    RecordRefusedError,
)
from sidecar.offline.kafka_opening import KafkaOpening, Outgoing
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import OfflineSettings
from tests.fakes.producer import FakeAdmin, FakeProducer, FakeTopicConsumer

SOURCE = TopicPartition("inference.requests", 3)
STATE = Committed(watermark=5, high=9, gaps=(5, 7))
RESULT = Outgoing(topic="inference.results", key=b"k", value=b"v", headers=(("h", b"1"),))
BEGUN = ["start", "read"]  # each opening


Opened = Callable[..., tuple[KafkaOpening, list[Any]]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """An opening of partition 3, not started, and the calls that it makes."""

    def make(
        committed: tuple[int, str] = (5, STATE.encode()), abort_fence: bool = False, **failing: Exception
    ) -> tuple[KafkaOpening, list[Any]]:
        calls: list[Any] = []
        monkeypatch.setattr(kafka_opening, "AIOKafkaProducer", lambda **o: FakeProducer(calls, failing, **o))
        admin = FakeAdmin(calls, OffsetAndMetadata(*committed))
        monkeypatch.setattr(kafka_opening, "AIOKafkaAdminClient", lambda **_: admin)
        settings = OfflineSettings(group="g", call_timeout_s=0.05, abort_fence=abort_fence)
        return KafkaOpening(settings, SOURCE.partition), calls

    return make


async def test_the_state_is_read_after_the_epoch_is_won_and_the_coordinator_has_taken_a_write(opened: Opened) -> None:
    opening, calls = opened()
    await opening.start()
    assert calls == BEGUN
    assert opening.state == STATE


async def test_nothing_committed_is_no_state(opened: Opened) -> None:
    opening, _ = opened(committed=(-1, ""))
    await opening.start()
    assert opening.state is None


async def test_the_epoch_belongs_to_the_partition_not_to_the_process(opened: Opened) -> None:
    opening, _ = opened()
    options = opening._producer.options
    assert options["transactional_id"] == "sidecar.g.inference.requests.3"


async def test_one_transaction_holds_the_records_and_the_offset_with_its_gaps(opened: Opened) -> None:
    opening, calls = opened()
    await opening.start()
    await opening.commit([RESULT], STATE)
    assert calls[len(BEGUN) :] == [
        "begin",
        ("send", "inference.results", b"v", b"k", 3, [("h", b"1")]),
        ("offsets", {SOURCE: OffsetAndMetadata(5, STATE.encode())}, "g"),
        "commit",
    ]
    assert not opening.tainted


async def test_no_offset_is_sent_if_a_record_was_not_delivered(opened: Opened) -> None:
    opening, calls = opened(delivery=KafkaError("expired while the partition had no leader"))
    await opening.start()
    with pytest.raises(LogError, match="expired while"):
        await opening.commit([RESULT], STATE)
    assert [call for call in calls[len(BEGUN) :] if call == "commit" or call[0] == "offsets"] == []


@pytest.mark.parametrize(
    ("error", "too_large"),
    [(MessageSizeTooLargeError(), True), (RecordListTooLargeError(), True), (InvalidRecordError(), False)],
)
async def test_a_record_that_its_topic_refuses_is_named_by_its_place_and_nothing_is_committed(
    opened: Opened, error: Exception, too_large: bool
) -> None:
    opening, calls = opened(delivery=error)
    await opening.start()
    with pytest.raises(RecordRefusedError, match=r"topic inference\.results takes no such record") as raised:
        await opening.commit([RESULT, RESULT], STATE)
    assert (raised.value.indexes, raised.value.too_large) == (frozenset({0, 1}), too_large)
    assert [call for call in calls[len(BEGUN) :] if call == "commit" or call[0] == "offsets"] == []


async def test_batches_are_no_longer_than_the_shortest_that_a_topic_takes(opened: Opened) -> None:
    opening, _ = opened()
    assert opening._producer.options["max_batch_size"] == 262_144
    limits = {"inference.results": 20_000, "inference.requests.dlq": 2_162_688}
    assert KafkaOpening(OfflineSettings(), 3, limits)._producer.options["max_batch_size"] == 20_000


async def test_a_record_without_key_and_value_is_sent_with_an_empty_value(opened: Opened) -> None:
    opening, calls = opened()
    await opening.start()
    await opening.commit([Outgoing(topic="t", key=None, value=None, headers=())], STATE)
    assert calls[len(BEGUN) + 1] == ("send", "t", b"", None, 3, [])


async def test_a_failed_request_taints_the_opening_even_if_a_retry_succeeds(opened: Opened) -> None:
    opening, _ = opened(EndTxn=KafkaError("the connection was cut"))
    await opening.start()
    with pytest.raises(KafkaError):
        await opening._producer.client.send("EndTxn")
    await opening.commit([RESULT], STATE)
    assert opening.tainted


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (ProducerFenced(), FencedError),
        (IllegalOperation("not in a transaction"), LogError),
        (AssertionError("a transition that cannot be"), LogError),
        (OSError("connection refused"), LogError),
        (OffsetOutOfRangeError({SOURCE: 5}), PositionLostError),
    ],
)
async def test_whatever_aiokafka_raises_is_an_error_of_ours(
    opened: Opened, error: Exception, becomes: type[Exception]
) -> None:
    opening, _ = opened(commit=error)
    await opening.start()
    with pytest.raises(becomes):
        await opening.commit([RESULT], STATE)


async def test_a_start_without_an_answer_ends_within_the_bound(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    opening, _ = opened()
    never = asyncio.Event()
    monkeypatch.setattr(FakeProducer, "start", lambda _: never.wait())
    with pytest.raises(LogError, match="TimeoutError"):
        await opening.start()


async def test_the_abort_fence_writes_and_aborts_markers_of_its_own(opened: Opened) -> None:
    opening, calls = opened(abort_fence=True)
    await opening.start()
    names = [call if isinstance(call, str) else call[0] for call in calls[len(BEGUN) :]]
    assert names == ["begin", "send", "send", "offsets", "abort"]


async def test_metadata_beyond_the_brokers_limit_are_never_sent(opened: Opened) -> None:
    opening, calls = opened()
    await opening.start()
    many = Committed(watermark=0, high=20_000, gaps=tuple(range(0, 20_000, 4)))
    with pytest.raises(AssertionError, match="5000 gaps"):
        await opening.commit([], many)
    assert calls == BEGUN


async def test_a_close_that_fails_is_not_heard(opened: Opened) -> None:
    opening, _ = opened(stop=KafkaError("no broker"))
    await opening.close()


def test_a_result_that_compression_makes_short_enough_is_written() -> None:
    long = Outgoing(topic=RESULT.topic, key=b"k", value=b"word " * 2000, headers=(("h", b"1"),))
    assert (long.fits(4_000, "lz4"), long.fits(4_000, "none"), long.fits(20_000, "none")) == (True, False, True)


@settings(max_examples=50)
@given(
    key=st.none() | st.binary(max_size=200),
    value=st.none() | st.binary(max_size=300),
    headers=st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=200)), max_size=5),
)
def test_the_size_of_a_record_is_that_of_its_batch_rounded_up(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
) -> None:
    record = Outgoing(topic="t", key=key, value=value, headers=tuple(headers))
    batch = BatchBuilder(1 << 20, 0, is_transactional=1)
    batch.append(timestamp=2**40, key=key, value=value, headers=headers)
    exact = len(batch._build())
    assert exact <= record.size <= exact + 100 + 10 * len(headers)
    assert record.fits(record.size, "none")


def test_a_header_without_a_value_has_a_size() -> None:
    headers: Any = (("x-job", None),)
    assert Outgoing(topic="t", key=None, value=None, headers=headers).size == len("x-job") + 110


def of(topic: str) -> Outgoing:
    return Outgoing(topic=topic, key=b"k", value=b"v", headers=())


def test_another_failure_beside_a_refusal_leaves_the_outcome_unknown() -> None:
    lost = KafkaError("expired")
    with pytest.raises(KafkaError, match="expired"):
        kafka_opening._raise_failed([of("a"), of("a")], [MessageSizeTooLargeError(), lost])
    kafka_opening._raise_failed([of("a")], [object()])  # delivered


def test_of_two_topics_that_refuse_the_first_one_is_named_with_its_own_records() -> None:
    records = [of("a"), of("b"), of("a"), of("b")]
    outcomes = [None, InvalidRecordError(), MessageSizeTooLargeError(), InvalidRecordError()]
    with pytest.raises(RecordRefusedError, match="topic b takes no such record: InvalidRecordError") as raised:
        kafka_opening._raise_failed(records, outcomes)
    assert (raised.value.topic, raised.value.indexes, raised.value.too_large) == ("b", frozenset({1, 3}), False)


async def test_a_record_that_the_client_finds_too_long_is_the_only_one_to_blame(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, calls = opened()
    await opening.start()
    send = FakeProducer.send

    async def refusing(producer: FakeProducer, topic: str, **options: Any) -> Any:
        if options["value"] == b"long":
            raise MessageSizeTooLargeError
        return await send(producer, topic, **options)

    monkeypatch.setattr(FakeProducer, "send", refusing)
    long = Outgoing(topic=RESULT.topic, key=b"k", value=b"long", headers=())
    with pytest.raises(RecordRefusedError) as raised:
        await opening.commit([RESULT, long, RESULT], STATE)
    assert (raised.value.indexes, raised.value.too_large) == (frozenset({1}), True)
    assert "commit" not in calls


def reading(monkeypatch: pytest.MonkeyPatch, consumer: FakeTopicConsumer) -> KafkaOpening:
    """An opening whose progress topic this consumer reads."""
    noted: list[Any] = []
    monkeypatch.setattr(kafka_opening, "AIOKafkaProducer", lambda **o: FakeProducer(noted, {}, **o))
    admin = FakeAdmin(noted, OffsetAndMetadata(5, STATE.encode()))
    monkeypatch.setattr(kafka_opening, "AIOKafkaAdminClient", lambda **_: admin)

    def made(**options: Any) -> FakeTopicConsumer:
        consumer.options = options
        return consumer

    monkeypatch.setattr(kafka_opening, "AIOKafkaConsumer", made)
    return KafkaOpening(OfflineSettings(group="g", progress_topic="inference.progress"), SOURCE.partition)


def told(tally: JobTally) -> tuple[bytes, bytes]:
    return encoded(("lab", "nightly"), SOURCE.partition, tally, 0, Outlook())


async def test_what_is_told_of_jobs_is_read_to_its_end_and_the_newest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = FakeTopicConsumer([told(JobTally(done=1))], [], [told(JobTally(done=7, dead=2))])
    opening = reading(monkeypatch, consumer)
    await opening.start()
    assert opening.tallies == {("lab", "nightly"): JobTally(done=7, dead=2)}
    assert consumer.places == [TopicPartition("inference.progress", SOURCE.partition)]
    assert consumer.options["isolation_level"] == "read_committed"
    assert consumer.options["auto_offset_reset"] == "earliest"
    assert consumer.stopped


async def test_a_progress_topic_that_cannot_be_read_leaves_no_consumer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = FakeTopicConsumer()
    consumer.error = KafkaError("a right is missing")
    with pytest.raises(LogError, match="a right is missing"):
        await reading(monkeypatch, consumer).start()
    assert consumer.stopped


async def test_a_producer_that_cannot_end_in_order_is_closed_by_its_parts(opened: Opened) -> None:
    opening, _ = opened(stop=KafkaError("no broker to flush to"))
    closed: list[str] = []

    def closing(name: str) -> SimpleNamespace:
        async def close() -> None:
            closed.append(name)

        return SimpleNamespace(close=close)

    opening._producer._sender = closing("sender")
    opening._producer.client.close = closing("client").close
    await opening.close()
    assert closed == ["sender", "client"]
