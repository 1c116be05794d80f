"""The data team's page, command by command, against the real Kafka, sidecar and Triton; and a kill in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from openai.types import Completion

from dev.broker import LocalKafka
from dev.server import SidecarProcess, serving
from dev.triton import Triton
from sidecar.batch.board import read_board
from sidecar.settings.offline import OfflineSettings
from tests.integration.conftest import sidecar_settings

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/data-teams.md"
TIMEOUT_S = 120
COMPACT = {"cleanup.policy": "compact"}
TOPICS: dict[str, dict[str, str]] = {
    "inference.requests": {},
    "inference.results": {},
    "inference.requests.dlq": {},
    "inference.progress": COMPACT,
    "inference.jobs": COMPACT,
}


class Desk:
    """A directory with a settings file and prompts, in which commands are called."""

    def __init__(self, directory: Path, kafka: LocalKafka, triton: Triton) -> None:
        offline = {
            "bootstrap_servers": kafka.bootstrap_servers,
            "progress_topic": "inference.progress",
            "jobs_topic": "inference.jobs",
            "first_start": "earliest",
            "instance_id": "desk",
            "tick_s": 0.05,
        }
        self.directory = directory
        self.kafka = kafka
        self.settings = sidecar_settings(triton, offline=offline)
        self.offline = OfflineSettings(**offline)  # type: ignore[arg-type]
        self.config = directory / "sidecar.yaml"
        self.config.write_text(yaml.safe_dump(self.settings))

    async def call(self, *command: str) -> tuple[int, str]:
        """The exit code of a command, and what it said on stdout."""
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, cwd=self.directory, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        async with asyncio.timeout(TIMEOUT_S):
            told, _ = await process.communicate()
        return process.returncode or 0, told.decode()

    async def sidecar(self, *arguments: str) -> tuple[int, str]:
        """The same of `sidecar`."""
        return await self.call(sys.executable, "-m", "sidecar", *arguments)

    def prompts(self, name: str, count: int, **more: Any) -> None:
        """A file of so many items."""
        lines = [{"id": f"{name}-{n}", "prompt": f"Is review {n} good?", "max_tokens": 8, **more} for n in range(count)]
        (self.directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines of a file."""
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]


@pytest_asyncio.fixture(loop_scope="session")
async def desk(triton: Triton, tmp_path: Path) -> AsyncIterator[Desk]:
    file = tmp_path / "topics.yaml"
    file.write_text(yaml.safe_dump({"partitions": 3, "topics": TOPICS}))
    async with LocalKafka() as kafka:
        await kafka.create_topics(file=file)
        yield Desk(tmp_path, kafka, triton)


def commands() -> list[list[str]]:
    """Every command of the page's shell blocks, in their order."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


async def test_every_command_of_the_page_does_what_the_page_says(desk: Desk) -> None:
    desk.prompts("reviews.jsonl", 30)
    desk.prompts("long.jsonl", 3000, prompt="<|offline|>how far is the sea", max_tokens=200)
    rows = "".join(f'r-{n},"Is review {n} good, or not?"\n' for n in range(20))
    (desk.directory / "reviews.csv").write_text("review,text\n" + rows)
    told: dict[str, str] = {}
    async with serving(desk.directory, desk.settings) as server:
        assert len(commands()) > 10
        for program, *arguments in commands():
            assert program == "sidecar"
            code, said = await desk.sidecar(*arguments)
            assert code == 0, (arguments, said)
            told[" ".join(arguments[:3])] = said
        await examples(desk)
        await server.drain()
    assert [each["custom_id"] for each in desk.lines("out.jsonl")] == [f"reviews.jsonl-{n}" for n in range(30)]
    for each in desk.lines("out.jsonl"):
        Completion.model_validate(each["response"]["body"])
    assert "job table is over: 20 done, 0 failed, 0 cancelled" in told["submit reviews.csv --config"]
    assert "reviews" in told["jobs --config sidecar.yaml"]
    assert re.search(r"job long is over: [\d,]+ done, 0 failed, [1-9][\d,]* cancelled", told["job cancel long"])
    assert "as the receipt says" in told["verify --job reviews"]


async def examples(desk: Desk) -> None:
    """The programs in examples/ run as they stand."""
    code, said = await desk.call(sys.executable, str(ROOT / "examples/batch_client.py"), str(desk.config))
    assert (code, said.count("\n")) == (0, 21)
    code, said = await desk.call(sys.executable, str(ROOT / "examples/producer.py"), desk.offline.bootstrap_servers)
    assert code == 0
    assert "20 items sent" in said
    where = ("--config", "sidecar.yaml", "--follow")
    code, said = await desk.sidecar("results", "--job", "reviews-by-hand", "--tenant", "labels", "-o", "hand", *where)
    assert (code, len(desk.lines("hand"))) == (0, 20)


async def test_a_sidecar_and_a_broker_that_are_killed_in_the_middle_cost_a_file_nothing(desk: Desk) -> None:
    desk.prompts("in.jsonl", 400)
    code, _ = await desk.sidecar("submit", "in.jsonl", "--job", "j", "--config", "sidecar.yaml")
    assert code == 0
    reading = asyncio.create_task(
        desk.sidecar("results", "--job", "j", "-o", "out.jsonl", "--follow", "--config", "sidecar.yaml"), name="results"
    )
    done = 0
    for killed in range(3):
        server = await SidecarProcess.start(desk.directory, desk.settings)
        try:
            done = await progressed(desk, done, over=killed == 2)
        finally:
            os.kill(server.pid, signal.SIGKILL)
            await server.kill()
        if killed == 1:
            await desk.kafka.stop(how=signal.SIGKILL)
            await desk.kafka.start()
            await desk.kafka.wait_ready()
    assert (await reading)[0] == 0
    assert [each["custom_id"] for each in desk.lines("out.jsonl")] == [f"in.jsonl-{n}" for n in range(400)]
    code, said = await desk.sidecar("verify", "--job", "j", "--config", "sidecar.yaml", "--json")
    found = json.loads(said)
    assert (code, found["items"], found["results"], found["faults"]) == (0, 400, 400, [])


async def progressed(desk: Desk, before: int, *, over: bool) -> int:
    """How many items are done, once there are more than before, or all."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            row = (await read_board(desk.offline)).row(("default", "j"))
            if row.over or (not over and row.done > before):
                return row.done
