"""The results of one job, gathered from the topics: complete, in the order of the input, none twice."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from sidecar.batch.board import read_board
from sidecar.batch.manifest import Manifest
from sidecar.batch.outcome_lines import OutcomeLine, outcome_line
from sidecar.batch.result_spool import ResultSpool
from sidecar.batch.topic_reader import Places, TopicReader
from sidecar.core.errors import SettingsError
from sidecar.offline.item import Record
from sidecar.offline.job_progress import JobKey, job_of
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.lane_state import Cause
from sidecar.settings.offline import OfflineSettings

log = logging.getLogger(__name__)

SPOOL_SUFFIX = ".sidecar"
PASSING = frozenset((Cause.UNREACHABLE, Cause.KAFKA))  # causes that end when the brokers are back
LOOK_S = 1.0  # between two looks at the ends of the topics while a job runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """How much of a job is there."""

    results: int
    errors: int
    items: int | None  # None where nobody knows how many there will be

    @property
    def complete(self) -> bool:
        """True if each item has its outcome."""
        return self.items is not None and self.results + self.errors >= self.items


async def until_it_passes(error: LogError, *, follow: bool) -> None:
    """Wait a moment for a broker that does not answer. Raises `error` for anything else, or if nobody waits."""
    if not follow or error.cause not in PASSING:
        raise error
    log.warning("%s; it is tried again", error)
    await asyncio.sleep(LOOK_S)


def spool_path(output: Path) -> Path:
    """Where the outcomes of a job stand until all of them are there."""
    return output.with_name(f"{output.name}{SPOOL_SUFFIX}")


async def gather(
    settings: OfflineSettings,
    job: JobKey,
    output: Path,
    errors: Path,
    *,
    follow: bool = False,
    on_progress: Callable[[Gathered], None] = lambda _: None,
) -> Gathered:
    """`output` and `errors` hold what became of the job's items up to now, or, with `follow`, of all of them.

    Without `follow` it may be called while the job runs, and again: it reads on where it was. Raises LogError, with
    `follow` only for what does not pass by itself.
    """
    manifest = await manifest_of(settings, job)
    items = manifest.items if manifest is not None else await count_items(settings, job)
    with ResultSpool(spool_path(output), job) as spool:
        results, dead = spool.count()
        found = Gathered(results=results, errors=dead, items=items)
        reading = True
        while reading:
            starts = spool.places() or starts_of(settings, manifest)
            try:
                async with aclosing(
                    outcomes_of(settings, job, starts, follow=follow, lined=manifest is not None)
                ) as arriving:
                    async for outcomes, places in arriving:
                        spool.add(outcomes, places)
                        results, dead = spool.count()
                        found = Gathered(results=results, errors=dead, items=items)
                        on_progress(found)
                        if follow and found.complete:
                            break
                reading = False
            except LogError as error:
                await until_it_passes(error, follow=follow)
        spool.write(output, ok=True)
        spool.write(errors, ok=False)
        if found.complete:
            spool.remove()
    return found


async def manifest_of(settings: OfflineSettings, job: JobKey) -> Manifest | None:
    """What was submitted under this name; None if nothing was, or no jobs topic tells of it."""
    if not settings.jobs_topic:
        return None
    row = (await read_board(settings)).rows.get(job)
    return None if row is None else row.manifest


def starts_of(settings: OfflineSettings, manifest: Manifest | None) -> Places:
    """From where on the outcomes of a job are to be looked for."""
    starts = {} if manifest is None else manifest.starts
    return {topic: starts.get(topic, {}) for topic in (settings.results_topic, settings.dead_letter_topic)}


async def outcomes_of(
    settings: OfflineSettings, job: JobKey, starts: Places, *, follow: bool, lined: bool
) -> AsyncGenerator[tuple[list[OutcomeLine], Places], None]:
    """The outcomes of a job as they stand on the topics, some at a time, and up to where that is; without an end if
    `follow`. `lined`: they are placed by their lines, not by their offsets."""
    async with TopicReader(settings, starts) as reader:
        looked_s = time.monotonic()
        while True:
            if not (follow and reader.at_end):
                if reader.at_end:
                    return
                yield _outcomes(settings, job, await reader.read(), lined), reader.places
                continue
            records = await reader.read(LOOK_S)
            yield _outcomes(settings, job, records, lined), reader.places
            if time.monotonic() - looked_s >= LOOK_S:
                await reader.look_at_ends()
                looked_s = time.monotonic()


def _outcomes(settings: OfflineSettings, job: JobKey, records: Iterable[Record], lined: bool) -> list[OutcomeLine]:
    found = []
    for record in records:
        if job_of(record) != job or not _ours(settings, record):
            continue
        line = outcome_line(record, dead=record.topic == settings.dead_letter_topic, lined=lined)
        if line is not None:
            found.append(line)
    return found


def _ours(settings: OfflineSettings, record: Record) -> bool:
    """True if our group wrote it: two groups may read one topic of requests, and each has its own results."""
    name = "dlq.original.group" if record.topic == settings.dead_letter_topic else "x-source-group"
    stated = dict(record.headers).get(name)
    return stated is None or stated.decode(errors="replace") == settings.group


async def count_items(settings: OfflineSettings, job: JobKey) -> int:
    """How many items of a job stand on the requests topic, whoever produced them. Raises SettingsError if none does."""
    count = 0
    async with TopicReader(settings, {settings.requests_topic: {}}) as reader:
        async for records in reader.rest():
            count += sum(job_of(record) == job for record in records)
    if not count:
        raise SettingsError(f"no item of job {job[1]!r} of tenant {job[0]!r} stands on {settings.requests_topic}")
    return count
