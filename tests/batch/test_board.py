"""What the topics say of jobs, summed up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.batch import board as module
from sidecar.batch.board import read_board
from sidecar.batch.manifest import Manifest
from sidecar.core.errors import SettingsError
from sidecar.offline.job_orders import JobField, encoded_key
from sidecar.offline.job_progress import JobTally, Outlook, encoded
from sidecar.settings.offline import OfflineSettings
from tests.fakes.topics import JOBS_SETTINGS, FakeTopics

NIGHTLY = ("lab", "nightly")


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> FakeTopics:
    found = FakeTopics()
    monkeypatch.setattr(module, "TopicReader", found.reader)
    return found


def manifest(items: int, *, sent: bool = True, job: tuple[str, str] = NIGHTLY, **more: Any) -> Manifest:
    return Manifest(tenant=job[0], job=job[1], items=items, digest="d", created="2026-11-26", sent=sent, **more)


def submitted(topics: FakeTopics, told: Manifest) -> None:
    topics.add("inference.jobs", told.encoded(), key=encoded_key(told.key, JobField.MANIFEST))


def order(topics: FakeTopics, field: JobField, value: object) -> None:
    topics.add("inference.jobs", json.dumps({"value": value}).encode(), key=encoded_key(NIGHTLY, field))


def progress(topics: FakeTopics, partition: int, tally: JobTally, waiting: int = 0, **outlook: Any) -> None:
    key, value = encoded(NIGHTLY, partition, tally, waiting, Outlook(**outlook))
    topics.add("inference.progress", value, key=key, partition=partition, timestamp_ms=10_000 * (partition + 1))


async def test_the_last_word_of_each_partition_counts_and_partitions_add_up(topics: FakeTopics) -> None:
    submitted(topics, manifest(20))
    progress(topics, 0, JobTally(done=1, dead=1, digest=9))
    progress(topics, 0, JobTally(done=5, dead=2, cancelled=1, prompt_tokens=10, output_tokens=20, digest=7))
    progress(topics, 1, JobTally(done=3, dead=0, prompt_tokens=1, output_tokens=2, digest=(1 << 128) - 3))
    row = (await read_board(JOBS_SETTINGS)).find("nightly", None)
    assert (row.done, row.failed, row.cancelled, row.left) == (8, 1, 1, 10)
    assert (row.prompt_tokens, row.output_tokens, row.digest) == (11, 22, 4)
    assert (row.status, row.told_ms) == ("running", 20_000)
    assert row.receipt()["digest"] == f"{4:032x}"


async def test_a_job_ends_when_its_last_partition_does(topics: FakeTopics) -> None:
    submitted(topics, manifest(20))
    progress(topics, 0, JobTally(done=1), 9, eta_p50_s=30.0, eta_p90_s=60.0)
    progress(topics, 1, JobTally(done=1), 9, eta_p50_s=25.0, eta_p90_s=40.0)
    row = (await read_board(JOBS_SETTINGS)).row(NIGHTLY)
    assert (row.end_p50_ms, row.end_p90_ms) == (45_000, 70_000)
    assert row.document()["end_p50"] == "1970-01-01T00:00:45+00:00"


@pytest.mark.parametrize(
    ("sent", "state", "tally", "status"),
    [
        (False, None, JobTally(), "sending"),
        (True, None, JobTally(done=1), "running"),
        (True, "paused", JobTally(done=1), "paused"),
        (True, "cancelled", JobTally(done=1), "cancelling"),
        (True, "cancelled", JobTally(done=1, dead=3, cancelled=3), "cancelled"),
        (True, "cancelled", JobTally(done=4), "completed"),  # it came too late
        (True, None, JobTally(done=1, dead=3), "completed"),
        (False, None, JobTally(done=4), "sending"),
    ],
)
async def test_the_status_says_what_is_ordered_or_how_far_it_is(
    topics: FakeTopics, sent: bool, state: str | None, tally: JobTally, status: str
) -> None:
    submitted(topics, manifest(4, sent=sent))
    if state is not None:
        order(topics, JobField.STATE, state)
    progress(topics, 0, tally)
    assert (await read_board(JOBS_SETTINGS)).row(NIGHTLY).status == status


async def test_the_ordered_deadline_stands_before_the_submitted_one(topics: FakeTopics) -> None:
    submitted(topics, manifest(4, deadline="2030-01-01T00:00:00Z"))
    order(topics, JobField.DEADLINE, "2031-01-01T00:00:00Z")
    assert (await read_board(JOBS_SETTINGS)).row(NIGHTLY).deadline == "2031-01-01T00:00:00Z"
    order(topics, JobField.DEADLINE, None)
    assert (await read_board(JOBS_SETTINGS)).row(NIGHTLY).deadline == "2030-01-01T00:00:00Z"


async def test_a_job_of_another_producer_is_there_without_its_total(topics: FakeTopics) -> None:
    progress(topics, 0, JobTally(done=2))
    row = (await read_board(JOBS_SETTINGS)).find("nightly", "lab")
    assert (row.items, row.left, row.over, row.status) == (None, None, False, "running")


async def test_a_name_that_two_tenants_use_has_to_be_said_with_its_tenant(topics: FakeTopics) -> None:
    submitted(topics, manifest(4))
    submitted(topics, manifest(4, job=("acme", "nightly")))
    found = await read_board(JOBS_SETTINGS)
    with pytest.raises(SettingsError, match=r"several tenants have a job 'nightly'.*acme, lab"):
        found.find("nightly", None)
    assert found.find("nightly", "acme").tenant == "acme"
    with pytest.raises(SettingsError, match="there is no job 'weekly' of tenant 'lab'"):
        found.find("weekly", "lab")


async def test_what_others_wrote_is_left_out(topics: FakeTopics) -> None:
    for topic in ("inference.jobs", "inference.progress"):
        for key in (None, b"x", b'["lab","nightly","state"]', b'["lab","nightly",0]', b"[]"):
            for value in (None, b"x", b"[]", b'{"value": {}}'):
                topics.add(topic, value, key=key)
    row = (await read_board(JOBS_SETTINGS)).rows
    assert {key: (each.status, each.done) for key, each in row.items()} == {NIGHTLY: ("running", 0)}


async def test_without_a_jobs_topic_it_is_said_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"set offline\.jobs_topic"):
        await read_board(OfflineSettings())
