"""What can go wrong between the offline lane and Kafka, and why: aiokafka's exceptions become these, once, here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import AIOKafkaConsumer
from aiokafka.producer import AIOKafkaProducer

from sidecar.core.errors import SettingsError, SidecarError
from sidecar.offline.lane_state import Cause
from sidecar.offline.offsets import OffsetsError

STOP_TIMEOUT_S = 3.0
DETAIL_CHARS = 300
_GIVEN_UP = "Unable to bootstrap"  # what aiokafka raises where it has logged why


class LogError(SidecarError):
    """Kafka failed a call, or did not answer in time: what it did is unknown. Open anew and try again."""

    def __init__(self, message: str, cause: Cause = Cause.KAFKA) -> None:
        super().__init__(message)
        self.cause = cause


class FencedError(LogError):
    """Another opening of the same partition has won the epoch."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Cause.FENCED)


class NoCommittedOffsetError(LogError):
    """The group has no offset for a partition: an operator has to say where it begins."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Cause.NO_OFFSET)


class PositionLostError(LogError):
    """The log no longer holds the watermark (or not yet): an operator has to decide, nothing is skipped silently."""

    def __init__(self, message: str, partitions: Collection[int] = ()) -> None:
        super().__init__(message, Cause.POSITION_LOST)
        self.partitions = frozenset(partitions)


class RecordRefusedError(LogError):
    """A topic will not take some of a transaction's records, however often they are sent.

    `indexes` are theirs in the transaction, as far as it is known: the broker refuses whole batches of them.
    """

    def __init__(self, message: str, topic: str, indexes: Collection[int], too_large: bool) -> None:
        super().__init__(message, Cause.RECORD_REFUSED)
        self.topic = topic
        self.indexes = frozenset(indexes)
        self.too_large = too_large


class StuckError(SidecarError):
    """The consumer does nothing although there is work: make it anew."""


class InstanceInUseError(SidecarError):
    """Another process uses this instance_id: they would take the membership from each other for ever."""


def cause_of(error: SidecarError) -> Cause:
    """Return why the lane or a partition of it waits."""
    match error:
        case LogError():
            return error.cause
        case OffsetsError():
            return Cause.FOREIGN_METADATA
        case StuckError():
            return Cause.STUCK
        case InstanceInUseError():
            return Cause.INSTANCE_IN_USE
        case SettingsError():  # of what is read at each connection: a password file, a certificate
            return Cause.SECRET
        case _:
            return Cause.KAFKA


class InvalidRecordError(kafka.BrokerResponseError):  # type: ignore[misc]  # aiokafka is untyped
    """The topic's rules forbid this record; a compacted topic takes none without a key."""

    errno, message = 87, "INVALID_RECORD"
    description = "The broker refused a record of the batch by the rules of its topic."


class FencedInstanceIdError(kafka.BrokerResponseError):  # type: ignore[misc]
    """Another member has joined the group with this instance id."""

    errno, message = 82, "FENCED_INSTANCE_ID"
    description = "Another member of the group uses this instance id."


# aiokafka 0.14.0 does not know these codes and would raise UnknownError for them, as it does for faults that pass.
kafka.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)
kafka.kafka_errors.setdefault(FencedInstanceIdError.errno, FencedInstanceIdError)

TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)
REFUSALS = (*TOO_LARGE, InvalidRecordError)

_CAUSES: tuple[tuple[tuple[type[BaseException], ...], Cause, str], ...] = (
    (
        (
            kafka.SaslAuthenticationFailed,
            kafka.AuthenticationFailedError,
            kafka.UnsupportedSaslMechanismError,
            kafka.IllegalSaslStateError,
        ),
        Cause.AUTHENTICATION,
        "the broker does not let us in",
    ),
    ((ssl.SSLError, ssl.CertificateError), Cause.TLS, "no trusted connection to the broker"),
    (
        (
            kafka.TopicAuthorizationFailedError,
            kafka.GroupAuthorizationFailedError,
            kafka.TransactionalIdAuthorizationFailed,
            kafka.ClusterAuthorizationFailedError,
        ),
        Cause.RIGHTS,
        "a right is missing",
    ),
    ((FencedInstanceIdError,), Cause.INSTANCE_IN_USE, "another member has this instance_id"),
    ((kafka.UnknownTopicOrPartitionError,), Cause.TOPIC_MISSING, "a topic or partition is missing"),
    (
        (kafka.KafkaConnectionError, kafka.NodeNotReadyError, OSError, kafka.NoBrokersAvailable),
        Cause.UNREACHABLE,
        "no broker answers",
    ),
)


