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
from aiokafka import AIOKafkaProducer

from dev.broker import LocalKafka
from sidecar.batch.board import JobRow, read_board
from sidecar.batch.topic_reader import TopicReader
from sidecar.cli import dlq, items, jobs, main, results, verify
from sidecar.client import BatchClient
from sidecar.core.request import Request
from sidecar.offline.lane import OfflineLane
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, RequestDeadError, TokenCall
from tests.fakes.log import FakeDriver, WordTokens, generated

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
TIMEOUT_S = 60.0
PARTITIONS = 3
TOKENIZER = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"
COMMANDS = (
    *(items.register_submit, jobs.register_jobs, jobs.register_job, results.register_results),
    *(dlq.register_dlq, verify.register_verify),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kafka() -> AsyncIterator[LocalKafka]:
    """One broker for this module; each test has topics and a group of its own."""
    async with LocalKafka() as cluster:
        yield cluster


class Team:
    """A data team with a settings file: it knows commands and files, and nothing else."""

    def __init__(self, kafka: LocalKafka, directory: Path, offline: dict[str, Any]) -> None:
        self.kafka = kafka
        self.directory = directory
        self.file = directory / "sidecar.yaml"
        self._offline = offline
        self.use()

    def use(self, **changed: Any) -> None:
        """The settings file says this, too."""
        self._offline |= changed
        engine = {"name": "e0", "model": "tensorrt_llm", "target": "127.0.0.1:1", "slots": 8, "tokens_max": 2048}
        document = {"tokenizer": str(TOKENIZER), "engines": [engine], "offline": self._offline}
        self.file.write_text(yaml.safe_dump(document))
        self.settings = OfflineSettings(**self._offline)

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
    return Team(kafka, directory, offline)


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
    """A file of so many items."""
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


async def test_a_dead_letter_that_is_sent_again_gives_its_result_in_its_place(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    lab = await team(kafka, tmp_path, "again")
    (tmp_path / "in.jsonl").write_text(prompts(20))
    mended = False

    async def answer(request: Request, _: TokenCall) -> Generated:
        offset = int(request.id.rpartition("/")[2].partition("#")[0])
        if not mended and offset % 2:
            raise RequestDeadError("the engine broke", 3)
        return generated(7)

    assert await lab.call("submit", lab.path("in.jsonl"), "--job", "j") == 0
    async with running(lab.settings, answer):
        row = await lab.row_when("j", lambda row: row.over)
        failed = row.failed
        assert 0 < failed < 20
        assert await lab.call("results", "--job", "j", "-o", lab.path("out.jsonl")) == 0
        assert len(lab.lines("out.errors.jsonl")) == failed
        assert await lab.call("dlq", "list", "--count") == 0
        mended = True
        for _ in range(2):  # the second time there is nothing left to send
            assert await lab.call("dlq", "retry", "--job", "j", "--reason", "failed") == 0
        row = await lab.row_when("j", lambda row: row.done == 20)
    assert (row.status, row.failed, row.left, row.dead) == ("completed", 0, 0, failed)
    assert await lab.call("results", "--job", "j", "-o", lab.path("out.jsonl")) == 0
    assert [each["custom_id"] for each in lab.lines("out.jsonl")] == [f"id-{number}" for number in range(20)]
    assert lab.lines("out.errors.jsonl") == []
    assert await lab.call("verify", "--job", "j") == 0


async def test_another_client_finds_every_planted_fault(
    kafka: LocalKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = await team(kafka, tmp_path, "faults")
    (tmp_path / "in.jsonl").write_text(prompts(60))
    assert await lab.call("submit", lab.path("in.jsonl"), "--job", "j") == 0
    async with running(lab.settings):
        await lab.row_when("j", lambda row: row.over)
    assert await lab.call("verify", "--job", "j", "--json") == 0
    sound = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (sound["items"], sound["results"], sound["faults"]) == (60, 60, [])
    assert sound["digest"] == (await lab.row("j")).receipt()["digest"]
    # A results topic as somebody would have it who lost one record, doubled one, and changed one.
    bad = await planted(lab, tmp_path)
    assert await lab.call("verify", "--job", "j", "--json") == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    named = {tuple(each["source"]): each["fault"] for each in found["faults"] if each["source"] is not None}
    assert {source: fault.split(":")[0] for source, fault in named.items()} == {
        bad["lost"]: "no result and no dead letter",
        bad["doubled"]: "2 outcomes",
        bad["changed"]: "the result is not what was written",
    }
    assert any(each["fault"].startswith("digest: ") for each in found["faults"])


async def planted(lab: Team, directory: Path) -> dict[str, tuple[int, int]]:
    """The settings name a copy of the results topic with three faults; where they are."""
    async with TopicReader(lab.settings, {lab.settings.results_topic: {}}) as reader:
        there = [record async for records in reader.rest() for record in records]
    topic = f"{lab.settings.results_topic}.bad"
    file = directory / "bad.yaml"
    file.write_text(yaml.safe_dump({"partitions": PARTITIONS, "topics": {topic: {}}}))
    await lab.kafka.create_topics(file=file)
    lost, doubled, changed = there[3], there[11], there[17]
    async with AIOKafkaProducer(bootstrap_servers=lab.settings.bootstrap_servers) as producer:
        for record in [*there, doubled]:
            if record is lost:
                continue
            value = record.value if record is not changed else (record.value or b"").replace(b"id-", b"ID-")
            await producer.send(topic, value, key=record.key, partition=record.partition, headers=list(record.headers))
    lab.use(results_topic=topic)
    names = {"lost": lost, "doubled": doubled, "changed": changed}
    return {name: (each.partition, int(each.header("x-source-offset") or "")) for name, each in names.items()}


async def test_a_program_sends_many_prompts_and_iterates_over_what_became_of_them(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    lab = await team(kafka, tmp_path, "program")
    async with BatchClient.of_config(lab.file) as client, running(lab.settings):
        asked = ({"id": str(number), "prompt": f"item {number}", "max_tokens": 4} for number in range(300))
        job = await client.submit(asked, job="program")
        answers = {result.custom_id: result.text async for result in client.results(job)}
        assert answers.keys() == {str(number) for number in range(300)}
        assert (await client.status(job)).items == 300
