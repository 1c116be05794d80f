"""All jobs as the topics have them: what was submitted, what is ordered, how far each is. And how orders are given."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaProducer

from sidecar.batch.manifest import Manifest, decoded_manifest
from sidecar.batch.topic_reader import TopicReader
from sidecar.core.errors import SettingsError
from sidecar.offline.item import Record
from sidecar.offline.job_orders import JobField, JobPriority, JobState, decoded_key, encoded_key
from sidecar.offline.job_progress import JobKey
from sidecar.offline.kafka_errors import call, start_client
from sidecar.offline.kafka_options import client_options
from sidecar.offline.receipts import DIGEST_BYTES, MODULUS
from sidecar.settings.offline import OfflineSettings

NO_JOBS_TOPIC = "the settings name no jobs_topic: set offline.jobs_topic (and run `sidecar topics create`)"


@dataclass(slots=True, kw_only=True)
class JobRow:
    """Holds one job: counts of what is committed, summed over partitions, and times in ms since 1970."""

    tenant: str
    job: str
    manifest: Manifest | None = None
    state: JobState = JobState.RUNNING
    priority: JobPriority = JobPriority.NORMAL
    deadline: str | None = None  # ordered, else as submitted
    done: int = 0
    dead: int = 0  # cancelled ones included
    cancelled: int = 0
    retried: int = 0  # dead letters that were sent again: they count in `dead`, and again as what becomes of them
    prompt_tokens: int = 0
    output_tokens: int = 0
    digest: int = 0
    end_p50_ms: float | None = None  # when it will be over, as last told
    end_p90_ms: float | None = None
    told_ms: int | None = None  # when its counts changed last

    @property
    def items(self) -> int | None:
        """Return how many items it has; None if it was not submitted by `sidecar submit`."""
        return None if self.manifest is None else self.manifest.items

    @property
    def failed(self) -> int:
        """Dead letters that nobody asked for, and that were not sent again."""
        return max(self.dead - self.cancelled - self.retried, 0)

    @property
    def left(self) -> int | None:
        """Items without an outcome."""
        return None if self.items is None else max(self.items + self.retried - self.done - self.dead, 0)

    @property
    def over(self) -> bool:
        """True if each item has its outcome."""
        return self.manifest is not None and self.manifest.sent and self.left == 0

    @property
    def status(self) -> str:
        """The state in a word: what is ordered, or how far it is."""
        if self.over:
            return "cancelled" if self.cancelled else "completed"
        if self.state is not JobState.RUNNING:
            return "cancelling" if self.state is JobState.CANCELLED else self.state.value
        return "sending" if self.manifest is not None and not self.manifest.sent else "running"

    def receipt(self) -> dict[str, Any]:
        """Return what the job came to, in the fields that `sidecar verify` checks against the topics."""
        return {
            "tenant": self.tenant,
            "job": self.job,
            "items": self.items,
            "done": self.done,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "digest": f"{self.digest:0{2 * DIGEST_BYTES}x}",
        }

    def document(self) -> dict[str, Any]:
        """The job as JSON."""
        ends = {"end_p50": _time(self.end_p50_ms), "end_p90": _time(self.end_p90_ms)}
        submitted = None if self.manifest is None else self.manifest.created
        more = {
            "status": self.status,
            "priority": self.priority.value,
            "left": self.left,
            "deadline": self.deadline,
            "submitted": submitted,
        }
        return {**self.receipt(), **more, **({} if self.over else ends)}


@dataclass(slots=True)
class JobBoard:
    """Every job that the jobs topic or the progress topic tells of."""

    rows: dict[JobKey, JobRow] = field(default_factory=dict)
    _told: dict[bytes, Record] = field(default_factory=dict)  # the last progress record of each key

    def row(self, key: JobKey) -> JobRow:
        """The job of that key, which is there afterwards."""
        return self.rows.setdefault(key, JobRow(tenant=key[0], job=key[1]))

    def ordered(self, record: Record) -> None:
        """Take in one record of the jobs topic."""
        if (found := decoded_key(record.key)) is None:
            return
        job, kind = found
        row, told = self.row(job), _json(record.value)
        value = told.get("value") if isinstance(told, dict) else None
        match kind:
            case JobField.MANIFEST:
                row.manifest = decoded_manifest(record.value)
                if row.manifest is not None and row.deadline is None:
                    row.deadline = row.manifest.deadline
            case JobField.STATE:
                row.state = JobState(value) if value in list(JobState) else JobState.RUNNING
            case JobField.PRIORITY:
                row.priority = JobPriority(value) if value in list(JobPriority) else JobPriority.NORMAL
            case JobField.RETRIED:
                row.retried = value if isinstance(value, int) else 0
            case JobField.DEADLINE:
                submitted = None if row.manifest is None else row.manifest.deadline
                row.deadline = value if isinstance(value, str) else submitted

    def progressed(self, record: Record) -> None:
        """Take in one record of the progress topic."""
        if record.key is not None:
            self._told[record.key] = record

    def sum_up(self) -> None:
        """Add up what the partitions tell. Call it once everything is read."""
        for record in self._told.values():
            told = _json(record.value)
            match _json(record.key):
                case [str(tenant), str(job), int()] if isinstance(told, dict):
                    _add(self.row((tenant, job)), told, record.timestamp_ms)
                case _:
                    continue

    def find(self, job: str, tenant: str | None) -> JobRow:
        """The job of this name. Raises SettingsError if there is none, or one of each of several tenants."""
        found = [row for row in self.rows.values() if row.job == job and tenant in (None, row.tenant)]
        if not found:
            raise SettingsError(f"there is no job {job!r}{f' of tenant {tenant!r}' if tenant else ''}")
        if len(found) > 1:
            names = ", ".join(sorted(row.tenant for row in found))
            raise SettingsError(f"several tenants have a job {job!r}: say which with --tenant ({names})")
        return found[0]


def _add(row: JobRow, told: dict[str, Any], timestamp_ms: int) -> None:
    for name in ("done", "dead", "cancelled", "prompt_tokens", "output_tokens"):
        if isinstance(count := told.get(name), int):
            setattr(row, name, getattr(row, name) + count)
    if isinstance(digest := told.get("digest"), str):
        row.digest = (row.digest + int(digest, 16)) % MODULUS
    row.told_ms = max(row.told_ms or 0, timestamp_ms)
    for name in ("p50", "p90"):
        if told.get("waiting") and isinstance(eta_s := told.get(f"eta_{name}_s"), int | float):
            end_ms = timestamp_ms + eta_s * 1000
            setattr(row, f"end_{name}_ms", max(getattr(row, f"end_{name}_ms") or 0.0, end_ms))


async def read_board(settings: OfflineSettings) -> JobBoard:
    """Every job as the topics have it now. Raises SettingsError without a jobs topic, LogError if Kafka fails."""
    if not settings.jobs_topic:
        raise SettingsError(NO_JOBS_TOPIC)
    board = JobBoard()
    topics = [settings.jobs_topic, *filter(None, [settings.progress_topic])]
    async with TopicReader(settings, {topic: {} for topic in topics}) as reader:
        async for records in reader.rest():
            for record in records:
                (board.ordered if record.topic == settings.jobs_topic else board.progressed)(record)
    board.sum_up()
    return board


async def order(settings: OfflineSettings, job: JobKey, kind: JobField, value: Any) -> None:
    """The order stands on the jobs topic, acknowledged by every replica."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    await write(settings, [(encoded_key(job, kind), json.dumps({"value": value, "at": at}).encode())])


async def write(settings: OfflineSettings, records: Iterable[tuple[bytes, bytes]]) -> None:
    """These records stand on the jobs topic, acknowledged by every replica. Raises LogError."""
    if not settings.jobs_topic:
        raise SettingsError(NO_JOBS_TOPIC)
    producer = AIOKafkaProducer(**client_options(settings), enable_idempotence=True)
    try:
        async with call(settings.call_timeout_s):
            await start_client(producer, producer.client)
            for key, value in records:
                await producer.send_and_wait(settings.jobs_topic, value, key=key)
    finally:
        await producer.stop()


def _json(text: bytes | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _time(at_ms: float | None) -> str | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