@contextlib.asynccontextmanager
async def call(timeout_s: float) -> AsyncIterator[None]:
    """Bounds calls of aiokafka (start and commit have no timeout) and translates whatever they raise.

    It raises more than KafkaErrors: after a fencing also IllegalOperation, a plain Exception, and AssertionErrors.
    """
    begun_s = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except SidecarError:
        raise
    except (kafka.ProducerFenced, kafka.InvalidProducerEpoch) as error:
        raise FencedError(f"another owner has opened this partition: {type(error).__name__}") from error
    except kafka.OffsetOutOfRangeError as error:
        places = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        raise PositionLostError(
            f"the log does not hold the committed position ({_words(error)}): its retention passed it, or the topic "
            f"was made anew; decide with `sidecar offsets reset`",
            [source.partition for source in places],
        ) from error
    except Exception as error:
        raise translated(error, begun_s) from error


def translated(error: BaseException, since_s: float) -> LogError:
    """Return what happened, with its last cause: aiokafka says "Unable to bootstrap" and logs why."""
    chain = [*_chain(error), *_noise.failures_since(since_s)]
    if not isinstance(error, (kafka.KafkaError, OSError)):
        chain = chain[: len(list(_chain(error)))]
    for types, cause, words in _CAUSES:
        # A timeout is ours: it says nothing of the broker, unless nothing else does.
        found = [each for each in chain if isinstance(each, types) and not isinstance(each, TimeoutError)]
        if found:
            first = next((each for each in found if _GIVEN_UP not in str(each)), found[0])
            return LogError(f"{words}: {_words(first)}", cause)
    if isinstance(error, TimeoutError):
        return LogError("Kafka does not answer in time (TimeoutError)", Cause.UNREACHABLE)
    return LogError(_words(error), Cause.KAFKA)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL_CHARS]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    at: BaseException | None = error
    for _ in range(10):
        if at is None:
            return
        yield at
        at = at.__cause__ or at.__context__


class _Noise(logging.Handler):
    """Hears what aiokafka logs and keeps the failed connections: it puts the exception itself among the arguments.

    Passes on what the root logger lets through, so that a log without libraries does not make their causes unknown.
    """

    def __init__(self) -> None:
        super().__init__()
        self._failures: deque[tuple[float, BaseException]] = deque(maxlen=20)

    def failures_since(self, since_s: float) -> list[BaseException]:
        """Return why connections failed since then, the latest first."""
        return [error for at_s, error in reversed(self._failures) if at_s >= since_s]

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the failure, if it is one, and pass the line on."""
        for each in record.args if isinstance(record.args, tuple) else ():
            if isinstance(each, BaseException):
                self._failures.append((time.monotonic(), each))
        root = logging.getLogger()
        if root.isEnabledFor(record.levelno):
            root.handle(record)


_noise = _Noise()


def hear_aiokafka() -> None:
    """What aiokafka logs is heard by `_Noise`; its debug lines, which hold keys and values of records, by nobody."""
    logger = logging.getLogger("aiokafka")
    if _noise not in logger.handlers:
        logger.addHandler(_noise)
        logger.setLevel(logging.INFO)
        logger.propagate = False


async def start_client(user: AIOKafkaProducer | AIOKafkaConsumer | AIOKafkaAdminClient, client: AIOKafkaClient) -> None:
    """`user.start()`; a cancel ends it only after the first connection of its `client` has answered, or failed to.

    Cancelled before that, aiokafka (0.14.0) forgets this connection without closing it.
    """
    bootstrap = client.bootstrap

    async def whole() -> None:
        task: asyncio.Task[Any] = asyncio.create_task(bootstrap(), name="kafka bootstrap")
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            _, late = await asyncio.wait([task], timeout=STOP_TIMEOUT_S)
            if late:
                task.cancel()
            elif not task.cancelled():
                task.exception()  # heard: nobody waits for it any more
            raise

    client.bootstrap = whole
    await user.start()
