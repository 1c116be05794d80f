"""Dead letters as people look at them, and sent again as items that say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer

from sidecar.batch.board import order, read_board
from sidecar.batch.outcome_lines import custom_id
from sidecar.batch.topic_reader import TopicReader
from sidecar.core.errors import SettingsError
from sidecar.offline.item import Headers, Record
from sidecar.offline.job_orders import JobField
from sidecar.offline.job_progress import JobKey, job_of
from sidecar.offline.kafka_errors import call, start_client
from sidecar.offline.kafka_options import client_options
from sidecar.settings.offline import OfflineSettings

RETRY, RETRY_OF = "x-retry", "x-retry-of"
AT_ONCE = 1000
_OWN = ("dlq.", "traceparent", "tracestate")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadItem:
    """Holds one dead letter. `source` is where its item stood: topic/partition/offset, unique within a cluster."""

    record: Record
    source: str
    job: JobKey | None
    reason: str
    message: str
    attempts: int
    retry: int  # 1 if it is that of a first retry, and so on

    @property
    def custom_id(self) -> str:
        """The item's own name for itself; "" where nobody can read it."""
        return custom_id(self.record.value)

    @property
    def cut(self) -> bool:
        """True if the topic did not take all of the item: what is left cannot be sent again."""
        return any(name == "dlq.truncated" for name, _ in self.record.headers) or self.record.value in (None, b"")

    def document(self) -> dict[str, Any]:
        """The dead letter as JSON, without its item, which may hold a prompt."""
        tenant, job = self.job or (None, None)
        place = f"{self.record.topic}/{self.record.partition}/{self.record.offset}"
        own = {"source": self.source, "at": place, "custom_id": self.custom_id, "tenant": tenant, "job": job}
        return {**own, "reason": self.reason, "message": self.message, "attempts": self.attempts, "retry": self.retry}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadChoice:
    """Which dead letters are meant; what is not said does not narrow it."""

    job: str | None = None
    tenant: str | None = None
    reasons: frozenset[str] = field(default_factory=frozenset)
    sources: frozenset[str] = field(default_factory=frozenset)

    def holds(self, item: DeadItem) -> bool:
        """True if this one is meant."""
        tenant, job = item.job or (None, None)
        return (
            self.job in (None, job)
            and self.tenant in (None, tenant)
            and (not self.reasons or item.reason in self.reasons)
            and (not self.sources or item.source in self.sources)
        )


def dead_item(record: Record) -> DeadItem:
    """The dead letter in a record of its topic."""
    headers = dict(record.headers)

    def text(name: str) -> str:
        return (headers.get(name) or b"").decode(errors="replace")

    attempts, retry = text("dlq.attempts"), text(RETRY)
    return DeadItem(
        record=record,
        source="/".join(text(f"dlq.original.{name}") for name in ("topic", "partition", "offset")),
        job=job_of(record),
        reason=text("dlq.error.class"),
        message=text("dlq.error.message"),
        attempts=int(attempts) if attempts.isdecimal() else 0,
        retry=int(retry) if retry.isdecimal() else 0,
    )


async def dead_items(settings: OfflineSettings, choice: DeadChoice) -> AsyncGenerator[DeadItem, None]:
    """Every dead letter that is meant, up to now. Raises LogError."""
    async with TopicReader(settings, {settings.dead_letter_topic: {}}) as reader:
        async for records in reader.rest():
            for record in records:
                if choice.holds(item := dead_item(record)):
                    yield item


async def retried_before(settings: OfflineSettings) -> dict[str, JobKey | None]:
    """The sources of all dead letters that were sent again already, and their jobs: the requests topic tells."""
    found: dict[str, JobKey | None] = {}
    async with TopicReader(settings, {settings.requests_topic: {}}) as reader:
        async for records in reader.rest():
            for record in records:
                if source := dict(record.headers).get(RETRY_OF):
                    found[source.decode(errors="replace")] = job_of(record)
    return found


def retry_headers(item: DeadItem) -> Headers:
    """The item's own headers, and which retry of which item it is."""
    own = [each for each in item.record.headers if not each[0].startswith(_OWN) and each[0] not in (RETRY, RETRY_OF)]
    return (*own, (RETRY, b"%d" % (item.retry + 1)), (RETRY_OF, item.source.encode()))


async def retry(settings: OfflineSettings, choice: DeadChoice, on_sent: Callable[[int], None]) -> tuple[int, int]:
    """Every dead letter that is meant, and was not before, is an item again; how many, and how many were left out.

    An item keeps key, value and id; `x-retry-of` names where it stood. What was cut is left out. Raises LogError, and
    SettingsError if the items are of a job that was cancelled.
    """
    before = await retried_before(settings)
    board = await read_board(settings) if settings.jobs_topic else None
    sent = left_out = 0
    jobs = Counter(job for job in before.values() if job is not None)
    producer = AIOKafkaProducer(
        **client_options(settings), enable_idempotence=True, max_request_size=settings.message_bytes_max
    )
    try:
        async with call(settings.call_timeout_s):
            await start_client(producer, producer.client)
        batch: list[DeadItem] = []
        async with aclosing(dead_items(settings, choice)) as found:
            async for item in found:
                if item.cut or item.source in before:
                    left_out += 1
                    continue
                if board is not None and item.job in board.rows and board.rows[item.job].status == "cancelled":
                    raise SettingsError(f"job {item.job[1]!r} was cancelled: `sidecar job resume` it first")
                before[item.source] = item.job
                batch.append(item)
                if len(batch) == AT_ONCE:
                    sent += await _send(settings, producer, batch, jobs)
                    batch = []
                    on_sent(sent)
        sent += await _send(settings, producer, batch, jobs)
        on_sent(sent)
    finally:
        await producer.stop()
        if board is not None:
            for job, count in jobs.items():
                if count != board.row(job).retried:
                    await order(settings, job, JobField.RETRIED, count)
    return sent, left_out


async def _send(
    settings: OfflineSettings, producer: AIOKafkaProducer, batch: Iterable[DeadItem], jobs: Counter[JobKey]
) -> int:
    """These items are acknowledged; `jobs` counts them."""
    sent = 0
    async with call(settings.call_timeout_s):
        futures = [
            await producer.send(
                settings.requests_topic, item.record.value, key=item.record.key, headers=list(retry_headers(item))
            )
            for item in batch
        ]
        for item, future in zip(batch, futures, strict=True):
            await future
            sent += 1
            if item.job is not None:
                jobs[item.job] += 1
    return sent
