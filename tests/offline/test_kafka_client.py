"""One opening of a partition, over a fake aiokafka producer: the order of calls is what exactly-once rests on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    IllegalOperation,
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    ProducerFenced,
    RecordListTooLargeError,
)
from aiokafka.structs import OffsetAndMetadata

from sidecar.core.errors import SettingsError
from sidecar.offline import kafka_opening
from sidecar.offline.kafka_client import KafkaLog
from sidecar.offline.kafka_errors import (
    FencedError,
    InvalidRecordError,
    LogError,
    PositionLostError,
    RecordRefusedError,
)
from sidecar.offline.kafka_opening import KafkaOpening, Outgoing
from sidecar.offline.kafka_options import client_options
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings
from tests.offline import test_header_names

SOURCE = TopicPartition("inference.requests", 3)
STATE = Committed(watermark=5, high=9, gaps=(5, 7))
RESULT = Outgoing(topic="inference.results", key=b"k", value=b"v", headers=(("h", b"1"),))
BEGUN = ["start", "read"]  # each opening


class FakeProducer:
    """Notes every call; `failing` names calls that raise, and what."""

    def __init__(self, calls: list[Any], failing: dict[str, Exception], **options: Any) -> None:
        self.options = options
        self.calls = calls
        self.failing = failing
        self.client = SimpleNamespace(send=self._request, bootstrap=None)
        self._txn_manager = SimpleNamespace(_transaction_waiter=None)

    async def _request(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]

    async def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]

    async def start(self) -> None:
        await self._note("start")

    async def stop(self) -> None:
        await self._note("stop")

    async def begin_transaction(self) -> None:
        await self._note("begin")

    async def send(self, topic: str, *, value: bytes, key: bytes, partition: int, headers: Any) -> asyncio.Future[None]:
        self.calls.append(("send", topic, value, key, partition, headers))
        future = asyncio.get_running_loop().create_future()
        if "delivery" in self.failing:
            future.set_exception(self.failing["delivery"])
        else:
            future.set_result(None)
        return future

    async def send_offsets_to_transaction(self, offsets: Any, group: str) -> None:
        self.calls.append(("offsets", offsets, group))

    async def commit_transaction(self) -> None:
        await self._note("commit")

    async def abort_transaction(self) -> None:
        await self._note("abort")


class FakeAdmin:
    """Answers with what is committed, and notes when it was asked."""

    def __init__(self, calls: list[Any], committed: OffsetAndMetadata) -> None:
        self.calls = calls
        self.committed = committed
        self._client = SimpleNamespace(bootstrap=None)

    async def start(self) -> None:
        """Connected."""

    async def close(self) -> None:
        """Gone."""

    async def list_consumer_group_offsets(self, _group: str, partitions: list[TopicPartition]) -> Any:
        self.calls.append("read")
        return dict.fromkeys(partitions, self.committed)


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


async def test_a_fetch_of_no_partition_is_refused_because_aiokafka_would_read_it_as_all() -> None:
    async def revoked() -> None:
        """Not called."""

    log = KafkaLog(OfflineSettings(), revoked=revoked, assigned=lambda _: None)
    with pytest.raises(ValueError, match="needs a partition"):
        await log.fetch([], 10, 0.0)
    await log.stop()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Committed(watermark=4, high=4), "at offset 4, and the log holds 5 to 50"),
        (Committed(watermark=51, high=51), "at offset 51, and the log holds 5 to 50"),
        (Committed(watermark=40, high=60, gaps=(40,)), "at offset 40 with items up to 60 done, and the log"),
        (Committed(watermark=40, high=50, gaps=(40,)), ""),
        (Committed(watermark=50, high=50), ""),
    ],
)
async def test_a_log_that_does_not_hold_what_is_committed_is_a_lost_position(
    state: Committed, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any) -> None:
        """Not called."""

    async def begins(_: Any, sources: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(sources, 5)

    async def ends(_: Any, sources: list[Any]) -> dict[Any, int]:
        return dict.fromkeys(sources, 50)

    log = KafkaLog(OfflineSettings(), revoked=nothing, assigned=lambda _: None)
    monkeypatch.setattr(AIOKafkaConsumer, "beginning_offsets", begins)
    monkeypatch.setattr(AIOKafkaConsumer, "end_offsets", ends)
    if said:
        with pytest.raises(PositionLostError, match=said):
            await log._check_position(0, state)
    else:
        await log._check_position(0, state)
    await log.stop()


async def test_after_a_name_that_is_not_utf8_answers_are_made_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        """Not called."""

    async def answered(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(topics=[("t", [(0, 0, 9, broken)])])

    async def unreadable(*_: Any, **__: Any) -> None:
        b"\xff secret".decode()

    broken = test_header_names.batch(0)
    monkeypatch.setattr(AIOKafkaClient, "send", answered)
    monkeypatch.setattr(AIOKafkaConsumer, "getmany", unreadable)
    log = KafkaLog(OfflineSettings(), revoked=nothing, assigned=lambda _: None)
    fetched = log._consumer._client
    assert (await fetched.send(0, "fetch")).topics[0][1][0][-1] is broken
    with pytest.raises(LogError, match="a header whose name is not UTF-8") as caught:
        await log.fetch([0], 10, 0.0)
    assert "secret" not in str(caught.value)
    mended = (await fetched.send(0, "fetch")).topics[0][1][0][-1]
    assert len(test_header_names.read(mended)) == 4
    await log.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bootstrap_servers": ""}, "bootstrap_servers must name a broker"),
        *(
            ({"bootstrap_servers": servers}, "must be host:port of a broker")
            for servers in ("a:b:c", "a:99999", "a:0", "PLAINTEXT://a:9092", "a:9092,", "a b:9092", "a:-1", "[::1:9092")
        ),
        ({"requests_topic": ""}, "requests_topic must be 1 to 249 of the characters"),
        ({"results_topic": "a b"}, "results_topic must be 1 to 249 of the characters"),
        ({"dead_letter_topic": "a" * 250}, "dead_letter_topic must be 1 to 249 of the characters"),
        ({"progress_topic": "ä"}, "progress_topic must be 1 to 249 of the characters"),
        ({"pending_max": 0}, "pending_max must be in 1..1000, not 0"),
        ({"pending_max": 1001}, "pending_max must be in 1..1000, not 1001"),
        (
            {"pending_max": 1000, "metadata_chars_max": 2000},
            "may need 2757 characters of metadata, the broker takes 2000",
        ),
        ({"item_bytes_max": 9, "message_bytes_max": 8}, "item_bytes_max 9 exceeds message_bytes_max 8"),
        ({"heartbeat_s": 15.0}, "heartbeat_s 15.0 must be well below session_timeout_s 30.0"),
        ({"tick_s": 0.0}, "tick_s must be > 0, not 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        OfflineSettings(**settings)


@pytest.mark.parametrize(
    "servers", ["a", "a:9092, b-1.c:9093", "127.0.0.1:1", "[::1]:9092", "[fe80::1]", "::1", "a_b:65535"]
)
def test_brokers_are_named_in_every_form_that_the_client_reads(servers: str) -> None:
    assert OfflineSettings(bootstrap_servers=servers).bootstrap_servers == servers


@pytest.mark.parametrize(
    ("security", "message"),
    [
        ({"protocol": "SASL_SSL"}, "SCRAM-SHA-512 needs username and a password"),
        ({"protocol": "SASL_SSL", "username": "u"}, "needs username and a password"),
        ({"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER"}, "OAUTHBEARER needs token_file"),
        ({"protocol": "SSL", "key_file": Path("k")}, "certificate_file and key_file go together"),
    ],
)
def test_security_that_cannot_work_is_refused(security: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        KafkaSecuritySettings(**security)


def test_a_password_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    by_file = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", username="u", password_file=secret)
    by_environment = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", username="u", password="hunter2")
    for security in (by_file, by_environment):
        settings = OfflineSettings(security=security)
        assert client_options(settings)["sasl_plain_password"] == "hunter2"
        assert "hunter2" not in repr(settings)


async def test_a_token_is_read_anew_for_each_connection(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    security = KafkaSecuritySettings(protocol="SASL_SSL", mechanism="OAUTHBEARER", token_file=token)
    provider = client_options(OfflineSettings(security=security))["sasl_oauth_token_provider"]
    assert await provider.token() == "first"
    token.write_text("second\n")
    assert await provider.token() == "second"


def test_a_secret_that_cannot_be_read_is_named() -> None:
    security = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", username="u", password_file=Path("/nowhere/password"))
    with pytest.raises(SettingsError, match="/nowhere/password"):
        client_options(OfflineSettings(security=security))
