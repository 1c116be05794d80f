"""One sidecar of the harness over several lives: its counters add up, and a process that will not end is killed."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from dev.chaos_sidecars import ChaosSidecar

WORKER = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv[1] else signal.SIG_DFL)
print(json.dumps({"executions": 3, "reasons": ["rights"], "seed": sys.argv[3]}), flush=True)
while True: signal.pause()
"""


@pytest.fixture
def sidecar(tmp_path: Path) -> ChaosSidecar:
    """One whose worker tells its counters once and then waits for a signal."""
    package = tmp_path / "dev"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "chaos_worker.py").write_text(WORKER)
    return ChaosSidecar("one", tmp_path, {"kind": "meek"}, seed=40)


async def told(sidecar: ChaosSidecar, executions: int) -> None:
    """Wait until the lives so far have told so many executions."""
    async with asyncio.timeout(60):
        while sidecar.count("executions") < executions:  # noqa: ASYNC110 - a counter of another process
            await asyncio.sleep(0.01)


async def test_counters_of_all_lives_add_up_and_each_life_has_its_seed(sidecar: ChaosSidecar) -> None:
    for life in (1, 2):
        await sidecar.start()
        await told(sidecar, 3 * life)
        await sidecar.end(signal.SIGKILL)
    assert sidecar.count("executions") == 6
    assert [each["seed"] for each in sidecar.lives] == ["40", "41"]
    assert sidecar.reasons == ["rights"]


async def test_a_process_that_ignores_the_signal_is_killed_after_the_time(sidecar: ChaosSidecar) -> None:
    sidecar.settings["kind"] = "stubborn"
    await sidecar.start()
    await told(sidecar, 3)
    await sidecar.end(signal.SIGTERM, timeout_s=0.05)
    assert sidecar.process is not None
    assert sidecar.process.returncode == -signal.SIGKILL


async def test_a_signal_to_one_that_is_gone_does_nothing(sidecar: ChaosSidecar) -> None:
    sidecar.signal(signal.SIGSTOP)
    await sidecar.end(signal.SIGKILL)
    assert (sidecar.process, sidecar.reasons, sidecar.count("executions")) == (None, [], 0)
