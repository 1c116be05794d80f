"""`BatchClient`: a program's way to send many prompts and iterate over what became of them.

    async with BatchClient.of_config("sidecar.yaml") as client:
        job = await client.submit({"id": str(n), "prompt": text, "max_tokens": 64} for n, text in enumerate(texts))
        async for result in client.results(job):
            print(result.custom_id, result.text if result.ok else result.error)

It speaks to Kafka alone, as `sidecar submit` and `sidecar results` do: a job goes on if the program ends, and another
program may read its results, now or later, by its name.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Self

from sidecar.batch.board import JobRow, order, read_board
from sidecar.batch.outcome_lines import LinePlace
from sidecar.batch.results import count_items, manifest_of, outcomes_of, starts_of
from sidecar.batch.submission import submit_job
from sidecar.core.errors import SettingsError
from sidecar.offline.item import TENANT_DEFAULT, ItemRules
from sidecar.offline.item_fields import INT32_MAX
from sidecar.offline.item_file import ItemFile, ItemFileError, check, names_of
from sidecar.offline.job_orders import JobField, JobState
from sidecar.offline.submit import Sent, SubmitError
from sidecar.settings.aliases import Aliases
from sidecar.settings.file import load_settings
from sidecar.settings.offline import OfflineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A job by its name. Make one from the name of a job that another program submitted."""

    name: str
    tenant: str = TENANT_DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What became of one item: `line` is the line of an OpenAI Batch output file, or of its error file."""

    custom_id: str
    ok: bool
    line: Mapping[str, Any]

    @property
    def body(self) -> Mapping[str, Any]:
        """The completion or the chat completion; of an error the answer that refuses, empty if the item never ran."""
        response = self.line.get("response")
        return response["body"] if response else {}

    @property
    def text(self) -> str:
        """The text of the answer. Raises ValueError for an error."""
        if not self.ok:
            raise ValueError(f"item {self.custom_id!r} has no answer: {self.error}")
        choice = self.body["choices"][0]
        text: str = choice["message"]["content"] if "message" in choice else choice["text"]
        return text

    @property
    def error(self) -> Mapping[str, Any] | None:
        """`code` and `message` of an error; None for a result."""
        error: Mapping[str, Any] | None = self.line.get("error") or self.body.get("error")
        return error


class BatchClient:
    """Submits jobs, and reads what became of them. Nothing stays open between two calls."""

    def __init__(
        self, settings: OfflineSettings, models: Mapping[str, int] | None = None, aliases: Aliases | None = None
    ) -> None:
        """`models` and `aliases` are what items may name, each model with its tokens for prompt + output; by default
        only the settings' model_default, of any length. Raises SettingsError if the settings name no jobs topic."""
        if not settings.jobs_topic:
            raise SettingsError("BatchClient needs a jobs_topic in its settings")
        self._settings = settings
        self._rules = ItemRules.of(settings, models or {settings.model_default: INT32_MAX}, aliases)

    @classmethod
    def of_config(cls, path: str | os.PathLike[str], environment: Mapping[str, str] | None = None) -> Self:
        """A client for the Kafka and the engines of a sidecar's settings file. Raises SettingsError."""
        whole = load_settings(Path(path), environment or {})
        if whole.offline is None:
            raise SettingsError(f"{path} has no offline part, so there is no Kafka to speak to")
        return cls(whole.offline, {each.model: each.tokens_max for each in whole.engines}, whole.aliases)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    async def submit(
        self,
        items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        job: str | None = None,
        tenant: str = TENANT_DEFAULT,
        deadline: datetime | None = None,
        model: str | None = None,
    ) -> BatchJob:
        """Every item is acknowledged by Kafka, as the job of that name, or of one that follows from the items.

        An item is in the short form or a line of the OpenAI Batch format. All are checked before the first one is sent;
        the same items again are the same job. Raises ItemFileError, naming each item at fault by its number from 1,
        SettingsError if the name is taken by other items, SubmitError or LogError if Kafka fails: then submit again.
        """
        due = None if deadline is None else deadline.isoformat()
        stated = {"x-tenant": tenant, "x-deadline": due, "x-model": model}
        headers = {name: value for name, value in stated.items() if value is not None}
        with tempfile.TemporaryFile() as raw:
            await _write(raw, items)
            file = ItemFile(name="items", raw=raw, line_bytes_max=self._settings.item_bytes_max)
            longest = names_of({"x-job": job or "file-" + "0" * 16} | headers)
            limit = self._settings.message_bytes_max
            checked = await asyncio.to_thread(
                check, file, self._rules, None, longest, record_bytes_max=limit, allow_duplicates=False
            )
            if checked.faulty or not checked.items:
                raise ItemFileError("\n".join(checked.faults) or "there is no item")
            name, sent = job or f"file-{checked.digest}", Sent()
            await submit_job(self._settings, file, checked, {**headers, "x-job": name}, sent)
        if sent.error:
            raise SubmitError(f"{sent.error}; submit again: what is there is not sent twice")
        return BatchJob(name=name, tenant=tenant)

    async def results(self, job: BatchJob, *, follow: bool = True) -> AsyncIterator[BatchResult]:
        """What became of each item, once, in the order in which items ended; until all have, or up to now.

        An item that was retried meanwhile may come twice: first its error, then its result.
        """
        key = (job.tenant, job.name)
        manifest = await manifest_of(self._settings, key)
        items = manifest.items if manifest is not None else await count_items(self._settings, key)
        seen: dict[LinePlace, int] = {}
        lined = manifest is not None
        starts = starts_of(self._settings, manifest)
        async with aclosing(outcomes_of(self._settings, key, starts, follow=follow, lined=lined)) as arriving:
            async for outcomes, _ in arriving:
                for each in outcomes:
                    if each.retry > seen.get(each.place, -1):
                        seen[each.place] = each.retry
                        line = json.loads(each.value)
                        yield BatchResult(custom_id=line["custom_id"], ok=each.ok, line=line)
                if follow and len(seen) >= items:
                    return

    async def status(self, job: BatchJob) -> JobRow:
        """How far the job is."""
        return (await read_board(self._settings)).find(job.name, job.tenant)

    async def cancel(self, job: BatchJob) -> None:
        """What runs is stopped within a second, and what has not ended becomes an error `batch_cancelled`."""
        await order(self._settings, (job.tenant, job.name), JobField.STATE, JobState.CANCELLED.value)


async def _write(raw: IO[bytes], items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]) -> None:
    """Each item is a line of the file."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            raw.write(_line(item))
        return
    for item in items:
        raw.write(_line(item))


def _line(item: Mapping[str, Any]) -> bytes:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass") + b"\n"
