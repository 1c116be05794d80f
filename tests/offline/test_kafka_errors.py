"""What aiokafka raises, and only logs, becomes an error of ours with its cause; its log does not flood."""

from __future__ import annotations

import logging
import ssl

import pytest
from aiokafka import errors as kafka

from sidecar.core.errors import SettingsError
from sidecar.offline.kafka_errors import (
    FencedInstanceIdError,
    InvalidRecordError,
    LogError,
    StuckError,
    call,
    cause_of,
    hear_aiokafka,
)
from sidecar.offline.lane_state import Cause
from sidecar.offline.offsets import OffsetsError


async def raised_by(error: Exception) -> LogError:
    with pytest.raises(LogError) as raised:
        async with call(1.0):
            raise error
    return raised.value


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (kafka.TopicAuthorizationFailedError("t"), Cause.RIGHTS),
        (kafka.GroupAuthorizationFailedError("g"), Cause.RIGHTS),
        (kafka.TransactionalIdAuthorizationFailed("i"), Cause.RIGHTS),
        (kafka.SaslAuthenticationFailed(), Cause.AUTHENTICATION),
        (ssl.SSLCertVerificationError("self-signed"), Cause.TLS),
        (kafka.UnknownTopicOrPartitionError(), Cause.TOPIC_MISSING),
        (kafka.KafkaConnectionError("Unable to bootstrap"), Cause.UNREACHABLE),
        (ConnectionRefusedError(), Cause.UNREACHABLE),
        (TimeoutError(), Cause.UNREACHABLE),
        (kafka.ProducerFenced(), Cause.FENCED),
        (kafka.OffsetOutOfRangeError({}), Cause.POSITION_LOST),
        (FencedInstanceIdError(), Cause.INSTANCE_IN_USE),
        (kafka.IllegalOperation("not in a transaction"), Cause.KAFKA),
        (AssertionError("a transition that cannot be"), Cause.KAFKA),
    ],
)
async def test_each_error_has_its_cause(error: Exception, cause: Cause) -> None:
    assert (await raised_by(error)).cause is cause


async def test_a_cause_inside_another_error_is_found() -> None:
    outer = kafka.KafkaError("Unexpected error during batch delivery")
    outer.__cause__ = kafka.TransactionalIdAuthorizationFailed("sidecar.g.t.3")
    found = await raised_by(outer)
    assert found.cause is Cause.RIGHTS
    assert "a right is missing: TransactionalIdAuthorizationFailed" in str(found)


async def test_what_aiokafka_only_logs_is_the_cause_of_its_failure_to_bootstrap() -> None:
    hear_aiokafka()

    async def bootstrap() -> None:
        async with call(1.0):
            refused = kafka.SaslAuthenticationFailed("invalid credentials")
            logging.getLogger("aiokafka.client").error('Unable connect to "%s:%s": %s', "h", 9092, refused)
            raise kafka.KafkaConnectionError("Unable to bootstrap")

    with pytest.raises(LogError, match="the broker does not let us in: SaslAuthenticationFailed") as raised:
        await bootstrap()
    assert raised.value.cause is Cause.AUTHENTICATION
    assert (await raised_by(kafka.KafkaConnectionError("Unable to bootstrap"))).cause is Cause.UNREACHABLE


@pytest.mark.parametrize(("level", "shown"), [(logging.CRITICAL, []), (logging.WARNING, ["odd"]), (1, ["so", "odd"])])
def test_what_aiokafka_says_is_shown_as_the_root_logger_has_it_but_never_what_a_record_holds(
    monkeypatch: pytest.MonkeyPatch, level: int, shown: list[str]
) -> None:
    hear_aiokafka()
    seen: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: seen.append(record.getMessage()))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(root, "level", level)
    root.manager._clear_cache()  # type: ignore[attr-defined]  # levels are remembered
    producer = logging.getLogger("aiokafka.producer.producer")
    producer.debug("Sending (key=%s value=%s) to %s", b"k", b"prompt", "t")
    producer.info("so")
    producer.warning("odd")
    assert seen == shown
    monkeypatch.undo()
    root.manager._clear_cache()  # type: ignore[attr-defined]


def test_codes_that_aiokafka_does_not_know_are_told_apart_from_faults_that_pass() -> None:
    assert kafka.for_code(87) is InvalidRecordError
    assert kafka.for_code(82) is FencedInstanceIdError


def test_errors_without_a_cause_of_their_own_have_one() -> None:
    assert cause_of(OffsetsError("another program's")) is Cause.FOREIGN_METADATA
    assert cause_of(SettingsError("no such file")) is Cause.SECRET
    assert cause_of(StuckError("nothing fetched")) is Cause.STUCK
