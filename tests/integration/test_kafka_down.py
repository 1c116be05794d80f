"""Callers notice nothing of Kafka: not that it is missing at the start, that it goes away, that it comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import aio as aio_client

from dev.broker import LocalKafka
from dev.server import SidecarProcess, serving
from dev.triton import Triton
from sidecar.offline.submit import submit
from sidecar.settings.offline import OfflineSettings
from tests.integration.conftest import sidecar_settings, status_when
from tests.integration.test_tritonclient import text_inputs

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


async def online_answers(sidecar: SidecarProcess) -> bool:
    async with aio_client.InferenceServerClient(sidecar.listen) as client:
        result = await client.infer(
            "ensemble", text_inputs("the train to the coast", 4, stream=False), client_timeout=20
        )
    return bool(result.as_numpy("text_output")[0])


async def offline_when(sidecar: SidecarProcess, done: int, state: str) -> dict[str, Any]:
    """The lane's part of the status once so many items are committed and the state begins like this."""

    def holds(status: dict[str, Any]) -> bool:
        lane = status["offline"]
        return bool(sum(each["count"] for each in lane["stats"]["items"]) >= done and lane["state"].startswith(state))

    status: dict[str, Any] = (await status_when(sidecar, holds))["offline"]
    return status


async def test_callers_are_served_whatever_kafka_does(triton: Triton, tmp_path: Path) -> None:
    items = [json.dumps({"id": str(number), "prompt": "a train", "max_tokens": 4}).encode() for number in range(10)]
    kafka = LocalKafka()  # its port is known, nothing listens yet
    fields = {"bootstrap_servers": kafka.bootstrap_servers, "first_start": "earliest", "request_timeout_s": 3.0}
    offline = OfflineSettings(**fields)  # type: ignore[arg-type]
    async with serving(tmp_path, sidecar_settings(triton, offline=fields)) as sidecar:
        assert await online_answers(sidecar)
        assert (await offline_when(sidecar, 0, "waiting: no broker answers"))["partitions"] == []
        async with kafka:
            await kafka.create_topics(2)
            await submit(offline, items, {})
            await offline_when(sidecar, 10, "running")
            await kafka.stop()
            assert await online_answers(sidecar)
            await kafka.start()
            await kafka.wait_ready()
            await submit(offline, items, {})
            await offline_when(sidecar, 20, "running")
            assert await online_answers(sidecar)
            await sidecar.drain()
