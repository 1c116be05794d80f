"""A file becomes a job: its manifest stands on the jobs topic before its first item, and says so after its last.

So the same file twice is one job, and a sending that broke off goes on with the lines that are not there yet: they are
found by the line that each item says, not by counting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sidecar.batch.board import read_board, write
from sidecar.batch.manifest import Manifest
from sidecar.batch.topic_reader import TopicReader, ends
from sidecar.core.errors import SettingsError
from sidecar.offline.item import TENANT_DEFAULT
from sidecar.offline.item_file import Checked, ItemLines, names_of
from sidecar.offline.job_orders import JobField, JobState, encoded_key
from sidecar.offline.job_progress import JobKey, job_of
from sidecar.offline.submit import LINE, Sent, send_file
from sidecar.settings.offline import OfflineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What came of a submission. `before` items were on the topic already, from an earlier call."""

    manifest: Manifest
    before: int

    @property
    def again(self) -> bool:
        """True if all of it was there before."""
        return self.before >= self.manifest.items


async def submit_job(
    settings: OfflineSettings,
    file: ItemLines,
    checked: Checked,
    headers: dict[str, str],
    sent: Sent,
    on_begin: Callable[[Submission], None] = lambda _: None,
) -> Submission:
    """Every item of the file stands on the requests topic once, as the job that `headers` name, or `sent.error` says
    why not: then the next call goes on.

    Raises SettingsError if a job of this name holds other items or was cancelled, LogError and SubmitError as
    `send_file` does.
    """
    key = (headers.get("x-tenant", TENANT_DEFAULT), headers["x-job"])
    row = (await read_board(settings)).rows.get(key)
    if row is not None and row.state is JobState.CANCELLED:
        raise SettingsError(f"job {key[1]!r} was cancelled: name another one with --job, or `sidecar job resume` it")
    manifest = None if row is None else row.manifest
    if manifest is not None and manifest.digest != checked.digest:
        raise SettingsError(
            f"job {key[1]!r} of tenant {key[0]!r} has other items already, {manifest.items} of them: name another job"
        )
    if manifest is not None and manifest.sent:
        return Submission(manifest=manifest, before=manifest.items)
    there = bytearray(0)
    if manifest is None:
        manifest = await _begun(settings, file, checked, headers, key)
    else:
        there = await _lines_there(settings, manifest, checked.last_line)
    submission = Submission(manifest=manifest, before=sum(there))
    on_begin(submission)
    await send_file(
        settings,
        file,
        checked.digest,
        names_of(headers),
        first_line=1,
        sent=sent,
        wanted=lambda line: not there or not there[line],
    )
    if not sent.error:
        await write(settings, [(encoded_key(key, JobField.MANIFEST), replace(manifest, sent=True).encoded())])
    return submission


async def _begun(
    settings: OfflineSettings, file: ItemLines, checked: Checked, headers: dict[str, str], key: JobKey
) -> Manifest:
    """The manifest of a job of which nothing was sent yet, which stands on the jobs topic."""
    topics = (settings.requests_topic, settings.results_topic, settings.dead_letter_topic)
    manifest = Manifest(
        tenant=key[0],
        job=key[1],
        items=checked.items,
        digest=checked.digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sent=False,
        source=Path(file.name).name,
        model=headers.get("x-model"),
        deadline=headers.get("x-deadline"),
        starts=await ends(settings, *topics),
    )
    await write(settings, [(encoded_key(key, JobField.MANIFEST), manifest.encoded())])
    return manifest


async def _lines_there(settings: OfflineSettings, manifest: Manifest, last_line: int) -> bytearray:
    """1 at each line whose item stands on the requests topic."""
    there = bytearray(last_line + 1)
    starts = {settings.requests_topic: manifest.starts.get(settings.requests_topic, {})}
    async with TopicReader(settings, starts) as reader:
        async for records in reader.rest():
            for record in records:
                if job_of(record) == manifest.key and (line := (record.header(LINE) or "")).isdecimal():
                    there[min(int(line), last_line)] = 1
    return there
