"""`sidecar status` and `sidecar doctor` against the real Triton."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import yaml

from sidecar.local.server import Server
from sidecar.local.triton import Triton
from tests.integration.conftest import sidecar_settings

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def run(*arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_status_shows_the_slots_of_a_running_sidecar(sidecar: Server) -> None:
    code, output = await run("status", "--http", sidecar.http)
    assert code == 0
    assert "serving" in output
    assert "[........] of 8 slots" in output


async def test_status_of_nothing_is_a_failure_in_one_line() -> None:
    code, output = await run("status", "--http", "127.0.0.1:1")
    assert code == 1
    assert output.startswith("sidecar: no sidecar answers on http://127.0.0.1:1")


async def test_the_doctor_finds_engine_models_and_gauges(triton: Triton, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(sidecar_settings(triton)))
    code, output = await run("doctor", "--config", str(file))
    assert code == 0, output
    verdicts = [line.split()[0] for line in output.splitlines()]
    assert verdicts == ["ok"] * 5


async def test_the_doctor_fails_where_no_engine_and_no_kafka_answers(triton: Triton, tmp_path: Path) -> None:
    settings = sidecar_settings(triton, offline={"bootstrap_servers": "127.0.0.1:1"})
    settings["engines"][0]["target"] = "127.0.0.1:1"
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(settings))
    code, output = await run("doctor", "--config", str(file))
    assert code == 1
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 2, output
