"""One real Triton for the whole suite, and one sidecar in front of it. Tests that kill something start their own.

All of it lives in the session's event loop: mark such tests with `pytest.mark.asyncio(loop_scope="session")`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dev.broker import free_ports
from dev.server import SidecarProcess, serving
from dev.triton import Triton, TritonSettings, running

SLOTS = 8
PARAMETERS = {"preset": "tiny", "profile": "8b-a100", "seed": "1"}  # paced, so that there is time to cancel something


def sidecar_settings(triton: Triton, **more: Any) -> dict[str, Any]:
    """The settings of a sidecar in front of this Triton, on free ports."""
    listen, http = free_ports(2)
    engine = {"name": "e0", "target": triton.target, "metrics_url": triton.metrics_url, "slots": SLOTS}
    return {
        "listen": f"127.0.0.1:{listen}",
        "http": f"127.0.0.1:{http}",
        "tokenizer": str(triton.tokenizer),
        "engines": [engine],
        **more,
    }


async def status_when(
    sidecar: SidecarProcess, holds: Callable[[dict[str, Any]], bool], timeout_s: float = 60
) -> dict[str, Any]:
    """The first status for which `holds`: asked again as soon as it is answered."""
    async with asyncio.timeout(timeout_s):
        while not holds(status := await sidecar.status()):
            pass
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
