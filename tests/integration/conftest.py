"""One real Triton, one sidecar in front of it and one real Kafka for all tests that kill none of them.

Processes that share the tests have one each. They live in the session's event loop: mark such tests with
`pytest.mark.asyncio(loop_scope="session")`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401 - else its plugin imports it after the tests, where ast.parse of CPython 3.11.7 failed
import pytest
import pytest_asyncio

from dev import deployment
from dev.broker import LocalKafka
from dev.server import SidecarProcess, serving
from dev.triton import Triton, TritonSettings, running

SLOTS = 8
PARAMETERS = {"preset": "tiny", "profile": "8b-a100", "seed": "1"}  # paced, so that there is time to cancel something
LOOK_S = 0.02  # between two looks at a state: whoever waits leaves the processor to what is waited for


def sidecar_settings(triton: Triton, **more: Any) -> dict[str, Any]:
    """The settings of a sidecar in front of this Triton, on free ports."""
    return deployment.sidecar_settings(triton, {}, **more)


async def status_when(
    sidecar: SidecarProcess, holds: Callable[[dict[str, Any]], bool], timeout_s: float = 60
) -> dict[str, Any]:
    """Return the first status for which `holds`."""
    async with asyncio.timeout(timeout_s):
        while not holds(status := await sidecar.status()):  # noqa: ASYNC110 - another process sets no event of ours
            await asyncio.sleep(LOOK_S)
    return status


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Triton]:
    """The suite's Triton: engine and text models, paced like an 8B model on an A100."""
    settings = TritonSettings(slots=SLOTS, parameters=PARAMETERS)
    async with running(Path(tmp_path_factory.mktemp("triton")), settings) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sidecar(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SidecarProcess]:
    """The suite's sidecar, without Kafka, as a process of its own."""
    async with serving(Path(tmp_path_factory.mktemp("sidecar")), sidecar_settings(triton)) as server:
        yield server
        await server.drain()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kafka() -> AsyncIterator[LocalKafka]:
    """The suite's broker; each test has topics and a group of its own."""
    async with LocalKafka() as cluster:
        yield cluster
