"""SIGTERM in the middle of a stream: what runs ends, what comes is refused, the process ends cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tritonclient.grpc import aio as aio_client
from tritonclient.utils import InferenceServerException

from dev.server import serving
from dev.triton import Triton
from tests.integration.conftest import sidecar_settings, status_when
from tests.integration.test_tritonclient import END_OF_PROMPT, ids_inputs, requests_of

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]
TOKENS = 120  # over a second of the paced engine


async def test_a_stream_in_progress_is_served_to_its_end(triton: Triton, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, sidecar_settings(triton)) as sidecar,
        aio_client.InferenceServerClient(sidecar.listen) as client,
    ):
        inputs = ids_inputs([5, END_OF_PROMPT], TOKENS, min_tokens=TOKENS)
        received = 0
        async for result, error in client.stream_infer(requests_of({"model_name": "tensorrt_llm", "inputs": inputs})):
            assert error is None
            received += result.as_numpy("output_ids").size
            if received == 1:
                os.kill(sidecar.pid, signal.SIGTERM)
                await status_when(sidecar, lambda status: bool(status["state"] == "draining"))
                with pytest.raises(InferenceServerException) as refused:
                    await client.infer("tensorrt_llm", ids_inputs([5, END_OF_PROMPT], 4))
                assert refused.value.status() == "StatusCode.UNAVAILABLE"
        assert received == TOKENS
        async with asyncio.timeout(30):
            assert await sidecar.ended() == 0
