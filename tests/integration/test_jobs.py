"""A file goes in and comes out through the real Kafka, before an engine that is only fast; and a hand on the job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401 - else its plugin imports it after the tests, where ast.parse of CPython 3.11.7 failed
import pytest
import pytest_asyncio
import yaml

from dev.broker import LocalKafka
from sidecar.batch.board import JobRow, read_board
from sidecar.cli import items, jobs, main, results
from sidecar.core.request import Request
from sidecar.offline.lane import OfflineLane
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeDriver, WordTokens, generated

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
TIMEOUT_S = 60.0
PARTITIONS = 3
TOKENIZER = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"
COMMANDS = (items.register_submit, jobs.register_jobs, jobs.register_job, results.register_results)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kafka() -> AsyncIterator[LocalKafka]:
    """One broker for this module; each test has topics and a group of its own."""
    async with LocalKafka() as cluster:
        yield cluster


class Team:
    """A data team with a settings file: it knows commands and files, and nothing else."""

    def __init__(self, directory: Path, settings: OfflineSettings, file: Path) -> None:
        self.directory = directory
        self.settings = settings
        self.file = file

    async def call(self, *arguments: str) -> int:
        """The exit code of this command."""
        told = [*arguments, "--config", str(self.file)]
        return await asyncio.to_thread(main.main, told, {}, COMMANDS)

    async def row(self, job: str) -> JobRow:
        """The job as the topics have it."""
        return (await read_board(self.settings)).row(("default", job))

    async def row_when(self, job: str, holds: Callable[[JobRow], bool]) -> JobRow:
        """The job as soon as `holds`."""
        async with asyncio.timeout(TIMEOUT_S):
            while not holds(row := await self.row(job)):
                pass
        return row

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines of a file."""
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]

    def path(self, name: str) -> str:
        """The path of a file of the team's."""
        return str(self.directory / name)


async def team(kafka: LocalKafka, directory: Path, name: str) -> Team:
    """Fresh topics, and a settings file that names them."""
    topics: dict[str, dict[str, Any]] = {f"{name}.{kind}": {} for kind in ("requests", "results", "dlq")}
    topics |= {f"{name}.{kind}": {"cleanup.policy": "compact"} for kind in ("progress", "jobs")}
    file = directory / "topics.yaml"
    file.write_text(yaml.safe_dump({"partitions": PARTITIONS, "topics": topics}))
    await kafka.create_topics(file=file)
    offline: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "requests_topic": f"{name}.requests",
        "results_topic": f"{name}.results",
        "dead_letter_topic": f"{name}.dlq",
        "progress_topic": f"{name}.progress",
        "jobs_topic": f"{name}.jobs",
        "group": name,
        "first_start": "earliest",
        "tick_s": 0.05,
    }
    config = directory / "sidecar.yaml"
    engine = {"name": "e0", "model": "tensorrt_llm", "target": "127.0.0.1:1", "slots": 8, "tokens_max": 2048}
    config.write_text(yaml.safe_dump({"tokenizer": str(TOKENIZER), "engines": [engine], "offline": offline}))
    return Team(directory, OfflineSettings(**offline), config)


@asynccontextmanager
async def running(
    settings: OfflineSettings, answer: Callable[[Request, TokenCall], Any] | None = None
) -> AsyncIterator[OfflineLane]:
    lane = OfflineLane(settings, FakeDriver(answer), WordTokens(), {"tensorrt_llm": 2048}, seed=1)
    task = asyncio.create_task(lane.run(), name="lane")
    try:
        yield lane
    finally:
        await lane.drain(0.0)
        await task


def prompts(count: int) -> str:
    """A file of so many items, one of which no engine could serve."""
    lines = [{"id": f"id-{number}", "prompt": f"item {number}", "max_tokens": 4} for number in range(count)]
    return "".join(json.dumps(line) + "\n" for line in lines)


async def test_a_file_goes_in_and_comes_out_complete_and_in_its_order(kafka: LocalKafka, tmp_path: Path) -> None:
    lab = await team(kafka, tmp_path, "whole")
    (tmp_path / "in.jsonl").write_text(prompts(500))
    assert await lab.call("submit", lab.path("in.jsonl"), "--job", "j") == 0
    assert await lab.call("submit", lab.path("in.jsonl"), "--job", "j") == 0  # the same file: nothing is sent
    assert await lab.call("results", "--job", "j", "-o", lab.path("out.jsonl")) == results.UNFINISHED
    async with running(lab.settings):
        assert await lab.call("results", "--job", "j", "-o", lab.path("out.jsonl"), "--follow") == 0
    assert [each["custom_id"] for each in lab.lines("out.jsonl")] == [f"id-{number}" for number in range(500)]
    assert lab.lines("out.errors.jsonl") == []
    row = await lab.row("j")
    assert (row.status, row.done, row.failed, row.left) == ("completed", 500, 0, 0)
    assert not (tmp_path / "out.jsonl.sidecar").exists()


async def test_a_cancelled_job_stops_within_a_second_and_keeps_what_it_had(kafka: LocalKafka, tmp_path: Path) -> None:
    lab = await team(kafka, tmp_path, "cancel")
    (tmp_path / "in.jsonl").write_text(prompts(300))
    begun: set[str] = set()

    async def answer(request: Request, _: TokenCall) -> Generated:
        begun.add(request.id)
        if len(begun) > 100:
            await asyncio.Event().wait()
        return generated(7)

    assert await lab.call("submit", lab.path("in.jsonl"), "--job", "j") == 0
    async with running(lab.settings, answer) as lane:
        await lab.row_when("j", lambda row: row.done == 100)
        assert await lab.call("job", "cancel", "j") == 0
        async with asyncio.timeout(5):
            row = await lab.row_when("j", lambda row: row.over)
        assert lane.stats.items["cancelled", "cancelled"] == 200
    assert (row.status, row.done, row.cancelled, row.failed) == ("cancelled", 100, 200, 0)
    assert await lab.call("results", "--job", "j", "-o", lab.path("out.jsonl"), "--errors", lab.path("err.jsonl")) == 0
    assert len(lab.lines("out.jsonl")) == 100
    codes = {(each["response"], each["error"]["code"]) for each in lab.lines("err.jsonl")}
    assert codes == {(None, "batch_cancelled")}
    assert await lab.call("submit", lab.path("in.jsonl"), "--job", "j") == 2  # cancelled: name another job


async def test_a_paused_job_lets_others_run_and_goes_on(kafka: LocalKafka, tmp_path: Path) -> None:
    lab = await team(kafka, tmp_path, "pause")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(prompts(60))
        assert await lab.call("submit", lab.path(f"{name}.jsonl"), "--job", name) == 0
    assert await lab.call("job", "pause", "a") == 0
    async with running(lab.settings):
        await lab.row_when("b", lambda row: row.over)
        assert (await lab.row("a")).done == 0
        assert (await lab.row("a")).status == "paused"
        assert await lab.call("job", "resume", "a") == 0
        await lab.row_when("a", lambda row: row.over)
