"""The engine dies in the middle of a stream: callers hear it at once, and are served again after the restart."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tritonclient.grpc import aio as aio_client
from tritonclient.utils import InferenceServerException

from dev.server import serving
from dev.triton import TritonSettings, running
from tests.integration.conftest import PARAMETERS, SLOTS, sidecar_settings, status_when
from tests.integration.test_tritonclient import END_OF_PROMPT, LONG, ids_inputs, requests_of

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]


async def test_a_killed_engine_is_unavailable_and_then_serves_again(tmp_path: Path) -> None:
    async with (
        running(tmp_path, TritonSettings(slots=SLOTS, parameters=PARAMETERS)) as triton,
        serving(tmp_path, sidecar_settings(triton)) as sidecar,
        aio_client.InferenceServerClient(sidecar.listen) as client,
    ):
        request = {"model_name": "tensorrt_llm", "inputs": ids_inputs([5, END_OF_PROMPT], LONG, min_tokens=LONG)}
        errors = []
        async for _, error in client.stream_infer(requests_of(request)):
            if error is not None:
                errors.append(str(error))
            elif triton.restarts == 0:
                os.kill(triton.pid, signal.SIGKILL)
        assert len(errors) == 1
        assert "engine" in errors[0]
        with pytest.raises(InferenceServerException) as refused:
            await client.infer("tensorrt_llm", ids_inputs([5, END_OF_PROMPT], 4))
        assert refused.value.status() == "StatusCode.UNAVAILABLE"
        await status_when(sidecar, lambda status: bool(status["state"] == "serving"))
        answer = await client.infer("tensorrt_llm", ids_inputs([5, END_OF_PROMPT], 4, streaming=False))
        assert answer.as_numpy("output_ids").size >= 1
        assert triton.restarts == 1
        await sidecar.drain()
        lines = [line.split(" ", 2)[-1] for line in sidecar.log.read_text().splitlines()]
        told = [line for line in lines if "engine e0 is " in line]
        watch, address = "sidecar.driver.engine_watch", f"model tensorrt_llm at {triton.target}"
        assert told[0] == told[-1] == f"INFO {watch}: engine e0 is up: {address}"
        downs = [line for line in told if "is down" in line]
        assert downs
        assert all(line.startswith(f"WARNING {watch}: engine e0 is down: {address}: UNAVAILABLE") for line in downs)
